//! Server: the event loop. One thread; every wait is bounded, every buffer has a limit.
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde_json::{json, Value};

use crate::channel::{Channel, BACKLOG_BYTES};
use crate::error::{Action, Code, Fatal, Refusal};
use crate::exec::{Body, Execution, Phase, Request};
use crate::limits;
use crate::mux::{Mux, Verdict};
use crate::output::Outputs;
use crate::repl::{next_ended_child, Repl, Reply, State};
use crate::sys;
use crate::wire::{data, Frame, Kind};

/// How long output may gather before it is looked at: a short program wakes the agent once.
pub const COALESCE_US: u64 = 2_000;
/// The same between executions, when nobody waits for it.
const IDLE_COALESCE_US: u64 = 50_000;
/// How often a dying process is asked whether it is gone.
const DYING_POLL_US: u64 = 5_000;
/// Between failed starts of the language's process.
const RESTART_DELAY_US: u64 = 1_000_000;
const MAX_CANCEL_GRACE_MS: u64 = 60_000;
const MAX_ID_BYTES: usize = 128;

/// The host, once it said HELLO.
struct Host {
    id: String,
    silence_us: u64,
    last_frame_us: u64,
}

pub struct Server {
    pub(crate) channel: Channel,
    children: OwnedFd,
    pub(crate) mux: Mux,
    pub(crate) repl: Repl,
    pub(crate) execution: Option<Execution>,
    body: Body,
    pub(crate) outputs: Outputs,
    host: Option<Host>,
    /// HELLO's payload until it is sent.
    announcement: Option<Value>,
    /// The next execution reseeds the language's generators.
    is_reseed_due: bool,
    last_execution_id: u32,
    failed_starts: u32,
    restart_at_us: Option<u64>,
}

/// What poll found.
#[derive(Default)]
struct Events {
    port: bool,
    children: bool,
    reply: bool,
    request: bool,
    outputs: [bool; 2],
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
            host: None,
            announcement: Some(announcement),
            is_reseed_due: false,
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
        for which in [0, 1] {
            if events.outputs[which] {
                self.on_output(which, now_us)?;
            }
        }
        if events.port {
            self.on_port(now_us)?;
        }
        // Room in the backlog or new credit may let a drain go on.
        self.drain(now_us)
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
        let mut fds = Vec::with_capacity(6);
        let mut port = if self.channel.backlog() < BACKLOG_BYTES { PollFlags::IN } else { PollFlags::empty() };
        port.set(PollFlags::OUT, self.channel.is_blocked());
        fds.push(PollFd::new(&self.channel.port, port));
        fds.push(PollFd::new(&self.children, PollFlags::IN));
        let is_alive = matches!(self.repl.state, State::Starting { .. } | State::Ready | State::Busy);
        if is_alive {
            fds.push(PollFd::new(&self.repl.wires.replies, PollFlags::IN));
        }
        let is_unsent = is_alive && self.repl.has_unsent();
        if is_unsent {
            fds.push(PollFd::new(&self.repl.wires.requests, PollFlags::OUT));
        }
        let is_looking = now_us >= self.outputs.look_at_us;
        let watched = [0, 1].map(|which| is_looking && self.can_take_output(which));
        for which in [0, 1] {
            if watched[which] {
                fds.push(PollFd::from_borrowed_fd(self.repl.wires.output(which), PollFlags::IN));
            }
        }
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).action("wait"),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |is_watched: bool| is_watched && ready.next().unwrap_or(false);
        let mut events =
            Events { port: next(true), children: next(true), reply: next(is_alive), request: next(is_unsent), ..Events::default() };
        events.outputs = watched.map(next);
        Ok(events)
    }

    /// The earliest time at which something is due without an event.
    fn next_us(&self, now_us: u64) -> Option<u64> {
        let execution = self.execution.as_ref().and_then(Execution::next_us);
        let silence = self.host.as_ref().filter(|host| host.silence_us > 0).map(|host| host.last_frame_us + host.silence_us);
        let repl = match self.repl.state {
            State::Starting { deadline_us } => Some(deadline_us),
            State::Dying { .. } => Some(now_us + DYING_POLL_US),
            _ => None,
        };
        let look = Some(self.outputs.look_at_us).filter(|at_us| *at_us > now_us);
        [execution, silence, repl, look, self.restart_at_us].into_iter().flatten().min()
    }

    fn on_time(&mut self, now_us: u64) -> Result<(), Fatal> {
        if self.host.as_ref().is_some_and(|host| host.silence_us > 0 && now_us >= host.last_frame_us + host.silence_us) {
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
            }
        }
        if matches!(self.repl.state, State::Starting { deadline_us } if now_us >= deadline_us) {
            self.repl.kill(now_us);
        }
        if self.repl.check_gone(now_us) {
            self.on_gone(now_us)?;
        }
        if self.restart_at_us.is_some_and(|at_us| now_us >= at_us) {
            self.restart_at_us = None;
            self.repl.restart(now_us)?;
        }
        Ok(())
    }

    fn on_children(&mut self, now_us: u64) -> Result<(), Fatal> {
        let mut info = [0u8; 128];
        while rustix::io::read(&self.children, &mut info).is_ok_and(|bytes| bytes > 0) {}
        while let Some((pid, status)) = next_ended_child() {
            let is_starting = matches!(self.repl.state, State::Starting { .. });
            if self.repl.reaped(pid, status, now_us) && is_starting {
                self.on_failed_start(status)?;
            }
        }
        if self.repl.check_gone(now_us) {
            self.on_gone(now_us)?;
        }
        Ok(())
    }

    fn on_failed_start(&mut self, status: i32) -> Result<(), Fatal> {
        self.failed_starts += 1;
        self.log(&format!("the language's process ended with {status} before it was ready"));
        if self.failed_starts < limits::REPL_START_ATTEMPTS {
            return Ok(());
        }
        if self.announcement.is_some() {
            return Err(Fatal::Repl(format!("the language's process does not start, it ends with {status}")));
        }
        if self.execution.as_ref().is_some_and(|execution| execution.phase == Phase::Waiting) {
            self.refuse_execution(Refusal::new(Code::ReplFailed, "Cannot execute: the language's process does not start"));
        }
        Ok(())
    }

    /// The REPL and everything it started are gone.
    fn on_gone(&mut self, now_us: u64) -> Result<(), Fatal> {
        let pending = self.outputs.pending(&self.repl);
        if let Some(execution) = self.execution.as_mut().filter(|execution| execution.is_running()) {
            execution.outcome.is_reset = true;
            execution.end(now_us, self.repl.status, pending);
            return self.drain(now_us);
        }
        match self.execution.as_ref().map(|execution| execution.phase) {
            // It is restarted when its output has left.
            Some(Phase::Draining(_)) => Ok(()),
            _ => {
                self.outputs.hold_pending(&self.repl, pending);
                self.restart(now_us)
            }
        }
    }

    fn restart(&mut self, now_us: u64) -> Result<(), Fatal> {
        if self.failed_starts > 0 {
            self.restart_at_us = Some(now_us + RESTART_DELAY_US);
            return Ok(());
        }
        // A fresh process seeds itself from the kernel.
        self.is_reseed_due = false;
        self.repl.restart(now_us)
    }

    fn on_reply(&mut self, now_us: u64) -> Result<(), Fatal> {
        match self.repl.receive() {
            None => Ok(()),
            Some(Reply::Ready) => self.on_ready(now_us),
            Some(Reply::Done { exit_code, value }) => {
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
            Some(Reply::Violation(what)) => {
                // An exiting process closes its end before it can be waited for: its status stays what it was.
                self.log(&format!("the language's process is replaced: {what}"));
                self.repl.kill(now_us);
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
        // Frames are judged in place; the buffer is out of `self` meanwhile.
        while self.channel.backlog() < BACKLOG_BYTES && self.channel.fill()? {
            let mut input = std::mem::take(&mut self.channel.input);
            let mut taken = 0;
            while let Some((frame, bytes)) =
                crate::wire::parse(&input[taken..]).map_err(|error| Fatal::Protocol(error.as_str().to_owned()))?
            {
                self.on_frame(&frame, now_us)?;
                taken += bytes;
            }
            input.drain(..taken);
            let is_cut = !input.is_empty();
            self.channel.input = input;
            let is_body_cut = self.execution.as_ref().is_some_and(|execution| execution.phase == Phase::Body);
            if !is_cut && !is_body_cut && !self.channel.is_more_likely {
                break;
            }
        }
        Ok(())
    }

    fn on_frame(&mut self, frame: &Frame, now_us: u64) -> Result<(), Fatal> {
        match &mut self.host {
            Some(host) => host.last_frame_us = now_us,
            None if frame.kind == Kind::Hello => {}
            None => return protocol("a frame before HELLO"),
        }
        match frame.kind {
            Kind::Hello => self.on_hello(frame.payload, now_us),
            Kind::Open => self.on_open(frame, now_us),
            Kind::Result | Kind::Error => protocol("a frame that only the guest sends"),
            kind => {
                if self.mux.judge(frame.stream).map_err(|what| Fatal::Protocol(what.to_owned()))? == Verdict::Late {
                    return Ok(());
                }
                match kind {
                    Kind::Data => self.on_data(frame, now_us),
                    Kind::Credit => {
                        let bytes = frame.payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                        self.mux.granted(frame.stream, bytes).map_err(|what| Fatal::Protocol(what.to_owned()))
                    }
                    Kind::End => self.on_end(frame.stream),
                    _ => self.on_cancel(frame.payload, now_us),
                }
            }
        }
    }

    fn on_hello(&mut self, payload: &[u8], now_us: u64) -> Result<(), Fatal> {
        let hello = parse_json(payload)?;
        let (Some(protocol_version), Some(id), Some(clock_us), Some(entropy), Some(silence_ms)) = (
            hello["protocol"].as_u64(),
            hello["id"].as_str().filter(|id| id.len() <= MAX_ID_BYTES),
            hello["clockUs"].as_u64(),
            hello["entropy"].as_str().and_then(parse_entropy),
            hello["silenceMs"].as_u64(),
        ) else {
            return protocol("HELLO without protocol, id, clockUs, entropy or silenceMs");
        };
        if protocol_version != limits::PROTOCOL_VERSION {
            return protocol("HELLO of another protocol version");
        }
        if self.host.as_ref().is_some_and(|host| host.id != id) {
            self.forget_streams(now_us);
        }
        set_clock(clock_us);
        if let Err(error) = sys::reseed_kernel(&entropy) {
            self.log(&format!("cannot reseed the kernel: {error}"));
        }
        self.is_reseed_due = true;
        let is_urgent = self.channel.is_urgent;
        self.channel.put_json(0, Kind::Hello, &json!({ "protocol": limits::PROTOCOL_VERSION, "id": id }));
        self.channel.is_urgent = is_urgent;
        self.host = Some(Host { id: id.to_owned(), silence_us: silence_ms.saturating_mul(1_000), last_frame_us: now_us });
        Ok(())
    }

    /// This machine is a copy, and its host counts streams from 1: what the original was doing has no one to report to.
    fn forget_streams(&mut self, now_us: u64) {
        self.mux.reset();
        if let Some(execution) = self.execution.take() {
            if execution.is_running() {
                self.repl.kill(now_us);
            } else if self.repl.state == State::Gone {
                // It waited for the drain that is now dropped.
                self.restart_at_us = Some(now_us);
            }
        }
    }

    fn on_open(&mut self, frame: &Frame, now_us: u64) -> Result<(), Fatal> {
        let stream = frame.stream;
        self.mux.open(stream).map_err(|what| Fatal::Protocol(what.to_owned()))?;
        let open = parse_json(frame.payload)?;
        let answer = match open["method"].as_str() {
            Some("exec") => match self.open_execution(stream, &open) {
                Ok(()) => return Ok(()),
                Err(refusal) => Err(refusal),
            },
            Some("ping") => Ok(json!({})),
            Some("interrupt") => Ok(json!({ "interrupted": self.interrupt() })),
            Some("quiesce") => self.quiesce(),
            Some("poweroff") => return Err(Fatal::PowerOff),
            Some(other) => Err(Refusal::new(Code::UnknownMethod, format!("Cannot open: there is no method {other:.64?}"))),
            None => Err(Refusal::bad_request("Cannot open: method must be text")),
        };
        let _ = now_us;
        match answer {
            Ok(result) => self.channel.put_json(stream, Kind::Result, &result),
            Err(refusal) => self.channel.put_json(stream, Kind::Error, &refusal.to_json()),
        }
        self.mux.close(stream);
        Ok(())
    }

    fn open_execution(&mut self, stream: u32, open: &Value) -> Result<(), Refusal> {
        let request = Request::parse(open)?;
        if self.execution.is_some() {
            return Err(Refusal::new(Code::Busy, "Cannot execute: an execution is running"));
        }
        if self.failed_starts >= limits::REPL_START_ATTEMPTS {
            return Err(Refusal::new(Code::ReplFailed, "Cannot execute: the language's process does not start"));
        }
        self.body.start(&request);
        self.last_execution_id = self.last_execution_id.wrapping_add(1);
        self.execution = Some(Execution::new(stream, self.last_execution_id, &request));
        Ok(())
    }

    fn interrupt(&self) -> bool {
        let is_running = self.execution.as_ref().is_some_and(Execution::is_running);
        if is_running {
            self.repl.interrupt();
        }
        is_running
    }

    fn quiesce(&mut self) -> Result<Value, Refusal> {
        if self.execution.is_some() || self.repl.state != State::Ready {
            return Err(Refusal::new(Code::Busy, "Cannot quiesce: an execution is running"));
        }
        if let Some(host) = &mut self.host {
            host.silence_us = 0;
        }
        self.body.release();
        self.channel.trim();
        Ok(json!({}))
    }

    fn on_data(&mut self, frame: &Frame, now_us: u64) -> Result<(), Fatal> {
        self.mux.received(frame.stream, frame.payload.len()).map_err(|what| Fatal::Protocol(what.to_owned()))?;
        let Some(execution) = &self.execution else { return Ok(()) };
        if frame.flags != data::BODY || execution.phase != Phase::Body {
            return protocol("DATA that was not asked for");
        }
        if let Err(refusal) = self.body.append(frame.payload) {
            self.refuse_execution(refusal);
            return Ok(());
        }
        if let Some(bytes) = self.mux.consumed(frame.stream, frame.payload.len()) {
            self.channel.put(frame.stream, Kind::Credit, 0, &bytes.to_le_bytes());
        }
        if !self.body.is_complete() {
            return Ok(());
        }
        if let Err(refusal) = self.body.check() {
            self.refuse_execution(refusal);
            return Ok(());
        }
        if self.repl.state == State::Ready {
            return self.begin(now_us);
        }
        if let Some(execution) = &mut self.execution {
            execution.phase = Phase::Waiting;
        }
        Ok(())
    }

    fn on_end(&mut self, stream: u32) -> Result<(), Fatal> {
        self.mux.ended(stream).map_err(|what| Fatal::Protocol(what.to_owned()))?;
        if self.execution.as_ref().is_some_and(|execution| execution.phase == Phase::Body) {
            self.refuse_execution(Refusal::bad_request("Cannot execute: the body is shorter than announced"));
        }
        Ok(())
    }

    fn on_cancel(&mut self, payload: &[u8], now_us: u64) -> Result<(), Fatal> {
        let grace_ms = match payload {
            [] => limits::CANCEL_GRACE_MS,
            _ => parse_json(payload)?["graceMs"].as_u64().unwrap_or(limits::CANCEL_GRACE_MS).min(MAX_CANCEL_GRACE_MS),
        };
        match self.execution.as_mut().map(|execution| execution.phase) {
            Some(Phase::Body | Phase::Waiting) => {
                if let Some(execution) = &mut self.execution {
                    execution.started_us = now_us;
                    execution.end(now_us, 130, [0, 0]);
                }
            }
            Some(Phase::Running) => self.stop_execution(now_us, grace_ms),
            Some(Phase::Draining(pending)) => {
                self.outputs.discard_pending(&self.repl, pending);
                if let Some(execution) = &mut self.execution {
                    execution.phase = Phase::Draining([0, 0]);
                }
            }
            None => {}
        }
        self.drain(now_us)
    }

    /// SIGINT now, SIGKILL after the grace.
    pub(crate) fn stop_execution(&mut self, now_us: u64, grace_ms: u64) {
        if let Some(execution) = &mut self.execution {
            let kill_at_us = now_us + grace_ms * 1_000;
            execution.kill_at_us = Some(execution.kill_at_us.map_or(kill_at_us, |earlier_us| earlier_us.min(kill_at_us)));
            self.repl.interrupt();
        }
    }

    /// Hands a complete body to a ready REPL.
    fn begin(&mut self, now_us: u64) -> Result<(), Fatal> {
        let Some(execution) = &mut self.execution else { return Ok(()) };
        let mut seed = [0; 32];
        let is_reseed_due = std::mem::take(&mut self.is_reseed_due);
        if is_reseed_due {
            rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).action("draw a seed")?;
        }
        execution.run(now_us);
        if let Err(error) = self.repl.execute(execution.id, is_reseed_due.then_some(&seed), &mut self.body) {
            let what = format!("cannot hand over an execution: {error}");
            self.repl.kill(now_us);
            self.log(&what);
        }
        self.body.release();
        self.send_held();
        self.outputs.look_at_us = now_us + COALESCE_US;
        Ok(())
    }

    fn refuse_execution(&mut self, refusal: Refusal) {
        if let Some(execution) = self.execution.take() {
            self.channel.put_json(execution.stream, Kind::Error, &refusal.to_json());
            self.mux.close(execution.stream);
            self.body.release();
        }
    }

    /// Ends an execution whose output has left.
    pub(crate) fn finish(&mut self, now_us: u64) -> Result<(), Fatal> {
        let Some(execution) = self.execution.take() else { return Ok(()) };
        self.channel.put_result(execution.stream, &execution.outcome);
        self.mux.close(execution.stream);
        self.body.release();
        self.outputs.look_at_us = now_us;
        if self.repl.state == State::Gone && self.restart_at_us.is_none() {
            self.channel.flush()?;
            self.restart(now_us)?;
        }
        Ok(())
    }

    /// Between executions output is looked at rarely, in one it is gathered shortly.
    pub(crate) fn look_later(&mut self, now_us: u64) {
        self.outputs.look_at_us = now_us + if self.execution.is_some() { COALESCE_US } else { IDLE_COALESCE_US };
    }

    pub(crate) fn log(&mut self, what: &str) {
        self.outputs.log(what);
    }
}

fn protocol<T>(what: &str) -> Result<T, Fatal> {
    Err(Fatal::Protocol(what.to_owned()))
}

fn parse_json(payload: &[u8]) -> Result<Value, Fatal> {
    serde_json::from_slice(payload).map_err(|_| Fatal::Protocol("bad JSON".to_owned()))
}

fn parse_entropy(hex: &str) -> Option<[u8; limits::ENTROPY_BYTES]> {
    let mut entropy = [0; limits::ENTROPY_BYTES];
    if hex.len() != 2 * entropy.len() || !hex.is_ascii() {
        return None;
    }
    for (byte, digits) in entropy.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(entropy)
}

fn set_clock(clock_us: u64) {
    let time = Timespec { tv_sec: (clock_us / 1_000_000) as i64, tv_nsec: (clock_us % 1_000_000) as i64 * 1_000 };
    if let Err(error) = rustix::time::clock_settime(rustix::time::ClockId::Realtime, time) {
        eprintln!("sbx-agent: cannot set the clock: {error}");
    }
}

pub fn now_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}
