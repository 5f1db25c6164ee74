//! Fuzzing: what the host sends over the net port, and packets of the guest's kernel, nearly right and in pieces. `SBX_FUZZ_RUNS` makes it run
//! long; the corpus is `tests/fixtures/net/host_frames.json`.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};

use serde_json::{json, Value};

use crate::net::exposed::Exposures;
use crate::net::flows::{Flows, FLOWS};
use crate::net::packet::tests::{segment, udp};
use crate::net::packet::{Key, DNS_PORT, GATEWAY};
use crate::net::port::{Port, BLOCKED_BYTES, DATA_BYTES};
use crate::net::role::is_guests;
use crate::net::tcp::Sink;
use crate::wire::{self, Frame, Kind};

/// In an everyday run.
const RUNS: u64 = 1_500;
const ADDRESSES: [IpAddr; 3] = [
    IpAddr::V4(GATEWAY),
    IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x2800, 0x21f, 0xcb07, 0, 0, 0, 1)),
];

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most as u64) as usize
    }

    /// Changes some bytes, takes some away, puts some in, or none of it.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.below(256) as u8),
                _ if at == bytes.len() => {}
                2 => drop(bytes.remove(at)),
                _ => bytes[at] = [0, 1, 0x7f, 0xff, self.below(256) as u8][self.below(5)],
            }
        }
    }
}

/// Counts packets, and sees that each has what the tun device wants.
#[derive(Default)]
struct Packets(usize);

impl Sink for Packets {
    fn send(&mut self, packet: &[u8]) {
        assert!(packet.len() > 30 && matches!(packet[10] >> 4, 4 | 6), "a packet of IP behind a header");
        self.0 += 1;
    }

    fn send_with(&mut self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) {
        let mut packet = vec![0xaa; bytes];
        fill(&mut packet);
        self.send(&packet);
    }
}

/// The entries of the corpus, each the bytes of its frames.
fn corpus() -> Vec<Vec<u8>> {
    let rows: Vec<Value> = serde_json::from_str(include_str!("../../../tests/fixtures/net/host_frames.json")).expect("JSON");
    assert!(rows.len() >= 10);
    let frame = |row: &Value| {
        let text = |at: usize| row[at].as_str().expect("text").as_bytes().to_vec();
        let (stream, kind) = (row[0].as_u64().expect("a number") as u32, row[1].as_u64().expect("a number") as u8);
        let payload = row[3].as_u64().map_or_else(|| text(2), |times| text(2).repeat(times as usize));
        let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&stream.to_le_bytes());
        bytes.extend_from_slice(&[kind, 0, 0, 0]);
        bytes.extend_from_slice(&payload);
        bytes
    };
    rows.iter().map(|row| row["frames"].as_array().expect("frames").iter().flat_map(frame).collect()).collect()
}

/// What the role has between its descriptors.
struct Rig {
    flows: Flows,
    exposures: Exposures,
    port: Port,
    packets: Packets,
    now_us: u64,
    input: Vec<u8>,
}

impl Rig {
    fn packet(&mut self, bytes: &[u8]) {
        self.flows.on_packet(bytes, &mut self.port, self.now_us, &mut self.packets);
    }

    /// As the role does it. `open_port` is the only one that may be connected to: others are somebody's on this machine.
    fn take(&mut self, bytes: &[u8], open_port: u16) -> Result<(), &'static str> {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut taken = 0;
        while let Some((frame, bytes)) = wire::parse(&input[taken..]).map_err(|error| error.as_str())? {
            taken += bytes;
            if is_guests(&frame)? {
                self.flows.on_frame(&frame, &mut self.port, self.now_us, &mut self.packets)?;
            } else if !is_elsewhere(&frame, open_port) {
                self.exposures.on_frame(&frame, &mut self.port, self.now_us)?;
            }
        }
        self.input = input[taken..].to_vec();
        self.flows.settle(&mut self.port, self.now_us, &mut self.packets);
        Ok(())
    }

    fn pass(&mut self, us: u64) {
        self.now_us += us;
        self.flows.on_time(&mut self.port, self.now_us, &mut self.packets);
        self.exposures.on_events(&mut self.port, self.now_us);
        self.exposures.on_time(&mut self.port, self.now_us);
        self.flows.pump(&mut self.port, self.now_us, &mut self.packets);
        (self.flows.others, self.exposures.others) = (self.exposures.count(), self.flows.count());
    }

    /// What must be so whatever came.
    fn check(&mut self) {
        assert!(self.flows.count() + self.exposures.count() <= FLOWS);
        assert!(self.port.backlog() <= BLOCKED_BYTES + 4 * DATA_BYTES);
        let bytes = self.port.take_output();
        let mut rest = &bytes[..];
        while let Some((frame, taken)) = wire::parse(rest).expect("what is said is frames") {
            assert!(frame.payload.len() <= DATA_BYTES && frame.stream != 0);
            assert!(!matches!(frame.kind, Kind::Hello | Kind::Result | Kind::Cancel));
            rest = &rest[taken..];
        }
        assert!(rest.is_empty(), "and whole ones");
    }
}

fn is_elsewhere(frame: &Frame, open_port: u16) -> bool {
    let port = serde_json::from_slice::<Value>(frame.payload).unwrap_or_default()["port"].as_u64();
    frame.kind == Kind::Open && port.is_some_and(|port| port != u64::from(open_port))
}

/// A packet of a program, nearly right.
fn packet(random: &mut Random) -> Vec<u8> {
    let key = Key {
        is_tcp: random.below(3) > 0,
        source: 50_000 + random.below(4) as u16,
        address: ADDRESSES[random.below(3)],
        port: [DNS_PORT, 80][random.below(2)],
    };
    let payload = vec![random.below(256) as u8; random.below(600)];
    let flags = [2, 2, 16, 17, 18, 24, 4][random.below(7)];
    let mut bytes = match key.is_tcp {
        true => segment(key, flags, random.below(3) as u32, random.below(70_000) as u32, &payload),
        false => udp(key, &payload),
    };
    if random.below(3) == 0 {
        random.mutate(&mut bytes);
    }
    bytes
}

#[test]
fn fuzz_of_the_hosts_frames_and_the_guests_packets() {
    let runs = std::env::var("SBX_FUZZ_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(RUNS);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let open_port = listener.local_addr().expect("bound").port();
    let (corpus, mut random, mut violations, mut packets) = (corpus(), Random(0x9e37_79b9), 0, 0);
    let open = json!({ "expose": "tcp", "port": open_port }).to_string();
    for _ in 0..runs {
        let mut port = Port::new("n");
        port.take_output();
        let exposures = Exposures::new().expect("epoll");
        let mut rig = Rig { flows: Flows::new(1), exposures, port, packets: Packets::default(), now_us: 1_000_000, input: Vec::new() };
        for address in ADDRESSES {
            rig.packet(&segment(Key { is_tcp: true, source: 50_000, address, port: 80 }, 2, 0, 0, &[]));
        }
        rig.packet(&udp(Key { is_tcp: false, source: 50_001, address: ADDRESSES[1], port: 80 }, b"datagram"));
        rig.packet(&segment(Key { is_tcp: true, source: 50_002, address: ADDRESSES[0], port: DNS_PORT }, 2, 0, 0, &[]));
        for _ in 0..1 + random.below(4) {
            let entry = corpus[random.below(corpus.len())].clone();
            // The corpus cannot know the port of the listener; the placeholder has as many digits as the longest.
            let mut bytes = replaced(&entry, b"{\"expose\":\"tcp\",\"port\":65535}", open.as_bytes());
            random.mutate(&mut bytes);
            let cut = random.below(bytes.len() + 1);
            let result = rig.take(&bytes[..cut], open_port).and_then(|()| {
                let packet = packet(&mut random);
                rig.packet(&packet);
                rig.pass([0, 1_000, 5_000_000, 70_000_000][random.below(4)]);
                rig.check();
                rig.take(&bytes[cut..], open_port)
            });
            rig.check();
            if result.is_err() {
                violations += 1;
                break;
            }
        }
        packets += rig.packets.0;
        while listener.accept().is_ok() {}
    }
    assert!(violations > 0 && packets as u64 > runs / 2, "it goes both ways: {violations} violations, {packets} packets");
}

/// `bytes` with the payload `from` of a frame replaced, and its length.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let Some(at) = bytes.windows(from.len()).position(|window| window == from) else { return bytes.to_vec() };
    let (head, tail) = (&bytes[..at], &bytes[at + from.len()..]);
    let mut all = [head, to, tail].concat();
    all[at - 12..at - 8].copy_from_slice(&(to.len() as u32).to_le_bytes());
    all
}
