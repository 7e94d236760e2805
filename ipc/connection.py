"""A process's connection to the bus: calls, streams, subscriptions, and serving calls of others. Thread-safe."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmos.ipc import paths, wire
from llmos.ipc.dealer import Dealer, Unreachable
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import (
    DEFAULT_CREDIT,
    GREETING,
    NOT_GREETED,
    Header,
    Kind,
    pack_header,
    parse_header,
    topic_matches,
)

__all__ = ["Connection", "Event", "Incoming", "Stream", "Unreachable"]

GRACE_S = 2.0
"""Seconds a caller waits beyond its deadline for the kernel to say so itself."""
HELLO_S = 3.0
"""Seconds a connection may take to be greeted."""
MAILBOX = 1000
"""Events that wait for a slow subscriber on its own side; the oldest is dropped."""


class Incoming:
    """A call to be served. `reply` or `fail` answers it, once."""

    def __init__(self, connection: Connection, header: Header, args: dict[str, Any]) -> None:
        self._connection = connection
        self.header = header
        self.args = args
        self.cancelled = threading.Event()

    def reply(self, result: dict[str, Any]) -> None:
        """Send the result; one that is too large becomes `TOO_LARGE`."""
        try:
            self._connection._answer(self.header.id, True, _pack_body(result))  # noqa: SLF001  (two halves of one class)
        except OpError as error:
            self.fail(error)

    def fail(self, error: OpError) -> None:
        """Send an error."""
        self._connection._answer(self.header.id, False, wire.encode(error.to_wire()))  # noqa: SLF001


class Event:
    """One event: what was published, by whom, when."""

    __slots__ = ("data", "sender", "seq", "topic", "ts")

    def __init__(self, header: Header, data: dict[str, Any]) -> None:
        self.topic, self.sender, self.seq, self.ts, self.data = header.topic, header.sender, header.seq, header.ts, data


class _Waiting:
    """A call in flight: what has come so far."""

    __slots__ = ("chunks", "error", "result", "seen")

    def __init__(self) -> None:
        self.chunks: deque[dict[str, Any]] = deque()
        self.result: dict[str, Any] | None = None
        self.error: OpError | None = None
        self.seen = 0

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None


class _Mailbox:
    """A subscription's events that have not been read."""

    __slots__ = ("events", "lost", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.events: deque[Event] = deque(maxlen=MAILBOX)
        self.lost = False


class Connection:
    """Connects and says hello on the first call, and again after the gate came back.

    Args:
        address: path of the gate's unix socket; by default `LLMOS_BUS`, else the runtime directory's.
        token: proof of who this is; by default `LLMOS_TOKEN`, else the user's own token file.
        client: a name for logs.
    """

    def __init__(self, address: Path | None = None, token: str | None = None, client: str = "") -> None:
        path = address or Path(os.environ.get("LLMOS_BUS") or paths.bus_socket(paths.runtime_dir()))
        self._dealer = Dealer(path, self._take, self._lost)
        self._changed = self._dealer.changed
        self._token = token or os.environ.get("LLMOS_TOKEN")
        self._client = client
        self._pid = os.getpid()
        self._greeting = threading.RLock()
        self._greeted = False
        self._last_id = 0
        self._waiting: dict[int, _Waiting] = {}
        self._incoming: deque[Incoming] = deque()
        self._serving: dict[int, Incoming] = {}
        self._mailboxes: list[_Mailbox] = []
        self.badge = ""
        self.hello: dict[str, Any] = {}
        self.on_greeted: Callable[[], None] | None = None
        """Called after every successful hello, the first and those after the gate came back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """Where the gate listens."""
        return self._dealer.path

    @property
    def token(self) -> str:
        """What it proves itself with. Raises `Unreachable` when there is none to be found."""
        if self._token:
            return self._token
        path = paths.token_file(self.path.parent.parent)
        try:
            return path.read_text().strip()
        except OSError as error:
            raise Unreachable(f"{path}: {error.strerror}", "start the system with `llmosctl up`") from None

    def close(self) -> None:
        """Ends every wait with `CANCELLED`, and cancels what is being served. Idempotent."""
        self._dealer.close()
        with self._changed:
            for call in self._serving.values():
                call.cancelled.set()
        self._fail_all(OpError(Code.CANCELLED, "the connection was closed"))

    # -- calling ---------------------------------------------------------------------------------------------------

    def call(
        self, op: str, args: dict[str, Any] | None = None, *, timeout: float | None = None, parent: int = 0
    ) -> dict[str, Any]:
        """The result of a call. `timeout` in seconds; None takes the op's own. Raises `OpError`, `Unreachable`."""
        stream = self.stream(op, args, timeout=timeout, parent=parent)
        for _ in stream:
            pass
        return stream.result

    def stream(
        self, op: str, args: dict[str, Any] | None = None, *, timeout: float | None = None, parent: int = 0
    ) -> Stream:
        """A call whose answer comes in chunks: iterate for the chunks, then read `result`."""
        self._greet()
        return self._start(op, args or {}, timeout, parent)

    def subscribe(self, topic: str) -> Generator[Event, None, None]:
        """Events of every topic that matches, for ever; it ends with `PEER_DIED` when the gate restarts, `CANCELLED` on close."""
        mailbox = _Mailbox(topic)
        self._greet()
        with self._changed:
            self._mailboxes.append(mailbox)
        try:
            number = int(self.call("bus.subscribe", {"topic": topic})["subscription"])
        except OpError:
            self._forget(mailbox)
            raise
        return self._receive_events(number, mailbox)

    def _receive_events(self, number: int, mailbox: _Mailbox) -> Generator[Event, None, None]:
        events = mailbox.events
        try:
            while True:
                self._dealer.wait(lambda: bool(events) or self._dealer.closed or mailbox.lost, None)
                if events:
                    yield events.popleft()
                elif self._dealer.closed:
                    return
                else:
                    raise OpError(Code.PEER_DIED, "the gate restarted; the subscription is gone", "subscribe again")
        finally:
            self._forget(mailbox)
            if not self._dealer.closed and not mailbox.lost:
                with contextlib.suppress(OpError):
                    self.call("bus.unsubscribe", {"subscription": number}, timeout=1)

    def _forget(self, mailbox: _Mailbox) -> None:
        with self._changed:
            if mailbox in self._mailboxes:
                self._mailboxes.remove(mailbox)

    # -- serving ---------------------------------------------------------------------------------------------------

    def next_call(self, timeout: float | None = None) -> Incoming | None:
        """The next call to serve; None when none came within `timeout` seconds, or the connection closed. Reconnects by itself."""
        limit = None if timeout is None else time.monotonic() + timeout
        while not self._dealer.closed:
            self._greet()
            self._dealer.wait(lambda: bool(self._incoming) or self._dealer.closed or not self._greeted, limit)
            with self._changed:
                if self._incoming:
                    return self._incoming.popleft()
            if limit is not None and time.monotonic() >= limit:
                return None
        return None

    def _answer(self, number: int, ok: bool, body: bytes) -> None:
        with self._changed:
            if self._serving.pop(number, None) is None:
                return  # the gate restarted meanwhile, and whoever asked has been told
        self._dealer.post([GREETING, pack_header(Header(kind=Kind.REPLY, id=number, ok=ok)), body])

    # -- messages --------------------------------------------------------------------------------------------------

    def _start(self, op: str, args: dict[str, Any], timeout: float | None, parent: int) -> Stream:
        body = _pack_body(args)
        with self._changed:
            self._last_id += 1
            number = self._last_id
            waiting = self._waiting[number] = _Waiting()
        deadline_ms = 0 if timeout is None else max(1, int(timeout * 1000))
        self._dealer.post(
            [
                GREETING,
                pack_header(Header(kind=Kind.CALL, id=number, op=op, deadline_ms=deadline_ms, parent=parent)),
                body,
            ]
        )
        return Stream(self, number, waiting, None if timeout is None else time.monotonic() + timeout + GRACE_S, op)

    def _greet(self) -> None:
        """Connect and say hello, unless that has been done. Raises `Unreachable`, `OpError(DENIED)`."""
        if self._greeted and not self._dealer.lost():
            return
        with self._greeting:
            if self._greeted:
                return
            if self._dealer.closed:
                raise OpError(Code.CANCELLED, "the connection is closed")
            if os.getpid() != self._pid:
                raise OpError(Code.INVALID_ARGUMENT, "a connection does not survive fork; open one in the child")
            self._dealer.open()
            try:
                hello = self._start("sys.hello", {"token": self.token, "client": self._client}, HELLO_S, 0)
                self.hello = hello.finish()
            except OpError as error:
                if error.code in (Code.TIMEOUT, Code.PEER_DIED):
                    detail = f"the kernel at {self.path} does not answer"
                    raise Unreachable(detail, "see `llmosctl logs kernel`") from None
                raise
            self.badge = str(self.hello.get("badge", ""))
            self._greeted = True
        if self.on_greeted is not None:
            self.on_greeted()

    def _lost(self) -> None:
        """The gate has gone, and with it all that was under way."""
        self._greeted = False
        self._incoming.clear()
        for call in self._serving.values():
            call.cancelled.set()
        self._serving.clear()
        for mailbox in self._mailboxes:
            mailbox.lost = True
        self._mailboxes.clear()
        hint = "send it again; the system restarts its gate by itself"
        self._fail_all(OpError(Code.PEER_DIED, "the gate went away", hint))

    def _fail_all(self, error: OpError) -> None:
        with self._changed:
            for waiting in self._waiting.values():
                waiting.error = error
            self._waiting.clear()
            self._changed.notify_all()

    def _take(self, frames: list[bytes]) -> None:
        """One message from the kernel; it is trusted to frame well, and its bodies are others' and decoded with limits."""
        if len(frames) != 3 or frames[0] != GREETING:
            return
        header = parse_header(wire.decode_map(frames[1]))
        match header.kind:
            case Kind.REPLY:
                waiting = self._waiting.pop(header.id, None)
                if waiting is not None:
                    _finish(waiting, header.ok, frames[2])
                    if waiting.error is not None and waiting.error.detail == NOT_GREETED:
                        self._greeted = False  # the gate has forgotten this connection: the next call opens another
            case Kind.CHUNK:
                waiting = self._waiting.get(header.id)
                if waiting is not None:
                    waiting.chunks.append(_unpack_body(frames[2]))
            case Kind.EVENT:
                event = Event(header, _unpack_body(frames[2]))
                for mailbox in self._mailboxes:
                    if topic_matches(mailbox.pattern, event.topic):
                        mailbox.events.append(event)
            case Kind.CALL:
                call = Incoming(self, header, _unpack_body(frames[2]))
                self._serving[header.id] = call
                self._incoming.append(call)
            case Kind.CANCEL:
                serving = self._serving.get(header.id)
                if serving is not None:
                    serving.cancelled.set()
            case Kind.CREDIT:
                pass  # the kernel grants no credit to a server yet: a driver's answer is one reply


class Stream(Iterator[dict[str, Any]]):
    """The chunks of one call. `result` is there after the last chunk; leaving early: `cancel`."""

    def __init__(self, connection: Connection, number: int, waiting: _Waiting, limit: float | None, op: str) -> None:
        self._connection = connection
        self._number = number
        self._waiting = waiting
        self._limit = limit
        self._op = op

    def __next__(self) -> dict[str, Any]:
        waiting = self._waiting
        if not self._connection._dealer.wait(lambda: bool(waiting.chunks) or waiting.done, self._limit):  # noqa: SLF001
            self.cancel()
            raise OpError(Code.TIMEOUT, f"{self._op}: no answer in time")
        if waiting.chunks:
            waiting.seen += 1
            if waiting.seen % (DEFAULT_CREDIT // 2) == 0:
                self._tell(Header(kind=Kind.CREDIT, id=self._number, n=DEFAULT_CREDIT // 2))
            return waiting.chunks.popleft()
        if waiting.error is not None:
            raise waiting.error
        raise StopIteration

    def finish(self) -> dict[str, Any]:
        """Skip the chunks that are left and give the result. Raises `OpError`."""
        for _ in self:
            pass
        return self.result

    @property
    def result(self) -> dict[str, Any]:
        """The final reply's body. Raises the call's `OpError`."""
        if self._waiting.error is not None:
            raise self._waiting.error
        if self._waiting.result is None:
            raise OpError(Code.INVALID_ARGUMENT, f"{self._op} has not ended: read its chunks first")
        return self._waiting.result

    def cancel(self) -> None:
        """Tell the kernel that the answer is not wanted any more."""
        if not self._waiting.done:
            self._tell(Header(kind=Kind.CANCEL, id=self._number))

    def _tell(self, header: Header) -> None:
        self._connection._dealer.post([GREETING, pack_header(header), _EMPTY])  # noqa: SLF001


_EMPTY = wire.encode({})


def _finish(waiting: _Waiting, ok: bool, body: bytes) -> None:
    content = _unpack_body(body)
    if ok:
        waiting.result = content
    else:
        waiting.error = OpError.from_wire(content)


def _unpack_body(body: bytes) -> dict[str, Any]:
    try:
        return wire.decode_map(body)
    except wire.Malformed as error:
        return {"code": "INTERNAL", "detail": f"a malformed body: {error}"}


def _pack_body(body: dict[str, Any]) -> bytes:
    try:
        packed = wire.encode(body)
    except wire.Malformed as error:
        raise OpError(Code.INVALID_ARGUMENT, str(error)) from None
    if len(packed) > wire.MAX_BODY:
        detail = f"{len(packed)} bytes in one message, the limit is {wire.MAX_BODY}"
        raise OpError(Code.TOO_LARGE, detail, "send it in parts, or put it into a file and send its path")
    return packed
