"""One call from its caller's side: the chunks and the reply, as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from llmos.ipc import wire
from llmos.ipc.dealer import Dealer
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import DEFAULT_CREDIT, GREETING, Header, Kind, pack_header


class Waiting:
    """A call in flight: what has come so far."""

    __slots__ = ("chunks", "error", "label", "result", "seen")

    def __init__(self) -> None:
        self.chunks: deque[dict[str, Any]] = deque()
        self.result: dict[str, Any] | None = None
        self.error: OpError | None = None
        self.seen = 0
        self.label: list[str] = []

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None

    def finish(self, header: Header, body: bytes) -> None:
        """The final reply has come."""
        self.label = header.label
        content = unpack_body(body)
        if header.ok:
            self.result = content
        else:
            self.error = OpError.from_wire(content)


class Stream(Iterator[dict[str, Any]]):
    """The chunks of one call. `result` is there after the last chunk; leaving early: `cancel`."""

    def __init__(self, dealer: Dealer, number: int, waiting: Waiting, limit: float | None, op: str) -> None:
        self._dealer = dealer
        self._number = number
        self._waiting = waiting
        self._limit = limit
        self._op = op

    def __next__(self) -> dict[str, Any]:
        waiting = self._waiting
        if not self._dealer.wait(lambda: bool(waiting.chunks) or waiting.done, self._limit):
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

    @property
    def label(self) -> list[str]:
        """Of the reply, once it is there: empty for trusted and about nothing."""
        return self._waiting.label

    def cancel(self) -> None:
        """Tell the kernel that the answer is not wanted any more."""
        if not self._waiting.done:
            self._tell(Header(kind=Kind.CANCEL, id=self._number))

    def _tell(self, header: Header) -> None:
        self._dealer.post([GREETING, pack_header(header), _EMPTY])


_EMPTY = wire.encode({})


def unpack_body(body: bytes) -> dict[str, Any]:
    """Others' bytes, decoded with limits; what is not a map within them reads like an `INTERNAL` error."""
    try:
        return wire.decode_map(body)
    except wire.Malformed as error:
        return {"code": "INTERNAL", "detail": f"a malformed body: {error}"}


def pack_body(body: dict[str, Any]) -> bytes:
    """Raises `OpError`: `INVALID_ARGUMENT` for what has no place on the wire, `TOO_LARGE`."""
    try:
        packed = wire.encode(body)
    except wire.Malformed as error:
        raise OpError(Code.INVALID_ARGUMENT, str(error)) from None
    if len(packed) > wire.MAX_BODY:
        detail = f"{len(packed)} bytes in one message, the limit is {wire.MAX_BODY}"
        raise OpError(Code.TOO_LARGE, detail, "send it in parts, or put it into a file and send its path")
    return packed
