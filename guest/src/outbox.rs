//! Outbox: bytes for the host that a port has not taken yet, of the control port and the net port alike.
use std::os::fd::AsFd;

use rustix::io::Errno;

#[derive(Default)]
pub struct Outbox {
    /// Frames are appended here.
    pub bytes: Vec<u8>,
    sent: usize,
    is_full: bool,
}

impl Outbox {
    pub fn with_capacity(bytes: usize) -> Self {
        Outbox { bytes: Vec::with_capacity(bytes), ..Outbox::default() }
    }

    /// Bytes that the host has not taken yet.
    pub fn backlog(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// The port takes no more at the moment.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Writes until nothing is left, or the port takes no more; true when nothing is left. `next_bytes` tells how many of the bytes that
    /// wait go into one write. Sent bytes are dropped once they are `dropped_bytes` or more: there may be no moment at which all is sent.
    pub fn flush(&mut self, port: impl AsFd, dropped_bytes: usize, next_bytes: impl Fn(&[u8]) -> usize) -> Result<bool, Errno> {
        self.is_full = false;
        while self.sent < self.bytes.len() {
            let rest = &self.bytes[self.sent..];
            match rustix::io::write(&port, &rest[..next_bytes(rest)]) {
                Ok(bytes) => self.sent += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.is_full = true;
                    if self.sent >= dropped_bytes {
                        self.bytes.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

    #[test]
    fn what_a_port_does_not_take_waits_and_what_it_took_is_dropped() {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).expect("a pair");
        let mut outbox = Outbox::with_capacity(1);
        let all: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        outbox.bytes.extend_from_slice(&all);
        assert_eq!(outbox.flush(&ours, 1, |rest| rest.len().min(10_000)), Ok(false));
        assert!(outbox.is_full() && outbox.bytes.len() == outbox.backlog() && outbox.backlog() < all.len());
        let mut received = Vec::new();
        loop {
            while sys::read_append(&theirs, &mut received, 100_000).is_ok_and(|bytes| bytes > 0) {}
            if outbox.backlog() == 0 {
                break;
            }
            outbox.flush(&ours, usize::MAX, <[u8]>::len).expect("sent");
        }
        assert!(received == all && !outbox.is_full() && outbox.bytes.is_empty());
        drop(theirs);
        outbox.bytes.push(1);
        assert!(outbox.flush(&ours, 1, <[u8]>::len).is_err());
    }
}
