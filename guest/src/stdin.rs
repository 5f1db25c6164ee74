//! Stdin: what the host sends to a running program, by way of a FIFO that the REPL opens: bash and Bun can be given no descriptor.
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use crate::repl::DIRECTORY;
use crate::shell;

const PATH: &str = "stdin";
/// Pauses between two knocks, doubled each time.
const KNOCK_FIRST_US: u64 = 5_000;
const KNOCK_MAX_US: u64 = 160_000;

/// The FIFO of one execution.
pub struct Stdin {
    /// Open until the REPL has opened its own: without a reader nothing could be written, and a pipe without either end forgets.
    reader: Option<OwnedFd>,
    /// Closed when the host has sent END and all of it is written, but not before the REPL has opened the FIFO: without a writer it
    /// would wait for one.
    writer: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    is_ended: bool,
    /// While the REPL has the FIFO open after its end.
    knock: Option<Knock>,
}

/// A FIFO is opened for reading only once somebody opens it for writing: a program that opens `/dev/stdin` after the end of its input would
/// wait for ever, where a pipe would say that it ended. So the agent opens its end now and then, and closes it at once.
struct Knock {
    at_us: u64,
    pause_us: u64,
}

impl Stdin {
    /// Makes the FIFO anew: a process left from an earlier execution keeps the old one.
    pub fn make(waiting: VecDeque<u8>, is_ended: bool) -> Result<Self, Errno> {
        let path = format!("{DIRECTORY}/{PATH}");
        shell::make_fifo(&path, 0o440)?;
        let open = |flags| fs::open(path.as_str(), flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        let reader = open(OFlags::RDONLY)?;
        Ok(Stdin { writer: Some(open(OFlags::WRONLY)?), reader: Some(reader), waiting, is_ended, knock: None })
    }

    /// The REPL has opened the FIFO.
    pub fn opened(&mut self) {
        self.reader = None;
        self.close_if_done();
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if self.writer.is_some() {
            self.waiting.extend(bytes);
        }
    }

    pub fn end(&mut self) {
        self.is_ended = true;
        self.close_if_done();
    }

    /// Nothing is written when there is nothing to write, or nobody to read it.
    pub fn writer(&self) -> Option<&OwnedFd> {
        self.writer.as_ref().filter(|_| !self.waiting.is_empty())
    }

    /// Writes what fits; returns how many bytes are dealt with. Without a reader they are dropped, as a shell's pipe does.
    pub fn write(&mut self) -> usize {
        let Some(writer) = &self.writer else { return 0 };
        let (first, _) = self.waiting.as_slices();
        let bytes = match rustix::io::write(writer, first) {
            Ok(bytes) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                self.writer = None;
                self.waiting.len()
            }
        };
        self.waiting.drain(..bytes);
        self.close_if_done();
        bytes
    }

    /// When somebody may wait for the FIFO again.
    pub fn knock_us(&self) -> Option<u64> {
        self.knock.as_ref().map(|knock| knock.at_us)
    }

    pub fn knock(&mut self, now_us: u64) {
        let Some(knock) = self.knock.as_mut().filter(|knock| now_us >= knock.at_us) else { return };
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if fs::open(format!("{DIRECTORY}/{PATH}"), flags, Mode::empty()).is_err() {
            self.knock = None; // Nobody has it open for reading.
            return;
        }
        *knock = Knock { at_us: now_us + knock.pause_us, pause_us: (2 * knock.pause_us).min(KNOCK_MAX_US) };
    }

    /// No one reads any more: what arrives is dropped at once.
    pub fn is_closed(&self) -> bool {
        self.writer.is_none()
    }

    fn close_if_done(&mut self) {
        let is_done = self.is_ended && self.waiting.is_empty() && self.reader.is_none();
        if is_done && self.writer.take().is_some() {
            self.knock = Some(Knock { at_us: 0, pause_us: KNOCK_FIRST_US });
        }
    }
}
