"""Topics: who hears what."""

from __future__ import annotations

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from llmos.kernel.bus import Bus


def test_a_connection_hears_an_event_once() -> None:
    """However many of its patterns match."""
    bus = Bus()
    bus.subscribe(1, "mail.*", "c1")
    bus.subscribe(1, "mail.received", "c1")
    bus.subscribe(2, "calendar.*", "c1")
    assert bus.receivers("mail.received") == [1]


def test_revoking_a_capability_ends_what_it_allowed() -> None:
    """At once, and nothing else."""
    bus = Bus()
    bus.subscribe(1, "mail.*", "c1")
    bus.subscribe(1, "mail.*", "c2")
    bus.subscribe(2, "mail.*", "c1")
    bus.revoke({"c1"})
    assert bus.receivers("mail.received") == [1]
    bus.revoke({"c2"})
    assert bus.receivers("mail.received") == []


def test_a_connection_cannot_end_anothers_subscription() -> None:
    """Numbers are no secret; owning is what counts."""
    bus = Bus()
    number = bus.subscribe(1, "mail.*", "c1")
    with pytest.raises(OpError) as caught:
        bus.unsubscribe(2, number)
    assert caught.value.code is Code.NOT_FOUND
    assert bus.receivers("mail.received") == [1]


def test_subscriptions_are_bounded() -> None:
    """Per connection, so that one cannot use up what others need."""
    bus = Bus()
    for _ in range(params.MAX_SUBSCRIPTIONS):
        bus.subscribe(1, "mail.*", "c1")
    with pytest.raises(OpError) as caught:
        bus.subscribe(1, "mail.*", "c1")
    assert caught.value.code is Code.BUSY
    bus.subscribe(2, "mail.*", "c1")


def test_each_topic_counts_for_itself() -> None:
    """From 0, without gaps."""
    bus = Bus()
    assert [bus.number("a"), bus.number("b"), bus.number("a"), bus.number("a")] == [0, 0, 1, 2]
