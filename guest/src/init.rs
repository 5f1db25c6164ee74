//! Init: from the initrd to a root file system in which a user can run code.
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use rustix::fs::{self, FileType, Mode, OFlags, CWD};
use rustix::mount::{self, MountFlags};

use crate::cgroup::Group;
use crate::confine::{GROUP_ID, USER_ID};
use crate::error::{Action, Fatal};
use crate::{layer, memory, sys};

/// Where the root file system is mounted before it becomes the root.
const ROOT: &str = "/root";
const MIB: u64 = 1 << 20;

/// What only the agent can reach once the root has been switched.
pub struct Machine {
    /// The kernel's own device file system; users see a small one of ours.
    pub devices: OwnedFd,
    /// Writable sysfs.
    pub sysfs: OwnedFd,
    /// The group all of the user's processes live in; None without cgroups.
    pub cgroup: Option<Group>,
    pub command_line: String,
}

impl Machine {
    /// The value of `NAME=value` on the kernel command line.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Makes descriptors 0 to 2 exist before anything else can get these numbers. The kernel opens /dev/console for us only when
/// its driver was ready in time.
pub fn open_standard_streams() -> Result<(), Fatal> {
    make_directory("/dev", 0o755)?;
    mount("devtmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=0755")?;
    if sys::is_open(2) {
        return Ok(());
    }
    let console = fs::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
    let stream = console.or_else(|_| fs::open("/dev/null", OFlags::RDWR, Mode::empty())).action("open /dev/null")?;
    sys::become_standard_streams(stream).action("open the standard streams")
}

/// The console again, in case its driver was late: by now the control port is there, which comes after it.
pub fn open_late_console(machine: &Machine) {
    let null = fs::fstat(rustix::stdio::stderr()).is_ok_and(|status| fs::major(status.st_rdev) == 1);
    if !null {
        return;
    }
    if let Ok(console) = fs::openat(&machine.devices, "console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()) {
        let _ = sys::become_standard_streams(console);
    }
}

/// Mounts everything and switches to the root file system.
pub fn start() -> Result<Machine, Fatal> {
    for directory in ["/sys", ROOT] {
        make_directory(directory, 0o755)?;
    }
    mount("sysfs", "/sys", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"")?;
    let devices = open_directory("/dev")?;
    let sysfs = open_directory("/sys")?;
    mount::mount("/dev/vda", ROOT, "erofs", MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, c"")
        .action("mount the root disk")?;
    mount_kernel_views()?;
    make_devices()?;
    mount_memory_file_systems()?;
    let command_line = std::fs::read_to_string("/root/proc/cmdline").unwrap_or_default();
    layer::mount(&command_line)?;
    switch_root()?;
    let cgroup = make_cgroup();
    Ok(Machine { devices, sysfs, cgroup, command_line })
}

/// What need not be there before the REPL starts, and is before anybody's code runs.
pub fn finish(machine: &Machine) {
    memory::make_swap(machine);
    layer::add_memory(machine);
    for (name, value) in SYSCTLS {
        // A kernel built without the feature has no such file, and nothing to restrict.
        let _ = write_file(&format!("/proc/sys/{name}"), value);
    }
    if let Err(error) = sys::net::Interface::named("lo").and_then(|mut loopback| loopback.set_up(true)) {
        eprintln!("sbx-agent: no loopback interface: {error}");
    }
}

const SYSCTLS: &[(&str, &str)] = &[
    // IPv6 is for the loopback alone until the network is on (`network.rs`), and nothing is learnt from a link then.
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/autoconf", "0"),
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("vm/swappiness", "100"),
    // Swap is memory: reading ahead gains nothing.
    ("vm/page-cluster", "0"),
    // Heuristic: a single absurd allocation fails (MemoryError) instead of getting the process killed later.
    ("vm/overcommit_memory", "0"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/perf_event_paranoid", "3"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("kernel/yama/ptrace_scope", "2"),
    ("kernel/sysrq", "0"),
    ("kernel/core_pattern", "|/bin/false"),
    ("user/max_user_namespaces", "0"),
    ("fs/suid_dumpable", "0"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "2"),
    ("fs/protected_regular", "2"),
];

fn mount_kernel_views() -> Result<(), Fatal> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // The user sees its own processes: the agent is not among them.
    mount("proc", "/root/proc", flags, c"hidepid=2")?;
    mount("sysfs", "/root/sys", flags | MountFlags::RDONLY, c"")?;
    // Optional: without cgroups (a foreign kernel) processes are ended through their group.
    if mount("cgroup2", "/root/sys/fs/cgroup", flags, c"").is_err() {
        eprintln!("sbx-agent: this kernel has no cgroup v2");
    }
    Ok(())
}

/// A device file system with what programs need and nothing else: the ports, the disk and the console are not in it.
fn make_devices() -> Result<(), Fatal> {
    mount("tmpfs", "/root/dev", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=0755,size=64k,nr_inodes=64")?;
    let nodes = [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];
    for (name, minor) in nodes {
        make_node(name, 1, minor)?;
    }
    make_node("tty", 5, 0)?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        fs::symlink(target, format!("/root/dev/{name}")).action("make a device link")?;
    }
    make_directory("/root/dev/pts", 0o755)?;
    make_directory("/root/dev/shm", 0o755)?;
    mount("devpts", "/root/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, c"newinstance,ptmxmode=0666,mode=0620,gid=5")
}

fn make_node(name: &str, major: u32, minor: u32) -> Result<(), Fatal> {
    let path = format!("/root/dev/{name}");
    let mode = Mode::from_raw_mode(0o666);
    fs::mknodat(CWD, path.as_str(), FileType::CharacterDevice, mode, fs::makedev(major, minor)).action("make a device node")?;
    fs::chmod(path.as_str(), mode).action("make a device node")
}

fn mount_memory_file_systems() -> Result<(), Fatal> {
    let half_of_memory = memory::total_bytes() / 2;
    let user = format!("mode=0700,uid={USER_ID},gid={GROUP_ID}");
    // The quota is larger than the file system by a little: that one's limit shall answer first, with the ENOSPC that programs expect.
    mount_tmpfs("/root/tmp", [128 * MIB, 129 * MIB], Some(16_384), "mode=1777")?;
    mount_tmpfs("/root/dev/shm", [64 * MIB, 65 * MIB], None, "mode=1777")?;
    mount_tmpfs("/root/home/user", [half_of_memory, half_of_memory + MIB], None, &user)?;
    // Here half is the agent's: it hands code to the shell through files.
    mount_tmpfs("/root/run", [16 * MIB, 8 * MIB], None, "mode=0755")
}

/// A tmpfs with a user quota where the kernel has quotas.
fn mount_tmpfs(target: &str, [size_bytes, quota_bytes]: [u64; 2], inodes: Option<u32>, options: &str) -> Result<(), Fatal> {
    let mut data = format!("{options},size={size_bytes}");
    let mut quota = format!("usrquota,usrquota_block_hardlimit={quota_bytes}");
    if let Some(inodes) = inodes {
        data += &format!(",nr_inodes={inodes}");
        quota += &format!(",usrquota_inode_hardlimit={}", inodes + 1);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let with_quota = to_c_string(&format!("{data},{quota}"));
    match mount::mount("tmpfs", target, "tmpfs", flags, with_quota.as_c_str()) {
        Err(rustix::io::Errno::INVAL) => mount("tmpfs", target, flags, &to_c_string(&data)),
        result => result.action("mount a tmpfs"),
    }
}

/// The initrd's only other file goes; what was mounted over it can no longer be reached by path.
fn switch_root() -> Result<(), Fatal> {
    let _ = fs::unlink("/init");
    rustix::process::chdir(ROOT).action("enter the root file system")?;
    mount::mount_move(".", "/").action("move the root file system")?;
    rustix::process::chroot(".").action("switch root")?;
    rustix::process::chdir("/").action("switch root")?;
    let _ = rustix::system::sethostname(b"sbx");
    Ok(())
}

fn make_cgroup() -> Option<Group> {
    // Not memory: charging every page costs, and the agent needs no group to survive when memory runs out.
    let _ = write_file("/sys/fs/cgroup/cgroup.subtree_control", "+pids");
    Group::make_user().ok()
}

pub fn write_file(path: &str, text: &str) -> Result<(), rustix::io::Errno> {
    let file = fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes()).map(drop)
}

pub fn mount(kind: &str, target: &str, flags: MountFlags, data: &CStr) -> Result<(), Fatal> {
    mount::mount(kind, target, kind, flags, data).action("mount a file system")
}

fn make_directory(path: &str, mode: u32) -> Result<(), Fatal> {
    match fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        result => result.action("make a directory"),
    }
}

fn open_directory(path: &str) -> Result<OwnedFd, Fatal> {
    fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).action("open a directory")
}

pub fn to_c_string(text: &str) -> CString {
    // The texts are ours and hold no NUL.
    CString::new(text).unwrap_or_default()
}
