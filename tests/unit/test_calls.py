"""Calls in flight: exactly one final reply, whatever happens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Header, Kind, parse_header
from llmos.kernel import params
from llmos.kernel.calls import Call, Calls
from llmos.kernel.loop import Loop


class World:
    """A table of calls whose messages are kept, and a clock that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[tuple[int, Header, dict[str, Any]]] = []
        self.loop = Loop(lambda: self.now)
        self.calls = Calls(
            self.loop, self._send, lambda call, code: None, lambda call, ok, body, label, source: (ok, body, label)
        )

    def _send(self, conn: int, header: bytes, body: bytes) -> None:
        self.sent.append((conn, parse_header(wire.decode_map(header)), wire.decode_map(body)))

    def begin(self, conn: int = 1, id: int = 1, **fields: Any) -> Call:  # noqa: A002
        return self.calls.begin(conn, "user", Header(kind=Kind.CALL, id=id, op="x.y", **fields))

    def answered(self, conn: int, call: Call) -> None:
        """A reply of whoever is on `conn`."""
        served = self.calls.served_by(conn, call.id)
        if served is not None:
            self.calls.end(served, True, wire.encode({}))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.loop.later(0, lambda: None)
        self.loop.turn()

    def of(self, kind: Kind) -> list[tuple[int, Header, dict[str, Any]]]:
        return [message for message in self.sent if message[1].kind is kind]


@dataclass
class Server:
    """Where a call is served."""

    conn: int


def test_the_first_answer_is_the_only_one() -> None:
    """A reply, a failure and a time-out after it go nowhere."""
    world = World()
    call = world.begin()
    world.calls.expire(call, 5)
    call.reply({"n": 1})
    call.reply({"n": 2})
    call.fail(OpError(Code.INTERNAL, "late"))
    world.pass_time(10)
    assert [body for _, _, body in world.sent] == [{"n": 1}]


def test_a_stream_waits_for_credit_and_ends_in_order() -> None:
    """Chunks beyond the credit wait; the final reply comes after all of them."""
    world = World()
    call = world.begin(credit=2)
    for number in range(5):
        call.chunk({"n": number})
    assert len(world.of(Kind.CHUNK)) == 2
    world.calls.credit(1, 1, 1)
    assert len(world.of(Kind.CHUNK)) == 3
    call.reply({})
    assert [header.seq for _, header, _ in world.of(Kind.CHUNK)] == [0, 1, 2, 3, 4]
    assert world.sent[-1][1].kind is Kind.REPLY


@pytest.mark.parametrize(("size", "count"), [(1000, params.STREAM_BYTES // 1000 + 1), (1, params.STREAM_CHUNKS + 1)])
def test_a_stream_that_nobody_reads_ends_with_busy(size: int, count: int) -> None:
    """What waits for it is bounded, in bytes and in number: all of it goes out at once when the answer comes."""
    world = World()
    call = world.begin(credit=0)
    for _ in range(count):
        call.chunk({"data": b"x" * size})
    assert call.done
    assert world.sent[-1][2]["code"] == "BUSY"


def test_an_answer_too_large_for_a_frame_becomes_an_error() -> None:
    """The caller still gets its one reply."""
    world = World()
    world.begin().reply({"data": b"x" * wire.MAX_BODY})
    assert world.sent[-1][2]["code"] == "TOO_LARGE"


def test_a_part_ends_with_the_whole() -> None:
    """A call made for another is cancelled when that one ends, and its server hears of it."""
    world = World()
    whole = world.begin(conn=1, id=1)
    world.calls.serve(whole, Server(2))
    part = world.begin(conn=2, id=1)
    world.calls.adopt(part, 2, whole.id)
    world.calls.serve(part, Server(3))
    world.calls.cancelled(1, 1)
    assert whole.done
    assert part.done
    assert {conn for conn, _, _ in world.of(Kind.CANCEL)} == {2, 3}


def test_only_its_own_server_can_answer_a_call() -> None:
    """Another connection that guesses the number is not heard."""
    world = World()
    call = world.begin()
    world.calls.serve(call, Server(2))
    world.answered(3, call)
    assert not call.done
    world.answered(2, call)
    assert call.done


def test_too_many_calls_at_once_are_busy() -> None:
    """And an id in use is refused."""
    world = World()
    for number in range(params.MAX_CALLS):
        world.begin(id=number + 1)
    with pytest.raises(OpError) as caught:
        world.begin(id=params.MAX_CALLS + 1)
    assert caught.value.code is Code.BUSY
    with pytest.raises(OpError) as caught:
        world.begin(id=1)
    assert caught.value.code is Code.INVALID_ARGUMENT


class OneReply(RuleBasedStateMachine):
    """Callers, servers, time and deaths in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.begun: list[Call] = []
        self.gone: set[int] = set()
        self.ids = Counter[int]()

    @rule(conn=st.integers(1, 3), server=st.integers(4, 6), seconds=st.integers(1, 9))
    def call(self, conn: int, server: int, seconds: int) -> None:
        self.ids[conn] += 1
        call = self.world.begin(conn, self.ids[conn])
        self.world.calls.expire(call, seconds)
        self.world.calls.serve(call, Server(server))
        self.begun.append(call)

    @rule(index=st.integers(0, 50), conn=st.integers(4, 6))
    def answer(self, index: int, conn: int) -> None:
        if index < len(self.begun):
            self.world.answered(conn, self.begun[index])

    @rule(index=st.integers(0, 50))
    def chunk(self, index: int) -> None:
        if index < len(self.begun):
            self.begun[index].chunk({})

    @rule(index=st.integers(0, 50))
    def cancel(self, index: int) -> None:
        if index < len(self.begun):
            self.world.calls.cancelled(self.begun[index].conn, self.begun[index].caller_id)

    @rule(conn=st.integers(1, 6))
    def die(self, conn: int) -> None:
        self.world.calls.connection_gone(conn, "test")
        self.gone.add(conn)

    @rule(seconds=st.integers(1, 5))
    def wait(self, seconds: int) -> None:
        self.world.pass_time(seconds)

    @invariant()
    def one_reply_each(self) -> None:
        replies = Counter((conn, header.id) for conn, header, _ in self.world.of(Kind.REPLY))
        for call in self.begun:
            assert replies[call.conn, call.caller_id] == (1 if call.done else 0)
        assert len(self.world.calls) == sum(not call.done for call in self.begun)


TestOneReply = OneReply.TestCase
TestOneReply.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
