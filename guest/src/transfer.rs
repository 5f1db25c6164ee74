//! Transfer: one file on its way in or out.
use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{Code, Refusal};
use crate::home::{refusal, status_of, Home, HomePath, Parents, Place, User};
use crate::limits::FILE_BYTES;

const WRITE: &str = "write the file";
const READ: &str = "read the file";
const NEW_MODE: u32 = 0o644;
const MODE_BITS: u32 = 0o777;
const TEMPORARY_PREFIX: &str = ".sbx-";

/// A file that comes from the host. Dropped before it is published, it leaves nothing.
pub struct Upload {
    user: User,
    place: Place,
    /// In the same directory.
    temporary: String,
    file: OwnedFd,
    mode: Option<u32>,
    size: Option<u64>,
    bytes: u64,
    is_published: bool,
}

impl Upload {
    pub fn begin(home: &Home, path: &HomePath, mode: Option<u32>, size: Option<u64>) -> Result<Self, Refusal> {
        if let Some(size) = size.filter(|size| *size > FILE_BYTES) {
            return Err(too_large(WRITE, size));
        }
        let mut drawn = [0; 8];
        rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::empty()).map_err(|error| refusal(WRITE, error))?;
        let temporary = format!("{TEMPORARY_PREFIX}{:016x}", u64::from_le_bytes(drawn));
        let begun = home.try_as_user(|| {
            let place = home.target(path, Parents::AreMade)?;
            check_replaceable(place.status.as_ref())?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = fs::openat(&place.directory, temporary.as_str(), flags, Mode::from_raw_mode(0o600))?;
            Ok((place, file))
        });
        let (place, file) = begun.map_err(|error| refusal(WRITE, error))?;
        Ok(Upload { user: home.user, place, temporary, file, mode, size, bytes: 0, is_published: false })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let total = self.bytes + bytes.len() as u64;
        if total > FILE_BYTES {
            return Err(too_large(WRITE, total));
        }
        if self.size.is_some_and(|size| total > size) {
            return Err(self.wrong_size(total));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::write(&self.file, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(refusal(WRITE, error)),
            }
        }
        self.bytes = total;
        Ok(())
    }

    /// Gives the file its name; returns its size.
    pub fn publish(&mut self) -> Result<u64, Refusal> {
        if self.size.is_some_and(|size| size != self.bytes) {
            return Err(self.wrong_size(self.bytes));
        }
        let Place { directory, name, .. } = &self.place;
        let published = self.user.act(|| {
            let replaced = status_of(directory, name)?;
            check_replaceable(replaced.as_ref())?;
            let mode = self.mode.or(replaced.map(|status| status.st_mode)).unwrap_or(NEW_MODE) & MODE_BITS;
            fs::fchmod(&self.file, Mode::from_raw_mode(mode))?;
            fs::renameat(directory, self.temporary.as_str(), directory, name.as_slice())
        });
        published.map_err(|error| refusal(WRITE, error))?;
        self.is_published = true;
        Ok(self.bytes)
    }

    fn wrong_size(&self, got: u64) -> Refusal {
        let size = self.size.unwrap_or_default();
        Refusal::bad_request(format!("Cannot {WRITE}: it must have the {size} bytes announced, got {got}"))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.is_published {
            return;
        }
        let remove = || fs::unlinkat(&self.place.directory, self.temporary.as_str(), AtFlags::empty());
        // The user may have forbidden itself to write to the directory; the name in it is ours all the same.
        if !matches!(self.user.act(remove), Ok(()) | Err(Errno::NOENT)) {
            let _ = remove();
        }
    }
}

/// What may be replaced by a file: nothing, a file, a link that was not there before.
fn check_replaceable(status: Option<&Stat>) -> Result<(), Errno> {
    match status.map(|status| FileType::from_raw_mode(status.st_mode)) {
        None | Some(FileType::RegularFile | FileType::Symlink) => Ok(()),
        Some(FileType::Directory) => Err(Errno::ISDIR),
        Some(_) => Err(Errno::NXIO),
    }
}

/// A file that goes to the host.
pub struct Download {
    pub file: OwnedFd,
    pub size: u64,
    pub bytes: u64,
    modified: (i64, i64),
}

impl Download {
    pub fn begin(home: &Home, path: &HomePath) -> Result<Self, Refusal> {
        let opened = home.try_as_user(|| {
            let place = home.target(path, Parents::MustExist)?;
            check_readable(&place.status.ok_or(Errno::NOENT)?)?;
            let file = place.open(OFlags::empty())?;
            let status = fs::fstat(&file)?;
            check_readable(&status)?;
            Ok((file, status))
        });
        let (file, status) = opened.map_err(|error| refusal(READ, error))?;
        let size = status.st_size as u64;
        if size > FILE_BYTES {
            return Err(too_large(READ, size));
        }
        Ok(Download { file, size, bytes: 0, modified: modified(&status) })
    }

    /// Whether it is still what it was when it was opened.
    pub fn check(&self) -> Result<(), Refusal> {
        let status = fs::fstat(&self.file).map_err(|error| refusal(READ, error))?;
        if (status.st_size as u64, modified(&status)) == (self.size, self.modified) && self.bytes == self.size {
            return Ok(());
        }
        Err(Refusal::new(Code::Changed, format!("Cannot {READ}: it was changed meanwhile")))
    }
}

fn modified(status: &Stat) -> (i64, i64) {
    (status.st_mtime, status.st_mtime_nsec as i64)
}

fn check_readable(status: &Stat) -> Result<(), Errno> {
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::NXIO),
    }
}

fn too_large(action: &str, bytes: u64) -> Refusal {
    Refusal::new(Code::TooLarge, format!("Cannot {action}: a file must be at most {FILE_BYTES} bytes, got {bytes}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::tests::TestHome;

    #[test]
    fn a_file_may_have_its_limit_and_not_one_byte_more() {
        let test = TestHome::new("limit");
        let home = Home::open(&test.home(), test.user).expect("a home");
        let path = HomePath::parse("test", "file").expect("a path");
        let begin = |size| Upload::begin(&home, &path, None, size);
        assert_eq!(begin(Some(FILE_BYTES + 1)).err().expect("a refusal").code, Code::TooLarge);
        for size in [None, Some(FILE_BYTES)] {
            let mut upload = begin(size).expect("begun");
            // As if the rest had been written.
            upload.bytes = FILE_BYTES - 1;
            upload.write(b"x").expect("the last byte");
            assert_eq!(upload.write(b"x").expect_err("a refusal").code, Code::TooLarge);
            assert_eq!(upload.publish(), Ok(FILE_BYTES));
        }
        let file = std::fs::File::options().write(true).open(format!("{}/file", test.home())).expect("a file");
        for (size, code) in [(FILE_BYTES, None), (FILE_BYTES + 1, Some(Code::TooLarge))] {
            file.set_len(size).expect("a sparse file");
            assert_eq!(Download::begin(&home, &path).err().map(|refusal| refusal.code), code);
        }
    }
}
