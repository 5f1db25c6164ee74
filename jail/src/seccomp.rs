//! Seccomp: refuses system calls that neither QEMU nor this program needs, on top of QEMU's own `-sandbox`.
//! QEMU's list leaves out sockets, io_uring, userfaultfd, BPF, keys, `ptrace` and the newer mount calls.
use crate::layer::{Failure, InLayer, Layer};
use crate::sys;
use libc::{c_long, sock_filter};

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// x86-64 calls by the x32 numbering carry this bit.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

// Offsets in `struct seccomp_data`; arguments are 64 bits, little endian, of which the low half is looked at.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_0: u32 = 16;
const ARGUMENT_1: u32 = 24;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
#[cfg(target_arch = "x86_64")]
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Answered with "operation not permitted".
const DENIED: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_migrate_pages,
    libc::SYS_mknodat,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

/// From now on the calls above fail, and calls of another architecture end the process.
pub fn restrict() -> Result<(), Failure> {
    sys::install_filter(&program()).in_layer(Layer::Seccomp, "install the filter")
}

fn statement(code: u16, value: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k: value }
}

fn jump(code: u16, value: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter { code, jt: if_true, jf: if_false, k: value }
}

fn refuse(errno: i32) -> sock_filter {
    statement(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32)
}

fn program() -> Vec<sock_filter> {
    let allow = statement(RETURN, libc::SECCOMP_RET_ALLOW);
    let kill = statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS);
    let mut program = vec![statement(LOAD, ARCHITECTURE), jump(JUMP_EQUAL, ARCH, 1, 0), kill, statement(LOAD, NUMBER)];
    #[cfg(target_arch = "x86_64")]
    program.extend([jump(JUMP_AT_LEAST, X32_BIT, 0, 1), kill]);
    for &number in DENIED {
        program.extend([jump(JUMP_EQUAL, number as u32, 0, 1), refuse(libc::EPERM)]);
    }
    // clone3 hides its flags in memory, where a filter cannot look; told that it does not exist, C libraries use clone.
    program.extend([jump(JUMP_EQUAL, libc::SYS_clone3 as u32, 0, 1), refuse(libc::ENOSYS)]);
    program.extend([
        jump(JUMP_EQUAL, libc::SYS_clone as u32, 0, 4),
        statement(LOAD, ARGUMENT_0),
        jump(JUMP_ANY_BIT, NEW_NAMESPACES, 0, 1),
        refuse(libc::EPERM),
        allow,
    ]);
    // Inherited socketpairs are all the sockets there are.
    program.extend([jump(JUMP_EQUAL, libc::SYS_socket as u32, 0, 1), refuse(libc::EPERM)]);
    // Typing into the terminal that sbx was started from.
    program.extend([
        jump(JUMP_EQUAL, libc::SYS_ioctl as u32, 0, 4),
        statement(LOAD, ARGUMENT_1),
        jump(JUMP_EQUAL, libc::TIOCSTI as u32, 1, 0),
        jump(JUMP_EQUAL, libc::TIOCLINUX as u32, 0, 1),
        refuse(libc::EPERM),
    ]);
    program.push(allow);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: u32 = 0x7fff_0000;

    /// A small interpreter of the instructions used, so that jumps are tested without a kernel.
    fn judge(architecture: u32, number: u32, arguments: [u64; 2]) -> u32 {
        let program = program();
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let step = program[at];
            at += 1;
            let skip = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
            match step.code {
                LOAD => {
                    accumulator = match step.k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        ARGUMENT_0 => arguments[0] as u32,
                        ARGUMENT_1 => arguments[1] as u32,
                        other => panic!("no such field: {other}"),
                    }
                }
                JUMP_EQUAL => at += skip(accumulator == step.k),
                JUMP_AT_LEAST => at += skip(accumulator >= step.k),
                JUMP_ANY_BIT => at += skip(accumulator & step.k != 0),
                RETURN => return step.k,
                other => panic!("no such instruction: {other}"),
            }
        }
    }

    #[test]
    fn every_denied_call_is_refused() {
        for &number in DENIED {
            assert_eq!(judge(ARCH, number as u32, [0, 0]), libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
        }
    }

    #[test]
    fn what_qemu_needs_is_allowed() {
        for number in [libc::SYS_read, libc::SYS_openat, libc::SYS_execve, libc::SYS_socketpair, libc::SYS_seccomp] {
            assert_eq!(judge(ARCH, number as u32, [0, 0]), libc::SECCOMP_RET_ALLOW);
        }
        assert_eq!(judge(ARCH, libc::SYS_ioctl as u32, [0, 0xae80]), libc::SECCOMP_RET_ALLOW, "KVM_RUN");
    }

    #[test]
    fn threads_are_allowed_and_namespaces_refused() {
        let clone = libc::SYS_clone as u32;
        assert_eq!(judge(ARCH, clone, [0x3d0f00, 0]), libc::SECCOMP_RET_ALLOW, "pthread_create");
        assert_eq!(judge(ARCH, clone, [17, 0]), libc::SECCOMP_RET_ALLOW, "fork");
        for bit in 0..32 {
            let flag = 1u32 << bit;
            let expected = if flag & NEW_NAMESPACES == 0 { libc::SECCOMP_RET_ALLOW } else { libc::SECCOMP_RET_ERRNO };
            assert_eq!(judge(ARCH, clone, [u64::from(flag), 0]) & MASK, expected, "flag {flag:#x}");
        }
        assert_eq!(judge(ARCH, libc::SYS_clone3 as u32, [0, 0]), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    }

    #[test]
    fn sockets_and_terminal_injection_are_refused() {
        assert_eq!(judge(ARCH, libc::SYS_socket as u32, [2, 1]) & MASK, libc::SECCOMP_RET_ERRNO);
        assert_eq!(judge(ARCH, libc::SYS_socket as u32, [1, 1]) & MASK, libc::SECCOMP_RET_ERRNO);
        assert_eq!(judge(ARCH, libc::SYS_ioctl as u32, [0, libc::TIOCSTI]) & MASK, libc::SECCOMP_RET_ERRNO);
        assert_eq!(judge(ARCH, libc::SYS_ioctl as u32, [0, libc::TIOCLINUX]) & MASK, libc::SECCOMP_RET_ERRNO);
    }

    #[test]
    fn another_architecture_is_killed() {
        assert_eq!(judge(0x4000_0003, libc::SYS_read as u32, [0, 0]), libc::SECCOMP_RET_KILL_PROCESS);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(judge(ARCH, X32_BIT, [0, 0]), libc::SECCOMP_RET_KILL_PROCESS);
    }
}
