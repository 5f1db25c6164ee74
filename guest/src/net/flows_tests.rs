//! Tests of flows: smoltcp as the guest's kernel on one side, the frames on the other, and generated input.
use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State as TcpState};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::*;
use crate::net::packet::tests::{segment, udp};
use crate::net::packet::{GATEWAY_V6, GUEST, GUEST_V6, MTU};
use crate::wire;

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34));
const SERVER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2606, 0x2800, 0x21f, 0xcb07, 0, 0, 0, 1));
const KEY: Key = Key { is_tcp: true, source: 50_000, address: SERVER, port: 80 };
const KEY_V6: Key = Key { address: SERVER_V6, ..KEY };
const RESOLVER: Key = Key { is_tcp: false, source: 40_000, address: IpAddr::V4(GATEWAY), port: DNS_PORT };

/// Packets on their way to the guest, without the tun device's header.
#[derive(Default)]
struct Packets(VecDeque<Vec<u8>>);

impl Sink for Packets {
    fn send(&mut self, packet: &[u8]) {
        self.0.push_back(packet[TUN_HEADER_BYTES..].to_vec());
    }

    fn send_with(&mut self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) {
        let mut packet = vec![0xaa; bytes];
        fill(&mut packet);
        self.send(&packet);
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Said {
    stream: u32,
    kind: Kind,
    payload: Vec<u8>,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).expect("JSON")
    }
}

/// The flows, their port, and what the host has been told.
struct Rig {
    flows: Flows,
    port: Port,
    packets: Packets,
    now_us: u64,
}

impl Rig {
    fn new() -> Self {
        let mut port = Port::new("n");
        port.take_output();
        Rig { flows: Flows::new(1), port, packets: Packets::default(), now_us: 1_000_000 }
    }

    fn packet(&mut self, bytes: &[u8]) {
        self.flows.on_packet(bytes, &mut self.port, self.now_us, &mut self.packets);
    }

    fn frame(&mut self, stream: u32, kind: Kind, payload: &[u8]) -> Result<(), &'static str> {
        let frame = Frame { stream, kind, flags: 0, payload };
        let result = self.flows.on_frame(&frame, &mut self.port, self.now_us, &mut self.packets);
        self.flows.settle(&mut self.port, self.now_us, &mut self.packets);
        result
    }

    fn pass(&mut self, us: u64) {
        self.now_us += us;
        self.flows.on_time(&mut self.port, self.now_us, &mut self.packets);
        self.flows.pump(&mut self.port, self.now_us, &mut self.packets);
    }

    /// What the host was told since the last call; CREDIT left out.
    fn said(&mut self) -> Vec<Said> {
        let bytes = self.port.take_output();
        let (mut rest, mut said) = (&bytes[..], Vec::new());
        while let Some((frame, taken)) = wire::parse(rest).expect("frames") {
            if frame.kind != Kind::Credit {
                said.push(Said { stream: frame.stream, kind: frame.kind, payload: frame.payload.to_vec() });
            }
            rest = &rest[taken..];
        }
        assert!(rest.is_empty());
        said
    }
}

/// The guest's kernel with one connection.
struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

struct Wire<'a> {
    incoming: Option<Vec<u8>>,
    outgoing: &'a mut Vec<Vec<u8>>,
}
struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Wire<'_> {
    type RxToken<'a>
        = Incoming
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;
    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        Some((Incoming(self.incoming.take()?), Outgoing(self.outgoing)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(self.outgoing))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        (capabilities.medium, capabilities.max_transmission_unit) = (Medium::Ip, MTU);
        // The header of the tun device stands for the checksums of TCP.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities.checksum.tcp = smoltcp::phy::Checksum::None;
        capabilities
    }
}
impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}
impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Guest {
    fn connect(key: Key) -> Self {
        let mut outgoing = Vec::new();
        let mut device = Wire { incoming: None, outgoing: &mut outgoing };
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut device, Instant::from_micros(1_000_000));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(GUEST), 30)).expect("room");
            addresses.push(IpCidr::new(IpAddress::Ipv6(GUEST_V6), 64)).expect("room");
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("room");
        interface.routes_mut().add_default_ipv6_route(GATEWAY_V6).expect("room");
        let buffer = || SocketBuffer::new(vec![0; 1_000_000]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.connect(interface.context(), (IpAddress::from(key.address), key.port), key.source).expect("connects");
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Guest { interface, sockets, handle }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn state(&mut self) -> TcpState {
        self.socket().state()
    }

    /// Carries packets both ways until none is left.
    fn exchange(&mut self, rig: &mut Rig) {
        let now = Instant::from_micros(rig.now_us as i64);
        for _ in 0..10_000 {
            let mut outgoing = Vec::new();
            let incoming = rig.packets.0.pop_front();
            let is_quiet = incoming.is_none();
            self.interface.poll(now, &mut Wire { incoming, outgoing: &mut outgoing }, &mut self.sockets);
            if is_quiet && outgoing.is_empty() {
                return;
            }
            for packet in outgoing {
                rig.packet(&packet);
            }
        }
        panic!("they never stop");
    }

    fn read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let length = self.socket().recv_slice(&mut bytes).unwrap_or(0);
        bytes.truncate(length);
        bytes
    }
}

/// A connection that the host has accepted, and its number.
fn connected(rig: &mut Rig) -> (Guest, u32) {
    connected_to(KEY, rig)
}

fn connected_to(key: Key, rig: &mut Rig) -> (Guest, u32) {
    let mut guest = Guest::connect(key);
    guest.exchange(rig);
    let said = rig.said();
    assert_eq!(said.len(), 1);
    let id = said[0].stream;
    rig.frame(id, Kind::Accept, &[]).expect("accepted");
    guest.exchange(rig);
    assert_eq!(guest.state(), TcpState::Established);
    (guest, id)
}

#[test]
fn a_syn_is_answered_when_the_host_has_accepted() {
    let mut rig = Rig::new();
    let mut guest = Guest::connect(KEY);
    guest.exchange(&mut rig);
    let said = rig.said();
    assert_eq!((said.len(), said[0].stream, said[0].kind), (1, 2, Kind::Open));
    assert_eq!(said[0].json(), json!({ "flow": "tcp", "address": "93.184.216.34", "port": 80, "source": 50_000 }));
    // The same SYN again asks nobody.
    rig.packet(&segment(KEY, 2, 1, 0, &[]));
    assert_eq!((rig.said(), guest.state()), (vec![], TcpState::SynSent));
    rig.frame(2, Kind::Accept, &[]).expect("accepted");
    guest.exchange(&mut rig);
    assert_eq!(guest.state(), TcpState::Established);
    assert!(rig.frame(2, Kind::Accept, &[]).is_err(), "once");
}

#[test]
fn a_refusal_looks_like_one() {
    let codes = [("refused", false, true), ("limit", false, true), ("unreachable", true, false), ("timeout", false, false)];
    for (key, (code, is_icmp, is_reset)) in [KEY, KEY_V6].into_iter().flat_map(|key| codes.map(|code| (key, code))) {
        let mut rig = Rig::new();
        let mut guest = Guest::connect(key);
        guest.exchange(&mut rig);
        let said = rig.said();
        assert_eq!(said[0].json()["address"], key.address.to_string());
        rig.frame(2, Kind::Error, json!({ "code": code }).to_string().as_bytes()).expect("refused");
        let is_icmp_of = |packet: &Vec<u8>| if key.address.is_ipv6() { packet[6] == 58 } else { packet[9] == 1 };
        assert_eq!(rig.packets.0.iter().any(is_icmp_of), is_icmp, "{code}");
        guest.exchange(&mut rig);
        assert_eq!(guest.state() == TcpState::Closed, is_reset, "{code}");
        assert_eq!((rig.flows.count(), rig.flows.keys.len()), (0, 0));
        // What the host still sends crossed on its way.
        assert!(rig.frame(2, Kind::End, &[]).is_ok() && rig.frame(4, Kind::End, &[]).is_err());
    }
}

#[test]
fn bytes_go_both_ways_and_each_end_is_carried() {
    for (key, is_guest_first) in [(KEY, true), (KEY, false), (KEY_V6, true), (KEY_V6, false)] {
        let mut rig = Rig::new();
        let (mut guest, id) = connected_to(key, &mut rig);
        guest.socket().send_slice(b"question").expect("sent");
        guest.exchange(&mut rig);
        assert_eq!(rig.said(), [Said { stream: id, kind: Kind::Data, payload: b"question".to_vec() }]);
        rig.frame(id, Kind::Data, b"answer").expect("sent");
        guest.exchange(&mut rig);
        assert_eq!(guest.read(), b"answer");
        let end = vec![Said { stream: id, kind: Kind::End, payload: vec![] }];
        if is_guest_first {
            guest.socket().close();
            guest.exchange(&mut rig);
            assert_eq!(rig.said(), end);
            // The other half goes on.
            rig.frame(id, Kind::Data, b"late").expect("sent");
            guest.exchange(&mut rig);
            assert_eq!(guest.read(), b"late");
            rig.frame(id, Kind::End, &[]).expect("ended");
            guest.exchange(&mut rig);
        } else {
            rig.frame(id, Kind::End, &[]).expect("ended");
            guest.exchange(&mut rig);
            assert_eq!(guest.state(), TcpState::CloseWait);
            guest.socket().send_slice(b"late").expect("sent");
            guest.exchange(&mut rig);
            guest.socket().close();
            guest.exchange(&mut rig);
            let said = rig.said();
            assert_eq!((said[0].payload.as_slice(), &said[1..]), (&b"late"[..], &end[..]));
        }
        assert_eq!((rig.flows.count(), rig.flows.timers.len(), rig.said()), (0, 0, vec![]));
    }
}

#[test]
fn resets_are_carried_both_ways() {
    let mut rig = Rig::new();
    let (mut guest, id) = connected(&mut rig);
    guest.socket().abort();
    guest.exchange(&mut rig);
    let said = rig.said();
    assert_eq!((said.len(), said[0].kind, said[0].json()["code"].as_str()), (1, Kind::Error, Some("reset")));
    assert_eq!(rig.flows.count(), 0);
    assert_eq!(rig.frame(id, Kind::Data, b"crossed"), Ok(()));

    let mut rig = Rig::new();
    let (mut guest, id) = connected(&mut rig);
    rig.frame(id, Kind::Error, b"{\"code\":\"reset\"}").expect("reset");
    guest.exchange(&mut rig);
    assert_eq!((guest.state(), rig.flows.count(), rig.said()), (TcpState::Closed, 0, vec![]));
}

#[test]
fn a_connection_that_the_guest_has_forgotten_without_a_word_ends() {
    for (is_ended, most_us) in [(false, 61_000_000), (true, 6_000_000)] {
        let mut rig = Rig::new();
        let (mut guest, id) = connected(&mut rig);
        if is_ended {
            rig.frame(id, Kind::End, &[]).expect("ended");
            guest.exchange(&mut rig);
        }
        guest.sockets.remove(guest.handle);
        let until_us = rig.now_us + most_us;
        while rig.flows.count() == 1 {
            assert!(rig.now_us < until_us, "it is noticed");
            rig.pass(1_000_000);
            guest.exchange(&mut rig);
        }
        assert_eq!(rig.said()[0].json()["code"], "reset");
    }
}

#[test]
fn what_belongs_to_no_flow_is_answered_by_a_reset() {
    let mut rig = Rig::new();
    rig.packet(&segment(KEY, 16, 5, 6, b"data"));
    assert_eq!((rig.packets.0.len(), rig.packets.0[0][33], rig.said()), (1, 4, vec![]));
    rig.packet(&segment(KEY, 4, 5, 6, b""));
    assert_eq!(rig.packets.0.len(), 1, "none to a reset");
}

#[test]
fn more_than_the_credit_waits_and_the_guest_with_it() {
    let mut rig = Rig::new();
    let (mut guest, id) = connected(&mut rig);
    let bytes: Vec<u8> = (0..500_000_u32).map(|at| (at % 251) as u8).collect();
    assert_eq!(guest.socket().send_slice(&bytes), Ok(bytes.len()));
    let mut received = Vec::new();
    let mut take = |rig: &mut Rig, guest: &mut Guest| {
        for _ in 0..20 {
            guest.exchange(rig);
            rig.pass(1_000);
        }
        rig.said().into_iter().for_each(|said| received.extend(said.payload));
        received.len()
    };
    assert_eq!(take(&mut rig, &mut guest), INITIAL_BYTES as usize);
    // The buffer is full: the rest waits in the guest.
    assert!(guest.socket().send_queue() > 0);
    let mut at = INITIAL_BYTES as usize;
    while at < bytes.len() {
        rig.frame(id, Kind::Credit, &50_000_u32.to_le_bytes()).expect("credit");
        rig.pass(1_000_000);
        let now = take(&mut rig, &mut guest);
        assert_eq!(now, (at + 50_000).min(bytes.len()));
        at = now;
    }
    assert!(received == bytes);
}

#[test]
fn the_host_is_granted_what_the_guest_has_taken() {
    let mut rig = Rig::new();
    let (mut guest, id) = connected(&mut rig);
    let bytes: Vec<u8> = (0..65_536_u32).map(|at| (at % 253) as u8).collect();
    let mut sent = 0;
    // All of its credit, and then no more: the guest does not read.
    while rig.frame(id, Kind::Data, &bytes).is_ok() {
        sent += bytes.len();
        assert!(sent <= 2 << 20, "bounded");
        guest.exchange(&mut rig);
    }
    assert!(sent >= WIDE_BYTES as usize);
    let mut rig = Rig::new();
    let (mut guest, id) = connected(&mut rig);
    let mut received = 0;
    for _ in 0..100 {
        rig.frame(id, Kind::Data, &bytes).expect("within the credit");
        guest.exchange(&mut rig);
        let read = guest.read();
        assert!(read.iter().enumerate().all(|(at, byte)| *byte == ((received + at) % 65_536 % 253) as u8));
        received += read.len();
        guest.exchange(&mut rig);
    }
    assert_eq!(received, 100 * bytes.len());
}

#[test]
fn datagrams_are_a_frame_each_and_flows_of_them_end_by_themselves() {
    let mut rig = Rig::new();
    let key = Key { is_tcp: false, ..KEY };
    rig.packet(&udp(key, b"one"));
    rig.packet(&udp(key, b"two"));
    let said = rig.said();
    assert_eq!(said[0].json(), json!({ "flow": "udp", "address": "93.184.216.34", "port": 80, "source": 50_000 }));
    assert_eq!((said.len(), &said[1].payload[..], &said[2].payload[..]), (3, &b"one"[..], &b"two"[..]));
    rig.frame(2, Kind::Data, b"answer").expect("sent");
    assert!(rig.packets.0.pop_front().is_some_and(|packet| packet.ends_with(b"answer")));
    rig.pass(UDP_IDLE_US - 1);
    rig.packet(&udp(key, b"three"));
    rig.said();
    rig.pass(UDP_IDLE_US - 1);
    assert_eq!(rig.flows.count(), 1);
    rig.pass(1);
    assert_eq!((rig.flows.count(), rig.said()), (0, vec![Said { stream: 2, kind: Kind::End, payload: vec![] }]));
    // Beyond the credit they are lost.
    for _ in 0..5 {
        rig.packet(&udp(key, &[1; 20_000]));
    }
    assert_eq!(rig.said().iter().filter(|said| said.kind == Kind::Data).count(), 3);
    rig.frame(4, Kind::Error, b"{\"code\":\"refused\"}").expect("refused");
    assert!(rig.packets.0.pop_front().is_some_and(|packet| packet[9] == 1 && packet[21] == 3));
}

#[test]
fn the_resolver_is_a_flow_of_its_own() {
    let mut rig = Rig::new();
    rig.packet(&udp(RESOLVER, b"question"));
    let said = rig.said();
    assert_eq!(said[0].json(), json!({ "flow": "dns", "transport": "udp", "source": 40_000 }));
    assert_eq!(&said[1].payload, b"question");
    rig.packet(&udp(RESOLVER, &[0; DNS_BYTES + 1]));
    assert_eq!(rig.said(), []);
    // Other ports of the gateway are the host's to refuse.
    rig.packet(&udp(Key { port: 54, ..RESOLVER }, b"x"));
    assert_eq!(rig.said()[0].json()["flow"], "udp");
}

#[test]
fn messages_to_the_resolver_over_tcp_are_cut_and_put_together() {
    let mut rig = Rig::new();
    let mut guest = Guest::connect(Key { is_tcp: true, ..RESOLVER });
    guest.exchange(&mut rig);
    assert_eq!(guest.state(), TcpState::Established, "nobody is asked");
    assert_eq!(rig.said()[0].json(), json!({ "flow": "dns", "transport": "tcp", "source": 40_000 }));
    let mut messages = vec![0, 3];
    messages.extend_from_slice(b"one\0\0\0");
    for byte in messages {
        guest.socket().send_slice(&[byte]).expect("sent");
        guest.exchange(&mut rig);
    }
    guest.socket().send_slice(b"\x03two").expect("sent");
    guest.exchange(&mut rig);
    assert_eq!(
        rig.said().into_iter().map(|said| said.payload).collect::<Vec<_>>(),
        [b"one".to_vec(), b"two".to_vec()].iter().map(|bytes| bytes[..].to_vec()).collect::<Vec<_>>()
    );
    rig.frame(2, Kind::Data, b"answer").expect("sent");
    guest.exchange(&mut rig);
    assert_eq!(guest.read(), b"\0\x06answer");
    guest.socket().send_slice(&(DNS_BYTES as u16 + 1).to_be_bytes()).expect("sent");
    guest.exchange(&mut rig);
    assert_eq!((guest.state(), rig.flows.count(), rig.said()[0].kind), (TcpState::Closed, 0, Kind::Error));
}

#[test]
fn flows_are_bounded_and_leave_nothing_behind() {
    let mut rig = Rig::new();
    let key = |at: usize| Key { source: 1_000 + (at % 50_000) as u16, port: 1 + (at / 50_000) as u16, ..KEY };
    for at in 0..FLOWS {
        rig.packet(&segment(key(at), 2, 1, 0, &[]));
        rig.said();
    }
    assert_eq!((rig.flows.count(), rig.packets.0.len()), (FLOWS, 0));
    rig.packet(&segment(key(FLOWS), 2, 1, 0, &[]));
    assert_eq!((rig.said(), rig.packets.0[0][33]), (vec![], 20), "a reset");
    rig.packet(&udp(key(FLOWS), b"x"));
    assert_eq!((rig.said(), rig.packets.0[1][9]), (vec![], 1), "an error of ICMP");
    for at in 0..FLOWS {
        rig.frame(2 + 2 * at as u32, Kind::Error, b"{}").expect("refused");
    }
    let flows = &rig.flows;
    assert_eq!((flows.count(), flows.keys.len(), flows.timers.len(), flows.ready.len()), (0, 0, 0, 0));
}

#[test]
fn a_host_that_breaks_the_protocol_is_told_so() {
    let new = || {
        let mut rig = Rig::new();
        let (_, id) = connected(&mut rig);
        (rig, id)
    };
    let (mut rig, id) = new();
    rig.frame(id, Kind::End, &[]).expect("once");
    assert!(rig.frame(id, Kind::Data, b"x").is_err());
    assert!(rig.frame(id, Kind::End, &[]).is_err());
    let (mut rig, id) = new();
    assert!(rig.frame(id, Kind::Credit, &u32::MAX.to_le_bytes()).is_err());
    for kind in [Kind::Open, Kind::Hello, Kind::Result, Kind::Cancel] {
        let (mut rig, id) = new();
        assert!(rig.frame(id, kind, &[]).is_err(), "{kind:?}");
    }
    for kind in [Kind::Data, Kind::End] {
        let mut rig = Rig::new();
        rig.packet(&segment(KEY, 2, 1, 0, &[]));
        assert!(rig.frame(2, kind, &[]).is_err(), "{kind:?} before ACCEPT");
    }
}

#[test]
fn any_packets_and_frames_in_any_order_are_survived_and_bounded() {
    let mut random = 9_u64;
    let mut next = move |most: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % most
    };
    for _ in 0..300 {
        let mut rig = Rig::new();
        for _ in 0..400 {
            let key = Key {
                source: 1_000 + next(6) as u16,
                port: 50 + next(5) as u16,
                address: [SERVER, SERVER_V6, IpAddr::V4(GATEWAY)][next(3) as usize],
                ..KEY
            };
            let payload = vec![next(256) as u8; next(3_000) as usize];
            let id = next(40) as u32;
            let codes = ["refused", "unreachable", "timeout", "x"];
            let result = match next(10) {
                0..=2 => {
                    rig.packet(&segment(key, next(64) as u8, next(70_000) as u32, next(70_000) as u32, &payload));
                    Ok(())
                }
                3 => {
                    rig.packet(&udp(key, &payload));
                    Ok(())
                }
                4 => rig.frame(id, Kind::Accept, &[]),
                5 => rig.frame(id, Kind::Data, &payload),
                6 => rig.frame(id, Kind::Credit, &(next(100_000) as u32).to_le_bytes()),
                7 => rig.frame(id, [Kind::End, Kind::Open, Kind::Result][next(3) as usize], &[]),
                8 => rig.frame(id, Kind::Error, json!({ "code": codes[next(4) as usize] }).to_string().as_bytes()),
                _ => {
                    rig.pass(next(3_000_000));
                    Ok(())
                }
            };
            let flows = &rig.flows;
            assert_eq!(flows.keys.len(), flows.count());
            assert!(flows.timers.len() <= flows.count());
            if result.is_err() {
                break;
            }
            rig.said();
            rig.packets.0.clear();
        }
    }
}
