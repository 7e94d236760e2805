"""What goes wrong with the model ends in its own error, and nobody else notices. With the real weights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.app_key import AppKey
from llmos.ipc.connection import Connection, Stream
from llmos.ipc.errors import Code, OpError
from tests.system.conftest import STORE, System
from tests.system.test_apps import let_in

pytestmark = pytest.mark.model

STORY = "Once upon a time, in a village by the sea,"
LONG = "The tide came in and the tide went out. " * 180


class Ended(threading.Thread):
    """Reads a stream to its end: its text, and its result or its error."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self.text = ""
        self.result: dict[str, Any] = {}
        self.error: OpError | None = None
        self.start()

    def run(self) -> None:
        try:
            for chunk in self.stream:
                self.text += chunk["text"]
            self.result = self.stream.result
        except OpError as error:
            self.error = error

    def code(self) -> Code | None:
        self.join(120)
        assert not self.is_alive()
        return self.error.code if self.error is not None else None


def started(connection: Connection, tokens: int = 60, **args: Any) -> Ended:
    return Ended(connection.stream("llm.generate", {"prompt": STORY, "max_tokens": tokens, **args}, timeout=120))


def failure(connection: Connection, op: str, **args: Any) -> OpError:
    with pytest.raises(OpError) as caught:
        connection.call(op, args, timeout=120)
    return caught.value


def await_model(system: System, connection: Connection) -> None:
    system.until(lambda: connection.call("sys.status")["model"]["state"] == "ready", 60)


@pytest.fixture
def own(system: System) -> System:
    """A system of its own with a store of its own: the real models by links, and room for others beside them."""
    store = system.root / "store"
    store.mkdir()
    for name in ("smollm2-135m", "minilm"):
        (store / name).symlink_to(STORE / name)
    system.environment["LLMOS_MODELS"] = str(store)
    return system


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_cancel_acts_in_every_phase_and_the_others_go_on(with_model: System, phase: str) -> None:
    """CANCELLED at once; the answer of the one beside it is what it is alone."""
    beside, connection = with_model.connect(), with_model.connect()
    alone = started(beside, 30)
    assert alone.code() is None
    other = started(beside, 30)
    prompt = LONG + str(time.time()) if phase == "prefill" else STORY
    stream = connection.stream("llm.generate", {"prompt": f"{phase} {prompt}", "max_tokens": 3000}, timeout=120)
    if phase == "decode":
        next(stream)
    else:
        time.sleep(0.3)
    at = time.monotonic()
    stream.cancel()
    with pytest.raises(OpError) as caught:
        stream.finish()
    assert caught.value.code is Code.CANCELLED
    assert time.monotonic() - at < 5
    assert other.code() is None
    assert other.text == alone.text
    with_model.until(
        lambda: not any(sum(row[s] for s in ("new", "prefill", "decode", "parked")) for row in _jobs(beside))
    )


def _jobs(connection: Connection) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = connection.call("llm.stats")["jobs"]
    return rows


def test_a_context_whose_owner_died_is_gone_and_its_job_with_it(with_model: System) -> None:
    """The program in the middle of an answer disappears; what another is told does not change."""
    user, gone = with_model.connect(), with_model.connect()
    before = user.call("llm.stats")
    alone = started(user, 30)
    assert alone.code() is None
    number = gone.call("llm.open")["context"]
    stream = gone.stream("llm.generate", {"prompt": STORY, "context": number, "max_tokens": 3000}, timeout=120)
    next(stream)
    other = started(user, 30)
    gone.close()
    assert other.code() is None
    assert other.text == alone.text
    with_model.until(lambda: user.call("llm.stats")["contexts"] == before["contexts"])
    with_model.until(lambda: not any(row["decode"] for row in _jobs(user)))


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": "[^\\s\\S]"},
        {"schema": {"allOf": [{"type": "string"}, {"type": "integer"}]}},
        {"schema": {"type": "string", "minLength": 5, "maxLength": 2}},
    ],
)
def test_a_grammar_that_nothing_satisfies_is_told_and_harms_nobody(
    with_model: System, constraint: dict[str, Any]
) -> None:
    """An error of its own, while the text beside it comes out as ever."""
    user = with_model.connect()
    alone = started(user, 20)
    assert alone.code() is None
    other = started(user, 20)
    error = failure(with_model.connect(), "llm.generate", prompt="x", max_tokens=50, **constraint)
    assert error.code in (Code.INVALID_ARGUMENT, Code.BUDGET)
    assert other.code() is None
    assert other.text == alone.text


def test_a_prompt_over_the_window_says_so_and_the_next_one_is_served(with_model: System) -> None:
    """TOO_LARGE, with both sizes."""
    user = with_model.connect()
    error = failure(user, "llm.generate", prompt="word " * 9000)
    assert error.code is Code.TOO_LARGE
    assert "8192" in error.detail
    assert started(user, 3).code() is None


FORCED = {
    "type": "object",
    "properties": {f"whether_the_light_in_the_room_number_{n}_is_on": {"type": "boolean"} for n in range(12)},
    "required": [f"whether_the_light_in_the_room_number_{n}_is_on" for n in range(12)],
    "additionalProperties": False,
}
"""One decision, then a dozen tokens without one."""


@pytest.mark.parametrize("constraint", [{}, {"schema": FORCED}], ids=["free", "forced"])
def test_a_quota_that_runs_out_mid_answer(with_model: System, constraint: dict[str, Any]) -> None:
    """What it paid for was streamed, then BUDGET, and not one token more; the user's own job goes on."""
    user = with_model.connect()
    name = "forced" if constraint else "free"
    key = let_in(with_model, name, "llm.generate(tokens=60)")
    with contextlib.closing(Connection(key=AppKey.load(key))) as app:
        other = started(user, 60)
        poor = started(app, 500, **constraint)
        assert poor.code() is Code.BUDGET
        assert poor.text
        assert other.code() is None
        assert failure(app, "llm.generate", prompt="x", max_tokens=1).code is Code.BUDGET
    lines = with_model.log().splitlines()
    used = json.loads(next(line for line in lines if '"job.done"' in line and f'"app:{name}"' in line))
    assert used["prefill"] + used["decode"] == 60
    assert used["err"] == "BUDGET"


def test_a_core_killed_mid_batch(own: System) -> None:
    """Every job of it ends with PEER_DIED, its contexts say so, and all models are back without being asked for."""
    own.start()
    user = own.connect()
    await_model(own, user)
    own.until(lambda: all(row["state"] == "ready" for row in user.call("llm.stats")["models"]), 60)
    number = user.call("llm.open")["context"]
    batch = [started(own.connect(), 3000, prompt=f"{STORY} number {n}") for n in range(3)]
    batch.append(started(user, 3000, context=number))
    own.until(lambda: all(one.text for one in batch))
    os.kill(own.process_named("core")["os_pid"], signal.SIGKILL)
    assert [one.code() for one in batch] == [Code.PEER_DIED] * 4
    assert failure(user, "llm.generate", prompt="x", context=number).code is Code.PEER_DIED
    user.call("llm.close", {"context": number})
    waiting = started(user, 5)
    cancelled = user.stream("llm.generate", {"prompt": STORY}, timeout=60)
    cancelled.cancel()
    with pytest.raises(OpError) as caught:
        cancelled.finish()
    assert caught.value.code is Code.CANCELLED
    assert waiting.code() is None
    assert user.call("llm.embed", {"texts": ["a"]}, timeout=60)["dim"] == 384
    assert len(user.call("llm.stats")["models"]) == 2


def test_a_broken_model_fails_alone(own: System) -> None:
    """Loading it says why, and which; the default answers meanwhile and afterwards."""
    own.start()
    user = own.connect()
    await_model(own, user)
    store = Path(own.environment["LLMOS_MODELS"])
    (store / "hollow").mkdir()
    (store / "hollow" / "genai_config.json").write_text("{}")
    shutil.copytree(STORE / "smollm2-135m", store / "torn")
    os.truncate(store / "torn" / "model.onnx.data", 1 << 20)
    answer = started(user, 20)
    for name in ("hollow", "torn"):
        error = failure(user, "llm.load", model=name)
        assert (error.code, name in error.detail) == (Code.UNAVAILABLE, True)
        assert failure(user, "llm.generate", prompt="x", model=name).code is Code.UNAVAILABLE
    assert failure(user, "llm.load", model="missing").code is Code.NOT_FOUND
    assert answer.code() is None
    assert started(user, 3).code() is None
    states = {row["name"]: row["state"] for row in user.call("llm.stats")["models"]}
    assert states == {"smollm2-135m": "ready", "minilm": "ready", "hollow": "failed", "torn": "failed"}


def test_models_share_one_budget_of_memory(own: System) -> None:
    """A second one is loaded beside the first; for a third the idle one that was used longest ago goes, and is named."""
    store = Path(own.environment["LLMOS_MODELS"])
    for name in ("second", "third"):
        (store / name).symlink_to(STORE / "smollm2-135m")
    own.environment |= {"LLMOS_MODEL_MEMORY": "656M", "LLMOS_KV_MEMORY": "256M"}
    own.start()
    user = own.connect()
    await_model(own, user)
    assert user.call("llm.load", {"model": "second"}, timeout=60)["unloaded"] == []
    assert started(user, 5, model="second").code() is None
    loaded = user.call("llm.load", {"model": "third"}, timeout=60)
    assert loaded["unloaded"] == ["second"]
    assert loaded["model"]["name"] == "third"
    assert failure(user, "llm.generate", prompt="x", model="second").code is Code.UNAVAILABLE
    user.call("llm.open")
    number = user.call("llm.open", {"model": "third"})["context"]
    error = failure(user, "llm.load", model="second")
    assert (error.code, "third" in error.detail) == (Code.BUSY, True)
    user.call("llm.unload", {"model": "third"}, timeout=60)
    assert failure(user, "llm.generate", prompt="x", context=number).code is Code.NOT_FOUND
    assert user.call("llm.load", {"model": "second"}, timeout=60)["unloaded"] == []
    user.call("llm.unload", {"model": "smollm2-135m"}, timeout=60)
    assert user.call("sys.status")["model"]["state"] == "unloaded"
    assert started(user, 3).code() is None, "the default comes back when it is asked for"
