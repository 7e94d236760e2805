"""Topics: who hears what, and what is kept of them."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import topic_matches
from llmos.kernel import params
from llmos.kernel.bus import NOTHING, Bus, Spec

_LEVEL = st.sampled_from(["a", "b", "mail", "mailbox"])
_TOPICS = st.lists(_LEVEL, min_size=1, max_size=5).map(".".join)
_PATTERNS = st.lists(st.one_of(_LEVEL, st.just("*")), min_size=1, max_size=5).map(".".join)


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


def test_a_holder_gets_no_more_by_connecting_again() -> None:
    """Its connections share one bound, and what one of them ends is free for another."""
    bus = Bus()
    per_conn, bound = params.MAX_SUBSCRIPTIONS, params.MAX_SUBSCRIPTIONS_OF_HOLDER
    for number in range(bound):
        bus.subscribe(number // per_conn, "*", "c1", "app:greedy")
    with pytest.raises(OpError) as caught:
        bus.subscribe(bound, "*", "c1", "app:greedy")
    assert caught.value.code is Code.BUSY
    bus.subscribe(bound, "*", "c1", "app:modest")
    bus.drop(0)
    bus.subscribe(bound, "*", "c1", "app:greedy")


@given(
    st.lists(st.tuples(st.integers(1, 4), _PATTERNS, st.sampled_from(["c1", "c2", "c3"])), max_size=20),
    _TOPICS,
    st.data(),
)
def test_the_index_hears_what_the_rule_says(
    wanted: list[tuple[int, str, str]], topic: str, data: st.DataObject
) -> None:
    """Whatever was subscribed, ended, dropped and revoked before, the receivers are those that `topic_matches` finds."""
    bus = Bus()
    for conn, pattern, cap in wanted:
        bus.subscribe(conn, pattern, cap, f"h{conn}")
    for one in data.draw(
        st.lists(st.sampled_from(list(bus.subscriptions())), unique_by=lambda one: one.id) if wanted else st.just([])
    ):
        bus.unsubscribe(one.conn, one.id)
    bus.drop(4)
    bus.revoke({"c3"})
    left = list(bus.subscriptions())
    assert all(one.conn != 4 and one.cap != "c3" for one in left)
    assert sorted(bus.receivers(topic)) == sorted({one.conn for one in left if topic_matches(one.pattern, topic)})


def test_subscriptions_say_whose_they_are() -> None:
    """For the person who wants to know who listens."""
    bus = Bus()
    number = bus.subscribe(7, "mail.*", "c1", "app:weather", "weather 1.0")
    (one,) = bus.subscriptions()
    assert (one.id, one.conn, one.holder, one.client, one.pattern, one.cap) == (
        number, 7, "app:weather", "weather 1.0", "mail.*", "c1",
    )  # fmt: skip


def test_each_topic_counts_for_itself() -> None:
    """From 0, without gaps."""
    bus = Bus()
    assert [bus.number("a"), bus.number("b"), bus.number("a"), bus.number("a")] == [0, 0, 1, 2]


def test_topics_are_nothing_special_until_declared() -> None:
    """And again when the declaration is taken back, with what was retained."""
    bus = Bus()
    assert bus.spec("mail.unread") == NOTHING
    bus.declare("mail.unread", retain=True, durable=True)
    bus.declare("mail.received", durable=True)
    assert bus.spec("mail.unread") == Spec(retain=True, durable=True)
    assert bus.spec("mail.unread.x") == NOTHING
    assert bus.durable() == ["mail.unread", "mail.received"]
    bus.retain("mail.unread", b"h", b"b", [])
    bus.declare("mail.unread")
    assert bus.spec("mail.unread") == NOTHING
    assert bus.retained("*") == []


def test_the_last_event_of_a_topic_is_retained_as_it_was() -> None:
    """One per topic, with its label, for those whose pattern takes it."""
    bus = Bus()
    bus.retain("mail.unread", b"h1", b"b1", ["u", "mail"])
    bus.retain("sys.model", b"h2", b"b2", [])
    bus.retain("mail.unread", b"h3", b"b3", ["u", "mail", "work"])
    assert [tuple(one) for one in bus.retained("mail.*")] == [("mail.unread", b"h3", b"b3", ["u", "mail", "work"])]
    assert [one.topic for one in bus.retained("*")] == ["sys.model", "mail.unread"]
    assert bus.retained("mail") == []


def test_what_is_retained_is_bounded_in_number_and_bytes() -> None:
    """10⁵ topics, or a few with the largest bodies, leave no more than the limits say; the newest stay."""
    bus = Bus()
    tracemalloc.start()
    for number in range(100_000):
        bus.retain(f"flood.t{number}", b"h" * 60, b"b", [])
        bus.number(f"flood.t{number}")
    few = bus.retained("*")
    for number in range(200):
        bus.retain(f"flood.big{number}", b"h" * 60, b"b" * 65_536, [])
    big = bus.retained("*")
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(few) == params.RETAINED
    assert few[-1].topic == "flood.t99999"
    assert params.RETAINED_BYTES - 70_000 <= sum(one.size for one in big) <= params.RETAINED_BYTES
    assert big[-1].topic == "flood.big199"
    assert used < params.RETAINED_BYTES + 4 * 2**20


def test_a_flood_pushes_out_its_own_alone() -> None:
    """What another driver retains stays, however old it is."""
    bus = Bus()
    bus.retain("sys.model", b"h", b"b", [])
    for number in range(2 * params.RETAINED):
        bus.retain(f"flood.t{number}", b"h", b"b" * 65_536, [])
    assert [one.topic for one in bus.retained("sys.model")] == ["sys.model"]


def test_what_was_retained_is_gone_when_all_of_it_was_forgotten() -> None:
    """Nothing is left over of topics that were retained once."""
    bus = Bus()
    for number in range(100):
        bus.declare(f"t{number}.x", retain=True)
        bus.retain(f"t{number}.x", b"h", b"b", [])
        bus.declare(f"t{number}.x")
    assert not bus._retained_bytes
    assert not bus._specs
