"""A driver's way out, against a broker that says what the test wants."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers import network
from llmos.drivers.network import Network
from llmos.drivers.sdk import DriverEnv
from llmos.ipc import egress
from llmos.ipc.errors import Code, OpError

AUTHORING = Path(__file__).parents[2] / "drivers" / "AUTHORING.md"
PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Broker:
    """Answers each connection with the next of `said`, and what follows with `served`; None closes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[bytes | None] = []
        self.served = b""
        self.asked: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(ConnectionError):
                self.asked.append(sock.recv(4096))
                said = self.said.pop(0)
                if said is not None:
                    sock.sendall(said + self.served)
                    sock.settimeout(10)
                    while self.served and sock.recv(4096):
                        pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "egress")
    yield made
    made.close()


CONNECTED = egress.frame({"address": "93.184.216.34"})


def test_http_works_over_it_unchanged(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a byte of the answer to the request is taken for the broker's, however close behind it comes."""
    monkeypatch.setattr(socket, "create_connection", Network("weather", broker.path).create_connection)
    broker.said, broker.served = [CONNECTED], PAGE
    connection = http.client.HTTPConnection("api.weather.example", 80, timeout=10)
    connection.request("GET", "/today")
    assert connection.getresponse().read() == b"hello"
    assert connection.sock is None or connection.sock.getpeername() == ("93.184.216.34", 80)
    connection.close()
    assert broker.asked == [egress.request("api.weather.example", 80)]


def test_a_broker_that_goes_is_asked_again(broker: Broker) -> None:
    """One that is started again closes what it had been asked."""
    broker.said = [None, None, CONNECTED]
    with Network("weather", broker.path).connect("example.com", 443, timeout=10) as sock:
        assert sock.getpeername() == ("93.184.216.34", 443)
        assert sock.gettimeout() == 10


def test_a_broker_that_stays_away_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while."""
    monkeypatch.setattr(network, "BROKER_S", 0.2)
    with pytest.raises(OpError, match="the egress broker does not answer") as caught:
        Network("weather", tmp_path / "nothing").connect("example.com", 443)
    assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.DENIED, PermissionError),
        (Code.REVOKED, PermissionError),
        (Code.TIMEOUT, TimeoutError),
        (Code.NOT_FOUND, OSError),
        (Code.BUSY, OSError),
    ],
)
def test_a_refusal_is_both_kinds_of_error(broker: Broker, code: Code, kind: type[OSError]) -> None:
    """A library sees the `OSError` it knows; what it lets pass is the op's answer, hint and all."""
    broker.said = [egress.frame(OpError(code, "why", "what helps").to_wire())]
    with pytest.raises(kind) as caught:
        Network("weather", broker.path).create_connection(("example.com", 443))
    assert isinstance(caught.value, OpError)
    assert (caught.value.code, caught.value.detail, caught.value.hint) == (code, "why", "what helps")
    assert caught.value.errno


@pytest.mark.parametrize("said", [b"\x00\x00", b"\x00\x01\xc1", b"\x00\x02\x91\x01", b"\xff\xff" + b"x" * 65535])
def test_an_answer_that_is_none_is_an_error(broker: Broker, said: bytes) -> None:
    """Never a connection."""
    broker.said = [said]
    with pytest.raises(OpError) as caught:
        Network("weather", broker.path).connect("example.com", 443)
    assert caught.value.code is Code.INTERNAL


def test_without_a_grant_the_command_is_named() -> None:
    """By the host as it would be looked up; in a test's environment there is no driver to name."""
    with pytest.raises(OpError) as caught:
        Network("weather").connect("Bücher.example", 443)
    assert caught.value.hint == "llmosctl perm grant weather 'net.connect(host=xn--bcher-kva.example, port=443)'"
    with pytest.raises(OpError, match="missing the capability"):
        DriverEnv(state=Path("/"), home=Path("/")).connect("example.com", 443)


def test_the_guides_example_connects(broker: Broker) -> None:
    """With TLS asked for, and sends what it says."""
    block = next(
        block
        for block in re.findall(r"```python [^\n]*\n(.*?)```", AUTHORING.read_text(), re.DOTALL)
        if "env.connect" in block
    )
    asked: list[Any] = []

    def connect(host: str, port: int, *, tls: bool, timeout: float) -> socket.socket:
        asked.append((host, port, tls))
        broker.said, broker.served = [CONNECTED], PAGE
        return Network("weather", broker.path).connect(host, port, timeout=timeout)

    made: dict[str, Any] = {}
    exec(block, made)
    assert made["today"](types.SimpleNamespace(connect=connect)).startswith(b"HTTP/1")
    assert asked == [("api.weather.example", 443, True)]
