"""Other processes: their memory, descriptors, limits and lives; and the order to die with one's starter."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
import time
from pathlib import Path

from .stage import LIBC, Stage, attempt, holds_token, passes, syscall


@attempt()
def read_own_environment(stage: Stage) -> bool:
    """Find a secret that the starting process had in its environment."""
    return stage.token in os.environ.values()


@attempt()
def read_environment_of_victim(stage: Stage) -> bool:
    """Read another process's environment."""
    return holds_token(f"/proc/{stage.victim}/environ", stage)


@attempt()
def read_environment_of_parent(stage: Stage) -> bool:
    """Read the environment of the process that started us."""
    return holds_token(f"/proc/{os.getppid()}/environ", stage)


@attempt()
def see_processes(stage: Stage) -> bool:
    """See who else is running, and with which arguments."""
    return b"victim" in Path(f"/proc/{stage.victim}/cmdline").read_bytes()


@attempt()
def signal_victim(stage: Stage) -> bool:
    """Send a signal to another process."""
    os.kill(stage.victim, signal.SIGCONT)
    return True


@attempt()
def signal_victim_by_pidfd(stage: Stage) -> bool:
    """Send a signal to another process through a descriptor for it."""
    signal.pidfd_send_signal(os.pidfd_open(stage.victim), signal.SIGCONT)
    return True


@attempt(depends=True)
def trace_victim(stage: Stage) -> bool:
    """Attach a debugger to another process."""
    attach, detach = 16, 17
    syscall("ptrace", attach, stage.victim, 0, 0)
    time.sleep(0.02)  # it has to stop first
    syscall("ptrace", detach, stage.victim, 0, 0)
    return True


@attempt(depends=True)
def read_memory_of_victim(stage: Stage) -> bool:
    """Read another process's memory; EFAULT means that only the address was wrong."""
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("@PN", ctypes.addressof(buffer), 8)
    remote = struct.pack("@PN", 4096, 8)
    try:
        syscall("process_vm_readv", stage.victim, local, 1, remote, 1, 0)
    except OSError as error:
        return error.errno == errno.EFAULT
    return True


@attempt(depends=True)
def steal_descriptor(stage: Stage) -> bool:
    """Take a descriptor out of another process."""
    return syscall("pidfd_getfd", os.pidfd_open(stage.victim), 0, 0) >= 0


@attempt()
def limit_victim(stage: Stage) -> bool:
    """Change another process's limits."""
    present = resource.prlimit(stage.victim, resource.RLIMIT_NOFILE)
    resource.prlimit(stage.victim, resource.RLIMIT_NOFILE, present)
    return True


@attempt()
def outlive_the_kernel(stage: Stage) -> bool:
    """Undo the order to die with the process that started us."""
    return int(LIBC.prctl(1, 0, 0, 0, 0)) == 0


@attempt()
def allow_core_dumps(stage: Stage) -> bool:
    """Have our memory handed to the machine's crash handler."""
    return int(LIBC.prctl(4, 1, 0, 0, 0)) == 0


@attempt()
def queue_signal_to_victim(stage: Stage) -> bool:
    """Send a signal with a value, as if it came from a timer or a message queue."""
    info = struct.pack("@iiii", signal.SIGCONT, 0, -1, 0) + bytes(112)
    return syscall("rt_sigqueueinfo", stage.victim, signal.SIGCONT, info) == 0


@attempt()
def signal_thread_of_victim(stage: Stage) -> bool:
    """Send a signal to one thread of another process."""
    return syscall("tgkill", stage.victim, stage.victim, signal.SIGCONT) == 0


@attempt()
def hold_victim(stage: Stage) -> bool:
    """Open a descriptor for another process, which then cannot be taken for a later one with its number."""
    os.close(os.pidfd_open(stage.victim))
    return True


@attempt(depends=True)
def write_memory_of_victim(stage: Stage) -> bool:
    """Write to another process's memory; EFAULT means that only the address was wrong."""
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("@PN", ctypes.addressof(buffer), 8)
    remote = struct.pack("@PN", 4096, 8)
    return passes("process_vm_writev", stage.victim, local, 1, remote, 1, 0, but_for=errno.EFAULT)


@attempt(depends=True)
def read_memory_by_proc(stage: Stage) -> bool:
    """Open another process's memory as a file."""
    os.close(os.open(f"/proc/{stage.victim}/mem", os.O_RDWR))
    return True


@attempt(depends=True)
def move_victim_to_a_processor(stage: Stage) -> bool:
    """Choose the processor that another process runs on, where there are two."""
    before = os.sched_getaffinity(stage.victim)
    os.sched_setaffinity(stage.victim, {min(before)})
    moved = os.sched_getaffinity(stage.victim) != before
    os.sched_setaffinity(stage.victim, before)
    return moved


@attempt()
def schedule_victim(stage: Stage) -> bool:
    """Change how another process is scheduled."""
    os.sched_setscheduler(stage.victim, os.SCHED_BATCH, os.sched_param(0))
    changed = os.sched_getscheduler(stage.victim) == os.SCHED_BATCH
    os.sched_setscheduler(stage.victim, os.SCHED_OTHER, os.sched_param(0))
    return changed


@attempt()
def hold_victim_back(stage: Stage) -> bool:
    """Change another process's priority."""
    os.setpriority(os.PRIO_PROCESS, stage.victim, os.getpriority(os.PRIO_PROCESS, stage.victim))
    return True


@attempt(depends=True)
def starve_victim_of_the_disk(stage: Stage) -> bool:
    """Change another process's priority at the disk."""
    best_effort = 2 << 13
    return syscall("ioprio_set", 1, stage.victim, best_effort | 4) == 0


@attempt(root=True)
def come_forward(stage: Stage) -> bool:
    """Get more of the processor than others."""
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    return True


@attempt(root=True, depends=True)
def be_real_time(stage: Stage) -> bool:
    """Run before everybody else, always."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return True


@attempt(root=True, depends=True)
def raise_own_limits(stage: Stage) -> bool:
    """Undo a limit."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_NOFILE, (65, 65))
    return True


@attempt(programs=True, depends=True)
def dump_core(stage: Stage) -> bool:
    """Have a dying process written to the disk, secrets and all."""
    pid = os.fork()
    if pid == 0:
        os.chdir(stage.state)
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        os.abort()
    return os.WCOREDUMP(os.waitpid(pid, 0)[1])


@attempt()
def read_shared_memory(stage: Stage) -> bool:
    """Read memory that another process shares by a number."""
    LIBC.shmat.restype = ctypes.c_void_p
    read_only = 0o10000
    segment = LIBC.shmget(stage.memory, 0, 0) if stage.memory else -1
    address = LIBC.shmat(segment, None, read_only) if segment >= 0 else None
    if address is None or address == ctypes.c_void_p(-1).value:
        return False
    return ctypes.string_at(address, len(stage.token)) == stage.token.encode()
