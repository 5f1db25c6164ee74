//! Rehearsal: one connection and one question over the real tun device, with nobody beyond the port. A bake runs it, so that clones find what
//! a network needs in memory and translated.
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};

use crate::net::packet::{DNS_PORT, GATEWAY};
use crate::net::role::Role;
use crate::sys;
use crate::wire::{self, Kind};

/// What the agent starts this process with.
pub const ARGUMENT: &str = "rehearse";
/// For documentation (RFC 5737): nobody's.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// It takes some thirty; a mistake must not hold up a bake.
const TURNS: u32 = 1_000;

/// Descriptor 0 is the tun device.
pub fn run() -> i32 {
    match rehearse() {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => error.raw_os_error(),
    }
}

/// Whether all of it was done.
fn rehearse() -> Result<bool, Errno> {
    let nonblocking = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (port, host) = net::socketpair(AddressFamily::UNIX, SocketType::STREAM, nonblocking, None)?;
    let mut role = Role::start(rustix::stdio::stdin(), port.as_fd()).map_err(|_| Errno::IO)?;
    let to = |address, port| SocketAddr::V4(SocketAddrV4::new(address, port));
    let stream = net::socket_with(AddressFamily::INET, SocketType::STREAM, nonblocking, None)?;
    let question = net::socket_with(AddressFamily::INET, SocketType::DGRAM, nonblocking, None)?;
    match net::connect(&stream, &to(SERVER, 443)) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error),
    }
    net::connect(&question, &to(GATEWAY, DNS_PORT))?;
    net::send(&question, b"question", SendFlags::NOSIGNAL)?;
    let (mut sent, mut received, mut is_answered) = (false, 0, false);
    for _ in 0..TURNS {
        role.turn(Some(0)).map_err(|_| Errno::IO)?;
        answer(&host)?;
        if !sent {
            sent = net::send(&stream, &[7; 10_000], SendFlags::NOSIGNAL).is_ok();
        }
        let mut buffer = [0_u8; 4_096];
        is_answered |= net::recv(&question, &mut buffer[..], RecvFlags::empty()).is_ok();
        match net::recv(&stream, &mut buffer[..], RecvFlags::empty()) {
            // The end that answers ours.
            Ok((_, 0)) => return Ok(is_answered),
            Ok((_, bytes)) => received += bytes,
            Err(_) => {}
        }
        if received == 10_000 {
            net::shutdown(&stream, Shutdown::Write)?;
        }
    }
    Ok(false)
}

/// The host: lets everything be, and sends back what comes.
fn answer(host: &OwnedFd) -> Result<(), Errno> {
    let mut bytes = Vec::new();
    while sys::read_append(host, &mut bytes, 65_536).is_ok_and(|bytes| bytes > 0) {}
    let (mut rest, mut answer) = (&bytes[..], Vec::new());
    while let Ok(Some((frame, taken))) = wire::parse(rest) {
        let kind = match frame.kind {
            Kind::Open => Kind::Accept,
            kind => kind,
        };
        let payload = if kind == Kind::Accept { &[] } else { frame.payload };
        if kind != Kind::Credit {
            wire::put_header(&mut answer, frame.stream, kind, 0, payload.len());
            answer.extend_from_slice(payload);
        }
        rest = &rest[taken..];
    }
    if !answer.is_empty() {
        net::send(host, &answer, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}
