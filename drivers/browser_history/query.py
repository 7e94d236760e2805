"""From the words of a question to what to look for: concepts with their spellings, and forms to embed.

An acronym and what it stands for are one concept, in both directions: a title may spell out what the question shortens.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llmos.drivers.words import FUNCTION, WORD

MAX_WORDS = 16
"""Words of a question that are looked for."""
MAX_QUESTION = 100
"""Words of a question that are looked at."""

_THINGS = frozenset(
    "article articles page pages post posts piece pieces story stories thing things something anything site sites website "
    "websites link links blog url tab tabs text one report reports".split()
)
"""What a question calls the page it is after: no part of the topic before a word of `_LINKS` or at the end."""
_LINKS = frozenset(
    "about on i we that which from by with where at called titled named regarding concerning was is".split()
)
_ACTS = frozenset(
    "read reading saw seen see look looked looking visit visited visiting open opened browse browsed came come across found "
    "stumbled remember recall called named titled want need know searched searching watched spent".split()
)
"""What a person does with a page: no part of the topic after a word of `_ACTORS`, or another act."""
_ACTORS = frozenset("i i'd i've we we've you to have had did do was were me can could been".split())
_ORDERS = frozenset("find show give tell get list search bring pull remind".split())
"""What a question may begin with."""


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing to look for. `phrases` are its spellings; `parts` the words of which each alone is a weaker hint."""

    phrases: tuple[str, ...]
    parts: tuple[str, ...] = ()
    acronym: str = ""
    """In upper case: a title whose words begin with these letters spells it out."""


def topic(question: str) -> str:
    """The question without the words that only ask; with all of its words when nothing else would be left."""
    words = [match[0] for match in WORD.finditer(question)][:MAX_QUESTION]
    known = _known_phrases(words)
    kept: list[str] = []
    asked = True  # whether the word before belongs to the asking
    for at, word in enumerate(words):
        low, before, after = (
            word.lower(),
            words[at - 1].lower() if at else "",
            words[at + 1].lower() if at + 1 < len(words) else "",
        )
        asks = (
            (low in FUNCTION and not _is_acronym(word))
            or (low in _THINGS and (after in _LINKS or not after))
            or (low in _ACTS and (before in _ACTORS or (asked and before in _ACTS)))
            or (low in _ORDERS and (at == 0 or before in _ACTORS | {"please"} or after in {"me", "it", "that"}))
        )
        asked = asks and at not in known
        if not asked:
            kept.append(word)
    return " ".join((kept or words)[:MAX_WORDS])


def _known_phrases(words: list[str]) -> set[int]:
    """Positions in phrases that have an acronym: `working from home` stays whole."""
    found: set[int] = set()
    for start in range(len(words)):
        for count in range(2, 7):
            if _singular(" ".join(words[start : start + count]).lower()) in _acronyms_of():
                found.update(range(start, start + count))
    return found


def concepts(words: str) -> list[Concept]:
    """What to look for, of words from `topic`; each at most once."""
    found: list[Concept] = []
    rest = words.split()
    alone = len(rest) == 1
    while rest:
        taken, concept = _first(rest, alone=alone)
        if concept not in found:
            found.append(concept)
        rest = rest[taken:]
    return found


def spelled_out(text: str) -> str:
    """The text with what its acronyms stand for after each, for a model that does not know them."""

    def add(match: re.Match[str]) -> str:
        meanings = _meanings(match[0])
        return f"{match[0]} ({meanings[0]})" if meanings else match[0]

    return WORD.sub(add, text)


def replaced(text: str) -> str:
    """The text with its acronyms replaced by what they stand for."""

    def change(match: re.Match[str]) -> str:
        meanings = _meanings(match[0])
        return meanings[0] + ("s" if match[0].endswith("s") else "") if meanings else match[0]

    return WORD.sub(change, text)


def stands_for(acronym: str, title: str) -> bool:
    """Do words that follow one another in the title begin with the letters of the acronym, small words apart?"""
    initials = "".join(word[0] for word in WORD.findall(title) if word.lower() not in FUNCTION)
    return acronym.lower() in initials.lower()


def _first(words: list[str], *, alone: bool) -> tuple[int, Concept]:
    """The concept at the start of `words`, and how many of them it takes."""
    for count in range(min(5, len(words)), 1, -1):
        phrase = " ".join(words[:count]).lower()
        if short := _acronyms_of().get(_singular(phrase)):
            return count, Concept((phrase, *short), tuple(word.lower() for word in words[:count]))
    word = words[0]
    meanings = _meanings(word, any_case=alone)
    bare = _singular(word.lower()) if meanings else word.lower()
    if meanings:
        return 1, Concept((bare, *meanings), tuple(meanings[0].split()), bare.upper())
    return 1, Concept((bare,), (), word if _is_acronym(word) else "")


def _is_acronym(word: str) -> bool:
    return 2 <= len(word) <= 6 and word.isupper() and word.isalpha() and word != "I"


def _meanings(word: str, *, any_case: bool = False) -> tuple[str, ...]:
    """What an acronym, or its plural, stands for; one that is also a word must be in capitals, unless `any_case`."""
    known, capitals = _table()
    for form in (word, word[:-1] if word.endswith("s") else word):
        if (low := form.lower()) in known and (form.isupper() or any_case or low not in capitals):
            return known[low]
    return ()


def _singular(phrase: str) -> str:
    return phrase[:-1] if phrase.endswith("s") and not phrase.endswith("ss") else phrase


@cache
def _table() -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    with Path(__file__).with_name("acronyms.toml").open("rb") as stream:
        data = tomllib.load(stream)
    return {short: tuple(meanings) for short, meanings in data["acronyms"].items()}, frozenset(
        data["capitals"]["words"]
    )


@cache
def _acronyms_of() -> dict[str, tuple[str, ...]]:
    """Singular phrase → the acronyms that stand for it."""
    phrases: dict[str, tuple[str, ...]] = {}
    for short, meanings in _table()[0].items():
        for meaning in meanings:
            if " " in meaning:
                phrases[_singular(meaning)] = (*phrases.get(_singular(meaning), ()), short)
    return phrases
