//! Server: the event loop. One thread; every wait is bounded, every buffer has a limit.
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde_json::Value;

use crate::channel::{Channel, BACKLOG_BYTES};
use crate::error::{Action, Fatal};
use crate::exec::{Body, Execution, Phase};
use crate::files::Files;
use crate::hygiene::ForkMarks;
use crate::limits;
use crate::memory::Watch;
use crate::mux::Mux;
use crate::network::Network;
use crate::output::Outputs;
use crate::process_turns::Part;
use crate::processes::Processes;
use crate::repl::{Repl, Reply, State};
use crate::stdin::Stdin;
use crate::wire::{Kind, PAYLOAD_BYTES};

/// How long output may gather before it is looked at: a short program wakes the agent once.
pub(crate) const COALESCE_US: u64 = 2_000;
/// The same between executions, when nobody waits for it.
const IDLE_COALESCE_US: u64 = 50_000;
/// How often a dying process is asked whether it is gone.
const DYING_POLL_US: u64 = 5_000;
/// So much of what the host sends is taken in one turn of the loop; the rest waits until others had theirs.
const TURN_BYTES: usize = 4 * PAYLOAD_BYTES;

/// The host, once it said HELLO.
pub(crate) struct Host {
    pub id: String,
    pub silence_us: u64,
    pub last_frame_us: u64,
}

pub struct Server {
    pub(crate) channel: Channel,
    pub(crate) children: OwnedFd,
    pub(crate) mux: Mux,
    pub(crate) repl: Repl,
    pub(crate) execution: Option<Execution>,
    pub(crate) body: Body,
    pub(crate) outputs: Outputs,
    /// Of the running execution, and of one that waits what has arrived already.
    pub(crate) stdin: Option<Stdin>,
    pub(crate) early_stdin: VecDeque<u8>,
    pub(crate) files: Files,
    pub(crate) watch: Watch,
    pub(crate) processes: Processes,
    pub(crate) network: Network,
    pub(crate) host: Option<Host>,
    /// HELLO's payload until it is sent.
    pub(crate) announcement: Option<Value>,
    /// COALESCE_US, or nothing where the kernel found no fine clock: its timers would turn 2 ms into 20.
    pub(crate) coalesce_us: u64,
    /// The process died between executions: the next RESULT says so.
    pub(crate) is_loss_unreported: bool,
    /// The next execution reseeds the language's generators.
    pub(crate) is_reseed_due: bool,
    /// Found by `quiesce`, cleared by the next HELLO.
    pub(crate) fork_marks: ForkMarks,
    /// The machine is being saved while the user's processes run: nothing is sent until the next HELLO.
    pub(crate) is_held: bool,
    /// /dev/urandom, from the first HELLO on.
    pub(crate) random: Option<OwnedFd>,
    pub(crate) last_execution_id: u32,
    pub(crate) failed_starts: u32,
    pub(crate) restart_at_us: Option<u64>,
}

/// What poll found.
#[derive(Default)]
struct Events {
    port: bool,
    children: bool,
    reply: bool,
    request: bool,
    stdin: bool,
    outputs: [bool; 2],
    processes: Vec<Part>,
}

impl Server {
    pub fn new(port: OwnedFd, children: OwnedFd, repl: Repl, announcement: Value) -> Self {
        Server {
            channel: Channel::new(port),
            children,
            mux: Mux::default(),
            repl,
            execution: None,
            body: Body::default(),
            outputs: Outputs::default(),
            stdin: None,
            early_stdin: VecDeque::new(),
            watch: Watch::default(),
            files: Files::default(),
            processes: Processes::default(),
            network: Network::default(),
            host: None,
            announcement: Some(announcement),
            coalesce_us: COALESCE_US,
            is_loss_unreported: false,
            is_reseed_due: false,
            fork_marks: ForkMarks::default(),
            is_held: false,
            random: None,
            last_execution_id: 0,
            failed_starts: 0,
            restart_at_us: None,
        }
    }

    /// Serves until the machine has to end, and returns why.
    pub fn run(mut self) -> Fatal {
        loop {
            if let Err(fatal) = self.turn() {
                return fatal;
            }
        }
    }

    fn turn(&mut self) -> Result<(), Fatal> {
        if self.is_held {
            return self.held_turn();
        }
        let now_us = now_us();
        self.on_time(now_us)?;
        if self.is_flush_due(now_us) {
            self.channel.flush()?;
        }
        let events = self.wait(now_us)?;
        let now_us = crate::server::now_us();
        if events.reply {
            self.on_reply(now_us)?;
        }
        if events.children {
            self.on_children(now_us)?;
        }
        if events.request && self.repl.send().is_err() {
            self.repl.kill(now_us);
        }
        if events.stdin {
            self.write_stdin();
        }
        let is_first = self.processes.goes_first();
        if is_first {
            self.on_process_events(&events.processes, now_us);
        }
        for which in [0, 1] {
            if events.outputs[which] {
                self.on_output(which, now_us)?;
            }
        }
        if !is_first {
            self.on_process_events(&events.processes, now_us);
        }
        if events.port {
            self.on_port(now_us)?;
        }
        if self.is_held {
            return Ok(());
        }
        // Room in the backlog or new credit may let display data and a drain go on.
        self.send_displays(now_us)?;
        self.settle_processes(now_us);
        self.drain(now_us)?;
        self.pump_files(now_us);
        Ok(())
    }

    /// Sends what was said before, then listens to the host alone: whatever else happens is looked at after its HELLO.
    fn held_turn(&mut self) -> Result<(), Fatal> {
        self.channel.flush()?;
        let mut events = PollFlags::IN;
        events.set(PollFlags::OUT, self.channel.is_blocked());
        match rustix::event::poll(&mut [PollFd::new(&self.channel.port, events)], None) {
            Ok(_) => self.on_port(now_us()),
            Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error).action("wait"),
        }
    }

    /// The acknowledgement of HELLO alone is no reason to wake the host while an execution may answer any moment.
    fn is_flush_due(&self, now_us: u64) -> bool {
        self.channel.is_urgent || self.execution.is_none() || now_us >= self.outputs.look_at_us
    }

    fn wait(&mut self, now_us: u64) -> Result<Events, Fatal> {
        let timeout = self.next_us(now_us).map(|at_us| {
            let left_us = at_us.saturating_sub(now_us) as i64;
            Timespec { tv_sec: left_us / 1_000_000, tv_nsec: left_us % 1_000_000 * 1_000 }
        });
        let mut fds = Vec::with_capacity(7);
        let mut port = if self.channel.backlog() < BACKLOG_BYTES { PollFlags::IN } else { PollFlags::empty() };
        port.set(PollFlags::OUT, self.channel.is_blocked());
        fds.push(PollFd::new(&self.channel.port, port));
        fds.push(PollFd::new(&self.children, PollFlags::IN));
        let is_alive = matches!(self.repl.state, State::Starting { .. } | State::Ready | State::Busy);
        // Display data that the host does not take yet holds up the rest.
        let is_listening = is_alive && self.outputs.displays.is_empty();
        if is_listening {
            fds.push(PollFd::new(&self.repl.wires.replies, PollFlags::IN));
        }
        let is_unsent = is_alive && self.repl.has_unsent();
        if is_unsent {
            fds.push(PollFd::new(&self.repl.wires.requests, PollFlags::OUT));
        }
        let stdin = self.stdin.as_ref().and_then(Stdin::writer);
        if let Some(writer) = stdin {
            fds.push(PollFd::new(writer, PollFlags::OUT));
        }
        let is_looking = now_us >= self.outputs.look_at_us;
        let watched = [0, 1].map(|which| is_looking && self.can_take_output(which));
        for which in [0, 1] {
            if watched[which] {
                fds.push(PollFd::from_borrowed_fd(self.repl.wires.output(which), PollFlags::IN));
            }
        }
        let parts = self.processes.watch(&mut fds, self.channel.backlog(), &self.mux, now_us);
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).action("wait"),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |is_watched: bool| is_watched && ready.next().unwrap_or(false);
        let mut events = Events {
            port: next(true),
            children: next(true),
            reply: next(is_listening),
            request: next(is_unsent),
            stdin: next(stdin.is_some()),
            ..Events::default()
        };
        events.outputs = watched.map(&mut next);
        events.processes = parts.into_iter().filter(|_| next(true)).collect();
        Ok(events)
    }

    /// The earliest time at which something is due without an event.
    fn next_us(&self, now_us: u64) -> Option<u64> {
        let execution = self.execution.as_ref().and_then(Execution::next_us);
        let silence = self.host.as_ref().filter(|host| host.silence_us > 0).map(|host| host.last_frame_us.saturating_add(host.silence_us));
        let repl = match self.repl.state {
            State::Starting { deadline_us } => Some(deadline_us),
            State::Dying { .. } => Some(now_us + DYING_POLL_US),
            _ => None,
        };
        let look = Some(self.outputs.look_at_us).filter(|at_us| *at_us > now_us);
        let files = self.files.next_us(self.channel.is_blocked(), now_us);
        let processes = self.processes.next_us(self.channel.backlog(), &self.mux, now_us);
        let knock = self.stdin.as_ref().and_then(Stdin::knock_us);
        let network = self.network.next_us();
        [execution, silence, repl, look, self.restart_at_us, files, processes, knock, network].into_iter().flatten().min()
    }

    fn on_time(&mut self, now_us: u64) -> Result<(), Fatal> {
        if self.host.as_ref().is_some_and(|host| host.silence_us > 0 && now_us >= host.last_frame_us.saturating_add(host.silence_us)) {
            return Err(Fatal::Silence);
        }
        if let Some(execution) = &mut self.execution {
            if execution.deadline_us.is_some_and(|at_us| now_us >= at_us) {
                execution.outcome.is_timed_out = true;
                execution.deadline_us = None;
                execution.kill_at_us = Some(now_us + limits::KILL_GRACE_MS * 1_000);
                self.repl.terminate();
            } else if execution.kill_at_us.is_some_and(|at_us| now_us >= at_us) {
                execution.kill_at_us = None;
                self.repl.kill(now_us);
            } else if execution.interrupt_at_us.is_some_and(|at_us| now_us >= at_us) {
                self.interrupt_again(now_us);
            } else if execution.watch_at_us.is_some_and(|at_us| now_us >= at_us) {
                execution.watch_at_us = Some(now_us + Watch::PAUSE_US);
                if self.watch.is_exhausted() {
                    crate::cgroup::kill_largest();
                }
            }
        }
        if let Some(stdin) = &mut self.stdin {
            stdin.knock(now_us);
        }
        if matches!(self.repl.state, State::Starting { deadline_us } if now_us >= deadline_us) {
            self.failed_starts += 1;
            self.repl.kill(now_us);
        }
        if matches!(self.repl.state, State::Dying { .. }) {
            self.on_children(now_us)?;
        }
        self.on_process_time(now_us);
        self.network.on_time(now_us);
        if self.restart_at_us.is_some_and(|at_us| now_us >= at_us) {
            self.restart_at_us = None;
            self.repl.restart(now_us)?;
        }
        Ok(())
    }

    fn on_reply(&mut self, now_us: u64) -> Result<(), Fatal> {
        match self.repl.receive() {
            Some(reply) => self.on_message(reply, now_us),
            None => Ok(()),
        }
    }

    /// Display data goes out as far as the host takes it; only then what the REPL said after it is looked at.
    fn send_displays(&mut self, now_us: u64) -> Result<(), Fatal> {
        while !self.outputs.displays.is_empty() && self.forward_displays() {
            if let Some(reply) = self.repl.next_reply() {
                self.on_message(reply, now_us)?;
            }
        }
        Ok(())
    }

    fn on_message(&mut self, reply: Reply, now_us: u64) -> Result<(), Fatal> {
        match reply {
            Reply::Ready => self.on_ready(now_us),
            Reply::HasStdin => {
                if let Some(stdin) = &mut self.stdin {
                    stdin.opened();
                }
                Ok(())
            }
            Reply::Display(bytes) => {
                self.outputs.displays.extend(bytes);
                Ok(())
            }
            Reply::Done { exit_code, value } => {
                let pending = self.outputs.pending(&self.repl);
                let Some(execution) = self.execution.as_mut().filter(|execution| execution.is_running()) else { return Ok(()) };
                execution.outcome.value = value;
                execution.end(now_us, exit_code, pending);
                if execution.outcome.is_timed_out {
                    execution.outcome.is_reset = true;
                    self.repl.kill(now_us);
                }
                self.drain(now_us)
            }
            Reply::Violation(what) => {
                // An exiting process closes its end before it can be waited for: its status stays what it was.
                self.log(&format!("the language's process is replaced: {what}"));
                self.is_loss_unreported |= self.repl.state == State::Ready;
                let is_starting = matches!(self.repl.state, State::Starting { .. });
                self.repl.kill(now_us);
                // One that ends before it is ready closes its channel first.
                if is_starting {
                    self.on_failed_start(self.repl.status)?;
                }
                Ok(())
            }
        }
    }

    fn on_ready(&mut self, now_us: u64) -> Result<(), Fatal> {
        self.failed_starts = 0;
        if let Some(announcement) = self.announcement.take() {
            self.channel.put_json(0, Kind::Hello, &announcement);
        }
        match &self.execution {
            Some(execution) if execution.phase == Phase::Waiting => self.begin(now_us),
            _ => Ok(()),
        }
    }

    fn on_port(&mut self, now_us: u64) -> Result<(), Fatal> {
        if self.channel.is_blocked() {
            self.channel.flush()?;
        }
        let mut received = 0;
        // Frames are judged in place; the buffer is out of `self` meanwhile.
        while received < TURN_BYTES && self.channel.backlog() < BACKLOG_BYTES && self.channel.fill()? {
            let mut input = std::mem::take(&mut self.channel.input);
            let mut taken = 0;
            while let Some((frame, bytes)) =
                crate::wire::parse(&input[taken..]).map_err(|error| Fatal::Protocol(error.as_str().to_owned()))?
            {
                self.on_frame(&frame, now_us)?;
                taken += bytes;
            }
            input.drain(..taken);
            received += taken;
            if !self.files.is_idle() {
                // The host waits for credit.
                self.channel.flush()?;
            }
            let is_cut = !input.is_empty();
            self.channel.input = input;
            let is_body_cut = self.execution.as_ref().is_some_and(|execution| execution.phase == Phase::Body);
            if !is_cut && !is_body_cut && !self.channel.is_more_likely {
                break;
            }
        }
        Ok(())
    }

    /// Ends an execution whose output has left.
    pub(crate) fn finish(&mut self, now_us: u64) -> Result<(), Fatal> {
        let Some(execution) = self.execution.take() else { return Ok(()) };
        self.channel.put_result(execution.stream, &execution.outcome);
        self.mux.close(execution.stream);
        self.body.release();
        self.release_input();
        self.outputs.look_at_us = now_us;
        if self.repl.state == State::Gone && self.restart_at_us.is_none() {
            self.channel.flush()?;
            self.restart(now_us)?;
        }
        Ok(())
    }

    /// Between executions output is looked at rarely, in one it is gathered shortly.
    pub(crate) fn look_later(&mut self, now_us: u64) {
        self.outputs.look_at_us = now_us + if self.execution.is_some() { self.coalesce_us } else { IDLE_COALESCE_US };
    }

    pub(crate) fn log(&mut self, what: &str) {
        self.outputs.log(what);
    }
}

pub fn now_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
