//! Shell: bash's variant of the REPL protocol. Bash cannot read lengths, keep NUL bytes or close descriptors on exec, so requests
//! come as a line of fixed length over a FIFO that it opens for each request; code and environment lie in files. Replies are those
//! of the other languages, over a second FIFO. No descriptor of ours is open while the user's code runs.
use std::os::fd::OwnedFd;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use crate::confine::{GROUP_ID, USER_ID};
use crate::exec::{flags, Body};
use crate::limits;

/// What bash is started with; `guest/repl/shell.sh` explains each part.
pub const LOOP: &str = concat!(
    ". /run/sbx/shell.sh; while { __sbx_next; } 2>/dev/null; do ",
    "if { __sbx_rc; } 2>/dev/null; then eval \"$__sbx_code\"; else eval \"$__sbx_code\"; fi; done; exit"
);

/// `read -N` takes exactly this many characters, with one system call.
pub const LINE_BYTES: usize = 34;

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

/// Writes code and environment to their files and returns the request line.
pub fn request(directory: &str, id: u32, seed: Option<&[u8; 32]>, body: &Body) -> Result<[u8; LINE_BYTES], Errno> {
    let is_script = body.code().starts_with(b"#!");
    // A background job may still read the file of an earlier script: it keeps the old one.
    put_file(&format!("{directory}/code"), body.code(), if is_script { 0o555 } else { 0o444 })?;
    if !body.env().is_empty() {
        let entries = limits::parse_env(body.env()).map_err(|_| Errno::INVAL)?;
        put_file(&format!("{directory}/env"), assignments(&entries).as_bytes(), 0o444)?;
    }
    let kinds = [
        if is_script { 's' } else { '-' },
        if body.env().is_empty() { '-' } else { 'e' },
        if may_trap(body.code()) { 't' } else { '-' },
        if body.has_stdin() { 'i' } else { '-' },
        match body.flags() & (flags::COMPLETE | flags::IS_COMPLETE) {
            flags::COMPLETE => 'c',
            flags::IS_COMPLETE => 'q',
            _ => '-',
        },
    ];
    Ok(line(id, kinds, seed))
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

/// A call of the script's function for each entry, values in single quotes.
fn assignments(entries: &[(&str, &str)]) -> String {
    entries.iter().map(|(name, value)| format!("__sbx_env {name} '{}'\n", value.replace('\'', r"'\''"))).collect()
}

/// `\xNN\xNN\xNN\xNN` the id as printf takes it; `s` a script, `e` with environment, `t` may set a trap, `i` with stdin, `c` complete or
/// `q` is it complete, each `-` if not; the seed in decimal, blanks.
fn line(id: u32, kinds: [char; 5], seed: Option<&[u8; 32]>) -> [u8; LINE_BYTES] {
    let id: String = id.to_le_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let seed = seed.map_or(String::new(), |seed| u32::from_le_bytes([seed[0], seed[1], seed[2], seed[3]]).to_string());
    let text = format!("{id}{}{seed:<12}\n", String::from_iter(kinds));
    let mut line = [b' '; LINE_BYTES];
    line.copy_from_slice(text.as_bytes());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_its_length_for_every_id_and_seed() {
        assert_eq!(&line(1, ['-'; 5], None), b"\\x01\\x00\\x00\\x00-----            \n");
        assert_eq!(&line(u32::MAX, ['s', 'e', 't', 'i', 'c'], Some(&[0xff; 32])), b"\\xff\\xff\\xff\\xffsetic4294967295  \n");
    }

    #[test]
    fn code_that_may_set_a_trap_is_found() {
        assert!(may_trap(b"trap 'rm x' EXIT") && may_trap(b"source lib.sh") && may_trap(b". lib.sh") && !may_trap(b"echo hi"));
    }

    #[test]
    fn values_are_quoted_for_bash() {
        assert_eq!(assignments(&[("A", "it's $x\n")]), "__sbx_env A 'it'\\''s $x\n'\n");
    }
}
