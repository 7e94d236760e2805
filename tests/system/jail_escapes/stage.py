"""What waits outside of the jail to be reached, the list of attempts, and what they are made of.

STAGE is the JSON of `Stage`. Exit status `ESCAPED` means that the attempt got what it wanted; anything else, also
death by a signal, means that it was held back. Outside of a jail every attempt succeeds, except those marked
`depends`, which some machines hold back from everybody. Nothing here does harm when it succeeds.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ESCAPED = 42

LIMITS = {"address_space": 4 << 30, "open_files": 128, "processes": 32, "file_size": 64 << 20, "cpu_seconds": 1}
"""Of the jails that the attempts are made in; more than this is an escape."""
SCRATCH = 16 << 20


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
    """Name of a listening abstract unix socket, without its leading zero; it hands everybody the secret, open."""
    datagram: str
    """Name of an abstract unix socket that takes datagrams."""
    socket: str
    """Path of a listening unix socket in no grant; it answers like D-Bus."""
    memory: int
    """Key of a System V shared memory segment with the token; 0 where there is none."""
    setuid: str
    """A program in the read grant that shows any file and is set to become root; empty where none could be made."""
    hostname: str


@dataclass(frozen=True)
class Attempt:
    """One way out. `root`: succeeds outside only for root. `depends`: succeeds outside on some machines only.

    `programs`: made in a jail that may start processes and programs, because in others it ends before it begins.
    """

    run: Callable[[Stage], bool]
    root: bool
    depends: bool
    programs: bool


ATTEMPTS: dict[str, Attempt] = {}


def attempt(
    *, root: bool = False, depends: bool = False, programs: bool = False
) -> Callable[[Callable[[Stage], bool]], Callable[[Stage], bool]]:
    """Register a function that returns whether it got out; an OSError means that it did not."""

    def register(run: Callable[[Stage], bool]) -> Callable[[Stage], bool]:
        ATTEMPTS[run.__name__] = Attempt(run, root, depends, programs)
        return run

    return register


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"
_NUMBERS = {  # name: x86_64, aarch64
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "clone": (56, 220),
    "clone3": (435, 435),
    "exit": (60, 93),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsopen": (430, 430),
    "getpid": (39, 172),
    "io_uring_setup": (425, 425),
    "ioprio_set": (251, 30),
    "kexec_file_load": (320, 294),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "mount": (165, 40),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "renameat2": (316, 276),
    "rt_sigqueueinfo": (129, 138),
    "setns": (308, 268),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
NEWNS, NEWUSER = 0x00020000, 0x10000000
AT_FDCWD = -100


def number(name: str) -> int:
    """What this machine calls a system call."""
    return _NUMBERS[name][not X86]


def syscall(name: str, *args: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """The result of a system call. Raises OSError."""
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in args]
    result: int = LIBC.syscall(ctypes.c_long(number(name)), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def passes(name: str, *args: int | bytes | ctypes.Array[ctypes.c_char] | None, but_for: int) -> bool:
    """Whether only the nonsense in the arguments is in the way: for calls that would do harm if they succeeded."""
    try:
        syscall(name, *args)
    except OSError as error:
        return error.errno == but_for
    return True


def holds_token(path: str | Path, stage: Stage) -> bool:
    """Whether the secret can be read there."""
    return stage.token.encode() in Path(path).read_bytes()


def fresh(stage: Stage, name: str) -> Path:
    """A name in the own directory under which there is nothing."""
    path = Path(stage.state, name)
    path.unlink(missing_ok=True)
    return path


def ends_well(pid: int) -> bool:
    """Wait for a child; whether it escaped."""
    status = os.waitpid(pid, 0)[1]
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == ESCAPED
