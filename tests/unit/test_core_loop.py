"""The core's side of its conversation with the kernel, with an engine that only counts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.core import limits
from llmos.kernel.core.passage import next_slice
from tests.unit.core_doubles import WINDOW, CountingEngine, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_grant_is_never_exceeded(desk: Desk) -> None:
    """Prompt tokens and produced tokens count against the grant for each, and `ran` counts exactly what was done."""
    assert desk.job(1, prompt="0123456789A", max_tokens=6) == {
        "op": "admitted",
        "job": 1,
        "prompt_tokens": 11,
        "cached_tokens": 0,
        "max_tokens": 6,
    }
    assert desk.run([1, 4])["jobs"] == {1: [4, 0, 0, 0, "prefill", None]}
    assert desk.run([1, 7])["jobs"] == {1: [7, 0, 1, 0, "decode", None]}
    ran = desk.run(None, [1, 2])
    assert ran["jobs"] == {1: [0, 0, 2, 0, "decode", None]}
    assert (ran["steps"], ran["rows"]) == (2, 2)
    assert desk.run(None, [1, 100])["jobs"] == {1: [0, 0, 3, 0, "done", "length"]}


def test_the_text_is_told_as_it_comes_and_once(desk: Desk) -> None:
    """The chunks of a turn add up to what was produced in it, in text and in tokens: nothing waits for the next turn."""
    desk.job(1, prompt="A", max_tokens=9)
    for prefill, count, text in (([1, 10], 4, "BCDE"), (None, 2, "FG"), (None, 100, "HIJ")):
        said = desk.tell("run", turn=1, prefill=prefill, decode=[[1, count]])
        chunks = [message for message in said if message["op"] == "chunk"]
        assert "".join(chunk["text"] for chunk in chunks) == text
        assert sum(chunk["tokens"] for chunk in chunks) == len(text)


def test_many_decode_in_one_step(desk: Desk) -> None:
    """Jobs that decode share every run of the model while one more reads its prompt; each has its own text."""
    for number, letter in enumerate("Aak", 1):
        desk.job(number, prompt=letter, max_tokens=5)
        desk.run([number, 10])
    desk.job(4, prompt="0" * 50, max_tokens=5)
    desk.engines["m"].fed.clear()
    ran = desk.run([4, 20], [1, 4], [2, 4], [3, 2])
    assert desk.engines["m"].fed == [[20], [1, 1, 1], [1, 1, 1], [1, 1], [1, 1]]
    assert (ran["steps"], ran["rows"]) == (4, 10)
    assert ran["jobs"][4][:2] == [20, 0]
    assert ran["text"][1].endswith("F")
    assert ran["jobs"][2] == [0, 0, 4, 0, "done", "length"]
    assert ran["jobs"][3] == [0, 0, 2, 0, "decode", None]


def test_nothing_is_computed_for_a_token_that_is_not_wanted(desk: Desk) -> None:
    """The last token of a job is not fed to the model: nobody will ask what follows it."""
    assert desk.generate(1, prompt="A", max_tokens=3) == "BCD"
    assert desk.engines["m"].fed == [[1], [1], [1]]


def test_a_stop_string_ends_the_job(desk: Desk) -> None:
    """The text ends before the stop string, and the job says so."""
    desk.job(1, prompt="A", stop=["EF"])
    assert desk.finish(1) == ("BCD", "stop")


def test_a_long_prompt_is_read_in_slices(desk: Desk) -> None:
    """No run of the model reads more than `PREFILL_SLICE` tokens."""
    desk.job(1, prompt="a" * 300, max_tokens=1)
    while desk.run([1, 1000])["jobs"][1][4] != "done":
        pass
    assert max(max(fed) for fed in desk.engines["m"].fed) <= limits.PREFILL_SLICE
    assert sum(map(sum, desk.engines["m"].fed)) == 300


@given(st.integers(1, 400), st.lists(st.integers(1, 150), min_size=1))
def test_a_prompt_is_cut_between_pairs(prompt: int, grants: list[int]) -> None:
    """However grants and the pace cut a prompt, each slice begins at an even place, has two tokens or more, and has no
    more than its limit or three."""
    fed = 0
    for limit in itertools.cycle(grants):
        count = next_slice(prompt - fed, limit)
        assert fed % 2 == 0
        assert 2 <= count <= max(limit, 3) or count == prompt == 1
        fed += count
        if fed == prompt:
            break


def test_a_yield_ends_the_turn_and_loses_nothing(desk: Desk) -> None:
    """After a yield the job goes on where it was; the text is the same as without."""
    desk.job(1, prompt="A", max_tokens=9)
    desk.engines["m"].at[4] = lambda: desk.arriving.append({"op": "yield"})
    first = desk.run([1, 10], [1, 100])
    assert first["jobs"] == {1: [1, 0, 4, 0, "decode", None]}
    second = desk.run(None, [1, 100])
    assert first["text"][1] + second["text"][1] == "BCDEFGHIJ"
    assert second["jobs"] == {1: [0, 0, 5, 0, "done", "length"]}


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_cancel_acts_at_once(desk: Desk, after: int) -> None:
    """After the slice of the prompt or the token of the answer that it came in, `ran` says cancelled and the job is gone."""
    desk.job(1, prompt="a" * 100, max_tokens=50)
    desk.engines["m"].at[after] = lambda: desk.arriving.append({"op": "cancel", "job": 1})
    ran = desk.run([1, 1000], [1, 1000])
    assert ran["jobs"][1][4:] == ["done", "cancelled"]
    assert len(desk.engines["m"].fed) == after
    assert desk.run([1, 5], [1, 5])["jobs"] == {}
    assert desk.engines["m"].taken == []


def test_a_waiting_job_is_cancelled_while_another_runs(desk: Desk) -> None:
    """Its row is free at once, it is in no `ran`, and the other goes on."""
    desk.job(1, prompt="A", max_tokens=5)
    desk.run([1, 2])
    desk.job(2, prompt="A", max_tokens=5)
    desk.engines["m"].at[3] = lambda: desk.arriving.append({"op": "cancel", "job": 1})
    ran = desk.run([2, 10], [2, 100])
    assert ran["jobs"] == {2: [1, 0, 5, 0, "done", "length"]}
    assert desk.engines["m"].taken == []


def test_messages_that_cross_are_ignored(desk: Desk) -> None:
    """A yield without a turn, a cancel, a park and a grant for an ended job, a close of no context: no answer, no harm."""
    desk.generate(1, prompt="A", max_tokens=1)
    for op, fields in (("cancel", {"job": 1}), ("yield", {}), ("park", {"job": 1}), ("close", {"context": 9})):
        assert desk.tell(op, **fields) == []
    assert desk.run([1, 10], [1, 10])["jobs"] == {}
    assert desk.job(2, prompt="A")["op"] == "admitted"


def test_a_cancel_that_comes_after_the_end_changes_nothing(desk: Desk) -> None:
    """A job that ended in the turn is told as ended as it did, though a cancel came before its `ran` was written."""
    desk.job(1, prompt="A", max_tokens=1)
    desk.job(2, prompt="a", max_tokens=9)
    desk.run([2, 5])
    desk.engines["m"].at[3] = lambda: desk.arriving.append({"op": "cancel", "job": 1})
    ran = desk.run([1, 5], [2, 4])
    assert ran["jobs"][1][4:] == ["done", "length"]


def test_a_job_is_read_during_a_turn_and_its_run_waits(desk: Desk) -> None:
    """The kernel hears how large a new job is between two steps; runs wait for the turn's end, in their order."""
    desk.job(1, prompt="A", max_tokens=4)

    def arrive() -> None:
        desk.arriving += [
            {"op": "job", "job": 2, "model": "m", "prompt": "a", "max_tokens": 2},
            {"op": "cancel", "job": 7},
            {"op": "run", "turn": 9, "prefill": [2, 100], "decode": [[2, 100]]},
        ]

    desk.engines["m"].at[2] = arrive
    said = desk.tell("run", turn=8, prefill=[1, 10], decode=[[1, 100]])
    ops = [message["op"] for message in said if message["op"] != "chunk"]
    assert ops == ["admitted", "ran", "ran"]
    assert [message["turn"] for message in said if message["op"] == "ran"] == [8, 9]


def test_what_follows_a_message_that_waits_waits_too(desk: Desk) -> None:
    """A job that comes after an unload finds the model gone, though it came during the turn."""
    desk.job(1, prompt="A", max_tokens=4)

    def arrive() -> None:
        desk.arriving += [
            {"op": "unload", "model": "m"},
            {"op": "job", "job": 2, "model": "m", "prompt": "a", "max_tokens": 2},
        ]

    desk.engines["m"].at[2] = arrive
    said = desk.tell("run", turn=8, prefill=[1, 10], decode=[[1, 100]])
    assert [message["op"] for message in said if message["op"] != "chunk"] == ["ran", "unloaded", "error"]


# -- contexts and what is shared


def test_a_context_is_read_only_as_far_as_it_is_new(desk: Desk) -> None:
    """What is given is appended, and so is the answer; only what is new is read."""
    desk.tell("open", context=5, model="m")
    desk.job(1, context=5, prompt="ABC", max_tokens=2)
    assert desk.finish(1) == ("DE", "length")
    admitted = desk.job(2, context=5, prompt="xyzx", max_tokens=1)
    assert (admitted["prompt_tokens"], admitted["cached_tokens"]) == (9, 4)  # E was never fed
    ran = desk.run([2, 100])
    assert (ran["jobs"][2][:3], ran["text"]) == ([5, 4, 1], {2: "y"})
    desk.tell("close", context=5)
    assert desk.job(3, context=5, prompt="A")["code"] == "NOT_FOUND"


def test_a_context_may_be_appended_to_without_an_answer(desk: Desk) -> None:
    """`max_tokens` 0 reads what is given and says nothing; the next job finds it read."""
    desk.tell("open", context=5, model="m")
    desk.job(1, context=5, prompt="0123456789", max_tokens=0)
    assert desk.run([1, 100])["jobs"] == {1: [10, 0, 0, 0, "done", "length"]}
    admitted = desk.job(2, context=5, prompt="AB", max_tokens=2)
    assert (admitted["prompt_tokens"], admitted["cached_tokens"]) == (12, 10)
    assert desk.finish(2)[0] == "CD"
    desk.job(3, context=5, max_tokens=1)  # goes on where it ended
    assert desk.finish(3)[0] == "E"


@pytest.mark.parametrize("end", ["cancel", "fail", "refuse"])
def test_a_job_that_does_not_end_well_leaves_its_context_as_it_was(desk: Desk, end: str) -> None:
    """Cancelled in its answer, failed, or refused: asking again in the context does not find the words twice."""
    desk.tell("open", context=5, model="m")
    desk.job(1, context=5, prompt="AB", max_tokens=2)
    desk.finish(1)
    if end == "refuse":
        refused = desk.job(2, context=5, prompt="x", regex="(", max_tokens=5)
        assert (refused["code"], refused["job"]) == ("INVALID_ARGUMENT", 2)
    else:
        desk.job(2, context=5, prompt="xx", max_tokens=50)
        if end == "cancel":
            desk.run([2, 10], [2, 3])
            desk.tell("cancel", job=2)
        else:
            desk.engines["m"].fail_at = {len(desk.engines["m"].fed) + 2}
            desk.run([2, 10], [2, 3])
    assert desk.job(3, context=5, prompt="yz", max_tokens=1)["prompt_tokens"] == 6


def test_forks_go_their_own_ways(desk: Desk) -> None:
    """A fork has all of its source at no cost, and neither sees what the other is given later."""
    desk.tell("open", context=1, model="m")
    desk.generate(1, context=1, prompt="0123456789", max_tokens=2)
    assert desk.tell("fork", context=2, source=1) == []
    assert desk.job(2, context=2, prompt="xy", max_tokens=1)["cached_tokens"] >= 10
    desk.finish(2)
    assert desk.job(3, context=1, prompt="ab", max_tokens=1)["prompt_tokens"] == 14
    assert desk.finish(3)[0] == "c"
    assert desk.tell("fork", context=3, source=9)[0]["code"] == "NOT_FOUND"


def test_a_context_serves_one_job_at_a_time(desk: Desk) -> None:
    """A second job is refused with the first one's number; closing the context cancels the first."""
    desk.tell("open", context=5, model="m")
    desk.job(1, context=5, prompt="A")
    error = desk.job(2, context=5, prompt="A")
    assert (error["code"], error["job"]) == ("CONFLICT", 2)
    assert "job 1" in error["detail"]
    desk.run([1, 10])
    assert desk.tell("close", context=5) == []
    assert desk.engines["m"].taken == []
    assert desk.run(None, [1, 10])["jobs"] == {}


def test_a_context_holds_turns_or_text(desk: Desk) -> None:
    """Whichever came first; the other is refused and changes nothing."""
    desk.tell("open", context=1, model="m")
    desk.generate(1, context=1, prompt="A", max_tokens=1)
    error = desk.job(2, context=1, messages=[{"role": "user", "content": "x"}], max_tokens=1)
    assert error["code"] == "INVALID_ARGUMENT"
    assert desk.job(3, context=1, prompt="x", max_tokens=1)["prompt_tokens"] == 3


def test_equal_labels_share_and_others_do_not(desk: Desk) -> None:
    """A prompt that was read under a label costs two tokens under it, and all of it under another."""
    prompt = "0123456789" * 3
    desk.generate(1, prompt=prompt, max_tokens=1, label="a")
    assert desk.job(2, prompt=prompt, max_tokens=1, label="a")["cached_tokens"] == 28
    assert desk.job(3, prompt=prompt, max_tokens=1, label="b")["cached_tokens"] == 0
    assert desk.run([2, 100])["jobs"][2][:2] == [2, 28]
    assert desk.run([3, 100])["jobs"][3][:2] == [30, 0]


def test_a_context_whose_label_rises_keeps_what_it_read(desk: Desk) -> None:
    """The rest of the context is found under its new label; a stranger's text under the old one is not."""
    desk.tell("open", context=1, model="m")
    desk.generate(1, context=1, prompt="0123456789", max_tokens=2, label="a")
    desk.generate(2, prompt="9876543210", max_tokens=2, label="a")
    assert desk.job(3, context=1, prompt="xy", max_tokens=2, label="b")["cached_tokens"] >= 10
    assert desk.job(4, prompt="9876543210", max_tokens=2, label="b")["cached_tokens"] == 0


def test_one_reads_what_another_is_waiting_for(desk: Desk) -> None:
    """Two jobs of one prompt admitted together: the second finds all that the first has read, begun or not."""
    for number in (1, 2):
        desk.job(number, prompt="0123456789" * 3, max_tokens=1)
    desk.run([2, 8])
    desk.run([1, 100])
    assert desk.run([2, 100])["jobs"][2][:2] == [2, 20]


# -- refusals and failures


def test_a_prompt_over_the_window_is_refused_with_both_numbers(desk: Desk) -> None:
    """A prompt must leave room for one token; an answer is cut to the room there is."""
    error = desk.job(1, prompt="a" * WINDOW)
    assert error["code"] == "TOO_LARGE"
    assert error["detail"].count(str(WINDOW)) == 2
    assert desk.job(2, prompt="a" * (WINDOW - 1), max_tokens=9)["max_tokens"] == 1


def test_an_empty_prompt_is_refused(desk: Desk) -> None:
    """A model without a token to begin with has nothing to go on from, in a context either."""
    assert desk.job(1, prompt="")["code"] == "INVALID_ARGUMENT"
    desk.tell("open", context=1, model="m")
    assert desk.job(2, context=1)["code"] == "INVALID_ARGUMENT"


def test_an_unloaded_model_says_what_to_do(desk: Desk) -> None:
    """Unloading ends its jobs and contexts and gives its memory back; what is asked of it then is refused with a hint."""
    desk.tell("open", context=1, model="m")
    desk.generate(1, context=1, prompt="0123456789", max_tokens=4)
    desk.job(2, prompt="A")
    desk.run([2, 10])
    assert desk.ask("unload", model="m") == {"op": "unloaded", "model": "m"}
    assert desk.engines["m"].taken == []
    assert (desk.memory.usage()["rows"], desk.memory.usage()["cache"]) == (0, 0)
    error = desk.job(3, prompt="A")
    assert (error["code"], "llmosctl model load m" in error["hint"]) == ("UNAVAILABLE", True)
    error = desk.ask("embed", job=4, model="e", texts=["a"])
    assert (error["code"], "llmosctl model pull" in error["hint"]) == ("UNAVAILABLE", True)
    assert desk.job(5, context=1, prompt="A")["op"] == "error"


def test_a_model_that_does_not_load_leaves_the_others(tmp_path: Path) -> None:
    """The error names it; the jobs of the other model go on, and nothing is left of the broken one."""
    desk = Desk(tmp_path)
    desk.job(1, prompt="A", max_tokens=3)
    desk.run([1, 10])
    error = desk.ask("load", model="b", folder="broken", provider="cpu", kind="generator")
    assert (error["about"], error["model"], error["code"]) == ("load", "b", "NOT_FOUND")
    assert desk.job(2, model="b", prompt="A")["code"] == "UNAVAILABLE"
    assert desk.finish(1)[1] == "length"


def test_a_model_that_is_loaded_again_takes_its_own_place(desk: Desk) -> None:
    """The one before goes with its jobs and its memory; jobs of the new one work."""
    desk.job(1, prompt="A")
    desk.run([1, 10])
    before = desk.engines["m"]
    desk.engines["m"] = CountingEngine()
    assert desk.ask("load", model="m", folder="m", provider="cpu", kind="generator")["op"] == "ready"
    assert (before.taken, desk.memory.usage()["rows"]) == ([], 0)
    assert desk.generate(2, prompt="A", max_tokens=3) == "BCD"


def test_two_models_take_turns(tmp_path: Path) -> None:
    """Their jobs alternate, share one memory, and each gets its own model's text."""
    engines = {"one": CountingEngine(), "two": CountingEngine()}
    engines["two"].successor = {byte: (byte + 2) % 256 for byte in range(256)}
    desk = Desk(tmp_path, engines)
    texts = {1: "", 2: ""}
    for number, name in enumerate(engines, 1):
        desk.job(number, model=name, prompt="A", max_tokens=6)
    for turn in range(8):
        number = turn % 2 + 1
        texts[number] += desk.run([number, 9], [number, 2])["text"].get(number, "")
    assert texts == {1: "BCDEFG", 2: "CEGIKM"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 99991},
        {"type": "number", "multipleOf": 0.99991},
        {
            "type": "array",
            "prefixItems": [{"type": "integer", "multipleOf": 997}, {"type": "integer", "multipleOf": 991}],
        },
    ],
)
def test_a_schema_that_takes_long_to_compile_is_refused(desk: Desk, schema: dict[str, object]) -> None:
    """The core has one thread: a constraint of a few bytes must not make everybody wait for seconds, again and again."""
    answer = desk.job(1, prompt="A", schema=schema)
    assert answer["op"] == "error"
    assert answer["code"] == "INVALID_ARGUMENT"
    assert "multipleOf" in answer["hint"]


@pytest.mark.parametrize("step", [1, 5, 0.01, 0.25, 60, 100000, 1e-9])
def test_usual_steps_can_be_asked_for(desk: Desk, step: float) -> None:
    """What forms ask for is not refused."""
    assert desk.job(1, prompt="A", schema={"type": "number", "multipleOf": step})["op"] == "admitted"
