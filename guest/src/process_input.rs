//! Process input: what the host sends to a process, on its way into a pipe or a terminal.
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::pty;

pub struct Input {
    /// Absent when nobody reads any more, or when a pipe has had its end.
    writer: Option<OwnedFd>,
    is_terminal: bool,
    waiting: VecDeque<u8>,
    is_ended: bool,
    /// The last byte written was not the end of a line.
    is_in_line: bool,
}

impl Input {
    pub fn new(writer: OwnedFd, is_terminal: bool, waiting: VecDeque<u8>, is_ended: bool) -> Self {
        Input { writer: Some(writer), is_terminal, waiting, is_ended, is_in_line: false }
    }

    /// Whether bytes would find a reader.
    pub fn is_open(&self) -> bool {
        self.writer.is_some()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
    }

    pub fn end(&mut self) {
        self.is_ended = true;
    }

    /// There is something to write.
    pub fn writer(&self) -> Option<&OwnedFd> {
        self.writer.as_ref().filter(|_| !self.waiting.is_empty() || self.is_ended)
    }

    /// Writes what fits; returns how many of the host's bytes are dealt with, None: no more now. Without a reader they are dropped, as a
    /// shell's pipe does.
    pub fn write(&mut self) -> Option<usize> {
        let writer = self.writer()?;
        if self.waiting.is_empty() {
            self.write_end();
            return None;
        }
        let (first, _) = self.waiting.as_slices();
        let bytes = match rustix::io::write(writer, first) {
            Ok(bytes) => {
                self.is_in_line = bytes > 0 && first[bytes - 1] != b'\n';
                bytes
            }
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                self.writer = None;
                self.waiting.len()
            }
        };
        self.waiting.drain(..bytes);
        (bytes > 0).then_some(bytes)
    }

    /// A pipe is closed. On a terminal the end is typed: within a line once more, for the first only ends the line. It can be written to
    /// again when somebody attaches.
    fn write_end(&mut self) {
        let Some(writer) = &self.writer else { return };
        if !self.is_terminal {
            self.writer = None;
            return;
        }
        let end = [pty::end_of_input(writer); 2];
        let most = if self.is_in_line { 2 } else { 1 };
        match rustix::io::write(writer, &end[..most]) {
            Ok(2) => (self.is_in_line, self.is_ended) = (false, false),
            Ok(bytes) => {
                self.is_ended = bytes < most;
                self.is_in_line = false;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.writer = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::PipeFlags;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe")
    }

    fn read(fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        crate::sys::read_append(fd, &mut bytes, 1 << 20).map(|_| bytes)
    }

    #[test]
    fn a_pipe_takes_what_fits_and_ends_after_all_of_it() {
        let (reader, writer) = pipe();
        let mut input = Input::new(writer, false, vec![b'x'; 100_000].into(), true);
        let first = input.write().expect("some of it");
        assert!(first < 100_000 && input.write().is_none() && input.writer().is_some());
        let mut got = read(&reader).expect("bytes").len();
        while let Some(bytes) = input.write() {
            assert!(bytes > 0);
        }
        got += read(&reader).expect("bytes").len();
        assert_eq!((got, input.is_open(), read(&reader)), (100_000, false, Ok(Vec::new())));
    }

    #[test]
    fn what_nobody_reads_is_dropped() {
        let (reader, writer) = pipe();
        let mut input = Input::new(writer, false, VecDeque::new(), false);
        assert!(input.writer().is_none());
        drop(reader);
        input.push(b"lost");
        assert_eq!((input.write(), input.is_open()), (Some(4), false));
    }

    #[test]
    fn on_a_terminal_the_end_is_typed_and_twice_within_a_line() {
        for (typed, wanted) in [("", "\x04"), ("a\n", "a\n\x04"), ("a", "a\x04\x04")] {
            let (reader, writer) = pipe();
            let mut input = Input::new(writer, true, typed.bytes().collect(), false);
            input.end();
            while input.write().is_some() {}
            assert_eq!(read(&reader), Ok(wanted.as_bytes().to_vec()));
            assert!(input.is_open() && input.writer().is_none());
        }
    }
}
