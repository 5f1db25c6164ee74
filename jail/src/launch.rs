//! Launch: confines this process and becomes PROGRAM, or waits for it as the first process of its own pid namespace.
use crate::args::Plan;
use crate::confine::confine;
use crate::layer::{Failure, InLayer, Layer};
use crate::sys::{self, Ending};
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Why PROGRAM does not run.
pub enum Trouble {
    Layer(Failure),
    Exec(CString, io::Error),
}

/// Returns only on failure.
pub fn launch(plan: &Plan) -> Result<Infallible, Trouble> {
    confine(plan).map_err(Trouble::Layer)?;
    close_descriptors(&plan.keep_fds).map_err(Trouble::Layer)?;
    if plan.layers.has(Layer::PidNamespace) {
        enter_pid_namespace().map_err(Trouble::Layer)?;
    }
    // Rust ignores SIGPIPE, and launchers may block signals: PROGRAM gets neither.
    sys::restore_signal(libc::SIGPIPE);
    sys::unblock_signals();
    let program = &plan.command[0];
    Err(Trouble::Exec(program.clone(), sys::exec(program, &plan.command, &plan.environment)))
}

/// Closes all descriptors from 3 on but those in `keep`, which is in rising order.
fn close_descriptors(keep: &[u32]) -> Result<(), Failure> {
    let mut first = 3;
    for &fd in keep {
        if fd > first {
            sys::close_range(first, fd - 1).in_layer(Layer::NoNewPrivs, "close descriptors")?;
        }
        first = fd + 1;
    }
    sys::close_range(first, u32::MAX).in_layer(Layer::NoNewPrivs, "close descriptors")
}

/// Returns in the child, which is process 1 of the namespace. The parent stays behind, holds nothing and ends as the child does.
fn enter_pid_namespace() -> Result<(), Failure> {
    let layer = Layer::PidNamespace;
    let (alive, parent_lives) = sys::pipe().in_layer(layer, "make a pipe")?;
    match sys::fork().in_layer(layer, "fork")? {
        Some(child) => wait_as_parent(child, &parent_lives),
        None => {
            drop(parent_lives);
            // From inside the namespace the parent has no number to ask for: its end of the pipe tells whether it lived
            // when the signal was set.
            sys::die_with_parent().in_layer(layer, "follow the parent")?;
            if sys::is_hung_up(&alive) {
                sys::exit_now(libc::EXIT_FAILURE);
            }
            Ok(())
        }
    }
}

/// Any signal that ends this process ends the child too, by its parent-death signal; none is forwarded.
fn wait_as_parent(child: i32, parent_lives: &OwnedFd) -> ! {
    // The child's sockets must reach their end of file when the child ends, so no copy of them stays open here.
    let kept = parent_lives.as_raw_fd().unsigned_abs();
    let closed = if kept > 0 { sys::close_range(0, kept - 1) } else { Ok(()) };
    if closed.and_then(|()| sys::close_range(kept + 1, u32::MAX)).is_err() {
        sys::exit_now(crate::LAYER_FAILED);
    }
    match sys::wait_for(child) {
        Ok(Ending::Exited(status)) => sys::exit_now(status),
        Ok(Ending::Killed(signal)) => sys::die_of(signal),
        Err(_) => sys::exit_now(crate::LAYER_FAILED),
    }
}
