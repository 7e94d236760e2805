"""A peer that speaks the bus's frames itself, so that it can say what a decent client cannot. Single-threaded."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import msgpack
import zmq

GREETING = b"llmos/1"
UNANSWERED = "UNANSWERED"


@dataclass(frozen=True)
class Curve:
    """Keys of a connection to the apps' gate, Z85."""

    public: bytes
    secret: bytes
    server: bytes


def pack(value: Any) -> bytes:
    """msgpack, whatever the value."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


class RawPeer:
    """One DEALER. What arrives unasked for is in `inbox`; every reply is kept in `replies`, so that a second one shows."""

    def __init__(self, address: str, routing_id: bytes = b"", curve: Curve | None = None) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.SNDHWM, 0)
        if routing_id:
            self.socket.set(zmq.ROUTING_ID, routing_id)
        if curve is not None:
            self.socket.curve_publickey = curve.public
            self.socket.curve_secretkey = curve.secret
            self.socket.curve_serverkey = curve.server
        self.socket.connect(address if "://" in address else f"ipc://{address}")
        self.inbox: deque[tuple[dict[str, Any], Any]] = deque(maxlen=20_000)
        self.replies: dict[int, list[tuple[dict[str, Any], Any]]] = {}
        self.chunks: dict[int, list[Any]] = {}
        self.answer: dict[str, Any] | None = None
        """How calls are served: `{body, header, delay}`; None leaves them in the inbox."""
        self._due: list[tuple[float, int]] = []
        self._last = 0

    def close(self) -> None:
        self.context.destroy(linger=0)

    def send(self, frames: list[bytes]) -> None:
        """Any frames, after the empty start of the socket's own envelope."""
        self.socket.send_multipart(frames)

    def post(self, header: dict[str, Any] | bytes, body: Any = None) -> None:
        """One message of the protocol's three frames."""
        packed = body if isinstance(body, bytes) else pack({} if body is None else body)
        self.send([GREETING, header if isinstance(header, bytes) else pack(header), packed])

    def start(self, op: str, args: Any = None, **header: Any) -> int:
        """A call; its id."""
        self._last += 1
        self.post({"kind": "call", "id": self._last, "op": op, **header}, args)
        return self._last

    def wait(self, number: int, timeout: float = 10.0) -> tuple[bool, Any]:
        """Whether it went well, and the result or the error; `(False, {"code": "UNANSWERED"})` when nothing came."""
        end = time.monotonic() + timeout
        while number not in self.replies and time.monotonic() < end:
            self.pump(0.05)
        if number not in self.replies:
            return False, {"code": UNANSWERED}
        header, body = self.replies[number][0]
        return bool(header.get("ok", True)), body

    def call(self, op: str, args: Any = None, timeout: float = 10.0, **header: Any) -> tuple[bool, Any]:
        """`start` and `wait`."""
        return self.wait(self.start(op, args, **header), timeout)

    def code(self, op: str, args: Any = None, timeout: float = 10.0, **header: Any) -> str:
        """`ok`, or the error's code."""
        ok, body = self.call(op, args, timeout, **header)
        return "ok" if ok else str(body.get("code"))

    def hello(self, token: str = "", client: str = "") -> tuple[bool, Any]:
        """Say who this is."""
        return self.call("sys.hello", {"token": token, "client": client})

    def flood(self, op: str, args: Any, count: int, window: int = 100, **header: Any) -> dict[str, int]:
        """`count` calls, `window` of them under way at a time; how many ended how."""
        outcomes: Counter[str] = Counter()
        waiting: set[int] = set()
        sent = 0
        quiet = time.monotonic() + 10
        while (sent < count or waiting) and time.monotonic() < quiet:
            while sent < count and len(waiting) < window:
                waiting.add(self.start(op, args, **header))
                sent += 1
            self.pump(0.05)
            for number in [number for number in waiting if number in self.replies]:
                (head, body), *_ = self.replies.pop(number)
                outcomes["ok" if head.get("ok", True) else str(body.get("code"))] += 1
                waiting.discard(number)
                quiet = time.monotonic() + 10
        outcomes[UNANSWERED] += len(waiting)
        return {code: number for code, number in outcomes.items() if number}

    def pump(self, seconds: float) -> None:
        """Take what has come, waiting at most so long for the first of it."""
        if self.socket.poll(0 if self._due else int(seconds * 1000)):
            for _ in range(1000):
                try:
                    frames = self.socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._take(frames)
        elif self._due:
            time.sleep(min(seconds, 0.005))
        while self._due and self._due[0][0] <= time.monotonic():
            self._serve(self._due.pop(0)[1])

    def _take(self, frames: list[bytes]) -> None:
        if len(frames) != 3:
            return
        header, body = (msgpack.unpackb(frame, raw=False, strict_map_key=False) for frame in frames[1:])
        kind = header.get("kind")
        if kind == "reply":
            self.replies.setdefault(header.get("id", 0), []).append((header, body))
        elif kind == "chunk":
            self.chunks.setdefault(header.get("id", 0), []).append(body)
        elif kind == "call" and header.get("op") == "sys.ping":  # who does not answer is restarted
            self.post({"kind": "reply", "id": header["id"]})
        else:
            self.inbox.append((header, body))
            if kind == "call" and self.answer is not None:
                self._due.append((time.monotonic() + float(self.answer.get("delay", 0)), header["id"]))

    def _serve(self, number: int) -> None:
        answer = self.answer or {}
        self.post({"kind": "reply", "id": number, **answer.get("header", {})}, answer.get("body", {}))
