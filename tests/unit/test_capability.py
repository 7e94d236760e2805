"""The capability algebra: nothing ever widens."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from llmos.kernel.capability import USER, Approval, Capability, Limit, Right, Spending, Table

HOME = "/home/u"
DECLARED = {"o": {"to": "address", "amount": "number", "odd": "of a later version"}}
LEVELS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3)
PATHS = LEVELS.map(lambda parts: "/" + "/".join(parts))
TOPICS = st.tuples(LEVELS, st.booleans()).map(lambda made: ".".join(made[0]) + (".*" if made[1] else "")) | st.just("*")
HOSTS = st.sampled_from(["*", "a.com", "*.a.com", "x.a.com", "*.x.a.com", "b.com"])
CLASSES = st.sampled_from(["interactive", "event", "background"])
ADDRESSES = st.sampled_from(["*", "*@a.com", "bob@a.com", "eve@b.com"])
NUMBERS = st.sampled_from(["-1", "0", "2.5", "100"])
VALUES = {
    "path": PATHS, "topic": TOPICS, "host": HOSTS, "class": CLASSES, "name": st.sampled_from(["*", "x", "y z", 'a"b\\', "(,)"]),
    "to": ADDRESSES, "amount": NUMBERS, "odd": st.sampled_from(["*", "x", "y"]),
}  # fmt: skip
LIMITS = st.builds(
    Limit, st.sampled_from([1, 7, 1000, 20_000, 1_500, 3_000_000]), st.sampled_from([0, 1, 60, 3600, 86_400, 604_800])
)


@st.composite
def rights(draw: st.DrawFn) -> Right:
    """A right over a few objects, verbs, scopes and terms, so that two of them often meet."""
    object_ = draw(st.sampled_from(["*", "o", "p"]))
    keys = draw(st.sets(st.sampled_from(sorted(VALUES)), max_size=2))
    kinds = DECLARED.get(object_, {})
    if object_ != "o":
        keys.discard("amount")
    scope = {key: tuple(draw(st.lists(VALUES[key], min_size=1, max_size=2))) for key in sorted(keys)}
    ends = draw(st.sampled_from(["never", "expires", "lifetime"]))
    return Right(
        object_,
        draw(st.sampled_from(["*", "read", "write", "read+write", "send+read"])),
        scope,
        quota=draw(st.dictionaries(st.sampled_from(["calls", "bytes", "tokens"]), LIMITS, max_size=2)),
        expires=draw(st.sampled_from([0, 86_400, 1_800_000_000, 1_800_000_001])) if ends == "expires" else None,
        lifetime=draw(st.sampled_from([1, 60, 5400, 604_800])) if ends == "lifetime" else None,
        approval=draw(st.sampled_from(Approval)),
        grantable=draw(st.booleans()),
        kinds=kinds,
    )


@given(rights())
def test_a_rights_text_means_the_right(right: Right) -> None:
    """What a person reads in a list can be typed back."""
    assert Right.parse(str(right), HOME, DECLARED) == right


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
        "a.b+",
        "a.b+c+",
        "a.b(name=)",
        'a.b(name="")',
        "a.b(name<=x)",
        "o.b(amount=5)",
        "o.b(amount<=x)",
        "o.b(amount<=NaN)",
        "o.b(amount<=1e999)",
        'o.b(to="Bob <bob@a.com>")',
        'o.b(to="bob@a.com, eve@b.com")',
        "o.b(to=bob)",
        "a.b(host=a.com/x)",
        "a.b(host=eve@a.com)",
        'a.b(host="a.com ")',
        "a.b(calls=0)",
        "a.b(calls=-1/d)",
        "a.b(calls=1.5/d)",
        "a.b(calls=10/y)",
        "a.b(calls<=10)",
        "a.b(calls=1, calls=2)",
        "a.b(expires=soon)",
        "a.b(expires=1969-12-31)",
        "a.b(for=2)",
        "a.b(for=0h)",
        "a.b(for=2h, expires=2026-12-01)",
        "a.b(approval=always)",
        "a.b(grantable)",
        "a.b(grantable=maybe)",
    ],
)
def test_text_that_is_no_capability_is_refused(text: str) -> None:
    """With an error of the caller's kind, never a crash, never a guess."""
    with pytest.raises(OpError) as caught:
        Right.parse(text, HOME, DECLARED)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_nobody_hands_on_more_than_they_hold() -> None:
    """A child gets at most what its parent has."""
    table = Table()
    table.mint(USER, Right("*", "*", grantable=True), "boot")
    table.derive(USER, Right.parse("mail.read(folder=INBOX, grantable=yes)"), "agent#1", "test")
    with pytest.raises(OpError) as caught:
        table.derive("agent#1", Right.parse("mail.read"), "agent#2", "test")
    assert caught.value.code is Code.DENIED
    assert "mail.read" in str(caught.value.hint)
    table.derive("agent#1", Right.parse("mail.read(folder=INBOX)"), "agent#2", "test")


def test_revoking_takes_the_whole_subtree() -> None:
    """What was derived from it, however far down, is gone with it, and nothing else is."""
    table = Table()
    root = table.mint(USER, Right("*", "*", grantable=True), "boot")
    first = table.derive(USER, Right.parse("mail.read(grantable=yes)"), "a", "test")
    table.derive("a", Right.parse("mail.read(grantable=yes)"), "b", "test")
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
    assert hint.startswith("llmosctl perm grant assistant '")
    table.mint("assistant#7", Right.parse(hint.partition("'")[2].rstrip("'")), "granted")
    table.check("assistant#7", "filesystem", "read", {"path": ("/home/u/a, b",)})


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("llm.generate(tokens=20000/h, class<=INTERACTIVE)", "llm.generate(class<=interactive, tokens=20k/h)"),
        ("fs.write+read+read(path=~/Documents/**)", "fs.read+write(path=/home/u/Documents)"),
        ("web.fetch(host=Example.COM., calls=1000000/d)", "web.fetch(host=example.com, calls=1M/d)"),
        ("a.b(bytes=1500)", "a.b(bytes=1500)"),
        ("a.b(for=120m)", "a.b(for=2h)"),
        ("a.b(for=14d)", "a.b(for=2w)"),
        ("a.b(expires=2026-12-01)", "a.b(expires=2026-12-01)"),
        ("a.b(expires=2026-12-01T00:00:00+02:00)", "a.b(expires=2026-11-30T22:00:00Z)"),
        ("a.b(approval=never, grantable=no)", "a.b"),
        ("a.b( grantable=yes ,approval=each)", "a.b(approval=each, grantable=yes)"),
        ("o.pay(amount<=1e2, to=BOB@A.com)", "o.pay(amount<=100, to=bob@a.com)"),
    ],
)
def test_there_is_one_way_to_write_a_right(text: str, normal: str) -> None:
    """Whatever way it was typed."""
    assert str(Right.parse(text, HOME, DECLARED)) == normal


@pytest.mark.parametrize(
    ("bound", "value", "allowed"),
    [
        ("to=bob@a.com", "bob@a.com", True),
        ("to=bob@a.com", "eve@a.com", False),
        ("to=*@a.com", "eve@a.com", True),
        ("to=*@a.com", "eve@xa.com", False),
        ("to=*@a.com", "eve@x.a.com", False),
        ("amount<=100", "100", True),
        ("amount<=100", "99.99", True),
        ("amount<=100", "100.01", False),
        ("odd=x", "x", True),
        ("odd=*", "x", False),
        ("folder=*", "x", True),
        ("host=*.a.com", "x.a.com", True),
        ("host=*.a.com", "a.com", False),
    ],
)
def test_a_driver_declares_how_its_keys_compare(bound: str, value: str, allowed: bool) -> None:
    """By their kind; one that this kernel does not know, by equality alone."""
    assert (
        Right.parse(f"o.send({bound})", HOME, DECLARED).allows(
            "o", "send", {bound.partition("=")[0].rstrip("<"): (value,)}
        )
        is allowed
    )


def test_a_driver_cannot_redefine_the_kernels_keys() -> None:
    """`path` is a path, whatever a manifest says."""
    right = Right.parse("o.read(path=/a)", HOME, {"o": {"path": "name"}})
    assert right.allows("o", "read", {"path": ("/a/b",)})


# -- the table ---------------------------------------------------------------------------------------------------------

DAY, HOUR = 86_400, 3600


class Clock:
    """Seconds since 1970; the beginning of a day."""

    def __init__(self) -> None:
        self.now = 20_000.0 * DAY

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> Table:
    made = Table(clock)
    made.mint(USER, Right("*", "*", grantable=True), "boot")
    return made


def give(table: Table, giver: str, text: str, holder: str) -> Capability:
    return table.derive(giver, Right.parse(text), holder, "test")


def use(table: Table, holder: str, times: int = 1) -> int:
    """How many of these calls pass."""
    passed = 0
    for _ in range(times):
        with contextlib.suppress(OpError):
            table.check(holder, "mail", "send", {})
            passed += 1
    return passed


def test_a_quota_bounds_each_window(table: Table, clock: Clock) -> None:
    """No more than it says until midnight UTC, then as much again; the error says until when."""
    give(table, USER, "mail.send(calls=3/d)", "a")
    clock.now += 7 * HOUR
    assert use(table, "a", 5) == 3
    with pytest.raises(OpError) as caught:
        table.check("a", "mail", "send", {})
    assert caught.value.code is Code.BUDGET
    assert "2024-10-05 00:00:00 UTC" in str(caught.value.hint)
    clock.now += 16 * HOUR
    assert use(table, "a") == 0
    clock.now += HOUR
    assert use(table, "a", 5) == 3


def test_a_quota_without_a_period_is_for_all_time(table: Table, clock: Clock) -> None:
    """It never comes back."""
    give(table, USER, "mail.send(calls=3)", "a")
    assert use(table, "a", 5) == 3
    clock.now += 1000 * DAY
    assert use(table, "a", 5) == 0


def test_a_clock_set_back_refills_nothing(table: Table, clock: Clock) -> None:
    """Nor does one that comes forward again."""
    give(table, USER, "mail.send(calls=3/d)", "a")
    assert use(table, "a", 3) == 3
    clock.now -= 1
    assert use(table, "a") == 0
    clock.now += 2
    assert use(table, "a") == 0


def test_a_quota_handed_on_is_moved(table: Table) -> None:
    """Giver and child together have what the giver had, and the unspent part comes back."""
    give(table, USER, "mail.send(calls=10/d, grantable=yes)", "a")
    child = give(table, "a", "mail.send(calls=4/d)", "b")
    assert use(table, "a", 20) == 6
    assert use(table, "b", 3) == 3
    table.revoke(child.id)
    assert use(table, "a", 20) == 1


def test_what_was_spent_in_an_earlier_window_comes_back_unspent(table: Table, clock: Clock) -> None:
    """However it and its giver were used before and since."""
    give(table, USER, "mail.send(calls=10/d, grantable=yes)", "a")
    child = give(table, "a", "mail.send(calls=4/d)", "b")
    use(table, "b", 3)
    clock.now += DAY
    assert use(table, "a", 2) == 2
    table.revoke(child.id)
    assert use(table, "a", 20) == 8


def test_a_crash_takes_for_spent_what_was_in_others_hands(table: Table, clock: Clock) -> None:
    """Until it has come back: then only what was spent of it."""
    kept = give(table, USER, "mail.send(calls=10/d, grantable=yes)", "a")
    table.keep(kept)
    child = give(table, "a", "mail.send(calls=4/d)", "b")
    window = int(clock.now // DAY)
    assert table.take_unsaved() == [(kept.id, "calls", Spending(window, 1, 4))]
    use(table, "b", 3)
    assert not table.unsaved
    table.revoke(child.id)
    assert table.take_unsaved() == [(kept.id, "calls", Spending(window, 4, 0))]
    assert table.take_unsaved(exact=True) == [(kept.id, "calls", Spending(window, 3, 0))]


def test_the_journal_hears_before_more_is_spent_than_it_knows(table: Table, clock: Clock) -> None:
    """A few times per window, not at each call."""
    kept = give(table, USER, "mail.send(calls=1000/d)", "a")
    table.keep(kept)
    known, heard = -1, 0
    for spent in range(1, 1001):
        table.check("a", "mail", "send", {})
        if table.unsaved:
            ((_, _, spending),) = table.take_unsaved()
            known, heard = spending.spent, heard + 1
        assert spent <= known <= 1000
    assert heard < 40


def test_a_quota_handed_on_without_an_amount_is_shared(table: Table) -> None:
    """One account, whoever uses it."""
    give(table, USER, "mail.send(calls=10/d, grantable=yes)", "a")
    child = give(table, "a", "mail.send", "b")
    assert str(child.right) == "mail.send(calls=10/d)"
    assert use(table, "b", 7) == 7
    assert use(table, "a", 7) == 3
    assert use(table, "b") == 0


@pytest.mark.parametrize("asked", ["calls=11/d", "calls=1/h", "calls=8/d"])
def test_no_more_of_a_quota_is_handed_on_than_is_left(table: Table, asked: str) -> None:
    """Nor for a shorter period, which would come round more often. The error says what is left."""
    give(table, USER, "mail.send(calls=10/d, grantable=yes)", "a")
    use(table, "a", 3)
    with pytest.raises(OpError) as caught:
        give(table, "a", f"mail.send({asked})", "b")
    assert caught.value.code is Code.BUDGET
    assert "calls=7/d" in caught.value.detail


def test_bytes_and_tokens_are_charged_when_they_are_known(table: Table) -> None:
    """What is over the limit is refused, and what was left is gone; the next call is refused at once."""
    cap = give(table, USER, "llm.generate(tokens=100/h, bytes=1k)", "a")
    table.charge(table.check("a", "llm", "generate", {}), tokens=90)
    assert table.left(cap, "tokens") == 10
    assert table.left(cap, "calls") is None
    with pytest.raises(OpError) as caught:
        table.charge(cap, tokens=11, bytes=5)
    assert caught.value.code is Code.BUDGET
    assert table.left(cap, "tokens") == 0
    assert table.left(cap, "bytes") == 995
    with pytest.raises(OpError) as caught:
        table.check("a", "llm", "generate", {})
    assert caught.value.code is Code.BUDGET


def test_what_was_taken_back_cannot_be_charged(table: Table) -> None:
    """A call that is still running learns of it."""
    cap = give(table, USER, "llm.generate(tokens=100/h)", "a")
    table.revoke(cap.id)
    with pytest.raises(OpError) as caught:
        table.charge(cap, tokens=1)
    assert caught.value.code is Code.REVOKED


def test_expiry_ends_the_subtree_at_its_moment(table: Table, clock: Clock) -> None:
    """Not a second later, and it is told what has ended, once."""
    parent = give(table, USER, "mail.send(for=2h, grantable=yes)", "a")
    child = give(table, "a", "mail.send(for=2d)", "b")
    assert child.right.expires == parent.right.expires == clock.now + 2 * HOUR == table.due
    clock.now += 2 * HOUR - 0.001
    assert use(table, "b") == 1
    assert table.expire() == []
    clock.now += 0.001
    assert use(table, "b") == use(table, "a") == 0
    assert not table.can("a", "mail", "send")
    assert table.get(child.id) is None
    assert {cap.id for cap in table.expire()} == {parent.id, child.id}
    assert table.expire() == []


def test_what_has_expired_is_due_to_be_told(table: Table, clock: Clock) -> None:
    """Also when a check has noticed it before."""
    give(table, USER, "mail.send(for=2h)", "a")
    clock.now += DAY
    assert use(table, "a") == 0
    assert table.due <= clock.now
    table.expire()
    assert table.due == math.inf


def test_approval_can_only_become_stricter(table: Table) -> None:
    """Whoever hands on what is asked about cannot hand on the same unasked."""
    give(table, USER, "mail.send(approval=first, grantable=yes)", "a")
    assert give(table, "a", "mail.send", "b").right.approval is Approval.FIRST
    assert give(table, "a", "mail.send(approval=each)", "c").right.approval is Approval.EACH


def test_a_capability_only_ever_adds(table: Table) -> None:
    """Of several that fit, the one that asks least and has something left is used."""
    asks = give(table, USER, "mail.send(approval=each)", "a")
    assert table.check("a", "mail", "send", {}) is asks
    limited = give(table, USER, "mail.send(calls=1/d)", "a")
    assert table.check("a", "mail", "send", {}) is limited
    assert table.check("a", "mail", "send", {}) is asks


def test_only_what_is_grantable_is_handed_on(table: Table) -> None:
    """And the error says that it is held, but for its holder alone."""
    give(table, USER, "mail.send", "a")
    with pytest.raises(OpError) as caught:
        give(table, "a", "mail.send", "b")
    assert caught.value.code is Code.DENIED
    assert "for itself alone" in caught.value.detail
    assert "grantable=yes" in str(caught.value.hint)


def test_several_verbs_are_handed_on_one_by_one(table: Table) -> None:
    """Any part of them, and none beside."""
    give(table, USER, "fs.read+write(grantable=yes)", "a")
    give(table, "a", "fs.read", "b")
    assert table.can("a", "fs", "write")
    assert not table.can("b", "fs", "write")
    with pytest.raises(OpError):
        give(table, "a", "fs.read+delete", "b")


def test_a_handle_serves_its_holder_alone(table: Table) -> None:
    """It cannot be guessed, another's is worth nothing, and an id is no handle."""
    mine, theirs = give(table, USER, "mail.send", "a"), give(table, USER, "mail.send", "b")
    assert len({cap.handle for cap in table}) == 3
    assert len(bytes.fromhex(mine.handle)) == 16
    assert table.check("a", "mail", "send", {}, mine.handle) is mine
    for wrong in (theirs.handle, mine.id, "0" * 32):
        with pytest.raises(OpError) as caught:
            table.check("a", "mail", "send", {}, wrong)
        assert caught.value.code is Code.DENIED


def test_a_process_uses_its_programs_quota(table: Table) -> None:
    """However many of them run: what is lent is no second account."""
    granted = give(table, USER, "mail.send(calls=5/d)", "assistant")
    for number in range(3):
        table.lend(granted, f"assistant#{number}", "granted")
    assert sum(use(table, f"assistant#{number}", 3) for number in range(3)) == 5
    assert len(table.drop("assistant#1")) == 1
    assert len(table.revoke(granted.id)) == 3


def test_a_holder_that_ends_takes_along_what_came_of_it(table: Table) -> None:
    """And the caller learns what that was."""
    give(table, USER, "mail.send(grantable=yes)", "a")
    give(table, "a", "mail.send", "b")
    kept = give(table, USER, "mail.read", "b")
    assert [cap.holder for cap in table.drop("a")] == ["a", "b"]
    assert list(table.held("b")) == [kept]


def test_ids_go_on_after_those_of_the_journal(table: Table) -> None:
    """So that no two capabilities are called the same."""
    table.mint("a", Right.parse("mail.send"), "granted", id="c17")
    assert give(table, USER, "mail.send", "b").id == "c18"


def test_nobody_fills_the_table(table: Table) -> None:
    """Not even by handing to itself what it holds already: each check would look at all of it."""
    give(table, USER, "mail.send(grantable=yes)", "a")
    for _ in range(params.MAX_HELD - 1):
        give(table, "a", "mail.send(grantable=yes)", "a")
    with pytest.raises(OpError) as caught:
        give(table, "a", "mail.send", "a")
    assert caught.value.code is Code.BUSY
    give(table, "a", "mail.send", "b")


@pytest.mark.parametrize(
    ("giver", "asked", "given"),
    [
        ("", "", ""),
        ("integrity=trusted", "", "integrity=trusted"),
        ("", "clearance=mail", "clearance=mail"),
        ("clearance=mail, clearance=calendar", "clearance=mail, clearance=health", "clearance=mail"),
        ("clearance=none", "clearance=mail", "clearance=none"),
        ("clearance=*", "clearance=mail", "clearance=mail"),
        ("clearance=mail", "clearance=*", "clearance=mail"),
    ],
)
def test_a_ceiling_is_never_raised_on_the_way_down(giver: str, asked: str, given: str) -> None:
    """Whoever passes a right on passes its ceiling on too, or a lower one."""
    table = Table(lambda: 0.0)
    held = table.mint("a", Right.parse(f"mail.send(grantable=yes{', ' * bool(giver)}{giver})"), "granted")
    made = table.derive("a", Right.parse(f"mail.send({asked})" if asked else "mail.send"), "b", "handed on")
    assert made.right == Right.parse(f"mail.send({given})" if given else "mail.send")
    assert made.right.ceiling <= held.right.ceiling
    assert Right.parse(str(made.right)) == made.right
