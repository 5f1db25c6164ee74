//! Confinement of what the user's code runs in: identity, resource limits, and the system-call filter.
//! The filter is a deny list: the machine's border is the hypervisor; this keeps code that has no business with them away from
//! the kernel's rarely used and often broken corners, and refuses in the way programs expect (EPERM, or ENOSYS to fall back).
use libc::{c_long, sock_filter};

use crate::limits::GUEST_PROCESSES;
use crate::sys::Confinement;

pub const USER_ID: u32 = 1000;
pub const GROUP_ID: u32 = 1000;
/// Of the process of the network.
const NETWORK_ID: u32 = 990;
const NETWORK_DESCRIPTORS: u64 = 8_192;

/// What every REPL gets.
pub fn confinement() -> Confinement {
    Confinement {
        uid: USER_ID,
        gid: GROUP_ID,
        limits: vec![
            (libc::RLIMIT_NPROC, GUEST_PROCESSES, GUEST_PROCESSES),
            (libc::RLIMIT_CORE, 0, 0),
            // The control descriptor is 1000 and lies below the soft limit.
            (libc::RLIMIT_NOFILE, 4_096, 65_536),
            // Locked memory cannot be swapped; programs that keep a key in it need little.
            (libc::RLIMIT_MEMLOCK, 1 << 20, 1 << 20),
        ],
        filter: filter(),
        oom_score_adjust: c"0",
    }
}

/// What the process of the network starts with; it restricts itself further (`network_filter`).
pub fn network_confinement() -> Confinement {
    Confinement {
        uid: NETWORK_ID,
        gid: NETWORK_ID,
        limits: vec![
            (libc::RLIMIT_NPROC, 1, 1),
            (libc::RLIMIT_CORE, 0, 0),
            (libc::RLIMIT_NOFILE, NETWORK_DESCRIPTORS, NETWORK_DESCRIPTORS),
            (libc::RLIMIT_FSIZE, 0, 0),
        ],
        filter: filter(),
        // Behind what the user runs, but not spared.
        oom_score_adjust: c"-500",
    }
}

/// Administration of the machine: needs capabilities that the user has not, and stays refused if one leaks.
const ADMINISTRATION: &[c_long] = &[
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
];

/// Mounts and namespaces: their permission checks have been a rich source of escalations.
const MOUNTS: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
];

/// Looking into other processes, and the kernel's key store. A session's processes share a user, so this also keeps
/// code away from the REPL's memory.
const INSPECTION: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_perf_event_open,
    libc::SYS_bpf,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Large or old attack surface that programs do without when it is absent: ENOSYS.
const ABSENT: &[c_long] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_memfd_secret,
    libc::SYS_remap_file_pages,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Its flags lie in memory, where a filter cannot see them; the C library falls back to clone.
    libc::SYS_clone3,
];

#[cfg(target_arch = "x86_64")]
mod arch {
    use libc::c_long;
    /// AUDIT_ARCH_X86_64.
    pub const AUDIT: u32 = 0xc000_003e;
    pub const ABSENT: &[c_long] =
        &[libc::SYS_modify_ldt, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_uselib, libc::SYS_ustat, libc::SYS_sysfs, libc::SYS__sysctl];
    /// The C library's and rustix' older ways.
    pub const NETWORK: &[c_long] = &[libc::SYS_poll, libc::SYS_epoll_wait];
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use libc::c_long;
    /// AUDIT_ARCH_AARCH64.
    pub const AUDIT: u32 = 0xc000_00b7;
    pub const ABSENT: &[c_long] = &[];
    pub const NETWORK: &[c_long] = &[];
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; NEWTIME shares its bit with the exit signal.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
const PERSONALITY_QUERY: u32 = 0xffff_ffff;

// Offsets in struct seccomp_data; arguments are 64 bits, low half first on both architectures.
const NR: u32 = 0;
const ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// The filter. The kernel runs it for every call number when it is installed and remembers those that it allows whatever their
/// arguments; only the few that look at an argument run it again. So its depth matters once: the numbers form a search tree.
fn filter() -> Vec<sock_filter> {
    let mut rules: Vec<(u32, Rule)> = Vec::new();
    let mut add = |calls: &[c_long], verdict: u32| rules.extend(calls.iter().map(|&call| (call as u32, Rule::Always(verdict))));
    add(ADMINISTRATION, errno(libc::EPERM));
    add(MOUNTS, errno(libc::EPERM));
    add(INSPECTION, errno(libc::EPERM));
    add(ABSENT, errno(libc::ENOSYS));
    add(arch::ABSENT, errno(libc::ENOSYS));
    rules.push((libc::SYS_clone as u32, Rule::Clone));
    rules.push((libc::SYS_socket as u32, Rule::Socket));
    rules.push((libc::SYS_ioctl as u32, Rule::Ioctl));
    rules.push((libc::SYS_personality as u32, Rule::Personality));
    rules.sort_by_key(|rule| rule.0);
    program(&rules, ALLOW)
}

/// Code that judges by `rules`, sorted by number, and whatever is in none of them by `otherwise`.
fn program(rules: &[(u32, Rule)], otherwise: u32) -> Vec<sock_filter> {
    let mut program = vec![load(ARCH), jump(libc::BPF_JEQ, arch::AUDIT, 1, 0), give(KILL), load(NR)];
    // Numbers from 2^30 on are the x32 system calls.
    program.extend([jump(libc::BPF_JGE, 0x4000_0000, 0, 1), give(errno(libc::ENOSYS))]);
    program.extend(tree(rules, otherwise));
    program
}

/// What the process of the network calls once it runs; everything else ends it.
const NETWORK: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_clock_gettime,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The filter of the process of the network: an allow list.
pub fn network_filter() -> Vec<sock_filter> {
    let mut rules: Vec<_> = NETWORK.iter().chain(arch::NETWORK).map(|&call| (call as u32, Rule::Always(ALLOW))).collect();
    rules.sort_by_key(|rule| rule.0);
    program(&rules, KILL)
}

#[derive(Clone, Copy)]
enum Rule {
    Always(u32),
    /// No new namespaces.
    Clone,
    /// Unix, IPv4, IPv6, and netlink's routing protocol, which the C library asks for addresses. No UDP-Lite, which nobody carries: its
    /// packets would be lost without a word.
    Socket,
    /// No typing into another's terminal.
    Ioctl,
    /// Asking, or the ordinary one.
    Personality,
}

/// Code that ends in a verdict for any call number, already loaded.
fn tree(rules: &[(u32, Rule)], otherwise: u32) -> Vec<sock_filter> {
    if let [(number, rule)] = rules {
        let then = body(*rule);
        let mut code = vec![jump(libc::BPF_JEQ, *number, 0, then.len() as u8)];
        code.extend(then);
        code.push(give(otherwise));
        return code;
    }
    let (low, high) = rules.split_at(rules.len() / 2);
    let low_code = tree(low, otherwise);
    // A conditional jump reaches 255 instructions; beyond that an unconditional one goes over the lower half.
    let mut code = vec![jump(libc::BPF_JGE, high[0].0, 0, 1), always(low_code.len() as u32)];
    code.extend(low_code);
    code.extend(tree(high, otherwise));
    code
}

fn body(rule: Rule) -> Vec<sock_filter> {
    match rule {
        Rule::Always(verdict) => vec![give(verdict)],
        Rule::Clone => {
            vec![load(argument(0)), jump(libc::BPF_JSET, CLONE_NAMESPACES, 0, 1), give(errno(libc::EPERM)), give(ALLOW)]
        }
        Rule::Socket => vec![
            load(argument(0)),
            jump(libc::BPF_JEQ, libc::AF_UNIX as u32, 8, 0),
            jump(libc::BPF_JEQ, libc::AF_INET as u32, 4, 0),
            jump(libc::BPF_JEQ, libc::AF_INET6 as u32, 3, 0),
            jump(libc::BPF_JEQ, libc::AF_NETLINK as u32, 0, 6),
            load(argument(2)),
            jump(libc::BPF_JEQ, libc::NETLINK_ROUTE as u32, 3, 4),
            load(argument(2)),
            jump(libc::BPF_JEQ, libc::IPPROTO_UDPLITE as u32, 0, 1),
            give(errno(libc::EPROTONOSUPPORT)),
            give(ALLOW),
            give(errno(libc::EAFNOSUPPORT)),
        ],
        Rule::Ioctl => vec![
            load(argument(1)),
            jump(libc::BPF_JEQ, libc::TIOCSTI as u32, 1, 0),
            // TIOCLINUX.
            jump(libc::BPF_JEQ, 0x541c, 0, 1),
            give(errno(libc::EPERM)),
            give(ALLOW),
        ],
        Rule::Personality => vec![
            load(argument(0)),
            jump(libc::BPF_JEQ, 0, 1, 0),
            jump(libc::BPF_JEQ, PERSONALITY_QUERY, 0, 1),
            give(ALLOW),
            give(errno(libc::EPERM)),
        ],
    }
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

/// Compares what was loaded with `value` and skips instructions.
fn jump(condition: u32, value: u32, if_true: u8, if_false: u8) -> sock_filter {
    instruction(libc::BPF_JMP | condition | libc::BPF_K, if_true, if_false, value)
}

fn always(skip: u32) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, skip)
}

fn give(verdict: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, verdict)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would.
    fn run(nr: c_long, args: [u64; 6]) -> u32 {
        judge(&filter(), nr, args)
    }

    fn judge(program: &[sock_filter], nr: c_long, args: [u64; 6]) -> u32 {
        let (mut at, mut loaded) = (0, 0u32);
        loop {
            let step = program[at];
            at += 1;
            let code = u32::from(step.code);
            match code & 0x07 {
                libc::BPF_LD => {
                    loaded = match step.k {
                        NR => nr as u32,
                        ARCH => arch::AUDIT,
                        offset => (args[(offset as usize - 16) / 8] >> (8 * (offset % 8))) as u32,
                    }
                }
                libc::BPF_RET => return step.k,
                libc::BPF_JMP => {
                    let holds = match code & 0xf0 {
                        libc::BPF_JA => {
                            at += step.k as usize;
                            continue;
                        }
                        libc::BPF_JEQ => loaded == step.k,
                        libc::BPF_JGE => loaded >= step.k,
                        libc::BPF_JSET => loaded & step.k != 0,
                        other => panic!("condition {other}"),
                    };
                    at += usize::from(if holds { step.jt } else { step.jf });
                }
                other => panic!("instruction {other}"),
            }
        }
    }

    #[test]
    fn every_listed_call_is_refused_and_its_neighbours_are_not() {
        let eperm: Vec<_> = [ADMINISTRATION, MOUNTS, INSPECTION].concat();
        let enosys: Vec<_> = [ABSENT, arch::ABSENT].concat();
        for call in 0..600 {
            let wanted = match () {
                () if eperm.contains(&call) => errno(libc::EPERM),
                () if enosys.contains(&call) => errno(libc::ENOSYS),
                () if call == libc::SYS_socket => errno(libc::EAFNOSUPPORT),
                () => ALLOW,
            };
            assert_eq!(run(call, [0; 6]), wanted, "call {call}");
        }
        assert_eq!(run(0x4000_0000, [0; 6]), errno(libc::ENOSYS));
    }

    #[test]
    fn the_network_may_call_what_is_listed_and_dies_of_everything_else() {
        let program = network_filter();
        for call in 0..600 {
            let is_listed = NETWORK.contains(&call) || arch::NETWORK.contains(&call);
            assert_eq!(judge(&program, call, [0; 6]), if is_listed { ALLOW } else { KILL }, "call {call}");
        }
        for call in [libc::SYS_openat, libc::SYS_execve, libc::SYS_clone, libc::SYS_kill, libc::SYS_ioctl, libc::SYS_bind, libc::SYS_listen]
        {
            assert_eq!(judge(&program, call, [0; 6]), KILL);
        }
    }

    #[test]
    fn arguments_decide_for_the_calls_that_have_two_sides() {
        let with = |call, args: [u64; 3]| run(call, [args[0], args[1], args[2], 0, 0, 0]);
        assert_eq!(with(libc::SYS_clone, [libc::CLONE_VM as u64 | libc::SIGCHLD as u64, 0, 0]), ALLOW);
        assert_eq!(with(libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0]), errno(libc::EPERM));
        assert_eq!(with(libc::SYS_clone, [libc::CLONE_NEWNS as u64, 0, 0]), errno(libc::EPERM));
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
            assert_eq!(with(libc::SYS_socket, [family as u64, 1, 0]), ALLOW);
        }
        for family in [libc::AF_PACKET, libc::AF_VSOCK, libc::AF_ALG, libc::AF_KEY] {
            assert_eq!(with(libc::SYS_socket, [family as u64, 1, 0]), errno(libc::EAFNOSUPPORT));
        }
        assert_eq!(with(libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 12]), errno(libc::EAFNOSUPPORT));
        for family in [libc::AF_INET, libc::AF_INET6] {
            assert_eq!(with(libc::SYS_socket, [family as u64, 2, libc::IPPROTO_UDPLITE as u64]), errno(libc::EPROTONOSUPPORT));
            assert_eq!(with(libc::SYS_socket, [family as u64, 2, libc::IPPROTO_UDP as u64]), ALLOW);
        }
        assert_eq!(with(libc::SYS_ioctl, [0, libc::TIOCSTI, 0]), errno(libc::EPERM));
        assert_eq!(with(libc::SYS_ioctl, [0, libc::FIONREAD, 0]), ALLOW);
        assert_eq!(with(libc::SYS_personality, [0x0004_0000, 0, 0]), errno(libc::EPERM));
        assert_eq!(with(libc::SYS_personality, [0xffff_ffff, 0, 0]), ALLOW);
    }
}
