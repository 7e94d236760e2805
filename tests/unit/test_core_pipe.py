"""The core's loop over a real pipe: what arrives while it works, and how either end's end is seen."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.pipe import PeerGone, Pipe
from llmos.kernel.core.loop import Loop
from tests.unit.core_doubles import CountingEngine, Message, counting_model


class Kernel:
    """The other end of the pipe. The loop runs in a thread, with a `CountingEngine` that the test can reach."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        self.pipe, core = Pipe(ours), Pipe(theirs)
        self.engine = CountingEngine()
        self.model = counting_model(folder, engine=self.engine)  # a template is compiled in the main thread only
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, args=(core,), name="core")
        self._thread.start()

    def _serve(self, pipe: Pipe) -> None:
        try:
            Loop(pipe, load=lambda *_: self.model).serve()
        except Exception as error:  # noqa: BLE001  handed to the test
            self.failure = error
        finally:
            pipe.close()

    def send(self, op: str, **fields: Any) -> None:
        self.pipe.send({"op": op, **fields})

    def receive(self) -> Message:
        message = self.pipe.receive(10)
        assert message is not None, "the core said nothing"
        return message

    def ask(self, op: str, **fields: Any) -> Message:
        self.send(op, **fields)
        return self.receive()

    def rest(self) -> tuple[str, Message]:
        """The text that comes, and the message after it."""
        text = ""
        while (message := self.receive())["op"] == "chunk":
            text += message["text"]
        return text, message

    def end(self) -> None:
        self.pipe.close()
        self._thread.join(10)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    ready = made.ask("load", model="m", folder="m", provider="cpu", kind="generator")
    assert ready["op"] == "ready", ready
    yield made
    made.end()
    assert made.failure is None or isinstance(made.failure, PeerGone)


def test_a_job_over_the_pipe(kernel: Kernel) -> None:
    """Messages, chunks and reports survive the pipe; a yield that arrives in a turn ends it."""
    kernel.ask("job", job=1, model="m", prompt="A", max_tokens=9)
    kernel.engine.at[4] = lambda: kernel.send("yield")
    kernel.send("run", turn=1, prefill=[1, 10], decode=[[1, 100]])
    first, ran = kernel.rest()
    assert ran["jobs"] == [[1, 1, 0, 4, 0, "decode", None]]
    kernel.send("run", turn=2, prefill=None, decode=[[1, 100]])
    second, ran = kernel.rest()
    assert (first + second, ran["turn"], ran["jobs"][0][5:]) == ("BCDEFGHIJ", 2, ["done", "length"])
    assert ran["kv"].keys() == {"rows", "cache", "spilled"}


def test_shutdown_ends_even_a_running_core(kernel: Kernel) -> None:
    """Shutdown in the middle of a turn ends it, and the pipe closes."""
    kernel.ask("job", job=1, model="m", prompt="A", max_tokens=300)
    kernel.engine.at[3] = lambda: kernel.send("shutdown")
    kernel.send("run", turn=1, prefill=[1, 10], decode=[[1, 1000]])
    assert kernel.rest()[1]["jobs"][0][5] == "decode"
    with pytest.raises(PeerGone):
        kernel.receive()


def test_a_kernel_that_is_gone_ends_the_core(tmp_path: Path) -> None:
    """The pipe's end is the core's end, in the middle of a turn too."""
    kernel = Kernel(tmp_path)
    kernel.ask("load", model="m", folder="m", provider="cpu", kind="generator")
    kernel.ask("job", job=1, model="m", prompt="A", max_tokens=300)
    kernel.engine.at[3] = kernel.pipe.close
    with contextlib.suppress(PeerGone, OSError, ValueError):
        kernel.send("run", turn=1, prefill=[1, 10], decode=[[1, 1000]])
        kernel.rest()
    kernel.end()
    assert isinstance(kernel.failure, PeerGone)


def test_a_message_that_makes_no_sense_ends_the_core(tmp_path: Path) -> None:
    """The kernel is the only one who can speak here, so nonsense is a bug to be seen and not to be survived."""
    kernel = Kernel(tmp_path)
    kernel.send("fly")
    with pytest.raises(PeerGone):
        kernel.receive()
    kernel.end()
    assert isinstance(kernel.failure, KeyError)
