//! Packet: what the guest's kernel sends and what it is sent back, as far as no connection does it. Pure.
//!
//! Every packet for the kernel has room in front for the header of the tun device, which says that checksums of TCP need no check: both
//! ends are in one machine. Those of IP and ICMP are right, UDP has none (which IPv4 allows).

/// Bytes in front of every packet on the tun device (struct virtio_net_hdr).
pub const TUN_HEADER_BYTES: usize = 10;
pub const GUEST: [u8; 4] = [10, 83, 0, 2];
/// Where the guest sends everything, and its resolver.
pub const GATEWAY: [u8; 4] = [10, 83, 0, 1];
pub const DNS_PORT: u16 = 53;
/// The largest packet either way: what fits into 16 bits, less what the kernel keeps for itself.
pub const MTU: usize = 65_520;

const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const TCP_BYTES: usize = 20;
const ICMP_BYTES: usize = 8;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// How much of a packet an ICMP error repeats.
const QUOTED_BYTES: usize = IP_BYTES + 8;
const FLAG_FIN: u8 = 1;
const FLAG_SYN: u8 = 2;
const FLAG_RST: u8 = 4;
const FLAG_ACK: u8 = 16;
const NEEDS_CHECKSUM: u8 = 1;

/// What tells one flow of the guest from another; the source address is always the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub is_tcp: bool,
    pub source: u16,
    pub address: [u8; 4],
    pub port: u16,
}

/// A packet from the guest's kernel.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub key: Key,
    pub content: Content<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Content<'a> {
    Segment(Segment),
    Datagram(&'a [u8]),
}

/// What an answer to a TCP segment needs to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    /// What it takes of the sequence space.
    length: u32,
}

impl Segment {
    /// The first of a connection.
    pub fn is_opening(self) -> bool {
        self.flags & (FLAG_SYN | FLAG_ACK | FLAG_RST | FLAG_FIN) == FLAG_SYN
    }

    pub fn is_reset(self) -> bool {
        self.flags & FLAG_RST != 0
    }
}

/// Judges a packet (without the tun device's header). None for all that is neither TCP nor UDP in one piece from the guest's address to
/// somebody else's: nobody answers it.
pub fn parse(bytes: &[u8]) -> Option<Packet<'_>> {
    let header = bytes.first_chunk::<IP_BYTES>()?;
    let header_bytes = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16_at(header, 2));
    let fragment = u16_at(header, 6) & 0x3fff;
    if header[0] >> 4 != 4 || header_bytes < IP_BYTES || total > bytes.len() || fragment != 0 {
        return None;
    }
    let (source, address) = (four_at(header, 12), four_at(header, 16));
    if source != GUEST || address == GUEST || address[0] == 0 || address[0] == 127 || address[0] >= 224 {
        return None;
    }
    let payload = bytes.get(header_bytes..total)?;
    let ports = payload.first_chunk::<4>()?;
    let key = Key { is_tcp: header[9] == TCP, source: u16_at(ports, 0), address, port: u16_at(ports, 2) };
    let content = match header[9] {
        TCP => Content::Segment(parse_segment(payload)?),
        UDP => {
            let length = usize::from(u16_at(payload.first_chunk::<UDP_BYTES>()?, 4));
            Content::Datagram(payload.get(UDP_BYTES..length)?)
        }
        _ => return None,
    };
    (key.port != 0 && key.source != 0).then_some(Packet { key, content })
}

fn parse_segment(payload: &[u8]) -> Option<Segment> {
    let header = payload.first_chunk::<TCP_BYTES>()?;
    let offset = usize::from(header[12] >> 4) * 4;
    if offset < TCP_BYTES || offset > payload.len() {
        return None;
    }
    let flags = header[13];
    let length = (payload.len() - offset) as u32 + u32::from(flags & FLAG_SYN != 0) + u32::from(flags & FLAG_FIN != 0);
    Some(Segment { flags, sequence: u32_at(header, 4), acknowledgement: u32_at(header, 8), length })
}

/// The RST that a connection which is not there answers `segment` with (RFC 9293, 3.5.2); none to a RST.
pub fn reset(key: Key, segment: Segment) -> Option<Vec<u8>> {
    if segment.is_reset() {
        return None;
    }
    let mut packet = start(key.address, TCP, TCP_BYTES);
    let tcp = &mut packet[TUN_HEADER_BYTES + IP_BYTES..];
    put_ports(tcp, key);
    tcp[12] = (TCP_BYTES as u8 / 4) << 4;
    if segment.flags & FLAG_ACK != 0 {
        tcp[4..8].copy_from_slice(&segment.acknowledgement.to_be_bytes());
        tcp[13] = FLAG_RST;
    } else {
        tcp[8..12].copy_from_slice(&segment.sequence.wrapping_add(segment.length).to_be_bytes());
        tcp[13] = FLAG_RST | FLAG_ACK;
    }
    mark_tcp(&mut packet);
    Some(packet)
}

/// A datagram from where the guest sent its own.
pub fn datagram(key: Key, payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() > MTU - IP_BYTES - UDP_BYTES {
        return None;
    }
    let mut packet = start(key.address, UDP, UDP_BYTES + payload.len());
    let udp = &mut packet[TUN_HEADER_BYTES + IP_BYTES..];
    put_ports(udp, key);
    udp[4..6].copy_from_slice(&((UDP_BYTES + payload.len()) as u16).to_be_bytes());
    udp[UDP_BYTES..].copy_from_slice(payload);
    Some(packet)
}

/// Why a destination cannot be reached: codes of ICMP's type 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Host = 1,
    Port = 3,
}

/// What is kept of a packet so that an ICMP error can repeat it.
pub fn quote(packet: &[u8]) -> Vec<u8> {
    packet[..packet.len().min(QUOTED_BYTES)].to_vec()
}

/// The ICMP error that a packet to `key.address` is answered with.
pub fn unreachable(key: Key, code: Unreachable, quoted: &[u8]) -> Vec<u8> {
    let mut packet = start(key.address, ICMP, ICMP_BYTES + quoted.len());
    let icmp = &mut packet[TUN_HEADER_BYTES + IP_BYTES..];
    (icmp[0], icmp[1]) = (3, code as u8);
    icmp[ICMP_BYTES..].copy_from_slice(quoted);
    let sum = checksum(icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Fills in the tun device's header of a packet of TCP that begins behind it.
pub fn mark_tcp(packet: &mut [u8]) {
    packet[..TUN_HEADER_BYTES].fill(0);
    packet[0] = NEEDS_CHECKSUM;
    // csum_start, csum_offset; the machine's own byte order.
    packet[6..8].copy_from_slice(&(IP_BYTES as u16).to_ne_bytes());
    packet[8..10].copy_from_slice(&16u16.to_ne_bytes());
}

/// The headers of the tun device and of IP, and room for `bytes` of payload.
fn start(source: [u8; 4], protocol: u8, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; TUN_HEADER_BYTES + IP_BYTES + bytes];
    let ip = &mut packet[TUN_HEADER_BYTES..TUN_HEADER_BYTES + IP_BYTES];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((IP_BYTES + bytes) as u16).to_be_bytes());
    // Do not fragment; 64 hops.
    (ip[6], ip[8], ip[9]) = (0x40, 64, protocol);
    ip[12..16].copy_from_slice(&source);
    ip[16..20].copy_from_slice(&GUEST);
    let sum = checksum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The answer goes the other way.
fn put_ports(header: &mut [u8], key: Key) {
    header[..2].copy_from_slice(&key.port.to_be_bytes());
    header[2..4].copy_from_slice(&key.source.to_be_bytes());
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn four_at(bytes: &[u8], at: usize) -> [u8; 4] {
    [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]
}

#[cfg(test)]
#[path = "packet_tests.rs"]
pub mod tests;
