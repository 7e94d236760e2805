"""A double of the wire: what a client, a driver or an agent sees of the gate and the kernel, with scripted answers."""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from llmos.ipc import wire
from llmos.ipc.connection import Connection
from llmos.ipc.errors import OpError
from llmos.ipc.protocol import GREETING, Header, Kind, pack_header, parse_header

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class GateDouble:
    """A ROUTER in a thread. `answers` maps an op to its reply; `chunks` an op to what comes before it.

    `log` holds (op, args) of all calls in order; `headers` their headers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {
            "sys.hello": lambda _: {"badge": "test", "pid": 1, "version": "0", "home": "/home/user"},
            "sys.ping": lambda _: {},
            "sys.ready": lambda _: {},
            "proc.emit": lambda _: {},
            "proc.exit": lambda _: {},
        }
        self.chunks: dict[str, list[dict[str, Any]]] = {}
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[Header] = []
        self.cancels: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._seen = threading.Condition()
        self._out: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()
        self._replies: dict[int, queue.SimpleQueue[tuple[bool, dict[str, Any]]]] = {}
        self._peer = b""
        self._next = 0
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(f"ipc://{path}")
        self._thread = threading.Thread(target=self._run, name="gate-double")
        self._thread.start()

    def connect(self) -> Connection:
        return Connection(self.path, token="t")

    def wait_for(self, op: str, timeout: float = 10) -> dict[str, Any]:
        """The arguments of the first call of `op`, once it has come."""
        with self._seen:
            assert self._seen.wait_for(lambda: any(name == op for name, _ in self.log), timeout), f"no {op}: {self.log}"
            return next(args for name, args in self.log if name == op)

    def send_call(self, op: str, args: dict[str, Any], **header: Any) -> int:
        """Call what the latest peer serves; `reply_to` waits for the answer."""
        self._next += 1
        self._replies[self._next] = queue.SimpleQueue()
        made = Header(kind=Kind.CALL, id=self._next, op=op, sender="caller", **header)
        self._out.put([self._peer, GREETING, pack_header(made), wire.encode(args)])
        return self._next

    def reply_to(self, number: int, timeout: float = 10) -> tuple[bool, dict[str, Any]]:
        return self._replies[number].get(timeout=timeout)

    def call(self, op: str, args: dict[str, Any] | None = None, **header: Any) -> tuple[bool, dict[str, Any]]:
        """`(ok, body)`."""
        return self.reply_to(self.send_call(op, args or {}, **header))

    def cancel(self, number: int) -> None:
        self._out.put([self._peer, GREETING, pack_header(Header(kind=Kind.CANCEL, id=number)), wire.encode({})])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        while not self._stop.is_set():
            while not self._out.empty():
                self._socket.send_multipart(self._out.get())
            if self._socket.poll(5):
                self._take(*self._socket.recv_multipart())

    def _take(self, peer: bytes, _greeting: bytes, packed: bytes, body: bytes) -> None:
        header, args = parse_header(wire.decode_map(packed)), wire.decode_map(body)
        if header.kind is Kind.REPLY:
            self._replies[header.id].put((header.ok, args))
        elif header.kind is Kind.CANCEL:
            self.cancels.put(header.id)
        elif header.kind is Kind.CALL:
            self._peer = peer
            with self._seen:
                self.log.append((header.op, args))
                self.headers.append(header)
                self._seen.notify_all()
            self._answer(peer, header, args)

    def _answer(self, peer: bytes, header: Header, args: dict[str, Any]) -> None:
        for seq, chunk in enumerate(self.chunks.get(header.op, [])):
            made = pack_header(Header(kind=Kind.CHUNK, id=header.id, seq=seq))
            self._socket.send_multipart([peer, GREETING, made, wire.encode(chunk)])
        if header.op not in self.answers:
            return
        try:
            result, ok = self.answers[header.op](args), True
        except OpError as error:
            result, ok = error.to_wire(), False
        made = pack_header(Header(kind=Kind.REPLY, id=header.id, ok=ok))
        self._socket.send_multipart([peer, GREETING, made, wire.encode(result)])


@pytest.fixture
def gate_double() -> Iterator[GateDouble]:
    directory = Path(tempfile.mkdtemp(prefix="llmos-"))  # pytest's own paths are too long for a unix socket
    made = GateDouble(directory / "gate")
    yield made
    made.close()
    shutil.rmtree(directory)
