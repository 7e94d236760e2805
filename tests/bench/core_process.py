"""A core in a process of its own, driven as the kernel drives it but for the scheduling: everything gets its turn at once."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from llmos.ipc import paths
from llmos.ipc.pipe import Pipe

Message = dict[str, Any]


class CoreProcess:
    """Use as a context manager.

    Args:
        model: a name in the store.
        kv_bytes, spill_bytes: what it may keep in memory and in files.
    """

    def __init__(self, model: str, *, kv_bytes: int = 8 << 30, spill_bytes: int = 0) -> None:
        self.model = model
        self._numbers = itertools.count(1)
        self._folder = tempfile.TemporaryDirectory()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "llmos.kernel.core", "--fd", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=(theirs.fileno(),))
        theirs.close()
        self._pipe = Pipe(ours)
        self.say("limits", kv_bytes=kv_bytes, spill_dir=self._folder.name, spill_bytes=spill_bytes)
        folder = str(paths.models_dir() / model)
        self.info: Message = self.ask("load", model=model, folder=folder, provider="cpu", kind="generator")["info"]
        self.states: dict[int, str] = {}
        """`prefill` or `decode` of every job that has not ended."""
        self.kv: Message = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.wait(30)
        self._folder.cleanup()

    def say(self, op: str, **fields: Any) -> None:
        self._pipe.send({"op": op, **fields})

    def ask(self, op: str, **fields: Any) -> Message:
        self.say(op, **fields)
        return self._next()

    def open(self, source: int | None = None) -> int:
        """A new context, or a fork of one."""
        number = next(self._numbers)
        if source is None:
            self.say("open", context=number, model=self.model)
        else:
            self.say("fork", context=number, source=source)
        return number

    def close(self, context: int) -> None:
        self.say("close", context=context)

    def admit(self, **fields: Any) -> int:
        """A job; 0 when it was refused."""
        number = next(self._numbers)
        answer = self.ask("job", job=number, model=self.model, **fields)
        if answer["op"] != "admitted":
            return 0
        self.states[number] = "prefill"
        return number

    def cancel(self, job: int) -> None:
        self.say("cancel", job=job)
        self.states.pop(job, None)

    def turn(self, tokens: int = 8) -> None:
        """A slice for the first job that reads, and some tokens for all that decode."""
        reading = next((job for job, state in self.states.items() if state == "prefill"), None)
        decoding = [[job, tokens] for job, state in self.states.items() if state == "decode"]
        self.say("run", turn=1, prefill=[reading, 128] if reading is not None else None, decode=decoding[:15])
        while (message := self._next())["op"] != "ran":
            pass
        self.kv = message["kv"]
        told = {job for job, *_ in message["jobs"]}
        for job in (reading, *(job for job, _ in decoding[:15])):
            if job is not None and job not in told:  # it ended with its context
                self.states.pop(job, None)
        for number, *_, state, _finish in message["jobs"]:
            if state == "done":
                self.states.pop(number, None)
            else:
                self.states[number] = state

    def finish(self) -> None:
        """Work until every job has ended."""
        while self.states:
            self.turn(64)

    def rss(self) -> int:
        """Bytes of memory that are its own: anonymous pages, not the weights it maps."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))  # noqa: PTH208

    def _next(self) -> Message:
        message = self._pipe.receive(600)
        if message is None:
            raise TimeoutError("the core has said nothing for ten minutes")
        return message
