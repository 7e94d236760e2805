"""The capability algebra: nothing ever widens."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc.errors import Code, OpError
from llmos.kernel.capability import USER, Right, Table

HOME = "/home/u"
LEVELS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3)
PATHS = LEVELS.map(lambda parts: "/" + "/".join(parts))
TOPICS = st.tuples(LEVELS, st.booleans()).map(lambda made: ".".join(made[0]) + (".*" if made[1] else "")) | st.just("*")
HOSTS = st.sampled_from(["*", "a.com", "*.a.com", "x.a.com", "*.x.a.com", "b.com"])
CLASSES = st.sampled_from(["interactive", "event", "background"])
VALUES = {"path": PATHS, "topic": TOPICS, "host": HOSTS, "class": CLASSES, "name": st.sampled_from(["*", "x", "y"])}


@st.composite
def rights(draw: st.DrawFn) -> Right:
    """A right over a few objects, verbs and scopes, so that two of them often meet."""
    keys = draw(st.sets(st.sampled_from(sorted(VALUES)), max_size=2))
    scope = {key: tuple(draw(st.lists(VALUES[key], min_size=1, max_size=2))) for key in sorted(keys)}
    return Right(draw(st.sampled_from(["*", "o", "p"])), draw(st.sampled_from(["*", "read", "write"])), scope)


@given(rights())
def test_a_rights_text_means_the_right(right: Right) -> None:
    """What a person reads in a list can be typed back."""
    assert Right.parse(str(right), HOME) == right


@given(rights(), rights(), rights())
def test_covering_is_a_partial_order(a: Right, b: Right, c: Right) -> None:
    """Reflexive and transitive."""
    assert a.covers(a)
    if a.covers(b) and b.covers(c):
        assert a.covers(c)


@given(rights(), rights(), st.sampled_from(sorted(VALUES)), st.data())
def test_what_the_narrower_allows_the_wider_allows(wide: Right, narrow: Right, key: str, data: st.DataObject) -> None:
    """`covers` is sound: no request passes by the derived right that the original would have refused."""
    values = {key: (data.draw(VALUES[key]),)}
    if (
        wide.covers(narrow)
        and narrow.object != "*"
        and narrow.verb != "*"
        and narrow.allows(narrow.object, narrow.verb, values)
    ):
        # a key that the request leaves open and the wider right bounds is bounded by the narrower one too, or it would not cover
        assert wide.allows(narrow.object, narrow.verb, values)


@pytest.mark.parametrize(
    ("held", "value", "allowed"),
    [
        ("o.read(path=~/Documents)", "/home/u/Documents", True),
        ("o.read(path=~/Documents/**)", "/home/u/Documents/a/b", True),
        ("o.read(path=~/Documents)", "/home/u/Documents2", False),
        ("o.read(path=~/Documents)", "/home/u", False),
        ("o.read(path=~/Documents, path=/srv)", "/srv/x", True),
        ('o.read(path="/a, b (c)")', "/a, b (c)/d", True),
        ("o.read(path=/)", "/etc/passwd", True),
    ],
)
def test_paths_cover_what_is_beneath_them(held: str, value: str, allowed: bool) -> None:
    """A directory covers itself and everything below, and nothing beside it."""
    assert Right.parse(held, HOME).allows("o", "read", {"path": (value,)}) is allowed


def test_a_path_cannot_climb_out() -> None:
    """`..` is resolved before anything is compared."""
    assert Right.parse("o.read(path=~/Documents/../.ssh)", HOME).scope == {"path": ("/home/u/.ssh",)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mail",
        "mail.read(",
        "mail.read(folder)",
        "Mail.read",
        "a.b(c<=d)",
        "llm.generate(class=event)",
        "llm.generate(class<=soon)",
        "a.b(path=)",
        "a.b)",
    ],
)
def test_text_that_is_no_capability_is_refused(text: str) -> None:
    """With an error of the caller's kind, never a crash, never a guess."""
    with pytest.raises(OpError) as caught:
        Right.parse(text, HOME)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_nobody_hands_on_more_than_they_hold() -> None:
    """A child gets at most what its parent has."""
    table = Table()
    table.mint(USER, Right("*", "*"), "boot")
    table.derive(USER, Right.parse("mail.read(folder=INBOX)"), "agent#1", "test")
    with pytest.raises(OpError) as caught:
        table.derive("agent#1", Right.parse("mail.read"), "agent#2", "test")
    assert caught.value.code is Code.DENIED
    assert "mail.read" in str(caught.value.hint)
    table.derive("agent#1", Right.parse("mail.read(folder=INBOX)"), "agent#2", "test")


def test_revoking_takes_the_whole_subtree() -> None:
    """What was derived from it, however far down, is gone with it, and nothing else is."""
    table = Table()
    root = table.mint(USER, Right("*", "*"), "boot")
    first = table.derive(USER, Right.parse("mail.read"), "a", "test")
    table.derive("a", Right.parse("mail.read"), "b", "test")
    table.derive("b", Right.parse("mail.read"), "c", "test")
    kept = table.derive(USER, Right.parse("files.read"), "c", "test")
    assert len(table.revoke(first.id)) == 3
    assert {cap.id for cap in table} == {root.id, kept.id}
    with pytest.raises(OpError):
        table.check("c", "mail", "read", {})


def test_a_denial_names_what_is_missing_and_how_to_grant_it() -> None:
    """The hint is a command that, run, makes the same request pass."""
    table = Table()
    with pytest.raises(OpError) as caught:
        table.check("assistant#7", "filesystem", "read", {"path": ("/home/u/a, b",)})
    hint = str(caught.value.hint)
    assert hint.startswith("llmosctl perm grant assistant ")
    table.mint("assistant#7", Right.parse(shlex.split(hint)[-1]), "granted")
    table.check("assistant#7", "filesystem", "read", {"path": ("/home/u/a, b",)})
