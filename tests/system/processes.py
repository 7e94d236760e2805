"""Who is whose child, and what each of them is. Source: proc(5)."""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_ROLES = {
    "llmos.kernel.gate": "gate",
    "llmos.kernel.core": "core",
    "llmos.drivers.host": "driver",
    "llmos.userland.agent": "agent",
}


@dataclass(frozen=True)
class Tree:
    """A process, and those that it started."""

    pid: int
    words: str
    """Its command line."""
    children: list[Tree]

    @property
    def is_monitor(self) -> bool:
        """Whether it is bubblewrap's, on either side of the wall."""
        return Path(self.words.partition(" ")[0]).name == "bwrap"

    @property
    def role(self) -> str:
        """What runs in this jail; empty where that is not known."""
        found = next((role for module, role in _ROLES.items() if f" {module}" in self.words), "")
        return "apps_gate" if found == "gate" and "--apps" in self.words else found

    def all(self) -> list[Tree]:
        """Those that it started, and that they started."""
        return [one for child in self.children for one in (child, *child.all())]

    @property
    def program(self) -> int | None:
        """Pid of the one that is no monitor: the program itself."""
        if not self.is_monitor:
            return self.pid
        return next((pid for child in self.children if (pid := child.program) is not None), None)


def is_alive(pid: int) -> bool:
    """And no zombie."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def children() -> set[int]:
    """Processes that this one started, or adopted, zombies included."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def tree(pid: int) -> Tree:
    """Everybody below a process, zombies left out."""
    children: dict[int, list[int]] = defaultdict(list)
    words: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError, IndexError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                words[int(entry.name)] = " ".join(
                    (entry / "cmdline").read_text(errors="replace").replace("\0", " ").split()
                )
                children[int(parent)].append(int(entry.name))

    def made(pid: int) -> Tree:
        return Tree(pid, words.get(pid, ""), [made(child) for child in children[pid]])

    return made(pid)


def adopt(orphans: bool = True) -> None:
    """Whether whoever loses its parent, below us, becomes our child, and is seen. Source: prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0)


def reap() -> None:
    """Zombies that became ours, and that nobody waits for."""
    for pid in children():
        if not is_alive(pid):
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
