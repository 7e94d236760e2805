"""Conversations that outgrow the window: what stays, what is summarised, and that it never fails for that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmos.kernel.core.conversation import Conversation
from llmos.kernel.core.model import Model
from llmos.kernel.core.request import Message, Request
from tests.unit.core_doubles import Desk, counting_model

WINDOW = 1200


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with tempfile.TemporaryDirectory() as folder:
        yield counting_model(Path(folder), window=WINDOW)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path, window=WINDOW)
    made.tell("open", context=1, model="m")
    return made


def talk(*contents: str) -> list[dict[str, str]]:
    """User and assistant by turns."""
    return [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]


def content(desk: Desk, context: int = 1) -> Conversation:
    return desk.loop._contexts[context][1]


def test_the_middle_is_paged_out(desk: Desk) -> None:
    """The system's words and the last turns stay as they were, a summary stands for the rest, and the job says so by a
    second admission with the tokens that are left to read."""
    system = {"role": "system", "content": "Be brief."}
    turns = [f"{number} " + "x" * 150 for number in range(6)]
    desk.job(1, context=1, messages=[system, *talk(*turns)], max_tokens=0)
    desk.finish(1)
    first = desk.job(2, context=1, messages=talk("the last"), max_tokens=200)
    said: list[dict[str, Any]] = []
    while not said:
        said = [message for message in desk.run([2, 5000], [2, 5000])["said"] if message["op"] == "admitted"]
    assert said[0]["prompt_tokens"] != first["prompt_tokens"]
    assert desk.finish(2)[1] == "length"
    kept = content(desk)
    assert kept.messages[0] == Message("system", "Be brief.")
    assert [said.content for said in kept.messages[-3:-1]] == [turns[-1], "the last"]
    assert kept.messages[-1].role == "assistant"
    assert turns[0] not in [said.content for said in kept.messages]
    assert kept.summary


def test_a_summary_is_told_in_the_systems_words(model: Model) -> None:
    """It is appended to the system prompt, or is one where there is none."""
    for messages in ([Message("user", "u")], [Message("system", "s"), Message("user", "u")]):
        kept = Conversation(messages=messages, summary="they met")
        written = bytes(token for token in kept.encode(model) if token < 256).decode()
        assert written.count("system\n") == 1
        assert "they met" in written.split("user\n")[0]


def test_it_can_be_paged_again_and_again(desk: Desk) -> None:
    """A conversation many times the window goes on, each answer is made, and it stays below the window."""
    for number in range(1, 25):
        desk.job(number, context=1, messages=talk(f"{number} " + "y" * 200), max_tokens=50)
        assert desk.finish(number)[1] == "length"
        assert content(desk).messages[-2].content.startswith(f"{number} ")
    assert len(content(desk).messages) < 12
    assert desk.engines["m"].taken == []


def test_one_message_over_the_window_is_too_large(desk: Desk) -> None:
    """It is refused at once, with both numbers, and the context goes on without it."""
    desk.job(1, context=1, messages=talk("x" * 300), max_tokens=10)
    desk.finish(1)
    before = len(content(desk).messages)
    error = desk.job(2, context=1, messages=talk("y" * WINDOW), max_tokens=10)
    assert (error["op"], error["code"], str(WINDOW) in error["detail"]) == ("error", "TOO_LARGE", True)
    assert len(content(desk).messages) == before
    desk.job(3, context=1, messages=talk("z"), max_tokens=10)
    assert desk.finish(3)[1] == "length"


@settings(max_examples=15, deadline=None)
@given(
    st.booleans(),
    st.lists(
        st.tuples(st.integers(1, 700), st.integers(0, 400), st.sampled_from(["x", "é", "語", "x<|im_end|>"])),
        max_size=7,
    ),
)
def test_no_lengths_make_it_fail(system: bool, turns: list[tuple[int, int, str]]) -> None:
    """Whatever the lengths of what is said and of the answers, every job whose own words fit ends with an answer."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder), window=WINDOW)
        desk.tell("open", context=1, model="m")
        if system:
            desk.job(100, context=1, messages=[{"role": "system", "content": "s" * 90}], max_tokens=0)
            desk.finish(100)
        for number, (length, max_tokens, letter) in enumerate(turns, 1):
            told = (letter * length)[: length // len(letter.encode()) + 1]
            admitted = desk.job(number, context=1, messages=talk(told), max_tokens=max_tokens)
            assert admitted["op"] == "admitted", admitted
            text, finish = desk.finish(number)
            assert finish in ("length", "eos"), desk.said
            assert text or not max_tokens


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1500), st.sampled_from("xé語")), min_size=1, max_size=6))
@example([(1177, "x"), (88, "é"), (207, "語")])
def test_a_raw_text_of_any_length_goes_on(pieces: list[tuple[int, str]]) -> None:
    """Without turns, its beginning and its end stay, and a summary stands between them."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder), window=WINDOW)
        desk.tell("open", context=1, model="m")
        for number, (length, letter) in enumerate(pieces, 1):
            desk.job(number, context=1, prompt=f"<{number}>" + letter * length, max_tokens=20)
            assert desk.finish(number)[1] in ("length", "eos")
            assert content(desk).text.startswith("<1>")
        # The last answer is not paged yet; where its tokens are no UTF-8, three bytes stand for each.
        assert len(content(desk).text.encode()) <= WINDOW + 3 * 20


def test_a_fork_keeps_what_its_source_pages_out(desk: Desk) -> None:
    """A conversation that is paged leaves its fork as it was, the other way round too."""
    desk.job(1, context=1, messages=talk(*("x" * 150 for _ in range(5))), max_tokens=0)
    desk.finish(1)
    desk.tell("fork", context=2, source=1)
    desk.job(2, context=1, messages=talk("a" * 200), max_tokens=200)
    desk.finish(2)
    assert (bool(content(desk, 1).summary), content(desk, 2).summary) == (True, "")
    assert len(content(desk, 2).messages) == 5
    desk.job(3, context=2, messages=talk("b"), max_tokens=5)
    assert desk.finish(3)[1] == "length"
    assert "b" not in [said.content for said in content(desk, 1).messages]


def test_a_summary_that_fails_leaves_the_conversation(desk: Desk) -> None:
    """The job fails in its own name, and the next one pages again."""
    desk.job(1, context=1, messages=talk(*("x" * 150 for _ in range(5))), max_tokens=0)
    desk.finish(1)
    desk.job(2, context=1, messages=talk("a" * 200), max_tokens=200)
    desk.engines["m"].fail_at = {len(desk.engines["m"].fed) + 4}
    assert desk.finish(2)[1] == "failed"
    assert (content(desk).summary, len(content(desk).messages)) == ("", 5)
    desk.job(3, context=1, messages=talk("a" * 200), max_tokens=200)
    assert desk.finish(3)[1] == "length"


@pytest.mark.parametrize("letter", ["x", "語", "<|im_end|>"])
def test_the_summarys_own_prompt_fits(model: Model, letter: str) -> None:
    """Whatever is paged out, and however many tokens its characters take, the prompt that summarises it leaves room."""
    kept = Conversation(messages=[Message("user", "x" * 3000), Message("user", letter * 900), Message("user", "last")])
    paging = kept.page(model, WINDOW)
    assert paging is not None
    request = paging.request(1, model, WINDOW)
    assert request.max_tokens >= 1
    assert len(model.encode(request)) + request.max_tokens <= WINDOW


def test_turns_and_text_do_not_mix() -> None:
    """`add` refuses the other kind and keeps what there was."""
    kept = Conversation()
    kept.add(Request(job=1, context=1, prompt="a"))
    with pytest.raises(Exception, match="messages or a raw prompt"):
        kept.add(Request(job=2, context=1, messages=[Message("user", "b")]))
    assert (kept.text, kept.messages) == ("a", [])
