"""Turns under fault and attack: what fails fails alone, and whatever the kernel says in whatever order, no row is lost."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.core_doubles import EOS, KV_BYTES, CountingEngine, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_failing_step_fails_its_batch_only(desk: Desk) -> None:
    """Those in it get the engine's error and are done; the job that reads beside them and later ones are unharmed."""
    for number in (1, 2):
        desk.job(number, prompt="A", max_tokens=9)
        desk.run([number, 5])
    desk.job(3, prompt="a" * 20, max_tokens=3)
    desk.engines["m"].fail_at = {len(desk.engines["m"].fed) + 2}
    ran = desk.run([3, 10], [1, 4], [2, 4])
    assert [ran["jobs"][number][4:] for number in (1, 2)] == [["done", "failed"]] * 2
    assert [(error["about"], error["job"], error["code"]) for error in ran["said"]] == [
        ("run", 1, "INTERNAL"),
        ("run", 2, "INTERNAL"),
    ]
    assert len(desk.engines["m"].taken) == 1
    assert desk.finish(3) == ("bcd", "length")


def test_a_failing_slice_fails_its_reader_only(desk: Desk) -> None:
    """The job whose prompt failed has the error; those that decode in the same turn go on."""
    desk.job(1, prompt="A", max_tokens=9)
    desk.run([1, 5])
    desk.job(2, prompt="a" * 20, max_tokens=3)
    desk.engines["m"].fail_at = {len(desk.engines["m"].fed) + 1}
    ran = desk.run([2, 10], [1, 4])
    assert (ran["jobs"][2][4:], ran["jobs"][1][2]) == (["done", "failed"], 4)
    assert desk.finish(1)[1] == "length"


def test_a_grammar_that_fails_fails_its_job_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constraint that becomes too complex in the middle of a batch ends its own job with BUDGET."""
    from llmos.ipc.errors import Code, OpError
    from llmos.kernel.core.grammar import Grammar

    desk.job(1, prompt="A", max_tokens=9)
    desk.job(2, prompt="A", max_tokens=9, regex="[a-z]*")
    for number in (1, 2):
        desk.run([number, 5])

    def complex_(*_: object) -> None:
        raise OpError(Code.BUDGET, "too complex")

    with monkeypatch.context() as patched:
        patched.setattr(Grammar, "mask", complex_)
        ran = desk.run(None, [1, 3], [2, 3])
    assert (ran["jobs"][1][2:5], ran["jobs"][2][4:]) == ([3, 0, "decode"], ["done", "failed"])
    assert ran["said"][0]["code"] == "BUDGET"
    assert desk.finish(1)[1] == "length"


def test_a_grammar_that_leaves_no_choice_needs_no_model(desk: Desk) -> None:
    """One choice is the text, without a run; where it is longer than `max_tokens`, just so much of it comes."""
    desk.job(1, prompt="A", choices=["only"], max_tokens=9)
    assert desk.finish(1) == ("only", "stop")
    desk.job(2, prompt="A", choices=["only"], max_tokens=2)
    assert desk.finish(2) == ("on", "length")
    assert desk.engines["m"].fed == []


def test_forced_tokens_are_counted(desk: Desk) -> None:
    """`decode` has all that was produced, `forced` those without a decision; skipping them or not gives one text."""
    request: dict[str, Any] = {"prompt": "A", "regex": "(abc|xyz)=(true|false)!", "max_tokens": 30}
    desk.job(1, **request)
    ran = desk.run([1, 10], [1, 100])
    text = ran["text"][1]
    assert (ran["jobs"][1][2], ran["jobs"][1][4:]) == (len(text), ["done", "stop"])
    assert ran["jobs"][1][3] == len(text) - 2
    steps = len(desk.engines["m"].fed)
    assert desk.generate(2, skip_forced=False, **request) == text
    assert len(desk.engines["m"].fed) - steps > 2 * steps


def test_a_parked_job_goes_on_with_the_same_text(desk: Desk) -> None:
    """Parked in its prompt, and in its answer more than once: its row is free, its tokens count once, its text is whole."""
    whole = desk.generate(1, prompt="abcdefghij" * 3, max_tokens=12)
    desk.job(2, prompt="0123456789" * 3, max_tokens=12)
    text, produced = "", 0
    for grant in ([2, 10], [2, 100], [2, 100], [2, 100]):
        ran = desk.run(grant, [2, 4])
        text, produced = text + ran["text"].get(2, ""), produced + ran["jobs"][2][2]
        desk.tell("park", job=2)
        assert desk.engines["m"].taken == []
    assert (len(text), produced, ran["jobs"][2][4:]) == (len(whole), 12, ["done", "length"])
    assert text == ":;<=>?@ABCDE"


def test_a_parked_job_is_read_again_when_memory_had_to_go(tmp_path: Path) -> None:
    """With no room for what was parked, it is all read again, and the text is the same."""
    desk = Desk(tmp_path, kv_bytes=0)
    desk.job(1, prompt="0123456789", max_tokens=8)
    text = desk.run([1, 100], [1, 4])["text"][1]
    desk.tell("park", job=1)
    assert desk.memory.usage()["cache"] == 0
    ran = desk.run([1, 100], [1, 100])
    assert ran["jobs"][1][:3] == [13, 0, 4]
    assert text + ran["text"][1] == ":;<=>?@A"


def test_growing_rows_push_the_cache_aside(tmp_path: Path) -> None:
    """After a turn in which rows grew, rows and cache together are within the limit."""
    desk = Desk(tmp_path, kv_bytes=60 * KV_BYTES)
    desk.job(1, prompt="0123456789" * 3, max_tokens=25)
    assert desk.run([1, 100])["kv"] == {
        "rows": 30 * KV_BYTES,
        "cache": 30 * KV_BYTES,
        "spilled": 0,
    }
    kv = desk.run(None, [1, 20])["kv"]
    assert (kv["rows"], kv["rows"] + kv["cache"] <= 60 * KV_BYTES) == (50 * KV_BYTES, True)


@pytest.mark.parametrize("phase", ["admitted", "reading", "decoding", "parked", "paging"])
@pytest.mark.parametrize("end", ["cancel", "close", "unload"])
def test_a_job_can_be_ended_in_every_phase(desk: Desk, phase: str, end: str) -> None:
    """Its row is free at once, nothing is said of it any more, and its memory is the cache's or nobody's."""
    desk.tell("open", context=1, model="m")
    if phase == "paging":
        for number in range(4):
            desk.generate(10 + number, context=1, prompt="x" * 80, max_tokens=1)
    desk.job(1, context=1, prompt="a" * 60, max_tokens=20 if phase != "paging" else 100)
    if phase != "admitted":
        desk.run([1, 10 if phase == "reading" else 1000], [1, 5])
    if phase == "parked":
        desk.tell("park", job=1)
    said = desk.tell(end, job=1, context=1, model="m")
    assert [message["op"] for message in said] == (["unloaded"] if end == "unload" else [])
    assert (desk.engines["m"].taken, desk.memory.usage()["rows"], desk.loop._jobs) == ([], 0, {})
    assert desk.run([1, 10], [1, 10])["jobs"] == {}


def test_more_jobs_than_rows_is_busy(tmp_path: Path) -> None:
    """One that finds no row fails with BUSY, in its own name."""
    desk = Desk(tmp_path, {"m": CountingEngine(rows=2)})
    for number in (1, 2, 3):
        desk.job(number, prompt="A", max_tokens=9)
        ran = desk.run([number, 9])
    assert (ran["jobs"][3][4:], ran["said"][0]["code"]) == (["done", "failed"], "BUSY")
    assert desk.finish(1)[1] == "length"


class Attack(RuleBasedStateMachine):
    """A kernel that says anything it may, in any order. The engine checks each text; here it is checked that nothing leaks."""

    portable = True
    kv_bytes = 300 * KV_BYTES

    @initialize(spill=st.booleans())
    def begin(self, spill: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        engines = {
            name: CountingEngine(rows=6, portable=self.portable, looks_back=self.portable) for name in ("one", "two")
        }
        engines["two"].successor = {ord("z"): EOS}
        limits: dict[str, Any] = {"spill_dir": str(self.folder), "spill_bytes": 500 * KV_BYTES} if spill else {}
        self.desk = Desk(self.folder, engines, kv_bytes=self.kv_bytes, **limits)
        for model in self.desk.loop._models.values():
            if self.portable:
                model.seats.cache.read_s = 10.0  # type: ignore[union-attr]  # a file always pays
        self.states: dict[int, list[Any]] = {}
        """Of each live job: model, state, context, and what its turns produced."""
        self.contexts: dict[int, str] = {}
        self.number = 0

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _pick(self, seed: int) -> int:
        return sorted(self.states)[seed % len(self.states)] if self.states else 0

    @rule(model=st.sampled_from(["one", "two"]))
    def open(self, model: str) -> None:
        number = self._next()
        assert self.desk.tell("open", context=number, model=model) == []
        self.contexts[number] = model

    @rule(seed=st.integers(0, 9))
    def fork(self, seed: int) -> None:
        if self.contexts:
            source, number = sorted(self.contexts)[seed % len(self.contexts)], self._next()
            assert self.desk.tell("fork", context=number, source=source) == []
            self.contexts[number] = self.contexts[source]

    @rule(seed=st.integers(0, 9))
    def close(self, seed: int) -> None:
        if self.contexts:
            number = sorted(self.contexts)[seed % len(self.contexts)]
            assert self.desk.tell("close", context=number) == []
            del self.contexts[number]
            self.states = {job: state for job, state in self.states.items() if state[2] != number}

    @rule(
        model=st.sampled_from(["one", "two"]),
        label=st.sampled_from(["", "a"]),
        letter=st.sampled_from("abx"),
        length=st.integers(1, 90),
        max_tokens=st.integers(1, 60),
        seed=st.none() | st.integers(0, 9),
        extra=st.sampled_from(
            [{}, {"speculate": True}, {"regex": "[a-z]{5}=(yes|no)"}, {"stop": ["fg"]}, {"temperature": 1.0}]
        ),
    )
    def submit(
        self, model: str, label: str, letter: str, length: int, max_tokens: int, seed: int | None, extra: dict[str, Any]
    ) -> None:
        number, context = self._next(), None
        if seed is not None and self.contexts:
            context = sorted(self.contexts)[seed % len(self.contexts)]
            model = self.contexts[context]
        prompt = (letter + "bcdefgh") * (length // 8 + 1)
        answer = self.desk.job(
            number, model, prompt=prompt, label=label, context=context, max_tokens=max_tokens, **extra
        )
        if answer["op"] == "admitted":
            self.states[number] = [model, "prefill", context, 0]
        else:
            assert answer["code"] in ("CONFLICT", "TOO_LARGE")

    @rule(
        model=st.sampled_from(["one", "two"]),
        tokens=st.integers(1, 200),
        steps=st.integers(0, 30),
        fail=st.sampled_from([0, 0, 0, 0, 1, 2]),
        arriving=st.sampled_from(["", "", "", "yield", "cancel", "park"]),
        seed=st.integers(0, 9),
    )
    def run(self, model: str, tokens: int, steps: int, fail: int, arriving: str, seed: int) -> None:
        engine = self.desk.engines[model]
        mine = {job: state for job, state in self.states.items() if state[0] == model}
        reading = [job for job, state in mine.items() if state[1] == "prefill"][: 5 if engine.taken else 6]
        decode = [[job, steps] for job, state in mine.items() if state[1] == "decode"]
        reader = reading[seed % len(reading)] if reading and len(engine.taken) < engine.rows else None
        if fail:
            engine.fail_at = {len(engine.fed) + fail}
        aim = self._pick(seed)
        if arriving:
            engine.at[len(engine.fed) + 1] = lambda: self.desk.arriving.append({"op": arriving, "job": aim})
        ran = self.desk.run([reader, tokens] if reader else None, *decode, *([[reader, steps]] if reader else []))
        arrived = bool(arriving) and not engine.at
        engine.at.clear()
        engine.fail_at = set()
        for job, (*_, state, finish) in ran["jobs"].items():
            assert finish in (None, "stop", "eos", "length", "cancelled", "failed")
            if state == "done":
                del self.states[job]
            else:
                self.states[job][1] = state
        if arrived and arriving == "cancel":
            self.states.pop(aim, None)
        elif arrived and arriving == "park" and aim in self.states:
            self.states[aim][1] = "prefill"

    @rule(seed=st.integers(0, 9))
    def park(self, seed: int) -> None:
        if job := self._pick(seed):
            assert self.desk.tell("park", job=job) == []
            self.states[job][1] = "prefill"

    @rule(seed=st.integers(0, 9))
    def cancel(self, seed: int) -> None:
        if job := self._pick(seed):
            assert self.desk.tell("cancel", job=job) == []
            del self.states[job]

    @rule(model=st.sampled_from(["one", "two"]))
    def reload(self, model: str) -> None:
        self.desk.tell("unload", model=model)
        self.desk.tell("load", model=model, folder=model, provider="cpu", kind="generator")
        self.states = {job: state for job, state in self.states.items() if state[0] != model}
        self.contexts = {number: name for number, name in self.contexts.items() if name != model}
        if self.portable:
            assert self.desk.engines[model].taken == []
        self.desk.engines[model].taken.clear()  # what an engine kept went with it

    @invariant()
    def what_is_held_is_accounted_for(self) -> None:
        if not hasattr(self, "states"):
            return
        assert set(self.desk.loop._jobs) == set(self.states)
        if self.portable:
            rows = [row for engine in self.desk.engines.values() for row in engine.taken]
            assert len(rows) <= len(self.states)
            usage = self.desk.memory.usage()
            assert usage["rows"] == sum(len(row.tokens) for row in rows) * KV_BYTES
            assert usage["rows"] + usage["cache"] <= self.kv_bytes or usage["cache"] == 0
            assert usage["spilled"] <= 500 * KV_BYTES

    def teardown(self) -> None:
        if not hasattr(self, "states"):
            return
        shutil.rmtree(self.folder)
        for job in list(self.states):
            self.desk.tell("cancel", job=job)
        kept = 0 if self.portable else 4
        assert all(len(engine.taken) <= kept for engine in self.desk.engines.values())
        assert (self.desk.memory.usage()["rows"], self.desk.loop._jobs) == (0, {})
        for model in self.desk.engines:
            self.desk.tell("unload", model=model)
        assert not any(self.desk.memory.usage()[kind] for kind in ("rows", "cache", "spilled"))


class AttackOnKeptRows(Attack):
    """The same on an engine whose rows cannot be copied."""

    portable = False


TestAttack = Attack.TestCase
TestAttack.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
TestAttackOnKeptRows = AttackOnKeptRows.TestCase
TestAttackOnKeptRows.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
