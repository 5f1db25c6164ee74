//! Requests: what each frame of the host asks for.
use std::collections::VecDeque;
use std::os::fd::AsFd;

use rustix::event::Timespec;
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{json, Value};

use crate::error::{Action, Code, Fatal, Refusal};
use crate::exec::{Execution, Phase, Request};
use crate::hygiene::ForkMarks;
use crate::limits;
use crate::link::Link;
use crate::mux::Verdict;
use crate::repl::State;
use crate::server::{Host, Server, COALESCE_US};
use crate::stdin::Stdin;
use crate::sys;
use crate::wire::{data, Frame, Kind};

const MAX_CANCEL_GRACE_MS: u64 = 60_000;
const MAX_ID_BYTES: usize = 128;
/// An execution younger than this may not have come to the user's code.
const YOUNG_US: u64 = 100_000;
/// The pause before an interrupt is sent again; it doubles each time that the process may have heard it.
const INTERRUPT_AGAIN_US: u64 = 100_000;

impl Server {
    pub(crate) fn on_frame(&mut self, frame: &Frame, now_us: u64) -> Result<(), Fatal> {
        match &mut self.host {
            Some(host) => host.last_frame_us = now_us,
            None if frame.kind == Kind::Hello => {}
            None => return protocol("a frame before HELLO"),
        }
        if self.is_held && frame.kind != Kind::Hello {
            return protocol("a frame while the machine is held");
        }
        match frame.kind {
            Kind::Hello => self.on_hello(frame.payload, now_us),
            Kind::Open => self.on_open(frame, now_us),
            Kind::Result | Kind::Error | Kind::Accept => protocol("a frame that never comes from the host"),
            kind => {
                let stream = frame.stream;
                if self.mux.judge(frame.stream).map_err(|what| Fatal::Protocol(what.to_owned()))? == Verdict::Late {
                    return Ok(());
                }
                match kind {
                    Kind::Data => self.on_data(frame, now_us),
                    Kind::Credit => {
                        let bytes = frame.payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                        self.mux.granted(frame.stream, bytes).map_err(|what| Fatal::Protocol(what.to_owned()))
                    }
                    Kind::End => self.on_end(frame.stream, now_us),
                    _ => self.on_cancel(stream, frame.payload, now_us),
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
        let is_copy = self.host.as_ref().is_some_and(|host| host.id != id);
        if is_copy {
            self.forget_streams(now_us);
        }
        // Tests run on somebody's machine, whose clock is none of ours.
        if !cfg!(test) {
            set_clock(clock_us);
            if let Err(error) = self.reseed_kernel(&entropy) {
                self.log(&format!("cannot reseed the kernel: {error}"));
            }
        }
        if std::mem::take(&mut self.is_held) && is_copy {
            // The user's processes ran on while the machine was saved: their marks are those of now. None of them runs before the agent waits.
            self.fork_marks = ForkMarks::find();
        }
        self.fork_marks.clear();
        self.coalesce_us = if is_clock_fine() { COALESCE_US } else { 0 };
        self.is_reseed_due = true;
        let is_urgent = self.channel.is_urgent;
        self.channel.put_json(0, Kind::Hello, &json!({ "protocol": limits::PROTOCOL_VERSION, "id": id }));
        self.channel.is_urgent = is_urgent;
        self.host = Some(Host { id: id.to_owned(), silence_us: silence_ms.saturating_mul(1_000), last_frame_us: now_us });
        Ok(())
    }

    /// The device stays open: a clone does not look for it.
    fn reseed_kernel(&mut self, entropy: &[u8; limits::ENTROPY_BYTES]) -> Result<(), Errno> {
        let random = match self.random.take() {
            Some(random) => random,
            None => fs::open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?,
        };
        let result = sys::reseed_kernel(random.as_fd(), entropy);
        self.random = Some(random);
        result
    }

    /// This machine is a copy, and its host counts streams from 1: what the original was doing has no one to report to.
    fn forget_streams(&mut self, now_us: u64) {
        self.mux.reset();
        self.files.forget();
        self.release_input();
        self.outputs.displays.clear();
        self.processes.forget_streams();
        self.network.stop();
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
            Some("exec") => match self.open_execution(stream, &open, now_us) {
                Ok(()) => return Ok(()),
                Err(refusal) => Err(refusal),
            },
            Some("interrupt") => Ok(json!({ "interrupted": self.interrupt(now_us) })),
            Some("quiesce") => self.quiesce(&open),
            Some("net") => match self.network.open(stream, &open, now_us) {
                Some(answer) => answer,
                None => return Ok(()),
            },
            Some(method @ ("spawn" | "attach" | "process_list" | "process_signal" | "process_resize")) => {
                match self.open_process(stream, method, &open) {
                    Some(answer) => answer,
                    None => return Ok(()),
                }
            }
            Some("poweroff") => return Err(Fatal::PowerOff),
            Some(method) => match self.open_transfer(stream, method, &open).transpose() {
                None => return Ok(()),
                Some(answer) => answer,
            },
            None => Err(Refusal::bad_request("Cannot open: method must be text")),
        };
        self.answer(stream, answer);
        Ok(())
    }

    /// The stream is over.
    fn answer(&mut self, stream: u32, answer: Result<Value, Refusal>) {
        Link { channel: &mut self.channel, mux: &mut self.mux }.answer(stream, answer);
    }

    /// Certificates for the network.
    fn on_network_data(&mut self, frame: &Frame) {
        match self.network.on_data(frame.payload) {
            Ok(()) => self.grant(frame.stream, frame.payload.len()),
            Err(refusal) => self.answer(frame.stream, Err(refusal)),
        }
    }

    fn open_execution(&mut self, stream: u32, open: &Value, now_us: u64) -> Result<(), Refusal> {
        let request = Request::parse(open)?;
        if self.execution.is_some() {
            return Err(Refusal::new(Code::Busy, "Cannot execute: an execution is running"));
        }
        if self.failed_starts >= limits::REPL_START_ATTEMPTS {
            return Err(Refusal::new(Code::ReplFailed, "Cannot execute: the language's process does not start"));
        }
        self.release_input();
        if self.body.is_final() && self.repl.state == State::Ready {
            // Its program is over, and with it the process.
            self.is_loss_unreported = true;
            self.repl.kill(now_us);
        }
        self.body.start(&request);
        self.last_execution_id = self.last_execution_id.wrapping_add(1);
        self.execution = Some(Execution::new(stream, self.last_execution_id, &request));
        Ok(())
    }

    fn interrupt(&mut self, now_us: u64) -> bool {
        // A question about code answers soon by itself; bash would lose the subshell that does.
        let is_question = self.body.is_question();
        let Some(execution) = self.execution.as_mut().filter(|execution| execution.is_running() && !is_question) else { return false };
        // A REPL that has not come to the user's code takes it for one that came too late for the code before, or does not hear it.
        let is_young = now_us < execution.started_us + YOUNG_US;
        let is_heard = self.repl.interrupt();
        execution.interrupts_sent = 0;
        execution.interrupt_at_us = (is_young || !is_heard).then_some(now_us + INTERRUPT_AGAIN_US);
        true
    }

    /// The execution is still there: SIGINT once more.
    pub(crate) fn interrupt_again(&mut self, now_us: u64) {
        let Some(execution) = &mut self.execution else { return };
        execution.interrupts_sent += usize::from(self.repl.interrupt());
        let is_enough = execution.interrupts_sent >= self.repl.interrupt_repeats();
        execution.interrupt_at_us = (!is_enough).then_some(now_us + (INTERRUPT_AGAIN_US << execution.interrupts_sent));
    }

    fn quiesce(&mut self, open: &Value) -> Result<Value, Refusal> {
        if self.execution.is_some() || self.repl.state != State::Ready || !self.files.is_idle() || self.processes.is_starting() {
            return Err(Refusal::new(Code::Busy, "Cannot quiesce: an execution, a transfer or a start is under way"));
        }
        let is_held = match &open["hold"] {
            Value::Null => false,
            value => value.as_bool().ok_or_else(|| Refusal::bad_request("Cannot quiesce: hold must be true or false"))?,
        };
        if let Some(host) = &mut self.host {
            host.silence_us = 0;
        }
        self.body.release();
        self.channel.trim();
        if is_held {
            self.is_held = true;
            self.fork_marks = ForkMarks::default();
            return Ok(json!({ "held": true }));
        }
        self.network.stop();
        self.fork_marks = ForkMarks::find();
        Ok(json!({}))
    }

    fn on_data(&mut self, frame: &Frame, now_us: u64) -> Result<(), Fatal> {
        self.mux.received(frame.stream, frame.payload.len()).map_err(|what| Fatal::Protocol(what.to_owned()))?;
        if self.files.has(frame.stream) {
            return self.on_file_data(frame);
        }
        if self.processes.has(frame.stream) {
            return self.on_process_data(frame, now_us);
        }
        if self.network.has(frame.stream) {
            self.on_network_data(frame);
            return Ok(());
        }
        let Some(execution) = self.execution.as_ref().filter(|execution| execution.stream == frame.stream) else { return Ok(()) };
        if frame.flags != data::BODY || (execution.phase != Phase::Body && !execution.has_stdin) {
            return protocol("DATA that was not asked for");
        }
        if execution.phase != Phase::Body {
            self.on_stdin(frame.payload);
            return Ok(());
        }
        let rest = match self.body.append(frame.payload) {
            Ok(rest) => rest,
            Err(refusal) => {
                self.refuse_execution(refusal);
                return Ok(());
            }
        };
        self.early_stdin.extend(rest);
        self.grant(frame.stream, frame.payload.len() - rest.len());
        if !self.body.is_complete() {
            return Ok(());
        }
        if let Err(refusal) = self.body.check() {
            self.refuse_execution(refusal);
            return Ok(());
        }
        self.body.add_env(self.network.environment());
        if self.repl.state == State::Ready {
            return self.begin(now_us);
        }
        if let Some(execution) = &mut self.execution {
            execution.phase = Phase::Waiting;
        }
        Ok(())
    }

    fn on_end(&mut self, stream: u32, now_us: u64) -> Result<(), Fatal> {
        self.mux.ended(stream).map_err(|what| Fatal::Protocol(what.to_owned()))?;
        match self.execution.as_mut().filter(|execution| execution.stream == stream) {
            Some(execution) if execution.phase == Phase::Body => {
                self.refuse_execution(Refusal::bad_request("Cannot execute: the body is shorter than announced"));
            }
            Some(execution) => {
                execution.is_stdin_ended = true;
                if let Some(stdin) = &mut self.stdin {
                    stdin.end();
                }
            }
            None if self.processes.has(stream) => self.on_process_end(stream),
            None if self.network.has(stream) => {
                let answer = self.network.on_end(now_us);
                self.answer(stream, answer);
            }
            None => self.on_file_end(stream),
        }
        Ok(())
    }

    /// Standard input for the execution, whose turn may still come.
    fn on_stdin(&mut self, bytes: &[u8]) {
        let Some(execution) = &self.execution else { return };
        let stream = execution.stream;
        match (&mut self.stdin, execution.phase) {
            (Some(stdin), Phase::Running) if !stdin.is_closed() => stdin.push(bytes),
            (None, Phase::Waiting) => self.early_stdin.extend(bytes),
            _ => self.grant(stream, bytes.len()),
        }
        self.write_stdin();
    }

    /// Passes on what the program's pipe takes, and lets the host send as much again.
    pub(crate) fn write_stdin(&mut self) {
        let (Some(execution), Some(stdin)) = (&self.execution, &mut self.stdin) else { return };
        let stream = execution.stream;
        loop {
            match stdin.write() {
                0 => return,
                bytes => {
                    if let Some(credit) = self.mux.consumed(stream, bytes) {
                        self.channel.put(stream, Kind::Credit, 0, &credit.to_le_bytes());
                    }
                }
            }
        }
    }

    /// Bytes of the host have found their place.
    pub(crate) fn grant(&mut self, stream: u32, bytes: usize) {
        if let Some(credit) = self.mux.consumed(stream, bytes) {
            self.channel.put(stream, Kind::Credit, 0, &credit.to_le_bytes());
        }
    }

    /// What was sent to an execution that is over, and what it showed, goes nowhere.
    pub(crate) fn release_input(&mut self) {
        self.stdin = None;
        self.early_stdin = VecDeque::new();
    }

    fn on_cancel(&mut self, stream: u32, payload: &[u8], now_us: u64) -> Result<(), Fatal> {
        let grace_ms = match payload {
            [] => limits::CANCEL_GRACE_MS,
            _ => parse_json(payload)?["graceMs"].as_u64().unwrap_or(limits::CANCEL_GRACE_MS).min(MAX_CANCEL_GRACE_MS),
        };
        match self.execution.as_ref().filter(|execution| execution.stream == stream).map(|execution| execution.phase) {
            Some(Phase::Body | Phase::Waiting) => {
                if let Some(execution) = &mut self.execution {
                    execution.started_us = now_us;
                    execution.end(now_us, 130, [0, 0]);
                }
            }
            Some(Phase::Running) => self.stop_execution(now_us, grace_ms),
            Some(Phase::Draining(pending)) => {
                self.outputs.discard_pending(&self.repl, pending);
                self.outputs.displays.clear();
                if let Some(execution) = &mut self.execution {
                    execution.phase = Phase::Draining([0, 0]);
                }
            }
            None if self.files.has(stream) => self.on_file_cancel(stream),
            None if self.network.has(stream) => {
                self.network.cancel();
                self.answer(stream, Err(Refusal::bad_request("Cannot connect: it was cancelled")));
            }
            None => self.on_process_cancel(stream, grace_ms, now_us),
        }
        self.drain(now_us)
    }

    /// SIGINT now, SIGKILL after the grace.
    pub(crate) fn stop_execution(&mut self, now_us: u64, grace_ms: u64) {
        if let Some(execution) = &mut self.execution {
            let kill_at_us = now_us + grace_ms * 1_000;
            execution.kill_at_us = Some(execution.kill_at_us.map_or(kill_at_us, |earlier_us| earlier_us.min(kill_at_us)));
            self.interrupt(now_us);
        }
    }

    /// Hands a complete body to a ready REPL.
    pub(crate) fn begin(&mut self, now_us: u64) -> Result<(), Fatal> {
        let Some(execution) = &mut self.execution else { return Ok(()) };
        let mut seed = [0; 32];
        let is_reseed_due = std::mem::take(&mut self.is_reseed_due);
        if is_reseed_due {
            rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).action("draw a seed")?;
        }
        if execution.has_stdin {
            let made = Stdin::make(std::mem::take(&mut self.early_stdin), execution.is_stdin_ended);
            self.stdin = Some(made.action("make the FIFO for standard input")?);
        }
        execution.run(now_us);
        execution.outcome.is_reset = std::mem::take(&mut self.is_loss_unreported);
        if let Err(error) = self.repl.execute(execution.id, is_reseed_due.then_some(&seed), &mut self.body) {
            self.repl.kill(now_us);
            self.refuse_execution(Refusal::new(Code::Internal, format!("Cannot execute: the code could not be handed over: {error}")));
            return Ok(());
        }
        self.body.release();
        self.write_stdin();
        self.send_held();
        self.outputs.look_at_us = now_us + self.coalesce_us;
        Ok(())
    }

    pub(crate) fn refuse_execution(&mut self, refusal: Refusal) {
        if let Some(execution) = self.execution.take() {
            self.channel.put_json(execution.stream, Kind::Error, &refusal.to_json());
            self.mux.close(execution.stream);
            self.body.release();
            self.release_input();
        }
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

/// Without a fine clock the kernel's timers run with its tick.
fn is_clock_fine() -> bool {
    let resolution = rustix::time::clock_getres(rustix::time::ClockId::Monotonic);
    resolution.tv_sec == 0 && resolution.tv_nsec < 1_000_000
}
