//! Output: what programs print, on its way from the REPL's pipes to the host, or held while no execution wants it.
use std::collections::VecDeque;

use crate::channel::BACKLOG_BYTES;
use crate::error::Fatal;
use crate::exec::{Execution, Phase};
use crate::limits::{BACKGROUND_OUTPUT_BYTES, CANCEL_GRACE_MS};
use crate::repl::Repl;
use crate::server::Server;
use crate::sys;
use crate::wire::{data, Kind, PAYLOAD_BYTES};

const FLAGS: [u8; 2] = [data::STDOUT, data::STDERR];
/// The agent's own log: enough to see what went wrong, too little to flood the console.
const LOG_LINES: u32 = 200;

#[derive(Default)]
pub struct Outputs {
    /// The pipes are left alone until then.
    pub look_at_us: u64,
    /// From background processes between executions; the oldest bytes go first.
    held: [VecDeque<u8>; 2],
    /// Display data that the host has not taken yet, at most one read of the REPL's socket.
    pub displays: VecDeque<u8>,
    scratch: Vec<u8>,
    lines: u32,
}

impl Outputs {
    /// Bytes in the pipes now. A program that goes on printing in the background cannot make a drain endless.
    pub fn pending(&self, repl: &Repl) -> [usize; 2] {
        [0, 1].map(|which| rustix::io::ioctl_fionread(repl.wires.output(which)).unwrap_or(0) as usize)
    }

    pub fn discard_pending(&mut self, repl: &Repl, pending: [usize; 2]) {
        for which in [0, 1] {
            let mut left = pending[which];
            while left > 0 {
                match self.take(repl, which, left) {
                    0 => break,
                    bytes => left -= bytes.min(left),
                }
            }
        }
    }

    pub fn hold_pending(&mut self, repl: &Repl, pending: [usize; 2]) {
        for which in [0, 1] {
            let mut left = pending[which];
            while left > 0 {
                match self.hold(repl, which, left) {
                    0 => break,
                    bytes => left -= bytes.min(left),
                }
            }
        }
    }

    /// Reads into the scratch buffer.
    fn take(&mut self, repl: &Repl, which: usize, most: usize) -> usize {
        self.scratch.clear();
        sys::read_append(repl.wires.output(which), &mut self.scratch, most.min(PAYLOAD_BYTES)).unwrap_or(0)
    }

    fn hold(&mut self, repl: &Repl, which: usize, most: usize) -> usize {
        let bytes = self.take(repl, which, most);
        let held = &mut self.held[which];
        held.extend(&self.scratch);
        let excess = held.len().saturating_sub(BACKGROUND_OUTPUT_BYTES);
        held.drain(..excess);
        bytes
    }

    pub fn log(&mut self, what: &str) {
        self.lines += 1;
        if self.lines <= LOG_LINES {
            eprintln!("sbx-agent: {what}");
        }
    }
}

impl Server {
    /// Whether output of this kind would find a place now.
    pub(crate) fn can_take_output(&self, which: usize) -> bool {
        match &self.execution {
            None => true,
            Some(execution) => match execution.phase {
                Phase::Body | Phase::Waiting => false,
                Phase::Draining(_) => false,
                Phase::Running => self.room(execution, which) > 0,
            },
        }
    }

    /// How much output the host takes now. Beyond a cap output is read and dropped, without limit.
    fn room(&self, execution: &Execution, which: usize) -> usize {
        if execution.outcome.output_limit.is_some() || execution.output_left[which] == 0 {
            return PAYLOAD_BYTES;
        }
        if self.channel.backlog() >= BACKLOG_BYTES {
            return 0;
        }
        self.mux.sendable(execution.stream).min(PAYLOAD_BYTES).min(execution.output_left[which] as usize)
    }

    /// A pipe has something.
    pub(crate) fn on_output(&mut self, which: usize, now_us: u64) -> Result<(), Fatal> {
        let bytes = match &self.execution {
            None => self.outputs.hold(&self.repl, which, PAYLOAD_BYTES),
            Some(_) => self.forward(which, PAYLOAD_BYTES, now_us),
        };
        // A pipe that was full has a writer waiting.
        if bytes < PAYLOAD_BYTES {
            self.look_later(now_us);
        }
        Ok(())
    }

    /// Moves up to `most` bytes from a pipe that has some to the host. Returns how many left the pipe.
    fn forward(&mut self, which: usize, most: usize, now_us: u64) -> usize {
        let Some(execution) = &self.execution else { return 0 };
        let most = most.min(self.room(execution, which));
        if most == 0 {
            return 0;
        }
        if execution.outcome.output_limit.is_none() && execution.output_left[which] > 0 {
            let stream = execution.stream;
            let bytes = self.channel.put_data_from(self.repl.wires.output(which), stream, FLAGS[which], most);
            self.mux.sent(stream, bytes);
            if let Some(execution) = &mut self.execution {
                execution.output_left[which] -= bytes as u64;
            }
            return bytes;
        }
        let bytes = self.outputs.take(&self.repl, which, most);
        let is_running = execution.is_running();
        if let Some(execution) = self.execution.as_mut().filter(|execution| bytes > 0 && execution.outcome.output_limit.is_none()) {
            execution.outcome.output_limit = Some(which);
            if is_running {
                self.stop_execution(now_us, CANCEL_GRACE_MS);
            }
        }
        bytes
    }

    /// Moves display data to the host; true when all of it has left. What nobody waits for is dropped.
    pub(crate) fn forward_displays(&mut self) -> bool {
        let Some(execution) = &self.execution else {
            self.outputs.displays.clear();
            return true;
        };
        while !self.outputs.displays.is_empty() && self.channel.backlog() < BACKLOG_BYTES {
            let (bytes, _) = self.outputs.displays.as_slices();
            let most = bytes.len().min(self.mux.sendable(execution.stream)).min(PAYLOAD_BYTES);
            if most == 0 {
                break;
            }
            self.channel.put(execution.stream, Kind::Data, data::DISPLAY, &bytes[..most]);
            self.mux.sent(execution.stream, most);
            self.outputs.displays.drain(..most);
        }
        self.outputs.displays.is_empty()
    }

    /// Sends what is left of an execution that is over, as far as the host takes it, and then its RESULT.
    pub(crate) fn drain(&mut self, now_us: u64) -> Result<(), Fatal> {
        let Some(Phase::Draining(mut pending)) = self.execution.as_ref().map(|execution| execution.phase) else { return Ok(()) };
        for which in [0, 1] {
            while pending[which] > 0 {
                let Some(execution) = &self.execution else { return Ok(()) };
                if self.room(execution, which) == 0 {
                    break;
                }
                let bytes = self.forward(which, pending[which], now_us);
                // Nothing there after all: another reader took it.
                pending[which] = if bytes == 0 { 0 } else { pending[which] - bytes };
            }
        }
        if pending == [0, 0] && self.forward_displays() {
            return self.finish(now_us);
        }
        if let Some(execution) = &mut self.execution {
            execution.phase = Phase::Draining(pending);
        }
        Ok(())
    }

    /// Background output of the time before this execution goes first.
    pub(crate) fn send_held(&mut self) {
        let Some(execution) = &mut self.execution else { return };
        for (which, flags) in FLAGS.into_iter().enumerate() {
            let held = &mut self.outputs.held[which];
            if held.is_empty() {
                continue;
            }
            let bytes = held.make_contiguous();
            let most = bytes.len().min(execution.output_left[which] as usize);
            let newest = &bytes[bytes.len() - most..];
            self.channel.put(execution.stream, Kind::Data, flags, newest);
            self.mux.sent(execution.stream, most);
            execution.output_left[which] -= most as u64;
            held.clear();
            held.shrink_to(0);
        }
    }
}
