"""Approvals: one call, one word, once; and undoing what was done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError
from llmos.kernel import approvals as inbox
from llmos.kernel import undo as undone
from llmos.kernel.approvals import ASK_S, USE_S, Answer, Approval, Approvals, Row, Rule, State, Subject
from llmos.kernel.labels import Label
from llmos.kernel.undo import KEEP_S, Undo

MAIL = Label.make("untrusted", ["mail"])


class Disk:
    """A store in memory, which only takes what a file could; fails when it is full."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.full = False

    def save(self, row: Row) -> None:
        if self.full:
            raise OpError(Code.UNAVAILABLE, "the disk is full")
        self.rows[row["id"]] = wire.encode(row)

    def delete(self, id: str) -> None:  # noqa: A002
        self.rows.pop(id, None)

    def load(self) -> Iterable[Row]:
        return [wire.decode(row, 1 << 20) for row in self.rows.values()]


class Desk:
    """An inbox with a clock and a disk."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.disk = Disk()
        self.told: list[tuple[str, State]] = []
        self.boot()

    def boot(self, *, headless: bool = False) -> None:
        """Start the kernel (again)."""
        self.inbox = Approvals(lambda: self.now, self.disk, self._tell, headless=headless)

    def _tell(self, approval: Approval) -> None:
        self.told.append((approval.id, approval.state))


@pytest.fixture
def desk() -> Desk:
    return Desk()


CALL = Subject(
    op="mail.send",
    args={"to": ["bob@x.com"], "body": "hello", "cc": []},
    holder="assistant#7",
    program="assistant",
    task="t-random",
    label=MAIL,
    control=("to", "cc"),
)
OTHERS = {
    "args": {"to": ["bob@x.com"], "body": "hello!", "cc": []},
    "recipient": {"to": ["eve@x.com"], "body": "hello", "cc": []},
    "more": {"to": ["bob@x.com"], "body": "hello", "cc": ["eve@x.com"]},
}
CHANGED = [
    *(replace(CALL, args=args) for args in OTHERS.values()),
    replace(CALL, op="mail.delete"),
    replace(CALL, holder="assistant#8"),
    replace(CALL, task="t-other"),
    replace(CALL, label=MAIL | Label.make("trusted", ["files"])),
    replace(CALL, label=Label()),
]


def code(call: Any) -> Code:
    with pytest.raises(OpError) as refused:
        call()
    return refused.value.code


def test_an_approval_is_for_one_call_once(desk: Desk) -> None:
    """The approved call passes; the same call again asks again."""
    assert desk.inbox.covered(CALL) is None
    approval = desk.inbox.request(CALL)
    assert desk.inbox.covered(CALL) is None, "asking is not having"
    desk.inbox.answer(approval.id, Answer.ONCE, "user")
    assert desk.inbox.covered(CALL) is approval
    assert approval.state is State.USED
    assert desk.inbox.covered(CALL) is None
    assert desk.inbox.request(CALL).id != approval.id
    assert [state for _, state in desk.told] == [State.PENDING, State.APPROVED, State.USED, State.PENDING]


@pytest.mark.parametrize("other", CHANGED)
def test_another_call_is_not_covered(desk: Desk, other: Subject) -> None:
    """Other arguments, op, holder, task or label: the approval is not for it, and stays for the call it is for."""
    approval = desk.inbox.request(CALL)
    desk.inbox.answer(approval.id, Answer.ONCE, "user")
    assert desk.inbox.covered(other) is None
    assert desk.inbox.covered(CALL) is approval


LEAVES = st.integers(-9, 9) | st.booleans() | st.floats(allow_nan=False) | st.lists(st.text(max_size=2), max_size=2)
ARGS = st.dictionaries(st.text(max_size=3), LEAVES, max_size=3)


@given(ARGS, ARGS)
def test_a_digest_is_one_calls_alone(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The order of arguments does not matter; their bytes do, so that 1, 1.0 and true are three calls."""
    first, second = replace(CALL, args=one), replace(CALL, args=other)
    assert first.digest == replace(CALL, args=dict(reversed(one.items()))).digest
    wanted = wire.encode(dict(sorted(one.items()))) == wire.encode(dict(sorted(other.items())))
    assert (first.digest == second.digest) == wanted


def test_what_an_interface_needs_is_there(desk: Desk) -> None:
    """Exact arguments, where each came from, why it is asked, whether it can be undone, and the rule it would save."""
    provenance = [{"path": "to[0]", "value": "bob@x.com", "origin": "seen", "label": "untrusted {mail}"}]
    approval = desk.inbox.request(
        CALL, reasons=["to[0]: it may have been chosen by a stranger"], provenance=provenance,
        why=[{"via": "mail.search"}], undoable=True, preview="-a\n+b",
    )  # fmt: skip
    shown = desk.inbox.get(approval.id).describe()
    assert shown["args"] == CALL.args
    assert shown["provenance"] == provenance
    assert shown["rule"] == "assistant may call mail.send(to=['bob@x.com'], cc=[]) with data up to untrusted {mail}"
    assert (shown["undoable"], shown["preview"], shown["state"]) == (True, "-a\n+b", "pending")
    assert (shown["label"], shown["expires"]) == ("untrusted {mail}", 1000 + ASK_S)
    assert shown["why"] == [{"via": "mail.search"}]


@pytest.mark.parametrize("answer", [Answer.NO, Answer.REJECT])
def test_no_means_no_for_a_while(desk: Desk, answer: Answer) -> None:
    """The same call does not ask the user again; the agent sees her words only where she gave some to it."""
    approval = desk.inbox.request(CALL)
    desk.inbox.answer(approval.id, answer, "user", "write to Ann instead")
    with pytest.raises(OpError, match="said no") as refused:
        desk.inbox.covered(CALL)
    assert refused.value.code is Code.DENIED
    assert ("write to Ann" in refused.value.detail) == (answer is Answer.REJECT)
    assert desk.inbox.covered(CHANGED[0]) is None
    desk.now += USE_S
    assert desk.inbox.covered(CALL) is None


def test_silence_means_no(desk: Desk) -> None:
    """What nobody answers expires, at its time and not before; an answer that comes too late is refused."""
    approval = desk.inbox.request(CALL)
    desk.now += ASK_S - 1
    assert desk.inbox.expire() == []
    assert desk.inbox.next_expiry == 1000 + ASK_S
    desk.now += 1
    assert code(lambda: desk.inbox.answer(approval.id, Answer.ONCE, "user")) is Code.CONFLICT
    assert approval.state is State.EXPIRED
    assert desk.inbox.refusal(approval).code is Code.DENIED
    assert desk.inbox.covered(CALL) is None
    assert desk.inbox.next_expiry is None


def test_an_approval_does_not_wait_for_ever(desk: Desk) -> None:
    """A call that comes long after it was approved asks again."""
    desk.inbox.answer(desk.inbox.request(CALL).id, Answer.ONCE, "user")
    desk.now += USE_S
    assert desk.inbox.covered(CALL) is None


@pytest.mark.parametrize("answer", list(Answer))
def test_an_answer_is_given_once(desk: Desk, answer: Answer) -> None:
    """What is settled cannot be turned round."""
    approval = desk.inbox.request(CALL)
    desk.inbox.answer(approval.id, answer, "user")
    for again in Answer:
        assert code(lambda again=again: desk.inbox.answer(approval.id, again, "user")) is Code.CONFLICT
    assert code(lambda: desk.inbox.answer("a0", answer, "user")) is Code.NOT_FOUND


def test_headless_denies_and_keeps_rules(desk: Desk) -> None:
    """With nobody there nothing is asked; what the user allowed always still passes."""
    desk.inbox.answer(desk.inbox.request(CALL).id, Answer.ALWAYS, "user")
    desk.boot(headless=True)
    assert desk.inbox.covered(CALL) is not None
    assert isinstance(desk.inbox.covered(CHANGED[0]), Rule)
    assert code(lambda: desk.inbox.request(CHANGED[1])) is Code.DENIED
    assert [one.state for one in desk.inbox] == [State.USED]


def test_a_rule_covers_its_control_arguments_and_no_more(desk: Desk) -> None:
    """`task` for other content in this task, `always` in every task; never another recipient, program or a higher label."""
    desk.inbox.answer(desk.inbox.request(CALL).id, Answer.TASK, "user")
    assert isinstance(desk.inbox.covered(CALL), Approval)
    assert isinstance(desk.inbox.covered(replace(CALL, args=OTHERS["args"])), Rule)
    assert isinstance(desk.inbox.covered(replace(CALL, label=Label())), Rule), "less untrusted data than was allowed"
    assert desk.inbox.covered(replace(CALL, task="t-other")) is None
    desk.inbox.answer(desk.inbox.request(replace(CALL, task="t-2")).id, Answer.ALWAYS, "user")
    assert isinstance(desk.inbox.covered(replace(CALL, task="t-3", holder="assistant#9")), Rule)
    for other in (
        replace(CALL, args=OTHERS["recipient"]),
        replace(CALL, args=OTHERS["more"]),
        replace(CALL, op="mail.forward"),
        replace(CALL, program="reader"),
        replace(CALL, label=MAIL | Label.make("trusted", ["files"])),
    ):
        assert desk.inbox.covered(other) is None


def test_a_rule_without_control_arguments_fixes_all(desk: Desk) -> None:
    """Where the manifest names none, `always` is for exactly these arguments."""
    call = replace(CALL, control=())
    desk.inbox.answer(desk.inbox.request(call).id, Answer.ALWAYS, "user")
    assert desk.inbox.covered(replace(call, task="t-2")) is not None
    assert desk.inbox.covered(replace(call, args=OTHERS["args"])) is None


def test_rules_can_be_taken_back(desk: Desk) -> None:
    """By the user, and with the task that they were for."""
    desk.inbox.answer(desk.inbox.request(CALL).id, Answer.ALWAYS, "user")
    desk.inbox.answer(desk.inbox.request(CHANGED[1]).id, Answer.TASK, "user")
    desk.inbox.task_ended(CALL.task)
    (rule,) = desk.inbox.rules
    assert rule.task == ""
    desk.inbox.forget(rule.id)
    assert code(lambda: desk.inbox.forget(rule.id)) is Code.NOT_FOUND
    desk.boot()
    assert desk.inbox.rules == []
    assert desk.inbox.covered(CALL) is None


def test_a_rule_for_one_run_ends_with_the_kernel(desk: Desk) -> None:
    """No agent outlives it, so nobody would ever take the rule back; what was said of an app or a driver stays."""
    app = replace(CALL, holder="app:notes", program="app:notes", task="app:notes")
    for asked in (CALL, app):
        desk.inbox.answer(desk.inbox.request(asked).id, Answer.TASK, "user")
    desk.boot()
    assert [rule.program for rule in desk.inbox.rules] == ["app:notes"]
    assert desk.inbox.covered(app) is not None


def test_the_end_of_a_task_settles_what_waits(desk: Desk) -> None:
    """Nobody is asked on behalf of who is gone, and an approval it did not use is nobody's."""
    pending = desk.inbox.request(CALL)
    approved = desk.inbox.request(CHANGED[1])
    other = desk.inbox.request(replace(CALL, task="t-2"))
    desk.inbox.answer(approved.id, Answer.ONCE, "user")
    desk.inbox.task_ended(CALL.task)
    assert [one.state for one in (pending, approved, other)] == [State.EXPIRED, State.EXPIRED, State.PENDING]


def test_everything_survives_a_restart(desk: Desk) -> None:
    """Requests, answers, uses and rules; a used approval is no use after a restart either, and time goes on in between."""
    waiting = desk.inbox.request(CALL, reasons=["r"], provenance=[{"path": "to[0]"}], preview="p")
    approved, used = desk.inbox.request(CHANGED[0]), desk.inbox.request(CHANGED[1])
    for one in (approved, used):
        desk.inbox.answer(one.id, Answer.ONCE, "user")
    desk.inbox.covered(CHANGED[1])
    before = [one.describe() for one in desk.inbox]
    desk.boot()
    assert [one.describe() for one in desk.inbox] == before
    assert desk.inbox.covered(CHANGED[1]) is None
    assert desk.inbox.covered(CHANGED[0]) is not None
    assert desk.inbox.request(CALL).id == waiting.id
    desk.now += ASK_S
    desk.boot()
    desk.inbox.expire()
    assert desk.inbox.get(waiting.id).state is State.EXPIRED


def test_nothing_counts_before_it_is_on_disk(desk: Desk) -> None:
    """With a full disk a request is not made, an answer not given and an approval not used."""
    approval = desk.inbox.request(CALL)
    desk.disk.full = True
    assert code(lambda: desk.inbox.request(CHANGED[0])) is Code.UNAVAILABLE
    assert code(lambda: desk.inbox.answer(approval.id, Answer.ONCE, "user")) is Code.UNAVAILABLE
    desk.disk.full = False
    assert approval.state is State.PENDING
    desk.inbox.answer(approval.id, Answer.ONCE, "user")
    desk.disk.full = True
    assert code(lambda: desk.inbox.covered(CALL)) is Code.UNAVAILABLE
    desk.disk.full = False
    assert desk.inbox.covered(CALL) is approval


def test_nobody_floods_the_inbox(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task's requests are bounded, all together are, and the same request is one; settled ones are forgotten in the end."""
    monkeypatch.setattr(inbox, "MAX_PENDING", inbox.MAX_PENDING_PER_TASK + 1)
    monkeypatch.setattr(inbox, "MAX_SETTLED", 3)
    calls = [replace(CALL, args={"n": n}) for n in range(inbox.MAX_PENDING_PER_TASK)]
    asked = [desk.inbox.request(call).id for call in calls]
    assert desk.inbox.request(calls[0]).id == asked[0]
    assert code(lambda: desk.inbox.request(CALL)) is Code.BUSY
    desk.inbox.request(replace(CALL, task="t-2"))
    assert code(lambda: desk.inbox.request(replace(CALL, task="t-3"))) is Code.BUSY
    for one in asked:
        desk.inbox.answer(one, Answer.NO, "user")
    assert [one.id for one in desk.inbox][:3] == asked[-3:]
    assert len(desk.disk.rows) == 4


# -- undo --------------------------------------------------------------------------------------------------------------


def test_an_effect_is_undone_once(desk: Desk) -> None:
    """The reverse call names the driver and its token; it can be tried again if it failed, and not once it is done or under way."""
    undo = Undo(lambda: desk.now, desk.disk)
    effect = undo.remember("a#1", "filesystem.write", "tok")
    for _ in range(2):
        assert undo.take(effect.id) == ("filesystem.undo", {"token": "tok"})
        assert code(lambda: undo.take(effect.id)) is Code.CONFLICT
        assert not list(undo)
        undo.failed(effect.id)
    undo.take(effect.id)
    undo.done(effect.id)
    for later in (undo, Undo(lambda: desk.now, desk.disk)):
        assert code(lambda later=later: later.take(effect.id)) is Code.CONFLICT
        assert code(lambda later=later: later.take("u0")) is Code.NOT_FOUND


def test_what_was_being_undone_at_a_kill_can_be_undone(desk: Desk) -> None:
    """Nobody knows whether its driver got to it, and an undo does no harm a second time."""
    effect = Undo(lambda: desk.now, desk.disk).remember("a#1", "filesystem.write", "tok")
    Undo(lambda: desk.now, desk.disk).take(effect.id)
    again = Undo(lambda: desk.now, desk.disk)
    assert [one.id for one in again] == [effect.id]
    assert again.take(effect.id) == ("filesystem.undo", {"token": "tok"})


def test_what_is_too_long_ago_is_not_undone(desk: Desk) -> None:
    """Nor is it listed any more."""
    undo = Undo(lambda: desk.now, desk.disk)
    old = undo.remember("a#1", "x.y", "1")
    desk.now += 60
    new = undo.remember("a#1", "x.y", "2")
    assert [one.id for one in undo] == [new.id, old.id]
    desk.now += KEEP_S - 60
    assert code(lambda: undo.take(old.id)) is Code.CONFLICT
    assert [one.id for one in undo] == [new.id]


@pytest.mark.parametrize("token", [None, "", 7, b"x", "x" * (undone.MAX_TOKEN + 1)])
def test_a_token_is_a_short_text(desk: Desk, token: object) -> None:
    """A driver cannot fill the journal with it."""
    assert code(lambda: Undo(lambda: desk.now, desk.disk).remember("a#1", "x.y", token)) is Code.INVALID_ARGUMENT
    assert not desk.disk.rows


def test_old_effects_make_room(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many and no more are kept, on disk too."""
    monkeypatch.setattr(undone, "MAX_KEPT", 2)
    undo = Undo(lambda: desk.now, desk.disk)
    kept = [undo.remember("a#1", "x.y", str(n)).id for n in range(4)]
    assert [one.id for one in undo] == [kept[3], kept[2]]
    assert len(desk.disk.rows) == 2
