"""Attempts to get out of a jail, each a function that really tries. Run as `jail_escapes.py NAME STAGE`.

STAGE is the JSON of `Stage`. Exit status `ESCAPED` means that the attempt got what it wanted; anything else, also
death by a signal, means that it was held back. Outside of a jail every attempt succeeds, except those marked
`depends`, which some machines hold back from everybody. Nothing here does harm when it succeeds.

Only the standard library is used, so that the file runs wherever a jail lets it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ESCAPED = 42


@dataclass(frozen=True)
class Stage:
    """What lies outside of the jail and waits to be reached. `token` is the content of every secret."""

    token: str
    secret: str
    """A file in no grant."""
    granted: str
    """A directory granted for reading, with a file `note`."""
    state: str
    """A directory granted for writing."""
    victim: int
    """A process of the same user, with the token in its environment."""
    tcp: int
    """Port of a listener on the loopback address."""
    udp: int
    abstract: str
    """Name of a listening abstract unix socket, without its leading zero."""
    socket: str
    """Path of a listening unix socket in no grant."""
    hostname: str


@dataclass(frozen=True)
class Attempt:
    """One way out. `root`: succeeds outside only for root. `depends`: succeeds outside on some machines only."""

    run: Callable[[Stage], bool]
    root: bool
    depends: bool


ATTEMPTS: dict[str, Attempt] = {}


def attempt(
    *, root: bool = False, depends: bool = False
) -> Callable[[Callable[[Stage], bool]], Callable[[Stage], bool]]:
    """Register a function that returns whether it got out; an OSError means that it did not."""

    def register(run: Callable[[Stage], bool]) -> Callable[[Stage], bool]:
        ATTEMPTS[run.__name__] = Attempt(run, root, depends)
        return run

    return register


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_X86 = platform.machine() == "x86_64"
_NUMBERS = {  # name: x86_64, aarch64
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone": (56, 220),
    "clone3": (435, 435),
    "exit": (60, 93),
    "getpid": (39, 172),
    "io_uring_setup": (425, 425),
    "mount": (165, 40),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270),
    "ptrace": (101, 117),
    "setns": (308, 268),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_NEWNS, _NEWUSER = 0x00020000, 0x10000000


def _syscall(name: str, *args: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in args]
    result: int = _LIBC.syscall(ctypes.c_long(_NUMBERS[name][not _X86]), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _holds_token(path: str | Path, stage: Stage) -> bool:
    return stage.token.encode() in Path(path).read_bytes()


# Files


@attempt()
def read_by_path(stage: Stage) -> bool:
    """Read a file that was not granted."""
    return _holds_token(stage.secret, stage)


@attempt()
def read_by_symlink(stage: Stage) -> bool:
    """Read it through a link in the own directory."""
    link = Path(stage.state, "link")
    link.unlink(missing_ok=True)
    link.symlink_to(stage.secret)
    return _holds_token(link, stage)


@attempt()
def read_by_hardlink(stage: Stage) -> bool:
    """Read it through a hard link in the own directory."""
    link = Path(stage.state, "hard")
    link.unlink(missing_ok=True)
    link.hardlink_to(stage.secret)
    return _holds_token(link, stage)


@attempt()
def read_by_dotdot(stage: Stage) -> bool:
    """Read it by climbing out of the own directory."""
    return _holds_token(Path(stage.state, "..", os.path.relpath(stage.secret, Path(stage.state).parent)), stage)


@attempt()
def read_by_proc_root(stage: Stage) -> bool:
    """Read it through the root directory of another process."""
    return _holds_token(f"/proc/{stage.victim}/root{stage.secret}", stage)


@attempt()
def read_by_inherited_descriptor(stage: Stage) -> bool:
    """Read it through a descriptor that was left open."""
    for fd in range(3, 256):
        try:
            if stage.token.encode() in os.pread(fd, 4096, 0):
                return True
        except OSError:
            continue
    return False


@attempt()
def see_that_it_exists(stage: Stage) -> bool:
    """Learn a name that was not granted."""
    return Path(stage.secret).exists()


@attempt()
def list_the_users(stage: Stage) -> bool:
    """Read the account database."""
    return b"root" in Path("/etc/passwd").read_bytes()


@attempt()
def write_to_read_grant(stage: Stage) -> bool:
    """Create a file where only reading was granted."""
    planted = Path(stage.granted, "planted")
    planted.touch()
    planted.unlink()
    return True


@attempt()
def truncate_in_read_grant(stage: Stage) -> bool:
    """Change a file where only reading was granted."""
    note = Path(stage.granted, "note")
    os.truncate(note, note.stat().st_size)
    return True


@attempt()
def rename_into_read_grant(stage: Stage) -> bool:
    """Move an own file to where only reading was granted."""
    own = Path(stage.state, "moved")
    own.touch()
    own.rename(Path(stage.granted, "moved")).unlink()
    return True


@attempt()
def change_mode_in_read_grant(stage: Stage) -> bool:
    """Change the mode of a file where only reading was granted."""
    note = Path(stage.granted, "note")
    note.chmod(note.stat().st_mode)
    return True


@attempt(depends=True)
def plant_startup_code(stage: Stage) -> bool:
    """Put a .pth file where every later Python process would run it."""
    planted = Path(next(place for place in sys.path if place.endswith("site-packages")), "planted.pth")
    planted.touch()
    planted.unlink()
    return True


@attempt(depends=True)
def change_the_packages(stage: Stage) -> bool:
    """Open the OS's own code for writing."""
    import llmos.drivers as package

    with Path(str(package.__file__)).open("r+b"):
        return True


@attempt()
def import_the_kernel(stage: Stage) -> bool:
    """Load the kernel's code."""
    import llmos.kernel.jail as package

    return bool(package.__file__)


@attempt(root=True, depends=True)
def make_a_device(stage: Stage) -> bool:
    """Make a device node for the machine's memory."""
    node = Path(stage.state, "mem")
    node.unlink(missing_ok=True)
    os.mknod(node, 0o20600, os.makedev(1, 1))
    return True


@attempt(root=True, depends=True)
def change_the_system(stage: Stage) -> bool:
    """Open a setting of Linux for writing."""
    with Path("/proc/sys/kernel/printk").open("r+b"):
        return True


@attempt(root=True, depends=True)
def open_a_host_device(stage: Stage) -> bool:
    """Open the kernel's log."""
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    return True


# Other processes


@attempt()
def read_own_environment(stage: Stage) -> bool:
    """Find a secret that the starting process had in its environment."""
    return stage.token in os.environ.values()


@attempt()
def read_environment_of_victim(stage: Stage) -> bool:
    """Read another process's environment."""
    return _holds_token(f"/proc/{stage.victim}/environ", stage)


@attempt()
def read_environment_of_parent(stage: Stage) -> bool:
    """Read the environment of the process that started us."""
    return _holds_token(f"/proc/{os.getppid()}/environ", stage)


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
    _syscall("ptrace", attach, stage.victim, 0, 0)
    time.sleep(0.02)  # it has to stop first
    _syscall("ptrace", detach, stage.victim, 0, 0)
    return True


@attempt(depends=True)
def read_memory_of_victim(stage: Stage) -> bool:
    """Read another process's memory; EFAULT means that only the address was wrong."""
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("@PN", ctypes.addressof(buffer), 8)
    remote = struct.pack("@PN", 4096, 8)
    try:
        _syscall("process_vm_readv", stage.victim, local, 1, remote, 1, 0)
    except OSError as error:
        return error.errno == errno.EFAULT
    return True


@attempt(depends=True)
def steal_descriptor(stage: Stage) -> bool:
    """Take a descriptor out of another process."""
    return _syscall("pidfd_getfd", os.pidfd_open(stage.victim), 0, 0) >= 0


@attempt()
def limit_victim(stage: Stage) -> bool:
    """Change another process's limits."""
    present = resource.prlimit(stage.victim, resource.RLIMIT_NOFILE)
    resource.prlimit(stage.victim, resource.RLIMIT_NOFILE, present)
    return True


@attempt()
def outlive_the_kernel(stage: Stage) -> bool:
    """Undo the order to die with the process that started us."""
    return int(_LIBC.prctl(1, 0, 0, 0, 0)) == 0


@attempt()
def allow_core_dumps(stage: Stage) -> bool:
    """Have our memory handed to the machine's crash handler."""
    return int(_LIBC.prctl(4, 1, 0, 0, 0)) == 0


# Sockets


@attempt()
def connect_tcp(stage: Stage) -> bool:
    """Reach a server on this machine."""
    with socket.create_connection(("127.0.0.1", stage.tcp), timeout=1):
        return True


@attempt()
def listen_tcp(stage: Stage) -> bool:
    """Be a server on this machine."""
    with socket.create_server(("127.0.0.1", 0)):
        return True


@attempt()
def send_udp(stage: Stage) -> bool:
    """Send a datagram, as a DNS tunnel would."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"x", ("127.0.0.1", stage.udp)) == 1


@attempt(root=True, depends=True)
def open_raw_socket(stage: Stage) -> bool:
    """Open a raw socket."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return True


@attempt(root=True, depends=True)
def open_packet_socket(stage: Stage) -> bool:
    """Open a socket that sees every packet."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return True


@attempt()
def open_netlink_socket(stage: Stage) -> bool:
    """Open a socket that configures the network."""
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()
    return True


@attempt()
def connect_abstract_socket(stage: Stage) -> bool:
    """Reach a server by an abstract name, as desktop sessions have them."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + stage.abstract)
        return True


@attempt()
def connect_hidden_socket(stage: Stage) -> bool:
    """Reach a server by a path that was not granted, as D-Bus and docker have them."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(stage.socket)
        return True


# Linux itself


@attempt(depends=True)
def make_user_namespace(stage: Stage) -> bool:
    """Become root of a user namespace."""
    return _syscall("unshare", _NEWUSER) == 0


@attempt(depends=True)
def make_user_namespace_by_clone(stage: Stage) -> bool:
    """Start a process as root of a user namespace."""
    pid = _syscall("clone", _NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        _syscall("exit", 0)
    return pid > 0


@attempt(depends=True)
def make_user_namespace_by_clone3(stage: Stage) -> bool:
    """The same, with the flags where no filter can see them."""
    arguments = struct.pack("@11Q", _NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    pid = _syscall("clone3", arguments, len(arguments))
    if pid == 0:
        _syscall("exit", 0)
    return pid > 0


@attempt(root=True, depends=True)
def enter_namespace_of_victim(stage: Stage) -> bool:
    """Join another process's namespace."""
    fd = os.open(f"/proc/{stage.victim}/ns/uts", os.O_RDONLY)
    return _syscall("setns", fd, 0) == 0


@attempt(depends=True)
def mount_something(stage: Stage) -> bool:
    """Change the file system that we see."""
    _syscall("unshare", _NEWUSER | _NEWNS)
    return _syscall("mount", b"none", stage.state.encode(), b"tmpfs", 0, None) == 0


@attempt(root=True, depends=True)
def load_bpf(stage: Stage) -> bool:
    """Create a BPF map: one array of one integer."""
    attributes = struct.pack("@IIII", 2, 4, 4, 1) + bytes(112)
    return _syscall("bpf", 0, attributes, len(attributes)) >= 0


@attempt(depends=True)
def open_perf_event(stage: Stage) -> bool:
    """Observe the machine through its performance counters."""
    attributes = struct.pack("@IIQ", 1, 112, 0) + bytes(24) + struct.pack("@Q", 1 << 5 | 1 << 6) + bytes(64)
    return _syscall("perf_event_open", attributes, 0, -1, -1, 0) >= 0


@attempt(depends=True)
def open_userfaultfd(stage: Stage) -> bool:
    """Stop Linux in the middle of a copy, as exploits like to."""
    return _syscall("userfaultfd", 1) >= 0


@attempt(depends=True)
def use_keyring(stage: Stage) -> bool:
    """Leave something in a kernel keyring."""
    return _syscall("add_key", b"user", b"llmos-test", b"x", 1, -2) >= 0


@attempt(depends=True)
def use_io_uring(stage: Stage) -> bool:
    """Get system calls done by Linux itself, past any filter."""
    return _syscall("io_uring_setup", 4, bytes(120)) >= 0


@attempt(depends=True)
def call_as_i386(stage: Stage) -> bool:
    """Make a system call by the 32-bit numbering (getpid is 20)."""
    if not _X86:
        return False
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)()) > 0


@attempt(depends=True)
def call_as_x32(stage: Stage) -> bool:
    """Make a system call by the x32 numbering."""
    return int(_LIBC.syscall(ctypes.c_long(0x40000000 | _NUMBERS["getpid"][0]))) > 0


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


# Using it up. The limits of the battery are half of what is tried.

LIMITS = {"address_space": 4 << 30, "open_files": 128, "processes": 32, "file_size": 64 << 20, "cpu_seconds": 1}
SCRATCH = 16 << 20


@attempt()
def use_up_memory(stage: Stage) -> bool:
    """Take twice the memory."""
    map_noreserve = 0x4000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_noreserve
    mmap.mmap(-1, 2 * LIMITS["address_space"], flags=flags).close()
    return True


@attempt()
def use_up_threads(stage: Stage) -> bool:
    """Start twice the threads."""
    over = threading.Event()
    try:
        for _ in range(2 * LIMITS["processes"]):
            threading.Thread(target=over.wait).start()
    finally:
        over.set()
    return True


@attempt()
def use_up_descriptors(stage: Stage) -> bool:
    """Open twice the files."""
    for _ in range(2 * LIMITS["open_files"]):
        os.dup(0)
    return True


@attempt()
def use_up_disk(stage: Stage) -> bool:
    """Make a file of twice the size."""
    file = Path(stage.state, "big")
    file.touch()
    os.truncate(file, 2 * LIMITS["file_size"])
    return True


@attempt()
def use_up_scratch(stage: Stage) -> bool:
    """Fill the memory behind /tmp, in files that are each small enough."""
    files = [Path(f"/tmp/llmos-escape-{os.getpid()}-{part}") for part in range(4)]
    try:
        for file in files:
            file.write_bytes(bytes(SCRATCH // 2))
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    return True


@attempt()
def use_up_processor(stage: Stage) -> bool:
    """Compute for longer than allowed."""
    while time.process_time() < 1.5 * LIMITS["cpu_seconds"]:
        pass
    return True


def main() -> int:
    """Try one; says on standard error what held it back."""
    name, stage = sys.argv[1], Stage(**json.loads(sys.argv[2]))
    try:
        return ESCAPED if ATTEMPTS[name].run(stage) else 1
    except (OSError, ImportError, MemoryError, RuntimeError) as error:
        print(f"{name}: {error!r}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
