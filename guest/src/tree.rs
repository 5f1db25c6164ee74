//! Tree: directories that are listed, and removed with all that is in them, a little at a time.
use std::ffi::{CStr, CString};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;
use serde_json::{json, Value};

use crate::error::Refusal;
use crate::home::{refusal, status_of, Place, User};
use crate::limits::DIRECTORY_ENTRIES;
use crate::server::now_us;

const OPEN: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// Names that are asked for at once: about a hundred. Their lines fit into one frame, the longest names included.
const NAMES_BYTES: usize = 4_096;
/// A removal works so long before others get a turn, and rests so long: user code gets the processor then.
const REMOVAL_TURN_US: u64 = 2_000;
pub const REMOVAL_REST_US: u64 = 1_000;
/// A directory that was emptied so often and is not empty is being filled by somebody.
const PASSES: u32 = 16;

type Names = [MaybeUninit<u8>; NAMES_BYTES];

/// What the host is told of what stands at a path.
pub fn entry(name: &[u8], status: &Stat) -> Value {
    let name = String::from_utf8_lossy(name);
    json!({ "name": name, "type": kind(status), "size": status.st_size, "mode": status.st_mode & 0o7777, "modifiedMs": modified_ms(status) })
}

fn kind(status: &Stat) -> &'static str {
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        _ => "other",
    }
}

fn modified_ms(status: &Stat) -> i64 {
    status.st_mtime.saturating_mul(1_000).saturating_add(status.st_mtime_nsec as i64 / 1_000_000)
}

/// A directory whose entries are on their way to the host.
pub struct Listing {
    user: User,
    directory: OwnedFd,
    pub entries: usize,
    is_read: bool,
    /// Lines that the host has not taken yet.
    lines: Vec<u8>,
    sent: usize,
}

impl Listing {
    pub fn new(user: User, directory: OwnedFd) -> Self {
        Listing { user, directory, entries: 0, is_read: false, lines: Vec::new(), sent: 0 }
    }

    /// Lines to send next; none when the directory is at its end.
    pub fn lines(&mut self) -> Result<&[u8], Refusal> {
        while self.sent == self.lines.len() && !self.is_read {
            self.lines.clear();
            self.sent = 0;
            self.user.act(|| self.read_names()).map_err(|error| refusal("list the directory", error))?;
            if self.entries > DIRECTORY_ENTRIES {
                let (value, most) = (self.entries as u64, DIRECTORY_ENTRIES as u64);
                return Err(Refusal::beyond("list the directory", "directoryEntries", value, most, "entries"));
            }
        }
        Ok(&self.lines[self.sent..])
    }

    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
    }

    fn read_names(&mut self) -> Result<(), Errno> {
        let mut buffer: Names = [MaybeUninit::uninit(); NAMES_BYTES];
        let mut names = RawDir::new(&self.directory, &mut buffer);
        loop {
            let Some(name) = names.next() else {
                self.is_read = true;
                return Ok(());
            };
            let name = name?;
            let bytes = name.file_name().to_bytes();
            // What has gone since it was named is left out.
            if let Some(status) =
                Some(bytes).filter(|bytes| !is_dot(bytes)).map(|bytes| status_of(&self.directory, bytes)).transpose()?.flatten()
            {
                put_line(&mut self.lines, bytes, &status);
                self.entries += 1;
            }
            if names.is_buffer_empty() {
                return Ok(());
            }
        }
    }
}

fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// The same as `entry`, without making a value of it.
fn put_line(lines: &mut Vec<u8>, name: &[u8], status: &Stat) {
    lines.extend_from_slice(b"{\"name\":");
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(&mut *lines, &String::from_utf8_lossy(name));
    let (kind, size, mode, modified_ms) = (kind(status), status.st_size, status.st_mode & 0o7777, modified_ms(status));
    let _ = writeln!(lines, r#","type":"{kind}","size":{size},"mode":{mode},"modifiedMs":{modified_ms}}}"#);
}

/// Removes what may be removed in one call. A directory that is not empty is what is left to do, if that was asked for.
pub fn remove(user: User, place: Place, is_recursive: bool) -> Result<Option<Removal>, Errno> {
    let Place { directory, name, .. } = place;
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    match remove_entry(&directory, &name) {
        Err(Errno::NOTEMPTY) if is_recursive => {}
        result => return result.map(|()| None),
    }
    let current = fs::openat(&directory, name.as_c_str(), OPEN, Mode::empty())?;
    Ok(Some(Removal { user, above: directory, path: vec![Level::of(&current, name)?], current }))
}

/// A tree that is being removed. However deep it is, one directory of it is open.
pub struct Removal {
    user: User,
    /// The directory that the tree stands in.
    above: OwnedFd,
    /// From the top of the tree to the directory that is being emptied.
    path: Vec<Level>,
    current: OwnedFd,
}

struct Level {
    name: CString,
    /// Device and inode: the way back up must lead where the way down came from.
    identity: (u64, u64),
    passes: u32,
}

impl Level {
    fn of(directory: &OwnedFd, name: CString) -> Result<Self, Errno> {
        Ok(Level { name, identity: identity(directory)?, passes: 0 })
    }
}

fn identity(directory: &OwnedFd) -> Result<(u64, u64), Errno> {
    let status = fs::fstat(directory)?;
    Ok((status.st_dev, status.st_ino))
}

impl Removal {
    /// Works for one turn; true when all of it is gone.
    pub fn step(&mut self) -> Result<bool, Refusal> {
        let until_us = now_us() + REMOVAL_TURN_US;
        self.user
            .act(|| {
                while now_us() < until_us {
                    if self.empty(until_us)? && self.leave()? {
                        return Ok(true);
                    }
                }
                Ok(false)
            })
            .map_err(|error| refusal("remove the directory", error))
    }

    /// Removes entries of the current directory, and enters one that is not empty. True when none was left.
    fn empty(&mut self, until_us: u64) -> Result<bool, Errno> {
        let mut buffer: Names = [MaybeUninit::uninit(); NAMES_BYTES];
        let mut names = RawDir::new(&self.current, &mut buffer);
        let child = loop {
            let Some(name) = names.next() else { return Ok(true) };
            let name = name?;
            if is_dot(name.file_name().to_bytes()) {
                continue;
            }
            match remove_entry(&self.current, name.file_name()) {
                Err(Errno::NOTEMPTY) => break name.file_name().to_owned(),
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            if now_us() >= until_us {
                // What was read and not removed is read again.
                fs::seek(&self.current, SeekFrom::Start(0))?;
                return Ok(false);
            }
        };
        match fs::openat(&self.current, child.as_c_str(), OPEN, Mode::empty()) {
            Ok(directory) => {
                self.path.push(Level::of(&directory, child)?);
                self.current = directory;
            }
            // Replaced meanwhile, and met again.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                fs::seek(&self.current, SeekFrom::Start(0))?;
            }
            Err(error) => return Err(error),
        }
        Ok(false)
    }

    /// Goes up and removes the directory that has been emptied. True when it was the last.
    fn leave(&mut self) -> Result<bool, Errno> {
        let Some((level, rest)) = self.path.split_last_mut() else { return Ok(true) };
        let up = match rest.last() {
            None => None,
            Some(parent) => {
                let up = fs::openat(&self.current, c"..", OPEN, Mode::empty())?;
                if identity(&up)? != parent.identity {
                    return Err(Errno::BUSY);
                }
                Some(up)
            }
        };
        match fs::unlinkat(up.as_ref().unwrap_or(&self.above), level.name.as_c_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY) if level.passes < PASSES => {
                level.passes += 1;
                fs::seek(&self.current, SeekFrom::Start(0))?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        self.path.pop();
        match up {
            Some(up) => self.current = up,
            None => return Ok(true),
        }
        Ok(false)
    }
}

fn remove_entry(directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    match fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => fs::unlinkat(directory, name, AtFlags::REMOVEDIR),
        result => result,
    }
}
