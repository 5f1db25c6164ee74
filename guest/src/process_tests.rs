//! Tests of processes over a socketpair, with programs of the machine that runs the tests. Called by the server's one test function.
use super::*;
use crate::limits::{BACKGROUND_OUTPUT_BYTES, SESSION_PROCESSES};
use crate::wire::data;

/// What came of a process on one stream.
#[derive(Debug, Default)]
struct Seen {
    started: Option<Value>,
    out: Vec<u8>,
    err: Vec<u8>,
    answer: Value,
}

impl Seen {
    fn exit_code(&self) -> &Value {
        &self.answer["exitCode"]
    }

    fn code(&self) -> &Value {
        &self.answer["code"]
    }

    fn out(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

impl Host {
    fn spawn(&mut self, argv: &[&str], more: Value) -> u32 {
        let argv: String = argv.iter().map(|word| format!("{word}\0")).collect();
        let env = more["env"].as_str().unwrap_or("").to_owned();
        let mut open = json!({ "method": "spawn", "envBytes": env.len(), "argvBytes": argv.len(), "cwd": "/", "stdin": false, "pty": null,
            "background": false });
        for (name, value) in more.as_object().into_iter().flatten().filter(|(name, _)| *name != "env") {
            open[name] = value.clone();
        }
        let stream = self.open(&open);
        self.send(stream, Kind::Data, format!("{env}{argv}").as_bytes());
        stream
    }

    fn attach(&mut self, id: u64) -> u32 {
        self.open(&json!({ "method": "attach", "id": id, "stdin": true }))
    }

    /// Waits until it runs; returns its id.
    fn started(&mut self, stream: u32) -> u64 {
        loop {
            let (id, kind, flags, payload) = self.frame();
            if id == stream {
                assert_eq!((kind, flags), (Kind::Data, data::EVENT), "{}", String::from_utf8_lossy(&payload));
                return serde_json::from_slice::<Value>(&payload).expect("JSON")["id"].as_u64().expect("an id");
            }
        }
    }

    /// Collects until the stream is over, granting credit as asked.
    fn seen(&mut self, stream: u32) -> Seen {
        self.seen_until(stream, |_| false)
    }

    /// The same, or until `is_enough`.
    fn seen_until(&mut self, stream: u32, is_enough: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = Seen::default();
        while !is_enough(&seen) {
            let (id, kind, flags, payload) = self.frame();
            match (id == stream, kind, flags) {
                (true, Kind::Data, data::EVENT) => seen.started = serde_json::from_slice(&payload).ok(),
                (true, Kind::Data, data::STDOUT) => seen.out.extend_from_slice(&payload),
                (true, Kind::Data, _) => seen.err.extend_from_slice(&payload),
                (true, Kind::Result | Kind::Error, _) => {
                    seen.answer = serde_json::from_slice(&payload).expect("JSON");
                    return seen;
                }
                _ => continue,
            }
            self.send(stream, Kind::Credit, &(payload.len() as u32).to_le_bytes());
        }
        seen
    }

    fn asked(&mut self, request: Value) -> Value {
        let stream = self.open(&request);
        self.seen(stream).answer
    }

    fn list(&mut self) -> Vec<Value> {
        self.asked(json!({ "method": "process_list" }))["processes"].as_array().expect("a list").clone()
    }

    fn eventually(&mut self, what: &str, is_true: impl Fn(&mut Host) -> bool) {
        let start = Instant::now();
        while !is_true(self) {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn sh(code: &str) -> [&str; 3] {
    ["sh", "-c", code]
}

pub fn processes() {
    starts_and_ends();
    refusals();
    input();
    output_waits_for_credit();
    stops_and_signals();
    background();
    ended_ones_are_kept();
    bounds();
    terminals();
    clones();
    holds();
    bodies_that_break_off();
}

fn starts_and_ends() {
    let mut host = Host::greeted();
    let stream = host.spawn(&sh("echo out; echo err >&2; pwd; echo $A-$HOME; exit 7"), json!({ "env": "A=x\0", "cwd": "/usr" }));
    let seen = host.seen(stream);
    let started = seen.started.as_ref().expect("a start");
    assert!(started["id"] == 1 && started["pid"].as_u64().is_some_and(|pid| pid > 1), "{started}");
    assert_eq!((seen.out(), seen.err.as_slice(), seen.exit_code()), ("out\n/usr\nx-/home/user\n".to_owned(), &b"err\n"[..], &json!(7)));
    let stream = host.spawn(&sh("kill -9 $$"), json!({}));
    assert_eq!(host.seen(stream).exit_code(), &json!(137));
    // Beside an execution.
    let execution = host.start_exec("sleep 300\necho slow", 30_000);
    let stream = host.spawn(&["echo", "beside"], json!({}));
    assert_eq!(host.seen(stream).out(), "beside\n");
    assert_eq!(host.finish(execution, true).out, "slow");
    assert_eq!(host.list(), Vec::<Value>::new());
    // What it leaves running goes with it, and does not keep its output open.
    let stream = host.spawn(&sh("sleep 1000 & echo $!"), json!({}));
    let seen = host.seen(stream);
    let left = format!("/proc/{}/stat", seen.out().trim());
    host.eventually("the child has gone", |_| std::fs::read_to_string(&left).is_err());
}

fn refusals() {
    let mut host = Host::greeted();
    for (argv, more, wanted) in [
        (vec!["no-such-program"], json!({}), "not_found"),
        (vec!["/usr/no/such"], json!({}), "not_found"),
        (vec!["/etc/passwd/x"], json!({}), "not_found"),
        (vec!["/etc"], json!({}), "permission"),
        (vec!["true"], json!({ "cwd": "/no/such" }), "not_directory"),
        (vec!["true"], json!({ "cwd": "/etc/passwd" }), "not_directory"),
        (vec!["true"], json!({ "cwd": "relative" }), "bad_request"),
        (vec!["true"], json!({ "env": "PATH=x\0" }), "bad_request"),
        (vec![""], json!({}), "bad_request"),
    ] {
        let stream = host.spawn(&argv, more.clone());
        let seen = host.seen(stream);
        assert!(seen.code() == wanted && seen.started.is_none(), "{argv:?} {more}: {seen:?}");
    }
    let script = std::env::temp_dir().join(format!("sbx-no-program-{}", std::process::id()));
    std::fs::write(&script, "echo hi\n").expect("written");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let stream = host.spawn(&[script.to_str().expect("text")], json!({}));
    assert_eq!(host.seen(stream).code(), "bad_request");
    std::fs::remove_file(script).expect("removed");
    for (request, wanted) in [
        (json!({ "method": "attach", "id": 1, "stdin": true }), "not_found"),
        (json!({ "method": "attach", "id": 1 }), "bad_request"),
        (json!({ "method": "process_signal", "id": 99, "signal": 1 }), "not_found"),
    ] {
        assert_eq!(host.asked(request.clone())["code"], wanted, "{request}");
    }
}

fn input() {
    let mut host = Host::greeted();
    let stream = host.spawn(&["cat"], json!({}));
    assert_eq!(host.seen(stream).out(), "");
    let stream = host.spawn(&["cat"], json!({ "stdin": true }));
    host.started(stream);
    host.send(stream, Kind::Data, b"one ");
    assert_eq!(host.seen_until(stream, |seen| !seen.out.is_empty()).out(), "one ");
    host.send(stream, Kind::Data, b"two");
    host.send(stream, Kind::End, b"");
    let seen = host.seen(stream);
    assert_eq!((seen.out(), seen.exit_code()), ("two".to_owned(), &json!(0)));
    // More than the pipe and the credit hold comes in the end, and in order.
    let stream = host.spawn(&sh("sleep 0.2; wc -c"), json!({ "stdin": true }));
    for _ in 0..3 {
        host.send(stream, Kind::Data, &[b'x'; 65_536]);
    }
    let granted = loop {
        let (id, kind, _, payload) = host.frame();
        if id == stream && kind == Kind::Credit {
            break u32::from_le_bytes(payload.try_into().expect("four bytes"));
        }
    };
    assert!(granted >= 131_072);
    host.send(stream, Kind::End, b"");
    assert_eq!(host.seen(stream).out().trim(), "196608");
    // What nobody reads is dropped, and the credit comes back.
    let stream = host.spawn(&sh("exec <&-; echo closed; sleep 0.3"), json!({ "stdin": true }));
    host.seen_until(stream, |seen| !seen.out.is_empty());
    for _ in 0..3 {
        host.send(stream, Kind::Data, &[b'x'; 65_536]);
    }
    assert_eq!(host.seen(stream).exit_code(), &json!(0));
}

fn output_waits_for_credit() {
    let mut host = Host::greeted();
    let stream = host.spawn(&sh("head -c 1000000 /dev/zero; head -c 300000 /dev/zero >&2; echo end >&2"), json!({}));
    let mut received = 0;
    while received < 262_144 {
        let (id, _, _, payload) = host.frame();
        assert_eq!(id, stream);
        received += payload.len();
    }
    // The program waits; others are served.
    assert_eq!((received, host.call("ping"), host.run("echo fine").out), (262_144, json!({ "receivedBytes": 0 }), "fine".to_owned()));
    assert_eq!(host.list()[0]["exitCode"], Value::Null);
    host.send(stream, Kind::Credit, &262_144_u32.to_le_bytes());
    let seen = host.seen(stream);
    assert_eq!((seen.err.len(), seen.err.ends_with(b"end\n"), seen.exit_code()), (300_004, true, &json!(0)));
    // The end is told when the rest has been taken.
    let stream = host.spawn(&["head", "-c", "300000", "/dev/zero"], json!({}));
    host.started(stream);
    host.eventually("it has ended", |host| host.list().first().is_some_and(|process| process["exitCode"] == 0));
    host.send(stream, Kind::Credit, &300_000_u32.to_le_bytes());
    assert_eq!(host.seen(stream).exit_code(), &json!(0));
    // It may close its output and go on.
    let stream = host.spawn(&sh("exec >&- 2>&-; sleep 0.2; exit 3"), json!({}));
    assert_eq!(host.seen(stream).exit_code(), &json!(3));
}

fn stops_and_signals() {
    let mut host = Host::greeted();
    let stream = host.spawn(&["sleep", "1000"], json!({}));
    let id = host.started(stream);
    host.send(stream, Kind::Cancel, b"");
    assert_eq!(host.seen(stream).exit_code(), &json!(143));
    assert_eq!(host.asked(json!({ "method": "process_signal", "id": id, "signal": 15 })), json!({ "delivered": false }));
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let stream = host.spawn(&sh(stubborn), json!({}));
    host.seen_until(stream, |seen| !seen.out.is_empty());
    host.send(stream, Kind::Cancel, br#"{"graceMs":100}"#);
    assert_eq!(host.seen(stream).exit_code(), &json!(137));
    // Twice, and before the program can have been there.
    let stream = host.spawn(&sh(stubborn), json!({}));
    host.send(stream, Kind::Cancel, br#"{"graceMs":100}"#);
    host.send(stream, Kind::Cancel, br#"{"graceMs":60000}"#);
    let seen = host.seen(stream);
    assert!([json!(137), json!(143)].contains(seen.exit_code()), "{seen:?}");
    for (signal, wanted) in [(10, 138), (9, 137), (34, 162)] {
        let stream = host.spawn(&["sleep", "1000"], json!({}));
        let id = host.started(stream);
        assert_eq!(host.asked(json!({ "method": "process_signal", "id": id, "signal": signal })), json!({ "delivered": true }));
        assert_eq!(host.seen(stream).exit_code(), &json!(wanted));
    }
}

fn background() {
    let mut host = Host::greeted();
    let code = "echo first; read line; head -c 200000 /dev/zero | tr '\\0' y; echo last; echo warned >&2; read line; echo $line; exit 5";
    let stream = host.spawn(&sh(code), json!({ "background": true, "stdin": true }));
    let id = host.started(stream);
    host.send(stream, Kind::Data, b"go\n");
    host.send(stream, Kind::Cancel, b"");
    assert_eq!(host.seen(stream).exit_code(), &Value::Null);
    let info = host.list()[0].clone();
    assert_eq!(
        (&info["id"], &info["attached"], &info["background"], &info["exitCode"]),
        (&json!(id), &json!(false), &json!(true), &Value::Null)
    );
    assert_eq!(info["argv"][0], "sh");
    std::thread::sleep(Duration::from_millis(500));
    let stream = host.attach(id);
    let seen = host.seen_until(stream, |seen| seen.out.len() >= BACKGROUND_OUTPUT_BYTES && !seen.err.is_empty());
    assert_eq!((seen.out.len(), seen.out.ends_with(b"ylast\n")), (BACKGROUND_OUTPUT_BYTES, true));
    assert_eq!((seen.started.expect("a start")["id"].as_u64(), seen.err.as_slice()), (Some(id), &b"warned\n"[..]));
    host.send(stream, Kind::Data, b"again\n");
    let seen = host.seen(stream);
    assert_eq!((seen.out(), seen.exit_code()), ("again\n".to_owned(), &json!(5)));
    // While another stream has it.
    let stream = host.spawn(&["sleep", "1000"], json!({}));
    let id = host.started(stream);
    let second = host.attach(id);
    assert_eq!(host.seen(second).code(), "busy");
    host.send(stream, Kind::Cancel, b"");
    host.seen(stream);
    // What it started goes on when it ends, and may still print.
    let stream = host.spawn(&sh("(sleep 0.3; echo x; echo y; exec sleep 1000) & echo $!"), json!({ "background": true }));
    let pid: i32 = host.seen(stream).out().trim().parse().expect("a pid");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(host.call("ping"), json!({ "receivedBytes": 0 }));
    let alive = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(alive, rustix::process::Signal::KILL).expect("alive");
}

fn ended_ones_are_kept() {
    let mut host = Host::greeted();
    for number in 0..SESSION_PROCESSES + 2 {
        let stream = host.spawn(&sh(&format!("read line; echo {number}; exit {number}")), json!({ "background": true, "stdin": true }));
        host.started(stream);
        host.send(stream, Kind::Data, b"go\n");
        host.send(stream, Kind::Cancel, b"");
        host.seen(stream);
        host.eventually("it has ended", |host| host.list().iter().all(|process| !process["exitCode"].is_null()));
    }
    let kept: Vec<_> = host.list().iter().map(|process| process["exitCode"].as_u64().expect("a code")).collect();
    assert_eq!(kept.len(), SESSION_PROCESSES);
    assert_eq!((kept.first(), kept.last()), (Some(&2), Some(&33)));
    let id = host.list()[5]["id"].as_u64().expect("an id");
    let stream = host.attach(id);
    let seen = host.seen(stream);
    assert_eq!((seen.out(), seen.exit_code()), ("7\n".to_owned(), &json!(7)));
    let stream = host.attach(id);
    assert_eq!(host.seen(stream).code(), "not_found");
    assert_eq!(host.list().len(), SESSION_PROCESSES - 1);
}

fn bounds() {
    let mut host = Host::greeted();
    let streams: Vec<_> = (0..SESSION_PROCESSES).map(|_| host.spawn(&["sleep", "1000"], json!({}))).collect();
    let stream = host.spawn(&["true"], json!({}));
    assert_eq!(host.seen(stream).code(), "busy");
    assert_eq!(host.run("echo fine").out, "fine");
    for stream in streams {
        host.send(stream, Kind::Cancel, b"");
        assert_eq!(host.seen(stream).exit_code(), &json!(143));
    }
    let stream = host.spawn(&["true"], json!({}));
    assert_eq!(host.seen(stream).exit_code(), &json!(0));
}

fn terminals() {
    let mut host = Host::greeted();
    let size = json!({ "columns": 90, "rows": 30 });
    let code = "tty >/dev/null && stty size; trap 'stty size; exit 4' WINCH; echo $TERM; while :; do sleep 0.05; done";
    let stream = host.spawn(&sh(code), json!({ "pty": size.clone(), "stdin": true }));
    let id = host.started(stream);
    assert_eq!(host.seen_until(stream, |seen| seen.out.ends_with(b"xterm-256color\r\n")).out(), "30 90\r\nxterm-256color\r\n");
    assert_eq!(host.list()[0]["pty"], true);
    assert_eq!(host.asked(json!({ "method": "process_resize", "id": id, "columns": 100, "rows": 40 })), json!({}));
    let seen = host.seen(stream);
    assert_eq!((seen.out(), seen.exit_code()), ("40 100\r\n".to_owned(), &json!(4)));
    assert_eq!(host.asked(json!({ "method": "process_resize", "id": id, "columns": 1, "rows": 1 })), json!({}));
    // The end of the input is typed, and within a line too; a Ctrl-C reaches the program.
    for (typed, wanted) in [("line\n", "line\r\nline\r\n"), ("cut", "cutcut")] {
        let stream = host.spawn(&["cat"], json!({ "pty": size.clone(), "stdin": true }));
        host.started(stream);
        host.send(stream, Kind::Data, typed.as_bytes());
        host.send(stream, Kind::End, b"");
        let seen = host.seen(stream);
        assert_eq!((seen.out().replace("^D\u{8}\u{8}", ""), seen.exit_code()), (wanted.to_owned(), &json!(0)), "{typed:?}");
    }
    let stream = host.spawn(&["cat"], json!({ "pty": size.clone() }));
    assert_eq!(host.seen(stream).exit_code(), &json!(0));
    let stream = host.spawn(&["cat"], json!({ "pty": size.clone(), "stdin": true }));
    host.started(stream);
    host.send(stream, Kind::Data, b"\x03");
    assert_eq!(host.seen(stream).exit_code(), &json!(130));
    // A hang-up ends a shell that does not mind SIGTERM, long before the grace is over.
    let stream = host.spawn(&["bash", "--norc", "-i"], json!({ "pty": size, "stdin": true }));
    host.seen_until(stream, |seen| seen.out().contains('$') || seen.out().contains('#'));
    host.send(stream, Kind::Cancel, br#"{"graceMs":60000}"#);
    // Whether bash sees the signal or the end of its input first is a race of the kernel's.
    assert!([json!(129), json!(0)].contains(host.seen(stream).exit_code()));
    let stream = host.spawn(&["sleep", "1000"], json!({}));
    let id = host.started(stream);
    assert_eq!(host.asked(json!({ "method": "process_resize", "id": id, "columns": 1, "rows": 1 }))["code"], "bad_request");
    host.send(stream, Kind::Cancel, b"");
    host.seen(stream);
}

fn clones() {
    let mut host = Host::greeted();
    let kept = host.spawn(&sh("read line; echo $line"), json!({ "background": true, "stdin": true }));
    let id = host.started(kept);
    let other = host.spawn(&["sleep", "1000"], json!({}));
    host.started(other);
    host.open(&json!({ "method": "spawn", "envBytes": 0, "argvBytes": 5, "cwd": "/", "stdin": false, "pty": null, "background": false }));
    host.hello("vm-2", 0);
    host.last_stream = 0;
    let list = host.list();
    assert_eq!((list.len(), list[0]["id"].as_u64()), (2, Some(id)));
    assert!(list.iter().all(|process| process["attached"] == false && process["exitCode"].is_null()), "{list:?}");
    let stream = host.attach(id);
    host.send(stream, Kind::Data, b"still here\n");
    assert_eq!(host.seen(stream).out(), "still here\n");
    let id = list[1]["id"].as_u64();
    assert_eq!(host.asked(json!({ "method": "process_signal", "id": id, "signal": 9 })), json!({ "delivered": true }));
}

/// A copy is made of a machine whose processes run: what they write meanwhile comes after the next HELLO, and once.
fn holds() {
    for id in ["vm-1", "vm-2"] {
        let mut host = Host::greeted();
        let path = format!("{}/written", host.home.home());
        let code = format!("read line; echo held; : > {path}; read line; echo $line");
        let stream = host.spawn(&sh(&code), json!({ "background": true, "stdin": true }));
        let process = host.started(stream);
        // Both in one turn: the answer comes before what the process then writes.
        host.last_stream += 1;
        let hold = host.last_stream;
        let open = json!({ "method": "quiesce", "hold": true }).to_string();
        host.send_at_once(&[(stream, Kind::Data, b"go\n"), (hold, Kind::Open, open.as_bytes())]);
        let (answered, kind, _, payload) = host.frame();
        assert_eq!((answered, kind, payload.as_slice()), (hold, Kind::Result, &br#"{"held":true}"#[..]));
        host.eventually("it has written", |_| std::path::Path::new(&path).exists());
        assert!(host.is_silent());
        host.hello(id, 0);
        let stream = match id {
            "vm-1" => stream,
            _ => {
                host.last_stream = 0;
                let stream = host.attach(process);
                host.started(stream);
                stream
            }
        };
        host.send(stream, Kind::Data, b"over\n");
        assert_eq!(host.seen(stream).out(), "held\nover\n");
    }
    let mut host = Host::greeted();
    let open = json!({ "method": "spawn", "envBytes": 0, "argvBytes": 5, "cwd": "/", "stdin": false, "pty": null, "background": false });
    let stream = host.open(&open);
    assert_eq!(host.asked(json!({ "method": "quiesce", "hold": true }))["code"], "busy");
    assert_eq!(host.asked(json!({ "method": "quiesce", "hold": 1 }))["code"], "busy");
    host.send(stream, Kind::Cancel, b"");
    assert_eq!(host.seen(stream).exit_code(), &Value::Null);
    assert_eq!(host.asked(json!({ "method": "quiesce", "hold": 1 }))["code"], "bad_request");
    assert_eq!(host.asked(json!({ "method": "quiesce", "hold": true }))["held"], true);
    host.open(&json!({ "method": "ping" }));
    assert!(host.end().contains("held"));
}

fn bodies_that_break_off() {
    let mut host = Host::greeted();
    let open = json!({ "method": "spawn", "envBytes": 0, "argvBytes": 5, "cwd": "/", "stdin": false, "pty": null, "background": false });
    let stream = host.open(&open);
    host.send(stream, Kind::Data, b"tru");
    host.send(stream, Kind::End, b"");
    assert_eq!(host.seen(stream).code(), "bad_request");
    let stream = host.open(&open);
    host.send(stream, Kind::Cancel, b"");
    assert_eq!(host.seen(stream).exit_code(), &Value::Null);
    let stream = host.open(&open);
    host.send(stream, Kind::Data, b"true\0and more");
    assert_eq!(host.seen(stream).code(), "bad_request");
    let stream = host.spawn(&["sleep", "5"], json!({})); // Nobody ends it: the agent is over.
    host.started(stream);
    host.send(stream, Kind::Data, b"unasked");
    assert!(host.end().contains("not asked for"));
}
