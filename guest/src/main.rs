//! sbx-agent: PID 1 of an sbx microVM. Makes a machine out of the initrd, then serves the host until it is switched off.
//!
//! `no_main`: the standard library's own start-up aborts when a standard stream is closed and there is no /dev/null, and both are so
//! in an initrd whose console is not there yet.
#![cfg_attr(not(test), no_main)]

mod cgroup;
mod channel;
mod confine;
mod error;
mod exec;
mod files;
mod home;
mod hygiene;
mod init;
mod layer;
mod limits;
mod link;
mod memory;
mod mux;
mod net;
mod network;
mod outbox;
mod output;
mod process;
mod process_input;
mod process_requests;
mod process_turns;
mod processes;
mod program;
mod pty;
mod recovery;
mod repl;
mod requests;
mod routing;
mod server;
mod shell;
mod spawn;
mod stdin;
mod sys;
mod transfer;
mod tree;
mod trust;
mod wire;

use error::{Action, Fatal};

/// Called by the C library.
#[cfg_attr(not(test), no_mangle)]
pub extern "C" fn main() -> i32 {
    match std::env::args().nth(1).as_deref() {
        Some(net::role::ARGUMENT) => return net::role::run(),
        Some(net::rehearsal::ARGUMENT) => return net::rehearsal::run(),
        _ => {}
    }
    if std::process::id() != 1 {
        eprintln!("sbx-agent {}: runs as PID 1 of an sbx microVM only", env!("CARGO_PKG_VERSION"));
        return 2;
    }
    let fatal = match start() {
        Ok(server) => server.run(),
        Err(fatal) => fatal,
    };
    eprintln!("sbx-agent: power off: {fatal}");
    sys::power_off()
}

fn start() -> Result<server::Server, Fatal> {
    init::open_standard_streams()?;
    memory::protect_agent();
    let children = sys::child_signals().action("watch for children")?;
    let mut machine = init::start()?;
    let trace = Trace { is_on: machine.parameter("sbx.trace").is_some() };
    trace.step("root switched");
    let language = machine.parameter("sbx.language").unwrap_or("python").to_owned();
    let program = program::prepare(&language)?;
    let user = machine.cgroup.take();
    let group = user.as_ref().and_then(|user| user.make("repl").ok());
    let repl = repl::Repl::start(program, Some(confine::confinement()), group, server::now_us())?;
    trace.step("language started");
    // The rest is done while that process waits for the disk.
    sys::take_precedence(sys::Precedence::Last).action("yield the processor")?;
    init::finish(&machine);
    sys::take_precedence(sys::Precedence::First).action("take the processor")?;
    trace.step("machine finished");
    let port = channel::open_port(&machine)?;
    init::open_late_console(&machine);
    if machine.parameter("sbx.log").is_some() {
        // The console comes after most of what the kernel says, and the kernel does not repeat it there.
        eprint!("{}", String::from_utf8_lossy(&sys::kernel_log()));
    }
    trace.step("control port open");
    let mut server = server::Server::new(port, children, repl, program::announcement(&language));
    server.processes = processes::Processes::new(user);
    server.network = network::Network::new(machine);
    Ok(server)
}

/// `sbx.trace=1` on the kernel command line tells when each step was done.
struct Trace {
    is_on: bool,
}

impl Trace {
    fn step(&self, what: &str) {
        if self.is_on {
            eprintln!("sbx-agent: {} us: {what}", server::now_us());
        }
    }
}
