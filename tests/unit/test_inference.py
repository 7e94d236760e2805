"""Jobs and turns from the kernel's side, with a core that does what it is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.ipc import protocol
from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from llmos.kernel.labels import Label
from tests.unit.inference_world import KV, World

SECRET = Label.make("untrusted", ["mail"])


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "models")
    made.ready()
    return made


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def test_a_job_goes_to_the_core_at_once_and_runs_when_it_is_admitted(world: World) -> None:
    """First its prompt is read, then tokens are made; the chunks are the text and the answer counts it all."""
    call = world.generate("hello", max_tokens=8)
    assert world.core.run["prefill"][0] == 1
    world.core.obey()
    assert world.core.run["decode"][0][0] == 1
    world.core.obey(finish="length")
    answer = world.reply(call)
    assert answer["text"] == world.streamed(call) == "x" * answer["usage"]["completion"]
    assert answer["finish"] == "length"
    assert answer["usage"]["prompt"] == 5
    assert set(answer["timings"]) == {"queue", "prefill", "decode", "first_text", "total"}


def test_the_core_reads_few_prompts_of_one_principal_at_a_time(world: World) -> None:
    """Reading takes time, which others wait for: the next is told to the core when one has been admitted, or has ended."""
    world.core.silent = True
    calls = [world.generate("x", max_tokens=4) for _ in range(params.ADMISSIONS + 2)]
    assert list(world.core.jobs) == list(range(1, params.ADMISSIONS + 1))
    world.core.admit(1)
    assert list(world.core.jobs)[-1] == params.ADMISSIONS + 1
    world.calls.cancelled(1, calls[1].caller_id)
    assert list(world.core.jobs)[-1] == params.ADMISSIONS + 2


def test_what_the_core_finds_in_its_cache_is_counted_once(world: World) -> None:
    """What `admitted` promises is in `ran` again; the answer's `cached` is the latter."""
    world.core.silent = True
    call = world.generate("0123456789", max_tokens=4)
    world.core.admit(1, cached=6)
    world.core.ran([1, 2, 6, 0, 0, "prefill", None])
    assert world.core.run["prefill"] == [1, 2], "what is left of the four"
    world.core.ran([1, 2, 0, 1, 0, "decode", None])
    world.core.obey(finish="stop")
    assert world.reply(call)["usage"]["cached"] == 6


def test_one_line_tells_of_each_job(world: World, lines: list[Any]) -> None:
    """Times, tokens and how it ended, whether it was answered, failed or was given up; and no text."""
    world.generate("secret", max_tokens=4)
    world.core.obey()
    world.core.obey(finish="stop")
    failed = world.generate("secret", max_tokens=4)
    world.inference.heard({"op": "error", "about": "job", "job": 2, "code": "TOO_LARGE", "detail": "no"})
    cancelled = world.generate("secret", max_tokens=4)
    world.calls.cancelled(1, cancelled.caller_id)
    told = [line for line in lines if line["event"] == "job.done"]
    assert [(line["finish"], line["err"]) for line in told] == [
        ("stop", None),
        ("failed", "TOO_LARGE"),
        ("cancelled", None),
    ]
    sizes = {"prompt", "prefill", "cached", "decode", "forced"}
    times = {"queue_ms", "prefill_ms", "decode_ms", "first_text_ms", "total_ms"}
    assert all(sizes | times | {"model", "job_class", "principal", "call"} <= set(line) for line in told)
    assert "secret" not in repr(told)
    assert world.reply(failed)["code"] == "TOO_LARGE"


def test_a_sooner_job_makes_the_core_yield_once_it_is_admitted(world: World) -> None:
    """Not before, and once a turn; it is then read first."""
    world.generate("a", max_tokens=50, job_class="background")
    world.core.obey()
    world.core.silent = True
    world.generate("b", max_tokens=4)
    assert "yield" not in world.core.ops
    world.core.admit(2)
    world.generate("c", max_tokens=4)
    world.core.admit(3)
    assert world.core.ops.count("yield") == 1
    world.core.ran([1, 0, 0, 2, 0, "decode", None])
    assert world.core.run["prefill"][0] in (2, 3)


@pytest.mark.parametrize("phase", ["queued", "prefill", "decode", "waiting"])
def test_a_cancelled_job_is_gone_in_every_phase(world: World, phase: str) -> None:
    """Its caller hears CANCELLED, the core is told, and the next job runs."""
    world.core.silent = phase == "queued"
    call = world.generate("hello", max_tokens=50)
    if phase == "decode":
        world.core.obey()
    if phase == "waiting":
        world.core.obey()
        world.core.ran([1, 0, 0, 2, 0, "decode", None])
    running = phase != "queued"
    world.calls.cancelled(1, call.caller_id)
    assert world.reply(call)["code"] == "CANCELLED"
    assert world.core.posted[-1] == {"op": "cancel", "job": 1}
    if running:
        world.core.ran([1, 0, 0, 0, 0, "done", "cancelled"])
    world.core.silent = False
    world.generate("next", max_tokens=2)
    assert world.core.run["prefill"][0] == 2
    assert not world.inference.describe()["ended"].get("stop")


@pytest.mark.parametrize("cancel", [True, False])
def test_a_job_that_is_parked_for_a_sooner_one_goes_on_or_is_cancelled(world: World, cancel: bool) -> None:
    """Where KV is short its KV goes, not its words: it reads again what it had, and its answer is whole."""
    world.inference.divide(150_000)
    world.ready()
    later = world.generate("hello", max_tokens=100, job_class="background")
    world.core.obey()
    world.generate("hello", max_tokens=100)
    for _ in range(3):
        if "park" in world.core.ops:
            break
        world.core.obey()
    assert {"op": "park", "job": 1} in world.core.posted
    assert world.inference.describe()["jobs"][2]["parked"] == 1
    before = world.streamed(later)
    if cancel:
        world.calls.cancelled(1, later.caller_id)
        assert world.core.posted[-1] == {"op": "cancel", "job": 1}
        assert world.reply(later)["code"] == "CANCELLED"
        return
    world.core.obey()
    world.core.obey(finish="stop")
    assert world.core.run["prefill"][0] == 1
    world.core.obey()
    world.core.obey(finish="stop")
    assert world.reply(later)["text"].startswith(before)
    assert world.reply(later)["finish"] == "stop"


def test_a_turn_that_was_not_asked_for_is_nonsense(world: World) -> None:
    """A core that makes up turns, or counts less than nothing, has been taken over."""
    world.generate("hello")
    with pytest.raises(ValueError, match="not asked for"):
        world.core.ran(turn=99)
    with pytest.raises(ValueError, match="negative"):
        world.core.ran([1, -5, 0, 0, 0, "decode", None])


@pytest.mark.parametrize("count", [1 << 60, float("inf"), float("nan"), True, "5", None])
@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_figures_that_no_core_counts_are_nonsense_and_change_nothing(world: World, count: Any, place: int) -> None:
    """One that has been taken over can neither empty a quota, nor keep a principal from the model for ever after."""
    world.generate("hello")
    row = [1, 5, 0, 1, 0, "decode", None]
    row[place] = count
    with pytest.raises(ValueError, match="no number of tokens"):
        world.core.ran(row)
    with pytest.raises(ValueError, match="twice"):
        world.core.ran([1, 5, 0, 1, 0, "decode", None], [1, 0, 0, 1, 0, "decode", None])
    assert world.inference.describe()["tokens"]["prefill"] == 0
    world.core.obey()
    assert world.inference.describe()["tokens"]["prefill"] == 5


@pytest.mark.parametrize(("field", "value"), [("prefill_s", float("nan")), ("decode_s", -1.0), ("steps", float("inf"))])
def test_a_time_that_cannot_have_passed_is_nonsense(world: World, field: str, value: float) -> None:
    """It would be in the rates and the statistics for good."""
    world.generate("hello")
    ran = {"op": "ran", "turn": 1, "jobs": [], "prefill_s": 0.1, "steps": 0, "decode_s": 0.0, "rows": 0, "kv": KV}
    with pytest.raises(ValueError, match="no "):
        world.inference.heard({**ran, field: value})
    assert world.inference.describe()["turns"] == 0


def test_an_answer_without_end_is_nonsense(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a core streams is kept for the final answer, so it is bounded; and it is text."""
    world.generate("hello")
    monkeypatch.setattr(params, "ANSWER_CHARACTERS", 10)
    chunk = {"op": "chunk", "job": 1, "tokens": 1}
    world.inference.heard({**chunk, "text": "x" * 10})
    with pytest.raises(ValueError, match="without end"):
        world.inference.heard({**chunk, "text": "x"})
    with pytest.raises(TypeError, match="none"):
        world.inference.heard({**chunk, "text": 5})
    with pytest.raises(ValueError, match="number"):
        world.inference.heard({**chunk, "text": "x", "tokens": [[]]})


@pytest.mark.parametrize("field", ["prompt_tokens", "cached_tokens", "max_tokens"])
def test_an_admission_that_cannot_be_is_nonsense(world: World, field: str) -> None:
    """Nothing is reserved, nor taken from others, for a prompt of less than nothing or without end."""
    world.core.silent = True
    world.generate("hello")
    impossible: list[Any] = [-1, 1 << 60, float("inf")]
    for value in impossible:
        with pytest.raises(ValueError, match="number"):
            world.core.admit(1, **{field: value})


def test_vectors_are_kept_apart_by_label_too(world: World) -> None:
    """The core is told under which label a text is embedded, as it is of a prompt."""
    secret = Label.make("untrusted", ["fs"])
    world.embed("a text", call=world.call("llm.embed", label=secret))
    assert world.core.posted[0]["label"] == "u fs"


# -- quotas ------------------------------------------------------------------------------------------------------------


def test_a_quota_that_runs_out_ends_the_job_after_its_text(world: World) -> None:
    """What it pays for is streamed, then the answer is BUDGET; a job beside it does not notice."""
    call = world.generate("hello", world.call("llm.generate", "poor", cap="llm.generate(tokens=12)"), max_tokens=50)
    other = world.generate("hello", world.call("llm.generate", "rich"), max_tokens=4)
    for _ in range(12):
        if not any(job == 1 for job, _ in world.core.run["decode"]) and world.core.run["prefill"] is None:
            break
        world.core.obey()
    assert world.reply(call)["code"] == "BUDGET"
    assert world.streamed(call) == "x" * 7
    world.core.obey(finish="stop")
    assert world.reply(other)["finish"] == "stop"
    assert world.authority.refusals == [Code.BUDGET]


def test_a_prompt_that_the_quota_cannot_pay_for_is_not_begun(world: World) -> None:
    """Reading it would cost others their turn for nothing."""
    call = world.generate("x" * 50, world.call("llm.generate", cap="llm.generate(tokens=50)"))
    assert world.reply(call)["code"] == "BUDGET"
    assert "run" not in world.core.ops


def test_a_quota_is_kept_to_the_token_where_it_may_run_out(world: World) -> None:
    """Guesses and forced tokens pass a grant: they save time only for those whose quota lasts whatever comes."""
    for quota in (30, 3000):
        call = world.call("llm.generate", "some", cap=f"llm.generate(tokens={quota})")
        world.generate("hello", call, max_tokens=20)
    asked = [world.core.jobs[job] for job in (1, 2)]
    assert [(job["speculate"], job.get("skip_forced", True)) for job in asked] == [(False, False), (True, True)]


def test_drafts_are_for_where_a_person_waits(world: World) -> None:
    """Only an interactive job that does not refuse them may have drafts: a batch pays for each in full."""
    for fields in ({}, {"speculate": False}, {"job_class": "event"}, {"job_class": "background"}):
        world.generate(**fields)
    assert [world.core.jobs[job]["speculate"] for job in (1, 2, 3, 4)] == [True, False, False, False]


def test_a_cancelled_job_pays_for_the_turn_it_was_in(world: World) -> None:
    """Giving up just before the bill comes does not help."""
    call = world.generate("hello", world.call("llm.generate", cap="llm.generate(tokens=100)"), max_tokens=50)
    assert call.cap is not None
    world.core.obey()
    world.calls.cancelled(1, call.caller_id)
    world.core.ran([1, 0, 0, 16, 0, "done", "cancelled"])
    assert world.caps.left(call.cap, "tokens") == 100 - 5 - 16


def test_a_principal_that_runs_out_ends_with_its_text(world: World) -> None:
    """Whatever its capabilities allow; another principal goes on, and so does this one when its budget has filled up."""
    world.inference.set_budget("poor", 12)
    call = world.generate("hello", world.call("llm.generate", "poor"), max_tokens=50)
    other = world.generate("hello", world.call("llm.generate", "rich"), max_tokens=40)
    for _ in range(6):
        world.core.obey()
    assert world.reply(call)["code"] == "BUDGET"
    assert world.streamed(call) == "x" * 7
    assert not other.done
    world.core.obey(finish="stop")
    world.now += 3700
    again = world.generate("hello", world.call("llm.generate", "poor"), max_tokens=4)
    world.core.obey()
    world.core.obey(finish="stop")
    assert world.reply(again)["finish"] == "stop"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_jobs_on_one_account_never_spend_more_than_it_has(quota: int, prompts: list[int]) -> None:
    """However many draw on it at once: the grants of one turn together stay within what is left."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "models")
        world.ready()
        first = world.call("llm.generate", cap=f"llm.generate(tokens={quota})")
        for length in prompts:
            call = world.call("llm.generate")
            call.cap = first.cap
            world.generate("x" * length, call, max_tokens=30)
        assert first.cap is not None
        for _ in range(200):
            if not len(world.inference._scheduler):
                break
            run = world.core.run
            prefill = run["prefill"][1] if run["prefill"] and world.job(run["prefill"][0]) else 0
            left = world.caps.left(first.cap, "tokens")
            assert left is not None
            unread = world.job(run["prefill"][0]).job.unread if prefill else 0
            assert min(prefill, unread) + sum(tokens for _, tokens in run["decode"]) <= left
            world.core.obey()
        assert not len(world.inference._scheduler)


# -- contexts ----------------------------------------------------------------------------------------------------------


def test_a_context_is_opened_appended_forked_and_closed(world: World) -> None:
    """The core is told of each step; what is given is put at the end, and `append` computes no token."""
    number = world.inference.open("user", 1, None)
    call = world.append(number, "abc")
    assert world.core.jobs[1]["max_tokens"] == 0
    world.core.obey()
    assert world.reply(call) == {"tokens": 3, "cached": 0}
    fork = world.inference.fork(number, "user", 1)
    assert world.core.posted[-1] == {"op": "fork", "context": fork, "source": number}
    world.generate("", context=fork)
    assert "prompt" not in world.core.jobs[2]
    assert world.core.jobs[2]["context"] == fork
    world.inference.close(number, "user")
    assert world.core.posted[-1] == {"op": "close", "context": number}


def test_a_context_is_its_owners_alone(world: World) -> None:
    """Another finds nothing there to use, fork or close."""
    number = world.inference.open("user", 1, None)
    for use in (
        lambda: world.inference.fork(number, "other", 2),
        lambda: world.inference.close(number, "other"),
        lambda: world.generate("x", world.call("llm.generate", "other"), context=number),
    ):
        with pytest.raises(OpError) as caught:
            use()
        assert caught.value.code is Code.NOT_FOUND


def test_a_context_takes_one_call_at_a_time(world: World) -> None:
    """A second one, and a fork in the middle, would see half an answer."""
    number = world.inference.open("user", 1, None)
    world.generate("x", context=number)
    for use in (lambda: world.append(number), lambda: world.inference.fork(number, "user", 1)):
        with pytest.raises(OpError) as caught:
            use()
        assert caught.value.code is Code.CONFLICT
    world.core.obey()
    world.core.obey(finish="stop")
    world.append(number)


def test_an_owners_end_closes_its_contexts_and_ends_their_jobs(world: World) -> None:
    """A process's by its name, a program's from outside by its connection; others' stay."""
    mine, theirs = world.inference.open("agent#3", 0, None), world.inference.open("user", 9, None)
    call = world.generate("x", world.call("llm.generate", "agent#3"), context=mine)
    world.inference.drop("agent#3")
    assert world.reply(call)["code"] == "CANCELLED"
    assert [message for message in world.core.posted if message["op"] in ("cancel", "close")] == [
        {"op": "cancel", "job": 1},
        {"op": "close", "context": mine},
    ]
    world.inference.connection_gone(8)
    assert len(world.inference.contexts) == 1
    world.inference.connection_gone(9)
    assert world.core.posted[-1] == {"op": "close", "context": theirs}


def test_a_contexts_label_rises_with_what_is_put_in_and_a_fork_has_it(world: World) -> None:
    """The answer after a secret was read is secret, and the core keeps its cache apart from those who have not read it."""
    number = world.inference.open("user", 1, None)
    world.append(number, "abc", world.call("llm.append", label=SECRET))
    world.core.obey()
    fork = world.inference.fork(number, "user", 1)
    world.generate("what?", context=fork)
    world.generate("what?")
    labels = [world.core.jobs[job]["label"] for job in (1, 2, 3)]
    assert labels == ["u mail", "u mail", "t"]


def test_nobody_takes_all_contexts(world: World) -> None:
    """One owner gets half of what the others leave."""
    for _ in range(params.MAX_CONTEXTS // 2):
        world.inference.open("greedy", 1, None)
    with pytest.raises(OpError) as caught:
        world.inference.open("greedy", 1, None)
    assert caught.value.code is Code.BUSY
    world.inference.open("modest", 2, None)


# -- when things break -------------------------------------------------------------------------------------------------


def test_a_dead_core_fails_what_it_had_and_nothing_else(world: World) -> None:
    """Jobs it knew get PEER_DIED, contexts say that they went with it; a job for a model that was being loaded still waits."""
    number = world.inference.open("user", 1, None)
    call = world.generate("x", context=number)
    model = world.models.get("minilm")
    assert model is not None
    model.state = type(model.state).LOADING
    waiting = world.embed("a")
    world.inference.core_gone("killed")
    assert world.reply(call)["code"] == "PEER_DIED"
    with pytest.raises(OpError) as caught:
        world.generate("y", context=number)
    assert caught.value.code is Code.PEER_DIED
    world.inference.close(number, "user")
    assert not waiting.done
    world.core.posted.clear()
    world.ready()
    world.core.obey()
    assert world.reply(waiting)["dim"] == 2


def test_an_extraction_that_fails_taints_nobody(world: World) -> None:
    """Its caller has not read what the model was to read, and a crash tells nothing of it; who read it himself is told with its label."""
    schema = {"type": "object", "properties": {"urgent": {"type": "boolean"}}}
    call = world.call("llm.extract")
    args = protocol.Extract(prompt="Urgent?", values=["v1"], schema=schema)
    world.inference.extract(call, args, "agent", ["a letter"], SECRET, lambda text: ({}, SECRET))
    own = world.generate("a letter", world.call("llm.generate", label=SECRET))
    world.inference.core_gone("killed")
    labels = {header.id: header.label for header, _ in world.sent if header.kind == "reply"}
    assert (labels[call.caller_id], labels[own.caller_id]) == ([], ["u", "mail"])


def test_a_model_that_is_unloaded_takes_its_jobs_and_contexts_along(world: World) -> None:
    """With an error that says so; another model's jobs go on."""
    number = world.inference.open("user", 1, None)
    call = world.generate("x", context=number)
    other = world.embed("a")
    model = world.models.get("small")
    assert model is not None
    world.inference.model_gone(model, OpError(Code.CANCELLED, "the model small was unloaded"))
    assert world.reply(call)["code"] == "CANCELLED"
    with pytest.raises(OpError) as caught:
        world.generate("y", context=number)
    assert (caught.value.code, "unloaded" in caught.value.detail) == (Code.NOT_FOUND, True)
    world.core.ran([1, 0, 0, 0, 0, "done", "cancelled"])
    world.core.obey()
    assert world.reply(other)["vectors"]


def test_a_job_that_fails_in_its_turn_has_its_own_error(world: World) -> None:
    """And the other job of the turn its answer; the failed one is in `ran` besides, and pays."""
    one = world.generate("a", world.call("llm.generate", cap="llm.generate(tokens=100)"), max_tokens=9)
    two = world.generate("b", max_tokens=9)
    for _ in range(4):
        if len(world.core.run["decode"]) == 2:
            break
        world.core.obey()
    world.inference.heard(
        {"op": "error", "about": "run", "job": 1, "code": "BUDGET", "detail": "the grammar has no end"}
    )
    world.core.ran([1, 0, 0, 3, 0, "done", "failed"], [2, 0, 0, 3, 0, "done", "stop"])
    assert "grammar" in world.reply(one)["detail"]
    assert world.reply(two)["finish"] == "stop"


def test_a_conversation_that_is_paged_is_sized_again_after_its_turn(world: World) -> None:
    """The core admits it a second time; its reading starts anew and the answer tells the new size."""
    number = world.inference.open("user", 1, None)
    call = world.generate("a" * 30, context=number, max_tokens=8)
    world.core.admit(1, prompt_tokens=20)
    world.core.ran([1, 30, 0, 5, 0, "prefill", None])
    assert world.core.run["prefill"] == [1, 20]
    world.core.obey()
    world.core.obey(finish="stop")
    assert world.reply(call)["usage"]["prompt"] == 20


def test_a_silent_core_is_noticed_though_jobs_keep_coming(world: World) -> None:
    """Seconds since its last word count from when it got something to do, not from the newest job."""
    assert world.inference.silent_s() == 0
    world.core.silent = True
    world.generate("a")
    world.now += 60
    world.generate("b")
    assert world.inference.silent_s() == 60
    world.core.admit(1)
    assert world.inference.silent_s() == 0
    world.now += 5
    assert world.inference.silent_s() == 5


def test_the_statistics_count_what_ran(world: World) -> None:
    """Jobs by class and state, tokens, rates that fade, and how each job ended."""
    world.generate("hello", max_tokens=4)
    world.generate("hello", max_tokens=4, job_class="background")
    jobs = {row["class"]: row for row in world.inference.describe()["jobs"]}
    assert jobs["interactive"]["prefill"] == jobs["background"]["prefill"] == 1
    world.core.obey()
    busy = world.inference.describe()
    assert busy["tokens"]["prefill"] == 5
    assert busy["tokens_s"]["prefill"] > 0
    assert busy["turns"] == 1
    world.now += 60
    assert world.inference.describe()["tokens_s"]["prefill"] == 0
    assert [row["name"] for row in busy["models"]] == ["small", "minilm"]


def test_every_call_of_a_busy_hour_gets_one_answer(world: World) -> None:
    """Whatever happens in whatever order: finishing, cancelling, dying, none is answered twice or never."""
    calls = []
    for number in itertools.islice(itertools.count(), 40):
        calls.append(world.generate("abc", world.call("llm.generate", f"p{number % 7}"), max_tokens=6))
        if number % 5 == 4:
            world.calls.cancelled(1, calls[number - 2].caller_id)
        if number % 11 == 10:
            world.inference.core_gone("killed")
            world.ready()
        elif world.inference._turn is not None:
            world.core.obey(finish="stop" if number % 3 else None)
    while len(world.inference._scheduler):
        world.core.obey(finish="stop")
    for call in calls:
        assert sum(header.id == call.caller_id and header.kind == "reply" for header, _ in world.sent) == 1
