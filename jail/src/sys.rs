//! System calls: the only module with `unsafe`; every function takes and returns safe values.
use libc::{c_int, c_long, c_ulong};
use std::ffi::{CStr, CString};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

/// Attributes of `mount_setattr`, as in `linux/mount.h`.
pub const MOUNT_RDONLY: u64 = 0x1;
pub const MOUNT_NOSUID: u64 = 0x2;
pub const MOUNT_NODEV: u64 = 0x4;
pub const MOUNT_NOEXEC: u64 = 0x8;

/// Names a limit; C libraries differ in its type.
#[cfg(target_env = "musl")]
pub type Resource = c_int;
#[cfg(not(target_env = "musl"))]
pub type Resource = libc::__rlimit_resource_t;

const AT_RECURSIVE: c_int = 0x8000;
const CAP_VERSION_3: u32 = 0x2008_0522;
/// `SECBIT_NOROOT`, `SECBIT_NO_SETUID_FIXUP` stays off: leaving uid 0 must clear the capabilities.
const SECBITS_NO_ROOT: c_ulong = 0b11;

fn check(result: c_int) -> Result<c_int> {
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(result)
}

fn check_long(result: c_long) -> Result<c_long> {
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(result)
}

/// The path as the kernel takes it; a NUL inside is an invalid path.
pub fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::from_raw_os_error(libc::EINVAL))
}

fn prctl(option: c_int, a: c_ulong, b: c_ulong) -> Result<c_int> {
    // SAFETY: the options used here take integers only; unused arguments are zero as the kernel demands.
    check(unsafe { libc::prctl(option, a, b, 0 as c_ulong, 0 as c_ulong) })
}

/// SIGKILL for this process when the thread that started it ends.
pub fn die_with_parent() -> Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong, 0).map(drop)
}

/// No exec gives more rights than this process has.
pub fn set_no_new_privs() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Whether capability `number` is in the bounding set; an error past the kernel's last one.
pub fn is_in_bounding_set(number: u32) -> Result<bool> {
    prctl(libc::PR_CAPBSET_READ, c_ulong::from(number), 0).map(|set| set == 1)
}

/// Takes capability `number` out of the bounding set, for ever.
pub fn drop_from_bounding_set(number: u32) -> Result<()> {
    prctl(libc::PR_CAPBSET_DROP, c_ulong::from(number), 0).map(drop)
}

/// Uid 0 gives no capabilities on exec any more, and that is locked.
pub fn lock_no_root() -> Result<()> {
    prctl(libc::PR_SET_SECUREBITS, SECBITS_NO_ROOT, 0).map(drop)
}

/// Empties the ambient set.
pub fn clear_ambient() -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong, 0).map(drop)
}

/// Empties the effective, permitted and inheritable sets.
pub fn clear_capabilities() -> Result<()> {
    let header: [u32; 2] = [CAP_VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: version 3 reads a header of two words and two sets of three words; both outlive the call.
    check_long(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) }).map(drop)
}

pub fn effective_uid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::geteuid() }
}

pub fn effective_gid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getegid() }
}

pub fn pid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getpid() }.unsigned_abs()
}

pub fn parent_pid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getppid() }.unsigned_abs()
}

/// Becomes that user and group, with no other group.
pub fn become_user(uid: u32, gid: u32) -> Result<()> {
    // SAFETY: an empty list needs no pointer.
    check(unsafe { libc::setgroups(0, ptr::null()) })?;
    // SAFETY: plain integers.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: plain integers.
    check(unsafe { libc::setresuid(uid, uid, uid) }).map(drop)
}

/// New namespaces for this process (and, for `CLONE_NEWPID`, its children).
pub fn unshare(flags: c_int) -> Result<()> {
    // SAFETY: plain integer; this process has one thread.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

pub fn set_hostname(name: &str) -> Result<()> {
    // SAFETY: the kernel reads exactly the given number of bytes.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// `mount(2)`; `source`, `kind` and `data` may be empty.
pub fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: c_ulong, data: &CStr) -> Result<()> {
    // SAFETY: all strings end with NUL and outlive the call.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) })
        .map(drop)
}

/// Adds mount attributes (`MOUNT_…`) without touching others; kernel 5.12.
pub fn add_mount_attributes(target: &CStr, attributes: u64, is_recursive: bool) -> Result<()> {
    let arguments: [u64; 4] = [attributes, 0, 0, 0];
    let flags = if is_recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `struct mount_attr` is four u64; the size tells the kernel so.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
            arguments.as_ptr(),
            size_of_val(&arguments),
        )
    })
    .map(drop)
}

/// The mount flags of the file system at `path`, as `statvfs` names them.
pub fn mount_flags(path: &CStr) -> Result<c_ulong> {
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut facts: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with NUL, the struct is ours.
    check(unsafe { libc::statvfs(path.as_ptr(), &mut facts) })?;
    Ok(facts.f_flag)
}

/// Permissions that new files do not get.
pub fn set_umask(mask: libc::mode_t) {
    // SAFETY: plain integer, cannot fail.
    unsafe { libc::umask(mask) };
}

/// Makes the working directory the root of this mount namespace and detaches the old root.
pub fn pivot_into_working_directory() -> Result<()> {
    // SAFETY: both strings are static. With the same directory twice the old root ends up stacked on the new one.
    check_long(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    // SAFETY: static string.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Makes a character device owned by the given user alone.
pub fn make_device(path: &CStr, device: u64, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: the path ends with NUL.
    check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, device) })?;
    // SAFETY: as above.
    check(unsafe { libc::chown(path.as_ptr(), uid, gid) }).map(drop)
}

/// Whether this process may use `path` as `mode` (`R_OK` …) says, by its effective ids.
pub fn may_access(path: &CStr, mode: c_int) -> Result<()> {
    // SAFETY: the path ends with NUL.
    check(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) }).map(drop)
}

/// Soft and hard limit alike.
pub fn set_limit(resource: Resource, value: u64) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the struct is ours.
    check(unsafe { libc::setrlimit(resource, &limit) }).map(drop)
}

/// Hard limit of `resource`.
pub fn hard_limit(resource: Resource) -> Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is ours.
    check(unsafe { libc::getrlimit(resource, &mut limit) })?;
    Ok(limit.rlim_max)
}

/// ABI version of Landlock; an error where the kernel has none.
pub fn landlock_abi() -> Result<u32> {
    const VERSION: u32 = 1;
    // SAFETY: asking for the version takes a null pointer and size 0.
    let abi =
        check_long(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0usize, VERSION) })?;
    Ok(abi as u32)
}

/// A ruleset that handles (denies unless allowed) the given rights.
pub fn landlock_create(files: u64, network: u64, scopes: u64, size: usize) -> Result<OwnedFd> {
    let attributes: [u64; 3] = [files, network, scopes];
    let size = size.min(size_of_val(&attributes));
    // SAFETY: the kernel reads `size` bytes, at most the whole array; older ones know only a shorter struct.
    let fd = check_long(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attributes.as_ptr(), size, 0u32) })?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Allows `rights` beneath the file or directory `parent`.
pub fn landlock_allow(ruleset: &OwnedFd, parent: &OwnedFd, rights: u64) -> Result<()> {
    const RULE_PATH_BENEATH: u32 = 1;
    let mut rule = [0u8; 12]; // packed: u64 rights, i32 descriptor
    rule[..8].copy_from_slice(&rights.to_ne_bytes());
    rule[8..].copy_from_slice(&parent.as_raw_fd().to_ne_bytes());
    // SAFETY: the rule has the packed layout of `struct landlock_path_beneath_attr`.
    check_long(unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_PATH_BENEATH, rule.as_ptr(), 0u32)
    })
    .map(drop)
}

/// The ruleset holds for this process and all it will start, for ever.
pub fn landlock_restrict(ruleset: &OwnedFd) -> Result<()> {
    // SAFETY: plain integers.
    check_long(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) }).map(drop)
}

/// Opens a path for naming it only.
pub fn open_path(path: &CStr) -> Result<OwnedFd> {
    // SAFETY: the path ends with NUL.
    let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Installs a seccomp filter for this process and all it will start.
pub fn install_filter(program: &[libc::sock_filter]) -> Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Error::from_raw_os_error(libc::EINVAL))?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program during the call and does not write to it.
    check_long(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const filter) })
        .map(drop)
}

/// Whether `socket(2)` gives a descriptor; it is closed again.
pub fn try_socket(family: c_int) -> Result<()> {
    // SAFETY: plain integers.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: a new descriptor that nothing else owns; dropping closes it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Closes every descriptor from `first` to `last`.
pub fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: the callers own no object with a descriptor in the range that they would use later.
    let result = check_long(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) });
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => close_one_by_one(first, last),
        other => other.map(drop),
    }
}

/// Kernels before 5.9: up to the limit on descriptors, which bounds the highest one in practice.
fn close_one_by_one(first: u32, last: u32) -> Result<()> {
    const DESCRIPTORS_MAX: u64 = 1 << 20;
    let limit = hard_limit(libc::RLIMIT_NOFILE)?.min(DESCRIPTORS_MAX) as u32;
    for fd in first..=last.min(limit) {
        // SAFETY: as in `close_range`; a number that is not open is an error without effect.
        unsafe { libc::close(fd as c_int) };
    }
    Ok(())
}

/// A pipe (read end, write end), close-on-exec.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: two new descriptors that nothing else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Whether the last write end of the pipe is closed, now.
pub fn is_hung_up(pipe: &OwnedFd) -> bool {
    let mut entry = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, ours; a time-out of 0 does not block.
    let count = unsafe { libc::poll(&mut entry, 1, 0) };
    count > 0 && entry.revents & libc::POLLHUP != 0
}

/// `Some(pid)` in the parent, `None` in the child.
pub fn fork() -> Result<Option<i32>> {
    // SAFETY: this process has one thread, so the child's copy of every lock is free.
    let pid = check(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid))
}

/// How a child ended.
pub enum Ending {
    Exited(i32),
    Killed(i32),
}

/// Waits until the child `pid` has ended.
pub fn wait_for(pid: i32) -> Result<Ending> {
    let mut status = 0;
    // SAFETY: the status is ours.
    while unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
        let error = Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
    if libc::WIFSIGNALED(status) {
        return Ok(Ending::Killed(libc::WTERMSIG(status)));
    }
    Ok(Ending::Exited(libc::WEXITSTATUS(status)))
}

/// Ends this process as the signal would, without a core dump.
pub fn die_of(signal: c_int) -> ! {
    let _ = set_limit(libc::RLIMIT_CORE, 0); // Lowering a limit cannot fail.
    restore_signal(signal);
    // SAFETY: plain integers; this very process.
    unsafe { libc::kill(libc::getpid(), signal) };
    // A signal whose default is not death: the shells' number for it.
    exit_now(128 + signal)
}

/// Ends this process at once, without running anything that was registered for its end.
pub fn exit_now(status: c_int) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(status) }
}

/// The signal does by default what the kernel says.
pub fn restore_signal(signal: c_int) {
    // SAFETY: the default disposition runs no code of ours. SIGKILL is refused without effect.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// No signal is blocked.
pub fn unblock_signals() {
    // SAFETY: all-zero is a valid empty set; initialised by the call before use.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// Becomes `program`; returns only on failure.
pub fn exec(program: &CStr, arguments: &[CString], environment: &[CString]) -> Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer, and their strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Error::last_os_error()
}
