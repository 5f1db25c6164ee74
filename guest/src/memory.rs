//! Memory: compressed swap, and an agent that always has its own pages.
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::MlockAllFlags;

use crate::init::Machine;

const PAGE_BYTES: u64 = 4_096;

pub fn total_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit.max(1))
}

/// Ends a program that has run into the end of the memory. The kernel would do it, but not while it can still drop and read
/// again pages of the root disk: a machine can spend minutes that way.
#[derive(Default)]
pub struct Watch {
    strikes: u32,
}

impl Watch {
    /// The first look at a fresh execution, and the time between looks. Short programs are never looked at.
    pub const FIRST_US: u64 = 1_000_000;
    pub const PAUSE_US: u64 = 500_000;
    /// So many looks in a row must find it exhausted.
    const STRIKES: u32 = 3;

    /// Whether the largest process should be killed now.
    pub fn is_exhausted(&mut self) -> bool {
        let mut text = Vec::new();
        let file = fs::open("/proc/meminfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let is_read = file.is_ok_and(|file| crate::sys::read_append(file, &mut text, 2_048).is_ok());
        let is_short = is_read && is_short(&String::from_utf8_lossy(&text));
        self.strikes = if is_short { self.strikes + 1 } else { 0 };
        if self.strikes < Self::STRIKES {
            return false;
        }
        self.strikes = 0;
        true
    }
}

/// Less than one part in 25 is left, of the memory and of the swap.
fn is_short(meminfo: &str) -> bool {
    let kilobytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let is_low = |free: &str, total: &str| matches!((kilobytes(free), kilobytes(total)), (Some(free), Some(total)) if free * 25 <= total);
    is_low("MemAvailable", "MemTotal") && is_low("SwapFree", "SwapTotal")
}

/// The agent is never a victim and never waits for its own pages.
pub fn protect_agent() {
    let _ = crate::init::write_file("/proc/self/oom_score_adj", "-1000");
    // On fault: untouched pages need not become resident for it.
    if let Err(error) = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        eprintln!("sbx-agent: cannot lock memory: {error}");
    }
}

/// Swap of a quarter of the memory on a compressed device. Optional: a kernel without it runs with less.
pub fn make_swap(machine: &Machine) {
    let bytes = total_bytes() / 4 / PAGE_BYTES * PAGE_BYTES;
    if let Err(error) = try_make_swap(machine, bytes) {
        eprintln!("sbx-agent: no swap: {error}");
    }
}

fn try_make_swap(machine: &Machine, bytes: u64) -> Result<(), Errno> {
    // lz4 is the kernel's default here; asking for it fails where it is the only one.
    let _ = write_at(&machine.sysfs, "block/zram0/comp_algorithm", b"lz4");
    write_at(&machine.sysfs, "block/zram0/disksize", bytes.to_string().as_bytes())?;
    swap_to(machine, "zram0", bytes)
}

/// Swap on a whole disk; of less use than compressed memory, so it comes after that.
pub fn swap_to_disk(machine: &Machine, disk: &str) -> Result<(), Errno> {
    swap_to(machine, disk, disk_bytes(disk)?)
}

pub fn disk_bytes(disk: &str) -> Result<u64, Errno> {
    let sectors = std::fs::read_to_string(format!("/sys/class/block/{disk}/size")).map_err(|_| Errno::NODEV)?;
    sectors.trim().parse::<u64>().map(|sectors| sectors * 512).map_err(|_| Errno::INVAL)
}

fn swap_to(machine: &Machine, name: &str, bytes: u64) -> Result<(), Errno> {
    write_at(&machine.devices, name, &swap_header(bytes / PAGE_BYTES))?;
    // swapon takes a path, and the kernel's device file system has none any more.
    let device = fs::openat(&machine.devices, name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", device.as_raw_fd())).unwrap_or_default();
    crate::sys::swap_on(&path)
}

fn write_at(directory: &OwnedFd, path: &str, bytes: &[u8]) -> Result<(), Errno> {
    let file = fs::openat(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes).map(drop)
}

/// What mkswap writes: the first page, with the version, the last page's number, and the signature at its end.
fn swap_header(pages: u64) -> Vec<u8> {
    let mut header = vec![0; PAGE_BYTES as usize];
    header[1_024..1_028].copy_from_slice(&1u32.to_le_bytes());
    header[1_028..1_032].copy_from_slice(&((pages - 1) as u32).to_le_bytes());
    header[4_086..].copy_from_slice(b"SWAPSPACE2");
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_when_neither_memory_nor_swap_is_left() {
        let meminfo = |available: u32, swap: u32| {
            format!("MemTotal:  250000 kB\nMemFree: 9 kB\nMemAvailable: {available} kB\nSwapTotal: 60000 kB\nSwapFree: {swap} kB\n")
        };
        assert!(is_short(&meminfo(10_000, 2_400)) && is_short(&meminfo(0, 0)));
        assert!(!is_short(&meminfo(10_001, 0)) && !is_short(&meminfo(0, 2_401)));
        assert!(!is_short("") && !is_short("MemTotal: x kB\n"));
        // Without swap memory alone decides.
        assert!(is_short(&meminfo(1, 0).replace("60000", "0")));
    }

    #[test]
    fn the_swap_header_is_that_of_mkswap() {
        let header = swap_header(16_384);
        assert_eq!(header.len(), 4_096);
        assert_eq!((&header[1_024..1_032], &header[4_086..]), (&[1, 0, 0, 0, 0xff, 0x3f, 0, 0][..], &b"SWAPSPACE2"[..]));
    }
}
