"""Cards, and the sentence above them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from llmos.userland.assistant import sentence
from llmos.userland.assistant.cards import Card, from_result, say_when
from llmos.userland.assistant.words import mentions
from tests.unit.assistant_doubles import NOW, Said


@pytest.mark.parametrize(
    ("back", "words"),
    [
        (timedelta(hours=1), "today at 14:00"),
        (timedelta(hours=16), "yesterday at 23:00"),
        (timedelta(days=6), "Tuesday 17 November at 15:00"),
        (timedelta(days=400), "Sunday 19 October 2025 at 15:00"),
    ],
)
def test_when_in_words(back: timedelta, words: str) -> None:
    """A moment is said the way people say it, the year only when it is another."""
    assert say_when(NOW - back, NOW) == words


def test_when_in_the_users_zone() -> None:
    """Records carry UTC; people read their own clock, also across midnight."""
    now = NOW.astimezone(ZoneInfo("Asia/Tokyo"))
    assert say_when(datetime(2026, 11, 22, 20, 30, tzinfo=UTC), now) == "yesterday at 5:30" or now.date().day == 24
    assert (
        from_result({"items": [{"title": "x", "ts": "2026-11-22T20:30:00Z"}]}, "d", now)[0].when == "yesterday at 5:30"
    )


@pytest.mark.parametrize("ts", ["", "soon", None, True, 1e99, [], "2026-13-45"])
def test_bad_times(ts: object) -> None:
    """A record with a time that is none still makes a card."""
    assert from_result({"items": [{"title": "x", "ts": ts}]}, "d", NOW)[0].when == ""


def test_records_of_any_shape() -> None:
    """The list of records is found under any name, and one record alone is a card."""
    assert [card.title for card in from_result({"days": [{"name": "Monday"}], "next": None}, "d", NOW)] == ["Monday"]
    assert [card.title for card in from_result({"path": "/a/b.txt", "text": "hello"}, "d", NOW)] == ["b.txt"]
    assert from_result({}, "d", NOW) == []


def test_sentence_grammar_matches_its_card() -> None:
    """The grammar holds the card's facts as they are, special characters too, and accepts the plain sentence's like."""
    seen: dict[str, str] = {}

    class Model:
        def generate(self, **request: str) -> Said:
            seen.update(request)
            return Said("")

    card = Card(title="C++ (2nd ed.) [PDF] $5?", url="https://www.example.org/a", when="today at 9:05")
    list(sentence.about(card, "which?", Model(), sure=True))  # type: ignore[arg-type]
    assert re.fullmatch(seen["regex"], "It was “C++ (2nd ed.) [PDF] $5?” on example.org, today at 9:05.")
    assert not re.fullmatch(seen["regex"], "It was “C+++ (2nd ed.) [PDF] $5?” on example.org, today at 9:05.")


@pytest.mark.parametrize(
    ("answer", "grounded"),
    [
        ("The boiler was installed on 12 March 2024.", True),
        ("It is under warranty until 2029, says Brandt.", True),
        ("The boiler was installed on 12 April 2024.", False),
        ("It was installed by Miller & Co.", False),
        ("It costs 500 euros.", False),
        ("The note says “five years”.", True),
        ("The note says “ten years”.", False),
    ],
)
def test_grounded(answer: str, *, grounded: bool) -> None:
    """A sentence passes only when each of its names, numbers and quotations stands in what was read."""
    text = "Boiler: installed 12 March 2024, warranty five years, until 12 March 2029. Service: Brandt & Sons."
    assert sentence.is_grounded(answer, text) is grounded


def test_mentions() -> None:
    """A word counts in any of its forms, and an acronym when its words follow one another."""
    assert mentions("Beekeeping on a City Roof", "roofs")
    assert mentions("How Large Language Models Learn", "LLMs")
    assert not mentions("A large model of language", "LLMs")
    assert not mentions("The night train", "trams")
