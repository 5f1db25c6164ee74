//! Channel: the control port's buffers. Frames out gather here until they are flushed in one write.
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use serde_json::Value;

use crate::error::{Action, Fatal};
use crate::exec::Outcome;
use crate::init::Machine;
use crate::outbox::Outbox;
use crate::sys;
use crate::wire::{self, Kind, HEADER_BYTES, PAYLOAD_BYTES};

const PORT_NAME: &[u8] = b"sbx.control";
/// With more than this waiting for the host, nothing is read that would add to it.
pub const BACKLOG_BYTES: usize = 2 * (HEADER_BYTES + PAYLOAD_BYTES);
/// Two whole frames.
const INPUT_BYTES: usize = 2 * (HEADER_BYTES + PAYLOAD_BYTES);
/// The driver hands out at most a page at once: a full one is likely followed by another.
const DRIVER_READ_BYTES: usize = 4_096;
/// What buffers keep between executions.
const KEPT_BYTES: usize = 16_384;

pub struct Channel {
    pub port: OwnedFd,
    pub input: Vec<u8>,
    out: Outbox,
    /// Something waits that should leave at once.
    pub is_urgent: bool,
    /// The last read filled what it could.
    pub is_more_likely: bool,
}

impl Channel {
    pub fn new(port: OwnedFd) -> Self {
        let (input, out) = (Vec::with_capacity(KEPT_BYTES), Outbox::with_capacity(KEPT_BYTES));
        Channel { port, input, out, is_urgent: false, is_more_likely: false }
    }

    /// Bytes that the host has not taken yet.
    pub fn backlog(&self) -> usize {
        self.out.backlog()
    }

    /// The port takes no more at the moment.
    pub fn is_blocked(&self) -> bool {
        self.out.is_full()
    }

    /// Reads what is there into `input`. False when there was nothing.
    pub fn fill(&mut self) -> Result<bool, Fatal> {
        self.input.reserve(KEPT_BYTES.min(INPUT_BYTES - self.input.len()));
        let room = INPUT_BYTES - self.input.len();
        match sys::read_append(&self.port, &mut self.input, room) {
            Ok(0) => Err(Fatal::HostGone),
            Ok(bytes) => {
                self.is_more_likely = bytes >= DRIVER_READ_BYTES;
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(error).action("read the control port"),
        }
    }

    pub fn flush(&mut self) -> Result<(), Fatal> {
        match self.out.flush(&self.port, BACKLOG_BYTES, <[u8]>::len) {
            Ok(is_all_sent) => self.is_urgent &= !is_all_sent,
            Err(Errno::PIPE | Errno::NODEV) => return Err(Fatal::HostGone),
            Err(error) => return Err(error).action("write the control port"),
        }
        Ok(())
    }

    pub fn put(&mut self, stream: u32, kind: Kind, flags: u8, payload: &[u8]) {
        wire::put_header(&mut self.out.bytes, stream, kind, flags, payload.len());
        self.out.bytes.extend_from_slice(payload);
        self.is_urgent = true;
    }

    pub fn put_json(&mut self, stream: u32, kind: Kind, json: &Value) {
        self.put(stream, kind, 0, json.to_string().as_bytes());
    }

    pub fn put_result(&mut self, stream: u32, outcome: &Outcome) {
        let at = self.out.bytes.len();
        wire::put_header(&mut self.out.bytes, stream, Kind::Result, 0, 0);
        outcome.write_json(&mut self.out.bytes, PAYLOAD_BYTES);
        let length = self.out.bytes.len() - at - HEADER_BYTES;
        wire::set_length(&mut self.out.bytes, at, length);
        self.is_urgent = true;
    }

    /// Reads from `source` straight into a DATA frame of at most `most` bytes. Returns the payload's length; 0: there was nothing.
    pub fn put_data_from(&mut self, source: impl std::os::fd::AsFd, stream: u32, flags: u8, most: usize) -> usize {
        self.try_put_data_from(source, stream, flags, most).unwrap_or(0)
    }

    /// The same; 0: `source` is at its end.
    pub fn try_put_data_from(&mut self, source: impl std::os::fd::AsFd, stream: u32, flags: u8, most: usize) -> Result<usize, Errno> {
        let at = self.out.bytes.len();
        wire::put_header(&mut self.out.bytes, stream, Kind::Data, flags, 0);
        match sys::read_append(source, &mut self.out.bytes, most.min(PAYLOAD_BYTES)) {
            Ok(bytes) if bytes > 0 => {
                wire::set_length(&mut self.out.bytes, at, bytes);
                self.is_urgent = true;
                Ok(bytes)
            }
            nothing => {
                self.out.bytes.truncate(at);
                nothing
            }
        }
    }

    /// Gives memory back.
    pub fn trim(&mut self) {
        self.input.shrink_to(KEPT_BYTES);
        self.out.bytes.shrink_to(KEPT_BYTES);
    }
}

/// Opens the control port and waits until the host's side is connected: until then a read would say that the host has gone.
pub fn open_port(machine: &Machine) -> Result<OwnedFd, Fatal> {
    const ATTEMPTS: u32 = 500;
    let pause = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    let mut port = None;
    for _ in 0..ATTEMPTS {
        port = port.or_else(|| find_port(machine, PORT_NAME).ok());
        if let Some(fd) = &port {
            let mut fds = [PollFd::new(fd, PollFlags::OUT)];
            rustix::event::poll(&mut fds, Some(&Timespec::default())).action("look at the control port")?;
            if !fds[0].revents().contains(PollFlags::HUP) {
                break;
            }
        }
        let _ = rustix::event::poll(&mut [], Some(&pause));
    }
    port.ok_or(Errno::NODEV).action("open the control port")
}

/// The port's device name depends on the order of the machine's devices; its own name does not.
pub fn find_port(machine: &Machine, wanted: &[u8]) -> Result<OwnedFd, Errno> {
    let ports = fs::openat(&machine.sysfs, "class/virtio-ports", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in fs::Dir::read_from(&ports)?.flatten() {
        let device = entry.file_name().to_string_lossy().into_owned();
        let mut name = Vec::new();
        let file = fs::openat(&ports, format!("{device}/name"), OFlags::CLOEXEC, Mode::empty());
        if file.is_ok_and(|file| sys::read_append(file, &mut name, 64).is_ok()) && name.trim_ascii() == wanted {
            return fs::openat(&machine.devices, device, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        }
    }
    Err(Errno::NODEV)
}
