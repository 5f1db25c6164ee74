//! Recovery: what happens when children end: the language's process is replaced, and tried again when it does not start.
use crate::error::{Code, Fatal, Refusal};
use crate::exec::Phase;
use crate::limits;
use crate::repl::{next_ended_child, State};
use crate::server::Server;

/// Between failed starts of the language's process.
const RESTART_DELAY_US: u64 = 1_000_000;

impl Server {
    pub(crate) fn on_children(&mut self, now_us: u64) -> Result<(), Fatal> {
        let mut info = [0u8; 128];
        while rustix::io::read(&self.children, &mut info).is_ok_and(|bytes| bytes > 0) {}
        while let Some((pid, status)) = next_ended_child() {
            let is_starting = matches!(self.repl.state, State::Starting { .. });
            let is_idle = self.repl.state == State::Ready;
            if self.repl.reaped(pid, status, now_us) {
                self.is_loss_unreported |= is_idle;
                if is_starting {
                    self.on_failed_start(status)?;
                }
            } else if let Some(what) = self.network.reaped(pid, status, now_us) {
                self.log(&what);
            } else {
                self.on_ended_process(pid, status, now_us);
            }
        }
        self.processes.sweep();
        if self.repl.check_gone(now_us) {
            self.on_gone(now_us)?;
        }
        Ok(())
    }

    pub(crate) fn on_failed_start(&mut self, status: i32) -> Result<(), Fatal> {
        self.failed_starts += 1;
        self.log(&format!("the language's process ended before it was ready; the last status known is {status}"));
        if self.failed_starts < limits::REPL_START_ATTEMPTS {
            return Ok(());
        }
        if self.announcement.is_some() {
            return Err(Fatal::Repl(format!("the language's process does not start, the last status known is {status}")));
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

    pub(crate) fn restart(&mut self, now_us: u64) -> Result<(), Fatal> {
        if self.failed_starts > 0 {
            self.restart_at_us = Some(now_us + RESTART_DELAY_US);
            return Ok(());
        }
        // A fresh process seeds itself from the kernel.
        self.is_reseed_due = false;
        self.repl.restart(now_us)
    }
}
