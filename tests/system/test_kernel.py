"""A real kernel, gate and drivers: who may do what, and what becomes of bad input."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq

from llmos.ipc import wire
from llmos.ipc.connection import Connection, Unreachable
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import GREETING, SYSCALLS, Header, Kind, pack_header, parse_header
from tests.system.conftest import System


def refused(connection: Connection, op: str, **args: object) -> OpError:
    """The error that a call ends with."""
    return refused_with(connection, op, args)


def refused_with(connection: Connection, op: str, args: dict[str, object]) -> OpError:
    """The same with arguments of any name."""
    with pytest.raises(OpError) as caught:
        connection.call(op, args, timeout=5)
    return caught.value


def test_it_boots_and_says_what_runs(shared: System) -> None:
    """Gate and drivers are up, each in its jail, when the kernel says it is ready; no process of it is without one."""
    connection = shared.connect()
    status = connection.call("sys.status")
    assert status["model"]["state"] == "none"
    rows = {row["name"]: row for row in connection.call("proc.list")["processes"]}
    assert {"kernel", "gate", "browser_history", "filesystem"} <= set(rows)
    for name in ("gate", "browser_history", "filesystem"):
        assert rows[name]["state"] == "ready"
        lines = Path(f"/proc/{rows[name]['os_pid']}/status").read_text().splitlines()
        facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert (facts["Seccomp"], facts["NoNewPrivs"], facts["CapEff"]) == ("2", "1", "0" * 16), name


@pytest.mark.parametrize(
    ("op", "args", "code", "says"),
    [
        ("nobody.knows", {}, Code.UNKNOWN_OP, "unknown op"),
        ("filesystem.fly", {}, Code.UNKNOWN_OP, "filesystem has no such op"),
        ("app.nothing", {}, Code.UNKNOWN_OP, "no running program"),
        ("", {}, Code.UNKNOWN_OP, "unknown op"),
        ("filesystem.read", {}, Code.INVALID_ARGUMENT, "argument path: missing"),
        ("filesystem.read", {"path": 7}, Code.INVALID_ARGUMENT, "argument path: expected string, got int"),
        ("filesystem.read", {"path": "x", "colour": "red"}, Code.INVALID_ARGUMENT, "argument colour: unknown"),
        ("llm.generate", {"prompt": "x", "max_tokens": "many"}, Code.INVALID_ARGUMENT, "argument max_tokens"),
        ("llm.generate", {"prompt": "x", "max_tokens": -1}, Code.INVALID_ARGUMENT, "argument max_tokens"),
        ("llm.generate", {"prompt": "x", "max_tkens": 1}, Code.INVALID_ARGUMENT, "max_tkens"),
        ("llm.generate", {"prompt": "x"}, Code.UNAVAILABLE, "no model is installed"),
        ("llm.embed", {"texts": ["x"]}, Code.UNAVAILABLE, "no embedding model is installed"),
        ("llm.load", {"model": "gpt-17"}, Code.NOT_FOUND, "gpt-17"),
        ("llm.load", {"model": "../../etc"}, Code.INVALID_ARGUMENT, "argument model"),
        ("proc.kill", {"pid": 4711}, Code.NOT_FOUND, "no process 4711"),
        ("proc.spawn", {"program": "nobody"}, Code.NOT_FOUND, "no agent is called"),
        ("bus.publish", {"topic": ""}, Code.INVALID_ARGUMENT, "topic"),
        ("bus.subscribe", {"topic": "a" * 60_000}, Code.INVALID_ARGUMENT, "topic"),
        ("bus.unsubscribe", {"subscription": 99}, Code.NOT_FOUND, "99"),
        (
            "perm.grant",
            {"holder": "filesystem", "cap": "everything please"},
            Code.INVALID_ARGUMENT,
            "is not a capability",
        ),
        ("perm.grant", {"holder": "stranger", "cap": "llm.embed"}, Code.NOT_FOUND, "stranger"),
        ("perm.revoke", {"id": "c1"}, Code.NOT_FOUND, "c1"),
    ],
)
def test_a_wrong_call_is_answered_with_what_is_wrong(
    shared: System, op: str, args: dict[str, object], code: Code, says: str
) -> None:
    """One final reply, the right code, and a detail that names the argument."""
    error = refused(shared.connect(), op, **args)
    assert error.code is code
    assert says in error.detail


def test_every_syscall_answers_garbage(shared: System) -> None:
    """Whatever the arguments, a syscall answers, and the kernel lives."""
    connection = shared.connect()
    for op in set(SYSCALLS) - {"sys.shutdown", "sys.hello"}:
        nested: dict[str, object] = {name: [[[]]] for name in SYSCALLS[op].__struct_fields__}
        tries: tuple[dict[str, object], ...] = ({"x" * 100: 1}, nested)
        for args in tries:
            if args:
                assert refused_with(connection, op, args).code in (Code.INVALID_ARGUMENT, Code.UNAVAILABLE)
    assert connection.call("sys.ping") == {}


def test_ten_megabytes_are_refused_before_they_are_sent(shared: System) -> None:
    """The sender is told the limit; nothing is lost but the message."""
    connection = shared.connect()
    error = refused(connection, "bus.publish", topic="big", data={"x": "y" * 10_000_000})
    assert error.code is Code.TOO_LARGE
    assert "65536" in error.detail
    assert connection.call("sys.ping") == {}


class Raw:
    """A client that keeps no rules: frames as they are given, on a socket of its own."""

    def __init__(self, system: System, route: bytes | None = None) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        if route is not None:
            self.socket.routing_id = route
        self.socket.connect(f"ipc://{system.socket}")

    def ask(self, *frames: bytes, seconds: float = 2) -> tuple[Header, dict[str, object]] | None:
        """The next message after these frames."""
        self.socket.send_multipart(frames)
        if not self.socket.poll(int(seconds * 1000)):
            return None
        _, header, body = self.socket.recv_multipart()
        return parse_header(wire.decode_map(header)), wire.decode_map(body)

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ((b"hello",), "VERSION_MISMATCH"),
        ((b"llmos/2", b"\x80", b"\x80"), "VERSION_MISMATCH"),
        ((GREETING, b"\x80"), "VERSION_MISMATCH"),
        ((GREETING, b"\x80", b"\x80", b"\x80"), "VERSION_MISMATCH"),
        ((GREETING, b"\xc1", b"\x80"), "INVALID_ARGUMENT"),
        ((GREETING, b"", b""), "INVALID_ARGUMENT"),
        ((GREETING, b"\x91" * 5000, b"\x80"), "INVALID_ARGUMENT"),
        ((GREETING, wire.encode({"kind": "call", "id": 5, "op": "sys.ping"}), b"\x80"), "DENIED"),
        ((GREETING, wire.encode({"kind": "call", "id": -5, "op": "sys.ping"}), b"\x80"), "INVALID_ARGUMENT"),
        ((GREETING, wire.encode({"kind": "call", "id": 5, "deadline_ms": 1 << 60}), b"\x80"), "INVALID_ARGUMENT"),
        ((GREETING, wire.encode({"kind": "call", "id": "x", "op": "sys.ping"}), b"\x80"), "INVALID_ARGUMENT"),
        ((GREETING, wire.encode({"kind": "event", "id": 5}), b"\x80"), "INVALID_ARGUMENT"),
        (
            (GREETING, wire.encode({"kind": "call", "id": 7, "op": "sys.hello"}), wire.encode({"token": "x" * 32})),
            "DENIED",
        ),
        ((GREETING, wire.encode({"id": 9}), b"x" * 70_000), "TOO_LARGE"),
        ((GREETING, b"x" * 70_000, b"\x80"), "TOO_LARGE"),
    ],
)
def test_raw_frames_are_refused_by_name(shared: System, frames: tuple[bytes, ...], code: str) -> None:
    """Wrong version, wrong number of frames, malformed or oversize: each is answered with its own error."""
    raw = Raw(shared)
    answer = raw.ask(*frames)
    raw.close()
    assert answer is not None
    assert answer[1]["code"] == code


def test_a_frame_over_a_megabyte_costs_its_sender_the_connection(shared: System) -> None:
    """And nobody else anything."""
    raw = Raw(shared)
    assert raw.ask(GREETING, b"\x80", b"x" * 10_000_000, seconds=0.5) is None
    raw.close()
    assert shared.connect().call("sys.ping") == {}


def test_subscribers_hear_what_is_published_until_they_leave(shared: System) -> None:
    """By pattern, in order, with the publisher's badge; a foreign pattern hears nothing."""
    listener, speaker = shared.connect(), shared.connect()
    events = listener.subscribe("demo.*")
    others = listener.subscribe("other.*")
    for number in range(20):
        assert speaker.call("bus.publish", {"topic": "demo.news", "data": {"n": number}})["receivers"] == 1
    heard = [next(events) for _ in range(20)]
    assert [event.data["n"] for event in heard] == list(range(20))
    assert [event.seq for event in heard] == list(range(20))
    assert heard[0].sender == "user"
    events.close()
    others.close()
    assert shared.until(lambda: speaker.call("bus.publish", {"topic": "demo.news", "data": {}})["receivers"] == 0)


def test_a_function_that_a_program_lends_can_be_called_until_it_leaves(shared: System) -> None:
    """It shows among the ops, its arguments are checked, and it is gone with its owner."""
    owner, caller = shared.connect(), shared.connect()
    spec = {"a": {"type": "integer", "required": True}, "b": {"type": "integer", "required": True}}
    owner.call("fn.register", {"name": "add", "summary": "Add two numbers", "args": spec})

    def serve() -> None:
        call = owner.next_call(timeout=10)
        assert call is not None
        call.reply({"sum": call.args["a"] + call.args["b"]})

    thread = threading.Thread(target=serve)
    thread.start()
    assert any(row["op"] == "app.add" for row in caller.call("sys.ops")["ops"])
    assert refused(caller, "app.add", a="1").code is Code.INVALID_ARGUMENT
    assert caller.call("app.add", {"a": 2, "b": 3}, timeout=5) == {"sum": 5}
    thread.join()
    with pytest.raises(OpError, match="another program"):
        caller.call("fn.register", {"name": "add", "summary": "Mine"})
    script = (
        "from llmos.ipc.connection import Connection; import os\n"
        "Connection().call('fn.register', {'name': 'brief', 'summary': 'Gone soon'}); os._exit(0)"
    )
    environment = {**shared.environment, "LLMOS_BUS": str(shared.socket)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=20)
    shared.until(lambda: all(row["op"] != "app.brief" for row in caller.call("sys.ops")["ops"]))


def test_a_caller_that_is_killed_takes_its_calls_with_it(shared: System) -> None:
    """A function's owner hears that the call it serves is cancelled."""
    owner = shared.connect()
    owner.call("fn.register", {"name": "slow", "summary": "Takes its time"})
    script = "from llmos.ipc.connection import Connection\nConnection().call('app.slow', {}, timeout=60)"
    environment = {**shared.environment, "LLMOS_BUS": str(shared.socket)}
    client = subprocess.Popen([sys.executable, "-c", script], env=environment)
    call = owner.next_call(timeout=10)
    assert call is not None
    client.kill()
    client.wait()
    pump = threading.Thread(target=lambda: owner.next_call(timeout=3))
    pump.start()
    assert call.cancelled.wait(3)
    pump.join()


def test_a_deadline_ends_a_call_that_is_not_served(shared: System) -> None:
    """TIMEOUT from the kernel, at about the deadline, and the server hears that it need not go on."""
    owner, caller = shared.connect(), shared.connect()
    owner.call("fn.register", {"name": "never", "summary": "Never answers"})
    started = time.monotonic()
    with pytest.raises(OpError) as caught:
        caller.call("app.never", {}, timeout=0.3)
    assert caught.value.code is Code.TIMEOUT
    assert time.monotonic() - started < 2
    assert (call := owner.next_call(timeout=1)) is not None
    assert owner.next_call(timeout=0.2) is None
    assert call.cancelled.is_set()


def test_a_second_kernel_is_refused_and_the_first_lives_on(shared: System) -> None:
    """CONFLICT with a hint, exit status 8."""
    other = subprocess.run(
        [sys.executable, "-m", "llmos.kernel", "--home", str(shared.home), "--ready-fd", "1"],
        env=shared.environment, capture_output=True, timeout=20,
    )  # fmt: skip
    assert other.returncode == 8
    assert b'"CONFLICT"' in other.stdout
    assert b"llmosctl down" in other.stdout
    assert shared.connect().call("sys.ping") == {}


def test_a_socket_left_behind_does_not_stop_the_next_boot(system: System) -> None:
    """A kernel that was killed leaves its socket and token; a client says so at once, and the next boot takes over."""
    system.start()
    system.stop(kill=True)

    def says_so() -> bool:  # the gate needs a moment to notice that its kernel has gone
        with pytest.raises(Unreachable) as caught:
            system.connect("x" * 32).call("sys.ping")
        return "llmosctl up" in str(caught.value.hint)

    assert system.until(says_so)
    assert system.start()["ready"], system.log()
    assert system.connect().call("sys.ping") == {}


def test_without_the_whole_sandbox_it_does_not_start_by_itself(system: System) -> None:
    """It says which layer is missing and how to get it; a weaker one is accepted only by name, and then shown."""
    system.environment["PATH"] = str(system.root)
    error = system.start()["error"]
    assert error["code"] == "UNAVAILABLE"
    assert "bubblewrap" in error["hint"]
    assert system.process is not None
    assert system.process.wait(5) == 1
    assert system.start("--tier", "B")["ready"]
    assert system.connect().call("sys.status")["tier"] == "B"


def test_grants_outlive_the_kernel(system: System) -> None:
    """What was acknowledged is there after kill -9; what was revoked is not."""
    system.start()
    connection = system.connect()
    kept = connection.call("perm.grant", {"holder": "browser_history", "cap": "llm.embed"})
    gone = connection.call("perm.grant", {"holder": "filesystem", "cap": "llm.embed"})
    connection.call("perm.revoke", {"id": gone["id"]})
    system.stop(kill=True)
    system.start()
    caps = {(cap["holder"], cap["cap"]) for cap in system.connect().call("perm.list")["caps"]}
    assert ("browser_history", kept["cap"]) in caps
    assert ("filesystem", "llm.embed") not in caps


def test_a_driver_sees_only_what_was_granted(running: System) -> None:
    """A directory becomes readable with its grant, and unreadable again when that is revoked."""
    folder = running.home / "Documents"
    folder.mkdir()
    (folder / "note.txt").write_text("remember the milk")
    connection = running.connect()
    assert refused(connection, "filesystem.read", path="~/Documents/note.txt").code in (Code.NOT_FOUND, Code.DENIED)
    granted = connection.call("perm.grant", {"holder": "filesystem", "cap": "fs.read(path=~/Documents)"})
    assert "milk" in str(connection.call("filesystem.read", {"path": "~/Documents/note.txt"}, timeout=10))
    connection.call("perm.revoke", {"id": granted["id"]})
    assert refused(connection, "filesystem.read", path="~/Documents/note.txt").code in (Code.NOT_FOUND, Code.DENIED)


def test_no_jailed_process_can_open_an_internet_socket(shared: System) -> None:
    """The gate and the drivers have no network namespace but an empty one of their own, or no way to make such a socket."""
    ours = Path("/proc/self/ns/net").readlink()
    for name in ("gate", "browser_history", "filesystem"):
        os_pid = shared.process_named(name)["os_pid"]
        with contextlib.suppress(PermissionError):  # or not even its namespace can be looked at from outside
            assert Path(f"/proc/{os_pid}/ns/net").readlink() != ours, name


def test_shutdown_leaves_nothing(system: System) -> None:
    """No process, no socket, no token; exit status 0."""
    system.start()
    pids = [row["os_pid"] for row in system.connect().call("proc.list")["processes"]]
    assert system.stop() == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not system.socket.exists()
    assert not (system.socket.parent.parent / "user.token").exists()


def test_a_header_says_nothing_about_its_sender(shared: System) -> None:
    """A badge, a scope or a topic in a message from outside is ignored: an event carries the real publisher."""
    listener = shared.connect()
    events = listener.subscribe("forged.*")
    raw = Raw(shared)
    token = (shared.socket.parent.parent / "user.token").read_text()
    raw.ask(GREETING, pack_header(Header(kind=Kind.CALL, id=1, op="sys.hello")), wire.encode({"token": token}))
    forged = Header(kind=Kind.CALL, id=2, op="bus.publish", sender="kernel", topic="x", scope={"path": ["/"]})
    answer = raw.ask(GREETING, pack_header(forged), wire.encode({"topic": "forged.a"}))
    raw.close()
    assert answer is not None
    assert next(events).sender == "user"
