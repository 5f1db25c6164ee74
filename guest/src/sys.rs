//! Sys: the system calls that no safe wrapper covers. The only file with `unsafe`, but for its part about interfaces (`sys_net`).
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::Pid;

#[path = "sys_net.rs"]
pub mod net;

/// The REPL's end of its control channel.
pub const CONTROL_FD: RawFd = 1000;

/// Who a child becomes, and what it may do no more.
pub struct Confinement {
    pub uid: u32,
    pub gid: u32,
    /// `(RLIMIT_…, soft, hard)`.
    pub limits: Vec<(libc::__rlimit_resource_t, u64, u64)>,
    pub filter: Vec<libc::sock_filter>,
    /// What is added to its score when memory runs out.
    pub oom_score_adjust: &'static CStr,
}

/// A program to start.
pub struct Spawn<'a> {
    /// Where it may be: the first that exists is it.
    pub programs: &'a [CString],
    pub args: &'a [CString],
    pub env: &'a [CString],
    pub directory: &'a CStr,
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    pub control: Option<BorrowedFd<'a>>,
    /// Standard input is a terminal that becomes the session's own.
    pub has_terminal: bool,
    /// A pipe's write end: closed when the program runs, else it says what failed (`StartFailure`).
    pub report: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` of the group it starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
    pub confinement: Option<&'a Confinement>,
}

/// Starts a program in a session of its own. Every descriptor of ours must be close-on-exec.
pub fn spawn(spawn: &Spawn) -> Result<Pid, Errno> {
    let args = pointers(spawn.args);
    let env = pointers(spawn.env);
    // SAFETY: the agent has one thread, so the child may do anything a fork may; it ends in execve or _exit.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => {
            // SAFETY: the pointers end in null and outlive the call; the strings are NUL-terminated.
            unsafe {
                let failed = become_child(spawn);
                let failure = match failed {
                    0 => StartFailure { step: StartFailure::EXEC, errno: execute(spawn.programs, &args, &env) },
                    step => StartFailure { step, errno: *libc::__errno_location() },
                };
                if let Some(report) = spawn.report {
                    let bytes = failure.to_bytes();
                    libc::write(report.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
                }
                libc::_exit(127)
            }
        }
        pid => Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(last_error),
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Why a child did not become the program it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// The number of a step in `become_child`, or EXEC.
    pub step: i32,
    pub errno: i32,
}

impl StartFailure {
    pub const DIRECTORY: i32 = 5;
    pub const EXEC: i32 = 10;
    pub const BYTES: usize = 8;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.step.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.errno.to_ne_bytes());
        bytes
    }

    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let field = |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        StartFailure { step: field(0), errno: field(4) }
    }
}

/// In the child: becomes the first of `programs` that is there. Returns why not: a program that may not be run counts more than one
/// that does not exist.
unsafe fn execute(programs: &[CString], args: &[*const libc::c_char], env: &[*const libc::c_char]) -> i32 {
    let mut errno = libc::ENOENT;
    for program in programs {
        // SAFETY: the caller's arrays end in null; all strings are NUL-terminated and outlive the call.
        let error = unsafe {
            libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr());
            *libc::__errno_location()
        };
        match error {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => errno = error,
            _ => return error,
        }
    }
    errno
}

/// In the child: everything between fork and exec. Returns 0, or the number of the step that failed.
unsafe fn become_child(spawn: &Spawn) -> i32 {
    // SAFETY: plain system calls on descriptors that are open and on memory that is ours.
    unsafe {
        if libc::setsid() < 0 {
            return 1;
        }
        if let Some(cgroup) = spawn.cgroup {
            if libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                return 2;
            }
        }
        // The agent is exempt from the out-of-memory killer; its children must not be.
        let adjust = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if adjust >= 0 {
            let text = spawn.confinement.map_or(c"0", |confinement| confinement.oom_score_adjust);
            libc::write(adjust, text.as_ptr().cast(), text.count_bytes());
            libc::close(adjust);
        }
        for (from, to) in [(spawn.stdin, 0), (spawn.stdout, 1), (spawn.stderr, 2)] {
            if libc::dup2(from.as_raw_fd(), to) < 0 {
                return 3;
            }
        }
        if spawn.has_terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return 11;
        }
        if let Some(control) = spawn.control {
            if libc::dup2(control.as_raw_fd(), CONTROL_FD) < 0 {
                return 4;
            }
        }
        // What the agent blocks and ignores would be inherited.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        for signal in [libc::SIGPIPE, libc::SIGINT, libc::SIGQUIT] {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::umask(0o022);
        if let Some(confinement) = spawn.confinement {
            let failed = confine(confinement, spawn);
            if failed != 0 {
                return failed;
            }
        } else if libc::chdir(spawn.directory.as_ptr()) < 0 {
            return StartFailure::DIRECTORY;
        }
        0
    }
}

unsafe fn confine(confinement: &Confinement, spawn: &Spawn) -> i32 {
    // SAFETY: as in become_child.
    unsafe {
        for (resource, soft, hard) in &confinement.limits {
            let limit = libc::rlimit { rlim_cur: *soft, rlim_max: *hard };
            if libc::syscall(libc::SYS_prlimit64, 0, *resource, &limit, ptr::null::<libc::rlimit>()) < 0 {
                return 6;
            }
        }
        // Dropped from the bounding set one by one, up to the last one this kernel knows.
        for capability in 0..64 {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) < 0 {
                break;
            }
        }
        if libc::setgroups(0, ptr::null()) < 0
            || libc::setresgid(confinement.gid, confinement.gid, confinement.gid) < 0
            || libc::setresuid(confinement.uid, confinement.uid, confinement.uid) < 0
        {
            return 7;
        }
        if libc::chdir(spawn.directory.as_ptr()) < 0 {
            return StartFailure::DIRECTORY;
        }
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
            return 8;
        }
        let program = libc::sock_fprog { len: confinement.filter.len() as u16, filter: confinement.filter.as_ptr().cast_mut() };
        let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        if libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) < 0 {
            return 9;
        }
        0
    }
}

/// From now on this process makes only the system calls that `filter` allows. It must not be able to gain rights any more.
pub fn restrict(filter: &[libc::sock_filter]) -> Result<(), Errno> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which outlives the call.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program)
    };
    check(result as libc::c_int).map(drop)
}

/// Any signal, by its number, to a process group.
pub fn signal_group(group: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::killpg(group.as_raw_nonzero().get(), signal) }).map(drop)
}

/// Whether the other end of a socketpair has still to read what was written to this one.
pub fn is_unread_by_peer(socket: BorrowedFd<'_>) -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int. On a socket TIOCOUTQ is SIOCOUTQ.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    result == 0 && bytes > 0
}

pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: only the descriptor's flags are read.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Makes `stream` descriptors 0, 1 and 2.
pub fn become_standard_streams(stream: OwnedFd) -> Result<(), Errno> {
    let fd = stream.into_raw_fd();
    // SAFETY: the descriptor was given up by its owner just now; 0 to 2 have none.
    unsafe {
        for standard in 0..=2 {
            check(libc::dup2(fd, standard))?;
        }
        if fd > 2 {
            libc::close(fd);
        }
    }
    Ok(())
}

/// A descriptor that becomes readable when a child ends; blocks SIGCHLD otherwise.
pub fn child_signals() -> Result<OwnedFd, Errno> {
    // SAFETY: the set is initialised by sigemptyset; signalfd returns a descriptor that nobody else owns.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Adds `entropy` to the kernel's generator, credited in full, and lets the generator reseed itself from it at once. `random` is /dev/urandom.
pub fn reseed_kernel(random: BorrowedFd<'_>, entropy: &[u8; crate::limits::ENTROPY_BYTES]) -> Result<(), Errno> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: i32,
        bytes: i32,
        data: [u8; crate::limits::ENTROPY_BYTES],
    }
    let info = PoolInfo { entropy_bits: entropy.len() as i32 * 8, bytes: entropy.len() as i32, data: *entropy };
    // SAFETY: `info` has the layout of struct rand_pool_info with its data, and outlives the calls.
    unsafe {
        check(libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &info))?;
        check(libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _, 0))?;
    }
    Ok(())
}

pub fn swap_on(device: &CStr) -> Result<(), Errno> {
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::swapon(device.as_ptr(), 0) }).map(drop)
}

/// Has the kernel judge this thread's access to files as that of `uid` and `gid`: for any but root without capabilities.
pub fn set_fs_identity(uid: u32, gid: u32) -> Result<(), Errno> {
    // No user or group has this number: the call only tells the present one, and nothing else does.
    const ASK: u32 = u32::MAX;
    // SAFETY: no memory is passed.
    let present = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(ASK), libc::setfsgid(ASK))
    };
    if present == (uid as libc::c_int, gid as libc::c_int) {
        return Ok(());
    }
    Err(Errno::PERM)
}

/// When the agent gets the processor.
#[derive(Clone, Copy)]
pub enum Precedence {
    /// When nobody else wants it.
    Last,
    /// Before every ordinary process; children start ordinary.
    First,
}

pub fn take_precedence(precedence: Precedence) -> Result<(), Errno> {
    let (policy, sched_priority) = match precedence {
        Precedence::Last => (libc::SCHED_IDLE, 0),
        Precedence::First => (libc::SCHED_FIFO, 1),
    };
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: the parameters outlive the call.
    check(unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &parameters) }).map(drop)
}

/// What the kernel has said so far; nothing when it will not tell.
pub fn kernel_log() -> Vec<u8> {
    const SYSLOG_ACTION_READ_ALL: libc::c_int = 3;
    let mut buffer = vec![0_u8; 1 << 16];
    // SAFETY: the kernel writes at most the length it is given, into a buffer of that length.
    let length = unsafe { libc::klogctl(SYSLOG_ACTION_READ_ALL, buffer.as_mut_ptr().cast(), buffer.len() as libc::c_int) };
    buffer.truncate(usize::try_from(length).unwrap_or(0));
    buffer
}

/// Allocations of `bytes` and more get pages of their own, which cost nothing until they are written to and are gone when freed.
pub fn map_allocations(bytes: usize) {
    // SAFETY: the call takes two numbers; no other thread allocates meanwhile.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes as libc::c_int) };
}

/// Gives the pages of freed memory back.
pub fn trim_memory() {
    // SAFETY: no memory is passed.
    unsafe { libc::malloc_trim(0) };
}

/// Ends the machine. QEMU runs with `-no-reboot`, so a restart ends it; microvm has no way to be switched off.
pub fn power_off() -> ! {
    // SAFETY: no memory is passed.
    unsafe {
        libc::reboot(libc::RB_AUTOBOOT);
        // Not reached as PID 1. Elsewhere (tests) the process ends.
        libc::_exit(1)
    }
}

/// Reads once, at most `most` bytes, onto the end of `buffer`.
pub fn read_append(fd: impl std::os::fd::AsFd, buffer: &mut Vec<u8>, most: usize) -> Result<usize, Errno> {
    let length = buffer.len();
    buffer.reserve(most);
    let (read, _) = rustix::io::read(fd, &mut buffer.spare_capacity_mut()[..most])?;
    let bytes = read.len();
    // SAFETY: the read initialised `bytes` bytes behind the old length, within the capacity.
    unsafe { buffer.set_len(length + bytes) };
    Ok(bytes)
}

/// The REPL's end of the control channel, in a test's REPL.
#[cfg(test)]
pub fn inherited_control() -> OwnedFd {
    // SAFETY: in that process the descriptor was made by `spawn`, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(CONTROL_FD) }
}

fn check(result: libc::c_int) -> Result<libc::c_int, Errno> {
    match result {
        -1 => Err(last_error()),
        value => Ok(value),
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
