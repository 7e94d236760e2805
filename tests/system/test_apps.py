"""Programs from outside: what they are granted they may, and the moment it is taken back they may not."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmos.ipc.app_key import AppKey
from llmos.ipc.connection import Connection
from llmos.ipc.errors import Code, OpError
from tests.system.conftest import System

EXAMPLES = Path(__file__).parents[2] / "userland" / "examples"
LLMOSCTL = [sys.executable, "-m", "llmos.userland.cli"]


def let_in(system: System, name: str, *allow: str) -> Path:
    """The key file that the command writes for a new app."""
    key = system.root / f"{name}.toml"
    rights = [word for cap in allow for word in ("--allow", cap)]
    command = [*LLMOSCTL, "app", "add", name, *rights, "--out", str(key), "-y"]
    subprocess.run(command, env=system.environment, check=True, capture_output=True, timeout=30)
    return key


@pytest.fixture
def connect(shared: System) -> Iterator[Callable[[Path], Connection]]:
    """Connections with a key file; closed at the end."""
    made: list[Connection] = []

    def connect(key: Path) -> Connection:
        made.append(Connection(key=AppKey.load(key)))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


class Program:
    """An example as a process, with what it printed so far."""

    def __init__(self, system: System, name: str, key: Path) -> None:
        command = [sys.executable, str(EXAMPLES / name), str(key)]
        environment = {**system.environment, "LLMOS_APP_KEY": str(key)}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def said(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    def close(self) -> int:
        """Its exit status, once it has ended; it is ended if it has not by then."""
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@pytest.mark.parametrize("example", ["plain_app.py", "sdk_app.py"])
def test_the_examples_listen_until_their_key_is_taken_back(shared: System, example: str) -> None:
    """Thirty lines of plain pyzmq do what the SDK does; removing the app ends both at once, though they only listen."""
    name = example.removesuffix(".py")
    program = Program(shared, example, let_in(shared, name, "bus.subscribe(topic=proc.*)"))
    try:
        shared.until(lambda: program.said(f"app:{name}"))
        shared.until(lambda: shared.connect().call("apps.list")["apps"][-1]["connections"] == 1)
        before = len(program.lines)
        pid = shared.process_named("filesystem")["pid"]
        shared.connect().call("proc.kill", {"pid": pid})
        shared.until(lambda: program.said("proc.started") and len(program.lines) > before)
        shared.connect().call("apps.remove", {"name": name})
        assert program.close() != 0
        assert program.said("DENIED")
    finally:
        program.close()


def test_an_app_hears_its_topics_and_no_others(shared: System, connect: Callable[[Path], Connection]) -> None:
    """By pattern: `weather.*` is neither `weather` nor `weatherman.x`, and what was not granted is refused by name."""
    app = connect(let_in(shared, "vane", "bus.subscribe(topic=weather.*)", "bus.publish(topic=vane.*)"))
    events = app.subscribe("weather.*")
    for topic in ("*", "proc.*", "weather", "approval.*"):
        with pytest.raises(OpError) as caught:
            app.subscribe(topic)
        assert caught.value.code is Code.DENIED
        assert "bus.subscribe" in str(caught.value.hint)
    user = shared.connect()
    for topic in ("weather", "weatherman.x", "weather.now"):
        user.call("bus.publish", {"topic": topic, "data": {}})
    assert next(events).topic == "weather.now"
    assert app.call("bus.publish", {"topic": "vane.turned"}) == {"receivers": 0}
    with pytest.raises(OpError):
        app.call("bus.publish", {"topic": "weather.now"})


def test_a_revoked_topic_is_silent_at_once(shared: System, connect: Callable[[Path], Connection]) -> None:
    """What is published after the grant was taken back does not arrive, though the connection lives."""
    app = connect(let_in(shared, "ear", "bus.subscribe(topic=news.*)"))
    events = app.subscribe("news.*")
    user = shared.connect()
    user.call("bus.publish", {"topic": "news.one", "data": {}})
    assert next(events).topic == "news.one"
    (cap,) = (cap for cap in user.call("perm.list", {"holder": "app:ear"})["caps"] if "news" in cap["cap"])
    user.call("perm.revoke", {"id": cap["id"]})
    assert user.call("bus.publish", {"topic": "news.two", "data": {}}) == {"receivers": 0}
    with pytest.raises(OpError) as caught:
        app.subscribe("news.*")
    assert caught.value.code is Code.DENIED


def test_what_an_app_says_is_a_strangers_word(shared: System, connect: Callable[[Path], Connection]) -> None:
    """Its events are labelled untrusted, until the user grants it `label.trust`."""
    app = connect(let_in(shared, "bridge", "bus.publish(topic=bridge.*)"))
    events = shared.connect().subscribe("bridge.*")
    app.call("bus.publish", {"topic": "bridge.in"})
    assert next(events).label == ["u", "app:bridge"]
    granted = shared.connect().call("perm.grant", {"holder": "app:bridge", "cap": "label.trust"})
    app.call("bus.publish", {"topic": "bridge.in"})
    assert next(events).label == []
    shared.connect().call("perm.revoke", {"id": granted["id"]})
    app.call("bus.publish", {"topic": "bridge.in"})
    assert next(events).label == ["u", "app:bridge"]


def test_a_subscriber_that_does_not_read_is_told_what_it_lost(
    shared: System, connect: Callable[[Path], Connection]
) -> None:
    """Its mailbox is bounded, the drops are counted and shown, and the others hear everything."""
    slow = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "plain_app.py"), str(let_in(shared, "slow", "bus.subscribe(topic=proc.*)"))],
        env=shared.environment,
        stdout=subprocess.DEVNULL,
    )
    user, heard = shared.connect(), shared.connect().subscribe("proc.burst")
    try:
        shared.until(lambda: _dropped(user, "app:slow") == 0)
        slow.send_signal(19)  # SIGSTOP
        sent = 0
        end = time.monotonic() + 60
        while _dropped(user, "app:slow") == 0 and time.monotonic() < end:
            for _ in range(50):
                user.call("bus.publish", {"topic": "proc.burst", "data": {"n": sent, "fill": "x" * 30_000}})
                assert next(heard).data["n"] == sent
                sent += 1
        assert _dropped(user, "app:slow") > 0
        assert _dropped(user, "user") == 0
    finally:
        slow.kill()
        slow.wait()


def _dropped(user: Connection, holder: str) -> int:
    rows = user.call("bus.list")["subscriptions"]
    return max((row["dropped"] for row in rows if row["holder"] == holder), default=-1)


def test_keys_and_grants_outlive_the_kernel(running: System) -> None:
    """After kill -9 the app comes in with the same key, and with what it was granted."""
    key = let_in(running, "faithful", "sys.read")
    running.stop(kill=True)
    assert running.start()["ready"]
    connection = Connection(key=AppKey.load(key))
    assert connection.call("sys.status")["counts"]["apps"] == 1
    assert connection.badge == "app:faithful"
    connection.close()


def test_a_kill_while_an_app_is_removed_leaves_no_grants(running: System) -> None:
    """Its key is gone, so is what was granted to it: the next app of that name inherits nothing."""
    let_in(running, "leaving", "sys.read")
    running.stop(kill=True)
    with closing(sqlite3.connect(Path(running.environment["LLMOS_HOME"]) / "journal.db")) as journal, journal:
        journal.execute("delete from kept where part = 'app' and id = 'leaving'")  # as far as a removal came
    assert running.start()["ready"]
    assert running.connect().call("perm.list", {"holder": "app:leaving"})["caps"] == []


@pytest.mark.parametrize("name", ["filesystem", "user", "kernel"])
def test_an_app_may_be_called_anything_and_is_nobody_else(
    shared: System, connect: Callable[[Path], Connection], name: str
) -> None:
    """An app with a driver's name, or the user's, has none of their rights."""
    app = connect(let_in(shared, name))
    with pytest.raises(OpError) as caught:
        app.call("sys.status")
    assert caught.value.code is Code.DENIED
    assert app.badge == f"app:{name}"


def test_what_was_lent_ends_with_the_connection(shared: System, connect: Callable[[Path], Connection]) -> None:
    """Not with the program: a connection that is closed takes its functions and subscriptions along."""
    app = connect(let_in(shared, "lender", "fn.register", "bus.subscribe(topic=x.*)"))
    app.call("fn.register", {"name": "lent", "summary": "Something"})
    app.call("bus.subscribe", {"topic": "x.*"})
    user = shared.connect()
    assert "app.lent" in [row["op"] for row in user.call("sys.ops")["ops"]]
    app.close()
    shared.until(lambda: "app.lent" not in [row["op"] for row in user.call("sys.ops")["ops"]], 5)
    assert "app:lender" not in [row["holder"] for row in user.call("bus.list")["subscriptions"]]
