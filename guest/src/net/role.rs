//! Role: the process between the tun device and the net port. It has these two descriptors and no rights: what it is sent by the guest's
//! programs and by the network's servers decides nothing but bytes.
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::confine;
use crate::net::exposed::Exposures;
use crate::net::flows::Flows;
use crate::net::packet::{MTU, TUN_HEADER_BYTES};
use crate::net::port::{Gone, Port, BACKLOG_BYTES, BLOCKED_BYTES};
use crate::net::tcp::Sink;
use crate::server::now_us;
use crate::sys;
use crate::wire::{self, Frame};

/// What the agent starts this process with.
pub const ARGUMENT: &str = "net";
/// The host has closed its side of the port, or never opened it: to start again makes no sense.
pub const STATUS_HOST_GONE: i32 = 3;
const STATUS_FAILED: i32 = 4;
const CONNECT_ATTEMPTS: u32 = 2_000;
const CONNECT_PAUSE_NS: i64 = 1_000_000;
/// Taken in one turn of the loop from the tun device and from the port.
const PACKETS: usize = 32;
const READS: usize = 64;

/// The buffers of connections, while these are few.
const LARGE_BYTES: usize = 32_768;
/// After so many flows at once memory is given back when the last has ended.
const MANY_FLOWS: usize = 64;

/// Why the role ends.
pub enum Ending {
    HostGone,
    Protocol(&'static str),
    System(&'static str, Errno),
}

/// Runs until the port ends; descriptor 0 is the tun device, 1 the port, 2 the console.
pub fn run() -> i32 {
    let ending = match serve(rustix::stdio::stdin(), rustix::stdio::stdout()) {
        Ok(never) => match never {},
        Err(ending) => ending,
    };
    match ending {
        Ending::HostGone => return STATUS_HOST_GONE,
        Ending::Protocol(what) => eprintln!("sbx-agent: network: protocol error: {what}"),
        Ending::System(action, error) => eprintln!("sbx-agent: network: cannot {action}: {error}"),
    }
    STATUS_FAILED
}

fn serve(tun: BorrowedFd<'_>, port: BorrowedFd<'_>) -> Result<std::convert::Infallible, Ending> {
    await_host(port)?;
    let mut role = Role::start(tun, port)?;
    loop {
        role.turn(None)?;
    }
}
/// Until the host's side is connected a read would say that it has gone.
fn await_host(port: BorrowedFd<'_>) -> Result<(), Ending> {
    let pause = Timespec { tv_sec: 0, tv_nsec: CONNECT_PAUSE_NS };
    for _ in 0..CONNECT_ATTEMPTS {
        let mut fds = [PollFd::from_borrowed_fd(port, PollFlags::OUT)];
        rustix::event::poll(&mut fds, Some(&Timespec::default())).map_err(|error| Ending::System("look at the net port", error))?;
        if !fds[0].revents().contains(PollFlags::HUP) {
            return Ok(());
        }
        let _ = rustix::event::poll(&mut [], Some(&pause));
    }
    Err(Ending::HostGone)
}

pub struct Role<'a> {
    incoming: Vec<u8>,
    tun: Tun<'a>,
    fd: BorrowedFd<'a>,
    port: Port,
    flows: Flows,
    exposures: Exposures,
    had_many: bool,
}

impl<'a> Role<'a> {
    /// Says HELLO and gives up every system call that is not needed from here on.
    pub fn start(tun: BorrowedFd<'a>, port: BorrowedFd<'a>) -> Result<Self, Ending> {
        let mut random = [0; 24];
        let drawn = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        drawn.map_err(|error| Ending::System("draw a number", error))?;
        let nonce: String = random[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let seed = random[16..].iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte));
        sys::map_allocations(LARGE_BYTES);
        let exposures = Exposures::new().map_err(|error| Ending::System("watch sockets", error))?;
        // Where the clock is to be read is found out at the first time, with calls that are not needed later.
        now_us();
        let restricted = sys::restrict(&confine::network_filter());
        restricted.map_err(|error| Ending::System("give up system calls", error))?;
        Ok(Role {
            incoming: vec![0; TUN_HEADER_BYTES + MTU],
            tun: Tun { fd: tun, packet: vec![0; TUN_HEADER_BYTES + MTU] },
            fd: port,
            port: Port::new(&nonce),
            flows: Flows::new(seed),
            exposures,
            had_many: false,
        })
    }

    /// Waits for something to do, at most `most_us`, and does it.
    pub fn turn(&mut self, most_us: Option<i64>) -> Result<(), Ending> {
        self.port.flush(self.fd).map_err(|Gone| Ending::HostGone)?;
        let [is_port, is_tun, is_exposed] = self.wait(now_us(), most_us)?;
        let now_us = now_us();
        if is_port {
            self.on_port(now_us)?;
        }
        if is_tun {
            self.on_tun(now_us);
        }
        if is_exposed {
            self.exposures.on_events(&mut self.port, now_us);
        }
        self.flows.on_time(&mut self.port, now_us, &mut self.tun);
        self.exposures.on_time(&mut self.port, now_us);
        self.flows.pump(&mut self.port, now_us, &mut self.tun);
        (self.flows.others, self.exposures.others) = (self.exposures.count(), self.flows.count());
        self.had_many |= self.flows.count() >= MANY_FLOWS;
        if self.had_many && self.flows.count() == 0 {
            self.had_many = false;
            sys::trim_memory();
        }
        Ok(())
    }

    fn wait(&mut self, now_us: u64, most_us: Option<i64>) -> Result<[bool; 3], Ending> {
        let backlog = self.port.backlog();
        let is_pumping = self.flows.is_ready() && backlog < BACKLOG_BYTES;
        let next_us = [self.flows.next_us(), self.exposures.next_us()].into_iter().flatten().min();
        let left_us = if is_pumping { Some(0) } else { next_us.map(|at_us| at_us.saturating_sub(now_us) as i64) };
        let left_us = [left_us, most_us].into_iter().flatten().min();
        let timeout = left_us.map(|left_us| Timespec { tv_sec: left_us / 1_000_000, tv_nsec: left_us % 1_000_000 * 1_000 });
        let wanted = |is_wanted: bool| if is_wanted { PollFlags::IN } else { PollFlags::empty() };
        let mut port = PollFlags::IN;
        port.set(PollFlags::OUT, self.port.is_full());
        let mut fds = [
            PollFd::from_borrowed_fd(self.fd, port),
            PollFd::from_borrowed_fd(self.tun.fd, wanted(backlog < BLOCKED_BYTES)),
            PollFd::new(&self.exposures.epoll, wanted(backlog < BACKLOG_BYTES)),
        ];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {
                Ok([0, 1, 2].map(|at| fds[at].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::OUT)))
            }
            Err(error) => Err(Ending::System("wait", error)),
        }
    }

    fn on_port(&mut self, now_us: u64) -> Result<(), Ending> {
        for _ in 0..READS {
            if !self.port.fill(self.fd).map_err(|Gone| Ending::HostGone)? {
                break;
            }
            let input = self.port.take_input();
            let mut taken = 0;
            while let Some((frame, bytes)) = wire::parse(&input[taken..]).map_err(|error| Ending::Protocol(error.as_str()))? {
                let handled = match is_guests(&frame).map_err(Ending::Protocol)? {
                    true => self.flows.on_frame(&frame, &mut self.port, now_us, &mut self.tun),
                    false => self.exposures.on_frame(&frame, &mut self.port, now_us),
                };
                handled.map_err(Ending::Protocol)?;
                taken += bytes;
            }
            self.port.restore(input, taken);
        }
        self.flows.settle(&mut self.port, now_us, &mut self.tun);
        Ok(())
    }

    fn on_tun(&mut self, now_us: u64) {
        for _ in 0..PACKETS {
            if self.port.backlog() >= BLOCKED_BYTES {
                break;
            }
            match rustix::io::read(self.tun.fd, &mut self.incoming[..]) {
                Ok(bytes) if bytes > TUN_HEADER_BYTES => {
                    let packet = &self.incoming[TUN_HEADER_BYTES..bytes];
                    self.flows.on_packet(packet, &mut self.port, now_us, &mut self.tun);
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
}

/// A frame is for one of the flows that the guest opened; else for one of the host's.
pub fn is_guests(frame: &Frame) -> Result<bool, &'static str> {
    match frame.stream {
        0 => Err("HELLO on a connection that has begun"),
        stream => Ok(stream % 2 == 0),
    }
}

/// The device, and room for a packet on its way to it.
struct Tun<'a> {
    fd: BorrowedFd<'a>,
    packet: Vec<u8>,
}

impl Sink for Tun<'_> {
    fn send(&mut self, packet: &[u8]) {
        // What the kernel has no room for is sent again, or was a datagram.
        let _ = rustix::io::write(self.fd, packet);
    }

    fn send_with(&mut self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) {
        if self.packet.len() < bytes {
            self.packet.resize(bytes, 0);
        }
        fill(&mut self.packet[..bytes]);
        let _ = rustix::io::write(self.fd, &self.packet[..bytes]);
    }
}
