//! Process turns: the part that the processes have in each turn of the event loop.
use rustix::event::{PollFd, PollFlags};
use rustix::process::Pid;

use crate::limits::SESSION_PROCESSES;
use crate::link::Link;
use crate::memory::Watch;
use crate::mux::Mux;
use crate::process::{Process, Settled, State};
use crate::processes::{group_name, Processes};
use crate::sys;
use crate::wire::PAYLOAD_BYTES;

/// Until what the descendants of an ended process print is thrown away again.
const LINGERING_PAUSE_US: u64 = 50_000;

/// What poll was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Start(u32),
    Input(u32),
    Output(u32, usize),
    Lingering(usize),
}

impl Processes {
    /// What is to be polled. The order changes from turn to turn: room for output goes to whoever asks first.
    pub fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>, backlog: usize, mux: &Mux, now_us: u64) -> Vec<Part> {
        let mut parts = Vec::new();
        let count = self.list.len();
        for process in (0..count).map(|at| &self.list[(at + self.turn) % count]) {
            if let State::Starting(report) = &process.state {
                parts.push(Part::Start(process.id));
                fds.push(PollFd::new(report, PollFlags::IN));
            }
            if let Some(writer) = process.input.as_ref().and_then(|input| input.writer()) {
                parts.push(Part::Input(process.id));
                fds.push(PollFd::new(writer, PollFlags::OUT));
            }
            for which in [0, 1] {
                let due = process.outputs[which].as_ref().filter(|output| now_us >= output.look_at_us);
                if let Some(output) = due.filter(|_| process.can_take_output(which, backlog, mux)) {
                    parts.push(Part::Output(process.id, which));
                    fds.push(PollFd::new(&output.fd, PollFlags::IN));
                }
            }
        }
        if now_us >= self.lingering_look_at_us {
            for (at, fd) in self.lingering.iter().enumerate() {
                parts.push(Part::Lingering(at));
                fds.push(PollFd::new(fd, PollFlags::IN));
            }
        }
        parts
    }

    /// Whether these events are looked after before the execution's in this turn: they take turns.
    pub fn goes_first(&self) -> bool {
        self.turn.is_multiple_of(2)
    }

    /// What poll found.
    pub fn on_events(&mut self, parts: &[Part], link: &mut Link, now_us: u64, coalesce_us: u64) {
        if parts.is_empty() {
            return;
        }
        self.turn = self.turn.wrapping_add(1);
        let mut scratch = Vec::new();
        // From the last on: one that is at its end leaves the list.
        for part in parts.iter().rev() {
            if let Part::Lingering(at) = *part {
                scratch.clear();
                self.lingering_look_at_us = now_us + LINGERING_PAUSE_US;
                if sys::read_append(&self.lingering[at], &mut scratch, PAYLOAD_BYTES).is_ok_and(|bytes| bytes == 0) {
                    self.lingering.swap_remove(at);
                }
            }
        }
        for part in parts {
            let (Part::Start(id) | Part::Input(id) | Part::Output(id, _)) = *part else { continue };
            let Some(at) = self.list.iter().position(|process| process.id == id) else { continue };
            match *part {
                Part::Output(_, which) => self.list[at].on_output(which, link, now_us, coalesce_us),
                Part::Input(_) => self.list[at].write_input(link),
                _ => self.check_start(at, link),
            }
        }
    }

    fn check_start(&mut self, at: usize, link: &mut Link) {
        let process = &mut self.list[at];
        if let Err(refusal) = process.check_start(link) {
            let process = self.list.remove(at);
            self.stale.push(process.id);
            if let Some(stream) = process.stream {
                link.answer(stream, Err(refusal));
            }
        } else if matches!(process.state, State::Running) {
            process.write_input(link);
        }
    }

    /// Children have ended: one of ours with that number, or a descendant that became the agent's child.
    pub fn reaped(&mut self, pid: Pid, status: i32, link: &mut Link, now_us: u64) {
        let is_it = |process: &Process| process.pid == pid && process.is_alive();
        if let Some(at) = self.list.iter().position(is_it) {
            self.check_start(at, link);
        }
        if let Some(process) = self.list.iter_mut().find(|process| is_it(process)) {
            process.reaped(status, now_us);
        }
    }

    /// Looks after what needs no event: groups that may be empty by now, output that the host takes again, ends to be told.
    pub fn settle(&mut self, link: &mut Link, now_us: u64) {
        let mut at = 0;
        while at < self.list.len() {
            let process = &mut self.list[at];
            if process.is_ended() && process.stream.is_none() {
                at += 1;
                continue;
            }
            process.check_gone(now_us);
            match process.settle(link) {
                Settled::Not => at += 1,
                Settled::Told => drop(self.remove(at)),
                Settled::Unattended => {
                    let process = self.remove(at);
                    // Whoever started one that is no background process has gone, with the machine that this one is a copy of.
                    if process.is_background {
                        self.list.push(process);
                    }
                }
            }
        }
        let ended_count = self.list.iter().filter(|process| process.is_ended() && process.stream.is_none()).count();
        for _ in SESSION_PROCESSES..ended_count {
            if let Some(oldest) = self.list.iter().position(|process| process.is_ended() && process.stream.is_none()) {
                self.list.remove(oldest);
            }
        }
    }

    /// Takes one that has ended off the list.
    fn remove(&mut self, at: usize) -> Process {
        let mut process = self.list.remove(at);
        self.lingering.extend(process.close());
        let excess = self.lingering.len().saturating_sub(2 * SESSION_PROCESSES);
        self.lingering.drain(..excess);
        self.stale.push(process.id);
        process
    }

    /// Removes control groups that have become empty.
    pub fn sweep(&mut self) {
        if let Some(root) = &self.root {
            self.stale.retain(|id| root.remove(&group_name(*id)).is_err_and(|error| error == rustix::io::Errno::BUSY));
        } else {
            self.stale.clear();
        }
    }

    /// What is due at this time. True when the memory should be looked at, for which an execution has a watch of its own.
    pub fn on_time(&mut self, now_us: u64) -> bool {
        for process in &mut self.list {
            if process.kill_at_us.is_some_and(|at_us| now_us >= at_us) {
                process.kill_at_us = None;
                process.kill();
            }
        }
        let is_due = now_us >= self.watch_at_us && self.list.iter().any(Process::is_alive);
        if is_due {
            self.watch_at_us = now_us + Watch::PAUSE_US;
        }
        is_due
    }

    /// The earliest time at which something is due without an event.
    pub fn next_us(&self, backlog: usize, mux: &Mux, now_us: u64) -> Option<u64> {
        if self.list.is_empty() && self.lingering.is_empty() {
            return None;
        }
        let mut next = None;
        let mut at = |time: Option<u64>| next = [next, time].into_iter().flatten().min();
        for process in &self.list {
            at(process.kill_at_us);
            at(process.has_unsent(backlog, mux).then_some(now_us));
            at(process.is_alive().then_some(self.watch_at_us));
            if let State::Dying { deadline_us, .. } = process.state {
                at(Some(deadline_us));
            }
            for which in [0, 1] {
                let later = process.outputs[which].as_ref().map(|output| output.look_at_us).filter(|time| *time > now_us);
                at(later.filter(|_| process.can_take_output(which, backlog, mux)));
            }
        }
        at((!self.lingering.is_empty()).then_some(self.lingering_look_at_us).filter(|time| *time > now_us));
        next
    }
}
