"""Calls in flight: each gets exactly one final reply, whatever becomes of its caller, its server, or its time."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Header, Kind, pack_header
from llmos.kernel import params
from llmos.kernel.capability import Capability
from llmos.kernel.labels import BOTTOM, Label, Source
from llmos.kernel.loop import Loop, Timer

EMPTY = wire.encode({})
KERNEL = 0
"""The connection of calls that the kernel makes itself."""

Send = Callable[[int, bytes, bytes], None]
"""conn, header, body → the gate."""


class Deliver(Protocol):
    """What becomes of an answer before its caller gets it: (ok, body, label). Raises `OpError` when it must not get it."""

    def __call__(
        self, call: Call, ok: bool, body: bytes, label: Label, source: Source | None
    ) -> tuple[bool, bytes, Label]: ...


class Server(Protocol):
    """Where a call is being served: a process's connection, or an app's."""

    @property
    def conn(self) -> int: ...


class Call:
    """One call: who asked, who serves it, how long it may take, and the stream of its answer."""

    __slots__ = (
        "_backlog",
        "_backlog_bytes",
        "_calls",
        "_credit",
        "_seq",
        "caller_id",
        "cap",
        "children",
        "conn",
        "depth",
        "done",
        "holder",
        "id",
        "keep",
        "label",
        "on_drained",
        "on_end",
        "on_result",
        "op",
        "parent",
        "read",
        "server",
        "started",
        "timer",
        "wait_s",
    )  # fmt: skip

    def __init__(self, calls: Calls, id: int, conn: int, holder: str, header: Header) -> None:  # noqa: A002
        self._calls = calls
        self.id = id
        """The kernel's own number for it, and the id under which its server knows it."""
        self.conn = conn
        self.caller_id = header.id
        self.holder = holder
        self.op = header.op
        self.keep = header.keep
        """Whether the answer stays with the kernel as a value."""
        self.label = BOTTOM
        """Of the call with all its arguments, and of what came to its caller while it was serving it."""
        self.read = BOTTOM
        """Of the arguments as they came, references substituted: what an error may repeat."""
        self.depth = 0
        """Calls that it is a part of."""
        self.cap: Capability | None = None
        """What allowed it; tokens and bytes are charged to it."""
        self.started = calls.loop.clock()
        self.server: Server | None = None
        self.parent: Call | None = None
        self.children: set[Call] = set()
        self.timer: Timer | None = None
        self.wait_s = header.deadline_ms / 1000
        """How long its caller wants to wait; 0 when it did not say."""
        self.done = False
        self.on_end: Callable[[], None] | None = None
        """Called once when it ends for any reason: gives back what was taken for it."""
        self.on_drained: Callable[[], None] | None = None
        """Called when the reader has taken everything that was sent."""
        self.on_result: Callable[[bool, bytes, Label], None] | None = None
        """Given the answer and its label, in a call that the kernel made itself."""
        self._credit = header.credit
        self._seq = 0
        self._backlog: deque[tuple[bytes, Label]] = deque()
        self._backlog_bytes = 0

    def is_behind(self) -> bool:
        """Whether its reader has chunks waiting that it gave no credit for."""
        return bool(self._backlog)

    def reply(self, result: dict[str, Any], label: Label = BOTTOM, source: Source | None = None) -> None:
        """The final answer; one too large becomes `TOO_LARGE`. Does nothing when the call has ended.

        Args:
            label: of what is in it.
            source: where that came from; None for the kernel itself.
        """
        body = wire.encode(result)
        if len(body) > wire.MAX_BODY:
            self.fail(
                OpError(
                    Code.TOO_LARGE,
                    f"{self.op}: the answer has {len(body)} bytes, the limit is {wire.MAX_BODY}",
                    "ask for less",
                )
            )
        else:
            self._calls.end(self, True, body, label, source)

    def fail(self, error: OpError, label: Label = BOTTOM, source: Source | None = None) -> None:
        """The final answer, as an error. Does nothing when the call has ended."""
        self._calls.end(self, False, wire.encode(error.to_wire()), label, source)

    def chunk(self, data: dict[str, Any], label: Label = BOTTOM, source: Source | None = None) -> None:
        """A part of the answer. Beyond the reader's credit it waits here; beyond `STREAM_BYTES`, or `STREAM_CHUNKS`, the call ends
        with `BUSY`.

        Of an answer that is kept nothing is sent before its end.
        """
        if self.done or self.keep:
            return
        body = wire.encode(data)
        if len(body) > wire.MAX_BODY:
            self.fail(OpError(Code.TOO_LARGE, f"{self.op}: a chunk of {len(body)} bytes"))
            return
        try:
            _, body, label = self._calls.deliver(self, True, body, label, source)
        except OpError as error:
            self.fail(error)
            return
        self._backlog.append((body, label))
        self._backlog_bytes += len(body)
        self._pump()
        if self._backlog_bytes > params.STREAM_BYTES or len(self._backlog) > params.STREAM_CHUNKS:
            self._backlog.clear()
            self.fail(
                OpError(Code.BUSY, f"{self.op}: the answer is not being read", "read the stream, or give more credit")
            )

    def grant(self, credit: int) -> None:
        """The reader takes `credit` more chunks."""
        self._credit += max(0, min(credit, 1 << 20))
        self._pump()

    def flush(self) -> None:
        """What is left of the stream, before a final reply: the reader must take it anyway."""
        self._credit = len(self._backlog)
        self._pump()

    def _pump(self) -> None:
        while self._backlog and self._credit > 0:
            body, label = self._backlog.popleft()
            self._backlog_bytes -= len(body)
            self._credit -= 1
            header = Header(kind=Kind.CHUNK, id=self.caller_id, seq=self._seq, label=label.to_wire())
            self._calls.send(self.conn, pack_header(header), body)
            self._seq += 1
        if not self._backlog and self.on_drained is not None:
            drained, self.on_drained = self.on_drained, None
            drained()


class Calls:
    """All calls in flight.

    Args:
        send: to a connection.
        finished: told of every call that ended, with the error's code or None; for the log.
        deliver: what becomes of an answer before its caller gets it.
    """

    def __init__(self, loop: Loop, send: Send, finished: Callable[[Call, str | None], None], deliver: Deliver) -> None:
        self.loop = loop
        self.send = send
        self.deliver = deliver
        self._finished = finished
        self._by_id: dict[int, Call] = {}
        self._by_caller: dict[int, dict[int, Call]] = {}
        self._by_server: dict[int, set[Call]] = {}
        self._ids = itertools.count(1)

    def __len__(self) -> int:
        return len(self._by_id)

    def begin(self, conn: int, holder: str, header: Header) -> Call:
        """A new call. Raises `OpError(INVALID_ARGUMENT)` for an id in use, `BUSY` when the caller has too many in flight."""
        mine = self._by_caller.setdefault(conn, {})
        if header.id < 1:
            raise OpError(Code.INVALID_ARGUMENT, "header: field id must be 1 or more")
        if header.id in mine:
            raise OpError(Code.INVALID_ARGUMENT, f"header: id {header.id} is in use by another call of this connection")
        if len(mine) >= params.MAX_CALLS:
            raise OpError(
                Code.BUSY, f"{params.MAX_CALLS} calls are in flight on this connection", "wait for some to end"
            )
        call = Call(self, next(self._ids), conn, holder, header)
        mine[header.id] = call
        self._by_id[call.id] = call
        return call

    def expire(self, call: Call, seconds: float, error: Callable[[], OpError] | None = None) -> None:
        """End it with `error`, or `TIMEOUT`, unless it has ended by then. In place of what was said before."""
        if call.timer is not None:
            call.timer.cancel()

        def late() -> None:
            late_error = OpError(Code.TIMEOUT, f"{call.op}: no answer within {seconds:g} s")
            self.cancel(call, error() if error is not None else late_error)

        call.timer = self.loop.later(seconds, late)

    def adopt(self, call: Call, conn: int, parent_id: int) -> None:
        """Make it a part of the call that its caller is serving, so that it ends no later than that one.

        Raises `OpError(BUSY)` beyond a depth that only a circle reaches.
        """
        parent = self._by_id.get(parent_id)
        if parent is not None and parent.server is not None and parent.server.conn == conn:
            if parent.depth >= params.MAX_DEPTH:
                raise OpError(
                    Code.BUSY, f"{call.op}: {params.MAX_DEPTH} calls within one another", "do they call in a circle?"
                )
            call.parent, call.depth = parent, parent.depth + 1
            parent.children.add(call)

    def serve(self, call: Call, server: Server) -> None:
        """It is on its way to `server`."""
        call.server = server
        self._by_server.setdefault(server.conn, set()).add(call)

    def load(self, conn: int) -> int:
        """How many calls a connection is serving."""
        return len(self._by_server.get(conn, ()))

    def made_by(self, conn: int) -> int:
        """How many a connection waits for."""
        return len(self._by_caller.get(conn, ()))

    def load_of(self, conn: int, holder: str) -> int:
        """How many of them are this holder's."""
        return sum(call.holder == holder for call in self._by_server.get(conn, ()))

    def served_by(self, conn: int, id: int) -> Call | None:  # noqa: A002
        """The call of this number, if it is this connection that serves it and it has not ended."""
        call = self._by_id.get(id)
        return call if call is not None and call.server is not None and call.server.conn == conn else None

    def credit(self, conn: int, caller_id: int, n: int) -> None:
        call = self._by_caller.get(conn, {}).get(caller_id)
        if call is not None:
            call.grant(n)

    def cancelled(self, conn: int, caller_id: int) -> None:
        """The caller does not want it any more."""
        call = self._by_caller.get(conn, {}).get(caller_id)
        if call is not None:
            self.cancel(call, OpError(Code.CANCELLED, f"{call.op}: cancelled by its caller"))

    def cancel(self, call: Call, error: OpError) -> None:
        """End it with an error, and tell whoever serves it."""
        if call.server is not None and not call.done:
            self.send(call.server.conn, pack_header(Header(kind=Kind.CANCEL, id=call.id)), EMPTY)
        call.fail(error)

    def revoked(self, caps: set[str]) -> None:
        """What these capabilities allowed ends with them."""
        for call in list(self._by_id.values()) if caps else ():
            if call.cap is not None and call.cap.id in caps:
                self.cancel(call, OpError(Code.REVOKED, f"{call.op}: the capability {call.cap.right} was taken back"))

    def connection_gone(self, conn: int, why: str) -> None:
        """Whoever asked on it has nobody to answer to; whatever it served fails with `PEER_DIED`."""
        for call in list(self._by_caller.pop(conn, {}).values()):
            self.cancel(call, OpError(Code.PEER_DIED, "the caller has gone"))
        for call in list(self._by_server.pop(conn, ())):
            call.fail(OpError(Code.PEER_DIED, f"{call.op}: {why}", "send it again: it comes back by itself"))

    def end(self, call: Call, ok: bool, body: bytes, label: Label = BOTTOM, source: Source | None = None) -> None:
        """The one final reply."""
        if call.done:
            return
        call.flush()
        call.done = True
        try:
            ok, body, label = self.deliver(call, ok, body, label, source)
        except OpError as error:
            ok, body, label = False, wire.encode(error.to_wire()), BOTTOM
        self._by_id.pop(call.id, None)
        self._by_caller.get(call.conn, {}).pop(call.caller_id, None)
        if call.server is not None:
            self._by_server.get(call.server.conn, set()).discard(call)
        if call.timer is not None:
            call.timer.cancel()
        if call.parent is not None:
            call.parent.children.discard(call)
        for child in list(call.children):
            self.cancel(child, OpError(Code.CANCELLED, f"{child.op}: the call it was made for has ended"))
        if call.on_result is not None:
            call.on_result(ok, body, label)
        else:
            header = Header(kind=Kind.REPLY, id=call.caller_id, ok=ok, label=label.to_wire())
            self.send(call.conn, pack_header(header), body)
        if call.on_end is not None:
            call.on_end()
        self._finished(call, None if ok else str(wire.decode_map(body).get("code", "INTERNAL")))
