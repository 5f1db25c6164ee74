//! Packet: what the guest's kernel sends and what it is sent back, as far as no connection does it. Pure.
//!
//! Every packet for the kernel has room in front for the header of the tun device, which says that checksums of TCP, and of UDP over IPv6,
//! need no check: both ends are in one machine. Those of IP and ICMP are right, UDP over IPv4 has none.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes in front of every packet on the tun device (struct virtio_net_hdr).
pub const TUN_HEADER_BYTES: usize = 10;
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 2);
/// Where the guest sends everything, and its resolver.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 1);
/// Where the host has IPv6. Unique local: programs prefer IPv4 for names that have both.
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6278, 0x83, 0, 0, 0, 0, 2);
/// Who errors about packets of IPv6 come from.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6278, 0x83, 0, 0, 0, 0, 1);
pub const DNS_PORT: u16 = 53;
/// The largest packet either way: what fits into 16 bits, less what the kernel keeps for itself.
pub const MTU: usize = 65_520;

const IP_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
const TCP_BYTES: usize = 20;
const ICMP_BYTES: usize = 8;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const HOPS: u8 = 64;
/// How much of a packet an ICMP error repeats behind its header.
const QUOTED_BYTES: usize = 8;
const FLAG_FIN: u8 = 1;
const FLAG_SYN: u8 = 2;
const FLAG_RST: u8 = 4;
const FLAG_ACK: u8 = 16;
const NEEDS_CHECKSUM: u8 = 1;
/// Where the checksum is in a header.
const TCP_CHECKSUM_AT: u16 = 16;
const UDP_CHECKSUM_AT: u16 = 6;

/// What tells one flow of the guest from another; the source address is always the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub is_tcp: bool,
    pub source: u16,
    pub address: IpAddr,
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
    let (protocol, address, payload) = match bytes.first()? >> 4 {
        4 => parse_v4(bytes)?,
        6 => parse_v6(bytes)?,
        _ => return None,
    };
    let ports = payload.first_chunk::<4>()?;
    let key = Key { is_tcp: protocol == TCP, source: u16_at(ports, 0), address, port: u16_at(ports, 2) };
    let content = match protocol {
        // The kernel itself refuses connections to many at once, and datagrams to port 0.
        TCP if !is_unicast(address) => return None,
        TCP => Content::Segment(parse_segment(payload)?),
        UDP if key.port == 0 => return None,
        UDP => {
            let length = usize::from(u16_at(payload.first_chunk::<UDP_BYTES>()?, 4));
            Content::Datagram(payload.get(UDP_BYTES..length)?)
        }
        _ => return None,
    };
    (key.source != 0).then_some(Packet { key, content })
}

/// Protocol, destination and payload.
fn parse_v4(bytes: &[u8]) -> Option<(u8, IpAddr, &[u8])> {
    let header = bytes.first_chunk::<IP_BYTES>()?;
    let header_bytes = usize::from(header[0] & 0x0f) * 4;
    let fragment = u16_at(header, 6) & 0x3fff;
    let (source, address) = (Ipv4Addr::from(four_at(header, 12)), Ipv4Addr::from(four_at(header, 16)));
    if header_bytes < IP_BYTES || fragment != 0 || source != GUEST || address == GUEST {
        return None;
    }
    let payload = bytes.get(header_bytes..usize::from(u16_at(header, 2)))?;
    Some((header[9], IpAddr::V4(address), payload))
}

/// The same. What the guest's kernel sends for programs has no further headers.
fn parse_v6(bytes: &[u8]) -> Option<(u8, IpAddr, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<IPV6_BYTES>()?;
    let address = |at: usize| Some(Ipv6Addr::from(*header[at..].first_chunk::<16>()?));
    let (source, address) = (address(8)?, address(24)?);
    if source != GUEST_V6 || address == GUEST_V6 {
        return None;
    }
    Some((header[6], IpAddr::V6(address), rest.get(..usize::from(u16_at(header, 4)))?))
}

fn is_unicast(address: IpAddr) -> bool {
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
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
    let tcp = transport(&mut packet);
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
    if payload.len() > MTU - ip_bytes(key.address.is_ipv6()) - UDP_BYTES {
        return None;
    }
    let bytes = UDP_BYTES + payload.len();
    let mut packet = start(key.address, UDP, bytes);
    let udp = transport(&mut packet);
    put_ports(udp, key);
    udp[4..6].copy_from_slice(&(bytes as u16).to_be_bytes());
    udp[UDP_BYTES..].copy_from_slice(payload);
    if let IpAddr::V6(source) = key.address {
        // Over IPv6 none is an error; the sum of what precedes the header stands for one that is still to be made.
        let sum = fold(pseudo_sum(source, UDP, bytes));
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        mark(&mut packet, UDP_CHECKSUM_AT);
    }
    Some(packet)
}

/// Why a destination cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Host,
    Port,
}

/// What is kept of a packet so that an ICMP error can repeat it.
pub fn quote(packet: &[u8]) -> Vec<u8> {
    packet[..packet.len().min(ip_bytes(is_v6(packet)) + QUOTED_BYTES)].to_vec()
}

/// The ICMP error that a packet to `key.address` is answered with. It comes from the gateway: the guest's kernel believes nothing that comes
/// from an address of many, or of nobody.
pub fn unreachable(key: Key, code: Unreachable, quoted: &[u8]) -> Vec<u8> {
    let bytes = ICMP_BYTES + quoted.len();
    let (source, protocol, head, sum) = match (key.address.is_ipv6(), code) {
        (false, Unreachable::Host) => (GATEWAY.into(), ICMP, [3, 1], 0),
        (false, Unreachable::Port) => (GATEWAY.into(), ICMP, [3, 3], 0),
        (true, Unreachable::Host) => (GATEWAY_V6.into(), ICMPV6, [1, 3], pseudo_sum(GATEWAY_V6, ICMPV6, bytes)),
        (true, Unreachable::Port) => (GATEWAY_V6.into(), ICMPV6, [1, 4], pseudo_sum(GATEWAY_V6, ICMPV6, bytes)),
    };
    let mut packet = start(source, protocol, bytes);
    let icmp = transport(&mut packet);
    icmp[..2].copy_from_slice(&head);
    icmp[ICMP_BYTES..].copy_from_slice(quoted);
    let sum = !fold(sum + word_sum(icmp));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Fills in the tun device's header of a packet of TCP that lies behind it.
pub fn mark_tcp(packet: &mut [u8]) {
    mark(packet, TCP_CHECKSUM_AT);
}

fn mark(packet: &mut [u8], checksum_at: u16) {
    let (header, ip) = packet.split_at_mut(TUN_HEADER_BYTES);
    header.fill(0);
    header[0] = NEEDS_CHECKSUM;
    // csum_start, csum_offset; the machine's own byte order.
    header[6..8].copy_from_slice(&(ip_bytes(is_v6(ip)) as u16).to_ne_bytes());
    header[8..10].copy_from_slice(&checksum_at.to_ne_bytes());
}

/// The headers of the tun device and of IP, and room for `bytes` of payload.
fn start(source: IpAddr, protocol: u8, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; TUN_HEADER_BYTES + ip_bytes(source.is_ipv6()) + bytes];
    let ip = &mut packet[TUN_HEADER_BYTES..];
    match source {
        IpAddr::V4(source) => {
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&((IP_BYTES + bytes) as u16).to_be_bytes());
            // Do not fragment.
            (ip[6], ip[8], ip[9]) = (0x40, HOPS, protocol);
            ip[12..16].copy_from_slice(&source.octets());
            ip[16..20].copy_from_slice(&GUEST.octets());
            let sum = !fold(word_sum(&ip[..IP_BYTES]));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        IpAddr::V6(source) => {
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&(bytes as u16).to_be_bytes());
            (ip[6], ip[7]) = (protocol, HOPS);
            ip[8..24].copy_from_slice(&source.octets());
            ip[24..40].copy_from_slice(&GUEST_V6.octets());
        }
    }
    packet
}

/// What lies behind the header of IP in a packet of `start`.
fn transport(packet: &mut [u8]) -> &mut [u8] {
    let at = TUN_HEADER_BYTES + ip_bytes(is_v6(&packet[TUN_HEADER_BYTES..]));
    &mut packet[at..]
}

fn is_v6(ip: &[u8]) -> bool {
    ip.first().is_some_and(|byte| byte >> 4 == 6)
}

fn ip_bytes(is_v6: bool) -> usize {
    if is_v6 {
        IPV6_BYTES
    } else {
        IP_BYTES
    }
}

/// The answer goes the other way.
fn put_ports(header: &mut [u8], key: Key) {
    header[..2].copy_from_slice(&key.port.to_be_bytes());
    header[2..4].copy_from_slice(&key.source.to_be_bytes());
}

/// What IPv6 counts into checksums beside the packet itself (RFC 8200, 8.1), for a packet to the guest.
fn pseudo_sum(source: Ipv6Addr, protocol: u8, bytes: usize) -> u32 {
    word_sum(&source.octets()) + word_sum(&GUEST_V6.octets()) + u32::from(protocol) + bytes as u32
}

/// RFC 1071.
fn word_sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
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
