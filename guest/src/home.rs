//! Home: paths below the user's home directory, reached as the user and never beyond it.
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, CWD};
use rustix::io::Errno;

use crate::error::{Code, Refusal};
use crate::limits::{PATH_BYTES, PATH_COMPONENT_BYTES};
use crate::sys;

/// The user may change directories while a path with `..` is walked; the kernel then wants it tried again.
const ATTEMPTS: u32 = 32;
/// Symbolic links at the end of a path, one leading to the next: as many as the kernel follows.
const LINKS: u32 = 40;
const PARENT_MODE: u32 = 0o755;
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Whose rights count for files. Without ids (tests of somebody who is not root) those of the process.
#[derive(Clone, Copy)]
pub struct User {
    pub ids: Option<(u32, u32)>,
}

impl User {
    /// Does `work` with the user's rights alone: the kernel takes the capabilities for files away with the identity.
    pub fn act<T>(self, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let Some((uid, gid)) = self.ids else { return work() };
        let result = sys::set_fs_identity(uid, gid).map_err(|_| Errno::NOTRECOVERABLE).and_then(|()| work());
        sys::set_fs_identity(0, 0).map_err(|_| Errno::NOTRECOVERABLE)?;
        result
    }
}

/// A path relative to the home: components without empty ones and `.`, joined by `/`. The home itself is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomePath {
    bytes: Vec<u8>,
}

impl HomePath {
    /// A path of the host's. Nothing is looked up yet.
    pub fn parse(action: &str, text: &str) -> Result<Self, Refusal> {
        let beyond = |limit, value, wanted| Refusal::beyond(action, limit, value as u64, wanted as u64, "bytes");
        if text.len() > PATH_BYTES {
            return Err(beyond("pathBytes", text.len(), PATH_BYTES));
        }
        if text.contains('\0') {
            return Err(Refusal::bad_request(format!("Cannot {action}: path must not contain NUL")));
        }
        if let Some(long) = text.split('/').find(|component| component.len() > PATH_COMPONENT_BYTES) {
            return Err(beyond("pathComponentBytes", long.len(), PATH_COMPONENT_BYTES));
        }
        Self::normal(text.as_bytes()).map_err(|error| refusal(action, error))
    }

    fn normal(text: &[u8]) -> Result<Self, Errno> {
        if text.starts_with(b"/") {
            return Err(Errno::XDEV);
        }
        let components: Vec<&[u8]> = text.split(|&byte| byte == b'/').filter(|component| !matches!(*component, b"" | b".")).collect();
        Ok(HomePath { bytes: components.join(&b'/') })
    }

    /// Where a link at this path leads, by its text.
    fn followed(&self, target: &[u8]) -> Result<Self, Errno> {
        if target.starts_with(b"/") {
            return Err(Errno::XDEV);
        }
        Self::normal(&[self.parent(), b"/", target].concat().split_off(usize::from(self.parent().is_empty())))
    }

    pub fn is_home(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The last component; nothing for the home.
    pub fn name(&self) -> &[u8] {
        self.bytes.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    fn parent(&self) -> &[u8] {
        &self.bytes[..(self.bytes.len() - self.name().len()).saturating_sub(1)]
    }

    /// Its first `count` components.
    fn prefix(&self, count: usize) -> &[u8] {
        let end = self.bytes.iter().enumerate().filter(|(_, &byte)| byte == b'/').nth(count.wrapping_sub(1)).map(|(at, _)| at);
        if count == 0 {
            b""
        } else {
            &self.bytes[..end.unwrap_or(self.bytes.len())]
        }
    }
}

/// A name in a directory that is held open: whatever becomes of the path, the directory stays the one that was found.
pub struct Place {
    pub directory: OwnedFd,
    pub name: Vec<u8>,
    /// What was there when it was looked for.
    pub status: Option<Stat>,
}

/// What to do about directories on a path that are not there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parents {
    MustExist,
    AreMade,
}

/// The home directory.
pub struct Home {
    root: OwnedFd,
    pub user: User,
}

impl Home {
    /// From now on this thread is in no supplementary group, whose rights would outlast its change of identity.
    pub fn open(path: &str, user: User) -> Result<Self, Errno> {
        if user.ids.is_some() {
            rustix::thread::set_thread_groups(&[])?;
        }
        Ok(Home { root: fs::openat(CWD, path, DIRECTORY, Mode::empty())?, user })
    }

    /// Runs `work` as the user, again while the user's code changes what it walks over.
    pub fn try_as_user<T>(&self, mut work: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
        self.user.act(|| {
            let mut result = work();
            for _ in 1..ATTEMPTS {
                if !matches!(result, Err(Errno::AGAIN)) {
                    break;
                }
                result = work();
            }
            result
        })
    }

    /// The place itself: a symbolic link there is not followed. For `try_as_user`, as what follows.
    pub fn place(&self, path: &HomePath, parents: Parents) -> Result<Place, Errno> {
        if path.is_home() || path.name() == b".." {
            return Place::of_directory(self.directory(&path.bytes)?);
        }
        let directory = match self.directory(path.parent()) {
            Err(Errno::NOENT) if parents == Parents::AreMade => self.make_directories(&HomePath { bytes: path.parent().to_vec() })?,
            result => result?,
        };
        let status = status_of(&directory, path.name())?;
        Ok(Place { directory, name: path.name().to_vec(), status })
    }

    /// Where `path` leads in the end: what is there is no symbolic link.
    pub fn target(&self, path: &HomePath, parents: Parents) -> Result<Place, Errno> {
        let mut path = path.clone();
        for _ in 0..LINKS {
            let place = self.place(&path, parents)?;
            if place.kind() != Some(FileType::Symlink) {
                return Ok(place);
            }
            let target = match fs::readlinkat(&place.directory, place.name.as_slice(), Vec::new()) {
                // It has become something else since.
                Err(Errno::INVAL | Errno::NOENT) => return Err(Errno::AGAIN),
                result => result?,
            };
            path = path.followed(target.as_bytes())?;
        }
        Err(Errno::LOOP)
    }

    fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        fs::openat2(&self.root, path, DIRECTORY, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
    }

    /// Makes what is not there. From the first directory that is ours, links have no say.
    fn make_directories(&self, path: &HomePath) -> Result<OwnedFd, Errno> {
        let count = path.bytes.split(|&byte| byte == b'/').count();
        let (mut present, mut absent) = (0, count);
        while absent - present > 1 {
            let middle = present + (absent - present) / 2;
            match self.directory(path.prefix(middle)) {
                Ok(_) => present = middle,
                Err(Errno::NOENT) => absent = middle,
                Err(error) => return Err(error),
            }
        }
        let mut directory = self.directory(path.prefix(present))?;
        for name in path.bytes.split(|&byte| byte == b'/').skip(present) {
            if name == b".." {
                return Err(Errno::NOENT);
            }
            match fs::mkdirat(&directory, name, Mode::from_raw_mode(PARENT_MODE)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            directory = fs::openat(&directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Ok(directory)
    }
}

impl Place {
    fn of_directory(directory: OwnedFd) -> Result<Self, Errno> {
        let status = Some(fs::fstat(&directory)?);
        Ok(Place { directory, name: b".".to_vec(), status })
    }

    pub fn kind(&self) -> Option<FileType> {
        self.status.map(|status| FileType::from_raw_mode(status.st_mode))
    }

    pub fn is_directory(&self) -> bool {
        self.kind() == Some(FileType::Directory)
    }

    /// Opens what is there for reading. Neither a FIFO nor a lease nor a terminal can hold us up.
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A link: it was swapped in since.
        fs::openat(&self.directory, self.name.as_slice(), flags, Mode::empty()).map_err(|error| match error {
            Errno::LOOP => Errno::AGAIN,
            error => error,
        })
    }
}

/// What stands at `name` in `directory`, if anything.
pub fn status_of(directory: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(status) => Ok(Some(status)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a system call's error means to the host.
pub fn refusal(action: &str, error: Errno) -> Refusal {
    let code = match error {
        Errno::NOENT | Errno::LOOP => Code::NotFound,
        Errno::ISDIR => Code::IsDirectory,
        Errno::NOTDIR => Code::NotDirectory,
        Errno::NXIO | Errno::NODEV => Code::NotAFile,
        Errno::ACCESS | Errno::PERM | Errno::XDEV | Errno::ROFS => Code::Permission,
        Errno::EXIST => Code::Exists,
        Errno::NOTEMPTY => Code::NotEmpty,
        Errno::NOSPC | Errno::DQUOT | Errno::NOMEM => Code::NoSpace,
        Errno::FBIG => Code::TooLarge,
        Errno::AGAIN | Errno::BUSY | Errno::TXTBSY => Code::Busy,
        Errno::INVAL | Errno::NAMETOOLONG => Code::BadRequest,
        _ => Code::Internal,
    };
    Refusal::new(code, format!("Cannot {action}: {error}"))
}

#[cfg(test)]
#[path = "home_tests.rs"]
pub mod tests;
