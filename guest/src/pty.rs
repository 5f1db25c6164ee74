//! Pty: a terminal for a process. The agent keeps the side that a person would sit at.
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{self, SpecialCodeIndex, Winsize};

/// Who may use a terminal besides its owner, by custom: `tty`.
const TERMINAL_GROUP: u32 = 5;
/// Ctrl-D, where the terminal does not say.
const DEFAULT_END: u8 = 4;

/// Characters in a row, and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

/// Both sides of a terminal.
pub struct Pty {
    /// Ours; never waits.
    pub master: OwnedFd,
    /// What becomes the process's descriptors 0 to 2.
    pub slave: OwnedFd,
}

/// Makes a terminal of that size for `owner`; without one (tests) it stays the caller's.
pub fn open(size: Size, owner: Option<u32>) -> Result<Pty, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = fs::open("/dev/ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    if let Some(uid) = owner {
        fs::fchown(&slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(TERMINAL_GROUP)))?;
    }
    resize(&master, size)?;
    Ok(Pty { master, slave })
}

/// The kernel tells the foreground process group (SIGWINCH).
pub fn resize(master: impl AsFd, Size { columns, rows }: Size) -> Result<(), Errno> {
    termios::tcsetwinsize(master, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 })
}

/// What a person would type to say that nothing follows.
pub fn end_of_input(master: impl AsFd) -> u8 {
    let code = termios::tcgetattr(master).map_or(DEFAULT_END, |attributes| attributes.special_codes[SpecialCodeIndex::VEOF]);
    if code == 0 {
        DEFAULT_END
    } else {
        code
    }
}
