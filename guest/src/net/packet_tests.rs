//! Tests of packets: what is read of them, what answers them, and that any bytes are judged.
use super::*;

const KEY: Key = Key { is_tcp: true, source: 50_000, address: IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34)), port: 443 };
const KEY_V6: Key = Key { address: IpAddr::V6(Ipv6Addr::new(0x2606, 0x2800, 0x21f, 0xcb07, 0, 0, 0, 1)), ..KEY };

/// What the guest's kernel would send; `transport` is what follows the ports.
pub fn ip(protocol: u8, key: Key, transport: &[u8]) -> Vec<u8> {
    let mut packet = match key.address {
        IpAddr::V4(address) => {
            let bytes = (IP_BYTES + 4 + transport.len()) as u16;
            let mut packet = vec![0x45, 0, (bytes >> 8) as u8, bytes as u8, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            packet.extend_from_slice(&GUEST.octets());
            packet.extend_from_slice(&address.octets());
            packet
        }
        IpAddr::V6(address) => {
            let bytes = (4 + transport.len()) as u16;
            let mut packet = vec![0x60, 0, 0, 0, (bytes >> 8) as u8, bytes as u8, protocol, 64];
            packet.extend_from_slice(&GUEST_V6.octets());
            packet.extend_from_slice(&address.octets());
            packet
        }
    };
    packet.extend_from_slice(&key.source.to_be_bytes());
    packet.extend_from_slice(&key.port.to_be_bytes());
    packet.extend_from_slice(transport);
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

/// Checks the headers of a packet for the guest; returns what lies behind that of IP.
fn transport_of(packet: &[u8], source: IpAddr, protocol: u8) -> &[u8] {
    let packet = &packet[TUN_HEADER_BYTES..];
    match source {
        IpAddr::V4(source) => {
            let (ip, rest) = packet.split_at(IP_BYTES);
            assert_eq!((fold(word_sum(ip)), ip[9], usize::from(u16_at(ip, 2))), (0xffff, protocol, packet.len()));
            assert_eq!((&ip[12..16], &ip[16..20]), (&source.octets()[..], &GUEST.octets()[..]));
            rest
        }
        IpAddr::V6(source) => {
            let (ip, rest) = packet.split_at(IPV6_BYTES);
            assert_eq!((ip[0], ip[6], usize::from(u16_at(ip, 4))), (0x60, protocol, rest.len()));
            assert_eq!((&ip[8..24], &ip[24..40]), (&source.octets()[..], &GUEST_V6.octets()[..]));
            rest
        }
    }
}

/// Where the tun device is told that a checksum is to be made.
fn checksum_at(packet: &[u8]) -> (u8, usize, usize) {
    let number = |at: usize| usize::from(u16::from_ne_bytes([packet[at], packet[at + 1]]));
    (packet[0], number(6), number(8))
}

#[test]
fn segments_and_datagrams_are_read() {
    for tcp in [KEY, KEY_V6] {
        let syn = segment(tcp, FLAG_SYN, 7, 0, &[]);
        let wanted = Segment { flags: FLAG_SYN, sequence: 7, acknowledgement: 0, length: 1 };
        assert_eq!(parse(&syn), Some(Packet { key: tcp, content: Content::Segment(wanted) }));
        let key = Key { is_tcp: false, ..tcp };
        assert_eq!(parse(&udp(key, b"hi")), Some(Packet { key, content: Content::Datagram(b"hi") }));
        assert_eq!(parse(&udp(key, b"")), Some(Packet { key, content: Content::Datagram(b"") }));
        // What follows the packet is not of it.
        let mut longer = udp(key, b"hi");
        longer.extend_from_slice(b"padding");
        assert_eq!(parse(&longer), Some(Packet { key, content: Content::Datagram(b"hi") }));
    }
}

#[test]
fn destinations_that_nobody_has_are_the_hosts_to_refuse() {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    for text in ["0.1.2.3", "240.0.0.1", "10.83.0.3", "127.0.0.1", "::1", "fe80::1", "::ffff:10.0.0.1", "fd73:6278:83::1"] {
        let key = Key { address: address(text), ..KEY };
        assert_eq!(parse(&segment(key, FLAG_SYN, 0, 0, &[])).map(|packet| packet.key), Some(key), "{text}");
    }
    // To many at once only datagrams are sent.
    for text in ["224.0.0.251", "255.255.255.255", "ff02::1", "0.0.0.0", "::"] {
        let key = Key { address: address(text), ..KEY };
        assert_eq!(parse(&segment(key, FLAG_SYN, 0, 0, &[])), None, "{text}");
        assert!(parse(&udp(key, b"x")).is_some(), "{text}");
    }
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
    let changed = |packet: &[u8], at: usize, byte: u8| {
        let mut packet = packet.to_vec();
        packet[at] = byte;
        parse(&packet).map(|packet| packet.key)
    };
    let good = segment(KEY, FLAG_SYN, 0, 0, &[]);
    assert!(changed(&good, 0, 0x45).is_some());
    // Another version, a short header, a length beyond the packet, a fragment, another protocol, another source.
    for (at, byte) in [(0, 0x75), (0, 0x44), (2, 1), (6, 0x20), (7, 1), (9, 1), (9, 47), (15, 9)] {
        assert_eq!(changed(&good, at, byte), None, "{at} {byte}");
    }
    assert_eq!(changed(&good, 32, 0x40), None, "a data offset within the header");
    assert_eq!(changed(&good, 32, 0xf0), None, "a data offset beyond the packet");
    let good = segment(KEY_V6, FLAG_SYN, 0, 0, &[]);
    assert!(changed(&good, 0, 0x60).is_some());
    // Another version, a length beyond the packet, further headers, fragments, ICMP, another source.
    for (at, byte) in [(0, 0x40), (4, 1), (6, 0), (6, 44), (6, 58), (23, 3)] {
        assert_eq!(changed(&good, at, byte), None, "{at} {byte}");
    }
    for (guest, key) in [(IpAddr::V4(GUEST), KEY), (IpAddr::V6(GUEST_V6), KEY_V6)] {
        assert_eq!(parse(&segment(Key { address: guest, ..key }, FLAG_SYN, 0, 0, &[])), None);
        assert_eq!(parse(&udp(Key { port: 0, ..key }, b"hi")), None);
        assert_eq!(parse(&segment(Key { source: 0, ..key }, FLAG_SYN, 0, 0, &[])), None);
    }
    let mut wrong = udp(KEY, b"hi");
    wrong[25] = 7;
    assert_eq!(parse(&wrong), None, "a length of UDP below its header");
}

#[test]
fn a_reset_answers_as_the_standard_says() {
    for key in [KEY, KEY_V6] {
        let answer = |flags, sequence, acknowledgement, payload: &[u8]| {
            let bytes = segment(key, flags, sequence, acknowledgement, payload);
            let Some(Packet { content: Content::Segment(segment), .. }) = parse(&bytes) else { panic!("a segment") };
            reset(key, segment)
        };
        let packet = answer(FLAG_SYN, u32::MAX, 0, &[]).expect("a reset");
        let tcp = transport_of(&packet, key.address, TCP);
        assert_eq!((u16_at(tcp, 0), u16_at(tcp, 2), tcp[13]), (key.port, key.source, FLAG_RST | FLAG_ACK));
        assert_eq!((u32_at(tcp, 4), u32_at(tcp, 8)), (0, 0), "the SYN counts, and numbers wrap");
        assert_eq!(checksum_at(&packet), (NEEDS_CHECKSUM, packet.len() - TUN_HEADER_BYTES - TCP_BYTES, 16));
        let packet = answer(FLAG_ACK, 5, 99, b"data").expect("a reset");
        let tcp = transport_of(&packet, key.address, TCP);
        assert_eq!((u32_at(tcp, 4), tcp[13]), (99, FLAG_RST));
        assert_eq!(answer(FLAG_RST, 0, 0, &[]), None);
    }
}

#[test]
fn errors_of_icmp_come_from_the_gateway_and_repeat_what_they_are_about() {
    let original = udp(KEY, b"payload that is not repeated");
    for (code, wanted) in [(Unreachable::Host, 1), (Unreachable::Port, 3)] {
        let packet = unreachable(KEY, code, &quote(&original));
        let icmp = transport_of(&packet, GATEWAY.into(), ICMP);
        assert_eq!((fold(word_sum(icmp)), icmp[0], icmp[1]), (0xffff, 3, wanted));
        assert_eq!(icmp[ICMP_BYTES..], original[..28]);
    }
    let original = udp(KEY_V6, b"payload that is not repeated");
    for (code, wanted) in [(Unreachable::Host, 3), (Unreachable::Port, 4)] {
        let packet = unreachable(KEY_V6, code, &quote(&original));
        let icmp = transport_of(&packet, GATEWAY_V6.into(), ICMPV6);
        assert_eq!(fold(word_sum(icmp) + pseudo_sum(GATEWAY_V6, ICMPV6, icmp.len())), 0xffff);
        assert_eq!((icmp[0], icmp[1], &icmp[ICMP_BYTES..]), (1, wanted, &original[..48]));
    }
}

#[test]
fn a_datagram_comes_from_where_the_guest_sent_its_own() {
    for (tcp, headers) in [(KEY, 28), (KEY_V6, 48)] {
        let key = Key { is_tcp: false, ..tcp };
        let packet = datagram(key, b"answer").expect("a packet");
        let udp = transport_of(&packet, key.address, UDP);
        assert_eq!((u16_at(udp, 0), u16_at(udp, 2), u16_at(udp, 4)), (key.port, key.source, 14));
        assert_eq!(u16_at(udp, 6) != 0, key.address.is_ipv6(), "over IPv6 there must be a checksum");
        assert_eq!(checksum_at(&packet), if key.address.is_ipv6() { (NEEDS_CHECKSUM, 40, 6) } else { (0, 0, 0) });
        assert!(datagram(key, &vec![0; MTU - headers]).is_some() && datagram(key, &vec![0; MTU - headers + 1]).is_none());
    }
}

#[test]
fn any_bytes_are_judged_without_a_panic() {
    let mut random = 1_u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as u8
    };
    let seeds = [KEY, KEY_V6].map(|key| [segment(key, FLAG_SYN, 0, 0, b"abc"), udp(key, b"abc")]).concat();
    for round in 0..200_000 {
        let mut bytes = if round % 3 == 0 { (0..usize::from(next())).map(|_| next()).collect() } else { seeds[round % 4].clone() };
        for _ in 0..next() % 4 {
            if !bytes.is_empty() {
                let at = usize::from(next()) % bytes.len();
                bytes[at] = next();
            }
        }
        bytes.truncate(usize::from(next()).max(10));
        let _ = quote(&bytes);
        if let Some(Packet { key, content: Content::Segment(segment) }) = parse(&bytes) {
            let _ = (reset(key, segment), unreachable(key, Unreachable::Host, &quote(&bytes)));
        }
    }
}
