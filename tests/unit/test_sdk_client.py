"""The userland SDK and the agent host, on a double of the wire."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from llmos.userland.functions import describe
from llmos.userland.sdk import Client, Code, OpError


@pytest.fixture
def client(gate_double: Any) -> Iterator[Client]:
    with Client(gate_double.connect()) as made:
        yield made


def forecast(
    place: Annotated[str, "a town"],
    days: int = 3,
    unit: Literal["C", "F"] = "C",
    tags: list[str] | None = None,
) -> str:
    """The weather of the coming days.

    :param days: how many days ahead
    """
    return f"{place} {days} {unit} {tags}"


def test_function_schema() -> None:
    """A typed function's signature and docstring become the args of `fn.register`."""
    assert describe(forecast, utterances=["will it rain"]).registration() == {
        "name": "forecast",
        "summary": "The weather of the coming days.",
        "utterances": ["will it rain"],
        "effect": "exec",
        "args": {
            "place": {"type": "string", "description": "a town", "required": True},
            "days": {"type": "integer", "description": "how many days ahead", "default": 3},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
            "tags": {"type": "array"},
        },
    }


def _no_doc(x: int) -> None: ...


def _no_type(x) -> None:  # type: ignore[no-untyped-def]
    """Something."""


def _many(*x: int) -> None:
    """Something."""


def _strange(x: bytes) -> None:
    """Something."""


def _either(x: int | str) -> None:
    """Something."""


def _unknown(x: NeverImported) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Something."""


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (_unknown, "cannot be resolved"),
        (_no_doc, "no docstring"),
        (_no_type, "x has no type"),
        (_many, "cannot be passed by name"),
        (_strange, "no place in a schema"),
        (_either, "several types"),
    ],
)
def test_function_unfit(function: Callable[..., Any], complaint: str) -> None:
    """A signature that a schema cannot say is refused with what is wrong."""
    with pytest.raises(OpError, match=complaint) as caught:
        describe(function)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_generate_streams(client: Client, gate_double: Any) -> None:
    """A generation gives its pieces as they come, then the whole; only what was asked for is sent."""
    gate_double.chunks["llm.generate"] = [{"text": "Hel", "tokens": 1}, {"text": "lo", "tokens": 1}]
    gate_double.answers["llm.generate"] = lambda _: {
        "text": "Hello",
        "finish": "stop",
        "usage": {"prompt": 2, "cached": 0, "completion": 2},
    }
    made = client.generate(messages=[{"role": "user", "content": "hi"}], choices=["a", "b"], top_k=5)
    assert list(made) == ["Hel", "lo"]
    assert (made.text, made.finish, made.usage["completion"]) == ("Hello", "stop", 2)
    assert gate_double.wait_for("llm.generate") == {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 256,
        "temperature": 0.0,
        "choices": ["a", "b"],
        "top_k": 5,
    }


def test_a_context_is_used_and_closed(client: Client, gate_double: Any) -> None:
    """Append, generate, fork and close name the context; leaving the block closes it, even when the core has lost it."""
    answer = {"text": "Hi", "finish": "stop", "usage": {}}
    gate_double.answers |= {
        "llm.open": lambda _: {"context": 7},
        "llm.fork": lambda _: {"context": 8},
        "llm.append": lambda _: {"tokens": 5, "cached": 1},
        "llm.generate": lambda _: answer,
        "llm.close": lambda _: {},
    }
    with client.context(model="small") as chat:
        assert chat.append("rules") == {"tokens": 5, "cached": 1}
        assert chat.generate(max_tokens=3).text == "Hi"
        with chat.fork() as other:
            assert other.number == 8
    model = [(op, args) for op, args in gate_double.log if op.startswith("llm.")]
    assert model[:3] == [
        ("llm.open", {"model": "small"}),
        ("llm.append", {"context": 7, "prompt": "rules"}),
        ("llm.generate", {"context": 7, "max_tokens": 3, "temperature": 0.0}),
    ]
    assert [args["context"] for op, args in model if op == "llm.close"] == [8, 7]

    def gone(_: dict[str, Any]) -> dict[str, Any]:
        raise OpError(Code.NOT_FOUND, "no context 7 of yours")

    gate_double.answers["llm.close"] = gone
    with client.context():
        pass


def test_embed_batches(client: Client, gate_double: Any) -> None:
    """Any number of texts, of any length, fit the wire; the vectors come back in the order of the texts."""

    def answer(args: dict[str, Any]) -> dict[str, Any]:
        lengths = np.array([[len(text), 0] for text in args["texts"]], "<f4")
        return {"dim": 2, "vectors": lengths.tobytes()}

    gate_double.answers["llm.embed"] = answer
    texts = ["x" * n for n in range(90)] + ["é" * 9000] * 5
    vectors = client.embed(texts)
    assert vectors.shape == (95, 2)
    assert vectors.dtype == np.float32
    assert vectors[:, 0].tolist() == [float(min(len(text), 8000)) for text in texts]
    assert client.embed([]).shape == (0, 384)


def test_spawn_waits(client: Client, gate_double: Any) -> None:
    """Spawning gives the pid; waiting gives what the agent emits and its result."""
    gate_double.answers["proc.spawn"] = lambda args: (
        {"pid": 7, "result": {"text": "done"}} if args["wait"] else {"pid": 7}
    )
    gate_double.chunks["proc.spawn"] = [{"stage": "looking"}]
    assert client.spawn("assistant", {"question": "?"}) == 7
    run = client.spawn("assistant", allow=["llm.generate"], wait=True)
    assert list(run) == [{"stage": "looking"}]
    assert run.result["result"] == {"text": "done"}
    assert gate_double.log[-1] == (
        "proc.spawn",
        {"program": "assistant", "args": {}, "wait": True, "allow": ["llm.generate"]},
    )


def test_functions_are_served(client: Client, gate_double: Any) -> None:
    """A lent function is registered, called with checked arguments, and its failures are answered."""
    gate_double.answers["fn.register"] = lambda args: {"op": f"app.{args['name']}"}

    client.function(forecast)

    @client.function(name="broken")
    def fails() -> None:
        """Never works."""
        raise ValueError("private")

    @client.function
    def stop() -> dict[str, Any]:
        """Ends this."""
        return {"bye": True}

    thread = threading.Thread(target=client.serve)
    thread.start()
    try:
        assert gate_double.wait_for("fn.register")["name"] == "forecast"
        assert gate_double.call("app.forecast", {"place": "Bern"}) == (True, {"result": "Bern 3 C None"})
        ok, error = gate_double.call("app.forecast", {"place": "Bern", "unit": "K"})
        assert (ok, error["code"]) == (False, "INVALID_ARGUMENT")
        ok, error = gate_double.call("app.broken")
        assert (ok, error["code"], error["detail"]) == (False, "INTERNAL", "app.broken: ValueError")
        assert gate_double.call("app.stop") == (True, {"bye": True})
    finally:
        client.close()
        thread.join(5)
    assert not thread.is_alive()


AGENT_MANIFEST = """
name = "probe"
version = "1"
summary = "An agent to test its host"
entry = "probe_agent:{function}"
[args.who]
type = "string"
required = true
[args.times]
type = "integer"
default = 2
"""

AGENT = """
from llmos.userland.agent import Agent

def greet(agent: Agent) -> dict:
    agent.emit(stage="greeting", zone=str(agent.now().tzinfo))
    return {"text": f"hello {agent.args['who']} " * agent.args["times"]}

def crash(agent: Agent) -> dict:
    raise ValueError("private words")
"""


def _run_agent(
    gate_double: Any, tmp_path: Path, function: str, args: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "agent.toml").write_text(AGENT_MANIFEST.format(function=function))
    (tmp_path / "probe_agent.py").write_text(AGENT)
    config = {
        "kind": "agent",
        "name": "probe",
        "manifest": str(tmp_path / "agent.toml"),
        "state": str(tmp_path),
        "home": "/home/user",
        "args": args,
        "tz": "Asia/Tokyo",
    }
    env = {
        **os.environ,
        "LLMOS_BUS": str(gate_double.path),
        "LLMOS_TOKEN": "t",
        "LLMOS_CONFIG": json.dumps(config),
        "PYTHONPATH": str(tmp_path),
    }
    command = [sys.executable, "-m", "llmos.userland.agent"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=False)


def test_agent_returns(gate_double: Any, tmp_path: Path) -> None:
    """An agent gets its arguments with defaults, tells how it is doing, and its return value is its result."""
    done = _run_agent(gate_double, tmp_path, "greet", {"who": "you"})
    assert (done.returncode, done.stderr) == (0, "")
    assert gate_double.wait_for("proc.emit") == {"data": {"stage": "greeting", "zone": "Asia/Tokyo"}}
    assert gate_double.wait_for("proc.exit") == {"result": {"text": "hello you hello you "}}
    assert [op for op, _ in gate_double.log] == ["sys.hello", "sys.ping", "sys.ready", "proc.emit", "proc.exit"]


@pytest.mark.parametrize(
    ("function", "args", "code", "detail"),
    [
        ("crash", {"who": "you"}, "INTERNAL", "probe: ValueError"),
        ("greet", {}, "INVALID_ARGUMENT", "argument who: missing"),
        ("nothing", {"who": "you"}, "INVALID_ARGUMENT", "probe_agent:nothing is not a function"),
    ],
)
def test_agent_failures_are_told(
    gate_double: Any, tmp_path: Path, function: str, args: dict[str, Any], code: str, detail: str
) -> None:
    """However an agent fails, whoever waits gets a code and a line, and the private part stays in its log."""
    done = _run_agent(gate_double, tmp_path, function, args)
    assert done.returncode == 1
    error = gate_double.wait_for("proc.exit")["error"]
    assert (error["code"], error["detail"]) == (code, detail)
    assert json.loads(done.stderr.strip().splitlines()[-1])["event"] == "agent.failed"
