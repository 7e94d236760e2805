"""kill -9 of every part while it works: the caller hears of it, the system goes on, the part comes back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.connection import Connection
from llmos.ipc.errors import Code, OpError
from tests.system.conftest import System

SOON = 2.0
"""Seconds within which a caller hears of a death, and within which the part is back."""


def kill(system: System, name: str) -> None:
    """As the out-of-memory killer would."""
    os.kill(system.process_named(name)["os_pid"], signal.SIGKILL)


def in_background(action: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run a call that is going to fail; what it came to, and when."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(action())
        except OpError as error:
            outcome.append(error)
        outcome.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def works_again(call: Callable[[], Any]) -> float:
    """Seconds until `call` works."""
    started = time.monotonic()
    while time.monotonic() - started < 10:
        try:
            call()
        except OpError:
            time.sleep(0.02)
        else:
            return time.monotonic() - started
    pytest.fail("it did not come back")


def generate(connection: Connection, **more: Any) -> dict[str, Any]:
    """Some tokens."""
    return connection.call("llm.generate", {"prompt": "Once upon a time", "max_tokens": 8, **more}, timeout=30)


@pytest.mark.model
def test_the_core_dies_in_the_middle_of_a_generation(with_model: System) -> None:
    """PEER_DIED within two seconds, and the model is back within about its load time; the bus never stopped."""
    connection = with_model.connect()
    thread, outcome = in_background(lambda: generate(connection, max_tokens=2000))
    time.sleep(0.5)
    died = time.monotonic()
    kill(with_model, "core")
    assert with_model.connect().call("sys.ping", timeout=1) == {}
    thread.join(10)
    error, heard = outcome
    assert error.code is Code.PEER_DIED
    assert heard - died < SOON
    assert with_model.until(lambda: with_model.process_named("core")["os_pid"] != 0, SOON)
    works_again(lambda: generate(connection))


def test_the_gate_dies_while_calls_are_in_flight(running: System) -> None:
    """Every caller hears PEER_DIED, drivers reconnect by themselves, and the next call works."""
    connection = running.connect()
    owner = running.connect()
    owner.call("fn.register", {"name": "slow", "summary": "Takes its time"})
    thread, outcome = in_background(lambda: connection.call("app.slow", {}, timeout=30))
    assert owner.next_call(timeout=5) is not None
    died = time.monotonic()
    kill(running, "gate")
    thread.join(10)
    error, heard = outcome
    assert error.code is Code.PEER_DIED
    assert heard - died < SOON
    assert works_again(lambda: connection.call("sys.ping", timeout=1)) < SOON
    assert works_again(lambda: connection.call("browser_history.sources", {}, timeout=2)) < SOON
    row = running.process_named("browser_history")
    assert (row["state"], row["restarts"]) == ("ready", 0), "the driver need not die with the gate"


def test_a_driver_dies_while_it_serves(running: System) -> None:
    """Its callers hear PEER_DIED, others notice nothing, it is back within two seconds, and the next call works."""
    connection = running.connect()
    before = running.process_named("browser_history")
    os.kill(before["os_pid"], signal.SIGSTOP)  # it will not answer before it dies
    thread, outcome = in_background(lambda: connection.call("browser_history.sources", {}, timeout=30))
    time.sleep(0.2)
    died = time.monotonic()
    os.kill(before["os_pid"], signal.SIGKILL)
    thread.join(10)
    error, heard = outcome
    assert error.code is Code.PEER_DIED
    assert heard - died < SOON
    connection.call("browser_history.sources", {}, timeout=5)  # waits for it to be ready again
    assert time.monotonic() - died < SOON + 1
    after = running.process_named("browser_history")
    assert after["restarts"] == 1
    assert after["os_pid"] != before["os_pid"]


def test_a_driver_that_keeps_dying_is_given_up_with_a_reason(running: System) -> None:
    """After a handful of crashes in a row it is left down; calls to it say why, and the others serve."""
    connection = running.connect()

    def dead() -> bool:
        row = running.process_named("filesystem")
        if row["os_pid"]:
            os.kill(row["os_pid"], signal.SIGKILL)
        return bool(row["state"] == "failed")

    running.until(dead, 60)
    with pytest.raises(OpError) as caught:
        connection.call("filesystem.list", {"path": "/"}, timeout=5)
    assert caught.value.code is Code.UNAVAILABLE
    assert "in a row" in caught.value.detail
    assert connection.call("browser_history.sources", {}, timeout=5)


def test_the_kernel_dies_and_takes_everything_with_it(system: System) -> None:
    """Nothing that it started outlives it, and the next boot is clean."""
    system.start()
    pids = [row["os_pid"] for row in system.connect().call("proc.list")["processes"]]
    system.stop(kill=True)
    system.until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], 5)
    assert system.start()["ready"]


def test_a_call_waits_for_the_jail_that_shows_what_was_granted(system: System) -> None:
    """A driver that gets ready just before it is started again for a grant is not handed what waited for that."""
    system.params = {"REJAIL_S": 2.0}
    (system.home / "notes").mkdir()
    (system.home / "notes" / "a.txt").write_text("a")
    assert system.start()["ready"], system.log()
    user = system.connect()
    user.call("proc.kill", {"pid": system.process_named("filesystem")["pid"], "force": True})
    system.until(lambda: system.process_named("filesystem")["state"] == "starting")
    user.call("perm.grant", {"holder": "filesystem", "cap": f"fs.read(path={system.home / 'notes'})"})
    found = user.call("filesystem.list", {"path": str(system.home / "notes")})
    assert "a.txt" in str(found["items"])


def test_more_drivers_than_there_is_room_for_do_not_keep_the_system_down(system: System) -> None:
    """A package can bring hundreds: those that do not fit are left out, and it says so."""
    system.params["MAX_PROCESSES"] = 2
    assert system.start()["ready"], system.log()
    drivers = system.connect().call("driver.list")["drivers"]
    assert len([row for row in drivers if row["state"] == "ready"]) == 1
    assert any(row["state"] == "off" for row in drivers)
    assert "driver.no_room" in system.log()
