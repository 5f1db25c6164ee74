//! Shell: bash's variant of the REPL protocol. Bash cannot read lengths, keep NUL bytes or close descriptors on exec, so requests
//! come as a line of fixed length over a FIFO that it opens for each request; code and environment lie in files. Replies are those
//! of the other languages, over a second FIFO. No descriptor of ours is open while the user's code runs.
use std::os::fd::OwnedFd;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use crate::confine::{GROUP_ID, USER_ID};
use crate::exec::{flags, Body};
use crate::limits;

/// What bash sources when it is needed, each a file in DIRECTORY: without functions, nothing of ours has a name while the user's code runs.
const SCRIPTS: [(&str, &str); 15] = [
    ("start.sh", include_str!("../repl/shell/start.sh")),
    ("resume.sh", include_str!("../repl/shell/resume.sh")),
    ("traps.sh", include_str!("../repl/shell/traps.sh")),
    ("interrupt.sh", include_str!("../repl/shell/interrupt.sh")),
    ("special.sh", include_str!("../repl/shell/special.sh")),
    ("after.sh", include_str!("../repl/shell/after.sh")),
    ("exit.sh", include_str!("../repl/shell/exit.sh")),
    ("save.sh", include_str!("../repl/shell/save.sh")),
    ("locals.sh", include_str!("../repl/shell/locals.sh")),
    ("streams.sh", include_str!("../repl/shell/streams.sh")),
    ("assist.sh", include_str!("../repl/shell/assist.sh")),
    ("complete.sh", include_str!("../repl/shell/complete.sh")),
    ("is_complete.sh", include_str!("../repl/shell/is_complete.sh")),
    ("status.sh", include_str!("../repl/shell/status.sh")),
    ("answer.sh", include_str!("../repl/shell/answer.sh")),
];

/// `read -N` takes exactly this many characters, with one system call.
pub const LINE_BYTES: usize = 19;

/// What bash is started with: `loop.sh` explains it.
pub fn main_loop() -> String {
    statements(include_str!("../repl/shell/loop.sh"), " ")
}

/// The scripts as bash gets them.
pub fn scripts() -> impl Iterator<Item = (&'static str, String)> {
    let resuming = main_loop().replace("start.sh", "resume.sh").replace('\'', r"'\''");
    SCRIPTS.iter().map(move |(name, text)| (*name, statements(text, "\n").replace("@LOOP@", &resuming)))
}

/// The lines without comments, which bash would read again for each execution.
fn statements(text: &str, end: &str) -> String {
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && *line != "#" && !line.starts_with("# "));
    lines.flat_map(|line| [line, end]).collect()
}

/// Makes `request` and `reply`, and opens both ways so that neither side ever waits in open(2) or sees an end.
pub fn make_fifos(directory: &str) -> Result<(OwnedFd, OwnedFd), Errno> {
    let open = |name: &str, mode: u32| {
        let path = format!("{directory}/{name}");
        make_fifo(&path, mode)?;
        fs::open(path.as_str(), OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
    };
    Ok((open("request", 0o440)?, open("reply", 0o220)?))
}

/// Makes a FIFO anew: who has the old one open keeps that.
pub fn make_fifo(path: &str, mode: u32) -> Result<(), Errno> {
    let _ = fs::unlink(path);
    fs::mknodat(fs::CWD, path, fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    give(path, mode)
}

/// To root's user and the user's group; outside the guest (tests) to whoever runs this.
fn give(path: &str, mode: u32) -> Result<(), Errno> {
    if rustix::process::getuid().is_root() {
        fs::chown(path, None, Some(rustix::fs::Gid::from_raw(GROUP_ID)))?;
        return fs::chmod(path, Mode::from_raw_mode(mode));
    }
    fs::chmod(path, Mode::from_raw_mode(0o600))
}

/// The directory where the shell keeps its state over an `exit`: the user's own.
pub fn make_state_directory(directory: &str) -> Result<(), Errno> {
    let path = format!("{directory}/state");
    match fs::mkdir(path.as_str(), Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) => {}
        result => result?,
    }
    fs::chown(path.as_str(), Some(rustix::fs::Uid::from_raw(USER_ID)), Some(rustix::fs::Gid::from_raw(GROUP_ID)))
}

/// Writes code and environment to their files and returns the request line. `before` is the exit code of the execution before.
pub fn request(directory: &str, before: i32, seed: Option<&[u8; 32]>, body: &Body) -> Result<[u8; LINE_BYTES], Errno> {
    let code = format!("{directory}/code");
    if body.code().starts_with(b"#!") {
        let script = format!("{directory}/script");
        // A background job may still read an earlier script: it keeps the old file.
        put_file(&script, body.code(), 0o555)?;
        put_file(&code, script.as_bytes(), 0o444)?;
    } else {
        put_file(&code, body.code(), 0o444)?;
    }
    if !body.env().is_empty() {
        let entries = limits::parse_env(body.env()).map_err(|_| Errno::INVAL)?;
        put_file(&format!("{directory}/env"), assignments(&entries).as_bytes(), 0o444)?;
    }
    let kinds = [
        if body.env().is_empty() { '-' } else { 'e' },
        if may_trap(body.code()) { 't' } else { '-' },
        if body.has_stdin() { 'i' } else { '-' },
        match body.flags() & (flags::COMPLETE | flags::IS_COMPLETE) {
            flags::COMPLETE => 'c',
            flags::IS_COMPLETE => 'q',
            _ => '-',
        },
    ];
    Ok(line(kinds, before, seed))
}

/// What bash says when an execution is over: its exit code in decimal, and a newline. None: not yet, or something else.
pub fn exit_code(bytes: &[u8]) -> Option<i32> {
    let digits = bytes.strip_suffix(b"\n").filter(|digits| (1..=3).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether code may set a trap: it names one, or reads a file that may.
fn may_trap(code: &[u8]) -> bool {
    let text = std::str::from_utf8(code).unwrap_or_default();
    ["trap", "source", ". "].iter().any(|word| text.contains(word))
}

fn put_file(path: &str, bytes: &[u8], mode: u32) -> Result<(), Errno> {
    let _ = fs::unlink(path);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = fs::open(path, flags, Mode::from_raw_mode(mode))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    Ok(())
}

/// Names and values, in single quotes, as two arrays.
fn assignments(entries: &[(&str, &str)]) -> String {
    let names: Vec<_> = entries.iter().map(|(name, _)| *name).collect();
    let values: Vec<_> = entries.iter().map(|(_, value)| format!("'{}'", value.replace('\'', r"'\''"))).collect();
    format!("__sbx_names=({})\n__sbx_values=({})\n", names.join(" "), values.join(" "))
}

/// `-` or the seed in decimal; or `x`, what is special (`e` with environment, `t` may set a trap, `i` with stdin, `c` complete or `q` is it
/// complete, each `-` if not), the exit code before, the seed. Blanks, newline.
fn line(kinds: [char; 4], before: i32, seed: Option<&[u8; 32]>) -> [u8; LINE_BYTES] {
    let seed = seed.map(|seed| u32::from_le_bytes([seed[0], seed[1], seed[2], seed[3]]).to_string());
    let text = if kinds == ['-'; 4] && before == 0 {
        seed.unwrap_or("-".to_owned())
    } else {
        format!("x{}{:03}{}", String::from_iter(kinds), before.clamp(0, 255), seed.unwrap_or_default())
    };
    let mut line = [b' '; LINE_BYTES];
    line[..text.len()].copy_from_slice(text.as_bytes());
    line[LINE_BYTES - 1] = b'\n';
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_plain_where_nothing_is_special() {
        let plain = ['-'; 4];
        assert_eq!(&line(plain, 0, None), b"-                 \n");
        assert_eq!(&line(plain, 0, Some(&[0xff; 32])), b"4294967295        \n");
        assert_eq!(&line(plain, 7, None), b"x----007          \n");
        assert_eq!(&line(['e', 't', 'i', 'c'], 255, Some(&[0xff; 32])), b"xetic2554294967295\n");
    }

    #[test]
    fn an_exit_code_is_a_number_and_a_newline() {
        assert_eq!([exit_code(b"0\n"), exit_code(b"255\n")], [Some(0), Some(255)]);
        for bad in [&b""[..], b"\n", b"1", b"1234\n", b"-1\n", b"1\n1\n", b"1 \n", b"x\n"] {
            assert_eq!(exit_code(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn every_script_is_written_and_only_comments_are_left_out() {
        let scripts: Vec<_> = scripts().collect();
        let directory = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/repl/shell")).expect("the scripts are there");
        let names: Vec<_> = directory.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        assert!(names.iter().any(|name| name == "loop.sh"));
        for name in names.iter().filter(|name| *name != "loop.sh") {
            assert!(scripts.iter().any(|(known, _)| known == name), "{name}");
        }
        for (name, text) in &scripts {
            let sourced = text.split("/run/sbx/").skip(1).filter_map(|rest| rest.split_once(".sh").map(|(name, _)| name));
            for other in sourced.filter(|other| other.chars().all(|char| char.is_ascii_lowercase() || char == '_')) {
                assert!(scripts.iter().any(|(known, _)| *known == format!("{other}.sh")), "{name} sources {other}");
            }
            assert!(!text.contains("@LOOP@") && text.len() > 20, "{name}");
        }
        let exit: String = scripts.iter().filter(|(name, _)| *name == "exit.sh").map(|(_, text)| text.as_str()).collect();
        assert!(exit.contains("-c '. /run/sbx/resume.sh; while {") && exit.contains(r"in '\'''\'') until"), "{exit}");
        let main = main_loop();
        assert!(main.starts_with(". /run/sbx/start.sh; while {") && !main.contains('\n'), "{main}");
    }

    #[test]
    fn code_that_may_set_a_trap_is_found() {
        assert!(may_trap(b"trap 'rm x' EXIT") && may_trap(b"source lib.sh") && may_trap(b". lib.sh") && !may_trap(b"echo hi"));
    }

    #[test]
    fn values_are_quoted_for_bash() {
        assert_eq!(assignments(&[("A", "it's $x\n"), ("B", "")]), "__sbx_names=(A B)\n__sbx_values=('it'\\''s $x\n' '')\n");
    }
}
