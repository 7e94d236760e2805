"""Contexts in the real core process with the real embedded model: they go on, fork, are paged, and come back from files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.core_client import STORY, Core, Message
from tests.system.model_folders import small_window

pytestmark = pytest.mark.model

SYSTEM = {"role": "system", "content": "You know much about animals."}

_labels = (f"cold {number}" for number in itertools.count())


def ask(text: str) -> Message:
    return {"role": "user", "content": text}


def say(text: str) -> Message:
    return {"role": "assistant", "content": text}


def cold(core: Core, **request: Any) -> str:
    """The text of a job that finds nothing read."""
    outcome = core.finish(label=next(_labels), **request)
    assert outcome.cached == 0
    return outcome.text


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    """One core for the tests that leave it as they found it."""
    made = Core()
    assert made.load()["op"] == "ready"
    yield made
    assert made.end() == 0


def test_a_context_gives_what_a_cold_start_gives(core: Core) -> None:
    """Turns given one after the other, the assistant's among them, are read once each, and what is answered after any of
    them is the answer to the whole conversation read at once."""
    context, talk, held = core.open(), [SYSTEM], 0
    for new in (
        [SYSTEM, ask(f"{STORY} Who is this?")],
        [say("A fox."), ask("Name a whale and three kinds of fish.")],
        [say("The blue whale. Cod, eel and tuna."), ask("And a bear.")],
    ):
        talk += new[held == 0 :]
        read = core.finish(context=context, messages=new, max_tokens=0, label="pieces")
        assert (read.text, read.decode, read.finish) == ("", 0, "length")
        assert read.admitted[0]["cached_tokens"] >= held - 8  # the words that begin an answer
        assert read.prefill + read.cached == read.admitted[0]["prompt_tokens"]
        held = read.admitted[0]["prompt_tokens"]
        answered = core.finish(context=core.open(source=context), max_tokens=16, label="pieces")
        assert answered.prefill <= 3
        assert answered.text == cold(core, messages=talk, max_tokens=16)


def test_a_conversation_reads_its_own_answer_from_the_cache(core: Core) -> None:
    """The next turn reads the new question only: what was asked and answered before is still there. A context that is
    closed is gone, and the next conversation that begins alike finds it read."""
    context = core.open()
    first = core.finish(context=context, messages=[SYSTEM, ask("Name a fox.")], max_tokens=24, label="own")
    again = core.finish(context=context, messages=[ask("And a bear.")], max_tokens=24, label="own")
    assert again.admitted[0]["cached_tokens"] >= first.admitted[0]["prompt_tokens"] + first.decode - 2
    assert again.prefill < 25
    core.send("close", context=context)
    assert core.admit(context=context, messages=[ask("And?")])["code"] == "NOT_FOUND"
    talk = [SYSTEM, ask("Name a fox."), say(first.text), ask("And a bear.")]
    assert core.finish(messages=talk, max_tokens=24, label="own").text == again.text


def test_a_raw_text_goes_on(core: Core) -> None:
    """A context of raw text is continued without a word being given, and nothing of it is read again."""
    whole = cold(core, prompt=STORY, max_tokens=24)
    context = core.open()
    text = core.generate(context=context, prompt=STORY, max_tokens=12, label="raw")
    outcome = core.finish(context=context, max_tokens=12, label="raw")
    assert text == whole[: len(text)]
    assert outcome.prefill <= 3
    assert outcome.decode == 12
    assert outcome.text  # where it takes up, a token is read that `whole` decoded: rounding may lead it elsewhere
    core.send("close", context=context)


def test_forks_go_their_own_ways(core: Core) -> None:
    """Forks have all of their source read; asked at once, each answers what a cold start with its own conversation answers,
    and one whose source has been closed goes on as a context that was never forked does."""
    talk = [SYSTEM, ask("Name a fox."), say("The red fox, which lives in many countries.")]
    questions = ["And a bear.", "Where does it live?", "What does it eat?"]
    context, single = core.open(), core.open()
    for each, label in ((context, "fork"), (single, "single")):
        held = core.finish(context=each, messages=talk, max_tokens=0, label=label).admitted[0]["prompt_tokens"]
    forks = [core.open(source=context) for _ in range(2)]
    jobs = [
        core.admit(context=each, messages=[ask(question)], max_tokens=20, label="fork")
        for each, question in zip((context, *forks), questions, strict=True)
    ]
    outcomes = core.work(*jobs)
    for question, outcome in zip(questions, outcomes, strict=True):
        assert outcome.admitted[0]["cached_tokens"] >= held - 8
        assert outcome.text == cold(core, messages=[*talk, ask(question)], max_tokens=20)
    core.send("close", context=context)
    core.send("close", context=forks[1])
    core.finish(context=single, messages=[ask(questions[1])], max_tokens=20, label="single")
    one, other = (
        core.generate(context=each, messages=[ask("Name another.")], max_tokens=20, label=label)
        for each, label in ((forks[0], "fork"), (single, "single"))
    )
    assert one == other


def test_a_long_conversation_is_paged(tmp_path: Path) -> None:
    """In a window of 512 tokens a conversation of twice as many goes on: every answer comes, the model summarises what goes,
    again and again, and what it reads afterwards begins with the system's words and the summary behind them."""
    summarised = f"{SYSTEM['content']}\n\nWhat was said before, in short:"

    def has_read(core: Core, content: str) -> bool:
        """Whether the model has read a conversation in which the system's words begin with these."""
        probe = core.admit(model="small", messages=[{"role": "system", "content": content}], max_tokens=1)
        core.send("cancel", job=probe["job"])
        return bool(probe["cached_tokens"] >= probe["prompt_tokens"] - 6)  # what ends a turn and begins the answer

    with Core() as core:
        assert core.load(small_window(tmp_path / "small", 512))["info"]["context"] == 512
        context, given, paged = core.open(model="small"), 0, 0
        for number in range(10):
            question = ask(f"Question {number}. {STORY * 6} What did the fox see on day {number}?")
            messages = [SYSTEM, question] if number == 0 else [question]
            assert has_read(core, summarised) == (paged > 0)
            outcome = core.finish(model="small", context=context, messages=messages, max_tokens=40)
            assert outcome.finish in ("length", "eos")
            assert outcome.tokens > 0
            last = outcome.admitted[-1]
            assert (last["max_tokens"], last["prompt_tokens"] <= 512 - 40) == (40, True)
            given += 98 + outcome.tokens
            if len(outcome.admitted) == 2:
                paged += 1
                assert has_read(core, summarised)
                assert last["prompt_tokens"] < 300
                assert outcome.decode > outcome.tokens  # the summary's too, which nobody is told
            elif number:
                assert outcome.prefill < 125  # only what is new
        assert paged >= 2
        assert given > 2 * 512


def test_what_was_put_into_files_comes_back(core: Core, tmp_path: Path) -> None:
    """With no memory for what nobody works on, a conversation lies in files between its turns, comes back from there without
    being read again, and is answered as it is where it never left; nothing is left in the folder."""
    answers = []
    with Core(kv_bytes=1 << 20, spill_dir=tmp_path) as small:
        small.load()
        for each in (core, small):
            context = each.open()
            first = each.finish(context=context, messages=[SYSTEM, ask(STORY * 12)], max_tokens=24, label="spill")
            each.finish(prompt=STORY * 20, max_tokens=2, label="other")
            held = first.admitted[0]["prompt_tokens"] + first.decode
            if each is small:
                assert each.ran["kv"]["rows"] + each.ran["kv"]["cache"] <= 1 << 20
                assert each.ran["kv"]["spilled"] > held * 46080
            second = each.finish(context=context, messages=[ask("And a bear.")], max_tokens=24, label="spill")
            assert second.admitted[0]["cached_tokens"] >= held - 2
            assert second.cached >= held - 3
            assert second.prefill < 25
            answers.append((first.text, second.text))
        assert list(tmp_path.iterdir()) == []
    assert answers[0] == answers[1]


def test_forks_of_a_spilled_context(tmp_path: Path) -> None:
    """Eight forks of a conversation in files decode together, each with the text of the first, and read next to nothing."""
    with Core(kv_bytes=1 << 20, spill_dir=tmp_path) as core:
        core.load()
        context = core.open()
        first = core.finish(context=context, messages=[SYSTEM, ask(STORY * 12)], max_tokens=0)
        assert first.prefill > 150
        forks = [core.open(source=context) for _ in range(8)]
        outcomes = core.work(*(core.admit(context=fork, max_tokens=8) for fork in forks))
        assert {outcome.text for outcome in outcomes} == {outcomes[0].text}
        assert outcomes[0].text
        assert sum(outcome.prefill for outcome in outcomes) <= 8 * 3
