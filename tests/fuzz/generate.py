"""Malformed and merely odd messages, from a seed: the same seed gives the same messages, whatever is answered to them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec

from llmos.ipc import wire
from llmos.ipc.protocol import GREETING, MAX_DEADLINE_MS, SYSCALLS, Kind, Syscall

LEFT_OUT = frozenset({"sys.shutdown", "proc.kill", "sys.hello"})
"""What would end the run if it were allowed, and the hello that says who this is."""
USER_OPS = tuple(
    "perm.list perm.check perm.why perm.mine audit.list audit.export approval.list approval.show approval.rules undo.list "
    "label.why bus.list bus.replay bus.subscribe bus.unsubscribe driver.list driver.show sys.ops sys.status sys.ping proc.list proc.logs "
    "apps.list value.open value.describe value.project value.drop plan.fix fn.unregister llm.close perm.revoke approval.answer".split()
)
"""Syscalls that do no harm in the user's hands with the ids that are made up here."""
ONE_WAY = frozenset((Kind.REPLY, Kind.CHUNK, Kind.CREDIT, Kind.CANCEL))

_WORDS = (
    "", "a", "fuzz", "fuzz.a", "fuzz.*", "*", "mail", "mail.*", "user", "kernel", "app:fuzz", "app:", "filesystem", "assistant", "c1", "v1",
    "bus.subscribe(topic=fuzz.*)", "*.*", "x" * 200, "x" * 5000, "\0", "é", "\ud7ff", "../../etc/passwd", "~/Documents", ".a[0].b", "once",
    "pending", "effect", "default", "background", "interactive", "system", "1", "-1", "{}", "\n", "🜂", "a" * 40, "'; DROP TABLE audit; --",
)  # fmt: skip
_NUMBERS = (0, 1, -1, 2, 7, 63, 64, 255, 256, 1000, 65_535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 53) + 1, (1 << 63) - 1, 1 << 63,
            (1 << 64) - 1, -(1 << 63), 0.0, 0.5, -0.0, 1e300, 5e-324)  # fmt: skip
_OPS = (
    *SYSCALLS,
    "filesystem.search",
    "filesystem.read",
    "app.fuzz",
    "app.nothing",
    "no.such",
    "filesystem.nope",
    "",
    ".",
    "sys",
    "sys.ping\0",
)
_BYTES = (b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xd4\x05x", b"\xc7\xff\x01",
          b"\xca\x7f\xc0\0\0", b"\xcb\x7f\xf0" + bytes(6), b"\x80", b"\x90", b"\xc0", b"\xff", b"\x81\xa1a" * 40,
          b"\x91" * 600, b"\xd6\xff\0\0\0\0")  # fmt: skip


class Generator:
    """Messages for one connection.

    Args:
        ops: syscalls to call; all but `LEFT_OUT` when empty.
    """

    def __init__(self, seed: int, ops: tuple[str, ...] = ()) -> None:
        self._random = random.Random(seed)
        self._ops = ops or tuple(op for op in SYSCALLS if op not in LEFT_OUT)
        self._limited = bool(ops)
        self._fields = {op: _fields(SYSCALLS[op]) for op in self._ops}
        self._id = 0
        self._kinds: tuple[tuple[Callable[[], list[bytes]], int], ...] = (
            (self._plausible, 45), (self._wild_arguments, 15), (self._odd_header, 15), (self._broken_bytes, 15), (self._odd_envelope, 5),
            (self._large, 1), (self._other_kinds, 4),
        )  # fmt: skip

    def message(self) -> list[bytes]:
        """The next one: frames."""
        (make,) = self._random.choices([one for one, _ in self._kinds], [weight for _, weight in self._kinds])
        return make()

    def answer(self, number: int) -> list[bytes]:
        """To a call that was handed to this connection."""
        header = {
            "kind": "reply",
            "id": number,
            "ok": self._random.random() < 0.7,
            "label": self._random.choice(([], ["u"], ["t", "x"], "t")),
        }
        return [
            GREETING,
            _pack(header),
            self._mutated(_pack({"r": self._wild(2)})) if self._random.random() < 0.5 else _pack({}),
        ]

    # -- kinds of messages -----------------------------------------------------------------------------------------

    def _plausible(self) -> list[bytes]:
        op = self._random.choice(self._ops)
        return [GREETING, _pack(self._header(op)), _pack(self._arguments(op))]

    def _wild_arguments(self) -> list[bytes]:
        op = self._random.choice(self._ops)
        names = [*self._fields[op], "x", ""]
        args = {self._random.choice(names): self._wild(3) for _ in range(self._random.randrange(4))}
        return [GREETING, _pack(self._header(op)), _pack(self._wild(4) if self._random.random() < 0.1 else args)]

    def _odd_header(self) -> list[bytes]:
        op = self._random.choice(self._ops if self._limited else _OPS)
        header: dict[Any, Any] = self._header("sys.ping" if op in LEFT_OUT else op)
        for _ in range(self._random.randrange(1, 4)):
            name = self._random.choice(
                ("kind", "id", "deadline_ms", "parent", "cap", "keep", "credit", "ok", "seq", "n", "sender", "scope", "label", "topic",
                 "ts", "number", "unknown", 5, b"id")
            )  # fmt: skip
            header[name] = self._wild(2)
        wait = header["deadline_ms"]
        if isinstance(wait, int) and 0 <= wait <= MAX_DEADLINE_MS:  # one that may wait for the user's word would do so
            header["deadline_ms"] = min(max(wait, 1), 400)
        return [GREETING, _pack(header), _pack({})]

    def _broken_bytes(self) -> list[bytes]:
        op = self._random.choice(self._ops)
        header, body = _pack(self._header(op)), _pack(self._arguments(op))
        if self._limited:  # what the user's words would become, nobody knows
            return [GREETING, header, self._mutated(body)[:1] + b"\xc1"]
        if self._random.random() < 0.5:
            return [GREETING, self._mutated(header), body]
        return [GREETING, header, self._mutated(body)]

    def _odd_envelope(self) -> list[bytes]:
        frames = self._plausible()
        match self._random.randrange(6):
            case 0:
                frames.pop(self._random.randrange(3))
            case 1:
                frames.insert(self._random.randrange(4), self._random.choice(_BYTES))
            case 2:
                frames[0] = self._random.choice((b"llmos/2", b"", b"llmos/1\0", b"LLMOS/1"))
            case 3:
                frames = frames[:1] + [b""] * self._random.randrange(1, 20)
            case 4:
                frames = [b""] * self._random.randrange(1, 5)
            case _:
                frames[1], frames[2] = frames[2], frames[1]
        return frames

    def _large(self) -> list[bytes]:
        op = self._random.choice(self._ops)
        text = "x" * self._random.choice((60_000, 65_000, 65_536, 70_000, 200_000))
        names = [*self._fields[op], "x"]
        return [GREETING, _pack(self._header(op)), _pack({self._random.choice(names): text})]

    def _other_kinds(self) -> list[bytes]:
        number = self._random.choice((self._id, self._random.randrange(1, 5000), self._random.choice(_NUMBERS)))
        header = {"kind": self._random.choice(("reply", "chunk", "credit", "cancel", "event", "call", "")), "id": number,
                  "n": self._random.choice(_NUMBERS), "seq": self._random.choice((0, 1, -1)), "ok": True}  # fmt: skip
        return [GREETING, _pack(header), _pack(self._wild(2))]

    # -- parts -----------------------------------------------------------------------------------------------------

    def _header(self, op: str) -> dict[Any, Any]:
        self._id += 1
        header: dict[Any, Any] = {
            "kind": "call",
            "id": self._id,
            "op": op,
            "deadline_ms": self._random.randrange(1, 400),
        }
        if self._random.random() < 0.1:
            header["parent"] = self._random.randrange(1, 3000)
        if self._random.random() < 0.05:
            header["cap"] = self._random.choice(_WORDS)[:80]
        if self._random.random() < 0.05:
            header["keep"] = True
        return header

    def _arguments(self, op: str) -> dict[str, Any]:
        return {
            name: self._typed(kind) if self._random.random() < 0.9 else self._wild(2)
            for name, (kind, required) in self._fields[op].items()
            if required or self._random.random() < 0.6
        }

    def _typed(self, kind: msgspec.inspect.Type) -> Any:
        """Mostly what the type wants."""
        match kind:
            case msgspec.inspect.StrType(pattern=pattern, max_length=longest):
                if pattern is not None and "|" in pattern and self._random.random() < 0.7:
                    return self._random.choice(pattern.strip("^$()").split("|"))
                return self._random.choice(_WORDS)[: longest if longest is not None else 200]
            case msgspec.inspect.IntType(ge=least, le=most):
                low = least if least is not None else 0
                return self._random.choice(
                    (low, most if most is not None else 1 << 40, low + 1, self._random.randrange(1, 50))
                )
            case msgspec.inspect.FloatType():
                return self._random.choice((0, 0.5, 1e9))
            case msgspec.inspect.BoolType():
                return self._random.random() < 0.5
            case msgspec.inspect.ListType(item_type=inner):
                return [self._typed(inner) for _ in range(self._random.randrange(4))]
            case msgspec.inspect.DictType(value_type=inner):
                return {self._random.choice(_WORDS)[:50]: self._typed(inner) for _ in range(self._random.randrange(3))}
            case msgspec.inspect.UnionType(types=types):
                return self._typed(self._random.choice(types))
            case msgspec.inspect.StructType(fields=fields):
                return {field.encode_name: self._typed(field.type) for field in fields}
            case msgspec.inspect.EnumType(cls=enumeration):
                return self._random.choice([one.value for one in enumeration])
            case msgspec.inspect.NoneType():
                return None
            case _:
                return self._wild(2)

    def _wild(self, depth: int) -> Any:
        """Anything that msgpack can say."""
        match self._random.randrange(10 if depth > 0 else 7):
            case 0 | 1:
                return self._random.choice(_WORDS)
            case 2 | 3:
                return self._random.choice(_NUMBERS)
            case 4:
                return self._random.choice((None, True, False))
            case 5:
                return self._random.randbytes(self._random.randrange(20))
            case 6:
                return self._random.choice(
                    (msgpack.ExtType(5, b"x"), float("nan"), float("inf"), msgpack.Timestamp(1, 2), {"$v": "v1"})
                )
            case 7:
                return [self._wild(depth - 1) for _ in range(self._random.randrange(5))]
            case 8:
                return {self._random.choice(_WORDS): self._wild(depth - 1) for _ in range(self._random.randrange(4))}
            case _:
                value: Any = None
                for _ in range(self._random.choice((3, 11, 12, 13, 40))):
                    value = [value] if self._random.random() < 0.5 else {"a": value}
                return value

    def _mutated(self, data: bytes) -> bytes:
        """A few bytes changed, cut off, put in, repeated."""
        made = bytearray(data)
        for _ in range(self._random.randrange(1, 4)):
            at = self._random.randrange(len(made) + 1)
            match self._random.randrange(6):
                case 0 if at < len(made):
                    made[at] ^= 1 << self._random.randrange(8)
                case 1 if at < len(made):
                    made[at] = self._random.randrange(256)
                case 2:
                    del made[at:]
                case 3:
                    made[at:at] = self._random.choice(_BYTES)
                case 4:
                    made[at:at] = made[: self._random.randrange(len(made) + 1)]
                case _:
                    made[at:at] = struct.pack(
                        ">Q", self._random.choice([one for one in _NUMBERS if isinstance(one, int)]) & (1 << 64) - 1
                    )
        return bytes(made)


def expected_answer(frames: list[bytes]) -> int | None:
    """The id under which these frames have to be answered, once; None for what is never answered.

    What `ipc/PROTOCOL.md` says: an id that cannot be read is answered as 0; a reply, a chunk, a credit and a cancel that reach the kernel
    are not answered.
    """
    raw: dict[str, Any] = {}
    if len(frames) > 1:
        try:
            raw = wire.decode_map(frames[1])
        except wire.Malformed:
            raw = {}
    number = raw.get("id", 0)
    number = number if isinstance(number, int) and 0 <= number < 1 << 63 else 0
    whole = len(frames) == 3 and frames[0] == GREETING
    if whole and max(map(len, frames[1:])) <= wire.MAX_BODY and _is_one_way(raw.get("kind")):
        return None
    return int(number)


def _is_one_way(kind: object) -> bool:
    return isinstance(kind, str) and kind in ONE_WAY


def _fields(call: type[Syscall]) -> dict[str, tuple[msgspec.inspect.Type, bool]]:
    described = msgspec.inspect.type_info(call)
    assert isinstance(described, msgspec.inspect.StructType)
    return {field.encode_name: (field.type, field.required) for field in described.fields}


def _pack(value: Any) -> bytes:
    """msgpack; keys that stand twice come about when the value is mutated."""
    packed: bytes = msgpack.packb(value, use_bin_type=True, unicode_errors="surrogatepass")
    return packed
