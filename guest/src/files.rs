//! Files: the host's requests about files, and the transfers under way. Everything moves in the one loop, a frame or a few
//! milliseconds at a time, in turn.
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{json, Value};

use crate::confine::{GROUP_ID, USER_ID};
use crate::error::{Code, Fatal, Refusal};
use crate::home::{refusal, Home, HomePath, Parents, User};
use crate::limits::TRANSFERS;
use crate::server::Server;
use crate::transfer::{Download, Upload};
use crate::tree::{self, Listing, Removal, REMOVAL_REST_US};
use crate::wire::{data, Frame, Kind, HEADER_BYTES, PAYLOAD_BYTES};

const HOME: &str = "/home/user";
/// With more than this waiting for the host no transfer adds to it: one frame less than what stops executions, whose output
/// therefore always finds room.
const BACKLOG_BYTES: usize = HEADER_BYTES + PAYLOAD_BYTES;
/// What `ping` sends.
static NOTHING: [u8; PAYLOAD_BYTES] = [0; PAYLOAD_BYTES];

/// The transfers under way.
pub struct Files {
    home_path: String,
    user: User,
    /// Opened when it is first needed. It is a mount point in a read-only directory: it cannot become another one.
    home: Option<Home>,
    active: Vec<Transfer>,
    /// Whose turn to send is next, as an index.
    next: usize,
    /// One of them has more than the port's buffer takes.
    wants_room: bool,
    /// Removals go on then.
    rests_until_us: u64,
}

struct Transfer {
    stream: u32,
    work: Work,
}

enum Work {
    Upload(Upload),
    Download(Download),
    Listing(Listing),
    Removal { removal: Removal, served_at_us: u64 },
    Ping { left: u64, received: u64, is_body_due: bool },
}

/// What became of a turn to send.
enum Step {
    Moved,
    /// Not before credit or more of a body comes.
    Waits,
    WantsRoom,
    Done(Value),
}

impl Default for Files {
    fn default() -> Self {
        Self::new(HOME, User { ids: Some((USER_ID, GROUP_ID)) })
    }
}

impl Files {
    pub fn new(home_path: &str, user: User) -> Self {
        let (home, active, next) = (None, Vec::new(), 0);
        Files { home_path: home_path.to_owned(), user, home, active, next, wants_room: false, rests_until_us: 0 }
    }

    pub fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    pub fn has(&self, stream: u32) -> bool {
        self.active.iter().any(|transfer| transfer.stream == stream)
    }

    /// Ends all of it: nobody is there to be told. Files not complete are removed.
    pub fn forget(&mut self) {
        self.active.clear();
    }

    /// When the loop has to come back although nothing happened.
    pub fn next_us(&self, is_port_blocked: bool, now_us: u64) -> Option<u64> {
        if self.wants_room && !is_port_blocked && !self.is_idle() {
            return Some(now_us);
        }
        self.active.iter().any(Transfer::is_removal).then_some(self.rests_until_us)
    }

    fn home(&mut self) -> Result<&Home, Refusal> {
        if self.home.is_none() {
            let opened = Home::open(&self.home_path, self.user);
            self.home = Some(opened.map_err(|error| Refusal::new(Code::Internal, format!("Cannot open the home directory: {error}")))?);
        }
        self.home.as_ref().ok_or_else(|| Refusal::new(Code::Internal, "Cannot open the home directory"))
    }

    /// Removals have places of their own.
    fn check_room(&self, is_removal: bool) -> Result<(), Refusal> {
        let count = self.active.iter().filter(|transfer| transfer.is_removal() == is_removal).count();
        if count < TRANSFERS {
            return Ok(());
        }
        Err(Refusal::new(Code::Busy, format!("Cannot transfer: {TRANSFERS} transfers are under way, the most there may be")))
    }

    fn find(&mut self, stream: u32) -> Option<&mut Transfer> {
        self.active.iter_mut().find(|transfer| transfer.stream == stream)
    }
}

impl Server {
    /// A request about files: its answer, or none yet.
    pub(crate) fn open_transfer(&mut self, stream: u32, method: &str, open: &Value) -> Result<Option<Value>, Refusal> {
        let work = match method {
            "ping" => begin_ping(open)?,
            "file_write" => {
                self.files.check_room(false)?;
                let (mode, size) = (optional(open, "mode")?, optional(open, "size")?);
                let path = leaf_at("write the file", open, "path")?;
                Work::Upload(Upload::begin(self.files.home()?, &path, mode.map(|mode| mode as u32), size)?)
            }
            "file_read" => {
                self.files.check_room(false)?;
                Work::Download(Download::begin(self.files.home()?, &path_at("read the file", open, "path")?)?)
            }
            "file_list" => {
                self.files.check_room(false)?;
                Work::Listing(list(self.files.home()?, &path_at("list the directory", open, "path")?)?)
            }
            "file_stat" => return stat(self.files.home()?, open).map(Some),
            "file_make_directory" => return make_directory(self.files.home()?, open).map(|()| Some(json!({}))),
            "file_rename" => return rename(self.files.home()?, open).map(|()| Some(json!({}))),
            "file_remove" => {
                self.files.check_room(true)?;
                match remove(self.files.home()?, open)? {
                    None => return Ok(Some(json!({}))),
                    Some(removal) => Work::Removal { removal, served_at_us: 0 },
                }
            }
            other => return Err(Refusal::new(Code::UnknownMethod, format!("Cannot open: there is no method {other:.64?}"))),
        };
        if matches!(work, Work::Ping { left: 0, is_body_due: false, .. }) {
            return Ok(Some(json!({ "receivedBytes": 0 })));
        }
        self.files.active.push(Transfer { stream, work });
        Ok(None)
    }

    /// DATA for a transfer.
    pub(crate) fn on_file_data(&mut self, frame: &Frame) -> Result<(), Fatal> {
        let bytes = frame.payload.len();
        let taken = match self.files.find(frame.stream).map(|transfer| &mut transfer.work) {
            Some(Work::Upload(upload)) if frame.flags == data::BODY => upload.write(frame.payload),
            Some(Work::Ping { received, is_body_due: true, .. }) if frame.flags == data::BODY => {
                *received += bytes as u64;
                Ok(())
            }
            _ => return Err(Fatal::Protocol("DATA that was not asked for".to_owned())),
        };
        match taken {
            Ok(()) => self.grant(frame.stream, bytes),
            Err(refusal) => self.end_transfer(frame.stream, Err(refusal)),
        }
        Ok(())
    }

    /// END of a body.
    pub(crate) fn on_file_end(&mut self, stream: u32) {
        match self.files.find(stream).map(|transfer| &mut transfer.work) {
            Some(Work::Upload(upload)) => {
                let published = upload.publish();
                self.end_transfer(stream, published.map(|bytes| json!({ "bytes": bytes })));
            }
            Some(Work::Ping { is_body_due, .. }) => *is_body_due = false,
            _ => {}
        }
    }

    /// CANCEL of a transfer.
    pub(crate) fn on_file_cancel(&mut self, stream: u32) {
        self.end_transfer(stream, Err(Refusal::bad_request("Cannot transfer: the host cancelled it")));
    }

    /// Moves transfers on, as far as the host takes what they have.
    pub(crate) fn pump_files(&mut self, now_us: u64) {
        if self.files.is_idle() {
            return;
        }
        if now_us >= self.files.rests_until_us {
            self.step_removal(now_us);
        }
        self.files.wants_room = false;
        let mut waiting = 0;
        while waiting < self.files.active.len() {
            self.files.next %= self.files.active.len();
            let stream = self.files.active[self.files.next].stream;
            let step = self.send_next();
            waiting = if matches!(step, Ok(Step::Waits)) { waiting + 1 } else { 0 };
            match step {
                // It is first when there is room.
                Ok(Step::WantsRoom) => {
                    self.files.wants_room = true;
                    return;
                }
                Ok(Step::Waits | Step::Moved) => self.files.next += 1,
                Ok(Step::Done(result)) => self.end_transfer(stream, Ok(result)),
                Err(refusal) => self.end_transfer(stream, Err(refusal)),
            }
        }
    }

    /// One frame of the transfer whose turn it is.
    fn send_next(&mut self) -> Result<Step, Refusal> {
        let Server { files, channel, mux, .. } = self;
        let Transfer { stream, work } = &mut files.active[files.next];
        let credit = mux.sendable(*stream).min(PAYLOAD_BYTES);
        let sent = match work {
            Work::Upload(_) | Work::Removal { .. } => return Ok(Step::Waits),
            Work::Ping { left: 0, is_body_due: true, .. } => return Ok(Step::Waits),
            Work::Ping { left: 0, received, .. } => return Ok(Step::Done(json!({ "receivedBytes": *received }))),
            Work::Download(download) if download.bytes == download.size => {
                download.check()?;
                return Ok(Step::Done(json!({ "bytes": download.bytes })));
            }
            _ if credit == 0 => return Ok(Step::Waits),
            _ if channel.backlog() >= BACKLOG_BYTES => return Ok(Step::WantsRoom),
            Work::Ping { left, .. } => {
                let bytes = (credit as u64).min(*left) as usize;
                channel.put(*stream, Kind::Data, data::STDOUT, &NOTHING[..bytes]);
                *left -= bytes as u64;
                bytes
            }
            Work::Download(download) => {
                let most = (credit as u64).min(download.size - download.bytes) as usize;
                let bytes = channel.put_data_from(&download.file, *stream, data::STDOUT, most);
                download.bytes += bytes as u64;
                if bytes == 0 {
                    // It became shorter.
                    return download.check().map(|()| Step::Moved);
                }
                bytes
            }
            Work::Listing(listing) => {
                let lines = listing.lines()?;
                let bytes = lines.len().min(credit);
                if bytes == 0 {
                    return Ok(Step::Done(json!({ "entries": listing.entries })));
                }
                channel.put(*stream, Kind::Data, data::STDOUT, &lines[..bytes]);
                listing.sent(bytes);
                bytes
            }
        };
        mux.sent(*stream, sent);
        Ok(Step::Moved)
    }

    /// Lets the removal that has waited longest work for a moment.
    fn step_removal(&mut self, now_us: u64) {
        let removals = self.files.active.iter_mut().filter_map(|Transfer { stream, work }| match work {
            Work::Removal { removal, served_at_us } => Some((*stream, removal, served_at_us)),
            _ => None,
        });
        let Some((stream, removal, served_at_us)) = removals.min_by_key(|(_, _, served_at_us)| **served_at_us) else { return };
        *served_at_us = now_us;
        let answer = removal.step();
        self.files.rests_until_us = crate::server::now_us() + REMOVAL_REST_US;
        match answer {
            Ok(false) => {}
            Ok(true) => self.end_transfer(stream, Ok(json!({}))),
            Err(refusal) => self.end_transfer(stream, Err(refusal)),
        }
    }

    fn end_transfer(&mut self, stream: u32, answer: Result<Value, Refusal>) {
        match answer {
            Ok(result) => self.channel.put_json(stream, Kind::Result, &result),
            Err(refusal) => self.channel.put_json(stream, Kind::Error, &refusal.to_json()),
        }
        self.mux.close(stream);
        self.files.active.retain(|transfer| transfer.stream != stream);
    }
}

impl Transfer {
    fn is_removal(&self) -> bool {
        matches!(self.work, Work::Removal { .. })
    }
}

fn begin_ping(open: &Value) -> Result<Work, Refusal> {
    let left = optional(open, "sendBytes")?.unwrap_or(0);
    Ok(Work::Ping { left, received: 0, is_body_due: flag(open, "body")? })
}

fn list(home: &Home, path: &HomePath) -> Result<Listing, Refusal> {
    let opened = home.try_as_user(|| home.target(path, Parents::MustExist)?.open(OFlags::DIRECTORY));
    Ok(Listing::new(home.user, opened.map_err(|error| refusal("list the directory", error))?))
}

fn stat(home: &Home, open: &Value) -> Result<Value, Refusal> {
    const ACTION: &str = "look at the file";
    let path = path_at(ACTION, open, "path")?;
    let is_followed = open["follow"].as_bool().unwrap_or(true);
    let found = home.try_as_user(|| match is_followed {
        true => home.target(&path, Parents::MustExist),
        false => home.place(&path, Parents::MustExist),
    });
    let status = found.and_then(|place| place.status.ok_or(Errno::NOENT)).map_err(|error| refusal(ACTION, error))?;
    Ok(tree::entry(path.name(), &status))
}

fn make_directory(home: &Home, open: &Value) -> Result<(), Refusal> {
    const ACTION: &str = "make the directory";
    let path = leaf_at(ACTION, open, "path")?;
    let (is_recursive, mode) = (flag(open, "recursive")?, optional(open, "mode")?.unwrap_or(0o755) as u32 & 0o777);
    let made = home.try_as_user(|| {
        let place = home.place(&path, if is_recursive { Parents::AreMade } else { Parents::MustExist })?;
        match fs::mkdirat(&place.directory, place.name.as_slice(), Mode::from_raw_mode(0o700)) {
            Err(Errno::EXIST) if is_recursive => {
                let found = home.target(&path, Parents::MustExist)?;
                return if found.is_directory() { Ok(()) } else { Err(Errno::EXIST) };
            }
            result => result?,
        }
        // The umask has no say in it.
        fs::fchmod(place.open(OFlags::DIRECTORY)?, Mode::from_raw_mode(mode))
    });
    made.map_err(|error| refusal(ACTION, error))
}

fn remove(home: &Home, open: &Value) -> Result<Option<Removal>, Refusal> {
    const ACTION: &str = "remove the file";
    let path = leaf_at(ACTION, open, "path")?;
    let is_recursive = flag(open, "recursive")?;
    let removed = home.try_as_user(|| tree::remove(home.user, home.place(&path, Parents::MustExist)?, is_recursive));
    removed.map_err(|error| refusal(ACTION, error))
}

fn rename(home: &Home, open: &Value) -> Result<(), Refusal> {
    const ACTION: &str = "rename the file";
    let (from, to) = (leaf_at(ACTION, open, "from")?, leaf_at(ACTION, open, "to")?);
    let renamed = home.try_as_user(|| {
        let (from, to) = (home.place(&from, Parents::MustExist)?, home.place(&to, Parents::MustExist)?);
        fs::renameat(&from.directory, from.name.as_slice(), &to.directory, to.name.as_slice())
    });
    renamed.map_err(|error| refusal(ACTION, error))
}

fn path_at(action: &str, open: &Value, name: &str) -> Result<HomePath, Refusal> {
    let text = open[name].as_str().ok_or_else(|| Refusal::bad_request(format!("Cannot {action}: {name} must be text")))?;
    HomePath::parse(action, text)
}

/// A path that names something in a directory, which the home and what ends in `..` do not.
fn leaf_at(action: &str, open: &Value, name: &str) -> Result<HomePath, Refusal> {
    let path = path_at(action, open, name)?;
    match path.name() {
        b"" => Err(Refusal::bad_request(format!("Cannot {action}: {name} must name something in the home directory"))),
        b".." => Err(refusal(action, Errno::XDEV)),
        _ => Ok(path),
    }
}

/// A whole number, or null, or nothing.
fn optional(open: &Value, name: &str) -> Result<Option<u64>, Refusal> {
    match &open[name] {
        Value::Null => Ok(None),
        value => {
            let number = value.as_u64().map(Some);
            number.ok_or_else(|| Refusal::bad_request(format!("Cannot open: {name} must be a whole number, got {value:.64}")))
        }
    }
}

fn flag(open: &Value, name: &str) -> Result<bool, Refusal> {
    match &open[name] {
        Value::Null => Ok(false),
        value => value.as_bool().ok_or_else(|| Refusal::bad_request(format!("Cannot open: {name} must be true or false, got {value:.64}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_due_when_nothing_is_under_way() {
        let mut files = Files { wants_room: true, ..Files::default() };
        assert_eq!(files.next_us(false, 5), None);
        files.active.push(Transfer { stream: 1, work: Work::Ping { left: 1, received: 0, is_body_due: false } });
        assert_eq!((files.next_us(false, 5), files.next_us(true, 5)), (Some(5), None));
        files.forget();
        assert_eq!(files.next_us(false, 5), None);
    }
}
