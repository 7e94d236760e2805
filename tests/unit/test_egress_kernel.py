"""The kernel's side of the egress broker, and what rights on the network mean."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import Permissions
from llmos.ipc.pipe import FrameStream
from llmos.kernel import egress_frames as frames
from llmos.kernel import net
from llmos.kernel.capability import Right
from llmos.kernel.loop import Loop
from llmos.kernel.process import Kind, ProcessTable, State
from llmos.userland.cli import words


class Refusals:
    """An authority that only hears what was refused."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Code, str]] = []

    def refused(self, holder: str, _op: str, error: OpError, what: str) -> None:
        self.heard.append((holder, error.code, what))

    def check(self, holder: str, *_: Any) -> None:
        raise OpError(Code.DENIED, f"{holder} may not")


class Side:
    """The kernel's side, with a broker that is the test."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.authority = Refusals()
        self.restarts = 0
        authority: Any = self.authority
        self.processes = ProcessTable()
        self.egress = net.Egress(self.loop, authority, self.processes, lambda: None, self._restart, lambda: None)
        self.broker = self.attach()

    def attach(self) -> FrameStream:
        return FrameStream(socket.socket(fileno=self.egress.attach()))

    def _restart(self) -> None:
        self.restarts += 1

    def say(self, message: frames.Ask | frames.Over | frames.Moved | bytes) -> list[Any]:
        """What the broker is told upon this."""
        self.broker.send(message if isinstance(message, bytes) else frames.encode(message))
        self.loop.later(0, lambda: None)
        self.loop.turn()
        return [frames.to_broker.decode(frame) for frame in self.broker.drain()]

    def close(self) -> None:
        self.egress.detach()
        self.broker.close()
        self.loop.close()


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    yield made
    made.close()


def test_a_process_that_nobody_started_is_refused(side: Side) -> None:
    """By its pid alone; the refusal is heard of with what was wanted."""
    (said,) = side.say(frames.Ask(7, 4242, "example.com", 443, time.monotonic()))
    assert (said.n, said.code) == (7, "DENIED")
    assert side.authority.heard == [("", Code.DENIED, "example.com:443")]


def test_a_process_does_not_inherit_the_connection_of_one_that_had_its_number(side: Side) -> None:
    """A driver connects, hands the socket on and ends; another one that is born with its pid is not who asks."""
    fields = {"state": State.READY, "os_pid": 4242, "born": time.monotonic()}
    process = side.processes.add(Kind.DRIVER, "mail", **fields)
    (said,) = side.say(frames.Ask(1, 4242, "example.com", 443, process.born - 0.001))
    assert said.detail == "connections are for drivers"
    (said,) = side.say(frames.Ask(2, 4242, "example.com", 443, time.monotonic()))
    assert said.detail == "mail may not"


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", b"\x80", b"\x81\xa4type\xa3yes", b"\x82\xa4type\xa3ask\xa1n\xa1x", b"\x90"]
)
def test_a_frame_that_is_none_changes_nothing(side: Side, frame: bytes) -> None:
    """The next one is read as ever, and so is what was said of connections that do not exist."""
    assert side.say(frame) == []
    assert side.say(frames.Over(1, "done")) == []
    assert side.say(frames.Moved(1, 1 << 40)) == []
    assert len(side.say(frames.Ask(1, 1, "example.com", 443, time.monotonic()))) == 1


def test_another_network_is_another_broker(side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the file that says how names are resolved is replaced, the broker that sees the old one is started again, once."""
    (tmp_path / "one").write_text("nameserver 192.0.2.1\n")
    monkeypatch.setattr(net, "RESOLVER", tmp_path / "one")
    side.broker.close()
    side.broker = side.attach()
    ask = frames.Ask(1, 4242, "example.com", 443, time.monotonic())
    assert len(side.say(ask)) == 1
    (tmp_path / "two").write_text("nameserver 192.0.2.2\n")
    (tmp_path / "two").rename(tmp_path / "one")
    assert (side.say(ask), side.restarts) == ([], 1)
    assert (len(side.say(ask)), side.restarts) == (1, 1)


@pytest.mark.parametrize(
    ("held", "wanted", "covers"),
    [
        ("net.connect", "net.connect(host=example.com, port=443)", True),
        ("net.connect", "net.connect(host=nas.local, private=yes)", False),
        ("net.connect(private=no)", "net.connect(private=yes)", False),
        ("net.connect(private=yes)", "net.connect(host=example.com)", True),
        ("net.connect(host=*.example.com)", "net.connect(host=example.com)", False),
        ("net.connect(host=*.example.com)", "net.connect(host=mail.example.com, port=993)", True),
        ("net.connect(port=443)", "net.connect(host=example.com)", False),
    ],
)
def test_what_is_inside_is_never_covered_by_silence(held: str, wanted: str, covers: bool) -> None:
    """Elsewhere a key that is left out does not bound; `private` left out is `no`."""
    assert Right.parse(held).covers(Right.parse(wanted)) is covers


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("net.connect(private=no, host=Example.com)", "net.connect(host=example.com)"),
        ("net.connect(host=nas.local, private=yes)", "net.connect(host=nas.local, private=yes)"),
        ("net.*", "net.*"),
    ],
)
def test_what_is_meant_anyway_is_not_written(text: str, normal: str) -> None:
    """And what is written reads back as the same right."""
    right = Right.parse(text)
    assert str(right) == normal
    assert Right.parse(normal) == right


@pytest.mark.parametrize(
    ("host", "cap"),
    [
        ("imap.example.com:993", "net.connect(host=imap.example.com, port=993)"),
        ("*.Example.org", "net.connect(host=*.example.org)"),
        ("2001:db8::1", "net.connect(host=2001:db8::1)"),
        ("[2001:db8::1]:443", "net.connect(host=2001:db8::1, port=443)"),
        ("*", "net.connect(host=*)"),
    ],
)
def test_a_manifest_host_is_a_capability_to_ask_for(host: str, cap: str) -> None:
    """With its port, where it has one."""
    (text,) = Permissions(hosts=[host]).capabilities()
    assert str(Right.parse(text)) == cap


@pytest.mark.parametrize("host", ["https://example.com", "example.com/path", "a b", "", "user@example.com:25"])
def test_a_manifest_host_that_is_none_is_an_error(host: str) -> None:
    """Whatever it is taken for, it never becomes a grant."""
    (text,) = Permissions(hosts=[host]).capabilities()
    with pytest.raises(OpError):
        Right.parse(text)


@pytest.mark.parametrize(
    ("cap", "said"),
    [
        ("net.connect(host=example.com)", "connect to example.com"),
        ("net.connect(host=*.example.com, port=993)", "connect to any site under example.com (only port 993)"),
        ("net.connect", "connect to any address"),
        (
            "net.connect(host=nas.local, private=yes)",
            "connect to nas.local, on this machine and in your own network too",
        ),
    ],
)
def test_a_connection_in_plain_words(cap: str, said: str) -> None:
    """What the user reads before she says yes."""
    assert words.of_capability(cap) == said
