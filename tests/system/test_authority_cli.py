"""The user's word on a real system: an app's call waits, is shown, approved at the terminal or on the desktop, undone, and logged."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from llmos.ipc.app_key import AppKey
from llmos.userland.sdk import Client, Code, OpError
from tests.system.conftest import System
from tests.unit.desktop_doubles import Screen, session_bus

LLMOSCTL = [sys.executable, "-m", "llmos.userland.cli"]


class User:
    """Somebody at the terminal of a system."""

    def __init__(self, system: System) -> None:
        self.system = system

    def run(self, *argv: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*LLMOSCTL, *argv],
            env=self.system.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, done
        return done

    def ask(self, *argv: str) -> Any:
        return json.loads(self.run(*argv, "-o", "json").stdout)


@pytest.fixture
def user(running: System) -> User:
    """With a folder that the filesystem driver may change."""
    (running.home / "Notes").mkdir()
    made = User(running)
    for right in ("fs.read", "fs.write"):
        made.run("perm", "grant", "filesystem", f"{right}(path=~/Notes)", "--reason", "for this test")
    return made


class Call:
    """An app's call, which waits for the user in a thread of its own."""

    def __init__(self, user: User, **args: Any) -> None:
        self.ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        key = user.system.root / "notes.key"
        user.run("app", "add", "notes", "--allow", "filesystem.write(approval=each)", "--yes", "--out", str(key))
        self._client = Client(key=AppKey.load(key))
        self._thread = threading.Thread(target=self._run, args=(args,))
        self._thread.start()
        rows: list[dict[str, Any]] = user.system.until(lambda: user.ask("approval", "ls"))
        self.id = str(rows[0]["id"])

    def _run(self, args: dict[str, Any]) -> None:
        try:
            self.ended.put(self._client.call("filesystem.write", args, timeout=50))
        except OpError as error:
            self.ended.put(error)

    def end(self) -> None:
        self._client.close()
        self._thread.join()


@pytest.fixture
def call(user: User) -> Iterator[Call]:
    made = Call(user, path=str(user.system.home / "Notes" / "a.txt"), content="one\x1b[2J\ntwo\n")
    yield made
    made.end()


def test_approved_undone_and_logged(user: User, call: Call) -> None:
    """The call waits until it is approved, what it did is undone by its number, and all of it stands in a log that is whole."""
    file = user.system.home / "Notes" / "a.txt"
    assert user.run("perm", "check", "app:notes", "filesystem.write", f"path={file}", "content=x", status=5)
    shown = user.run("approval", "show", call.id).stdout
    assert f'path    = "{file}"' in shown
    assert 'content = "one\\u001b[2J\\ntwo\\n"' in shown
    assert "  │ +two" in shown
    assert "\x1b" not in shown
    user.run("approve", call.id, status=5)
    assert not file.exists()
    user.run("approve", call.id, "--yes")
    undo = call.ended.get(timeout=20)["undo"]
    assert file.read_text().endswith("two\n")
    user.run("approve", call.id, "--yes", status=8)

    assert [row["id"] for row in user.ask("undo")] == [undo]
    user.run("undo", undo, status=5)
    user.run("undo", undo, "--yes")
    assert not file.exists()

    rows = user.ask("audit", "ls", "--since", "1 hour ago", "--holder", "app:notes")
    assert ("effect", "filesystem.write") in {(row["kind"], row["op"]) for row in rows}
    user.run("audit", "verify")
    log = user.system.root / "audit.jsonl"
    user.run("audit", "export", str(log))
    assert json.loads(log.read_text().splitlines()[-1])["head"] >= rows[-1]["seq"]
    assert "let in as an app" in user.run("why", "app:notes").stdout


def test_denied_with_a_reason(user: User, call: Call) -> None:
    """The program is told no, and the user's words; nothing was done."""
    user.run("deny", call.id, "--reason", "use the other folder")
    refused = call.ended.get(timeout=20)
    assert refused.code is Code.DENIED
    assert "use the other folder" in refused.detail
    assert list((user.system.home / "Notes").iterdir()) == []


def test_the_desktop_hears_on_after_the_gate_died(user: User) -> None:
    """When the gate restarts the notifier subscribes again, and shows what comes then."""
    with session_bus() as address, contextlib.ExitStack() as stack:
        screen = Screen(address)
        stack.callback(screen.end)
        environment = {**os.environ, **user.system.environment, "DBUS_SESSION_BUS_ADDRESS": address}
        notifier = subprocess.Popen([sys.executable, "-m", "llmos.userland.notifier"], env=environment)
        stack.callback(notifier.wait, 20)
        stack.callback(notifier.terminate)
        before = Call(user, path=str(user.system.home / "Notes" / "a.txt"), content="x")
        stack.callback(before.end)
        number, _ = screen.next()
        user.run("deny", before.id)
        assert screen.closed.get(timeout=10) == number

        gate = user.system.process_named("gate")["os_pid"]
        os.kill(gate, signal.SIGKILL)
        user.system.until(lambda: _gate_but(user.system, gate))
        after = Call(user, path=str(user.system.home / "Notes" / "b.txt"), content="x")
        stack.callback(after.end)
        assert screen.next()[1][3] == "app:notes asks: filesystem.write"
        user.run("deny", after.id)


def _gate_but(system: System, old: int) -> bool:
    try:
        return bool(system.process_named("gate")["os_pid"] not in (0, old))
    except (OpError, StopIteration):
        return False


def test_approved_on_the_desktop(user: User, call: Call) -> None:
    """A click lets the very call go out; what is settled at the terminal leaves the screen by itself, and so does all when it ends."""
    with session_bus() as address, contextlib.ExitStack() as stack:
        screen = Screen(address)
        stack.callback(screen.end)
        environment = {**os.environ, **user.system.environment, "DBUS_SESSION_BUS_ADDRESS": address}
        notifier = subprocess.Popen([sys.executable, "-m", "llmos.userland.notifier"], env=environment)
        stack.callback(notifier.wait, 20)
        stack.callback(notifier.terminate)
        number, shown = screen.next()
        assert shown[3] == "app:notes asks: filesystem.write"
        assert "two" not in shown[4]
        screen.signal("ActionInvoked", "us", number, "once")
        assert call.ended.get(timeout=20)["created"]
        assert screen.closed.get(timeout=10) == number

        other = Call(user, path=str(user.system.home / "Notes" / "b.txt"), content="x")
        stack.callback(other.end)
        number, _ = screen.next()
        user.run("deny", other.id)
        assert screen.closed.get(timeout=10) == number
        user.system.stop()
        assert notifier.wait(20) == 0
