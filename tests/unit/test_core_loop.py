"""The core's side of its conversation with the kernel, over a real pipe, with an engine that only counts."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc.pipe import PeerGone, Pipe
from llmos.kernel.core import limits
from llmos.kernel.core.job import next_slice
from llmos.kernel.core.loop import Loop
from tests.unit.core_doubles import WINDOW, counting_model

Message = dict[str, Any]


class Kernel:
    """The other end of the pipe. The loop runs in a thread, with a `CountingEngine` that the test can reach."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        self.pipe, core = Pipe(ours), Pipe(theirs)
        self.model, self.engine = counting_model(folder)
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

    def quantum(self, job: int, tokens: int) -> tuple[str, Message]:
        """Run a job; the text that came and the message that ended the quantum."""
        self.send("run", job=job, tokens=tokens)
        return self.rest()

    def rest(self) -> tuple[str, Message]:
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
    assert made.ask("load", model="m", embedder=None, provider="cpu")["op"] == "ready"
    yield made
    made.end()
    assert made.failure is None or isinstance(made.failure, PeerGone)


def ran(job: int, prefill: int, decode: int, finish: str | None = None) -> Message:
    state = "more" if finish is None else "done"
    return {"op": "ran", "job": job, "prefill": prefill, "decode": decode, "state": state, "finish": finish}


def test_a_quantum_is_never_exceeded(kernel: Kernel) -> None:
    """Prompt tokens and produced tokens both count against `run`'s tokens, and no quantum does more than it was given."""
    admitted = kernel.ask("job", job=1, prompt="0123456789A", max_tokens=6)
    assert admitted == {"op": "admitted", "job": 1, "prompt_tokens": 11, "cached_tokens": 0, "max_tokens": 6}
    assert kernel.quantum(1, 4) == ("", ran(1, 4, 0))
    assert kernel.quantum(1, 7) == ("", ran(1, 7, 0))
    assert kernel.quantum(1, 2) == ("BC", ran(1, 0, 2))
    assert kernel.quantum(1, 100) == ("DEFG", ran(1, 0, 4, "length"))


def test_nothing_is_computed_for_a_token_that_is_not_wanted(kernel: Kernel) -> None:
    """The last token of a job is not fed to the model: nobody will ask what follows it."""
    kernel.ask("job", job=1, prompt="A", max_tokens=3)
    kernel.quantum(1, 100)
    assert kernel.engine.fed == [1, 1, 1]


def test_a_stop_string_ends_the_job(kernel: Kernel) -> None:
    """The text ends before the stop string, and the job says so."""
    kernel.ask("job", job=1, prompt="A", stop=["EF"])
    assert kernel.quantum(1, 100) == ("BCD", ran(1, 1, 5, "stop"))


def test_a_long_prompt_is_read_in_slices(kernel: Kernel) -> None:
    """The pipe is looked at at least every `PREFILL_SLICE` tokens of a prompt."""
    kernel.ask("job", job=1, prompt="a" * 300, max_tokens=1)
    assert kernel.quantum(1, 1000)[1] == ran(1, 300, 1, "length")
    assert max(kernel.engine.fed) <= limits.PREFILL_SLICE


@given(st.integers(1, 400), st.lists(st.integers(1, 150), min_size=1))
def test_a_prompt_is_cut_between_pairs(prompt: int, limits: list[int]) -> None:
    """However quanta and the pace cut a prompt, each slice begins at an even place, has two tokens or more, and has no
    more than its limit or three."""
    fed = 0
    for limit in itertools.cycle(limits):
        count = next_slice(prompt - fed, limit)
        assert fed % 2 == 0
        assert 2 <= count <= max(limit, 3) or count == prompt == 1
        fed += count
        if fed == prompt:
            break


def test_a_yield_ends_the_quantum_and_loses_nothing(kernel: Kernel) -> None:
    """After a yield the job goes on where it was; the text is the same as without."""
    kernel.ask("job", job=1, prompt="A", max_tokens=9)
    kernel.engine.at[4] = lambda: kernel.send("yield")
    first, message = kernel.quantum(1, 100)
    assert message == ran(1, 1, 3)
    second, message = kernel.quantum(1, 100)
    assert (first + second, message) == ("BCDEFGHIJ", ran(1, 0, 6, "length"))


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_cancel_acts_at_once(kernel: Kernel, after: int) -> None:
    """Between two slices of the prompt or two tokens of the answer, one `ran` says cancelled and the job is gone."""
    kernel.ask("job", job=1, prompt="a" * 200, max_tokens=50)
    kernel.engine.at[after] = lambda: kernel.send("cancel", job=1)
    message = kernel.quantum(1, 1000)[1]
    assert (message["state"], message["finish"], len(kernel.engine.fed)) == ("done", "cancelled", after)
    assert kernel.ask("run", job=1, tokens=1)["code"] == "NOT_FOUND"


def test_a_waiting_job_is_cancelled_while_another_runs(kernel: Kernel) -> None:
    """Its `ran` comes during the other's quantum, counts nothing twice, and the other goes on."""
    kernel.ask("job", job=1, prompt="A", max_tokens=5)
    kernel.quantum(1, 2)
    kernel.ask("job", job=2, prompt="A", max_tokens=5)
    kernel.engine.at[4] = lambda: kernel.send("cancel", job=1)
    kernel.send("run", job=2, tokens=100)
    assert kernel.rest()[1] == ran(1, 0, 0, "cancelled")
    assert kernel.rest()[1] == ran(2, 1, 5, "length")


def test_messages_that_cross_are_ignored(kernel: Kernel) -> None:
    """A yield without a quantum and a cancel of an ended job get no answer and do no harm."""
    kernel.ask("job", job=1, prompt="A", max_tokens=1)
    kernel.quantum(1, 10)
    kernel.send("cancel", job=1)
    kernel.send("yield")
    assert kernel.ask("job", job=2, prompt="A")["op"] == "admitted"


def test_what_comes_during_a_quantum_is_done_after_it_in_order(kernel: Kernel) -> None:
    """Jobs and runs that arrive while another job runs wait for its end; a cancel among them is not overtaken."""
    kernel.ask("job", job=1, prompt="A", max_tokens=4)

    def arrive() -> None:
        kernel.send("job", job=2, prompt="a", max_tokens=2)
        kernel.send("cancel", job=2)
        kernel.send("job", job=3, prompt="a", max_tokens=2)
        kernel.send("run", job=3, tokens=100)

    kernel.engine.at[2] = arrive
    assert kernel.quantum(1, 100) == ("BCDE", ran(1, 1, 4, "length"))
    assert [kernel.receive()["op"], kernel.receive()] == ["admitted", ran(2, 0, 0, "cancelled")]
    assert kernel.receive()["op"] == "admitted"
    assert kernel.rest() == ("bc", ran(3, 1, 2, "length"))


def test_a_context_is_read_only_as_far_as_it_is_new(kernel: Kernel) -> None:
    """A second prompt in a context costs only what it adds; one that differs costs from the first difference on."""
    kernel.send("open", context=5)
    kernel.ask("job", job=1, context=5, prompt="ABC", max_tokens=2)
    assert kernel.quantum(1, 100) == ("DE", ran(1, 3, 2, "length"))
    assert kernel.ask("job", job=2, context=5, prompt="ABCDEx", max_tokens=1)["cached_tokens"] == 4
    assert kernel.quantum(2, 100) == ("y", ran(2, 2, 1, "length"))
    assert kernel.ask("job", job=3, context=5, prompt="ABxz", max_tokens=1)["cached_tokens"] == 2
    assert kernel.quantum(3, 100) == ("{", ran(3, 2, 1, "length"))
    again = kernel.ask("job", job=4, context=5, prompt="ABxz", max_tokens=1)
    assert again["cached_tokens"] == 2  # the last two are fed again
    kernel.quantum(4, 100)
    kernel.send("close", context=5)
    assert kernel.ask("job", job=5, context=5, prompt="A")["code"] == "NOT_FOUND"


def test_a_context_serves_one_job_at_a_time(kernel: Kernel) -> None:
    """A second job is refused with the first one's number; closing the context cancels the first."""
    kernel.send("open", context=5)
    kernel.ask("job", job=1, context=5, prompt="A")
    error = kernel.ask("job", job=2, context=5, prompt="A")
    assert (error["code"], error["job"]) == ("CONFLICT", 2)
    assert "job 1" in error["detail"]
    assert kernel.ask("close", context=5) == ran(1, 0, 0, "cancelled")


def test_a_prompt_over_the_window_is_refused_with_both_numbers(kernel: Kernel) -> None:
    """A prompt must leave room for one token; an answer is cut to the room there is."""
    error = kernel.ask("job", job=1, prompt="a" * WINDOW)
    assert error["code"] == "TOO_LARGE"
    assert error["detail"].count(str(WINDOW)) == 2
    assert kernel.ask("job", job=2, prompt="a" * (WINDOW - 1), max_tokens=9)["max_tokens"] == 1


def test_an_empty_prompt_is_refused(kernel: Kernel) -> None:
    """A model without a token to begin with has nothing to go on from."""
    assert kernel.ask("job", job=1, prompt="")["code"] == "INVALID_ARGUMENT"


def test_a_failing_engine_fails_the_job_only(kernel: Kernel) -> None:
    """The job gets the engine's error and is gone; the next job works."""
    kernel.engine.fail_at = 2
    kernel.ask("job", job=1, prompt="A")
    text, error = kernel.quantum(1, 100)
    assert (text, error["about"], error["job"], error["code"]) == ("B", "run", 1, "INTERNAL")
    kernel.ask("job", job=2, prompt="A", max_tokens=2)
    assert kernel.quantum(2, 100) == ("BC", ran(2, 1, 2, "length"))


def test_an_unloaded_core_says_what_to_do(kernel: Kernel) -> None:
    """Unloading cancels what was under way; jobs and embeddings are then refused with a hint."""
    kernel.ask("job", job=1, prompt="A")
    assert [kernel.ask("unload"), kernel.receive()] == [ran(1, 0, 0, "cancelled"), {"op": "unloaded"}]
    for op, fields in (("job", {"prompt": "A"}), ("embed", {"texts": ["a"]})):
        error = kernel.ask(op, job=2, **fields)
        assert (error["code"], "llmosctl model pull" in error["hint"]) == ("UNAVAILABLE", True)


def test_shutdown_ends_even_a_running_core(kernel: Kernel) -> None:
    """Shutdown in the middle of a quantum ends it, and the pipe closes."""
    kernel.ask("job", job=1, prompt="A", max_tokens=300)
    kernel.engine.at[3] = lambda: kernel.send("shutdown")
    assert kernel.quantum(1, 1000)[1]["state"] == "more"
    with pytest.raises(PeerGone):
        kernel.receive()


def test_a_kernel_that_is_gone_ends_the_core(tmp_path: Path) -> None:
    """The pipe's end is the core's end, in the middle of a quantum too."""
    kernel = Kernel(tmp_path)
    kernel.ask("load", model="m", embedder=None, provider="cpu")
    kernel.ask("job", job=1, prompt="A", max_tokens=300)
    kernel.engine.at[3] = kernel.pipe.close
    with contextlib.suppress(PeerGone, OSError, ValueError):
        kernel.quantum(1, 1000)
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
