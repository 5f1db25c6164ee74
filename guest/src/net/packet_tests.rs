//! Tests of packets: what is read of them, what answers them, and that any bytes are judged.
use super::*;

const KEY: Key = Key { is_tcp: true, source: 50_000, address: [93, 184, 216, 34], port: 443 };

/// What the guest's kernel would send; `transport` begins with the ports.
pub fn ip(protocol: u8, key: Key, transport: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend_from_slice(&GUEST);
    packet.extend_from_slice(&key.address);
    packet.extend_from_slice(&key.source.to_be_bytes());
    packet.extend_from_slice(&key.port.to_be_bytes());
    packet.extend_from_slice(transport);
    let total = packet.len() as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet
}

pub fn segment(key: Key, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend_from_slice(&sequence.to_be_bytes());
    tcp.extend_from_slice(&acknowledgement.to_be_bytes());
    // No options, a window of 65,535.
    tcp.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend_from_slice(payload);
    ip(TCP, key, &tcp)
}

pub fn udp(key: Key, payload: &[u8]) -> Vec<u8> {
    let mut header = ((UDP_BYTES + payload.len()) as u16).to_be_bytes().to_vec();
    header.extend_from_slice(&[0, 0]);
    header.extend_from_slice(payload);
    ip(UDP, Key { is_tcp: false, ..key }, &header)
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    checksum(bytes) == 0
}

#[test]
fn segments_and_datagrams_are_read() {
    let syn = segment(KEY, FLAG_SYN, 7, 0, &[]);
    let wanted = Segment { flags: FLAG_SYN, sequence: 7, acknowledgement: 0, length: 1 };
    assert_eq!(parse(&syn), Some(Packet { key: KEY, content: Content::Segment(wanted) }));
    let key = Key { is_tcp: false, ..KEY };
    assert_eq!(parse(&udp(KEY, b"hi")), Some(Packet { key, content: Content::Datagram(b"hi") }));
    assert_eq!(parse(&udp(KEY, b"")), Some(Packet { key, content: Content::Datagram(b"") }));
    // What follows the packet is not of it.
    let mut longer = udp(KEY, b"hi");
    longer.extend_from_slice(b"padding");
    assert_eq!(parse(&longer), Some(Packet { key, content: Content::Datagram(b"hi") }));
}

#[test]
fn what_opens_a_connection_is_a_lone_syn() {
    let is_opening = |flags| match parse(&segment(KEY, flags, 0, 0, &[])) {
        Some(Packet { content: Content::Segment(segment), .. }) => segment.is_opening(),
        other => panic!("{other:?}"),
    };
    assert!(is_opening(FLAG_SYN) && is_opening(FLAG_SYN | 0xc0));
    for flags in [0, FLAG_ACK, FLAG_SYN | FLAG_ACK, FLAG_SYN | FLAG_RST, FLAG_SYN | FLAG_FIN] {
        assert!(!is_opening(flags), "{flags}");
    }
}

#[test]
fn what_is_no_flow_of_the_guest_is_nothing() {
    let good = segment(KEY, FLAG_SYN, 0, 0, &[]);
    let with = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        parse(&packet).map(|packet| packet.key)
    };
    assert!(with(0, 0x45).is_some());
    // Another version, a short header, a length beyond the packet, a fragment, another protocol, another source.
    for (at, byte) in [(0, 0x65), (0, 0x44), (2, 1), (6, 0x20), (7, 1), (9, 1), (9, 47), (15, 9)] {
        assert_eq!(with(at, byte), None, "{at} {byte}");
    }
    for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 251], [255, 255, 255, 255], GUEST] {
        assert_eq!(parse(&segment(Key { address, ..KEY }, FLAG_SYN, 0, 0, &[])), None, "{address:?}");
    }
    assert_eq!(parse(&segment(Key { port: 0, ..KEY }, FLAG_SYN, 0, 0, &[])), None);
    assert_eq!(with(32, 0x40), None, "a data offset within the header");
    assert_eq!(with(32, 0xf0), None, "a data offset beyond the packet");
    let mut wrong = udp(KEY, b"hi");
    wrong[25] = 7;
    assert_eq!(parse(&wrong), None, "a length of UDP below its header");
}

#[test]
fn a_reset_answers_as_the_standard_says() {
    let answer = |flags, sequence, acknowledgement, payload: &[u8]| {
        let Some(Packet { key, content: Content::Segment(segment) }) = parse(&segment(KEY, flags, sequence, acknowledgement, payload))
        else {
            panic!("a segment")
        };
        reset(key, segment)
    };
    let packet = answer(FLAG_SYN, u32::MAX, 0, &[]).expect("a reset");
    let (ip, tcp) = packet[TUN_HEADER_BYTES..].split_at(IP_BYTES);
    assert!(sums_to_zero(ip) && ip[12..16] == KEY.address && ip[16..20] == GUEST);
    assert_eq!((u16_at(tcp, 0), u16_at(tcp, 2), tcp[13]), (KEY.port, KEY.source, FLAG_RST | FLAG_ACK));
    assert_eq!((u32_at(tcp, 4), u32_at(tcp, 8)), (0, 0), "the SYN counts, and numbers wrap");
    let packet = answer(FLAG_ACK, 5, 99, b"data").expect("a reset");
    let tcp = &packet[TUN_HEADER_BYTES + IP_BYTES..];
    assert_eq!((u32_at(tcp, 4), tcp[13]), (99, FLAG_RST));
    assert_eq!(answer(FLAG_RST, 0, 0, &[]), None);
}

#[test]
fn errors_of_icmp_repeat_what_they_are_about() {
    let original = udp(KEY, b"payload that is not repeated");
    let packet = unreachable(KEY, Unreachable::Port, &quote(&original));
    let (ip, icmp) = packet[TUN_HEADER_BYTES..].split_at(IP_BYTES);
    assert!(sums_to_zero(ip) && sums_to_zero(icmp));
    assert_eq!((ip[9], icmp[0], icmp[1]), (ICMP, 3, 3));
    assert_eq!(icmp[ICMP_BYTES..], original[..QUOTED_BYTES]);
}

#[test]
fn a_datagram_comes_from_where_the_guest_sent_its_own() {
    let key = Key { is_tcp: false, ..KEY };
    let packet = datagram(key, b"answer").expect("a packet");
    let (ip, udp) = packet[TUN_HEADER_BYTES..].split_at(IP_BYTES);
    assert!(sums_to_zero(ip));
    assert_eq!((u16_at(udp, 0), u16_at(udp, 2), u16_at(udp, 4), u16_at(udp, 6)), (key.port, key.source, 14, 0));
    assert_eq!(&udp[UDP_BYTES..], b"answer");
    assert!(datagram(key, &[0; MTU - 28]).is_some() && datagram(key, &[0; MTU - 27]).is_none());
}

#[test]
fn any_bytes_are_judged_without_a_panic() {
    let mut random = 1_u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as u8
    };
    let seeds = [segment(KEY, FLAG_SYN, 0, 0, b"abc"), udp(KEY, b"abc")];
    for round in 0..200_000 {
        let mut bytes = if round % 3 == 0 { (0..usize::from(next())).map(|_| next()).collect() } else { seeds[round % 2].clone() };
        for _ in 0..next() % 4 {
            if !bytes.is_empty() {
                let at = usize::from(next()) % bytes.len();
                bytes[at] = next();
            }
        }
        bytes.truncate(usize::from(next()).max(10));
        if let Some(Packet { key, content: Content::Segment(segment) }) = parse(&bytes) {
            let _ = (reset(key, segment), unreachable(key, Unreachable::Host, &quote(&bytes)));
        }
    }
}
