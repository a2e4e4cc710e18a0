//! The tables of system calls: what each kind of program may call.
//!
//! Three lists per profile: allowed; refused with an errno, for what programs and the interpreter try in passing; and
//! asked, where the supervisor looks at the arguments (`decide` there). Whatever is on no list is asked too, and ends
//! the program with POLICY_VIOLATION that names the call.

use std::collections::BTreeMap;

use libc::*;

use super::seccomp::{Action, Comparison, Policy};
use super::weakened;

/// Enough for an interpreter that computes, reads its own library and writes to its pipes and its work directory.
const ALLOWED: &[c_long] = &[
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_lseek, SYS_close, SYS_close_range,
    SYS_fstat, SYS_stat, SYS_lstat, SYS_newfstatat, SYS_statx, SYS_statfs, SYS_fstatfs, SYS_open, SYS_openat,
    SYS_access, SYS_faccessat, SYS_faccessat2, SYS_readlink, SYS_readlinkat, SYS_getdents64, SYS_getcwd, SYS_chdir,
    SYS_fchdir, SYS_dup, SYS_dup2, SYS_dup3, SYS_pipe, SYS_pipe2, SYS_poll, SYS_ppoll, SYS_select, SYS_pselect6,
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_wait, SYS_epoll_pwait, SYS_eventfd2, SYS_unlink, SYS_unlinkat,
    SYS_mkdir, SYS_mkdirat, SYS_rmdir, SYS_rename, SYS_renameat, SYS_renameat2, SYS_symlink, SYS_symlinkat, SYS_link,
    SYS_linkat, SYS_ftruncate, SYS_truncate, SYS_fallocate, SYS_fsync, SYS_fdatasync, SYS_flock, SYS_umask,
    SYS_copy_file_range, SYS_sendfile, SYS_fadvise64, SYS_brk, SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap,
    SYS_madvise, SYS_msync, SYS_futex, SYS_set_robust_list, SYS_get_robust_list, SYS_rseq, SYS_set_tid_address,
    SYS_membarrier, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigpending, SYS_rt_sigtimedwait,
    SYS_rt_sigsuspend, SYS_sigaltstack, SYS_pause, SYS_alarm, SYS_setitimer, SYS_getitimer, SYS_nanosleep,
    SYS_clock_nanosleep, SYS_clock_gettime, SYS_clock_getres, SYS_gettimeofday, SYS_time, SYS_times, SYS_getrusage,
    SYS_getrlimit, SYS_setrlimit, SYS_getpid, SYS_getppid, SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid,
    SYS_getegid, SYS_getresuid, SYS_getresgid, SYS_getgroups, SYS_getpgrp, SYS_getpgid, SYS_getsid, SYS_uname,
    SYS_sysinfo, SYS_getrandom, SYS_sched_yield, SYS_sched_getaffinity, SYS_sched_getparam, SYS_sched_getscheduler,
    SYS_getcpu, SYS_getpriority, SYS_restart_syscall, SYS_arch_prctl, SYS_exit, SYS_exit_group,
    // Until the jail is sealed: see `sealing`.
    SYS_sendmsg, SYS_seccomp,
];

/// Besides, for programs that may have children and a connection to the supervisor.
const ALLOWED_WITH_CHILDREN: &[c_long] = &[
    SYS_wait4, SYS_waitid, SYS_pidfd_open, SYS_execve, SYS_recvmsg, SYS_recvfrom, SYS_shutdown, SYS_getsockopt,
    SYS_setsockopt, SYS_getsockname, SYS_getpeername,
];

/// Signals; asked where they cannot leave the sandbox (a process namespace or Landlock's scope), because a program that
/// ends itself by SIGKILL must be told from one that somebody outside has ended. Refused elsewhere.
const SIGNALS: &[c_long] = &[SYS_kill, SYS_tgkill, SYS_tkill, SYS_rt_sigqueueinfo, SYS_pidfd_send_signal];

/// Tried in passing, refused without a word.
const REFUSED: &[(c_long, i32)] = &[
    // The C library falls back to clone, whose flags stand in a register where they can be checked.
    (SYS_clone3, ENOSYS),
    (SYS_io_uring_setup, ENOSYS),
    (SYS_openat2, ENOSYS),
    (SYS_ioctl, ENOTTY),
    (SYS_prctl, EPERM),
    (SYS_setsid, EPERM),
    (SYS_setpgid, EPERM),
    (SYS_chmod, EPERM),
    (SYS_fchmod, EPERM),
    (SYS_fchmodat, EPERM),
    (SYS_chown, EPERM),
    (SYS_fchown, EPERM),
    (SYS_lchown, EPERM),
    (SYS_fchownat, EPERM),
    (SYS_utime, EPERM),
    (SYS_utimes, EPERM),
    (SYS_utimensat, EPERM),
    (SYS_futimesat, EPERM),
    (SYS_setpriority, EPERM),
    (SYS_ioprio_set, EPERM),
    (SYS_sched_setaffinity, EPERM),
    (SYS_sched_setparam, EPERM),
    (SYS_sched_setscheduler, EPERM),
    (SYS_sched_setattr, EPERM),
    (SYS_mlock, EPERM),
    (SYS_mlock2, EPERM),
    (SYS_mlockall, EPERM),
    (SYS_mbind, EPERM),
    (SYS_set_mempolicy, EPERM),
    (SYS_getxattr, ENOTSUP),
    (SYS_lgetxattr, ENOTSUP),
    (SYS_fgetxattr, ENOTSUP),
    (SYS_listxattr, ENOTSUP),
    (SYS_llistxattr, ENOTSUP),
    (SYS_flistxattr, ENOTSUP),
    (SYS_setxattr, ENOTSUP),
    (SYS_lsetxattr, ENOTSUP),
    (SYS_fsetxattr, ENOTSUP),
];

/// Besides, for the process of a solution: it takes requests, and each case binds its life to the supervisor's. Cases are
/// under the same table; with no socket, `recvmsg` gives them nothing.
const ALLOWED_WITH_CASES: &[c_long] = &[SYS_recvmsg];

/// Only: be killed when the parent dies.
const DIE_WITH_PARENT: Comparison = Comparison {
    ranges: &[(0, PR_SET_PDEATHSIG as u32, PR_SET_PDEATHSIG as u32), (1, SIGKILL as u32, SIGKILL as u32)],
    inside: &Action::Allow,
    outside: &Action::Refuse(EPERM),
};

/// Whoever ignores SIGCHLD has its children reaped by the kernel, and nobody is charged with the CPU time that they took.
const CHILDREN_ARE_WAITED_FOR: Comparison = Comparison {
    ranges: &[(0, SIGCHLD as u32, SIGCHLD as u32)],
    inside: &Action::Refuse(EPERM),
    outside: &Action::Allow,
};

/// F_SETOWN, F_SETSIG, F_SETOWN_EX: a signal to whom one likes, sent by the kernel when a file has something to read.
const NO_FILE_SIGNALS: Comparison = Comparison {
    ranges: &[(1, F_SETOWN as u32, 15)],
    inside: &Action::Refuse(EPERM),
    outside: &Action::Compare(&NO_LARGE_PIPES),
};

/// F_SETPIPE_SZ: what is in pipes is memory that no limit counts, up to 1 MiB in each instead of 64 KiB.
const NO_LARGE_PIPES: Comparison = Comparison {
    ranges: &[(1, F_SETPIPE_SZ as u32, F_SETPIPE_SZ as u32)],
    inside: &Action::Refuse(EPERM),
    outside: &Action::Allow,
};

/// Calls that container runtimes refuse with an errno (containerd's and Docker's default profiles, without capabilities).
/// Under such a filter they would never be asked: the kernel takes an errno before a question. It takes a kill before an
/// errno, so there they kill, and a program's verdict is what it is without the outer filter, but for the call's name.
const REFUSED_BY_RUNTIMES: &[c_long] = &[
    SYS_acct, SYS_add_key, SYS_bpf, SYS_chroot, SYS_clock_adjtime, SYS_clock_settime, SYS_delete_module,
    SYS_fanotify_init, SYS_finit_module, SYS_fsconfig, SYS_fsmount, SYS_fsopen, SYS_fspick, SYS_get_mempolicy,
    SYS_init_module, SYS_ioperm, SYS_iopl, SYS_kcmp, SYS_kexec_file_load, SYS_kexec_load, SYS_keyctl,
    SYS_lookup_dcookie, SYS_mbind, SYS_migrate_pages, SYS_mount, SYS_mount_setattr, SYS_move_mount, SYS_move_pages,
    SYS_open_by_handle_at, SYS_open_tree, SYS_perf_event_open, SYS_personality, SYS_pivot_root, SYS_process_madvise,
    SYS_process_vm_readv, SYS_process_vm_writev, SYS_quotactl, SYS_reboot, SYS_request_key, SYS_set_mempolicy,
    SYS_setdomainname, SYS_sethostname, SYS_setns, SYS_settimeofday, SYS_swapoff, SYS_swapon, SYS_sysfs, SYS_syslog,
    SYS_umount2, SYS_unshare, SYS_uselib, SYS_userfaultfd, SYS_ustat, SYS_vhangup,
];

/// Who is under the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// One process.
    Alone,
    /// It may start children and talk over a socket.
    WithChildren,
    /// The process of a solution, and the processes of its cases, which must not signal one another.
    Cases,
}

/// What the table depends on.
#[derive(Clone, Copy, Debug)]
pub struct Grants {
    pub program: Program,
    /// Signals cannot leave the sandbox.
    pub signals: bool,
    /// Another filter is in force already: that of a container runtime.
    pub filtered: bool,
}

pub fn policy(grants: Grants) -> Policy {
    let mut actions = BTreeMap::new();
    let mut allow = |calls: &[c_long]| actions.extend(calls.iter().map(|&call| (call as u32, Action::Allow)));
    allow(ALLOWED);
    match grants.program {
        Program::Alone => {}
        Program::WithChildren => allow(ALLOWED_WITH_CHILDREN),
        Program::Cases => allow(ALLOWED_WITH_CASES),
    }
    actions.extend(REFUSED.iter().map(|&(call, errno)| (call as u32, Action::Refuse(errno))));
    if grants.program == Program::WithChildren {
        // Its sockets may be made non-blocking, as asyncio does: the request is looked at.
        actions.remove(&(SYS_ioctl as u32));
        actions.insert(SYS_rt_sigaction as u32, Action::Compare(&CHILDREN_ARE_WAITED_FOR));
    }
    if grants.program == Program::Cases {
        // The supervisor sees whether a signal is for the caller itself.
        actions.extend(SIGNALS.iter().map(|&call| (call as u32, Action::Ask)));
        actions.insert(SYS_pidfd_send_signal as u32, Action::Refuse(EPERM));
        actions.insert(SYS_prctl as u32, Action::Compare(&DIE_WITH_PARENT));
    } else {
        let action = if grants.signals { Action::Ask } else { Action::Refuse(EPERM) };
        actions.extend(SIGNALS.iter().map(|&call| (call as u32, action)));
    }
    actions.insert(SYS_fcntl as u32, Action::Compare(&NO_FILE_SIGNALS));
    if grants.filtered {
        for &call in REFUSED_BY_RUNTIMES {
            actions.entry(call as u32).or_insert(Action::Kill);
        }
    }
    for call in weakened::allowed_calls().iter().filter_map(|name| number(name)) {
        actions.insert(call, Action::Allow);
    }
    Policy { actions, otherwise: Action::Ask }
}

/// Calls that programs are ended for most often, and those of the tables that tests switch off, by name; the others are
/// named by number.
const NAMES: &[(c_long, &str)] = &[
    (SYS_socket, "socket"),
    (SYS_connect, "connect"),
    (SYS_bind, "bind"),
    (SYS_listen, "listen"),
    (SYS_socketpair, "socketpair"),
    (SYS_sendto, "sendto"),
    (SYS_clone, "clone"),
    (SYS_fork, "fork"),
    (SYS_vfork, "vfork"),
    (SYS_execve, "execve"),
    (SYS_execveat, "execveat"),
    (SYS_wait4, "wait4"),
    (SYS_rt_sigaction, "rt_sigaction"),
    (SYS_kill, "kill"),
    (SYS_tkill, "tkill"),
    (SYS_tgkill, "tgkill"),
    (SYS_rt_sigqueueinfo, "rt_sigqueueinfo"),
    (SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo"),
    (SYS_ptrace, "ptrace"),
    (SYS_mount, "mount"),
    (SYS_umount2, "umount2"),
    (SYS_pivot_root, "pivot_root"),
    (SYS_chroot, "chroot"),
    (SYS_unshare, "unshare"),
    (SYS_setns, "setns"),
    (SYS_bpf, "bpf"),
    (SYS_perf_event_open, "perf_event_open"),
    (SYS_userfaultfd, "userfaultfd"),
    (SYS_keyctl, "keyctl"),
    (SYS_add_key, "add_key"),
    (SYS_request_key, "request_key"),
    (SYS_process_vm_readv, "process_vm_readv"),
    (SYS_process_vm_writev, "process_vm_writev"),
    (SYS_pidfd_getfd, "pidfd_getfd"),
    (SYS_pidfd_open, "pidfd_open"),
    (SYS_fcntl, "fcntl"),
    (SYS_memfd_create, "memfd_create"),
    (SYS_memfd_secret, "memfd_secret"),
    (SYS_shmget, "shmget"),
    (SYS_shmat, "shmat"),
    (SYS_semget, "semget"),
    (SYS_msgget, "msgget"),
    (SYS_mq_open, "mq_open"),
    (SYS_personality, "personality"),
    (SYS_modify_ldt, "modify_ldt"),
    (SYS_seccomp, "seccomp"),
    (SYS_prlimit64, "prlimit64"),
    (SYS_setuid, "setuid"),
    (SYS_setresuid, "setresuid"),
    (SYS_mknod, "mknod"),
    (SYS_mknodat, "mknodat"),
    (SYS_io_uring_enter, "io_uring_enter"),
    (SYS_inotify_init1, "inotify_init1"),
    (SYS_fanotify_init, "fanotify_init"),
    (SYS_reboot, "reboot"),
    (SYS_init_module, "init_module"),
    (SYS_open_by_handle_at, "open_by_handle_at"),
    (SYS_syslog, "syslog"),
    (SYS_acct, "acct"),
    (SYS_swapon, "swapon"),
    (SYS_accept, "accept"),
    (SYS_accept4, "accept4"),
    (SYS_recvfrom, "recvfrom"),
    (SYS_timer_create, "timer_create"),
    (SYS_landlock_create_ruleset, "landlock_create_ruleset"),
    (SYS_kill, "kill"),
    (SYS_ioctl, "ioctl"),
    (SYS_setsid, "setsid"),
    (SYS_prctl, "prctl"),
    (SYS_chmod, "chmod"),
    (SYS_utimensat, "utimensat"),
    (SYS_setxattr, "setxattr"),
    (SYS_mlock, "mlock"),
    (SYS_setpriority, "setpriority"),
    (SYS_sched_setaffinity, "sched_setaffinity"),
    (SYS_sched_setscheduler, "sched_setscheduler"),
    (SYS_io_uring_setup, "io_uring_setup"),
    (SYS_shmctl, "shmctl"),
    (SYS_mq_unlink, "mq_unlink"),
    (SYS_mq_timedsend, "mq_timedsend"),
];

/// The number of a call that `NAMES` holds.
fn number(name: &str) -> Option<u32> {
    NAMES.iter().find(|(_, known)| *known == name).map(|(call, _)| *call as u32)
}

/// The call's name for people.
pub fn name(number: i32) -> String {
    NAMES
        .iter()
        .find(|(call, _)| *call == c_long::from(number))
        .map_or_else(|| format!("system call {number}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_that_reaches_outside_is_allowed() {
        let policy = policy(Grants { program: Program::WithChildren, signals: false, filtered: false });
        let dangerous = [
            SYS_socket, SYS_connect, SYS_ptrace, SYS_mount, SYS_unshare, SYS_setns, SYS_bpf, SYS_keyctl,
            SYS_process_vm_readv, SYS_pidfd_getfd, SYS_memfd_create, SYS_io_uring_setup, SYS_clone3, SYS_kill,
            SYS_fork, SYS_vfork, SYS_clone, SYS_prlimit64, SYS_socketpair, SYS_sendto, SYS_execveat, SYS_setsid,
        ];
        for call in dangerous {
            assert_ne!(policy.actions.get(&(call as u32)), Some(&Action::Allow), "{}", name(call as i32));
        }
        assert_eq!(policy.otherwise, Action::Ask);
    }

    #[test]
    fn a_program_without_children_cannot_execute() {
        let policy = policy(Grants { program: Program::Alone, signals: true, filtered: false });
        assert!(!policy.actions.contains_key(&(SYS_execve as u32)));
        assert_eq!(policy.actions.get(&(SYS_kill as u32)), Some(&Action::Ask));
    }

    #[test]
    fn cases_ask_before_they_signal_and_fork() {
        let policy = policy(Grants { program: Program::Cases, signals: true, filtered: false });
        for call in [SYS_kill, SYS_tgkill, SYS_tkill, SYS_rt_sigqueueinfo] {
            assert_eq!(policy.actions.get(&(call as u32)), Some(&Action::Ask), "{}", name(call as i32));
        }
        for call in [SYS_clone, SYS_fork, SYS_socketpair, SYS_setsid] {
            assert_ne!(policy.actions.get(&(call as u32)), Some(&Action::Allow), "{}", name(call as i32));
        }
    }

    #[test]
    fn under_another_filter_what_it_answers_first_kills_and_the_rest_is_as_before() {
        for program in [Program::Alone, Program::WithChildren, Program::Cases] {
            let alone = policy(Grants { program, signals: true, filtered: false });
            let under = policy(Grants { program, signals: true, filtered: true });
            assert_eq!(under.actions.get(&(SYS_unshare as u32)), Some(&Action::Kill));
            for (call, action) in &under.actions {
                match alone.actions.get(call) {
                    Some(before) => assert_eq!(action, before, "{}", name(*call as i32)),
                    None => assert_eq!(*action, Action::Kill, "{}", name(*call as i32)),
                }
            }
        }
    }
}
