//! Process: one program beside the REPL, from its start until its end has been told.
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::Pid;
use serde_json::{json, Value};

use crate::cgroup::Group;
use crate::error::Refusal;
use crate::limits::BACKGROUND_OUTPUT_BYTES;
use crate::link::{room, Link};
use crate::mux::Mux;
use crate::process_input::Input;
use crate::pty::{self, Size};
use crate::spawn::{self, Child, Pending};
use crate::sys::{self, StartFailure};
use crate::wire::{data, PAYLOAD_BYTES};

const FLAGS: [u8; 2] = [data::STDOUT, data::STDERR];
/// Until output that nobody waits for is looked at again; less when there was much of it.
const UNATTENDED_US: u64 = 50_000;
const UNATTENDED_FULL_US: u64 = 2_000;
/// A terminal hands out at most 4 KiB at once: a read of this much is likely followed by another.
const TERMINAL_FULL_BYTES: usize = 1_024;
/// More than a terminal holds.
const TERMINAL_BYTES: usize = 131_072;
/// How long its descendants may take to vanish after SIGKILL.
const DEATH_US: u64 = 2_000_000;

pub enum State {
    /// Between fork and exec.
    Starting(OwnedFd),
    Running,
    /// It has ended; what it left running is being killed.
    Dying {
        status: i32,
        deadline_us: u64,
    },
    /// This much of its output is left in the pipes.
    Draining {
        status: i32,
        pending: [usize; 2],
    },
    Ended(i32),
}

/// A pipe's or terminal's other end.
pub struct Output {
    pub fd: OwnedFd,
    /// It is left alone until then.
    pub look_at_us: u64,
}

pub struct Process {
    pub id: u32,
    pub pid: Pid,
    argv: Vec<String>,
    pub is_background: bool,
    has_terminal: bool,
    terminal: Option<OwnedFd>,
    group: Option<Group>,
    pub state: State,
    /// Who is told.
    pub stream: Option<u32>,
    /// The host may send input on that stream.
    pub takes_input: bool,
    pub input: Option<Input>,
    pub outputs: [Option<Output>; 2],
    /// The last of what nobody has taken.
    held: [VecDeque<u8>; 2],
    /// SIGKILL is sent then.
    pub kill_at_us: Option<u64>,
}

/// What became of a process when its output was looked after.
#[derive(Debug, PartialEq, Eq)]
pub enum Settled {
    /// More is to come.
    Not,
    /// It has ended, and nobody was there to be told.
    Unattended,
    /// It has ended, and the host has been told all.
    Told,
}

impl Process {
    pub fn new(id: u32, argv: Vec<String>, child: Child, pending: Pending, group: Option<Group>) -> Self {
        let Pending { stream, request, stdin, .. } = pending;
        let has_terminal = child.terminal.is_some();
        Process {
            id,
            pid: child.pid,
            argv,
            is_background: request.is_background,
            has_terminal,
            terminal: child.terminal,
            group,
            state: State::Starting(child.report),
            stream: Some(stream),
            takes_input: request.has_stdin,
            input: child.input.map(|writer| Input::new(writer, has_terminal, stdin, !request.has_stdin)),
            outputs: child.outputs.map(|fd| fd.map(|fd| Output { fd, look_at_us: 0 })),
            held: Default::default(),
            kill_at_us: None,
        }
    }

    /// As `process_list` has it; not before it runs.
    pub fn to_json(&self) -> Option<Value> {
        let exit_code = match self.state {
            State::Starting(_) => return None,
            State::Running => None,
            State::Dying { status, .. } | State::Draining { status, .. } | State::Ended(status) => Some(status),
        };
        Some(json!({
            "id": self.id, "pid": self.pid.as_raw_nonzero().get(), "argv": self.argv, "background": self.is_background,
            "attached": self.stream.is_some(), "pty": self.has_terminal, "exitCode": exit_code,
        }))
    }

    /// The program itself has not ended.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, State::Starting(_) | State::Running)
    }

    pub fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting(_))
    }

    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    /// Tells it the size of its terminal. False when it has none.
    pub fn resize(&self, size: Size) -> bool {
        if let Some(terminal) = &self.terminal {
            // One that has been hung up has no size any more.
            let _ = pty::resize(terminal, size);
        }
        self.has_terminal
    }

    /// Somebody waits for it from now on.
    pub fn take_up(&mut self, stream: u32, takes_input: bool) {
        (self.stream, self.takes_input) = (Some(stream), takes_input);
        self.look_now();
    }

    /// Nobody waits for it from now on.
    pub fn let_go(&mut self) {
        (self.stream, self.takes_input) = (None, false);
        self.look_now();
    }

    fn look_now(&mut self) {
        for output in self.outputs.iter_mut().flatten() {
            output.look_at_us = 0;
        }
    }

    /// Gives up its descriptors when it has ended. Returns the outputs that its descendants may still write to.
    pub fn close(&mut self) -> impl Iterator<Item = OwnedFd> {
        let outputs = std::mem::take(&mut self.outputs);
        let is_left = self.is_background && !self.has_terminal && !self.is_group_empty();
        self.terminal = None;
        self.group = None;
        outputs.into_iter().flatten().filter(move |_| is_left).map(|output| output.fd)
    }

    /// Reads what became of the start. An error: there is no such program, and the process is over.
    pub fn check_start(&mut self, link: &mut Link) -> Result<(), Refusal> {
        let State::Starting(report) = &self.state else { return Ok(()) };
        let mut bytes = [0; StartFailure::BYTES];
        match rustix::io::read(report, &mut bytes) {
            Ok(StartFailure::BYTES) => Err(spawn::refusal(StartFailure::from_bytes(bytes))),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            _ => {
                self.state = State::Running;
                self.announce(link);
                Ok(())
            }
        }
    }

    /// Tells that it runs, before anything else is told.
    pub fn announce(&self, link: &mut Link) {
        let Some(stream) = self.stream.filter(|_| !matches!(self.state, State::Starting(_))) else { return };
        let event = json!({ "id": self.id, "pid": self.pid.as_raw_nonzero().get() });
        link.put(stream, data::EVENT, event.to_string().as_bytes());
    }

    /// To its process group. A child that is not yet in a group of its own gets it alone.
    pub fn signal(&self, signal: i32) {
        if self.is_alive() && sys::signal_group(self.pid, signal).is_err() {
            if let Some(signal) = rustix::process::Signal::from_named_raw(signal) {
                let _ = rustix::process::kill_process(self.pid, signal);
            }
        }
    }

    /// SIGKILL to it and all its descendants.
    pub fn kill(&self) {
        if !self.group.as_ref().is_some_and(Group::kill) {
            let _ = sys::signal_group(self.pid, libc::SIGKILL);
        }
        self.signal(libc::SIGKILL);
    }

    /// SIGTERM now, SIGKILL after the grace. A terminal is hung up besides: interactive shells ignore SIGTERM. The kernel does so when our
    /// side is closed; a SIGHUP alone would not wake a bash that is about to read.
    pub fn stop(&mut self, now_us: u64, grace_ms: u64) {
        let kill_at_us = now_us + grace_ms * 1_000;
        self.kill_at_us = Some(self.kill_at_us.map_or(kill_at_us, |earlier_us| earlier_us.min(kill_at_us)));
        self.signal(libc::SIGTERM);
        if self.has_terminal {
            self.outputs = [None, None];
            self.input = None;
        }
        self.signal(libc::SIGCONT);
    }

    /// The child of that number has ended.
    pub fn reaped(&mut self, status: i32, now_us: u64) {
        self.kill_at_us = None;
        self.input = None;
        self.state = State::Dying { status, deadline_us: now_us + DEATH_US };
        match &self.group {
            _ if self.is_background => {}
            Some(group) if group.is_empty() => {}
            Some(group) if group.kill() => {}
            _ => drop(sys::signal_group(self.pid, libc::SIGKILL)),
        }
        self.check_gone(now_us);
    }

    /// Nothing of it is left, or it may stay: what is in the pipes now is the rest of its output.
    pub fn check_gone(&mut self, now_us: u64) {
        let State::Dying { status, deadline_us } = self.state else { return };
        if self.is_background || now_us >= deadline_us || self.is_group_empty() {
            let pending = [0, 1].map(|which| match &self.outputs[which] {
                Some(_) if self.has_terminal => TERMINAL_BYTES,
                Some(output) => rustix::io::ioctl_fionread(&output.fd).unwrap_or(0) as usize,
                None => 0,
            });
            self.state = State::Draining { status, pending };
        }
    }

    fn is_group_empty(&self) -> bool {
        self.group.as_ref().is_none_or(Group::is_empty)
    }

    /// Something waits that needs no event to be sent.
    pub fn has_unsent(&self, backlog: usize, mux: &Mux) -> bool {
        let is_waiting = self.held.iter().any(|held| !held.is_empty()) || matches!(self.state, State::Draining { .. });
        is_waiting && self.stream.is_some_and(|stream| room(backlog, mux, stream) > 0)
    }

    /// Whether output of this kind would find a place.
    pub fn can_take_output(&self, which: usize, backlog: usize, mux: &Mux) -> bool {
        let is_open = self.outputs[which].is_some() && matches!(self.state, State::Running | State::Dying { .. });
        is_open && self.stream.is_none_or(|stream| self.held[which].is_empty() && room(backlog, mux, stream) > 0)
    }

    /// An output has something.
    pub fn on_output(&mut self, which: usize, link: &mut Link, now_us: u64, coalesce_us: u64) {
        let Some(bytes) = self.move_output(which, PAYLOAD_BYTES, link) else { return };
        let is_full = bytes >= if self.has_terminal { TERMINAL_FULL_BYTES } else { PAYLOAD_BYTES };
        let pause_us = match (self.stream.is_some(), is_full) {
            (true, true) => 0,
            (true, false) => coalesce_us,
            (false, true) => UNATTENDED_FULL_US,
            (false, false) => UNATTENDED_US,
        };
        if let Some(output) = &mut self.outputs[which] {
            output.look_at_us = now_us + pause_us;
        }
    }

    /// Moves up to `most` bytes to the host, or to what is held. Returns how many; None: the host takes nothing now.
    fn move_output(&mut self, which: usize, most: usize, link: &mut Link) -> Option<usize> {
        let Some(output) = &self.outputs[which] else { return Some(0) };
        let moved = match self.stream {
            Some(stream) => {
                let most = most.min(link.room(stream));
                if most == 0 || !self.held[which].is_empty() {
                    return None;
                }
                let moved = link.channel.try_put_data_from(output.fd.as_fd(), stream, FLAGS[which], most);
                link.mux.sent(stream, moved.unwrap_or(0));
                moved
            }
            None => hold(&mut self.held[which], output, most),
        };
        match moved {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A terminal's end is an error.
            Ok(0) | Err(_) => self.outputs[which] = None,
            Ok(_) => {}
        }
        Some(moved.unwrap_or(0))
    }

    /// Sends what is held and what is left, as far as the host takes it, and in the end the RESULT.
    pub fn settle(&mut self, link: &mut Link) -> Settled {
        self.send_held(link);
        if let State::Draining { status, mut pending } = self.state {
            for (which, left) in pending.iter_mut().enumerate() {
                while *left > 0 {
                    match self.move_output(which, *left, link) {
                        // Nothing there after all: another reader took it.
                        Some(0) => *left = 0,
                        Some(bytes) => *left -= bytes.min(*left),
                        None => break,
                    }
                }
            }
            self.state = if pending == [0, 0] { State::Ended(status) } else { State::Draining { status, pending } };
        }
        match (&self.state, self.stream) {
            (State::Ended(status), Some(stream)) if self.held.iter().all(VecDeque::is_empty) => {
                link.answer(stream, Ok(json!({ "exitCode": status })));
                Settled::Told
            }
            (State::Ended(_), None) => Settled::Unattended,
            _ => Settled::Not,
        }
    }

    fn send_held(&mut self, link: &mut Link) {
        let Some(stream) = self.stream.filter(|_| !matches!(self.state, State::Starting(_))) else { return };
        for (held, flags) in self.held.iter_mut().zip(FLAGS) {
            while !held.is_empty() {
                let most = held.len().min(link.room(stream));
                if most == 0 {
                    break;
                }
                link.put(stream, flags, &held.make_contiguous()[..most]);
                held.drain(..most);
            }
            if held.is_empty() {
                held.shrink_to(0);
            }
        }
    }

    /// Whoever waited for its output does so no more, and it has ended.
    pub fn drop_rest(&mut self) {
        if let State::Draining { status, .. } = self.state {
            self.state = State::Ended(status);
        }
        self.held = Default::default();
    }

    /// Feeds it what it takes, and lets the host send as much again.
    pub fn write_input(&mut self, link: &mut Link) {
        let Some(input) = &mut self.input else { return };
        while let Some(bytes) = input.write() {
            if let Some(stream) = self.stream {
                link.grant(stream, bytes);
            }
        }
    }
}

/// Reads into what is held; the oldest bytes go first.
fn hold(held: &mut VecDeque<u8>, output: &Output, most: usize) -> Result<usize, Errno> {
    let mut bytes = Vec::new();
    let read = sys::read_append(&output.fd, &mut bytes, most.min(PAYLOAD_BYTES))?;
    let excess = (held.len() + read).saturating_sub(BACKGROUND_OUTPUT_BYTES);
    held.drain(..excess.min(held.len()));
    held.extend(bytes);
    Ok(read)
}
