//! Tests of the server over a socketpair, with a language of our own: this test program itself, started anew, is the REPL.
//! One test function, because a server waits for all children of its process.
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use super::*;
use crate::home::tests::TestHome;
use crate::repl::Program;
use crate::wire::{self, Kind};

/// The fake language. A program is lines of `WORD ARGUMENT`.
#[test]
fn repl_process() {
    if std::env::var_os("SBX_TEST_REPL").is_none() {
        return;
    }
    let mut control = UnixStream::from(crate::sys::inherited_control());
    control.write_all(b"R").expect("ready");
    let mut header = [0; 24];
    while control.read_exact(&mut header).is_ok() {
        let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(field(0), 0x3258_4253);
        let mut rest = vec![0; (field(12) + field(16) + field(20)) as usize];
        control.read_exact(&mut rest).expect("a request");
        let code = String::from_utf8(rest.split_off((field(12) + field(16)) as usize)).expect("text");
        let exit_code = run_program(&code, field(4), field(12), &rest[field(12) as usize..], &mut control);
        let mut reply = [&header[4..8], &[0; 4][..], &exit_code.to_le_bytes()[..]].concat();
        reply.extend_from_slice(&u32::MAX.to_le_bytes());
        control.write_all(&reply).expect("a reply");
    }
    std::process::exit(0);
}

fn run_program(code: &str, id: u32, seed_bytes: u32, env: &[u8], control: &mut UnixStream) -> i32 {
    let mut exit_code = 0;
    for line in code.lines() {
        let (word, argument) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "echo" => print(&mut std::io::stdout(), argument.as_bytes()),
            "warn" => print(&mut std::io::stderr(), argument.as_bytes()),
            "seed" => print(&mut std::io::stdout(), seed_bytes.to_string().as_bytes()),
            "env" => print(&mut std::io::stdout(), env),
            "flood" => print(&mut std::io::stdout(), &vec![b'f'; argument.parse().expect("a number")]),
            "sleep" => std::thread::sleep(Duration::from_millis(argument.parse().expect("a number"))),
            "exit" => exit_code = argument.parse().expect("a number"),
            "die" => std::process::exit(argument.parse().expect("a number")),
            "show" => {
                let item = vec![b'd'; argument.parse().expect("a number")];
                let header = [id, 1, 0, item.len() as u32].map(u32::to_le_bytes).concat();
                control.write_all(&[header, item].concat()).expect("written");
            }
            "garbage" => control.write_all(b"garbage").expect("written"),
            "later" => {
                let text = argument.to_owned();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(150));
                    print(&mut std::io::stdout(), text.as_bytes());
                });
            }
            "fall" => {
                std::thread::spawn(|| {
                    std::thread::sleep(Duration::from_millis(100));
                    std::process::exit(3);
                });
            }
            other => panic!("no word {other}"),
        }
    }
    exit_code
}

fn print(to: &mut dyn Write, bytes: &[u8]) {
    to.write_all(bytes).and_then(|()| to.flush()).expect("printed");
}

fn pong() -> Value {
    json!({ "receivedBytes": 0 })
}

static HOSTS: AtomicU32 = AtomicU32::new(0);

/// The host.
struct Host {
    home: TestHome,
    socket: UnixStream,
    buffer: Vec<u8>,
    last_stream: u32,
    server: Option<std::thread::JoinHandle<Fatal>>,
}

#[derive(Debug)]
struct Outcome {
    out: String,
    err: String,
    shown: Vec<u8>,
    answer: Value,
}

impl Host {
    fn start() -> Host {
        let (ours, theirs) = UnixStream::pair().expect("a socketpair");
        ours.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        theirs.set_nonblocking(true).expect("non-blocking");
        let home = TestHome::new(&format!("server-{}", HOSTS.fetch_add(1, Ordering::Relaxed)));
        let files = Files::new(&home.home(), home.user);
        let server = std::thread::spawn(move || {
            let text = |text: &str| CString::new(text).expect("no NUL");
            let path = std::env::current_exe().expect("a path").to_string_lossy().into_owned();
            let args = [path.as_str(), "--exact", "server::tests::repl_process", "--nocapture", "--quiet"].map(text);
            let program = Program {
                path: text(&path),
                args: args.into(),
                is_shell: false,
                interrupt_repeats: 1,
                directory: text("/"),
                env: vec![text("SBX_TEST_REPL=1")],
            };
            let repl = Repl::start(program, None, None, now_us()).expect("a process");
            Server { files, ..Server::new(theirs.into(), ticks(), repl, json!({ "protocol": 1 })) }.run()
        });
        let mut host = Host { home, socket: ours, buffer: Vec::new(), last_stream: 0, server: Some(server) };
        assert_eq!(host.frame().1, Kind::Hello);
        host
    }

    fn greeted() -> Host {
        let mut host = Host::start();
        host.hello("vm-1", 0);
        // What the framework printed before the first execution is held and comes with it.
        host.run("exit 0");
        host
    }

    fn send(&mut self, stream: u32, kind: Kind, payload: &[u8]) {
        self.send_at_once(&[(stream, kind, payload)]);
    }

    fn send_at_once(&mut self, frames: &[(u32, Kind, &[u8])]) {
        let mut bytes = Vec::new();
        for (stream, kind, payload) in frames {
            wire::put_header(&mut bytes, *stream, *kind, 0, payload.len());
            bytes.extend_from_slice(payload);
        }
        self.socket.write_all(&bytes).expect("sent");
    }

    fn frame(&mut self) -> (u32, Kind, u8, Vec<u8>) {
        loop {
            if let Some((frame, bytes)) = wire::parse(&self.buffer).expect("a frame") {
                let owned = (frame.stream, frame.kind, frame.flags, frame.payload.to_vec());
                self.buffer.drain(..bytes);
                return owned;
            }
            let mut chunk = [0; 65_536];
            let bytes = match self.socket.read(&mut chunk) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                bytes => bytes.expect("read"),
            };
            assert!(bytes > 0, "the server has gone");
            self.buffer.extend_from_slice(&chunk[..bytes]);
        }
    }

    /// Nothing more has come from the server.
    fn is_silent(&mut self) -> bool {
        self.socket.set_nonblocking(true).expect("non-blocking");
        let bytes = self.socket.read(&mut [0; 64]);
        self.socket.set_nonblocking(false).expect("blocking");
        self.buffer.is_empty() && bytes.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    fn hello(&mut self, id: &str, silence_ms: u64) {
        let hello = json!({ "protocol": 1, "id": id, "clockUs": 1, "entropy": "0f".repeat(64), "silenceMs": silence_ms });
        self.send(0, Kind::Hello, hello.to_string().as_bytes());
        let (_, kind, _, payload) = self.frame();
        assert_eq!((kind, serde_json::from_slice::<Value>(&payload).expect("JSON")["id"].as_str()), (Kind::Hello, Some(id)));
    }

    fn open(&mut self, json: &Value) -> u32 {
        self.last_stream += 1;
        self.send(self.last_stream, Kind::Open, json.to_string().as_bytes());
        self.last_stream
    }

    fn start_exec(&mut self, code: &str, timeout_ms: u64) -> u32 {
        self.start_exec_as(code, timeout_ms, false)
    }

    fn start_exec_as(&mut self, code: &str, timeout_ms: u64, is_final: bool) -> u32 {
        let stream = self.open(&json!({"method": "exec", "envBytes": 0, "codeBytes": code.len(), "timeoutMs": timeout_ms,
            "stdin": false, "final": is_final, "stdoutLimit": 1_000_000, "stderrLimit": 100_000}));
        for chunk in code.as_bytes().chunks(65_536) {
            self.send(stream, Kind::Data, chunk);
        }
        stream
    }

    /// Collects until the stream is over, granting credit as asked.
    fn finish(&mut self, stream: u32, grants: bool) -> Outcome {
        let mut output = [Vec::new(), Vec::new(), Vec::new()];
        loop {
            let (id, kind, flags, payload) = self.frame();
            if id != stream {
                continue;
            }
            match kind {
                Kind::Data => {
                    output[usize::from(flags) - 1].extend_from_slice(&payload);
                    if grants {
                        self.send(stream, Kind::Credit, &(payload.len() as u32).to_le_bytes());
                    }
                }
                Kind::Result | Kind::Error => {
                    let [out, err, shown] = output;
                    let [out, err] = [out, err].map(|bytes| String::from_utf8(bytes).expect("text"));
                    return Outcome { out, err, shown, answer: serde_json::from_slice(&payload).expect("JSON") };
                }
                // For the body.
                Kind::Credit => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn run(&mut self, code: &str) -> Outcome {
        let stream = self.start_exec(code, 30_000);
        self.finish(stream, true)
    }

    fn call(&mut self, method: &str) -> Value {
        let stream = self.open(&json!({ "method": method }));
        loop {
            let (id, _, _, payload) = self.frame();
            if id == stream {
                return serde_json::from_slice(&payload).expect("JSON");
            }
        }
    }

    /// Waits for the server's end.
    fn end(mut self) -> String {
        let server = self.server.take().expect("a server");
        server.join().expect("no panic").to_string()
    }
}

#[path = "files_tests.rs"]
mod files;
#[path = "process_tests.rs"]
mod processes;

/// A server waits for any child of its process: none may outlive its test.
impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// In place of the signal that a child has ended, which another thread of this process may take: a descriptor that is readable often.
fn ticks() -> OwnedFd {
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC).expect("a timer");
    let interval = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    let times = Itimerspec { it_interval: interval, it_value: interval };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times).expect("set");
    timer
}

/// A request that ends the machine, and a word of the reason.
type Offence = (fn(&mut Host), &'static str);

#[test]
fn server() {
    results_and_output();
    output_caps_and_credit();
    display_data();
    replaced_processes();
    a_loss_between_executions_is_told_once();
    stops();
    background_output();
    concurrency_and_refusals();
    files::transfers();
    clones();
    ends();
    processes::processes();
}

fn results_and_output() {
    let mut host = Host::greeted();
    let outcome = host.run("echo hi\nwarn oops\nexit 7");
    assert_eq!((outcome.out.as_str(), outcome.err.as_str(), &outcome.answer["exitCode"]), ("hi", "oops", &json!(7)));
    assert_eq!((&outcome.answer["timedOut"], &outcome.answer["reset"]), (&json!(false), &json!(false)));
    let long = format!("echo {}", "x".repeat(900_000));
    assert_eq!(host.run(&long).out.len(), 900_000);
    assert_eq!(host.call("ping"), pong());
    drop(host.socket.shutdown(std::net::Shutdown::Both));
    assert!(host.end().contains("closed the control port"));
}

fn output_caps_and_credit() {
    let mut host = Host::greeted();
    let outcome = host.run("flood 1000000");
    assert_eq!((outcome.out.len(), &outcome.answer["outputLimit"]), (1_000_000, &Value::Null));
    let outcome = host.run("flood 1000001");
    assert_eq!((outcome.out.len(), &outcome.answer["outputLimit"]), (1_000_000, &json!("stdout")));
    // Without credit the program waits; others are served meanwhile.
    let stream = host.start_exec("flood 500000", 30_000);
    let mut received = 0;
    while received < 262_144 {
        received += host.frame().3.len();
    }
    assert_eq!((received, host.call("ping")), (262_144, pong()));
    host.send(stream, Kind::Credit, &500_000_u32.to_le_bytes());
    assert_eq!(host.finish(stream, false).out.len(), 500_000 - 262_144);
}

fn display_data() {
    let mut host = Host::greeted();
    let outcome = host.run("show 5\necho x\nshow 400000\nshow 1\nexit 3");
    let item = |bytes: usize| [(bytes as u32).to_le_bytes().to_vec(), vec![b'd'; bytes]].concat();
    assert!(outcome.shown == [item(5), item(400_000), item(1)].concat(), "{} bytes", outcome.shown.len());
    assert_eq!((outcome.out.as_str(), &outcome.answer["exitCode"]), ("x", &json!(3)));
    // Without credit the program waits; others are served meanwhile.
    let stream = host.start_exec("show 500000\nexit 4", 30_000);
    let mut received = 0;
    while received < 262_144 {
        received += host.frame().3.len();
    }
    assert_eq!((received, host.call("ping")), (262_144, pong()));
    host.send(stream, Kind::Credit, &500_000_u32.to_le_bytes());
    let outcome = host.finish(stream, false);
    assert_eq!((outcome.shown.len(), &outcome.answer["exitCode"]), (500_004 - 262_144, &json!(4)));
    for code in ["show 8388609", "show 8388608\nshow 8388608\nshow 1", "show 0"] {
        assert_eq!(host.run(code).answer["reset"], true, "{code}");
    }
}

fn replaced_processes() {
    let mut host = Host::greeted();
    for (code, exit_code) in [("echo last words\ndie 5", 5), ("garbage", 137)] {
        let outcome = host.run(code);
        assert_eq!((&outcome.answer["exitCode"], &outcome.answer["reset"]), (&json!(exit_code), &json!(true)), "{code}");
        assert!(host.run("echo alive").out.ends_with("alive"), "{code}");
    }
    // A process whose program is over is not used again, whatever it waits for.
    let stream = host.start_exec_as("echo over", 30_000, true);
    assert_eq!(host.finish(stream, true).answer["reset"], false);
    for (code, is_reset) in [("exit 3", true), ("exit 4", false)] {
        let outcome = host.run(code);
        assert_eq!(
            (&outcome.answer["exitCode"], &outcome.answer["reset"]),
            (&json!(code[5..].parse::<i32>().ok()), &json!(is_reset)),
            "{code}"
        );
    }
}

fn a_loss_between_executions_is_told_once() {
    let mut host = Host::greeted();
    assert_eq!(host.run("fall").answer["reset"], false);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((host.run("exit 0").answer["reset"].clone(), host.run("exit 0").answer["reset"].clone()), (json!(true), json!(false)));
}

fn stops() {
    let mut host = Host::greeted();
    let stream = host.start_exec("echo begun\nsleep 20000", 200);
    let outcome = host.finish(stream, true);
    assert_eq!(
        (&outcome.answer["exitCode"], &outcome.answer["timedOut"], &outcome.answer["reset"]),
        (&json!(-1), &json!(true), &json!(true))
    );
    assert_eq!(outcome.out, "begun");
    host.run("exit 0");
    let stream = host.start_exec("echo begun\nsleep 20000", 30_000);
    host.frame();
    // Later than the agent repeats an interrupt, which this process would not survive.
    std::thread::sleep(Duration::from_millis(300));
    host.send(stream, Kind::Cancel, br#"{"graceMs":5000}"#);
    assert_eq!(host.finish(stream, true).answer["exitCode"], 130);
    // Cancelled before its body was there: nothing ran.
    let stream = host.open(
        &json!({"method": "exec", "envBytes": 0, "codeBytes": 9, "timeoutMs": 1000, "stdin": false, "stdoutLimit": 1, "stderrLimit": 1}),
    );
    host.send(stream, Kind::Cancel, b"");
    assert_eq!(host.finish(stream, true).answer["exitCode"], 130);
    assert_eq!(host.call("interrupt"), json!({ "interrupted": false }));
}

fn background_output() {
    let mut host = Host::greeted();
    assert_eq!(host.run("later behind\necho now").out, "now");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(host.run("echo  next").out, "behind next");
}

fn concurrency_and_refusals() {
    let mut host = Host::greeted();
    let slow = host.start_exec("sleep 300\necho slow", 30_000);
    let second = host.start_exec("echo no", 30_000);
    assert_eq!(host.finish(second, true).answer["code"], "busy");
    assert_eq!((host.call("ping"), host.call("quiesce")["code"].clone()), (pong(), json!("busy")));
    assert_eq!(host.finish(slow, true).out, "slow");
    assert_eq!((host.call("nonsense")["code"].clone(), host.call("quiesce")), (json!("unknown_method"), json!({})));
    for (code, wanted) in [("a\0b", "bad_request"), (" \n ", "bad_request")] {
        let stream = host.start_exec(code, 30_000);
        assert_eq!(host.finish(stream, true).answer["code"], wanted);
    }
    let stream = host.start_exec("echo x", 300_001);
    assert_eq!(host.finish(stream, true).answer["code"], "limit");
    // Frames that crossed with the answer are ignored.
    for kind in [Kind::Cancel, Kind::End] {
        host.send(stream, kind, b"");
    }
    assert_eq!(host.run("echo fine").out, "fine");
}

fn clones() {
    let mut host = Host::greeted();
    assert_eq!(host.run("seed").out, "0");
    host.hello("vm-1", 0);
    assert_eq!(host.run("seed").out, "32");
    assert_eq!(host.run("seed").out, "0");
    host.hello("vm-2", 0);
    host.last_stream = 0;
    assert_eq!(host.run("seed").out, "32");
}

fn ends() {
    let offences: [Offence; 8] = [
        (|host| host.socket.write_all(&[0xff; 12]).expect("sent"), "too_long"),
        (|host| host.send(9, Kind::End, b""), "never opened"),
        (|host| host.send(host.last_stream, Kind::Open, br#"{"method":"ping"}"#), "used stream"),
        (|host| host.send(host.last_stream + 1, Kind::Open, b"{"), "bad JSON"),
        (|host| host.send(0, Kind::Hello, b"{}"), "HELLO without"),
        (|host| host.send(1, Kind::Result, b"{}"), "never comes from the host"),
        (
            |host| {
                host.open(&json!({ "method": "poweroff" }));
            },
            "asked for it",
        ),
        (
            |host| {
                host.hello("vm-1", 100);
                std::thread::sleep(Duration::from_millis(50));
            },
            "silent",
        ),
    ];
    for (offend, reason) in offences {
        let mut host = Host::greeted();
        let start = Instant::now();
        offend(&mut host);
        let end = host.end();
        assert!(end.contains(reason) && start.elapsed() < Duration::from_secs(2), "{reason}: {end}");
    }
    let mut host = Host::start();
    host.send(1, Kind::Open, br#"{"method":"ping"}"#);
    assert!(host.end().contains("before HELLO"));
}
