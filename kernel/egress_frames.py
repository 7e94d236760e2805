"""The pipe between the kernel and the egress broker: one msgpack map a frame, told apart by `type`."""

from __future__ import annotations

import msgspec


class Up(msgspec.Struct, tag="up", frozen=True):
    """To the kernel: the broker listens."""


class Ask(msgspec.Struct, tag="ask", frozen=True):
    """To the kernel: the process `pid` wants a connection; the answer is `Yes` or `No`."""

    n: int
    """The connection, by the broker's count."""
    pid: int
    """As the operating system says."""
    host: str
    port: int
    since: float
    """When it connected to the broker, on the monotonic clock: a process born later is another one with its number."""


class Moved(msgspec.Struct, tag="moved", frozen=True):
    """To the kernel: so many bytes more went over a metered connection, both ways together."""

    n: int
    bytes: int


class Over(msgspec.Struct, tag="over", frozen=True):
    """To the kernel: what was allowed has ended, or has come to nothing."""

    n: int
    reason: str
    address: str = ""
    """That was connected to; empty when none was."""
    sent: int = 0
    received: int = 0
    """Bytes from and to the driver."""
    seconds: float = 0.0
    refused: bool = False
    """Whether it is the broker that forbade it."""


class Yes(msgspec.Struct, tag="yes", frozen=True):
    """To the broker: connect."""

    n: int
    private: bool
    """Whether addresses inside are allowed."""
    metered: bool
    """Whether bytes are to be reported on the way."""
    hint: str
    """What would allow an address inside."""


class No(msgspec.Struct, tag="no", frozen=True):
    """To the broker: do not; the error for the driver."""

    n: int
    code: str
    detail: str
    hint: str


class Cut(msgspec.Struct, tag="cut", frozen=True):
    """To the broker: end these now."""

    ns: list[int]
    reason: str


encode = msgspec.msgpack.Encoder().encode
to_kernel = msgspec.msgpack.Decoder(Up | Ask | Moved | Over)
to_broker = msgspec.msgpack.Decoder(Yes | No | Cut)
