"""What one jail allows, as plain values: the kernel writes a `Policy`, the rest of this package carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType


class JailError(Exception):
    """A jail cannot be built as asked. The message says what is wrong; `hint` says how to fix it, or is empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Layer(StrEnum):
    """One mechanism of confinement. Each holds without the others, so that a hole in one is not a way out."""

    MOUNTS = "mounts"
    """bubblewrap: own mount, network, IPC, host name and (unless shared) process id namespaces."""
    LANDLOCK = "landlock"
    """File access, TCP, abstract sockets and signals, checked by the Linux kernel per process."""
    SECCOMP = "seccomp"
    """The list of system calls the process may make."""


ALL_LAYERS = frozenset(Layer)


class Tier(StrEnum):
    """How strong a jail is. `A` is strongest; compare with `at_least`."""

    A = "A"
    """All layers, with Landlock at ABI 6 or better."""
    B = "B"
    """Landlock and seccomp, but the mount namespace is missing or Landlock is older than ABI 6."""
    C = "C"
    """Only resource limits, a clean environment and no_new_privs: no place for code that is not trusted."""

    def at_least(self, other: Tier) -> bool:
        """Whether this tier is as strong as `other` or stronger."""
        return self.value <= other.value


def reachable(layers: frozenset[Layer]) -> Tier:
    """The best tier that these layers can make; Landlock's ABI decides further when the jail closes."""
    if layers == ALL_LAYERS:
        return Tier.A
    return Tier.B if {Layer.LANDLOCK, Layer.SECCOMP} <= layers else Tier.C


@dataclass(frozen=True)
class Limits:
    """Resource limits of each process in the jail; None leaves the limit as the kernel process has it.

    Core dumps are always off. `processes` counts threads too, over the whole jail.
    """

    address_space: int | None = 4 << 30
    """Bytes of virtual memory (RLIMIT_AS), per process."""
    data: int | None = None
    """Bytes of memory of its own that it may write to (RLIMIT_DATA), per process: closer to what is used than virtual memory."""
    open_files: int | None = 256
    """File descriptors, per process."""
    processes: int | None = 256
    """Processes and threads in this jail."""
    file_size: int | None = 1 << 30
    """Bytes of the largest file that may be written."""
    cpu_seconds: int | None = None
    """Processor time, after which the process gets SIGXCPU and then SIGKILL."""
    nice: int = 0
    """How far it stands back from others when processors are scarce (nice(2))."""


@dataclass(frozen=True)
class Policy:
    """All that a jailed process may see and do; what is not named here is denied.

    Paths are absolute, exist, contain no symbolic link, and are seen at the same place inside. A directory grants
    everything below it.
    """

    read: tuple[Path, ...] = ()
    """Files and directories that may be read. A unix socket in one of them may be connected to."""
    write: tuple[Path, ...] = ()
    """Directories (or files) that may be read, written, created in and deleted from. The first is the working directory."""
    path: tuple[Path, ...] = ()
    """Directories to import from besides the interpreter's own, searched first; readable."""
    kernel_modules: tuple[str, ...] = ()
    """Parts of llmos.kernel the process is made of (`core`, `gate`); everything else in it stays invisible."""
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Added to the small fixed environment; nothing is inherited."""
    limits: Limits = Limits()
    scratch: int = 64 << 20
    """Bytes of the private /tmp and, separately, of /dev/shm; both are memory and vanish with the jail."""
    share_pid: bool = False
    """Keep the host's process ids. Only the gate needs it: SO_PEERCRED shows pid 0 for a process of another namespace."""
    network: bool = False
    """Keep the host's network and see how it resolves names. Whoever has it reaches everything the machine does: only for
    the egress broker and the package installer. TCP ports may not be bound."""
    certificates: bool = False
    """See the certificates of the authorities that this machine trusts, for TLS; `network` includes them."""
    allow_fork: bool = False
    """Whether it may start processes; threads are always allowed."""
    allow_exec: bool = False
    """Whether it may run other programs (those of the system and the interpreter; nothing it can write)."""
    bare: bool = False
    """Plain Python: without llmos (in tier A; elsewhere its code can be seen)."""
    tier: Tier = Tier.A
    """The weakest jail acceptable: a jail below it is refused, never weakened silently."""
