"""The kernel's loop, with real descriptors and a clock that moves when told."""

from __future__ import annotations

import os
import socket

from llmos.kernel.loop import Loop


def test_timers_run_in_order_and_cancelled_ones_do_not() -> None:
    """At their time, not before."""
    now = 0.0
    loop = Loop(lambda: now)
    ran: list[str] = []
    loop.later(2, lambda: ran.append("late"))
    loop.later(1, lambda: ran.append("early"))
    loop.later(1, lambda: ran.append("never")).cancel()
    loop.later(0, lambda: None)
    loop.turn()
    assert ran == []
    now = 3.0
    loop.turn()
    assert ran == ["early", "late"]
    loop.close()


def test_a_callback_may_close_what_another_was_about_to_read() -> None:
    """Both were ready in the same turn; the second is left alone."""
    loop = Loop()
    pairs = [socket.socketpair() for _ in range(2)]
    served: list[int] = []

    def read(index: int) -> None:
        served.append(index)
        other = pairs[1 - index][0]
        loop.unwatch(other)
        other.close()

    for index, (ours, theirs) in enumerate(pairs):
        loop.watch(ours, lambda index=index: read(index))  # type: ignore[misc]
        theirs.send(b"x")
    loop.turn()
    assert len(served) == 1
    loop.close()
    for pair in pairs:
        for one in pair:
            one.close()


def test_a_write_callback_runs_only_while_wanted() -> None:
    """And what is watched for both is served for both."""
    loop = Loop()
    ours, theirs = socket.socketpair()
    seen: list[str] = []

    def read() -> None:
        seen.append("read")
        os.read(ours.fileno(), 10)

    loop.watch(ours, read)
    loop.want_write(ours, lambda: seen.append("write"))
    theirs.send(b"x")
    loop.turn()
    assert sorted(seen) == ["read", "write"]
    loop.want_write(ours, None)
    loop.later(0, lambda: None)
    loop.turn()
    assert sorted(seen) == ["read", "write"]
    loop.close()
    ours.close()
    theirs.close()
