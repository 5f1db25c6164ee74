//! Tests of file requests over the wire, against a directory of the machine that the tests run on.
use super::*;

pub fn transfers() {
    let mut host = Host::greeted();
    writes_and_reads(&mut host);
    refusals(&mut host);
    listings_and_trees(&mut host);
    credit_and_turns(&mut host);
    cancelled_and_broken_writes(&mut host);
    files_that_change(&mut host);
    drop(host);
    a_new_host_finds_nothing_of_the_old_one();
}

impl Host {
    fn ask(&mut self, request: &Value) -> Value {
        let stream = self.open(request);
        self.finish(stream, true).answer
    }

    fn start_write(&mut self, path: &str, body: &[u8], size: Option<usize>) -> u32 {
        let stream = self.open(&json!({ "method": "file_write", "path": path, "mode": null, "size": size }));
        for chunk in body.chunks(wire::PAYLOAD_BYTES) {
            self.send(stream, Kind::Data, chunk);
        }
        stream
    }

    fn write(&mut self, path: &str, body: &[u8]) -> Value {
        let stream = self.start_write(path, body, Some(body.len()));
        self.send(stream, Kind::End, b"");
        self.finish(stream, true).answer
    }

    fn read(&mut self, path: &str) -> Outcome {
        let stream = self.open(&json!({ "method": "file_read", "path": path }));
        self.finish(stream, true)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.home.home()).expect("a directory");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn writes_and_reads(host: &mut Host) {
    assert_eq!(host.write("new/dir/a.txt", b"hello"), json!({ "bytes": 5 }));
    let read = host.read("new/dir/./a.txt");
    assert_eq!((read.out.as_str(), &read.answer), ("hello", &json!({ "bytes": 5 })));
    let empty = (host.write("empty", b""), host.read("empty").answer);
    assert_eq!(empty, (json!({ "bytes": 0 }), json!({ "bytes": 0 })));
    let large = "0123456789abcdef".repeat(12_500);
    assert_eq!(host.write("large", large.as_bytes()), json!({ "bytes": 200_000 }));
    assert_eq!(host.read("large").out, large);
    let stat = host.ask(&json!({ "method": "file_stat", "path": "large", "follow": true }));
    assert_eq!(
        (&stat["name"], &stat["type"], &stat["size"], &stat["mode"]),
        (&json!("large"), &json!("file"), &json!(200_000), &json!(0o644))
    );
    // A replaced file's mode stays, without bits that give rights.
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let path = format!("{}/large", host.home.home());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4751)).expect("a mode");
    host.write("large", b"small");
    let status = std::fs::metadata(&path).expect("a file");
    assert_eq!((status.len(), status.mode() & 0o7777), (5, 0o751));
    if let Some((uid, gid)) = host.home.user.ids {
        assert_eq!((status.uid(), status.gid()), (uid, gid));
    }
    host.ask(&json!({ "method": "file_rename", "from": "large", "to": "new/moved" }));
    assert_eq!((host.read("new/moved").out.as_str(), &host.read("large").answer["code"]), ("small", &json!("not_found")));
}

fn refusals(host: &mut Host) {
    let home = host.home.home();
    std::os::unix::fs::symlink("/etc", format!("{home}/out")).expect("a link");
    rustix::fs::mknodat(rustix::fs::CWD, format!("{home}/fifo"), rustix::fs::FileType::Fifo, 0o666.into(), 0).expect("a FIFO");
    let long = "x".repeat(256);
    for (method, path, code) in [
        ("file_read", "nothing", "not_found"),
        ("file_read", "new", "is_directory"),
        ("file_read", "empty/x", "not_directory"),
        ("file_read", "fifo", "not_a_file"),
        ("file_read", "/etc/passwd", "permission"),
        ("file_read", "../x", "permission"),
        ("file_read", "out/passwd", "permission"),
        ("file_read", "a\0", "bad_request"),
        ("file_read", &long, "limit"),
        ("file_read", "", "is_directory"),
        ("file_write", "", "bad_request"),
        ("file_write", "new", "is_directory"),
        ("file_write", "fifo", "not_a_file"),
        ("file_write", "out/x", "permission"),
        ("file_write", "out", "permission"),
        ("file_write", "..", "permission"),
        ("file_write", "empty/x", "not_directory"),
        ("file_list", "empty", "not_directory"),
        ("file_list", "out", "permission"),
        ("file_list", "nothing", "not_found"),
        ("file_stat", "nothing", "not_found"),
        ("file_stat", "out", "permission"),
        ("file_make_directory", "new", "exists"),
        ("file_make_directory", "absent/x", "not_found"),
        ("file_make_directory", "out/x", "permission"),
        ("file_remove", "new", "not_empty"),
        ("file_remove", "nothing", "not_found"),
        ("file_remove", "new/..", "permission"),
        ("file_remove", "", "bad_request"),
        ("file_nonsense", "x", "unknown_method"),
    ] {
        assert_eq!(host.ask(&json!({ "method": method, "path": path }))["code"], code, "{method} {path:.20}");
    }
    for bad in [
        json!({ "method": "file_read" }),
        json!({ "method": "file_read", "path": 5 }),
        json!({ "method": "file_write", "path": "x", "size": -1 }),
        json!({ "method": "file_write", "path": "x", "mode": "0644" }),
        json!({ "method": "file_remove", "path": "x", "recursive": 1 }),
        json!({ "method": "file_rename", "from": "new" }),
        json!({ "method": "file_rename", "from": "new", "to": "new/below" }),
    ] {
        assert_eq!(host.ask(&bad)["code"], "bad_request", "{bad}");
    }
    let too_large = json!({ "method": "file_write", "path": "x", "size": limits::FILE_BYTES + 1 });
    assert_eq!(host.ask(&too_large)["code"], "too_large");
    assert_eq!(host.ask(&json!({ "method": "file_stat", "path": "out", "follow": false }))["type"], "symlink");
    assert!(!host.names().iter().any(|name| name.starts_with(".sbx-")), "{:?}", host.names());
}

fn listings_and_trees(host: &mut Host) {
    use std::os::unix::ffi::OsStrExt;
    let make = |path: &str| json!({ "method": "file_make_directory", "path": path, "recursive": true, "mode": 0o750 });
    for path in ["tree/a/b", "tree/a/b", "tree/c"] {
        assert_eq!(host.ask(&make(path)), json!({}));
    }
    assert_eq!(host.ask(&json!({ "method": "file_stat", "path": "tree/a/b" }))["mode"], 0o750);
    assert_eq!(host.ask(&make("empty"))["code"], "exists");
    let tree = format!("{}/tree", host.home.home());
    for name in [&b"\xff\n\""[..], &[b'\x01'; 255]] {
        std::fs::write(std::path::Path::new(&tree).join(std::ffi::OsStr::from_bytes(name)), "").expect("written");
    }
    for at in 0..3_000 {
        std::fs::write(format!("{tree}/a/b/file{at}"), "").expect("written");
    }
    let listed = |host: &mut Host, path: &str| {
        let stream = host.open(&json!({ "method": "file_list", "path": path }));
        let outcome = host.finish(stream, true);
        let lines: Vec<Value> = outcome.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(outcome.answer, json!({ "entries": lines.len() }));
        lines
    };
    let mut names: Vec<_> = listed(host, "tree").iter().map(|entry| entry["name"].as_str().expect("text").to_owned()).collect();
    names.sort();
    assert_eq!(names, ["\u{1}".repeat(255), "a".to_owned(), "c".to_owned(), "\u{fffd}\n\"".to_owned()]);
    assert_eq!(listed(host, "tree/a/b").len(), 3_000);
    assert!(listed(host, "tree/c").is_empty());
    // Far deeper than a path may be long, and one directory open at a time.
    let mut deep = rustix::fs::open(tree.as_str(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("the tree");
    let name = "d".repeat(200);
    for _ in 0..200 {
        rustix::fs::mkdirat(&deep, name.as_str(), 0o755.into()).expect("a directory");
        deep = rustix::fs::openat(&deep, name.as_str(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("it");
        if let Some((uid, _)) = host.home.user.ids {
            let (path, flags) = (c"", rustix::fs::AtFlags::EMPTY_PATH);
            rustix::fs::chownat(&deep, path, Some(rustix::fs::Uid::from_raw(uid)), None, flags).expect("given");
        }
    }
    std::os::unix::fs::symlink("../new", format!("{tree}/c/link")).expect("a link");
    assert_eq!(host.ask(&json!({ "method": "file_remove", "path": "tree", "recursive": false }))["code"], "not_empty");
    assert_eq!(host.ask(&json!({ "method": "file_remove", "path": "tree", "recursive": true })), json!({}));
    assert!(std::fs::metadata(&tree).is_err() && host.read("new/moved").out == "small");
}

/// Without credit nothing moves, and others are served meanwhile; ten transfers share what there is.
fn credit_and_turns(host: &mut Host) {
    let content = vec![b'c'; 600_000];
    let stream = host.start_write("shared", &content[..262_144], None);
    assert_eq!(host.call("ping"), pong());
    assert_eq!(host.run("echo beside").out, "beside");
    host.send(stream, Kind::End, b"");
    assert_eq!(host.finish(stream, true).answer, json!({ "bytes": 262_144 }));
    // In one write: none has a turn before the others are there.
    let streams: Vec<u32> = (host.last_stream + 1..).take(10).collect();
    let open = br#"{"method":"file_read","path":"shared"}"#;
    let mut opens = Vec::new();
    for stream in &streams {
        wire::put_header(&mut opens, *stream, Kind::Open, 0, open.len());
        opens.extend_from_slice(open);
    }
    host.last_stream += 10;
    host.socket.write_all(&opens).expect("sent");
    let (mut received, mut results) = (vec![0; 10], 0);
    while results < 10 {
        let (stream, kind, _, payload) = host.frame();
        let Some(at) = streams.iter().position(|other| *other == stream) else { continue };
        received[at] += if kind == Kind::Data { payload.len() } else { 0 };
        results += usize::from(kind == Kind::Result);
        let (least, most) = (received.iter().min().expect("ten"), received.iter().max().expect("ten"));
        assert!(most - least <= 2 * wire::PAYLOAD_BYTES, "in turn: {received:?}");
    }
    assert_eq!(received, [262_144; 10]);
    let stream = host.open(&json!({ "method": "ping", "sendBytes": 300_000, "body": true }));
    host.send(stream, Kind::Data, b"12345");
    host.send(stream, Kind::End, b"");
    let outcome = host.finish(stream, true);
    assert_eq!((outcome.out.len(), &outcome.answer), (300_000, &json!({ "receivedBytes": 5 })));
    // The seventeenth has to wait, and others than transfers have not.
    let streams: Vec<u32> = (0..16).map(|at| host.start_write(&format!("many/{at}"), b"x", None)).collect();
    let late = host.read("shared").answer;
    assert_eq!(
        (&late["code"], host.ask(&json!({ "method": "file_stat", "path": "shared" }))["size"].clone()),
        (&json!("busy"), json!(262_144))
    );
    assert_eq!(host.call("quiesce")["code"], "busy");
    for stream in streams {
        host.send(stream, Kind::End, b"");
        assert_eq!(host.finish(stream, true).answer, json!({ "bytes": 1 }));
    }
}

fn cancelled_and_broken_writes(host: &mut Host) {
    let before = host.names();
    for (size, end) in [(None, Kind::Cancel), (Some(70_001), Kind::End), (Some(69_999), Kind::End)] {
        let stream = host.start_write("partial", &[b'p'; 70_000], size);
        host.send(stream, end, b"");
        assert_eq!(host.finish(stream, true).answer["code"], "bad_request", "{size:?}");
        assert_eq!(host.names(), before);
    }
    // In one write: all of the file fits into the credit, and would be sent before the cancellation came.
    let open = br#"{"method":"file_read","path":"shared"}"#;
    host.last_stream += 1;
    let (stream, mut frames) = (host.last_stream, Vec::new());
    wire::put_header(&mut frames, stream, Kind::Open, 0, open.len());
    frames.extend_from_slice(open);
    wire::put_header(&mut frames, stream, Kind::Cancel, 0, 0);
    host.socket.write_all(&frames).expect("sent");
    assert_eq!(host.finish(stream, false).answer["code"], "bad_request");
    // The user has forbidden itself to write to the directory meanwhile: the file cannot be published, and is gone all the same.
    let stream = host.start_write("many/late", b"x", None);
    assert_eq!(host.call("ping"), pong());
    let many = format!("{}/many", host.home.home());
    std::fs::set_permissions(&many, std::os::unix::fs::PermissionsExt::from_mode(0o500)).expect("a mode");
    host.send(stream, Kind::End, b"");
    assert_eq!(host.finish(stream, true).answer["code"], "permission");
    assert_eq!(std::fs::read_dir(&many).expect("a directory").count(), 16);
}

fn files_that_change(host: &mut Host) {
    let path = format!("{}/shared", host.home.home());
    for change in [100_000, 300_000] {
        std::fs::write(&path, vec![b'x'; 280_000]).expect("written");
        let stream = host.open(&json!({ "method": "file_read", "path": "shared" }));
        let mut received = 0;
        while received < 262_144 {
            received += host.frame().3.len();
        }
        std::fs::File::options().write(true).open(&path).and_then(|file| file.set_len(change)).expect("a length");
        host.send(stream, Kind::Credit, &300_000_u32.to_le_bytes());
        assert_eq!(host.finish(stream, false).answer["code"], "changed", "{change}");
    }
}

fn a_new_host_finds_nothing_of_the_old_one() {
    let mut host = Host::greeted();
    host.start_write("old", b"x", None);
    assert_eq!(host.call("ping"), pong());
    assert!(host.names()[0].starts_with(".sbx-"));
    host.hello("vm-2", 0);
    host.last_stream = 0;
    assert_eq!(host.write("new", b"y"), json!({ "bytes": 1 }));
    assert_eq!(host.names(), ["new"]);
}
