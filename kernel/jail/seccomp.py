"""The system calls a jailed process may make, and the BPF program that holds it to them.

Everything not named here fails with ENOSYS, as on a kernel too old to have it: C libraries then fall back, and a call
that Linux gains tomorrow is denied today. Three answers are more specific. Calls that harmless programs make and that
are not for a jail fail with EPERM. Calls that only an attack makes kill the process, which leaves a line in the
system log. Calls that are fine with some arguments have a rule that looks at them.

A rule sees the arguments as numbers in registers: nothing a pointer leads to can be checked. That is why `clone3`
(flags in a structure) is refused, so that C libraries use `clone`, and why file access is Landlock's business.
"""

from __future__ import annotations

import errno
import socket
from functools import lru_cache

from llmos.kernel.jail import bpf
from llmos.kernel.jail.syscalls import ARCHITECTURES, Architecture

_FILES = """
    access chdir close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate fchdir
    fchmod fchown fcntl fdatasync fgetxattr flistxattr flock fstat fstatfs fsync ftruncate
    futimesat getcwd getdents getdents64 getxattr lgetxattr link linkat listxattr llistxattr lseek lstat mkdir
    mkdirat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv rename renameat renameat2 rmdir sendfile splice stat statfs statx symlink symlinkat
    sync_file_range tee truncate umask unlink unlinkat utime utimensat utimes write writev
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
"""
_MEMORY = """
    brk get_mempolicy madvise map_shadow_stack mbind membarrier mincore mlock mlock2 mlockall mmap mprotect
    mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
"""
_WAITING = """
    alarm clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
    epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 futex futex_requeue futex_wait futex_waitv futex_wake
    get_robust_list getitimer gettimeofday nanosleep pause pipe pipe2 poll ppoll pselect6 restart_syscall rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setparam sched_setscheduler sched_yield select
    set_robust_list set_tid_address setitimer sigaltstack signalfd signalfd4 time timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
"""
_PROCESS = """
    arch_prctl capget exit exit_group getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid getppid
    getpriority getrandom getresgid getresuid getrlimit getrusage getsid gettid getuid kill pidfd_open
    pidfd_send_signal setpgid setrlimit setsid sysinfo tgkill times tkill uname wait4 waitid
"""
_SOCKETS = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg
    sendto setsockopt shutdown
"""
ALLOWED = frozenset(" ".join((_FILES, _MEMORY, _WAITING, _PROCESS, _SOCKETS)).split())

# Things a harmless program tries and does without. With ENOSYS some would claim that the system is broken. A memfd is
# memory that no limit and no address space counts, and a program that no directory has.
REFUSED = frozenset(
    """
    capset chroot clock_adjtime clock_settime execveat fremovexattr fsetxattr lremovexattr lsetxattr memfd_create mknod mknodat
    mount name_to_handle_at perf_event_open personality process_madvise removexattr setfsgid setfsuid setgid setgroups
    sethostname setns setpriority setregid setresgid setresuid setreuid setuid setxattr sync syncfs syslog umount2
    unshare vhangup
    """.split()
)

# Nothing that belongs in a jail makes these, not even to find out whether it may. (io_uring and the kernel's keyrings
# are probed by harmless libraries; they are simply absent.)
DEADLY = frozenset(
    """
    acct bpf delete_module finit_module fsconfig fsmount fsopen fspick init_module ioperm iopl kexec_file_load
    kexec_load mount_setattr move_mount open_by_handle_at open_tree pidfd_getfd pivot_root process_vm_readv
    process_vm_writev ptrace quotactl quotactl_fd reboot settimeofday swapoff swapon userfaultfd
    """.split()
)

# Landlock does not judge these, and neither does anything else where the whole file system is in sight. The calls that
# take a descriptor stay: to have one, the file must have been granted.
_MODES_BY_PATH = frozenset("chmod chown fchmodat fchmodat2 fchownat lchown".split())

# Landlock does not judge these either, and with the host's process ids there is somebody else to do it to. A filter
# cannot tell another process from a thread of one's own, and libzmq aborts when these fail for its threads: so for
# everybody but the caller they do nothing, and say that it went well.
_SCHEDULING = frozenset("sched_setaffinity sched_setparam sched_setscheduler".split())

# Linux, include/uapi/linux/sched.h. CLONE_NEWTIME shares its bit with the exit signal of clone() and means something
# only to unshare and clone3, both refused.
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

# ioctl requests of ordinary files, pipes, sockets and terminals. What stays out matters: TIOCSTI and TIOCLINUX type
# into the terminal of whoever started us, TIOCSETD loads line disciplines.
_IOCTLS = {
    "TCGETS": 0x5401,
    "TIOCGPGRP": 0x540F,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
}

# prctl operations, include/uapi/linux/prctl.h. PR_SET_PDEATHSIG and PR_SET_DUMPABLE stay out: they would undo what
# the jail has set.
_PRCTLS = {
    "PR_GET_PDEATHSIG": 2,
    "PR_GET_DUMPABLE": 3,
    "PR_SET_NAME": 15,
    "PR_GET_NAME": 16,
    "PR_GET_SECCOMP": 21,
    "PR_CAPBSET_READ": 23,
    "PR_SET_TIMERSLACK": 29,
    "PR_GET_TIMERSLACK": 30,
    "PR_SET_NO_NEW_PRIVS": 38,
    "PR_GET_NO_NEW_PRIVS": 39,
    "PR_SET_THP_DISABLE": 41,
    "PR_GET_THP_DISABLE": 42,
    "PR_SET_VMA": 0x53564D41,
}


def _sockets(*, network: bool) -> bpf.Rule:
    """Unix sockets; with the network those of TCP and UDP, but none that are raw, for packets or for Linux itself."""
    denied = bpf.fail(errno.EACCES)
    if not network:
        return bpf.if_among(0, (socket.AF_UNIX,), bpf.ALLOW, denied)
    flags = (0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    kinds = tuple(int(kind | flag) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM) for flag in flags)
    protocols = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP)
    internet = bpf.if_among(1, kinds, bpf.if_among(2, protocols, bpf.ALLOW, denied), denied)
    families = bpf.if_among(0, (socket.AF_INET, socket.AF_INET6), internet, denied)
    return bpf.if_among(0, (socket.AF_UNIX,), bpf.ALLOW, families)


def rules(
    *,
    allow_fork: bool,
    allow_exec: bool,
    own_mounts: bool,
    own_pids: bool = True,
    network: bool = False,
) -> dict[str, bpf.Rule]:
    """What happens at each system call by name; a call without an entry fails with ENOSYS."""
    refuse = bpf.fail(errno.EPERM)
    table: dict[str, bpf.Rule] = {
        **dict.fromkeys(ALLOWED, bpf.ALLOW),
        **dict.fromkeys(REFUSED, refuse),
        **dict.fromkeys(DEADLY, bpf.KILL),
        **dict.fromkeys(_MODES_BY_PATH, bpf.ALLOW if own_mounts else refuse),
        **({} if own_pids else dict.fromkeys(_SCHEDULING, bpf.if_among(0, (0,), bpf.ALLOW, bpf.fail(0)))),
        **({} if own_pids else {"pidfd_open": refuse}),
        # Its arguments are behind a pointer; on ENOSYS C libraries use clone.
        "clone3": bpf.fail(errno.ENOSYS),
        "clone": bpf.if_any_bit(0, _CLONE_NAMESPACES, refuse, bpf.ALLOW)
        if allow_fork
        else bpf.if_any_bit(0, _CLONE_NAMESPACES, refuse, bpf.if_any_bit(0, _CLONE_THREAD, bpf.ALLOW, refuse)),
        "fork": bpf.ALLOW if allow_fork else refuse,
        "vfork": bpf.ALLOW if allow_fork else refuse,
        "execve": bpf.ALLOW if allow_exec else refuse,
        "socket": _sockets(network=network),
        "socketpair": bpf.if_among(0, (socket.AF_UNIX,), bpf.ALLOW, bpf.fail(errno.EACCES)),
        "ioctl": bpf.if_among(1, tuple(_IOCTLS.values()), bpf.ALLOW, refuse),
        "prctl": bpf.if_among(0, tuple(_PRCTLS.values()), bpf.ALLOW, refuse),
        # With another process's id it would change that process's limits, namespaces or not.
        "prlimit64": bpf.if_among(0, (0,), bpf.ALLOW, refuse),
    }
    return table


@lru_cache(maxsize=32)
def program(
    machine: str,
    *,
    allow_fork: bool,
    allow_exec: bool,
    own_mounts: bool,
    own_pids: bool = True,
    network: bool = False,
) -> bytes:
    """The filter for a machine (`platform.machine()`), as an array of `struct sock_filter` in its byte order.

    `own_mounts`: a mount namespace hides what was not granted. `own_pids`: other processes have no number here.

    Raises KeyError for a machine whose system call numbers are not known here.
    """
    arch: Architecture = ARCHITECTURES[machine]
    table = rules(
        allow_fork=allow_fork,
        allow_exec=allow_exec,
        own_mounts=own_mounts,
        own_pids=own_pids,
        network=network,
    )
    by_number = {arch.numbers[name]: rule for name, rule in table.items() if name in arch.numbers}
    return bpf.assemble(bpf.filter_program(arch.audit, by_number, bpf.fail(errno.ENOSYS), arch.beyond))
