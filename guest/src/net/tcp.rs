//! TCP: one connection of the guest, ended here by smoltcp. Each has an interface and a set of one socket of its own, so that a packet costs
//! the same however many connections there are.
use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};

use crate::net::packet::{self, Key, MTU, TUN_HEADER_BYTES};

/// The guest's kernel is asked so often whether the connection is still there: it says that it is not once, and that may be lost.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// The same once our direction has ended: the guest's kernel forgets such connections without a word when it has many.
const ENDING_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Takes packets for the guest's kernel: the tun device.
pub trait Sink {
    /// `packet` begins with the tun device's header. What cannot be taken is lost, as on any network.
    fn send(&mut self, packet: &[u8]);
    /// The same for a packet of `bytes` that `fill` writes, header included; what was in the buffer before is undefined.
    fn send_with(&mut self, bytes: usize, fill: &mut dyn FnMut(&mut [u8]));
}

/// One connection whose SYN has been answered.
pub struct Connection {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// From the host, behind what is in the socket's buffer.
    queued: VecDeque<u8>,
    /// FIN is to follow what is queued, or has been sent.
    is_ending: bool,
    /// The guest has ended its direction.
    has_fin: bool,
}

/// How far the guest's side of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Open,
    /// The guest has ended its direction; all of it has been read.
    HalfClosed,
    /// Both have ended theirs, and all has arrived.
    Closed,
    /// The guest gave it up.
    Reset,
}

impl Connection {
    /// Answers `syn`, a packet with the key `key`. Each buffer has `buffer_bytes`.
    pub fn accept(key: Key, syn: &[u8], buffer_bytes: usize, seed: u64, now_us: u64, sink: &mut dyn Sink) -> Self {
        let address = IpAddress::from(key.address);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut Link { packet: None, sink }, instant(now_us));
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(address, if key.address.is_ipv6() { 128 } else { 32 }));
        });
        let buffer = || SocketBuffer::new(vec![0; buffer_bytes]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        // One processor and no loss: an acknowledgement that waits only holds up the sender.
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        // A fresh socket on a port that is not 0 can listen.
        let _ = socket.listen(IpListenEndpoint { addr: Some(address), port: key.port });
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let mut connection = Connection { interface, sockets, handle, queued: VecDeque::new(), is_ending: false, has_fin: false };
        connection.receive(syn, now_us, sink);
        connection.transmit(now_us, sink);
        connection
    }

    /// A packet of this connection; what answers it leaves with the next `transmit`.
    pub fn receive(&mut self, packet: &[u8], now_us: u64, sink: &mut dyn Sink) {
        let _ = self.interface.poll_ingress_single(instant(now_us), &mut Link { packet: Some(packet), sink }, &mut self.sockets);
        self.has_fin |= matches!(self.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
    }

    /// Sends what is due.
    pub fn transmit(&mut self, now_us: u64, sink: &mut dyn Sink) {
        self.fill();
        let _ = self.interface.poll(instant(now_us), &mut Link { packet: None, sink }, &mut self.sockets);
        // Acknowledged bytes have made room.
        if self.fill() {
            let _ = self.interface.poll(instant(now_us), &mut Link { packet: None, sink }, &mut self.sockets);
        }
    }

    /// When `transmit` is due without anything else happening.
    pub fn next_us(&mut self, now_us: u64) -> Option<u64> {
        let at = self.interface.poll_at(instant(now_us), &self.sockets)?;
        Some(u64::try_from(at.total_micros()).unwrap_or(0).max(now_us + 1))
    }

    /// Bytes of the host, for the guest.
    pub fn queue(&mut self, bytes: &[u8]) {
        let taken = if self.queued.is_empty() { self.socket().send_slice(bytes).unwrap_or(0) } else { 0 };
        if self.may_send() {
            self.queued.extend(&bytes[taken..]);
        }
    }

    /// Bytes of the host that the guest has not acknowledged.
    pub fn held(&self) -> usize {
        self.queued.len() + self.sockets.get::<Socket>(self.handle).send_queue()
    }

    /// Moves up to `most` bytes of the guest to the end of `out`.
    pub fn read(&mut self, out: &mut Vec<u8>, most: usize) -> usize {
        let mut left = most;
        // The buffer is a ring: two pieces at most.
        for _ in 0..2 {
            let taken = self.socket().recv(|bytes| {
                let taken = bytes.len().min(left);
                out.extend_from_slice(&bytes[..taken]);
                (taken, taken)
            });
            left -= taken.unwrap_or(0);
        }
        most - left
    }

    /// Bytes of the guest that wait.
    pub fn readable(&self) -> usize {
        self.sockets.get::<Socket>(self.handle).recv_queue()
    }

    /// The host ended its direction: FIN after what it has sent.
    pub fn end(&mut self) {
        self.is_ending = true;
        self.socket().set_keep_alive(Some(ENDING_KEEP_ALIVE));
    }

    /// Sends RST.
    pub fn reset(&mut self, now_us: u64, sink: &mut dyn Sink) {
        self.queued.clear();
        self.socket().abort();
        let _ = self.interface.poll_egress(instant(now_us), &mut Link { packet: None, sink }, &mut self.sockets);
    }

    pub fn progress(&self) -> Progress {
        if self.readable() > 0 {
            return Progress::Open;
        }
        match self.state() {
            // The guest took back its SYN: the socket listens again, for nobody. In TIME-WAIT nothing comes that a RST would not answer.
            State::Listen | State::Closed | State::TimeWait | State::SynSent => {
                let is_clean = self.has_fin && self.is_ending && self.held() == 0;
                if is_clean {
                    Progress::Closed
                } else {
                    Progress::Reset
                }
            }
            _ if self.has_fin => Progress::HalfClosed,
            _ => Progress::Open,
        }
    }

    /// Moves what waits into the socket's buffer, and ends it after that; true when anything was done.
    fn fill(&mut self) -> bool {
        let mut is_moved = false;
        while !self.queued.is_empty() {
            let (bytes, _) = self.queued.as_slices();
            let taken = self.sockets.get_mut::<Socket>(self.handle).send_slice(bytes).unwrap_or(0);
            if taken == 0 {
                break;
            }
            self.queued.drain(..taken);
            is_moved = true;
        }
        if self.queued.is_empty() {
            self.queued.shrink_to(0);
            if self.is_ending && self.may_send() {
                self.socket().close();
                is_moved = true;
            }
        }
        is_moved
    }

    fn may_send(&self) -> bool {
        matches!(self.state(), State::SynReceived | State::Established | State::CloseWait)
    }

    fn state(&self) -> State {
        self.sockets.get::<Socket>(self.handle).state()
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut::<Socket>(self.handle)
    }
}

fn instant(now_us: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_us).unwrap_or(i64::MAX))
}

/// At most one packet in, any number out.
struct Link<'a> {
    packet: Option<&'a [u8]>,
    sink: &'a mut dyn Sink,
}

struct Incoming<'a>(&'a [u8]);
struct Outgoing<'a>(&'a mut dyn Sink);

impl Device for Link<'_> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        Some((Incoming(self.packet.take()?), Outgoing(self.sink)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(self.sink))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // Nothing is lost or changed between two parts of one machine's memory; see packet.rs.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let (mut f, mut result) = (Some(f), None);
        self.0.send_with(TUN_HEADER_BYTES + length, &mut |packet| {
            result = f.take().map(|f| f(&mut packet[TUN_HEADER_BYTES..]));
            packet::mark_tcp(packet);
        });
        match result {
            Some(result) => result,
            // A sink that never asks for the packet would be a mistake of ours.
            None => unreachable!("the sink asks for each packet once"),
        }
    }
}
