"""What a jail uses: memory, processor, processes, and files that it holds though nobody sees them. Reads `/proc` only."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.kernel import params

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
BLOCK = 512
"""Bytes of what stat(2) counts blocks in."""
_MOST_FDS = 2048
"""Descriptors of one jail that are looked at."""


@dataclass
class Usage:
    """Of one process over its whole jail, as it was last seen."""

    at: float = 0.0
    """On the loop's clock; 0 before the first look."""
    memory: int = 0
    """Bytes, shared pages counted by their share where that could be found out."""
    shared: int = 0
    """Bytes resident that others' shares are of, when that was last found out."""
    looks: int = 0
    cpu_s: float = 0.0
    share: float = 0.0
    """Of one processor, between the last two looks."""
    tasks: int = 0
    """Processes and threads."""
    held: int = 0
    """Bytes on the disk of deleted files that it holds open."""
    disk: int = 0
    """Bytes in its directory, as of the last whole walk."""
    files: int = 0
    burnt: float = 0.0
    """Seconds of processor that it used with no call to show for it, beyond what anybody may, less what it left unused since."""

    def describe(self) -> dict[str, Any]:
        """Its part of a row of `proc.list`."""
        return {
            "pss_mb": round(self.memory / 1e6, 1),
            "cpu_pct": round(self.share * 100),
            "threads": self.tasks,
            "disk_mb": round((self.disk + self.held) / 1e6, 1),
        }


@dataclass(frozen=True)
class Allowed:
    """What a kind of process may use; None is not looked at."""

    memory: int | None = None
    disk: int | None = None
    files: int | None = None
    burn_s: float | None = None

    @classmethod
    def of(cls, kind: str) -> Allowed:
        if kind == "agent":
            return cls(params.AGENT_PSS, params.AGENT_DISK, params.AGENT_FILES, params.AGENT_BURN_S)
        if kind == "driver":
            return cls(params.DRIVER_PSS, params.DRIVER_DISK, params.DRIVER_FILES, params.DRIVER_BURN_S)
        if kind == "code":
            return cls()  # by its call, and looked at by `code.py`
        if kind == "core":
            return cls(params.CORE_PSS, params.CORE_DISK, params.CORE_FILES)
        return cls(params.GATE_MEMORY)

    def describe(self) -> dict[str, Any]:
        """Its part of a row of `proc.list`."""
        sizes = {"pss_mb": self.memory, "disk_mb": self.disk}
        return {name: round(size / 1e6, 1) for name, size in sizes.items() if size is not None}


@dataclass
class Sample:
    """One look at a jail."""

    rss: int = 0
    cpu_s: float = 0.0
    tasks: int = 0
    held_disk: int = 0
    held_memory: int = 0
    """Bytes of deleted files in memory that it holds open, mapped or not: in the /tmp and /dev/shm of its jail."""


def resident(pid: int) -> tuple[int, float]:
    """Bytes of memory and seconds of processor of one process alone; zeros for one that has gone."""
    with suppress(OSError, IndexError, ValueError):
        fields = _stat(pid)
        return int(fields[21]) * _PAGE, sum(map(int, fields[11:13])) / _TICK
    return 0, 0.0


def members(root: int) -> list[int]:
    """A process and all that descend from it, at most `MAX_TASKS`. Source: proc(5)."""
    found = [root]
    for pid in found:
        with suppress(OSError, ValueError):
            for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  (names)
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_bytes().split())
        if len(found) > params.MAX_TASKS:
            break
    return found


def sample(pids: list[int], device: int) -> Sample:
    """What they use together.

    Args:
        device: where their own directory lies; deleted files there take room on the disk.
    """
    seen = Sample()
    fds = _MOST_FDS
    for pid in pids:
        with suppress(OSError, IndexError, ValueError):
            fields = _stat(pid)
            seen.cpu_s += sum(map(int, fields[11:15])) / _TICK  # its own, and of its children that it has reaped
            seen.tasks += int(fields[17])
            seen.rss += int(fields[21]) * _PAGE
        with suppress(OSError):  # another user's, or it has ended
            names = os.listdir(f"/proc/{pid}/fd")[:fds]  # noqa: PTH208  (names)
            fds -= len(names)
            for name in names:
                _count_deleted(f"/proc/{pid}/fd/{name}", device, seen)
    return seen


def _stat(pid: int) -> list[bytes]:
    """From the state on: the name before it may itself contain anything. Source: proc(5)."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def _count_deleted(path: str, device: int, seen: Sample) -> None:
    with suppress(OSError):
        about = os.stat(path)  # noqa: PTH116  (of the open file, not of a name)
        if about.st_nlink == 0 and stat.S_ISREG(about.st_mode):
            if about.st_dev == device:
                seen.held_disk += about.st_blocks * BLOCK
            else:
                seen.held_memory += about.st_blocks * BLOCK


def shared_out(pids: list[int]) -> tuple[int, int] | None:
    """Bytes of private and file memory, and of shared memory, each page divided by those who map it; None where that is not told.

    Takes some 12 ms for a GB.
    """
    own = shared = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
        except FileNotFoundError:
            continue  # it has ended
        except OSError:
            return None
        fields = {line.split(b":")[0]: line for line in lines}
        try:
            whole, shm = (int(fields[name].split()[1]) << 10 for name in (b"Pss", b"Pss_Shmem"))
        except (KeyError, IndexError, ValueError):
            continue  # a zombie has none
        own, shared = own + whole - shm, shared + shm
    return own, shared
