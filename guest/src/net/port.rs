//! Port: the buffers of the net port. What is written is whole frames, what is read begins after the host's answer to our HELLO: a role
//! that died may have read half a frame, and must not have written one.
use std::os::fd::AsFd;

use rustix::io::Errno;
use serde_json::{json, Value};

use crate::limits::PROTOCOL_VERSION;
use crate::outbox::Outbox;
use crate::sys;
use crate::wire::{self, Kind, HEADER_BYTES, PAYLOAD_BYTES};

/// The driver takes so much of one write, all of it or nothing: frames of at most this size are never torn, whenever we die.
const WRITE_BYTES: usize = 32_768;
/// Most payload of a frame of ours.
pub const DATA_BYTES: usize = WRITE_BYTES - HEADER_BYTES;
/// With more than this waiting for the host, no flow is read.
pub const BACKLOG_BYTES: usize = 4 * WRITE_BYTES;
/// With more than this nothing is, so that the small frames about flows are bounded too.
pub const BLOCKED_BYTES: usize = 2 * BACKLOG_BYTES;
const INPUT_BYTES: usize = 2 * (HEADER_BYTES + PAYLOAD_BYTES);
const READ_BYTES: usize = 16_384;

/// The host has closed its side.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

pub struct Port {
    out: Outbox,
    input: Vec<u8>,
    /// The answer that everything begins after, until it came.
    awaited: Option<Vec<u8>>,
}

impl Port {
    /// Says HELLO; `nonce` must be new.
    pub fn new(nonce: &str) -> Self {
        let hello = json!({ "protocol": PROTOCOL_VERSION, "nonce": nonce }).to_string();
        let mut port = Port { out: Outbox::default(), input: Vec::new(), awaited: None };
        port.put(0, Kind::Hello, hello.as_bytes());
        port.awaited = Some(port.out.bytes.clone());
        port
    }

    /// Bytes that the host has not taken yet.
    pub fn backlog(&self) -> usize {
        self.out.backlog()
    }

    /// The port takes no more at the moment.
    pub fn is_full(&self) -> bool {
        self.out.is_full()
    }

    pub fn put(&mut self, stream: u32, kind: Kind, payload: &[u8]) {
        debug_assert!(payload.len() <= DATA_BYTES);
        wire::put_header(&mut self.out.bytes, stream, kind, 0, payload.len());
        self.out.bytes.extend_from_slice(payload);
    }

    pub fn put_json(&mut self, stream: u32, kind: Kind, json: &Value) {
        self.put(stream, kind, json.to_string().as_bytes());
    }

    /// A DATA frame of at most `most` bytes that `fill` appends; it returns how many. With 0 there is no frame.
    pub fn put_data_with<E>(
        &mut self,
        stream: u32,
        most: usize,
        fill: impl FnOnce(&mut Vec<u8>, usize) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let at = self.out.bytes.len();
        wire::put_header(&mut self.out.bytes, stream, Kind::Data, 0, 0);
        let filled = fill(&mut self.out.bytes, most.min(DATA_BYTES));
        match filled {
            Ok(bytes) if bytes > 0 => wire::set_length(&mut self.out.bytes, at, bytes),
            _ => self.out.bytes.truncate(at),
        }
        filled
    }

    pub fn flush(&mut self, fd: impl AsFd) -> Result<(), Gone> {
        if self.out.flush(fd, BACKLOG_BYTES, whole_frames).map_err(|_| Gone)? {
            self.out.bytes.shrink_to(BACKLOG_BYTES);
        }
        Ok(())
    }

    /// Reads what is there. False when there was nothing.
    pub fn fill(&mut self, fd: impl AsFd) -> Result<bool, Gone> {
        let room = (INPUT_BYTES - self.input.len()).min(READ_BYTES);
        match sys::read_append(fd, &mut self.input, room) {
            Ok(0) => Err(Gone),
            Ok(_) => {
                self.synchronise();
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(_) => Err(Gone),
        }
    }

    /// The bytes to take frames from, out of `self` while that is done; what is left of them is given back with `restore`.
    pub fn take_input(&mut self) -> Vec<u8> {
        if self.awaited.is_some() {
            return Vec::new();
        }
        std::mem::take(&mut self.input)
    }

    pub fn restore(&mut self, mut input: Vec<u8>, taken: usize) {
        if self.awaited.is_none() {
            input.drain(..taken);
            self.input = input;
        }
    }

    /// Drops what comes before the host's answer.
    fn synchronise(&mut self) {
        let Some(awaited) = &self.awaited else { return };
        let found = self.input.windows(awaited.len()).position(|window| window == awaited);
        let dropped = match found {
            Some(at) => at + awaited.len(),
            None => (self.input.len() + 1).saturating_sub(awaited.len()),
        };
        self.input.drain(..dropped);
        if found.is_some() {
            self.awaited = None;
        }
    }
}

/// As many bytes of whole frames as one write takes.
fn whole_frames(rest: &[u8]) -> usize {
    let mut bytes = 0;
    while let Some(header) = rest[bytes..].first_chunk::<4>() {
        let next = bytes + HEADER_BYTES + u32::from_le_bytes(*header) as usize;
        if next > WRITE_BYTES {
            break;
        }
        bytes = next;
    }
    bytes
}

#[cfg(test)]
impl Port {
    /// What waits for the host, taken.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out).bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).expect("a pair")
    }

    #[test]
    fn each_write_is_whole_frames_as_many_as_fit() {
        let (ours, theirs) = pair();
        let mut port = Port::new("n");
        port.flush(&ours).expect("sent");
        for stream in 1..=9 {
            port.put(stream, Kind::Data, &[1; 10_000]);
        }
        port.put(10, Kind::Data, &[2; DATA_BYTES]);
        port.put(11, Kind::End, &[]);
        port.flush(&ours).expect("sent");
        let mut writes = Vec::new();
        let mut buffer = Vec::new();
        while sys::read_append(&theirs, &mut buffer, WRITE_BYTES + 1).is_ok_and(|bytes| bytes > 0) {
            let mut rest = &buffer[..];
            let mut frames = 0;
            while let Ok(Some((_, bytes))) = wire::parse(rest) {
                rest = &rest[bytes..];
                frames += 1;
            }
            assert!(rest.is_empty());
            writes.push(frames);
            buffer.clear();
        }
        assert_eq!(writes, [1, 3, 3, 3, 1, 1]);
        assert_eq!((port.backlog(), port.is_full()), (0, false));
    }

    #[test]
    fn what_comes_before_the_answer_is_dropped_wherever_reads_end() {
        for split in 1..200 {
            let (ours, theirs) = pair();
            let mut port = Port::new("0123456789abcdef");
            let answer = port.take_output();
            let mut sent = vec![7; 40];
            sent.extend_from_slice(&answer[..30]);
            sent.extend_from_slice(&answer);
            sent.extend_from_slice(b"rest");
            for part in sent.chunks(split) {
                rustix::io::write(&theirs, part).expect("room");
                assert_eq!(port.fill(&ours), Ok(true));
            }
            assert_eq!(port.take_input(), b"rest", "{split}");
        }
    }

    #[test]
    fn a_host_that_has_gone_is_noticed() {
        let (ours, theirs) = pair();
        let mut port = Port::new("n");
        assert_eq!(port.fill(&ours), Ok(false));
        drop(theirs);
        assert_eq!((port.fill(&ours), port.flush(&ours)), (Err(Gone), Err(Gone)));
    }
}
