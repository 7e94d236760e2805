"""The apps' gate as a process of its own, with the test in the kernel's place on the pipe, and real ZeroMQ peers."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from llmos.ipc import wire
from llmos.ipc.app_key import AppKey
from llmos.ipc.connection import Connection
from llmos.ipc.errors import Code, OpError
from llmos.ipc.pipe import FrameStream
from llmos.ipc.protocol import GREETING, Header, Kind, pack_header, parse_header
from llmos.kernel import gate, gate_frames, params

Keys = tuple[bytes, bytes]
NULL: Keys = (b"", b"")


class GateProcess:
    """`python -m llmos.kernel.gate`, and the kernel's end of its pipe."""

    def __init__(self, path: Path, *flags: str) -> None:
        self.path = path
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "llmos.kernel.gate", str(theirs.fileno()), str(path), *flags]
        self.process = subprocess.Popen(command, pass_fds=(theirs.fileno(),))
        theirs.close()
        self.pipe = FrameStream(ours)
        self.public, self.secret = zmq.curve_keypair()
        self.held: list[bytes] = []

    def open(self, *allowed: tuple[bytes, str]) -> None:
        for key, name in allowed:
            self.allow(key, name)
        self.pipe.send(b"K" + self.secret)
        assert self.next(b"U") == b"U"

    def allow(self, key: bytes, name: str) -> None:
        self.pipe.send(b"A" + key + name.encode())

    def revoke(self, key: bytes) -> None:
        self.pipe.send(b"R" + key)

    def next(self, kind: bytes, timeout: float = 5) -> bytes:
        """The next frame of that kind; others are kept."""
        for frame in self.held:
            if frame[:1] == kind:
                self.held.remove(frame)
                return frame
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            arrived = self.pipe.read(left)
            if arrived is not None and arrived[:1] == kind:
                return arrived
            if arrived is not None:
                self.held.append(arrived)
        raise AssertionError(f"no {kind!r} came, only {[frame[:1] for frame in self.held]}")

    def quiet(self, seconds: float = 0.3) -> bool:
        return not self.held and self.pipe.read(seconds) is None

    def admitted(self) -> tuple[int, str]:
        """The next connection: its number and its app."""
        frame = self.next(b"N")
        _, conn, pid = gate_frames.NAMED.unpack_from(frame)
        assert pid == os.getpid()
        return conn, frame[gate_frames.NAMED.size :].decode()

    def message(self) -> tuple[int, Header]:
        frame = self.next(b"M")
        _, conn, size = gate_frames.MESSAGE.unpack_from(frame)
        return conn, parse_header(wire.decode_map(frame[9 : 9 + size]))

    def answer(self, conn: int, number: int, body: dict[str, Any]) -> None:
        header = pack_header(Header(kind=Kind.REPLY, id=number))
        self.pipe.send(gate_frames.MESSAGE.pack(b"M", conn, len(header)) + header + wire.encode(body))

    def publish(self, conns: list[int], body: dict[str, Any]) -> None:
        header = pack_header(Header(kind=Kind.EVENT, topic="t"))
        count = len(conns)
        head = struct.pack(f">cI{count}II", b"F", count, *conns, len(header))
        self.pipe.send(head + header + wire.encode(body))

    def resident_mb(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def close(self) -> None:
        self.pipe.close()
        self.process.wait(10)


class App:
    """A plain DEALER with a key, or with none."""

    def __init__(
        self, door: GateProcess, keys: Keys, route: bytes = b"", server: bytes = b"", room: int = 1000
    ) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RCVHWM, room)
        self.socket.set(zmq.ROUTING_ID, route or b"\x01" + secrets.token_bytes(16))
        if keys != NULL:
            self.socket.set(zmq.CURVE_SERVERKEY, server or door.public)
            self.socket.set(zmq.CURVE_PUBLICKEY, keys[0])
            self.socket.set(zmq.CURVE_SECRETKEY, keys[1])
        self.socket.connect(f"ipc://{door.path}")

    def call(self, number: int = 1, op: str = "sys.ping") -> None:
        header = pack_header(Header(kind=Kind.CALL, id=number, op=op))
        self.socket.send_multipart([GREETING, header, wire.encode({})])

    def reply(self, timeout: float = 5) -> tuple[Header, dict[str, Any]] | None:
        if not self.socket.poll(int(timeout * 1000)):
            return None
        _, header, body = self.socket.recv_multipart()
        return parse_header(wire.decode_map(header)), wire.decode_map(body)

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def apps_gate() -> Iterator[GateProcess]:
    directory = Path(tempfile.mkdtemp(prefix="llmos-"))  # pytest's own paths are too long for a unix socket
    made = GateProcess(directory / "apps", "--apps")
    yield made
    made.close()
    shutil.rmtree(directory)


@pytest.fixture
def peers() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def connect(peers: contextlib.ExitStack, *args: Any, **options: Any) -> App:
    app = App(*args, **options)
    peers.callback(app.close)
    return app


def pair() -> Keys:
    public, secret = zmq.curve_keypair()
    return public, secret


def key_of(door: GateProcess, keys: Keys, name: str = "notes", server: bytes = b"") -> AppKey:
    halves = [half.decode() for half in (server or door.public, *keys)]
    return AppKey(name, f"ipc://{door.path}", *halves)


def test_an_app_with_its_key_is_let_in_under_its_name(apps_gate: GateProcess, peers: contextlib.ExitStack) -> None:
    """What it sends arrives as that app's, and the answer goes back to it."""
    keys = pair()
    apps_gate.open((keys[0], "app:notes"))
    app = connect(peers, apps_gate, keys)
    app.call(7)
    conn, name = apps_gate.admitted()
    assert (name, conn > gate_frames.APPS_BASE) == ("app:notes", True)
    assert apps_gate.message() == (conn, Header(kind=Kind.CALL, id=7, op="sys.ping"))
    apps_gate.answer(conn, 7, {"fine": True})
    assert app.reply() == (Header(kind=Kind.REPLY, id=7), {"fine": True})


def test_two_apps_are_told_apart(apps_gate: GateProcess, peers: contextlib.ExitStack) -> None:
    """Each by the key it holds, on connections of their own."""
    first, second = pair(), pair()
    apps_gate.open((first[0], "app:one"), (second[0], "app:two"))
    one, two = connect(peers, apps_gate, first), connect(peers, apps_gate, second)
    one.call(1)
    conn_one, name_one = apps_gate.admitted()
    two.call(1)
    conn_two, name_two = apps_gate.admitted()
    assert (name_one, name_two) == ("app:one", "app:two")
    apps_gate.answer(conn_two, 1, {"for": "two"})
    apps_gate.answer(conn_one, 1, {"for": "one"})
    assert [app.reply() for app in (one, two)] == [
        (Header(kind=Kind.REPLY, id=1), {"for": "one"}),
        (Header(kind=Kind.REPLY, id=1), {"for": "two"}),
    ]


@pytest.mark.parametrize("stranger", ["unknown key", "no key", "another server's key", "another's public half"])
def test_without_an_allowed_key_nothing_reaches_the_kernel(
    apps_gate: GateProcess, peers: contextlib.ExitStack, stranger: str
) -> None:
    """Not with a key nobody allowed, not with mechanism NULL, not with a public half whose secret one has not."""
    allowed = pair()
    apps_gate.open((allowed[0], "app:notes"))
    keys = {
        "unknown key": pair(),
        "no key": NULL,
        "another server's key": allowed,
        "another's public half": (allowed[0], pair()[1]),
    }[stranger]
    server = pair()[0] if stranger == "another server's key" else b""
    app = connect(peers, apps_gate, keys, server=server)
    app.call()
    assert app.reply(0.3) is None
    assert apps_gate.quiet()


@pytest.mark.parametrize(
    ("apps", "domain", "mechanism", "taken"),
    [
        (True, gate.APPS_DOMAIN, b"CURVE", True),
        (True, gate.DOMAIN, b"CURVE", False),
        (True, "", b"CURVE", False),
        (True, gate.APPS_DOMAIN, b"NULL", False),
        (False, gate.DOMAIN, b"NULL", True),
        (False, gate.APPS_DOMAIN, b"NULL", False),
        (False, gate.DOMAIN, b"CURVE", False),
    ],
)
def test_each_gate_authenticates_its_own_domain_and_mechanism_alone(
    tmp_path: Path, apps: bool, domain: str, mechanism: bytes, taken: bool
) -> None:
    """A socket of another domain, or another mechanism, is refused whatever it shows."""
    ours, theirs = socket.socketpair()
    made = gate.Gate(FrameStream(ours), str(tmp_path / "s"), apps=apps)
    made._allow(pair()[0].decode(), "app:other")
    public = zmq.curve_keypair()[0]
    made._allow(public.decode(), "app:notes")
    asking = made._zap.context.socket(zmq.REQ)
    try:
        asking.connect("inproc://zeromq.zap.01")
        address = f"localhost:{os.geteuid()}:0:{os.getpid()}".encode()
        shown = [zmq.utils.z85.decode(public)] if mechanism == b"CURVE" else []
        asking.send_multipart([b"1.0", b"1", domain.encode(), address, b"", mechanism, *shown])
        made._authenticate()
        assert asking.recv_multipart()[2] == (b"200" if taken else b"400")
        other = f"localhost:{os.geteuid() + 1}:0:{os.getpid()}".encode()
        asking.send_multipart([b"1.0", b"1", domain.encode(), other, b"", mechanism, *shown])
        made._authenticate()
        assert asking.recv_multipart()[2] == b"400"
    finally:
        made._zap.context.destroy(linger=0)
        ours.close()
        theirs.close()


def test_a_revoked_key_ends_its_connections_at_once(apps_gate: GateProcess, peers: contextlib.ExitStack) -> None:
    """The app is told without asking, nothing it sends is forwarded, and it cannot connect again; others are untouched."""
    keys, other_keys = pair(), pair()
    apps_gate.open((keys[0], "app:notes"), (other_keys[0], "app:other"))
    app, other = connect(peers, apps_gate, keys), connect(peers, apps_gate, other_keys)
    app.call(1)
    conn, _ = apps_gate.admitted()
    apps_gate.message()
    other.call(1)
    other_conn, _ = apps_gate.admitted()
    apps_gate.message()
    apps_gate.revoke(keys[0])
    told = app.reply()
    assert told is not None
    assert (told[0].id, told[0].ok, told[1]["code"]) == (0, False, "DENIED")
    assert gate_frames.CONN.unpack(apps_gate.next(b"G"))[1] == conn
    apps_gate.answer(conn, 1, {"late": True})
    app.call(2)
    refused = app.reply()
    assert refused is not None
    assert (refused[0].id, refused[0].ok, refused[1]["detail"]) == (2, False, "this key opens nothing any more")
    again = connect(peers, apps_gate, keys)
    again.call(1)
    assert again.reply(0.3) is None
    other.call(2)
    assert apps_gate.message()[0] == other_conn
    assert apps_gate.quiet(0.1)


def test_a_key_in_place_of_another_ends_only_the_old_ones_connections(
    apps_gate: GateProcess, peers: contextlib.ExitStack
) -> None:
    """Both are the same app's: it is the key that a connection is bound to, not the name."""
    old, new = pair(), pair()
    apps_gate.open((old[0], "app:notes"))
    before = connect(peers, apps_gate, old)
    before.call()
    apps_gate.admitted()
    apps_gate.message()
    apps_gate.allow(new[0], "app:notes")
    after = connect(peers, apps_gate, new)
    after.call()
    conn, name = apps_gate.admitted()
    assert (name, apps_gate.message()[0]) == ("app:notes", conn)
    apps_gate.revoke(old[0])
    told = before.reply()
    assert told is not None
    assert told[1]["code"] == "DENIED"
    after.call(2)
    assert apps_gate.message()[0] == conn


def test_a_routing_id_of_another_app_is_another_connection(apps_gate: GateProcess, peers: contextlib.ExitStack) -> None:
    """Who takes over the id of an app that has gone gets neither its name nor the answers it was owed."""
    victim_keys, thief_keys = pair(), pair()
    apps_gate.open((victim_keys[0], "app:victim"), (thief_keys[0], "app:thief"))
    route = b"\x01" + secrets.token_bytes(16)
    victim = App(apps_gate, victim_keys, route)
    victim.call(1, "mail.read")
    conn, _ = apps_gate.admitted()
    apps_gate.message()
    victim.close()
    thief = connect(peers, apps_gate, thief_keys, route)
    thief.call(1)
    taken, name = apps_gate.admitted()
    assert (name, taken != conn) == ("app:thief", True)
    assert gate_frames.CONN.unpack(apps_gate.next(b"G"))[1] == conn
    apps_gate.answer(conn, 1, {"secret": True})
    apps_gate.answer(taken, 1, {"own": True})
    assert thief.reply() == (Header(kind=Kind.REPLY, id=1), {"own": True})
    assert thief.reply(0.2) is None


def test_the_limit_on_connections_is_an_apps_own(apps_gate: GateProcess, peers: contextlib.ExitStack) -> None:
    """One more than it may have ends its oldest, and nobody else's, whatever the processes they come from."""
    keys, other_keys = pair(), pair()
    apps_gate.open((keys[0], "app:many"), (other_keys[0], "app:other"))
    other = connect(peers, apps_gate, other_keys)
    other.call()
    other_conn, _ = apps_gate.admitted()
    apps_gate.message()
    conns = []
    for _ in range(params.GATE_PEERS_PER_PROCESS + 1):
        connect(peers, apps_gate, keys).call()
        conns.append(apps_gate.admitted()[0])
    assert gate_frames.CONN.unpack(apps_gate.next(b"G"))[1] == conns[0]
    other.call(2)
    while (arrived := apps_gate.message())[1].id != 2:
        pass
    assert arrived[0] == other_conn


def test_a_subscriber_that_does_not_read_costs_itself_alone(
    apps_gate: GateProcess, peers: contextlib.ExitStack
) -> None:
    """What is kept for it is bounded in bytes, what it loses is counted, and another gets every event and answer meanwhile."""
    keys, other_keys = pair(), pair()
    apps_gate.open((keys[0], "app:slow"), (other_keys[0], "app:quick"))
    slow = connect(peers, apps_gate, keys, room=1)
    slow.call()
    slow_conn, _ = apps_gate.admitted()
    quick = connect(peers, apps_gate, other_keys)
    quick.call()
    quick_conn, _ = apps_gate.admitted()
    before = apps_gate.resident_mb()
    events = 900  # of 60 KB: fewer than libzmq would keep by number, 50 MB by size
    for number in range(events):
        apps_gate.publish([slow_conn, quick_conn], {"n": number, "data": b"x" * 60_000})
        got = quick.reply()
        assert got is not None
        assert got[1]["n"] == number
    lost = sum(gate_frames.LOST.unpack(frame)[2] for frame in [apps_gate.next(b"L") for _ in range(events // 2)])
    assert lost == events // 2
    assert apps_gate.resident_mb() - before < 24
    quick.call(2)
    while apps_gate.message()[1].id != 2:
        pass
    apps_gate.answer(quick_conn, 2, {"still": "there"})
    assert quick.reply() == (Header(kind=Kind.REPLY, id=2), {"still": "there"})


def test_who_leaves_answers_unread_loses_the_connection_and_what_was_kept_for_it(
    apps_gate: GateProcess, peers: contextlib.ExitStack
) -> None:
    """It is really closed, so that libzmq frees what it held; the app's next message comes on a new one."""
    keys = pair()
    apps_gate.open((keys[0], "app:slow"))
    slow = connect(peers, apps_gate, keys, room=1)
    slow.call()
    conn, _ = apps_gate.admitted()
    apps_gate.message()
    before = apps_gate.resident_mb()
    for number in range(200):
        apps_gate.answer(conn, number, {"data": b"x" * 60_000})
    assert gate_frames.CONN.unpack(apps_gate.next(b"G"))[1] == conn
    assert apps_gate.resident_mb() - before < 16
    read = 0
    while slow.reply(0.5) is not None:
        read += 1
    assert read < 30  # what its own side had already; 70 had been sent when the connection ended
    slow.call(2)
    assert apps_gate.admitted()[0] != conn


def test_the_ordinary_gate_offers_a_key_pair(
    peers: contextlib.ExitStack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After it is up: the kernel, which does not load ZeroMQ, keeps it as the apps' gate's own."""
    directory = Path(tempfile.mkdtemp(prefix="llmos-"))
    made = GateProcess(directory / "gate")
    try:
        assert made.next(b"U") == b"U"
        keys = made.next(b"P")[1:]
        assert len(keys) == 2 * gate_frames.KEY
        assert zmq.curve_public(keys[gate_frames.KEY :]) == keys[: gate_frames.KEY]
        assert (directory / "gate").is_socket()
    finally:
        made.close()
        shutil.rmtree(directory)


def test_the_apps_gate_binds_nothing_before_it_has_its_key(apps_gate: GateProcess) -> None:
    """Without one it would take connections in the clear."""
    assert apps_gate.quiet()
    assert not apps_gate.path.exists()
    apps_gate.open()
    assert apps_gate.path.is_socket()


# -- the same through the connection that programs use --------------------------------------------------------------------


def greet(door: GateProcess, connection: Connection) -> tuple[int, Any]:
    """The kernel's part in a first call, made in a thread."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)
    calling = pool.submit(connection.call, "sys.ping")
    conn, _ = door.admitted()
    _, hello = door.message()
    assert hello.op == "sys.hello"
    door.answer(conn, hello.id, {"badge": "app:notes"})
    pool.shutdown(wait=False)
    return conn, calling


def test_a_connection_with_a_key_says_hello_without_a_token(apps_gate: GateProcess) -> None:
    """And its calls are the app's."""
    keys = pair()
    apps_gate.open((keys[0], "app:notes"))
    with Connection(key=key_of(apps_gate, keys)) as connection:
        conn, calling = greet(apps_gate, connection)
        _, ping = apps_gate.message()
        apps_gate.answer(conn, ping.id, {"pong": 1})
        assert calling.result(5) == {"pong": 1}
        assert (connection.badge, connection.token) == ("app:notes", "")


@pytest.mark.parametrize("wrong", ["key", "server", "nonsense"])
def test_a_wrong_key_is_a_clear_error_at_once(apps_gate: GateProcess, wrong: str) -> None:
    """Not a wait: an unknown key, one of another system, or something that is none."""
    keys = pair()
    apps_gate.open((keys[0], "app:notes"))
    key = {
        "key": key_of(apps_gate, pair()),
        "server": key_of(apps_gate, keys, server=pair()[0]),
        "nonsense": key_of(apps_gate, (b"~" * 40, b"~" * 40)),
    }[wrong]
    started = time.monotonic()
    with Connection(key=key) as connection, pytest.raises(OpError) as caught:
        connection.call("sys.ping")
    assert caught.value.code is (Code.INVALID_ARGUMENT if wrong == "nonsense" else Code.DENIED)
    assert "notes" in caught.value.detail
    assert "llmosctl app add" in str(caught.value.hint)
    assert time.monotonic() - started < 1


def test_revocation_ends_calls_and_subscriptions_under_way(apps_gate: GateProcess) -> None:
    """Both learn why at once, and the next call is refused when it connects."""
    keys = pair()
    apps_gate.open((keys[0], "app:notes"))
    with Connection(key=key_of(apps_gate, keys)) as connection:
        conn, calling = greet(apps_gate, connection)
        apps_gate.message()
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            listening = pool.submit(lambda: next(connection.subscribe("t")))
            _, subscribe = apps_gate.message()
            apps_gate.answer(conn, subscribe.id, {"subscription": 1})
            time.sleep(0.1)
            apps_gate.revoke(keys[0])
            for waiting in (calling, listening):
                with pytest.raises(OpError) as caught:
                    waiting.result(2)
                assert caught.value.code is Code.DENIED
        with pytest.raises(OpError) as caught:
            connection.call("sys.ping")
        assert (caught.value.code, "opens nothing" in caught.value.detail) == (Code.DENIED, True)
