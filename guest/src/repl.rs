//! REPL: the language's process. Starts it confined, speaks its protocol, ends it with everything it started.
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};

use crate::cgroup::Group;
use crate::error::{Action, Fatal};
use crate::exec::Body;
use crate::limits::{DISPLAY_BYTES, DISPLAY_ITEM_BYTES, REPL_START_MS, VALUE_BYTES};
use crate::shell;
use crate::sys::{self, Confinement};

/// Values of `sbx.language`.
#[cfg(test)]
pub const LANGUAGES: [&str; 3] = ["python", "javascript", "raw"];

/// Where the scripts lie in the guest.
pub const DIRECTORY: &str = "/run/sbx";
const MESSAGE_BYTES: usize = 16;
const NO_VALUE: u32 = u32::MAX;
/// A longer value is a violation; one beyond VALUE_BYTES is cut.
const VALUE_MAX_BYTES: usize = 1 << 20;
/// How long leftover processes may take to vanish after SIGKILL.
const DEATH_US: u64 = 2_000_000;

/// How to start a language's process.
pub struct Program {
    pub path: CString,
    pub args: Vec<CString>,
    /// Bash cannot read a socket with lengths: it gets text over FIFOs (module `shell`).
    pub is_shell: bool,
    /// SIGINT that comes before the user's code is lost: how often it is sent again.
    pub interrupt_repeats: usize,
    pub directory: CString,
    pub env: Vec<CString>,
}

/// The descriptors of one process.
pub struct Wires {
    /// Requests to the REPL, and replies from it: the same socket but for the shell.
    pub requests: OwnedFd,
    pub replies: OwnedFd,
    /// Read ends of stdout and stderr.
    pub outputs: [OwnedFd; 2],
    /// Write ends that stay open here, so that a pipe never reports an end whatever the program closes.
    _write_ends: [OwnedFd; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Starting {
        deadline_us: u64,
    },
    Ready,
    Busy,
    /// SIGKILL is sent; waiting until nothing is left.
    Dying {
        deadline_us: u64,
    },
    /// Nothing is left but what is in the pipes.
    Gone,
}

/// What the REPL said.
#[derive(Debug, PartialEq)]
pub enum Reply {
    Ready,
    /// It has opened the FIFO.
    HasStdin,
    /// Part of the display data, lengths included, as it goes to the host.
    Display(Vec<u8>),
    Done {
        exit_code: i32,
        value: Option<String>,
    },
    Violation(&'static str),
}

/// Kinds of the REPL's messages.
const DONE: u32 = 0;
const DISPLAY: u32 = 1;
const HAS_STDIN: u32 = 2;

pub struct Repl {
    program: Program,
    confinement: Option<Confinement>,
    cgroup: Option<Group>,
    pub wires: Wires,
    pub state: State,
    pid: Option<Pid>,
    /// `n` or `128+N` of the last process.
    pub status: i32,
    id: u32,
    /// Of the execution before: bash keeps it nowhere.
    last_exit_code: i32,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    sent: usize,
    /// What is still to come of an item of display data, and how much this execution may still show.
    display_left: usize,
    display_room: usize,
}

impl Repl {
    pub fn start(program: Program, confinement: Option<Confinement>, cgroup: Option<Group>, now_us: u64) -> Result<Self, Fatal> {
        let (wires, pid) = launch(&program, confinement.as_ref(), cgroup.as_ref())?;
        let state = State::Starting { deadline_us: now_us + REPL_START_MS * 1_000 };
        let (inbox, outbox) = (Vec::with_capacity(256), Vec::new());
        Ok(Repl {
            program,
            confinement,
            cgroup,
            wires,
            state,
            pid: Some(pid),
            status: 0,
            id: 0,
            last_exit_code: 0,
            inbox,
            outbox,
            sent: 0,
            display_left: 0,
            display_room: 0,
        })
    }

    /// Starts a new process in place of one that is gone.
    pub fn restart(&mut self, now_us: u64) -> Result<(), Fatal> {
        make_enterable(&self.program.directory);
        let (wires, pid) = launch(&self.program, self.confinement.as_ref(), self.cgroup.as_ref())?;
        self.wires = wires;
        self.pid = Some(pid);
        self.state = State::Starting { deadline_us: now_us + REPL_START_MS * 1_000 };
        self.last_exit_code = 0;
        self.inbox.clear();
        self.outbox = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// Hands over an execution.
    pub fn execute(&mut self, id: u32, seed: Option<&[u8; 32]>, body: &mut Body) -> Result<(), Errno> {
        self.id = id;
        self.state = State::Busy;
        self.display_left = 0;
        self.display_room = DISPLAY_BYTES;
        if self.program.is_shell {
            // It replies without an id, for which it would need a variable.
            self.id = 0;
            let line = shell::request(DIRECTORY, self.last_exit_code, seed, body)?;
            self.outbox.extend_from_slice(&line);
            return self.send();
        }
        let request = body.request(id, seed);
        // Nearly always it fits the socket's buffer and nothing is copied.
        let written = write(&self.wires.requests, request)?;
        if written < request.len() {
            self.outbox.extend_from_slice(&request[written..]);
        }
        Ok(())
    }

    /// Part of a request waits for room.
    pub fn has_unsent(&self) -> bool {
        self.sent < self.outbox.len()
    }

    pub fn send(&mut self) -> Result<(), Errno> {
        self.sent += write(&self.wires.requests, &self.outbox[self.sent..])?;
        if !self.has_unsent() {
            self.outbox.clear();
            self.outbox.shrink_to(4_096);
            self.sent = 0;
        }
        Ok(())
    }

    /// Reads what the REPL says; `next_reply` has it then.
    pub fn receive(&mut self) -> Option<Reply> {
        let room = if self.inbox.is_empty() && self.display_left == 0 { 64 } else { 65_536 };
        self.inbox.reserve(room);
        match rustix::io::read(&self.wires.replies, rustix::buffer::spare_capacity(&mut self.inbox)) {
            Ok(0) => Some(Reply::Violation("it closed its control channel")),
            Ok(_) => self.next_reply(),
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(_) => Some(Reply::Violation("its control channel failed")),
        }
    }

    /// The next message in what was read, if it is complete.
    pub fn next_reply(&mut self) -> Option<Reply> {
        match self.state {
            _ if self.inbox.is_empty() => None,
            State::Starting { .. } if self.inbox == b"R" => {
                self.inbox.clear();
                self.state = State::Ready;
                Some(Reply::Ready)
            }
            State::Busy if self.display_left > 0 => Some(self.take_display(Vec::new())),
            State::Busy => self.next_message(),
            _ => Some(Reply::Violation("it spoke out of turn")),
        }
    }

    fn next_message(&mut self) -> Option<Reply> {
        if let Some(exit_code) = shell::exit_code(&self.inbox).filter(|_| self.program.is_shell) {
            self.last_exit_code = exit_code;
            self.inbox.clear();
            self.state = State::Ready;
            return Some(Reply::Done { exit_code, value: None });
        }
        let message = match parse_message(&self.inbox, self.id)? {
            Ok(message) => message,
            Err(what) => return Some(Reply::Violation(what)),
        };
        match message {
            Message::Display(bytes) => {
                if bytes > self.display_room {
                    return Some(Reply::Violation("it showed more than is allowed"));
                }
                self.display_room -= bytes;
                self.display_left = bytes;
                self.inbox.drain(..MESSAGE_BYTES);
                Some(self.take_display((bytes as u32).to_le_bytes().to_vec()))
            }
            Message::HasStdin => {
                self.inbox.drain(..MESSAGE_BYTES);
                Some(Reply::HasStdin)
            }
            Message::Done { exit_code, value } => {
                self.inbox.clear();
                self.inbox.shrink_to(256);
                self.state = State::Ready;
                Some(Reply::Done { exit_code, value })
            }
        }
    }

    /// Appends what is there of an item of display data to `chunk`.
    fn take_display(&mut self, mut chunk: Vec<u8>) -> Reply {
        let bytes = self.inbox.len().min(self.display_left);
        self.display_left -= bytes;
        chunk.extend(self.inbox.drain(..bytes));
        Reply::Display(chunk)
    }

    /// What the user's programs may not do.
    pub fn confinement(&self) -> Option<&Confinement> {
        self.confinement.as_ref()
    }

    /// SIGINT as a terminal would send it: to the session's process group. False while the process has not read its request: the signal may be
    /// lost. A shell is not even sent it then, nor before we read what it has said: it may be one that replaces itself, or that has just
    /// replaced the one before, and would die of it.
    pub fn interrupt(&self) -> bool {
        let is_unread = |fifo| rustix::io::ioctl_fionread(fifo).is_ok_and(|bytes| bytes > 0);
        if self.program.is_shell && (is_unread(&self.wires.requests) || is_unread(&self.wires.replies)) {
            return false;
        }
        if let Some(pid) = self.pid {
            let _ = rustix::process::kill_process_group(pid, Signal::INT);
        }
        self.program.is_shell || !(self.has_unsent() || sys::is_unread_by_peer(self.wires.requests.as_fd()))
    }

    /// How often SIGINT is sent again to a process that may not have come to the user's code.
    pub fn interrupt_repeats(&self) -> usize {
        self.program.interrupt_repeats
    }

    /// SIGTERM to everything, stopped or not.
    pub fn terminate(&self) {
        for signal in [Signal::TERM, Signal::CONT] {
            self.signal_all(signal);
        }
    }

    fn signal_all(&self, signal: Signal) {
        match &self.cgroup {
            Some(cgroup) => {
                for pid in cgroup.pids() {
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
            None => self.pid.into_iter().for_each(|pid| {
                let _ = rustix::process::kill_process_group(pid, signal);
            }),
        }
    }

    /// SIGKILL to everything; `state` becomes Gone when it is over.
    pub fn kill(&mut self, now_us: u64) {
        if !matches!(self.state, State::Dying { .. } | State::Gone) {
            self.state = State::Dying { deadline_us: now_us + DEATH_US };
        }
        if !self.cgroup.as_ref().is_some_and(Group::kill) {
            self.signal_all(Signal::KILL);
        }
    }

    /// A child of ours ended. True when it was the REPL.
    pub fn reaped(&mut self, pid: Pid, status: i32, now_us: u64) -> bool {
        if self.pid != Some(pid) {
            return false;
        }
        self.pid = None;
        self.status = status;
        self.kill(now_us);
        true
    }

    /// Whether a dying REPL is gone by now.
    pub fn check_gone(&mut self, now_us: u64) -> bool {
        let State::Dying { deadline_us } = self.state else { return false };
        let is_empty = self.cgroup.as_ref().is_none_or(Group::is_empty);
        if self.pid.is_some() || (!is_empty && now_us < deadline_us) {
            return false;
        }
        self.state = State::Gone;
        true
    }
}

/// Gives the owner back what the process needs of its home, should the code before have taken it away.
fn make_enterable(directory: &CStr) {
    let Ok(stat) = fs::stat(directory) else { return };
    let mode = Mode::from_raw_mode(stat.st_mode);
    if !mode.contains(Mode::RWXU) {
        let _ = fs::chmod(directory, mode | Mode::RWXU);
    }
}

/// What one message says.
#[derive(Debug, PartialEq)]
enum Message {
    HasStdin,
    /// So many bytes follow.
    Display(usize),
    Done {
        exit_code: i32,
        value: Option<String>,
    },
}

/// A message, a reply only once it is complete.
fn parse_message(bytes: &[u8], id: u32) -> Option<Result<Message, &'static str>> {
    let field = |at: usize| bytes.get(at..at + 4).map(|field| u32::from_le_bytes([field[0], field[1], field[2], field[3]]));
    if field(0)? != id {
        return Some(Err("it replied to another execution"));
    }
    let (kind, exit_code, size) = (field(4)?, field(8)? as i32, field(12)?);
    let rest = &bytes[MESSAGE_BYTES..];
    match kind {
        DISPLAY if exit_code == 0 && (1..=DISPLAY_ITEM_BYTES as u32).contains(&size) => Some(Ok(Message::Display(size as usize))),
        HAS_STDIN if exit_code == 0 && size == 0 => Some(Ok(Message::HasStdin)),
        DONE if (0..=255).contains(&exit_code) => parse_value(rest, size).map(|value| Ok(Message::Done { exit_code, value: value? })),
        DONE => Some(Err("it replied with an impossible exit code")),
        _ => Some(Err("it sent an impossible message")),
    }
}

/// The value once it is complete; nothing may follow it.
fn parse_value(bytes: &[u8], size: u32) -> Option<Result<Option<String>, &'static str>> {
    if size == NO_VALUE {
        return Some(if bytes.is_empty() { Ok(None) } else { Err("its reply was too long") });
    }
    let wanted = size as usize;
    if wanted > VALUE_MAX_BYTES || bytes.len() > wanted {
        return Some(Err("its reply was too long"));
    }
    if bytes.len() < wanted {
        return None;
    }
    Some(Ok(Some(String::from_utf8_lossy(&bytes[..wanted.min(VALUE_BYTES)]).into_owned())))
}

fn launch(program: &Program, confinement: Option<&Confinement>, cgroup: Option<&Group>) -> Result<(Wires, Pid), Fatal> {
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let null = fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).action("open /dev/null")?;
    let procs = cgroup.map(Group::entrance).transpose().action("open the control group")?;
    let (requests, replies, theirs) = if program.is_shell {
        let (requests, replies) = shell::make_fifos(DIRECTORY).action("make the shell's FIFOs")?;
        (requests, replies, None)
    } else {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).action("make a socketpair")?;
        rustix::io::ioctl_fionbio(&ours, true).action("make a socketpair")?;
        (ours.try_clone().map_err(|_| Errno::MFILE).action("make a socketpair")?, ours, Some(theirs))
    };
    let pid = sys::spawn(&sys::Spawn {
        programs: std::slice::from_ref(&program.path),
        args: &program.args,
        env: &program.env,
        directory: &program.directory,
        stdin: null.as_fd(),
        stdout: stdout_end.as_fd(),
        stderr: stderr_end.as_fd(),
        control: theirs.as_ref().map(|fd| fd.as_fd()),
        has_terminal: false,
        report: None,
        cgroup: procs.as_ref().map(|fd| fd.as_fd()),
        confinement,
    })
    .action("start the language's process")?;
    Ok((Wires { requests, replies, outputs: [stdout, stderr], _write_ends: [stdout_end, stderr_end] }, pid))
}

/// Only our end is non-blocking: programs expect their stdout to wait.
fn pipe() -> Result<(OwnedFd, OwnedFd), Fatal> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).action("make a pipe")?;
    rustix::io::ioctl_fionbio(&read, true).action("make a pipe")?;
    Ok((read, write))
}

/// Writes what fits.
fn write(fd: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    match rustix::io::write(fd, bytes) {
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        result => result,
    }
}

/// A child that has ended, with its status as a shell would say it.
pub fn next_ended_child() -> Option<(Pid, i32)> {
    let (pid, status) = rustix::process::wait(rustix::process::WaitOptions::NOHANG).ok()??;
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    Some((pid, code.unwrap_or(-1)))
}

/// Descriptors for poll.
impl Wires {
    pub fn output(&self, which: usize) -> BorrowedFd<'_> {
        self.outputs[which].as_fd()
    }
}

#[cfg(test)]
#[path = "repl_tests.rs"]
mod tests;
