//! Exposed: flows that the host opens, each a plain socket of ours to a server on the guest's loopback, with an odd number on the net port.
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};
use serde_json::{json, Value};

use crate::net::credit::{Credit, INITIAL_BYTES};
use crate::net::flows::FLOWS;
use crate::net::port::{Port, BACKLOG_BYTES, DATA_BYTES};
use crate::sys;
use crate::wire::{Frame, Kind};

/// Looked at in one turn.
const EVENTS: usize = 64;
/// A flow of datagrams that carries none ends.
const UDP_IDLE_US: u64 = 60_000_000;
const UDP_CHECK_US: u64 = 10_000_000;

struct Exposed {
    socket: OwnedFd,
    to: SocketAddr,
    is_udp: bool,
    is_connecting: bool,
    /// From the host, not taken by the socket.
    queued: VecDeque<u8>,
    credit: Credit,
    /// What the kernel is asked to tell.
    interest: EventFlags,
    has_sent_end: bool,
    has_received_end: bool,
    is_shut: bool,
    active_us: u64,
}

/// All of them.
pub struct Exposures {
    pub epoll: OwnedFd,
    flows: HashMap<u32, Exposed>,
    last_id: u32,
    check_at_us: Option<u64>,
    /// Those of the guest's side, which count as well.
    pub others: usize,
}

impl Exposures {
    pub fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Exposures { epoll, flows: HashMap::new(), last_id: 0, check_at_us: None, others: 0 })
    }

    pub fn count(&self) -> usize {
        self.flows.len()
    }

    /// When `on_time` is due.
    pub fn next_us(&self) -> Option<u64> {
        self.check_at_us
    }

    /// A frame of the host for a flow of its own. An error is a violation of the protocol.
    pub fn on_frame(&mut self, frame: &Frame, port: &mut Port, now_us: u64) -> Result<(), &'static str> {
        let id = frame.stream;
        if frame.kind == Kind::Open {
            return self.on_open(id, frame.payload, port, now_us);
        }
        let Some(flow) = self.flows.get_mut(&id) else {
            return if id <= self.last_id { Ok(()) } else { Err("a frame for a flow that never was") };
        };
        match frame.kind {
            Kind::Data => {
                flow.credit.received(frame.payload.len())?;
                if flow.has_received_end || (flow.is_connecting && !flow.is_udp) {
                    return Err("DATA before ACCEPT or after END");
                }
                flow.active_us = now_us;
                match flow.is_udp {
                    // What cannot be sent is lost, as on any network.
                    true => drop(net::send(&flow.socket, frame.payload, SendFlags::NOSIGNAL)),
                    false => flow.queued.extend(frame.payload),
                }
            }
            Kind::Credit => flow.credit.granted(frame.payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)))?,
            Kind::End if std::mem::replace(&mut flow.has_received_end, true) => return Err("END after END"),
            Kind::End if flow.is_udp => self.remove(id),
            Kind::End => {}
            Kind::Error => {
                // Closing a socket that lingers for no time sends RST.
                let _ = net::sockopt::set_socket_linger(&flow.socket, Some(std::time::Duration::ZERO));
                self.remove(id);
            }
            _ => return Err("a frame that never comes here"),
        }
        self.service(id, port);
        Ok(())
    }

    fn on_open(&mut self, id: u32, payload: &[u8], port: &mut Port, now_us: u64) -> Result<(), &'static str> {
        if id <= self.last_id {
            return Err("OPEN of a used stream");
        }
        self.last_id = id;
        let json: Value = serde_json::from_slice(payload).map_err(|_| "bad JSON")?;
        let is_udp = match json["expose"].as_str() {
            Some("tcp") => false,
            Some("udp") => true,
            _ => return Err("OPEN of something else than tcp or udp"),
        };
        let number = json["port"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let number = number.ok_or("OPEN of no port")?;
        if self.flows.len() + self.others >= FLOWS {
            refuse(id, "limit", port);
            return Ok(());
        }
        match self.connect_either(id, is_udp, number, now_us) {
            Ok(()) if is_udp => {
                port.put(id, Kind::Accept, &[]);
                self.check_at_us.get_or_insert(now_us + UDP_CHECK_US);
                self.service(id, port);
            }
            Ok(()) => self.service(id, port),
            Err(error) => refuse(id, code_of(error), port),
        }
        Ok(())
    }

    /// A server may listen on the loopback of IPv6 alone.
    fn connect_either(&mut self, id: u32, is_udp: bool, number: u16, now_us: u64) -> Result<(), Errno> {
        match self.connect(id, is_udp, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), number), now_us) {
            Err(Errno::CONNREFUSED) => self.connect_second(id, number, now_us),
            result => result,
        }
    }

    fn connect_second(&mut self, id: u32, number: u16, now_us: u64) -> Result<(), Errno> {
        let to = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), number);
        self.connect(id, false, to, now_us).map_err(|_| Errno::CONNREFUSED)
    }

    fn connect(&mut self, id: u32, is_udp: bool, to: SocketAddr, now_us: u64) -> Result<(), Errno> {
        let kind = if is_udp { SocketType::DGRAM } else { SocketType::STREAM };
        let family = if to.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let socket = net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        match net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        if !is_udp {
            let _ = net::sockopt::set_tcp_nodelay(&socket, true);
        }
        // Registered while it has an interest: an error is told even to those who ask for nothing.
        epoll::add(&self.epoll, &socket, EventData::new_u64(u64::from(id)), EventFlags::OUT)?;
        let flow = Exposed {
            socket,
            to,
            is_udp,
            is_connecting: !is_udp,
            queued: VecDeque::new(),
            credit: Credit::new(INITIAL_BYTES),
            interest: EventFlags::OUT,
            has_sent_end: false,
            has_received_end: false,
            is_shut: false,
            active_us: now_us,
        };
        self.flows.insert(id, flow);
        Ok(())
    }

    /// Sockets that have something to say.
    pub fn on_events(&mut self, port: &mut Port, now_us: u64) {
        let mut events = Vec::with_capacity(EVENTS);
        if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&Timespec::default())).is_err() {
            return;
        }
        for event in events {
            let id = event.data.u64() as u32;
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            if flow.is_connecting {
                match net::sockopt::socket_error(&flow.socket) {
                    Ok(Ok(())) => {
                        flow.is_connecting = false;
                        port.put(id, Kind::Accept, &[]);
                    }
                    Ok(Err(error)) | Err(error) => {
                        let second = Some(flow.to).filter(|to| to.is_ipv4() && error == Errno::CONNREFUSED);
                        self.remove(id);
                        if second.is_none_or(|to| self.connect_second(id, to.port(), now_us).is_err()) {
                            refuse(id, code_of(error), port);
                        }
                        continue;
                    }
                }
            }
            flow.active_us = now_us;
            self.service(id, port);
            if port.backlog() >= BACKLOG_BYTES {
                break;
            }
        }
    }

    /// Ends what has been silent.
    pub fn on_time(&mut self, port: &mut Port, now_us: u64) {
        if self.check_at_us.is_none_or(|at_us| at_us > now_us) {
            return;
        }
        let is_over = |flow: &Exposed| flow.is_udp && flow.active_us + UDP_IDLE_US <= now_us;
        let silent: Vec<u32> = self.flows.iter().filter(|(_, flow)| is_over(flow)).map(|(id, _)| *id).collect();
        for id in silent {
            port.put(id, Kind::End, &[]);
            self.remove(id);
        }
        self.check_at_us = self.flows.values().any(|flow| flow.is_udp).then_some(now_us + UDP_CHECK_US);
    }

    /// Does what a flow can do now, and at most one frame of its bytes.
    fn service(&mut self, id: u32, port: &mut Port) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if !flow.is_connecting {
            let moved = flow.write().and_then(|()| flow.read(id, port));
            if let Err(error) = moved {
                let code = if flow.is_udp { code_of(error) } else { "reset" };
                refuse(id, code, port);
                return self.remove(id);
            }
            if let Some(bytes) = flow.credit.grant(flow.queued.len()) {
                port.put(id, Kind::Credit, &bytes.to_le_bytes());
            }
            if flow.has_sent_end && flow.is_shut {
                return self.remove(id);
            }
        }
        self.watch(id);
    }

    /// Tells the kernel what is worth a wake-up; a socket with nothing to ask for is not watched, lest its hang-up be told for ever.
    fn watch(&mut self, id: u32) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let mut interest = EventFlags::empty();
        interest.set(EventFlags::OUT, flow.is_connecting || !flow.queued.is_empty());
        interest.set(EventFlags::IN, !flow.is_connecting && !flow.has_sent_end && (flow.is_udp || flow.credit.sendable() > 0));
        if interest == flow.interest {
            return;
        }
        let data = EventData::new_u64(u64::from(id));
        let result = match (flow.interest.is_empty(), interest.is_empty()) {
            (true, _) => epoll::add(&self.epoll, &flow.socket, data, interest),
            (false, true) => epoll::delete(&self.epoll, &flow.socket),
            (false, false) => epoll::modify(&self.epoll, &flow.socket, data, interest),
        };
        if result.is_ok() {
            flow.interest = interest;
        }
    }

    fn remove(&mut self, id: u32) {
        // Closing a socket takes it out of the set.
        self.flows.remove(&id);
    }
}

impl Exposed {
    /// Passes on what the socket takes, and the end behind it.
    fn write(&mut self) -> Result<(), Errno> {
        while !self.queued.is_empty() {
            let (bytes, _) = self.queued.as_slices();
            match net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(taken) => drop(self.queued.drain(..taken)),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.queued.shrink_to(0);
        if self.has_received_end && !std::mem::replace(&mut self.is_shut, true) {
            net::shutdown(&self.socket, Shutdown::Write)?;
        }
        Ok(())
    }

    fn read(&mut self, id: u32, port: &mut Port) -> Result<(), Errno> {
        if self.is_udp {
            return self.read_datagrams(id, port);
        }
        let most = self.credit.sendable().min(DATA_BYTES);
        if self.has_sent_end || most == 0 || port.backlog() >= BACKLOG_BYTES {
            return Ok(());
        }
        match port.put_data_with(id, most, |out, most| sys::read_append(&self.socket, out, most)) {
            Ok(0) => {
                self.has_sent_end = true;
                port.put(id, Kind::End, &[]);
                Ok(())
            }
            Ok(bytes) => {
                self.credit.sent(bytes);
                // A server that writes its answer in two pieces, on a connection with Nagle's algorithm, waits with the second until the first is
                // acknowledged: 40 ms, unless the kernel is told each time that nothing else will carry the acknowledgement.
                let _ = net::sockopt::set_tcp_quickack(&self.socket, true);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A frame each; beyond the credit they are lost.
    fn read_datagrams(&mut self, id: u32, port: &mut Port) -> Result<(), Errno> {
        let mut datagram = [0_u8; DATA_BYTES + 1];
        while port.backlog() < BACKLOG_BYTES {
            match net::recv(&self.socket, &mut datagram[..], RecvFlags::TRUNC) {
                Ok((_, bytes)) if bytes > DATA_BYTES || bytes > self.credit.sendable() => {}
                Ok((_, bytes)) => {
                    self.credit.sent(bytes);
                    port.put(id, Kind::Data, &datagram[..bytes]);
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn refuse(id: u32, code: &str, port: &mut Port) {
    port.put_json(id, Kind::Error, &json!({ "code": code }));
}

fn code_of(error: Errno) -> &'static str {
    match error {
        Errno::CONNREFUSED => "refused",
        Errno::TIMEDOUT => "timeout",
        Errno::CONNRESET | Errno::PIPE => "reset",
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL => "limit",
        _ => "unreachable",
    }
}

#[cfg(test)]
#[path = "exposed_tests.rs"]
mod tests;
