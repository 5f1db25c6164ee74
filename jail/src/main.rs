//! sbx-jail: confines one QEMU on a Linux host with a few dozen system calls, then becomes it.
mod args;
mod cgroup;
mod confine;
mod files;
mod landlock;
mod launch;
mod layer;
mod probe;
mod seccomp;
mod sys;

use args::Request;
use launch::Trouble;
use std::process::ExitCode;

/// Status when a layer that was asked for cannot be had.
pub const LAYER_FAILED: i32 = 125;
const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Request::Help) => println!("{}", args::USAGE),
        Ok(Request::Version) => println!("sbx-jail {}", env!("CARGO_PKG_VERSION")),
        Ok(Request::Check) => {}
        Ok(Request::Probe { cgroup_parent }) => println!("{}", probe::probe(cgroup_parent.as_deref())),
        Ok(Request::Run(plan)) => return run(&plan),
        Err(message) => {
            eprintln!("sbx-jail: {message}\nTry `sbx-jail --help`.");
            return ExitCode::from(USAGE_ERROR);
        }
    }
    ExitCode::SUCCESS
}

fn run(plan: &args::Plan) -> ExitCode {
    let Err(trouble) = launch::launch(plan);
    match trouble {
        Trouble::Layer(failure) => {
            eprintln!("sbx-jail: {failure}");
            ExitCode::from(LAYER_FAILED as u8)
        }
        Trouble::Exec(program, error) => {
            eprintln!("sbx-jail: cannot run {}: {error}", program.to_string_lossy());
            ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
        }
    }
}
