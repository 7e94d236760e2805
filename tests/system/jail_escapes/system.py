"""Linux itself: namespaces, mounts, loaders, tracers, other numberings of system calls, and rights one had."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

from .stage import AT_FDCWD, ESCAPED, LIBC, NEWNS, NEWUSER, X86, Stage, attempt, fresh, number, passes, syscall


@attempt(depends=True)
def make_user_namespace(stage: Stage) -> bool:
    """Become root of a user namespace."""
    return syscall("unshare", NEWUSER) == 0


@attempt(depends=True)
def make_user_namespace_by_clone(stage: Stage) -> bool:
    """Start a process as root of a user namespace."""
    pid = syscall("clone", NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        syscall("exit", 0)
    return pid > 0


@attempt(depends=True)
def make_user_namespace_by_clone3(stage: Stage) -> bool:
    """The same, with the flags where no filter can see them."""
    arguments = struct.pack("@11Q", NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    pid = syscall("clone3", arguments, len(arguments))
    if pid == 0:
        syscall("exit", 0)
    return pid > 0


@attempt(root=True, depends=True)
def enter_namespace_of_victim(stage: Stage) -> bool:
    """Join another process's namespace."""
    fd = os.open(f"/proc/{stage.victim}/ns/uts", os.O_RDONLY)
    return syscall("setns", fd, 0) == 0


@attempt(depends=True)
def mount_something(stage: Stage) -> bool:
    """Change the file system that we see."""
    syscall("unshare", NEWUSER | NEWNS)
    return syscall("mount", b"none", stage.state.encode(), b"tmpfs", 0, None) == 0


@attempt(root=True, depends=True)
def load_bpf(stage: Stage) -> bool:
    """Create a BPF map: one array of one integer."""
    attributes = struct.pack("@IIII", 2, 4, 4, 1) + bytes(112)
    return syscall("bpf", 0, attributes, len(attributes)) >= 0


@attempt(depends=True)
def open_perf_event(stage: Stage) -> bool:
    """Observe the machine through its performance counters."""
    attributes = struct.pack("@IIQ", 1, 112, 0) + bytes(24) + struct.pack("@Q", 1 << 5 | 1 << 6) + bytes(64)
    return syscall("perf_event_open", attributes, 0, -1, -1, 0) >= 0


@attempt(depends=True)
def open_userfaultfd(stage: Stage) -> bool:
    """Stop Linux in the middle of a copy, as exploits like to."""
    return syscall("userfaultfd", 1) >= 0


@attempt(depends=True)
def use_keyring(stage: Stage) -> bool:
    """Leave something in a kernel keyring."""
    return syscall("add_key", b"user", b"llmos-test", b"x", 1, -2) >= 0


@attempt(depends=True)
def use_io_uring(stage: Stage) -> bool:
    """Get system calls done by Linux itself, past any filter."""
    return syscall("io_uring_setup", 4, bytes(120)) >= 0


@attempt(depends=True)
def call_as_i386(stage: Stage) -> bool:
    """Make a system call by the 32-bit numbering (getpid is 20)."""
    if not X86:
        return False
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)()) > 0


@attempt(depends=True)
def call_as_x32(stage: Stage) -> bool:
    """Make a system call by the x32 numbering."""
    return int(LIBC.syscall(ctypes.c_long(0x40000000 | number("getpid")))) > 0


@attempt(depends=True)
def type_into_terminal(stage: Stage) -> bool:
    """Type into a terminal on behalf of its user."""
    import fcntl
    import pty
    import termios

    _, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSTI, b"x")
    return True


@attempt()
def run_a_program(stage: Stage) -> bool:
    """Become another program."""
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", f"import os; os._exit({ESCAPED})"])


@attempt()
def start_a_process(stage: Stage) -> bool:
    """Start another process."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[0] == pid


@attempt(root=True)
def become_root(stage: Stage) -> bool:
    """Be root again."""
    os.setresuid(0, 0, 0)
    return os.getresuid() == (0, 0, 0)


@attempt()
def learn_the_host_name(stage: Stage) -> bool:
    """Learn which machine this is."""
    return os.uname().nodename == stage.hostname


@attempt(root=True, depends=True)
def enter_namespace_by_pidfd(stage: Stage) -> bool:
    """Join another process's namespaces by a descriptor for it."""
    return syscall("setns", os.pidfd_open(stage.victim), 0x04000000) == 0


@attempt(depends=True)
def mount_by_the_new_calls(stage: Stage) -> bool:
    """Change the file system that we see, by the calls that Linux 5.2 added."""
    syscall("unshare", NEWUSER | NEWNS)
    return syscall("fsopen", b"tmpfs", 0) >= 0


@attempt(root=True, depends=True)
def copy_the_mounts(stage: Stage) -> bool:
    """Take a copy of a directory's mount, to put it elsewhere."""
    return syscall("open_tree", AT_FDCWD, stage.state.encode(), 1) >= 0


@attempt(depends=True)
def read_keyring(stage: Stage) -> bool:
    """Find the user's keyring."""
    return syscall("keyctl", 0, -4, 1) > 0


@attempt(root=True, depends=True)
def load_a_module(stage: Stage) -> bool:
    """Load code into Linux; EBADF means that only the file was wrong."""
    return passes("finit_module", -1, b"", 0, but_for=errno.EBADF)


@attempt(root=True, depends=True)
def load_another_linux(stage: Stage) -> bool:
    """Put another Linux in this one's place; EBADF means that only the file was wrong."""
    return passes("kexec_file_load", -1, -1, 0, b"", 0, but_for=errno.EBADF)


@attempt(root=True)
def restart_the_machine(stage: Stage) -> bool:
    """Switch it off; EINVAL means that only the magic number was wrong."""
    return passes("reboot", 0, 0, 0, None, but_for=errno.EINVAL)


@attempt(root=True, depends=True)
def swap_to_a_file(stage: Stage) -> bool:
    """Have memory written to a file of ours; ENOENT means that only the name was wrong."""
    return passes("swapon", b"/nowhere", 0, but_for=errno.ENOENT)


@attempt(root=True, depends=True)
def account_to_a_file(stage: Stage) -> bool:
    """Have every process that ends written to a file of ours; ENOENT means that only the name was wrong."""
    return passes("acct", b"/nowhere", but_for=errno.ENOENT)


@attempt(root=True)
def set_the_clock(stage: Stage) -> bool:
    """Set the rate of the machine's clock, to what it is."""
    clock = ctypes.create_string_buffer(208)
    LIBC.adjtimex(clock)
    struct.pack_into("@I", clock, 0, 2)  # ADJ_FREQUENCY
    return syscall("adjtimex", clock) >= 0


@attempt(root=True)
def rename_the_machine(stage: Stage) -> bool:
    """Set the machine's name, to what it is for us."""
    socket.sethostname(os.uname().nodename)
    return os.uname().nodename == stage.hostname


@attempt(depends=True)
def ask_for_quotas(stage: Stage) -> bool:
    """Reach the quotas of the disks."""
    sync = 0x80000100 - (1 << 32)
    return syscall("quotactl", sync, None, 0, None) == 0


@attempt(depends=True)
def read_the_log_of_linux(stage: Stage) -> bool:
    """Learn from Linux's log."""
    return syscall("syslog", 10, None, 0) > 0


@attempt()
def undo_randomised_addresses(stage: Stage) -> bool:
    """Have programs loaded where an exploit expects them."""
    return syscall("personality", 0x0040000) >= 0


@attempt(root=True, depends=True)
def use_io_ports(stage: Stage) -> bool:
    """Speak to the hardware."""
    return X86 and int(LIBC.ioperm(0x80, 1, 1)) == 0


@attempt(depends=True)
def load_a_line_discipline(stage: Stage) -> bool:
    """Put a driver of Linux between a terminal and its user."""
    import fcntl
    import pty

    _, terminal = pty.openpty()
    fcntl.ioctl(terminal, 0x5423, struct.pack("@i", 0))  # TIOCSETD, the discipline it has
    return True


@attempt(root=True, depends=True)
def type_into_the_console(stage: Stage) -> bool:
    """Reach the console's own ioctl, which pastes what is selected into it."""
    import fcntl

    console = os.open("/dev/tty0", os.O_RDONLY | os.O_NOCTTY)
    fcntl.ioctl(console, 0x541C, bytearray(b"\x06" + bytes(7)))  # TIOCLINUX: which shift keys are down
    return True


@attempt(programs=True, depends=True)
def run_a_setuid_program(stage: Stage) -> bool:
    """Run a program that becomes root."""
    if not stage.setuid:
        return False
    shown = subprocess.run([stage.setuid, "/proc/self/status"], capture_output=True, text=True)
    return int(shown.stdout.partition("CapEff:")[2].split()[0] or "0", 16) != 0


@attempt(programs=True)
def run_an_own_program(stage: Stage) -> bool:
    """Write a program and run it."""
    program = fresh(stage, "program")
    shutil.copyfile("/bin/true", program)
    program.chmod(0o700)
    return subprocess.run([program]).returncode == 0


@attempt(programs=True)
def run_a_program_from_memory(stage: Stage) -> bool:
    """Run a program that no directory has."""
    memory = syscall("memfd_create", b"program", 0)
    os.write(memory, Path("/bin/true").read_bytes())
    return subprocess.run([f"/proc/self/fd/{memory}"], pass_fds=(memory,)).returncode == 0
