//! Cgroup: the control groups of the user's processes: `user/repl` for the REPL, `user/p<id>` for each process beside it.
//! What bounds all of them together (`pids.max`) is set on `user`.
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, Mode, OFlags, CWD};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

const ROOT: &str = "/sys/fs/cgroup";
const USER: &str = "/sys/fs/cgroup/user";
const NETWORK: &str = "/sys/fs/cgroup/network";

/// One control group, as its directory.
pub struct Group {
    directory: OwnedFd,
}

impl Group {
    /// The group above all of the user's.
    pub fn make_user() -> Result<Self, Errno> {
        let group = make_at(CWD, USER)?;
        let _ = crate::init::write_file(&format!("{USER}/pids.max"), &crate::limits::GUEST_PROCESSES.to_string());
        Ok(group)
    }

    /// The group of the network's process, out of the user's.
    pub fn make_network() -> Result<Self, Errno> {
        make_at(CWD, NETWORK)
    }

    /// From now on the groups below this one have the processor in equal shares, however many processes each has: a fork bomb in one
    /// leaves the others theirs. Every change of processes costs a little more then.
    pub fn share_processor(&self) -> Result<(), Errno> {
        crate::init::write_file(&format!("{ROOT}/cgroup.subtree_control"), "+cpu")?;
        self.write("cgroup.subtree_control", b"+cpu")
    }

    /// Makes a group below this one, or finds it.
    pub fn make(&self, name: &str) -> Result<Self, Errno> {
        make_at(&self.directory, name)
    }

    /// Removes a group below this one; fails while a process is in it.
    pub fn remove(&self, name: &str) -> Result<(), Errno> {
        fs::unlinkat(&self.directory, name, AtFlags::REMOVEDIR)
    }

    /// What a process writes to in order to move itself here.
    pub fn entrance(&self) -> Result<OwnedFd, Errno> {
        fs::openat(&self.directory, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    }

    pub fn pids(&self) -> Vec<Pid> {
        parse_pids(&self.read("cgroup.procs").unwrap_or_default())
    }

    /// SIGKILL to every process in it, however fast they multiply. False when the kernel does not know how.
    pub fn kill(&self) -> bool {
        self.write("cgroup.kill", b"1").is_ok()
    }

    pub fn is_empty(&self) -> bool {
        self.read("cgroup.events").is_ok_and(|events| events.contains("populated 0"))
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Errno> {
        let file = fs::openat(&self.directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, bytes).map(drop)
    }

    fn read(&self, path: &str) -> Result<String, Errno> {
        let file = fs::openat(&self.directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::with_capacity(512);
        while rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text))? > 0 {
            text.reserve(4_096);
        }
        String::from_utf8(text).map_err(|_| Errno::ILSEQ)
    }
}

fn make_at(directory: impl AsFd, name: &str) -> Result<Group, Errno> {
    match fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) | Ok(()) => {}
        Err(error) => return Err(error),
    }
    Ok(Group { directory: fs::openat(&directory, name, DIRECTORY, Mode::empty())? })
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// Every process of the user; where there are no such groups (the tests' machine), none.
pub fn user_pids() -> Vec<Pid> {
    let groups = std::fs::read_dir(USER).into_iter().flatten().flatten();
    groups.flat_map(|group| parse_pids(&std::fs::read_to_string(group.path().join("cgroup.procs")).unwrap_or_default())).collect()
}

/// SIGKILL to the process that the kernel would choose when memory runs out.
pub fn kill_largest() {
    let score = |pid: &Pid| std::fs::read_to_string(format!("/proc/{}/oom_score", pid.as_raw_nonzero())).ok()?.trim().parse::<u32>().ok();
    if let Some(pid) = user_pids().into_iter().max_by_key(score) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

fn parse_pids(text: &str) -> Vec<Pid> {
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_are_read_one_a_line_and_nonsense_is_skipped() {
        let raw = |text| parse_pids(text).into_iter().map(|pid| pid.as_raw_nonzero().get()).collect::<Vec<_>>();
        assert_eq!(raw("1\n22\n333\n"), [1, 22, 333]);
        assert_eq!(raw("\n0\nx\n-\n7"), [7]);
    }
}
