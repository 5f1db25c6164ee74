//! Program: which process each language is, and what it starts with.
use std::ffi::CString;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{json, Map, Value};

use crate::error::{Action, Fatal};
use crate::limits::PROTOCOL_VERSION;
use crate::repl::{Program, DIRECTORY};
use crate::shell;

/// The first is what is started; it loads the second at once and the others at their first use.
const PYTHON_SCRIPTS: [(&str, &str); 10] = [
    ("python.py", include_str!("../repl/python.py")),
    ("python_session.py", include_str!("../repl/python_session.py")),
    ("python_await.py", include_str!("../repl/python_await.py")),
    ("python_blocks.py", include_str!("../repl/python_blocks.py")),
    ("python_complete.py", include_str!("../repl/python_complete.py")),
    ("python_display.py", include_str!("../repl/python_display.py")),
    ("python_ending.py", include_str!("../repl/python_ending.py")),
    ("python_imports.py", include_str!("../repl/python_imports.py")),
    ("python_multiprocessing.py", include_str!("../repl/python_multiprocessing.py")),
    ("python_scan.py", include_str!("../repl/python_scan.py")),
];
/// One scope in several parts: to load seven modules would take longer at each start.
const JAVASCRIPT_SCRIPT: &str = concat!(
    include_str!("../repl/javascript/base.mjs"),
    include_str!("../repl/javascript/source.mjs"),
    include_str!("../repl/javascript/report.mjs"),
    include_str!("../repl/javascript/value.mjs"),
    include_str!("../repl/javascript/process.mjs"),
    include_str!("../repl/javascript/execution.mjs"),
    include_str!("../repl/javascript/serve.mjs"),
);
/// What it loads at first use.
const JAVASCRIPT_MODULES: [(&str, &str); 4] = [
    ("javascript_assist.mjs", include_str!("../repl/javascript/assist.mjs")),
    ("javascript_scan.mjs", include_str!("../repl/javascript/scan.mjs")),
    ("javascript_stdin.mjs", include_str!("../repl/javascript/stdin.mjs")),
    ("javascript_display.mjs", include_str!("../repl/javascript/display.mjs")),
];

/// What the image may say about what it contains: a JSON object, name → version.
const VERSIONS_FILE: &str = "/etc/sbx/versions.json";
const HOME: &str = "/home/user";
/// What every program of the user starts with.
pub const ENVIRONMENT: [&str; 7] = [
    "PATH=/home/user/.local/bin:/opt/packages/bin:/opt/packages/node_modules/.bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/home/user",
    "USER=user",
    "LOGNAME=user",
    "SHELL=/bin/bash",
    "LANG=C.UTF-8",
    "TERM=dumb",
];

/// What the script asks for, and hides from the user's code: no wake-ups while idle, one thread on the one processor, imports that
/// compile at once so that an interrupt reaches them, no files written beside sources.
const JAVASCRIPT_ENVIRONMENT: [&str; 6] = [
    "BUN_GC_TIMER_DISABLE=1",
    "BUN_JSC_useConcurrentJIT=0",
    "BUN_FEATURE_FLAG_DISABLE_ASYNC_TRANSPILER=1",
    "BUN_RUNTIME_TRANSPILER_CACHE_PATH=0",
    "BUN_DISABLE_TRANSPILED_SOURCE_CODE_PREVIEW=1",
    // `trust::FURTHER`: read at the first TLS connection, which comes long after the start.
    "NODE_EXTRA_CA_CERTS=/run/sbx/ca-further.crt",
];

/// Writes the language's script, owned by root and read-only, and says how to start it.
pub fn prepare(language: &str) -> Result<Program, Fatal> {
    fs::mkdir(DIRECTORY, Mode::from_raw_mode(0o755)).action("make the scripts' directory")?;
    match language {
        "python" => {
            for (name, text) in PYTHON_SCRIPTS {
                put_script(name, text)?;
            }
            let script = format!("{DIRECTORY}/{}", PYTHON_SCRIPTS[0].0);
            let path = first_existing(&["/usr/bin/python3.14", "/usr/bin/python3"])?;
            // -I: neither the environment nor the working directory decides what is imported.
            Ok(program(&path, &[&path, "-I", "-X", "utf8", &script]))
        }
        "javascript" => {
            let script = put_script("javascript.mjs", JAVASCRIPT_SCRIPT)?;
            for (name, text) in JAVASCRIPT_MODULES {
                put_script(name, text)?;
            }
            let path = first_existing(&["/usr/local/bin/bun", "/usr/bin/bun"])?;
            // A process that replaces another starts amid the user's files: none of them decides how, or whether it does.
            let mut program = program(&path, &[&path, "--no-install", "--config=/dev/null", "--no-env-file", &script]);
            // Bun forgets a signal that comes while it prepares the code; on a busy host that can take a while.
            program.interrupt_repeats = 4;
            program.env.extend(owned(&JAVASCRIPT_ENVIRONMENT));
            Ok(program)
        }
        "raw" => {
            for (name, text) in shell::scripts() {
                put_script(name, &text)?;
            }
            shell::make_state_directory(DIRECTORY).action("make the shell's state directory")?;
            // $0 is what error messages begin with; the loop is one line, so that theirs count from 1.
            Ok(Program { is_shell: true, ..program("/bin/bash", &["bash", "--norc", "--noprofile", "-c", &shell::main_loop()]) })
        }
        other => Err(Fatal::Repl(format!("sbx.language must be python, javascript or raw, got {other:.64?}"))),
    }
}

fn owned(texts: &[&str]) -> Vec<CString> {
    texts.iter().filter_map(|text| CString::new(*text).ok()).collect()
}

fn program(path: &str, args: &[&str]) -> Program {
    Program {
        path: CString::new(path).unwrap_or_default(),
        args: owned(args),
        is_shell: false,
        interrupt_repeats: 1,
        directory: CString::new(HOME).unwrap_or_default(),
        env: owned(&ENVIRONMENT),
    }
}

fn put_script(name: &str, text: &str) -> Result<String, Fatal> {
    let path = format!("{DIRECTORY}/{name}");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = fs::open(path.as_str(), flags, Mode::from_raw_mode(0o444)).action("write the language's script")?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest).action("write the language's script")?..];
    }
    Ok(path)
}

fn first_existing(paths: &[&str]) -> Result<String, Fatal> {
    let found = paths.iter().find(|path| fs::access(**path, fs::Access::EXEC_OK).is_ok());
    found.map(|path| (*path).to_owned()).ok_or(Errno::NOENT).action("find the language's program")
}

/// HELLO at boot.
pub fn announcement(language: &str) -> Value {
    let mut versions =
        std::fs::read(VERSIONS_FILE).ok().and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok()).unwrap_or_default();
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    versions.insert("kernel".to_owned(), kernel.into());
    json!({ "protocol": PROTOCOL_VERSION, "agent": env!("CARGO_PKG_VERSION"), "language": language, "versions": versions })
}
