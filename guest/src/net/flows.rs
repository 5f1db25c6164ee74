//! Flows: the connections and datagrams of the guest, each a stream of the net port with an even number. The host decides about each; a
//! SYN is answered when it has, so that a refusal looks like one.
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use serde_json::{json, Value};

use crate::net::credit::{Credit, INITIAL_BYTES};
use crate::net::packet::{self, Content, Key, Packet, Segment, Unreachable, DNS_PORT, GATEWAY, TUN_HEADER_BYTES};
use crate::net::port::{Port, BACKLOG_BYTES, BLOCKED_BYTES, DATA_BYTES};
use crate::net::tcp::{Connection, Progress, Sink};
use crate::wire::{Frame, Kind};

/// Open at once, those of the host's side included.
pub const FLOWS: usize = 4_096;
/// Of this many flows each may keep 256 KiB of the host's, of the others 64.
const WIDE_FLOWS: usize = 64;
const WIDE_BYTES: u32 = 4 * INITIAL_BYTES;
/// How large the two buffers of a connection are, by how many there are: all together take at most 86 MiB.
const BUFFERS: [(usize, usize); 4] = [(16, 262_144), (256, 65_536), (1_024, 16_384), (FLOWS, 4_096)];
/// A message to the resolver; more is no question that anybody asks.
const DNS_BYTES: usize = 4_096;
const UDP_IDLE_US: u64 = 60_000_000;
const DNS_IDLE_US: u64 = 15_000_000;

struct Flow {
    key: Key,
    credit: Credit,
    state: State,
    timer_us: Option<u64>,
    /// In the line of those that have more to say.
    is_ready: bool,
    has_sent_end: bool,
    has_received_end: bool,
}

enum State {
    /// The host has not decided; the SYN waits.
    Opening {
        syn: Vec<u8>,
    },
    Stream(Box<Connection>),
    /// A connection to the resolver: the message that is not whole yet, with its length in front.
    Messages(Box<Connection>, Vec<u8>),
    /// What an ICMP error repeats, and when it is over.
    Datagrams {
        quoted: Vec<u8>,
        idle_us: u64,
        active_us: u64,
    },
}

#[derive(Default)]
pub struct Flows {
    flows: HashMap<u32, Flow>,
    keys: HashMap<Key, u32>,
    last_id: u32,
    timers: BTreeSet<(u64, u32)>,
    ready: VecDeque<u32>,
    /// Those that the host has sent bytes for since the last `settle`.
    touched: Vec<u32>,
    seed: u64,
    /// Those of the host's side, which count as well.
    pub others: usize,
}

impl Flows {
    /// `seed` decides the first sequence numbers.
    pub fn new(seed: u64) -> Self {
        Flows { seed, ..Flows::default() }
    }

    pub fn count(&self) -> usize {
        self.flows.len()
    }

    /// Somebody has more to send now.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When `on_time` is due.
    pub fn next_us(&self) -> Option<u64> {
        self.timers.first().map(|(at_us, _)| *at_us)
    }

    /// A packet of the guest's kernel, without the tun device's header.
    pub fn on_packet(&mut self, bytes: &[u8], port: &mut Port, now_us: u64, sink: &mut dyn Sink) {
        let Some(Packet { key, content }) = packet::parse(bytes) else { return };
        match (content, self.keys.get(&key).copied()) {
            (Content::Segment(segment), Some(id)) => self.on_segment(id, segment, bytes, port, now_us, sink),
            (Content::Segment(segment), None) => {
                let is_room = self.is_room() && port.backlog() < BLOCKED_BYTES;
                match segment.is_opening() && is_room {
                    true => self.open_connection(key, bytes, port, now_us, sink),
                    false => answer_reset(key, segment, sink),
                }
            }
            (Content::Datagram(_), None) if !self.is_room() => {
                sink.send(&packet::unreachable(key, Unreachable::Port, &packet::quote(bytes)));
            }
            (Content::Datagram(payload), id) => self.on_datagram(id, key, payload, bytes, port, now_us),
        }
    }

    fn is_room(&self) -> bool {
        self.flows.len() + self.others < FLOWS
    }

    fn open_connection(&mut self, key: Key, syn: &[u8], port: &mut Port, now_us: u64, sink: &mut dyn Sink) {
        let is_resolver = is_resolver(key);
        let open = match is_resolver {
            true => json!({ "flow": "dns", "transport": "tcp", "source": key.source }),
            false => json!({ "flow": "tcp", "address": key.address.to_string(), "port": key.port, "source": key.source }),
        };
        let state = match is_resolver {
            true => State::Messages(Box::new(self.accept(key, syn, now_us, sink)), Vec::new()),
            false => State::Opening { syn: syn.to_vec() },
        };
        let id = self.open(key, state, &open, port);
        self.service(id, port, now_us, sink);
    }

    fn accept(&mut self, key: Key, syn: &[u8], now_us: u64, sink: &mut dyn Sink) -> Connection {
        let count = self.flows.len();
        let buffer_bytes = BUFFERS.iter().find(|(most, _)| count <= *most).map_or(BUFFERS[3].1, |(_, bytes)| *bytes);
        // Any odd multiplier makes a new number of each.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Connection::accept(key, syn, buffer_bytes, self.seed, now_us, sink)
    }

    fn open(&mut self, key: Key, state: State, open: &Value, port: &mut Port) -> u32 {
        self.last_id += 2;
        let id = self.last_id;
        port.put_json(id, Kind::Open, open);
        let window = if self.flows.len() < WIDE_FLOWS { WIDE_BYTES } else { INITIAL_BYTES };
        let mut flow =
            Flow { key, credit: Credit::new(window), state, timer_us: None, is_ready: false, has_sent_end: false, has_received_end: false };
        grant(id, &mut flow.credit, 0, port);
        self.flows.insert(id, flow);
        self.keys.insert(key, id);
        id
    }

    fn on_segment(&mut self, id: u32, segment: Segment, bytes: &[u8], port: &mut Port, now_us: u64, sink: &mut dyn Sink) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        match &mut flow.state {
            // The same SYN again is no news.
            State::Opening { .. } if segment.is_reset() => self.give_up(id, port),
            State::Opening { .. } | State::Datagrams { .. } => {}
            State::Stream(connection) | State::Messages(connection, _) => {
                connection.receive(bytes, now_us, sink);
                self.service(id, port, now_us, sink);
            }
        }
    }

    fn on_datagram(&mut self, id: Option<u32>, key: Key, payload: &[u8], bytes: &[u8], port: &mut Port, now_us: u64) {
        let is_dns = is_resolver(key);
        if port.backlog() >= BLOCKED_BYTES || payload.len() > if is_dns { DNS_BYTES } else { DATA_BYTES } {
            return;
        }
        let id = id.unwrap_or_else(|| {
            let open = match is_dns {
                true => json!({ "flow": "dns", "transport": "udp", "source": key.source }),
                false => json!({ "flow": "udp", "address": key.address.to_string(), "port": key.port, "source": key.source }),
            };
            let idle_us = if is_dns { DNS_IDLE_US } else { UDP_IDLE_US };
            let id = self.open(key, State::Datagrams { quoted: Vec::new(), idle_us, active_us: now_us }, &open, port);
            self.set_timer(id, Some(now_us + idle_us));
            id
        });
        let Some(Flow { credit, state: State::Datagrams { quoted, active_us, .. }, .. }) = self.flows.get_mut(&id) else { return };
        (*quoted, *active_us) = (packet::quote(bytes), now_us);
        // Beyond the credit it is lost, as on any network.
        if payload.len() <= credit.sendable() {
            credit.sent(payload.len());
            port.put(id, Kind::Data, payload);
        }
    }

    /// A frame of the host for a flow of ours. An error is a violation of the protocol.
    pub fn on_frame(&mut self, frame: &Frame, port: &mut Port, now_us: u64, sink: &mut dyn Sink) -> Result<(), &'static str> {
        let id = frame.stream;
        let Some(flow) = self.flows.get_mut(&id) else {
            return if id <= self.last_id { Ok(()) } else { Err("a frame for a flow that never was") };
        };
        match frame.kind {
            Kind::Accept => self.on_accept(id, port, now_us, sink)?,
            Kind::Data => {
                self.on_data(id, frame.payload, port, sink, now_us)?;
                if self.touched.last() != Some(&id) {
                    self.touched.push(id);
                }
                return Ok(());
            }
            Kind::Credit => flow.credit.granted(frame.payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)))?,
            Kind::End => self.on_end(id)?,
            Kind::Error => {
                self.on_error(id, frame.payload, now_us, sink);
                return Ok(());
            }
            _ => return Err("a frame that never comes here"),
        }
        self.service(id, port, now_us, sink);
        Ok(())
    }

    /// Passes on what has come for each flow since the last call: together, so that the packets are large.
    pub fn settle(&mut self, port: &mut Port, now_us: u64, sink: &mut dyn Sink) {
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            self.service(id, port, now_us, sink);
        }
        self.touched = touched;
    }

    fn on_accept(&mut self, id: u32, port: &mut Port, now_us: u64, sink: &mut dyn Sink) -> Result<(), &'static str> {
        let Some(flow) = self.flows.get_mut(&id) else { return Ok(()) };
        let key = flow.key;
        let syn = match &mut flow.state {
            State::Opening { syn } => std::mem::take(syn),
            State::Stream(_) => return Err("ACCEPT of what is open"),
            // Nothing waits for it.
            State::Messages(..) | State::Datagrams { .. } => return Ok(()),
        };
        let connection = self.accept(key, &syn, now_us, sink);
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.state = State::Stream(Box::new(connection));
            grant(id, &mut flow.credit, 0, port);
        }
        Ok(())
    }

    fn on_data(&mut self, id: u32, payload: &[u8], port: &mut Port, sink: &mut dyn Sink, now_us: u64) -> Result<(), &'static str> {
        let Some(flow) = self.flows.get_mut(&id) else { return Ok(()) };
        flow.credit.received(payload.len())?;
        match &mut flow.state {
            _ if flow.has_received_end => return Err("DATA after END"),
            State::Opening { .. } => return Err("DATA before ACCEPT"),
            State::Stream(connection) => connection.queue(payload),
            State::Messages(connection, _) => {
                connection.queue(&u16::try_from(payload.len()).map_err(|_| "a message that is too long")?.to_be_bytes());
                connection.queue(payload);
            }
            State::Datagrams { active_us, .. } => {
                *active_us = now_us;
                if let Some(packet) = packet::datagram(flow.key, payload) {
                    sink.send(&packet);
                }
                grant(id, &mut flow.credit, 0, port);
            }
        }
        Ok(())
    }

    fn on_end(&mut self, id: u32) -> Result<(), &'static str> {
        let Some(flow) = self.flows.get_mut(&id) else { return Ok(()) };
        if std::mem::replace(&mut flow.has_received_end, true) {
            return Err("END after END");
        }
        match &mut flow.state {
            State::Opening { .. } => return Err("END before ACCEPT"),
            State::Stream(connection) | State::Messages(connection, _) => connection.end(),
            State::Datagrams { .. } => self.remove(id),
        }
        Ok(())
    }

    /// The host gave a flow up, or never let it be.
    fn on_error(&mut self, id: u32, payload: &[u8], now_us: u64, sink: &mut dyn Sink) {
        let json = serde_json::from_slice::<Value>(payload).unwrap_or_default();
        let code = json["code"].as_str().unwrap_or_default();
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let key = flow.key;
        match (&mut flow.state, code) {
            (State::Stream(connection) | State::Messages(connection, _), _) => connection.reset(now_us, sink),
            (State::Opening { syn }, "unreachable") => {
                sink.send(&packet::unreachable(key, Unreachable::Host, &packet::quote(syn)));
            }
            (State::Opening { syn }, "refused" | "limit" | "reset") => {
                if let Some(Packet { content: Content::Segment(segment), .. }) = packet::parse(syn) {
                    answer_reset(key, segment, sink);
                }
            }
            (State::Datagrams { quoted, .. }, "refused" | "limit") => sink.send(&packet::unreachable(key, Unreachable::Port, quoted)),
            (State::Datagrams { quoted, .. }, "unreachable") => sink.send(&packet::unreachable(key, Unreachable::Host, quoted)),
            // As if nothing had come: the guest tries again or gives up.
            _ => {}
        }
        self.remove(id);
    }

    /// Timers that are due.
    pub fn on_time(&mut self, port: &mut Port, now_us: u64, sink: &mut dyn Sink) {
        while let Some((at_us, id)) = self.timers.first().copied().filter(|(at_us, _)| *at_us <= now_us) {
            self.timers.remove(&(at_us, id));
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.timer_us = None;
            match &flow.state {
                State::Datagrams { idle_us, active_us, .. } if active_us + idle_us <= now_us => {
                    port.put(id, Kind::End, &[]);
                    self.remove(id);
                }
                State::Datagrams { idle_us, active_us, .. } => {
                    let at_us = active_us + idle_us;
                    self.set_timer(id, Some(at_us));
                }
                _ => self.service(id, port, now_us, sink),
            }
        }
    }

    /// Lets those speak that have more to say, by turns, as far as the host takes it.
    pub fn pump(&mut self, port: &mut Port, now_us: u64, sink: &mut dyn Sink) {
        while port.backlog() < BACKLOG_BYTES {
            let Some(id) = self.ready.pop_front() else { return };
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.is_ready = false;
                self.service(id, port, now_us, sink);
            }
        }
    }

    /// Does everything that a flow can do now, and at most one frame of its bytes.
    fn service(&mut self, id: u32, port: &mut Port, now_us: u64, sink: &mut dyn Sink) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let room = if port.backlog() < BACKLOG_BYTES { flow.credit.sendable().min(DATA_BYTES) } else { 0 };
        // A message is sent whole or not at all: with less credit than the longest needs, more is waited for.
        let (connection, is_whole, least) = match &mut flow.state {
            State::Opening { .. } | State::Datagrams { .. } => return,
            State::Stream(connection) => {
                if room > 0 {
                    let read = port.put_data_with(id, room, |out, most| Ok::<_, ()>(connection.read(out, most)));
                    flow.credit.sent(read.unwrap_or(0));
                }
                (connection, true, 1)
            }
            State::Messages(connection, message) => {
                let is_fine = read_message(id, connection, message, &mut flow.credit, port);
                (connection, is_fine, DNS_BYTES)
            }
        };
        connection.transmit(now_us, sink);
        let (is_more, progress) = (connection.readable() > 0, connection.progress());
        let next_us = connection.next_us(now_us);
        if !is_whole {
            connection.reset(now_us, sink);
            return self.give_up(id, port);
        }
        grant(id, &mut flow.credit, connection.held(), port);
        if is_more && flow.credit.sendable() >= least && !std::mem::replace(&mut flow.is_ready, true) {
            self.ready.push_back(id);
        }
        match progress {
            Progress::Open => {}
            Progress::Reset => return self.give_up(id, port),
            Progress::HalfClosed | Progress::Closed => {
                if !std::mem::replace(&mut flow.has_sent_end, true) {
                    port.put(id, Kind::End, &[]);
                }
                if progress == Progress::Closed {
                    return self.remove(id);
                }
            }
        }
        self.set_timer(id, next_us);
    }

    fn set_timer(&mut self, id: u32, at_us: Option<u64>) {
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| flow.timer_us != at_us) else { return };
        if let Some(old_us) = std::mem::replace(&mut flow.timer_us, at_us) {
            self.timers.remove(&(old_us, id));
        }
        if let Some(at_us) = at_us {
            self.timers.insert((at_us, id));
        }
    }

    /// The guest does not want it any more.
    fn give_up(&mut self, id: u32, port: &mut Port) {
        port.put_json(id, Kind::Error, &json!({ "code": "reset" }));
        self.remove(id);
    }

    fn remove(&mut self, id: u32) {
        let Some(flow) = self.flows.remove(&id) else { return };
        self.keys.remove(&flow.key);
        if let Some(at_us) = flow.timer_us {
            self.timers.remove(&(at_us, id));
        }
    }
}

/// Moves a message to the resolver on when it is whole. False when it is none.
fn read_message(id: u32, connection: &mut Connection, message: &mut Vec<u8>, credit: &mut Credit, port: &mut Port) -> bool {
    while port.backlog() < BACKLOG_BYTES {
        let wanted = match message.first_chunk::<2>() {
            Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
            None => 2,
        };
        if wanted > 2 + DNS_BYTES {
            return false;
        }
        if message.len() < wanted {
            if connection.read(message, wanted - message.len()) == 0 {
                return true;
            }
        } else if wanted == 2 {
            // A message of no bytes.
            message.clear();
        } else if wanted - 2 > credit.sendable() {
            return true;
        } else {
            credit.sent(wanted - 2);
            port.put(id, Kind::Data, &message[2..]);
            message.clear();
        }
    }
    true
}

fn grant(id: u32, credit: &mut Credit, held: usize, port: &mut Port) {
    if let Some(bytes) = credit.grant(held) {
        port.put(id, Kind::Credit, &bytes.to_le_bytes());
    }
}

fn answer_reset(key: Key, segment: Segment, sink: &mut dyn Sink) {
    if let Some(packet) = packet::reset(key, segment) {
        debug_assert!(packet.len() > TUN_HEADER_BYTES);
        sink.send(&packet);
    }
}

fn is_resolver(key: Key) -> bool {
    key.address == IpAddr::V4(GATEWAY) && key.port == DNS_PORT
}

#[cfg(test)]
#[path = "flows_tests.rs"]
mod tests;
