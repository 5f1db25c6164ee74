//! Hygiene: makes generators inside running processes notice that their memory was copied.
//!
//! Libraries with a random generator of their own (BoringSSL in Bun, for one) keep a page that the kernel clears in a forked child
//! (MADV_WIPEONFORK) and reseed when they find it cleared. A clone of the whole machine forks nothing, so every clone would go on
//! with the same generator. The agent knows those pages and clears them itself.
use std::fs::{read_to_string, File, OpenOptions};
use std::os::unix::fs::FileExt;

/// A mark is a page or two; whatever is larger is no mark, and not worth a second's work.
const MARK_MAX_BYTES: u64 = 65_536;

/// Pages to clear, found while the machine stood still.
#[derive(Default)]
pub struct ForkMarks {
    marks: Vec<(File, Vec<Region>)>,
}

#[derive(Debug, PartialEq)]
struct Region {
    start: u64,
    bytes: u64,
}

impl ForkMarks {
    /// Looks through every process of the user. Takes milliseconds: for the moment before a save, not for the start of a clone.
    pub fn find() -> Self {
        let marks = crate::cgroup::user_pids().into_iter().filter_map(|pid| {
            let pid = pid.as_raw_nonzero();
            let regions = regions(&read_to_string(format!("/proc/{pid}/smaps")).ok()?);
            let memory = OpenOptions::new().write(true).open(format!("/proc/{pid}/mem")).ok()?;
            (!regions.is_empty()).then_some((memory, regions))
        });
        ForkMarks { marks: marks.collect() }
    }

    /// Clears them, once: later the addresses may belong to something else.
    pub fn clear(&mut self) {
        for (memory, regions) in std::mem::take(&mut self.marks) {
            for Region { start, bytes } in regions {
                // A process that has ended needs no new randomness.
                let _ = memory.write_all_at(&vec![0; bytes as usize], start);
            }
        }
    }
}

/// Private areas that are cleared on fork (`wf` among the flags), from the text of `/proc/PID/smaps`.
fn regions(smaps: &str) -> Vec<Region> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(region) = current.take().filter(|_| flags.split_whitespace().any(|flag| flag == "wf")) {
                found.push(region);
            }
        } else if let Some(region) = header(line) {
            current = Some(region);
        }
    }
    found
}

/// `7f0000000000-7f0000001000 rw-p …` begins an area.
fn header(line: &str) -> Option<Region> {
    let (range, _) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let bytes = end.checked_sub(start)?;
    (bytes <= MARK_MAX_BYTES).then_some(Region { start, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_cleared_on_fork_are_found() {
        let smaps = "55d000-55e000 rw-p 00000000 00:00 0\nSize:                  4 kB\nVmFlags: rd wr mr mw me ac\n\
                     7f1000-7f3000 rw-p 00000000 00:00 0    [anon: x]\nRss:  4 kB\nVmFlags: rd wr mr mw me wf ac\n\
                     7f8000-9f8000 rw-p 00000000 00:00 0\nVmFlags: rd wr wf\n";
        assert_eq!(regions(smaps), [Region { start: 0x7f1000, bytes: 0x2000 }]);
    }

    #[test]
    fn nonsense_is_no_area() {
        for text in ["", "VmFlags: wf", "zz-yy rw-p\nVmFlags: wf", "2000-1000 rw-p\nVmFlags: wf", "ffff"] {
            assert_eq!(regions(text), []);
        }
    }
}
