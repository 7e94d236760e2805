"""Labels: a lattice that only rises, and the chain back to the datum that raised it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc.errors import OpError
from llmos.kernel import labels
from llmos.kernel.labels import ANY, BOTTOM, MAX_TAGS, TOP, Integrity, Label, Labels, join, reply_label

TAGS = st.sets(st.integers(0, 90).map(lambda n: f"t{n}"), max_size=50) | st.just({ANY})
LABELS = st.builds(Label.make, st.sampled_from(["trusted", "untrusted"]), TAGS)
MAIL = Label.make("untrusted", ["mail"])
FILES = Label.make("trusted", ["files"])


@given(LABELS, LABELS, LABELS)
def test_labels_form_a_lattice(a: Label, b: Label, c: Label) -> None:
    """Join is the least upper bound, also where the tags grow too many to be listed."""
    assert a | a == a
    assert a | b == b | a
    assert (a | b) | c == a | (b | c)
    assert a <= a | b
    if a <= c and b <= c:
        assert a | b <= c
    assert (a <= b) == (a | b == b)
    assert BOTTOM <= a <= TOP


@given(LABELS, LABELS)
def test_order_of_labels_is_antisymmetric(a: Label, b: Label) -> None:
    """Two labels that flow into each other are one."""
    if a <= b and b <= a:
        assert a == b


@given(LABELS, LABELS)
def test_a_label_survives_the_wire_and_names_itself(a: Label, b: Label) -> None:
    """`to_wire` loses nothing, and two labels never look alike on it."""
    assert Label.from_wire(a.to_wire()) == a
    assert (a.to_wire() == b.to_wire()) == (a == b)


def test_too_many_tags_become_every_tag() -> None:
    """A driver that invents tags cannot grow a label without end, and what it loses in detail it loses upwards."""
    many = join(Label.make("trusted", [f"t{n}"]) for n in range(MAX_TAGS + 1))
    assert many.tags == {ANY}
    assert Label.make("trusted", ["t1"]) <= many
    assert len(join(Label.make("trusted", [f"t{n}"]) for n in range(MAX_TAGS)).tags) == MAX_TAGS


@pytest.mark.parametrize(
    "wrong", [None, "u", ["x"], ["u", 1], ["u", "Mail"], ["u", "a b"], ["u", ""], ["u", "a\0"], [["u"]]]
)
def test_a_malformed_label_is_refused(wrong: object) -> None:
    """What a process sends as a label is not taken on trust."""
    with pytest.raises(OpError):
        Label.from_wire(wrong)


@given(LABELS, LABELS, LABELS.map(Label.to_wire) | st.none() | st.just("nonsense"))
def test_a_driver_cannot_lower_a_reply(manifest: Label, request: Label, item: object) -> None:
    """Whatever it says of an item, the reply is at least as high as its manifest and the request."""
    assert manifest | request <= reply_label(manifest, request, item)


def test_a_driver_that_mislabels_an_item_is_taken_at_its_worst() -> None:
    """A label that cannot be read is the top, not the bottom."""
    assert reply_label(BOTTOM, BOTTOM, ["?"]) == TOP
    assert reply_label(BOTTOM, BOTTOM, ["u"]) == Label(Integrity.UNTRUSTED)


@pytest.fixture
def world() -> Labels:
    """Two agents, a driver, the user."""
    made = Labels(lambda: 5.0)
    made.born("user", fixed=True)
    made.born("mail", MAIL, fixed=True)
    made.born("a#1")
    made.born("b#2")
    return made


@given(st.lists(LABELS, max_size=30))
def test_a_holder_only_rises_and_keeps_few_taints(received: list[Label]) -> None:
    """Its label is the join of all it received; a taint is kept only for a raise, so their number is bounded."""
    made = Labels(lambda: 0.0)
    made.born("a")
    before = made.of("a")
    for label in received:
        taint = made.receive("a", label, made.source("x", "x.y", label))
        assert before <= made.of("a")
        assert (taint is None) == (made.of("a") == before)
        before = made.of("a")
    assert made.of("a") == join(received)
    assert len(made.why("a")) <= MAX_TAGS + 2


def test_the_fixed_do_not_change(world: Labels) -> None:
    """A driver keeps its callers' data apart and a person is not taken over: neither is raised by what it receives."""
    for holder in ("mail", "user"):
        before = world.of(holder)
        assert world.receive(holder, TOP, world.source("a#1", "mail.send", TOP)) is None
        assert world.of(holder) == before


def test_an_unknown_holder_is_at_the_top(world: Labels) -> None:
    """Who is not known has seen everything."""
    assert world.of("nobody") == TOP


def test_why_goes_back_to_the_datum(world: Labels) -> None:
    """Mail taints one agent, whose event taints another, whose child is born with it: the chain names all three."""
    first = world.receive("a#1", MAIL, world.source("mail", "mail.search", MAIL, call=7))
    world.receive("a#1", FILES, world.source("files", "files.read", FILES, call=8))
    world.receive("b#2", MAIL, world.source("a#1", "event notes.new", MAIL))
    world.born("c#3", world.of("b#2"), world.source("b#2", "spawn", world.of("b#2")))
    assert world.of("c#3") == MAIL
    chain = world.why("c#3")
    assert [(taint.holder, taint.source.via) for taint in chain] == [
        ("c#3", "spawn"),
        ("b#2", "event notes.new"),
        ("a#1", "mail.search"),
    ]
    assert chain[-1] == first
    assert chain[-1].describe() == {
        "taint": 1, "at": 5.0, "holder": "a#1", "sender": "mail", "via": "mail.search", "call": 7, "added": "untrusted {mail}",
    }  # fmt: skip


def test_why_of_a_call_is_as_of_the_call(world: Labels) -> None:
    """What was received after a call does not explain it."""
    world.receive("a#1", MAIL, world.source("mail", "mail.search", MAIL, call=7))
    world.mark(9, "a#1", world.of("a#1"))
    world.receive("a#1", FILES, world.source("files", "files.read", FILES, call=10))
    assert [taint.source.via for taint in world.why_call(9)] == ["mail.search"]
    assert len(world.why("a#1")) == 2
    with pytest.raises(OpError, match="call 10"):
        world.why_call(10)


def test_why_outlives_the_process(world: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that has ended can be explained until enough others have ended; then nothing of it is left in memory."""
    monkeypatch.setattr(labels, "KEEP_ENDED", 2)
    world.receive("a#1", MAIL, world.source("mail", "mail.search", MAIL))
    world.ended("a#1")
    assert world.of("a#1") == TOP
    assert len(world.why("a#1")) == 1
    for number in range(10, 12):
        world.born(f"x#{number}")
        world.ended(f"x#{number}")
    assert world.why("a#1") == []
    assert not world._taints
