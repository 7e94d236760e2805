"""One program that runs: what is known of it, and its output on its way from the pipe."""

from __future__ import annotations

import codecs
import fcntl
import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import IO, Any

from llmos.ipc.protocol import RunCode
from llmos.kernel import params
from llmos.kernel.calls import Call
from llmos.kernel.code_files import Listing, changes
from llmos.kernel.code_projects import Project
from llmos.kernel.code_usage import Usage
from llmos.kernel.jail import Jailed, Limits, Policy, Tier
from llmos.kernel.loop import Timer
from llmos.kernel.process import Process

_BLOCK = 16 << 10
"""Bytes of output taken at once: they fit a chunk, though each may become a replacement character of three."""
_REPORT = re.compile(rb"(\d{1,12}) (\d{1,12}) ([01])\n")
_ENDINGS = {
    signal.SIGSYS: "it made a forbidden system call",
    signal.SIGXCPU: "it used too much of the processors",
    signal.SIGXFSZ: "it wrote too large a file",
}


class Output:
    """One stream of a program, from the pipe on."""

    def __init__(self, name: str, pipe: IO[bytes], limit: int) -> None:
        self.name = name
        self.pipe = pipe
        self.left = limit
        self.watched = False
        self.ended = False
        """Whether nothing comes any more, or nothing is wanted."""
        self.over = False
        """Whether it wrote more than it may."""
        self.cut = False
        """Whether it wrote more than `text` holds."""
        self._room = params.CODE_TEXT
        self._head: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        os.set_blocking(pipe.fileno(), False)

    @property
    def text(self) -> str:
        """What it wrote first."""
        return "".join(self._head)

    def take(self) -> str:
        """What has come, decoded. Raises `BlockingIOError`."""
        block = os.read(self.pipe.fileno(), _BLOCK)
        self.over = self.over or len(block) > self.left
        kept = block[: self.left]
        self.left -= len(kept)
        text = self._decoder.decode(kept, final=not block)
        head = text.encode()[: self._room].decode(errors="ignore")
        self.cut = self.cut or self.over or len(head) < len(text)
        self._room -= len(head.encode()) if len(head) == len(text) else self._room
        self._head.append(head)
        self.ended = not block or self.over
        return text


@dataclass(eq=False)
class Run:
    """From its call to its answer."""

    call: Call
    args: RunCode
    project: Project
    process: Process
    directory: int
    """Descriptor of the project's directory."""
    started: float
    """On the loop's clock, when its jail was closed."""
    jailed: Jailed | None = None
    closing: bool = False
    """Whether the jail has yet to say that it is closed."""
    before: Listing = field(default_factory=Listing)
    outputs: list[Output] = field(default_factory=list)
    why: str = ""
    """Why it was ended, in words, where the kernel has ended it."""
    report: int = -1
    """Descriptor of the pipe on which it says how much it used."""
    monitor: int = -1
    init: int = -1
    """Pidfds of the process that tells of its end, and of the one that everything in the jail ends with."""
    used: Usage = field(default_factory=Usage)
    short_of_memory: bool = False
    looking: bool = False
    """Whether the project is being looked through while it runs."""
    deadline: Timer | None = None
    watch: Timer | None = None
    over: bool = False

    def end_by(self, timer: Timer | None) -> None:
        """In place of the deadline before."""
        if self.deadline is not None:
            self.deadline.cancel()
        self.deadline = timer

    def take_report(self) -> None:
        """What it says that it used."""
        with suppress(OSError):
            said = _REPORT.fullmatch(os.read(self.report, 64))
            if said is not None:
                peak, spent = int(said[1]) * 1024 / 1e6, int(said[2]) / 1000
                self.used = Usage(0.0, max(self.used.peak_mb, peak), max(self.used.cpu_s, spent))
                self.short_of_memory = said[3] == b"1"

    def answer(self, found: Listing, seconds: float) -> dict[str, Any]:
        """What `code.run` answers; it has ended."""
        status = self.jailed.wait(0) if self.jailed is not None else 0
        rows = list(changes(self.before, found))
        shown = _fitting(rows)
        return {
            "exit": status,
            "reason": self._reason(status) or found.over,
            **{output.name: output.text for output in self.outputs},
            "truncated": any(output.cut for output in self.outputs),
            "seconds": round(seconds, 3),
            "cpu_s": round(self.used.cpu_s, 3),
            "peak_mb": round(self.used.peak_mb, 1),
            "files": shown,
            "more": len(rows) - len(shown),
        }

    def _reason(self, status: int) -> str:
        if self.why:
            return self.why
        if self.short_of_memory:
            return f"it needed more than {self.args.memory_mb} MB"
        if status >= 0:
            return ""
        try:
            number = signal.Signals(-status)
        except ValueError:
            return f"it was ended by signal {-status}"
        return _ENDINGS.get(number, f"it was ended by {number.name}")

    def close(self) -> None:
        """Give back what it had open."""
        for descriptor in (self.directory, self.report, self.monitor, self.init):
            if descriptor >= 0:
                os.close(descriptor)
        for output in self.outputs:
            output.pipe.close()


def policy(args: RunCode, directory: Path, tier: Tier) -> Policy:
    """The jail of a program: its project, and plain Python."""
    memory = args.memory_mb * 1_000_000
    return Policy(
        write=(directory,),
        kernel_modules=("code_inner",),
        env={"MALLOC_ARENA_MAX": "2"},  # each maps 64 MiB and uses little of it
        limits=Limits(
            address_space=memory + params.CODE_ROOM,
            data=memory,
            open_files=params.CODE_OPEN_FILES,
            processes=params.CODE_THREADS,
            file_size=params.CODE_FILE_BYTES,
            cpu_seconds=ceil(args.seconds) * (os.cpu_count() or 1) + 1,
            nice=params.AGENT_NICE,
        ),
        scratch=params.CODE_SCRATCH,
        allow_fork=args.processes,
        allow_exec=args.processes,
        bare=True,
        tier=tier,
    )


def _fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    left = params.CODE_TEXT
    for count, row in enumerate(rows):
        left -= len(row["path"].encode()) + 40
        if left < 0:
            return rows[:count]
    return rows


def sealed(content: bytes) -> IO[bytes]:
    """A file in memory that nobody can change, positioned at its start."""
    file = os.fdopen(os.memfd_create("llmos-code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")
    file.write(content)
    file.seek(0)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return file
