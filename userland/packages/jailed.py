"""Runs a module of Python in a jail and follows what it says, while somebody looks at how much it writes.

The kernel's jail is started as a program, because userland imports nothing of the kernel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmos.ipc.errors import Code, OpError

MAX_BYTES = 2 << 30
"""Of all that one package and its dependencies may write."""
MAX_FILES = 100_000
"""The same in files and directories."""
MAX_FILE = 1 << 30
"""Bytes of the largest file."""
TIME_S = 900.0
"""Seconds that one step may take."""
_LOOK_S = 0.25
_LONGEST_LINE = 4096
_LINES = 200
_TIMED_OUT, _NO_JAIL = 124, 125


@dataclass(frozen=True)
class Job:
    """What runs, and what it sees."""

    module: str
    args: Sequence[str]
    write: Sequence[Path]
    """Directories it may write; the first is its working directory."""
    read: Sequence[Path] = ()
    path: Sequence[Path] = ()
    """Directories it imports from besides the system's own."""
    env: Mapping[str, str] = field(default_factory=dict)
    network: bool = False


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    status: int
    lines: list[str]
    """The last it said."""

    @property
    def reason(self) -> str:
        """Its own last word on why it failed."""
        said = [line.removeprefix("ERROR: ") for line in self.lines if line.startswith("ERROR: ")]
        return said[-1] if said else "it gave no reason"


def run(job: Job, said: Callable[[str], None] = lambda _: None) -> Outcome:
    """Blocks until it has ended, and ends it when interrupted; `said` gets every line it says. It ends with the thread that called this.

    Raises `OpError`: `UNAVAILABLE` (no jail to be had), `TIMEOUT`, `TOO_LARGE` (it wrote more than it may).
    """
    command = [sys.executable, "-m", "llmos.kernel.jail", "run", "--die-with-parent", str(os.getpid())]
    command += ["--timeout", str(TIME_S), "--file-size", str(MAX_FILE), *(["--network"] if job.network else [])]
    for option, paths in (("--read", job.read), ("--write", job.write), ("--path", job.path)):
        command += [word for path in paths for word in (option, str(path))]
    for name in job.env:  # by name alone: an index's password is nothing for the list of processes
        command += ["--env", name]
    process = subprocess.Popen(
        [*command, "--", "-m", job.module, *job.args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **job.env},
    )
    watch = _Watch(process, job.write)
    lines: deque[str] = deque(maxlen=_LINES)
    try:
        watch.start()
        while process.stdout is not None and (line := process.stdout.readline(_LONGEST_LINE)):
            text = line.decode("utf-8", "replace").rstrip()
            lines.append(text)
            said(text)
        status = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        watch.stop()
        if process.stdout is not None:
            process.stdout.close()
    if watch.exceeded:
        raise OpError(
            Code.TOO_LARGE, f"it unpacks to more than {watch.exceeded}", "tell its author; nothing of it was kept"
        )
    if status == _TIMED_OUT:
        raise OpError(Code.TIMEOUT, f"it has not ended after {TIME_S:.0f} s", "try again, or from a nearer index")
    if status == _NO_JAIL and lines and lines[0].startswith("error[jail]"):
        why = lines[0].partition(": ")[2]
        raise OpError(
            Code.UNAVAILABLE, f"packages are installed in a jail, and there is none: {why}", "see `llmosctl doctor`"
        )
    return Outcome(status, list(lines))


class _Watch(threading.Thread):
    """Ends a process once it has written more than it may."""

    def __init__(self, process: subprocess.Popen[bytes], places: Sequence[Path]) -> None:
        super().__init__(name="packages-watch", daemon=True)
        self._process = process
        self._places = places
        self._over = threading.Event()
        self.exceeded = ""
        """The limit, in words; empty while it is kept."""

    def run(self) -> None:
        while not self._over.wait(_LOOK_S):
            self._look()

    def stop(self) -> None:
        """It has ended: look once more."""
        self._over.set()
        if self.ident is not None:
            self.join()
        self._look()

    def _look(self) -> None:
        size, files, counted = usage(self._places)
        if size > MAX_BYTES or files > MAX_FILES or not counted:
            over = f"{MAX_BYTES / 1e6:,.0f} MB" if size > MAX_BYTES else f"{MAX_FILES:,} files"
            self.exceeded = over if counted else "can be counted"
            self._process.kill()


def usage(places: Sequence[Path]) -> tuple[int, int, bool]:
    """Bytes on disk and entries below these directories, and whether all could be looked at; what goes meanwhile does not count."""
    size = files = 0
    counted = True
    waiting = [str(place) for place in places]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    files += 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # too deep for a path, or closed
            counted = False
        if files > MAX_FILES or not counted:
            break
    return size, files, counted
