"""The sink rule: what a tainted process may still do, and what nobody can make it do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Effect
from llmos.kernel import flow as flows
from llmos.kernel.flow import SINKS, SLOT, Decision, Flow, Mode, Origin, Request, Step, Verdict
from llmos.kernel.labels import BOTTOM, TOP, Label
from llmos.kernel.prompt import MAX_PROMPT, MIN_TEXT, Prompt, same

TAINTED = Label.make("untrusted", ["mail"])
JANE = "jane@x.com"
EVIL = "evil@y.com"
PROMPT = "Look up hotels in Paris and mail Jane@X.com? No: mail jane@x.com. Pay 1,200.50 to GB29NWBK60161331926819."


def send(to: Any = JANE, label: Label = TAINTED, **fields: Any) -> Request:
    """A call of `mail.send` by the agent."""
    args = {"to": to, "body": "hello", **fields.pop("args", {})}
    made = {
        "holder": "a#1",
        "op": "mail.send",
        "effect": Effect.SEND,
        "control": ("to", "cc"),
        "args": args,
        "label": label,
    }
    return Request(**{**made, **fields})


@pytest.fixture
def flow() -> Flow:
    """An agent with a prompt and no plan."""
    made = Flow()
    made.begin("a#1", PROMPT)
    return made


def plan(flow: Flow, *steps: Step, tags: frozenset[str] = frozenset({"mail"})) -> None:
    flow.fix("a#1", BOTTOM, list(steps), tags)


def verdict(flow: Flow, request: Request) -> Verdict:
    return flow.decide(request).verdict


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_the_trusted_may_act(flow: Flow) -> None:
    """A process that only its user has spoken to needs no plan."""
    assert flow.decide(send(EVIL, BOTTOM)) == Decision(
        Verdict.ALLOW, BOTTOM, (), (flows.Given("to", EVIL, Origin.OWN, BOTTOM),), None, {}
    )


@pytest.mark.parametrize("effect", sorted(SINKS))
def test_the_tainted_ask_before_every_effect(flow: Flow, effect: Effect) -> None:
    """Without a plan no effect passes, even on a value that the user wrote; nor for one who has no task at all."""
    assert verdict(flow, send(effect=effect)) is Verdict.ASK
    assert verdict(flow, send(effect=effect, holder="b#2")) is Verdict.ASK


def test_reading_is_no_sink(flow: Flow) -> None:
    """It taints and does not ask; writing and sending do."""
    assert verdict(flow, send(effect=Effect.READ)) is Verdict.ALLOW
    assert verdict(flow, send(effect=Effect.WRITE)) is Verdict.ASK
    assert verdict(flow, send(effect=Effect.SEND)) is Verdict.ASK


def test_a_planned_step_passes_once(flow: Flow) -> None:
    """A step is used up by the call that it allowed: the injection after it asks."""
    plan(flow, Step("mail.send", {"to": JANE}))
    decision = flow.decide(send())
    assert decision.verdict is Verdict.ALLOW
    assert decision.given[0].origin is Origin.PLAN
    assert verdict(flow, send()) is Verdict.ALLOW, "deciding uses nothing up"
    flow.commit("a#1", decision)
    assert verdict(flow, send()) is Verdict.ASK


def test_a_trusted_call_uses_its_step_up(flow: Flow) -> None:
    """What the process did itself before it read, nobody can make it do again."""
    plan(flow, Step("mail.send", {"to": JANE}))
    flow.commit("a#1", flow.decide(send(label=BOTTOM)))
    assert verdict(flow, send()) is Verdict.ASK


def test_a_plan_allows_nothing_else(flow: Flow) -> None:
    """Another recipient, one more recipient, another op: all of these ask, although the step is there."""
    plan(flow, Step("mail.send", {"to": JANE}))
    assert verdict(flow, send(EVIL)) is Verdict.ASK
    assert verdict(flow, send(args={"cc": [EVIL]})) is Verdict.ASK
    assert verdict(flow, send(op="chat.send")) is Verdict.ASK
    assert verdict(flow, send(args={"to": [JANE, EVIL]})) is Verdict.ASK
    plan(flow, Step("mail.send", {"to": JANE, "cc": "bob@x.com"}))
    assert verdict(flow, send()) is Verdict.ASK, "left out what was fixed"
    assert verdict(flow, send(args={"cc": "bob@x.com"})) is Verdict.ALLOW


def test_a_plan_is_fixed_while_trusted_only(flow: Flow) -> None:
    """The injection cannot plan, and a plan of nobody's is refused."""
    with pytest.raises(OpError) as refused:
        flow.fix("a#1", TAINTED, [Step("mail.send", {"to": EVIL})], frozenset())
    assert refused.value.code is Code.TAINTED
    with pytest.raises(OpError, match="no task"):
        flow.fix("b#2", BOTTOM, [], frozenset())
    with pytest.raises(OpError, match="limit"):
        flow.fix("a#1", BOTTOM, [Step("x.y")] * (flows.MAX_STEPS + 1), frozenset())
    assert verdict(flow, send(EVIL)) is Verdict.ASK


def test_an_open_argument_must_be_quoted(flow: Flow) -> None:
    """A step that leaves the recipient open takes one that the user wrote, and no other."""
    plan(flow, Step("mail.send"))
    assert flow.decide(send()).given[0].origin is Origin.QUOTED
    assert verdict(flow, send()) is Verdict.ALLOW
    assert verdict(flow, send(EVIL)) is Verdict.ASK
    assert verdict(flow, send([JANE, EVIL])) is Verdict.ASK


def test_a_tainted_spawner_cannot_put_words_into_the_users_mouth(flow: Flow) -> None:
    """A prompt that came with an untrusted label quotes nothing."""
    flow.begin("a#1", f"mail {EVIL}", TAINTED)
    plan(flow, Step("mail.send"))
    assert verdict(flow, send(EVIL)) is Verdict.ASK


def test_the_step_that_fixes_most_is_taken(flow: Flow) -> None:
    """An open step is left for what it is needed for."""
    plan(flow, Step("mail.send"), Step("mail.send", {"to": JANE, "body": "hello"}), Step("mail.send", {"to": JANE}))
    step = flow.decide(send()).step
    assert step is not None
    assert step.args == {"to": JANE, "body": "hello"}


def test_a_step_binds_content_too(flow: Flow) -> None:
    """An argument that the plan fixes is fixed, control or not."""
    plan(flow, Step("mail.send", {"to": JANE, "body": "hello"}))
    assert verdict(flow, send(args={"body": "buy this"})) is Verdict.ASK
    assert verdict(flow, send()) is Verdict.ALLOW


def test_all_arguments_are_control_where_the_manifest_names_none(flow: Flow) -> None:
    """A manifest that forgot to say does not open a hole."""
    plan(flow, Step("mail.send"))
    decision = flow.decide(send(control=()))
    assert decision.verdict is Verdict.ASK
    assert [one.path for one in decision.given if not one.trusted] == ["body"]


def test_values_by_reference_count_with_their_label(flow: Flow) -> None:
    """A trusted process may pass on what it has not read, as content; as a recipient it asks, unless the value is trusted."""
    assert verdict(flow, send(label=BOTTOM, values={"body": TAINTED})) is Verdict.ALLOW
    assert flow.decide(send(label=BOTTOM, values={"body": TAINTED})).label == TAINTED
    assert verdict(flow, send(EVIL, label=BOTTOM, values={"to": TAINTED})) is Verdict.ASK
    assert verdict(flow, send(EVIL, label=BOTTOM, values={"to": BOTTOM})) is Verdict.ALLOW
    assert verdict(flow, send([JANE, EVIL], label=BOTTOM, values={"to[1]": TAINTED})) is Verdict.ASK
    assert verdict(flow, send(EVIL, values={"to": BOTTOM})) is Verdict.ASK, "not planned"


def test_two_elements_never_share_a_path(flow: Flow) -> None:
    """A key made to look like a path does not lend its neighbour's trust."""
    sneaky = {"a']['b": EVIL, "a": {"b": "x"}}
    request = send(sneaky, values={"to['a']['b']": BOTTOM})
    assert "a']['b" in [one.value for one in flow.decide(request).given]
    plan(flow, Step("mail.send"))
    assert EVIL in [one.value for one in flow.decide(request).given if not one.trusted]


def test_a_slot_takes_one_trusted_value(flow: Flow) -> None:
    """It must come by reference with a trusted label, and be the same wherever the plan names it."""
    plan(flow, Step("mail.send", {"to": {SLOT: "who"}}), Step("mail.send", {"to": {SLOT: "who"}}))
    assert verdict(flow, send(JANE)) is Verdict.ASK, "a literal is no slot's value, quoted or not"
    assert verdict(flow, send("bob", values={"to": TAINTED})) is Verdict.ASK
    assert verdict(flow, send(JANE, values={"to": TAINTED})) is Verdict.ASK
    assert verdict(flow, send(None, values={"to": BOTTOM}, args={"cc": JANE})) is Verdict.ASK
    decision = flow.decide(send("bob", values={"to": BOTTOM}))
    assert decision.verdict is Verdict.ALLOW
    flow.commit("a#1", decision)
    assert verdict(flow, send("eve", values={"to": BOTTOM})) is Verdict.ASK
    assert verdict(flow, send("bob", values={"to": BOTTOM})) is Verdict.ALLOW


def test_strict_asks_for_any_taint() -> None:
    """Neither plan nor prompt count, and untrusted content asks too; a wholly trusted call passes."""
    flow = Flow(Mode.STRICT)
    flow.begin("a#1", PROMPT)
    plan(flow, Step("mail.send", {"to": JANE}))
    assert verdict(flow, send()) is Verdict.ASK
    assert verdict(flow, send(label=BOTTOM, values={"body": TAINTED})) is Verdict.ASK
    assert verdict(flow, send(label=BOTTOM)) is Verdict.ALLOW
    flow.begin("a#1", PROMPT, mode=Mode.DEFAULT)
    plan(flow, Step("mail.send", {"to": JANE}))
    assert verdict(flow, send()) is Verdict.ALLOW


# -- secrecy -----------------------------------------------------------------------------------------------------------


def test_a_plan_carries_what_it_meant_to_read(flow: Flow) -> None:
    """An injection that first makes the process read something secret gets it nowhere, not even to the planned recipient."""
    plan(flow, Step("hotels.search"), Step("mail.send", {"to": JANE}), tags=frozenset({"hotels"}))
    hotels = Label.make("untrusted", ["hotels"])
    assert verdict(flow, send(label=hotels)) is Verdict.ALLOW
    decision = flow.decide(send(label=hotels | Label.make("trusted", ["identity"])))
    assert decision.verdict is Verdict.ASK
    assert "identity" in decision.reasons[0]
    secret = Label.make("trusted", ["identity"])
    flow.fix("a#1", secret, [Step("mail.send", {"to": JANE})], frozenset({"hotels"}))
    assert verdict(flow, send(label=hotels | secret)) is Verdict.ALLOW, "it was there before the plan"


def test_a_ceiling_bounds_what_passes(flow: Flow) -> None:
    """More secrets than the capability is cleared for ask; less integrity than it demands is denied, whatever the plan says."""
    plan(flow, Step("mail.send", {"to": JANE}), tags=frozenset({"*"}))
    cleared = Label.make("untrusted", ["mail"])
    assert verdict(flow, send(ceiling=cleared)) is Verdict.ALLOW
    assert verdict(flow, send(label=TOP, ceiling=cleared)) is Verdict.ASK
    assert (
        verdict(flow, send(label=BOTTOM, values={"body": Label.make("trusted", ["x"])}, ceiling=cleared)) is Verdict.ASK
    )
    assert verdict(flow, send(ceiling=Label.make("trusted", ["mail"]))) is Verdict.DENY
    assert verdict(flow, send(label=BOTTOM, ceiling=Label.make("trusted", ["mail"]))) is Verdict.ALLOW


def test_deny_before_ask_before_allow(flow: Flow) -> None:
    """Another reason only makes a decision stricter."""
    allowed = flow.decide(send(label=BOTTOM))
    asked = allowed.at_least(Verdict.ASK, "each time")
    assert asked.reasons == ("each time",)
    assert asked.at_least(Verdict.DENY, "never").at_least(Verdict.ASK, "again").verdict is Verdict.DENY


def test_an_ended_task_allows_nothing(flow: Flow) -> None:
    """The plan goes with the process."""
    plan(flow, Step("mail.send", {"to": JANE}))
    flow.end("a#1")
    assert flow.plan("a#1") is None
    assert verdict(flow, send()) is Verdict.ASK


VALUES = st.recursive(
    st.text(max_size=12) | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES, st.sampled_from(sorted(SINKS)), st.booleans())
def test_no_argument_gets_a_tainted_call_through_alone(value: Any, effect: Effect, all_control: bool) -> None:
    """Whatever it is: without a plan every sink asks; with an open step, a collection of things not quoted does too."""
    flow = Flow()
    flow.begin("a#1", "nothing of it")
    request = send(value, effect=effect, control=() if all_control else ("to",))
    assert flow.decide(request).verdict is Verdict.ASK
    plan(flow, Step("mail.send"))
    decision = flow.decide(request)
    assert (decision.verdict is Verdict.ALLOW) == all(
        flow._tasks["a#1"].prompt.quotes(one.value) for one in decision.given
    )


def test_a_huge_argument_is_not_looked_up_for_ever(flow: Flow) -> None:
    """Beyond a bound the elements of a call count as not quoted, though they are."""
    plan(flow, Step("mail.send"))
    decision = flow.decide(send([JANE] * (flows.MAX_LOOKUPS + 1)))
    assert [one.origin for one in decision.given[-2:]] == [Origin.QUOTED, Origin.SEEN]


# -- what the user said ------------------------------------------------------------------------------------------------

SAID = """Mail Alice and bob.smith@Example.COM, not x@steve.org. See https://Docs.Example.com/a/B and www.shop.com.
Save it in ~/Documents/plan.txt, then pay 1,200.50 (or $30) to GB29NWBK60161331926819 from May 1st to the 5th of June 2025,
at 10:00 or 6 pm; 2024-05-19 is fine too. Delete notes.txt, call it 'Follow-up  meeting', 3.5 % of 77."""


@pytest.mark.parametrize(
    "value",
    [
        "Alice", "bob.smith@Example.COM", "bob.smith@example.com", "https://docs.example.com/a/B", "www.shop.com",
        "https://www.shop.com/", "WWW.SHOP.com", "~/Documents/plan.txt", "/home/u/Documents/plan.txt",
        "/home/u/notes.txt", "notes.txt", "Follow-up meeting", "GB29NWBK60161331926819", 1200.5, 30, 30.0, 3.5, 77,
        "2025-06-05", "2024-05-19 10:00", "2031-05-01", "2025-06-05T18:00", "2025-06-05 18:00:00",
    ],
)  # fmt: skip
def test_what_the_user_wrote_is_quoted(value: object) -> None:
    """In any way of writing that means the same."""
    assert Prompt(SAID, "/home/u").quotes(value)


@pytest.mark.parametrize(
    "value",
    [
        "docs.example.com/a/B", "alice", "Ali", "smith@example.com", "Example.COM", "example.com",
        "bob.smith@example.co", "bob.smith", "eve", "steve.org", "http://docs.example.com/a/B",
        "https://docs.example.com/a", "https://docs.example.com/a/b", "Documents/plan.tx", "/home/u/x/../notes.txt",
        "/etc/notes.txt", "/home/v/notes.txt", "x.txt", "Follow-up\nmeeting", "GB29NWBK6016133192681", "29", "",
        " Alice", "Alice ", "Ａlice", "Alice\x00", 29, 1200, 1, 5, 50, 10, 2024, 19, True, False, None, ["Alice"],
        {"Alice": "Alice"}, float("inf"), float("nan"), "2025-06-06", "2024-06-05", "2025-06-05 18:01",
        "2024-05-19 10:00Z", "2024-05-19 10:00:30", "to", "at",
    ],
)  # fmt: skip
def test_what_the_user_did_not_write_is_not_quoted(value: object) -> None:
    """Not a part of it, not something like it, not a number out of the middle of something else, never a single bit."""
    assert not Prompt(SAID, "/home/u").quotes(value)


def test_what_is_kept_of_a_prompt_is_bounded() -> None:
    """The rest quotes nothing, however much is said afterwards."""
    prompt = Prompt("x" * MAX_PROMPT + " Alice")
    prompt.add("Bob and 77")
    assert not any(prompt.quotes(value) for value in ("Alice", "Bob", 77))


@pytest.mark.parametrize("value", ["Alice ", "\nAlice", "Alice\nBob", "Al\u200bice", "Alice\u202e"])
def test_what_cannot_be_seen_is_not_quoted(value: str) -> None:
    """Neither white space at an end nor an invisible character comes along, though the prompt may hold the same."""
    prompt = Prompt("Alice (and Al\u200bice) Alice\u202e: Alice")
    prompt.add("Bob")
    assert prompt.quotes("Alice")
    assert not prompt.quotes(value)


def test_a_date_without_a_time_leaves_the_time_open() -> None:
    """Only where the user names times does the time have to be one of them."""
    assert Prompt("on May 1st").quotes("2024-05-01 09:13")
    assert not Prompt("on May 1st at 9:00").quotes("2024-05-01 09:13")


@given(st.text(max_size=40), st.text(max_size=20))
def test_only_the_characters_of_the_prompt_are_quoted(said: str, value: str) -> None:
    """A text that is quoted stands in the prompt, but for the case of hosts and a scheme; short ones never are."""
    if Prompt(said).quotes(value):
        assert len(value) >= MIN_TEXT
        assert (
            value.removesuffix("/").casefold().removeprefix("https://").removeprefix("http://").lstrip("/")
            in " ".join(said.split()).casefold()
        )


@given(VALUES, VALUES)
def test_sameness_is_symmetric_and_knows_ones_self(a: Any, b: Any) -> None:
    """And a truth value is never a number."""
    assert same(a, a)
    assert same(a, b) == same(b, a)
    assert not same(True, 1)
    assert same(1, 1.0)
