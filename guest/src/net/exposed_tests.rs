//! Tests of exposed ports: real servers on the loopback, the host's frames on the other side.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::*;
use crate::wire;

struct Rig {
    exposures: Exposures,
    port: Port,
    /// Kind and payload of what the host was told, and has not been asked about; CREDIT left out.
    said: VecDeque<(Kind, Vec<u8>)>,
    credit: usize,
}

impl Rig {
    fn new() -> Self {
        let mut port = Port::new("n");
        port.take_output();
        Rig { exposures: Exposures::new().expect("epoll"), port, said: VecDeque::new(), credit: 0 }
    }

    fn frame(&mut self, id: u32, kind: Kind, payload: &[u8]) -> Result<(), &'static str> {
        self.exposures.on_frame(&Frame { stream: id, kind, flags: 0, payload }, &mut self.port, 0)
    }

    fn open(&mut self, id: u32, kind: &str, port: u16) {
        self.frame(id, Kind::Open, json!({ "expose": kind, "port": port }).to_string().as_bytes()).expect("opened");
    }

    fn turn(&mut self) {
        self.exposures.on_events(&mut self.port, 0);
        let bytes = self.port.take_output();
        let mut rest = &bytes[..];
        while let Some((frame, taken)) = wire::parse(rest).expect("frames") {
            match frame.kind {
                Kind::Credit => self.credit += u32::from_le_bytes(*frame.payload.first_chunk().expect("4 bytes")) as usize,
                kind => self.said.push_back((kind, frame.payload.to_vec())),
            }
            rest = &rest[taken..];
        }
    }

    /// The next thing said, which must come.
    fn next(&mut self) -> (Kind, Vec<u8>) {
        let started = Instant::now();
        while self.said.is_empty() {
            assert!(started.elapsed() < Duration::from_secs(20), "it comes");
            self.turn();
        }
        self.said.pop_front().expect("said")
    }

    fn code(&mut self) -> String {
        let (kind, payload) = self.next();
        assert_eq!(kind, Kind::Error);
        serde_json::from_slice::<Value>(&payload).expect("JSON")["code"].as_str().expect("text").to_owned()
    }
}

fn server() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

fn connected(rig: &mut Rig) -> TcpStream {
    let (listener, port) = server();
    rig.open(1, "tcp", port);
    assert_eq!(rig.next(), (Kind::Accept, vec![]));
    listener.accept().expect("connected").0
}

#[test]
fn what_a_server_sends_is_acknowledged_at_once_however_often_the_two_take_turns() {
    let mut rig = Rig::new();
    let mut peer = connected(&mut rig);
    let mut question = [0; 1];
    // After a few turns the kernel takes the connection for one of questions and answers, and would let each acknowledgement wait for 40 ms.
    for _ in 0..8 {
        rig.frame(1, Kind::Data, b"?").expect("sent");
        peer.read_exact(&mut question).expect("a question");
        peer.write_all(b"answer").expect("an answer");
        assert_eq!(rig.next(), (Kind::Data, b"answer".to_vec()));
        let socket = &rig.exposures.flows[&1].socket;
        assert_eq!(net::sockopt::tcp_quickack(socket), Ok(true));
    }
}

#[test]
fn bytes_and_ends_go_both_ways() {
    let mut rig = Rig::new();
    let mut peer = connected(&mut rig);
    rig.frame(1, Kind::Data, b"question").expect("sent");
    rig.frame(1, Kind::End, &[]).expect("ended");
    let mut text = String::new();
    peer.read_to_string(&mut text).expect("all of it");
    assert_eq!(text, "question");
    peer.write_all(b"answer").expect("the other half");
    assert_eq!(rig.next(), (Kind::Data, b"answer".to_vec()));
    drop(peer);
    assert_eq!((rig.next(), rig.exposures.count()), ((Kind::End, vec![]), 0));
    assert_eq!(rig.frame(1, Kind::Data, b"crossed"), Ok(()));
}

#[test]
fn a_port_nobody_listens_on_is_refused() {
    let mut rig = Rig::new();
    let (listener, port) = server();
    drop(listener);
    rig.open(1, "tcp", port);
    assert_eq!(rig.code(), "refused");
    rig.open(3, "udp", port);
    assert_eq!(rig.next(), (Kind::Accept, vec![]));
    rig.frame(3, Kind::Data, b"anybody").expect("sent");
    assert_eq!((rig.code().as_str(), rig.exposures.count()), ("refused", 0));
}

#[test]
fn resets_are_carried_both_ways() {
    let mut rig = Rig::new();
    let mut peer = connected(&mut rig);
    rig.frame(1, Kind::Error, b"{}").expect("reset");
    assert!(peer.read(&mut [0; 1]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    let mut rig = Rig::new();
    let peer = connected(&mut rig);
    net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).expect("set");
    drop(peer);
    assert_eq!((rig.code().as_str(), rig.exposures.count()), ("reset", 0));
}

#[test]
fn a_server_on_the_loopback_of_ipv6_alone_is_found() {
    // A machine without IPv6 has nothing to find.
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let mut rig = Rig::new();
    rig.open(1, "tcp", listener.local_addr().expect("bound").port());
    assert_eq!(rig.next(), (Kind::Accept, vec![]));
    assert!(listener.accept().is_ok());
}

#[test]
fn each_side_waits_for_the_other() {
    let mut rig = Rig::new();
    let _peer = connected(&mut rig);
    // The server reads nothing: the host is granted no more than it began with and what the sockets hold.
    let bytes = [7; 32_768];
    let mut sent = 0;
    while rig.frame(1, Kind::Data, &bytes).is_ok() {
        sent += bytes.len();
        assert!(sent < 32 << 20, "bounded");
        rig.turn();
    }
    assert!(sent >= INITIAL_BYTES as usize);
    // The host grants nothing: so many bytes come, and the server's writes wait.
    let mut rig = Rig::new();
    let mut peer = connected(&mut rig);
    peer.set_nonblocking(true).expect("set");
    while peer.write(&bytes).is_ok() {}
    let mut received = 0;
    for _ in 0..200 {
        rig.turn();
        received += rig.said.drain(..).map(|(_, payload)| payload.len()).sum::<usize>();
    }
    assert_eq!(received, INITIAL_BYTES as usize);
    rig.frame(1, Kind::Credit, &10_u32.to_le_bytes()).expect("credit");
    assert_eq!(rig.next(), (Kind::Data, vec![7; 10]));
}

#[test]
fn datagrams_keep_their_borders_and_end_by_themselves() {
    let mut rig = Rig::new();
    let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
    rig.open(1, "udp", server.local_addr().expect("bound").port());
    assert_eq!(rig.next(), (Kind::Accept, vec![]));
    for payload in [&b"one"[..], b"", b"two"] {
        rig.frame(1, Kind::Data, payload).expect("sent");
        let mut buffer = [0; 100];
        let (bytes, from) = server.recv_from(&mut buffer).expect("came");
        assert_eq!(&buffer[..bytes], payload);
        server.send_to(payload, from).expect("sent");
        assert_eq!(rig.next(), (Kind::Data, payload.to_vec()));
    }
    rig.exposures.on_time(&mut rig.port, UDP_IDLE_US - 1);
    assert_eq!(rig.exposures.count(), 1);
    rig.exposures.on_time(&mut rig.port, 2 * UDP_IDLE_US);
    assert_eq!((rig.next(), rig.exposures.count(), rig.exposures.next_us()), ((Kind::End, vec![]), 0, None));
}

#[test]
fn a_host_that_breaks_the_protocol_is_told_so() {
    let (_listener, port) = server();
    for open in [
        json!({}),
        json!({ "expose": "sctp", "port": port }),
        json!({ "expose": "tcp", "port": 0 }),
        json!({ "expose": "tcp", "port": 65_536 }),
    ] {
        assert!(Rig::new().frame(1, Kind::Open, open.to_string().as_bytes()).is_err(), "{open}");
    }
    assert!(Rig::new().frame(1, Kind::Open, b"no JSON").is_err());
    assert!(Rig::new().frame(1, Kind::Data, b"never opened").is_err());
    let mut rig = Rig::new();
    let _peer = connected(&mut rig);
    for kind in [Kind::Open, Kind::Accept, Kind::Result] {
        assert!(rig.frame(1, kind, json!({ "expose": "tcp", "port": port }).to_string().as_bytes()).is_err(), "{kind:?}");
    }
    assert!(rig.frame(1, Kind::Credit, &u32::MAX.to_le_bytes()).is_err());
    rig.frame(1, Kind::End, &[]).expect("once");
    assert!(rig.frame(1, Kind::End, &[]).is_err() && rig.frame(1, Kind::Data, b"x").is_err());
}

#[test]
fn flows_of_both_sides_are_bounded_together() {
    let mut rig = Rig::new();
    rig.exposures.others = FLOWS;
    rig.open(1, "tcp", 9);
    assert_eq!(rig.code(), "limit");
}
