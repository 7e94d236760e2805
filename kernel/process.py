"""The process table: what the kernel knows of everything it started. No I/O here but reading `/proc`."""

from __future__ import annotations

import bisect
import itertools
import os
import secrets
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import AgentManifest, DriverManifest
from llmos.kernel import params
from llmos.kernel.jail import Jailed
from llmos.kernel.usage import Allowed, Usage, resident


class Kind(StrEnum):
    """Which part of the system a process is."""

    GATE = "gate"
    CORE = "core"
    EGRESS = "egress"
    DRIVER = "driver"
    AGENT = "agent"
    CODE = "code"
    """A program that `code.run` runs; no part of the system, and nobody on the bus."""


class State(StrEnum):
    """A process's life. Only drivers, the gate and the core go from `waiting` back to `starting`."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    WAITING = "waiting"
    """It crashed, and will be started again after a pause."""
    FAILED = "failed"
    """It crashed too often, or cannot start; `status` says why."""
    ENDED = "ended"


class LogRing:
    """The last lines of a stream, bounded in number and length."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=params.LOG_LINES)
        self._times: deque[float] = deque(maxlen=params.LOG_LINES)
        self.count = 0
        """Lines that ever came: the number of the last one."""
        self._rest = b""

    def add(self, line: str) -> None:
        """One whole line."""
        self.lines.append(line[: params.LOG_LINE])
        self._times.append(now())
        self.count += 1

    def after(self, number: int, since: float = 0.0) -> list[str]:
        """Lines that came after the line of this number, and not before `since` (seconds since 1970 UTC), as far as they are kept."""
        skip = max(0, len(self.lines) - (self.count - number)) if number <= self.count else 0  # another log's number
        skip = max(skip, bisect.bisect_left(self._times, since))
        return list(itertools.islice(self.lines, skip, None))

    def feed(self, block: bytes) -> None:
        """Take what came; an unfinished line waits for its end, or for its limit."""
        *lines, self._rest = (self._rest + block).split(b"\n")
        if len(self._rest) > params.LOG_LINE:
            lines.append(self._rest)
            self._rest = b""
        self.count += max(0, len(lines) - params.LOG_LINES)
        for line in lines[-params.LOG_LINES :]:
            self.add(line[: params.LOG_LINE].decode("utf-8", "replace"))


@dataclass(eq=False)
class Process:
    """One process, over all its restarts."""

    pid: int
    kind: Kind
    program: str
    parent: int = 0
    """pid of the process whose call spawned it; 0 for the kernel or the user."""
    manifest: DriverManifest | AgentManifest | None = None
    args: dict[str, Any] = field(default_factory=dict)
    state: State = State.STARTING
    status: str = ""
    token: str = ""
    conn: int = 0
    """The connection it said hello on; 0 when it has none."""
    takes_grants: bool = False
    """Whether an agent has what was and is granted to its program, besides what it was handed."""
    jailed: Jailed | None = None
    from_spare: bool = False
    """Whether it took a jail that had been made before."""
    own: Path | None = None
    """An agent's own directory, which ends with it."""
    os_pid: int = 0
    """The operating system's pid of the program itself, as the gate sees it."""
    started: float = 0.0
    """Seconds since 1970 UTC of the latest start."""
    born: float = 0.0
    """The same on the monotonic clock."""
    restarts: int = 0
    failures: int = 0
    """Crashes in a row, each within `CALM_S` of its start."""
    calls: int = 0
    """Served so far."""
    log: LogRing = field(default_factory=LogRing)
    trouble: str = ""
    """In the kernel's own words, of which everybody may hear, why this start came to nothing; `status` may be the process's."""
    details: str = ""
    """The same with figures, for `status`."""
    usage: Usage = field(default_factory=Usage)
    """As the watchdog saw it last."""

    @property
    def name(self) -> str:
        """Its badge, and the holder of its capabilities: the program for what there is one of, `program#pid` for an agent."""
        return f"{self.program}#{self.pid}" if self.kind in (Kind.AGENT, Kind.CODE) else self.program

    @property
    def alive(self) -> bool:
        return self.state in (State.STARTING, State.READY, State.STOPPING)

    def fresh_token(self) -> str:
        """A new secret for a new start; the old one is worth nothing from now on."""
        self.token = secrets.token_hex(16)
        return self.token

    def describe(self) -> dict[str, Any]:
        """A row of `proc.list`."""
        rss, cpu_s = resident(self.os_pid) if self.alive else (0, 0.0)
        usage = self.usage if self.alive else Usage()
        return {
            "pid": self.pid,
            "name": self.name,
            "kind": self.kind.value,
            "state": self.state.value,
            "parent": self.parent,
            "os_pid": self.os_pid if self.alive else 0,
            "started": self.started,
            "restarts": self.restarts,
            "rss_mb": round(rss / 1e6, 1),
            "cpu_s": max(cpu_s, round(usage.cpu_s, 2)),
            "calls": self.calls,
            "status": self.status,
            **usage.describe(),
            "limits": Allowed.of(self.kind.value).describe(),
        }


class ProcessTable:
    """Every process that is alive or will be again."""

    def __init__(self) -> None:
        self._by_pid: dict[int, Process] = {}
        self._pids = itertools.count(1)

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._by_pid.values()))

    def __len__(self) -> int:
        return len(self._by_pid)

    def add(self, kind: Kind, program: str, **fields: Any) -> Process:
        """Raises `OpError(BUSY)` when the table is full."""
        if len(self._by_pid) >= params.MAX_PROCESSES:
            raise OpError(Code.BUSY, f"{params.MAX_PROCESSES} processes are alive", "end one with `llmosctl kill PID`")
        process = Process(next(self._pids), kind, program, **fields)
        self._by_pid[process.pid] = process
        return process

    def remove(self, process: Process) -> None:
        self._by_pid.pop(process.pid, None)

    def get(self, pid: int) -> Process:
        """Raises `OpError(NOT_FOUND)`."""
        try:
            return self._by_pid[pid]
        except KeyError:
            raise OpError(Code.NOT_FOUND, f"no process {pid}", "see `llmosctl ps`") from None

    def named(self, name: str) -> Process | None:
        """By badge or program."""
        return next((process for process in self._by_pid.values() if name in (process.name, process.program)), None)

    def by_token(self, token: str) -> Process | None:
        """Whose secret this is; compared in constant time."""
        return next(
            (
                process
                for process in self._by_pid.values()
                if process.token and secrets.compare_digest(process.token.encode(), token.encode())
            ),
            None,
        )


def own_rss_mb() -> float:
    """Resident memory of the kernel itself, in MB of 10⁶ bytes."""
    return round(resident(os.getpid())[0] / 1e6, 1)


def now() -> float:
    """Seconds since 1970 UTC."""
    return time.time()
