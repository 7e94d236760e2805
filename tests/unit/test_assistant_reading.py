"""Questions taken apart by rules."""

from __future__ import annotations

import pytest

from llmos.userland.assistant.reading import Reading, op_words, read
from tests.unit.assistant_doubles import NOW

WORDS = op_words(
    [
        "what was that article I read about sourdough last week",
        "find the page on tax deadlines I had open yesterday",
        "that thing I saw about whales, where was it",
        "which blog post about sleep did I look at",
    ],
    NOW,
)


@pytest.mark.parametrize(
    ("text", "query", "place", "period"),
    [
        ("what was that article I read last week about LLMs?", "LLMs", "", "last week"),
        ("which article about vinyl did I read from Wired last week?", "vinyl", "Wired", "last week"),
        (
            "that thing on the NYT about sleeper trains on Friday, what was it called",
            "sleeper trains",
            "the NYT",
            "on Friday",
        ),
        ("the one about black holes on theverge.com three weeks ago", "black holes", "theverge.com", "three weeks ago"),
        ("Ozempic article on newyorker.com??", "Ozempic", "newyorker.com", ""),
        ("find the article I read three weeks ago on concrete buildings", "concrete buildings", "", "three weeks ago"),
        (
            "pls find the article about plate tectonics, think it was a couple of weeks ago",
            "plate tectonics",
            "",
            "a couple of weeks ago",
        ),
        (
            'the article on the Guardian called something like "Drives on Every Motorway"',
            "Drives on Every Motorway",
            "the Guardian",
            "",
        ),
        ("which page had Block That Won in its title? I read it yesterday", "Block That Won", "", "yesterday"),
        (
            "i read a piece titled police forces expand live or so on longreads, find it",
            "police forces expand live",
            "longreads",
            "",
        ),
        (
            "I'm looking for an essay on Aeon I came across yesterday, it was about fast trains",
            "fast trains",
            "Aeon",
            "yesterday",
        ),
        ("that Guardian piece about whales", "whales", "Guardian", ""),
        ("jogging article last week", "jogging", "", "last week"),
        ("what did I read yesterday", "", "", "yesterday"),
    ],
)
def test_first_reading(text: str, query: str, place: str, period: str) -> None:
    """The likeliest reading of a question has the thing, the place and the time in it, and nothing of the asking."""
    question = read(text, NOW, WORDS)
    assert question.readings[0] == Reading(query, place)
    assert (question.period.text if question.period else "") == period


def test_place_in_doubt_has_second_reading() -> None:
    """What only looks like a place is given back to the topic in another reading, in its own order."""
    assert Reading("working from home") in read("what did I read about working from home", NOW, WORDS).readings


def test_on_may_announce_a_topic_or_a_place() -> None:
    """After "I read on", a place is tried before a topic; after "the story on", a topic before a place."""
    first, second, *_ = read("what did I read on wired yesterday", NOW, WORDS).readings
    assert (first, second) == (Reading("", "wired"), Reading("wired"))
    first, second, *_ = read("the story on running I saw yesterday", NOW, WORDS).readings
    assert (first, second) == (Reading("running"), Reading("", "running"))


def test_time_as_topic_stays() -> None:
    """A time that a question is about does not become its period."""
    question = read("the essay about last summer that I read in October", NOW, WORDS)
    assert question.readings[0].query == "last summer"
    assert question.period is not None
    assert question.period.text == "in October"


def test_count_and_path() -> None:
    """Numbers of things and paths are recognised, wherever they stand."""
    assert read("the top five articles of this week", NOW, WORDS).count == 5
    assert read("open Documents/Home/warranty.txt please", NOW, WORDS).paths == ("Documents/Home/warranty.txt",)
    assert read("what is in my documents folder", NOW, WORDS).paths == ("documents",)


def test_op_words_leave_topics_alone() -> None:
    """Words of the asking are taken from utterances; what they merely ask for is not."""
    assert {"articl", "pag", "blog", "post"} <= WORDS
    assert not {"sourdough", "whal", "sleep", "tax"} & WORDS


def test_bare_question() -> None:
    """What is left of a question without topic, place and time says what to do."""
    assert (
        read("which article about vinyl did I read on Wired last week?", NOW, WORDS).bare
        == "which article about something did I read ?"
    )


@pytest.mark.parametrize(
    "text", ["", "?", "about", "on", '""', "about about about", "\0", "in the", "a" * 2000, "“", "re:"]
)
def test_odd_questions(text: str) -> None:
    """Whatever is typed has at least one reading."""
    assert read(text, NOW, WORDS).readings
