"""The kernel's end of a core: a real process with real models, driven message by message."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from llmos.ipc.pipe import PeerGone, Pipe
from tests.system.conftest import STORE

MODEL, EMBEDDER = STORE / "smollm2-135m", STORE / "minilm"
STORY = "Once upon a time there was a fox who lived by the sea."
PLENTY = 1 << 20
"""Tokens: more than any job here takes."""

Message = dict[str, Any]


@dataclass
class Outcome:
    """What became of a job, all of its turns together.

    Attributes:
        admitted: its admissions; a second one when its conversation was paged.
        tokens: what its chunks say they hold.
    """

    admitted: list[Message]
    chunks: list[str] = field(default_factory=list)
    tokens: int = 0
    prefill: int = 0
    cached: int = 0
    decode: int = 0
    forced: int = 0
    finish: str | None = None
    state: str = "prefill"

    @property
    def text(self) -> str:
        return "".join(self.chunks)


class Core:
    """A core process, ended by `end` or as a context manager; `run_as` is what Python runs instead of the module.

    Attributes:
        ran: the last turn's `ran`.
        said: what came besides in that turn, in order.
    """

    def __init__(self, *run_as: str, kv_bytes: int = 1 << 30, spill_dir: Path | None = None) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
            command = [sys.executable, *(run_as or ("-m", "llmos.kernel.core")), "--fd", str(theirs.fileno())]
            self.process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), env=environment, stderr=subprocess.PIPE
            )
        self.pipe = Pipe(ours)
        self.ran: Message = {}
        self.said: list[Message] = []
        self._numbers = self._turns = 0
        self.send("limits", kv_bytes=kv_bytes, spill_dir=spill_dir and str(spill_dir), spill_bytes=1 << 30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def send(self, op: str, **fields: Any) -> None:
        self.pipe.send({"op": op, **fields})

    def receive(self, seconds: float = 60) -> Message:
        message = self.pipe.receive(seconds)
        assert message is not None, "the core said nothing"
        return message

    def ask(self, op: str, **fields: Any) -> Message:
        self.send(op, **fields)
        return self.receive()

    def load(self, folder: Path = MODEL, *, provider: str = "cpu", kind: str = "generator") -> Message:
        """A model by the name of its folder."""
        return self.ask("load", model=folder.name, folder=str(folder), provider=provider, kind=kind)

    def open(self, source: int | None = None, model: str = MODEL.name) -> int:
        """A new context, or a fork of one."""
        self._numbers += 1
        if source is None:
            self.send("open", context=self._numbers, model=model)
        else:
            self.send("fork", context=self._numbers, source=source)
        return self._numbers

    def admit(self, model: str = MODEL.name, **request: Any) -> Message:
        """A job; what the core answers."""
        self._numbers += 1
        return self.ask("job", job=self._numbers, model=model, **request)

    def start(self, prefill: list[int] | None, *decode: list[int]) -> None:
        """Begin a turn."""
        self._turns += 1
        self.send("run", turn=self._turns, prefill=prefill, decode=list(decode))

    def end_turn(self) -> dict[int, list[Any]]:
        """Read to the end of the turn under way: prefill, cached, decode, forced, state and finish of each of its jobs."""
        self.said = []
        while (message := self.receive())["op"] != "ran":
            self.said.append(message)
        self.ran = message
        assert message["turn"] == self._turns
        return {job: counts for job, *counts in message["jobs"]}

    def run(self, prefill: list[int] | None, *decode: list[int]) -> dict[int, list[Any]]:
        """A whole turn."""
        self.start(prefill, *decode)
        return self.end_turn()

    def work(self, *admitted: Message, slice_: int = PLENTY, tokens: int = PLENTY, park: bool = False) -> list[Outcome]:
        """Run jobs to their ends, all that decode together, as the kernel would.

        Args:
            slice_: tokens that one of them may read in a turn.
            tokens: that each may produce in a turn.
            park: all of them after every turn.
        """
        outcomes = {message["job"]: Outcome([message]) for message in admitted}
        live = dict(outcomes)
        while live:
            reading = next((job for job, outcome in live.items() if outcome.state == "prefill"), None)
            counts = self.run(None if reading is None else [reading, slice_], *([job, tokens] for job in live))
            for message in self.said:
                assert message["op"] in ("chunk", "admitted"), message
                outcome = outcomes[message["job"]]
                if message["op"] == "admitted":
                    outcome.admitted.append(message)
                else:
                    outcome.chunks.append(message["text"])
                    outcome.tokens += message["tokens"]
            assert set(counts) == set(live)
            for job, (prefill, cached, decode, forced, state, finish) in counts.items():
                outcome = outcomes[job]
                outcome.prefill, outcome.cached = outcome.prefill + prefill, outcome.cached + cached
                outcome.decode, outcome.forced = outcome.decode + decode, outcome.forced + forced
                outcome.state, outcome.finish = state, finish
                if state == "done":
                    del live[job]
                elif park:
                    self.send("park", job=job)
        return list(outcomes.values())

    def finish(self, **request: Any) -> Outcome:
        """A job from its admission to its end."""
        return self.work(self.admit(**request))[0]

    def generate(self, **request: Any) -> str:
        """The text of a job."""
        return self.finish(**request).text

    def admit_texts(self, texts: list[str]) -> int:
        """An embedding job."""
        self._numbers += 1
        admitted = self.ask("embed", job=self._numbers, model=EMBEDDER.name, texts=texts)
        assert admitted["op"] == "admitted", admitted
        return self._numbers

    def embed(self, *texts: str) -> np.ndarray[Any, Any]:
        """Shape `(texts, dim)`."""
        counts = self.run([job := self.admit_texts(list(texts)), PLENTY])
        (message,) = self.said
        assert (message["op"], message["job"], counts[job][-1]) == ("embedded", job, "stop")
        return np.frombuffer(message["vectors"], dtype="<f4").reshape(len(texts), message["dim"])

    def resident(self) -> int:
        """Bytes of memory that are its own; weights that it maps are not."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))

    def end(self) -> int:
        """Its exit status."""
        with contextlib.suppress(PeerGone):
            self.send("shutdown")
        status = self.process.wait(20)
        self.pipe.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status
