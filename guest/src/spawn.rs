//! Spawn: from a request for a process to the program that runs: parameters and body (pure), pipes or a terminal, and why it failed.
use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use serde_json::Value;

use crate::cgroup::Group;
use crate::error::{Code, Refusal};
use crate::limits;
use crate::program::ENVIRONMENT;
use crate::pty::{self, Size};
use crate::sys::{self, Confinement, StartFailure};

const DEFAULT_TERMINAL: (&str, &str) = ("TERM", "xterm-256color");

/// The parameters of `spawn`.
#[derive(Debug)]
pub struct Request {
    env_bytes: usize,
    argv_bytes: usize,
    cwd: CString,
    pub has_stdin: bool,
    pub terminal: Option<Size>,
    pub is_background: bool,
}

impl Request {
    pub fn parse(json: &Value) -> Result<Self, Refusal> {
        let count = |name: &'static str| json[name].as_u64().ok_or_else(|| wrong(name, "a whole number", &json[name]));
        let (env_bytes, argv_bytes) = (count("envBytes")?, count("argvBytes")?);
        limits::at_most("envBytes", env_bytes, limits::ENV_BLOCK_BYTES as u64, "bytes")?;
        if argv_bytes < 2 || argv_bytes > limits::ARGUMENTS_BYTES as u64 {
            return Err(wrong("argvBytes", &format!("2 to {}", limits::ARGUMENTS_BYTES), &json["argvBytes"]));
        }
        let cwd = json["cwd"].as_str().filter(|cwd| cwd.starts_with('/') && cwd.len() <= limits::PATH_BYTES);
        let cwd = cwd.and_then(|cwd| CString::new(cwd).ok()).ok_or_else(|| wrong("cwd", "an absolute path", &json["cwd"]))?;
        Ok(Request {
            env_bytes: env_bytes as usize,
            argv_bytes: argv_bytes as usize,
            cwd,
            has_stdin: flag(json, "stdin")?,
            terminal: if json["pty"].is_null() { None } else { Some(parse_size(&json["pty"])?) },
            is_background: flag(json, "background")?,
        })
    }
}

/// A size of a terminal in OPEN.
pub fn parse_size(json: &Value) -> Result<Size, Refusal> {
    let cells = |name: &'static str| {
        let number = json[name].as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
        number.ok_or_else(|| wrong(name, "1 to 65535", &json[name]))
    };
    Ok(Size { columns: cells("columns")?, rows: cells("rows")? })
}

pub fn flag(json: &Value, name: &'static str) -> Result<bool, Refusal> {
    json[name].as_bool().ok_or_else(|| wrong(name, "true or false", &json[name]))
}

fn wrong(name: &str, wanted: &str, got: &Value) -> Refusal {
    Refusal::bad_request(format!("{name} must be {wanted}, got {:.64}", got.to_string()))
}

/// A request whose body is on its way.
#[derive(Debug)]
pub struct Pending {
    pub stream: u32,
    pub request: Request,
    body: Vec<u8>,
    /// What has come after the body.
    pub stdin: VecDeque<u8>,
}

impl Pending {
    pub fn new(stream: u32, request: Request) -> Self {
        Pending { stream, request, body: Vec::new(), stdin: VecDeque::new() }
    }

    /// Takes what belongs to the body and returns how much that was; the rest is standard input.
    pub fn append(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let (ours, rest) = bytes.split_at(bytes.len().min(self.total() - self.body.len()));
        if !rest.is_empty() && !self.request.has_stdin {
            return Err(Refusal::bad_request("the body is longer than announced"));
        }
        self.body.extend_from_slice(ours);
        self.stdin.extend(rest);
        Ok(ours.len())
    }

    pub fn is_complete(&self) -> bool {
        self.body.len() == self.total()
    }

    fn total(&self) -> usize {
        self.request.env_bytes + self.request.argv_bytes
    }

    /// The arguments, the program's name first.
    pub fn arguments(&self) -> Result<Vec<CString>, Refusal> {
        let block = &self.body[self.request.env_bytes..];
        let block = block.strip_suffix(b"\0").ok_or_else(|| Refusal::bad_request("each argument must end with NUL"))?;
        let arguments: Vec<_> = block.split(|byte| *byte == 0).filter_map(|argument| CString::new(argument).ok()).collect();
        if arguments[0].is_empty() {
            return Err(Refusal::bad_request("the program's name must not be empty"));
        }
        Ok(arguments)
    }

    /// The environment of every program and what is `further` in it, and over both the request's own.
    pub fn environment(&self, further: &[(&str, &str)]) -> Result<Vec<CString>, Refusal> {
        let own = limits::parse_env(&self.body[..self.request.env_bytes])?;
        let defaults = self.request.terminal.map(|_| DEFAULT_TERMINAL).into_iter().chain(further.iter().copied());
        let over: Vec<(&str, &str)> =
            defaults.filter(|(name, _)| own.iter().all(|entry| entry.0 != *name)).chain(own.iter().copied()).collect();
        let base = ENVIRONMENT.iter().filter_map(|entry| entry.split_once('='));
        let kept = base.filter(|(name, _)| over.iter().all(|entry| entry.0 != *name));
        Ok(kept.chain(over.iter().copied()).filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect())
    }
}

/// Where a program of that name may be: as the C library would look, but with nothing run that is no program.
fn candidates(name: &CString) -> Vec<CString> {
    if name.as_bytes().contains(&b'/') {
        return vec![name.clone()];
    }
    let path = ENVIRONMENT.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let join = |directory: &str| CString::new([directory.as_bytes(), b"/", name.as_bytes()].concat()).ok();
    path.split(':').filter_map(join).collect()
}

/// A child that is becoming its program, and our ends of its descriptors.
pub struct Child {
    pub pid: Pid,
    /// At its end when the program runs, else it holds a `StartFailure`.
    pub report: OwnedFd,
    pub outputs: [Option<OwnedFd>; 2],
    /// Absent: it reads the end of its input.
    pub input: Option<OwnedFd>,
    /// The process's side of its terminal: open here too, so that ours has no end before the process has ended.
    pub terminal: Option<OwnedFd>,
}

/// Starts what `pending` asks for, in `group`.
pub fn start(
    pending: &Pending,
    confinement: Option<&Confinement>,
    group: Option<&Group>,
    further_env: &[(&str, &str)],
) -> Result<Child, Refusal> {
    let (args, env) = (pending.arguments()?, pending.environment(further_env)?);
    let programs = candidates(&args[0]);
    let entrance = group.map(Group::entrance).transpose().map_err(no_room)?;
    let (report, report_end) = pipe().map_err(no_room)?;
    let Descriptors { theirs, outputs, input, terminal } = descriptors(&pending.request, confinement).map_err(no_room)?;
    let pid = sys::spawn(&sys::Spawn {
        programs: &programs,
        args: &args,
        env: &env,
        directory: &pending.request.cwd,
        stdin: theirs[0].as_fd(),
        stdout: theirs[1].as_fd(),
        stderr: theirs[2].as_fd(),
        control: None,
        has_terminal: terminal.is_some(),
        report: Some(report_end.as_fd()),
        cgroup: entrance.as_ref().map(|fd| fd.as_fd()),
        confinement,
    });
    Ok(Child { pid: pid.map_err(no_room)?, report, outputs, input, terminal })
}

struct Descriptors {
    theirs: [OwnedFd; 3],
    outputs: [Option<OwnedFd>; 2],
    input: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

fn descriptors(request: &Request, confinement: Option<&Confinement>) -> Result<Descriptors, Errno> {
    if let Some(size) = request.terminal {
        let pty = pty::open(size, confinement.map(|confinement| confinement.uid))?;
        let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        return Ok(Descriptors {
            theirs: [copy(&pty.slave)?, copy(&pty.slave)?, copy(&pty.slave)?],
            input: Some(copy(&pty.master)?),
            outputs: [Some(pty.master), None],
            terminal: Some(pty.slave),
        });
    }
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let (stdin_end, input) = if request.has_stdin {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (read, Some(write))
    } else {
        (fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, None)
    };
    Ok(Descriptors { theirs: [stdin_end, stdout_end, stderr_end], outputs: [Some(stdout), Some(stderr)], input, terminal: None })
}

/// Only our end is non-blocking: programs expect their stdout to wait.
fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

fn no_room(error: Errno) -> Refusal {
    Refusal::new(Code::Internal, format!("the guest has no room for another process: {error}"))
}

/// What the host is told when the child could not become its program.
pub fn refusal(failure: StartFailure) -> Refusal {
    let StartFailure { step, errno } = failure;
    match (step, errno) {
        (StartFailure::DIRECTORY, libc::ENOENT) => Refusal::new(Code::NotDirectory, "cwd does not exist"),
        (StartFailure::DIRECTORY, libc::ENOTDIR) => Refusal::new(Code::NotDirectory, "cwd is no directory"),
        (StartFailure::DIRECTORY, libc::EACCES) => Refusal::new(Code::Permission, "the user may not enter cwd"),
        (StartFailure::EXEC, libc::ENOENT | libc::ENOTDIR) => Refusal::new(Code::NotFound, "there is no such program"),
        (StartFailure::EXEC, libc::EACCES | libc::EPERM) => Refusal::new(Code::Permission, "the user may not execute it"),
        (StartFailure::EXEC, libc::ENOEXEC) => Refusal::bad_request("it is no program: it neither has a known format nor begins with #!"),
        (StartFailure::EXEC, libc::EAGAIN) => Refusal::new(Code::Internal, "the user has as many processes as may be"),
        (StartFailure::EXEC, libc::E2BIG) => Refusal::bad_request("arguments and environment are too long for the guest's kernel"),
        _ => Refusal::new(Code::Internal, format!("step {step} failed: {}", Errno::from_raw_os_error(errno))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request() -> Value {
        json!({ "envBytes": 0, "argvBytes": 3, "cwd": "/", "stdin": false, "pty": null, "background": false })
    }

    fn with(name: &str, value: Value) -> Result<Request, Refusal> {
        let mut json = request();
        json[name] = value;
        Request::parse(&json)
    }

    fn texts(strings: &[CString]) -> Vec<&str> {
        strings.iter().filter_map(|string| string.to_str().ok()).collect()
    }

    fn pending(env: &str, argv: &str, pty: Value) -> Pending {
        let mut json = request();
        (json["envBytes"], json["argvBytes"], json["pty"]) = (env.len().into(), argv.len().into(), pty);
        let mut pending = Pending::new(1, Request::parse(&json).expect("a request"));
        assert_eq!(pending.append(format!("{env}{argv}").as_bytes()), Ok(env.len() + argv.len()));
        assert!(pending.is_complete());
        pending
    }

    #[test]
    fn parameters_at_their_limits_pass_and_beyond_are_refused() {
        assert!(Request::parse(&request()).is_ok());
        for (name, good) in [
            ("argvBytes", json!(131_072)),
            ("cwd", json!(format!("/{}", "a".repeat(4_095)))),
            ("pty", json!({ "columns": 65_535, "rows": 1 })),
        ] {
            assert!(with(name, good).is_ok(), "{name}");
        }
        for (name, bad) in [
            ("argvBytes", json!(131_073)),
            ("argvBytes", json!(1)),
            ("argvBytes", json!(-1)),
            ("envBytes", json!(limits::ENV_BLOCK_BYTES + 1)),
            ("envBytes", json!("0")),
            ("cwd", json!("relative")),
            ("cwd", json!("/a\0b")),
            ("cwd", json!(format!("/{}", "a".repeat(4_096)))),
            ("cwd", Value::Null),
            ("stdin", Value::Null),
            ("background", json!(1)),
            ("pty", json!({ "columns": 0, "rows": 1 })),
            ("pty", json!({ "columns": 80, "rows": 65_536 })),
            ("pty", json!({ "columns": 80 })),
            ("pty", json!(true)),
        ] {
            assert!(with(name, bad.clone()).is_err(), "{name} {bad}");
        }
    }

    #[test]
    fn arguments_are_what_lies_between_the_nuls() {
        assert_eq!(texts(&pending("", "sh\0-c\0\0ü\0", Value::Null).arguments().expect("arguments")), ["sh", "-c", "", "ü"]);
        for bad in ["\0x\0", "x\0y", "\0\0"] {
            assert!(pending("", bad, Value::Null).arguments().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_environment_is_the_usual_one_with_the_requests_over_it() {
        let plain = pending("", "x\0", Value::Null).environment(&[]).expect("an environment");
        assert_eq!(texts(&plain), ENVIRONMENT);
        let size = json!({ "columns": 80, "rows": 24 });
        let own = pending("LANG=de\0A=b=c\0", "x\0", size.clone()).environment(&[]).expect("an environment");
        let own = texts(&own);
        assert!(own.contains(&"LANG=de") && own.contains(&"A=b=c") && own.contains(&"TERM=xterm-256color"), "{own:?}");
        assert_eq!(own.iter().filter(|entry| entry.starts_with("LANG=") || entry.starts_with("TERM=")).count(), 2);
        let named = pending("TERM=vt100\0", "x\0", size).environment(&[]).expect("an environment");
        assert!(texts(&named).contains(&"TERM=vt100") && named.len() == ENVIRONMENT.len());
        let further = pending("A=1\0", "x\0", Value::Null).environment(&[("A", "2"), ("B", "3")]).expect("an environment");
        assert!(texts(&further).ends_with(&["B=3", "A=1"]), "{further:?}");
        assert!(pending("PATH=/x\0", "x\0", Value::Null).environment(&[]).is_err());
    }

    #[test]
    fn a_body_that_is_longer_is_input_where_there_is_one() {
        let mut json = request();
        let mut refused = Pending::new(1, Request::parse(&json).expect("a request"));
        assert!(refused.append(b"ab\0c").is_err());
        json["stdin"] = true.into();
        let mut fed = Pending::new(1, Request::parse(&json).expect("a request"));
        assert_eq!((fed.append(b"a"), fed.is_complete()), (Ok(1), false));
        assert_eq!((fed.append(b"b\0in"), fed.is_complete(), fed.stdin.make_contiguous().to_vec()), (Ok(2), true, b"in".to_vec()));
    }

    #[test]
    fn a_start_that_fails_is_told_by_its_reason() {
        let code = |step, errno| refusal(StartFailure { step, errno }).code;
        for (step, errno, wanted) in [
            (StartFailure::DIRECTORY, libc::ENOENT, Code::NotDirectory),
            (StartFailure::DIRECTORY, libc::EACCES, Code::Permission),
            (StartFailure::EXEC, libc::ENOENT, Code::NotFound),
            (StartFailure::EXEC, libc::EACCES, Code::Permission),
            (StartFailure::EXEC, libc::ENOEXEC, Code::BadRequest),
            (StartFailure::EXEC, libc::E2BIG, Code::BadRequest),
            (StartFailure::EXEC, libc::EAGAIN, Code::Internal),
            (9, libc::EINVAL, Code::Internal),
        ] {
            assert_eq!(code(step, errno), wanted, "{step} {errno}");
        }
    }

    #[test]
    fn a_name_is_looked_for_on_the_path_and_a_path_is_not() {
        let name = |text: &str| CString::new(text).expect("no NUL");
        assert_eq!(texts(&candidates(&name("./x"))), ["./x"]);
        let found = candidates(&name("ls"));
        assert_eq!((texts(&found)[0], found.len()), ("/home/user/.local/bin/ls", 9));
    }
}
