"""Agents: born with what they were handed, gone with who waits for them, and never more than a process of their own."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from tests.system.conftest import System

pytestmark = pytest.mark.model

QUESTION = {"question": "what did I read about lighthouses last week?"}


def agent_row(system: System) -> dict[str, Any] | None:
    """The agent that runs now."""
    rows = system.connect().call("proc.list")["processes"]
    return next((row for row in rows if row["kind"] == "agent"), None)


def test_an_agent_reports_and_gives_its_result(with_model: System) -> None:
    """Its progress arrives as chunks, its result as the reply, and nothing of it is left."""
    stream = with_model.connect().stream(
        "proc.spawn", {"program": "assistant", "args": QUESTION, "wait": True}, timeout=60
    )
    chunks = list(stream)
    assert chunks
    assert stream.result["result"]["answer"]
    with_model.until(lambda: agent_row(with_model) is None)
    state = Path(with_model.environment["LLMOS_HOME"]) / "agents"
    with_model.until(lambda: len(left := list(state.iterdir())) <= params.SPARES and not any(map(os.listdir, left)), 5)


def test_an_agent_that_is_killed_is_an_error_at_once(with_model: System) -> None:
    """Whoever waits hears PEER_DIED within two seconds, and the next agent works."""
    connection = with_model.connect()
    heard: list[Any] = []

    def wait() -> None:
        try:
            connection.call("proc.spawn", {"program": "assistant", "args": QUESTION, "wait": True}, timeout=60)
        except OpError as error:
            heard.extend([error, time.monotonic()])

    thread = threading.Thread(target=wait)
    thread.start()
    row = with_model.until(lambda: (found := agent_row(with_model)) and found["state"] == "ready" and found)
    died = time.monotonic()
    os.kill(row["os_pid"], signal.SIGKILL)
    thread.join(10)
    assert heard[0].code is Code.PEER_DIED
    assert heard[1] - died < 2
    again = connection.call("proc.spawn", {"program": "assistant", "args": QUESTION, "wait": True}, timeout=60)
    assert again["result"]["answer"]


def test_nobody_waiting_ends_the_agent(with_model: System) -> None:
    """A caller that cancels takes its agent along."""
    stream = with_model.connect().stream(
        "proc.spawn", {"program": "assistant", "args": QUESTION, "wait": True}, timeout=60
    )
    with_model.until(lambda: agent_row(with_model))
    stream.cancel()
    with pytest.raises(OpError):
        stream.finish()
    with_model.until(lambda: agent_row(with_model) is None, 5)


def test_an_agent_gets_what_it_is_handed_and_no_more(with_model: System) -> None:
    """Without the right to embed, or to read, it is denied by name; and it cannot be handed what is not a capability."""
    connection = with_model.connect()
    with pytest.raises(OpError) as caught:
        connection.call("proc.spawn", {"program": "assistant", "args": QUESTION, "allow": [], "wait": True}, timeout=60)
    assert caught.value.code is Code.DENIED
    assert "llm.embed" in caught.value.detail
    with pytest.raises(OpError) as caught:
        connection.call("proc.spawn", {"program": "assistant", "args": QUESTION, "allow": ["everything"]})
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("args", [{}, {"question": 5}, {"question": "x" * 5000}, {"question": "x", "colour": "red"}])
def test_an_agents_arguments_are_checked_before_it_starts(with_model: System, args: dict[str, Any]) -> None:
    """Missing, ill-typed, too long or unknown: refused by name, and no process is made."""
    with_model.until(lambda: agent_row(with_model) is None)
    with pytest.raises(OpError) as caught:
        with_model.connect().call("proc.spawn", {"program": "assistant", "args": args})
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "argument" in caught.value.detail
    assert agent_row(with_model) is None
