//! Memory: compressed swap, the share that is the user's, and an agent that always has its own.
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::MlockAllFlags;

use crate::init::Machine;

const PAGE_BYTES: u64 = 4_096;
/// Kept from the user's group for the kernel's and the agent's own needs.
const RESERVED_BYTES: u64 = 16 << 20;

pub fn total_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit.max(1))
}

/// What the user's processes and files may take together.
pub fn user_bytes() -> u64 {
    total_bytes().saturating_sub(RESERVED_BYTES).max(RESERVED_BYTES)
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
    write_at(&machine.devices, "zram0", &swap_header(bytes / PAGE_BYTES))?;
    // swapon takes a path, and the kernel's device file system has none any more.
    let device = fs::openat(&machine.devices, "zram0", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
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
    fn the_swap_header_is_that_of_mkswap() {
        let header = swap_header(16_384);
        assert_eq!(header.len(), 4_096);
        assert_eq!((&header[1_024..1_032], &header[4_086..]), (&[1, 0, 0, 0, 0xff, 0x3f, 0, 0][..], &b"SWAPSPACE2"[..]));
    }

    #[test]
    fn the_user_gets_most_of_the_memory_and_never_all() {
        assert!(user_bytes() < total_bytes() && user_bytes() > total_bytes() / 2);
    }
}
