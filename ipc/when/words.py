"""The words of time: names and their values, and when a word that could mean something else is about time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from typing import Any

from llmos.ipc.when.grammar import Grammar, Match
from llmos.ipc.when.period import Unit

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = tuple("january february march april may june july august september october november december".split())
_SHORT_DAYS = {"tues": 1, "weds": 2, "thur": 3, "thurs": 3}

WEEKDAYS = {name: i for i, name in enumerate(_DAYS)} | {name[:3]: i for i, name in enumerate(_DAYS)} | _SHORT_DAYS
WEEKDAYS_PLURAL = {name + "s": i for i, name in enumerate(_DAYS)}
MONTHS = (
    {name: i for i, name in enumerate(_MONTHS, 1)} | {name[:3]: i for i, name in enumerate(_MONTHS, 1)} | {"sept": 9}
)
SEASONS = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
"""Name → the first of its three months."""

UNITS: dict[str, tuple[Unit, int]] = {
    **dict.fromkeys(("minute", "minutes", "min", "mins"), ("minute", 1)),
    **dict.fromkeys(("hour", "hours", "hr", "hrs", "h"), ("hour", 1)),
    **dict.fromkeys(("day", "days", "d"), ("day", 1)),
    **dict.fromkeys(("weekend", "weekends"), ("weekend", 1)),
    **dict.fromkeys(("week", "weeks", "wk", "wks", "w"), ("week", 1)),
    **dict.fromkeys(("fortnight", "fortnights"), ("week", 2)),
    **dict.fromkeys(("month", "months"), ("month", 1)),
    **dict.fromkeys(("quarter", "quarters"), ("quarter", 1)),
    **dict.fromkeys(("year", "years", "yr", "yrs", "y"), ("year", 1)),
    **dict.fromkeys(("decade", "decades"), ("year", 10)),
}
NUMBERS = {
    name: i
    for i, name in enumerate(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen".split(),
        1,
    )
} | {"dozen": 12}
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "ninety": 90}
ORDINALS = {
    name: i for i, name in enumerate("first second third fourth fifth sixth seventh eighth ninth tenth".split(), 1)
}

PARTS: dict[str, tuple[float, float]] = {
    "morning": (5, 12),
    "noon": (11, 14),
    "midday": (11, 14),
    "lunchtime": (11, 14),
    "lunch": (11, 14),
    "afternoon": (12, 18),
    "evening": (17, 24),
    "night": (20, 29),
    "midnight": (23, 25),
}
"""Part of a day → hours of the wall clock after its midnight."""


def _easter(year: int) -> date:
    """Sunday of Easter, Gregorian. Source: the anonymous algorithm in Meeus, Astronomical Algorithms, chapter 8."""
    a, (b, c) = year % 19, divmod(year, 100)
    d, e = divmod(b, 4)
    h = (19 * a + b - d - (b - (b + 8) // 25 + 1) // 3 + 15) % 30
    i, k = divmod(c, 4)
    shift = (32 + 2 * e + 2 * i - h - k) % 7
    m = (a + 11 * h + 22 * shift) // 451
    month, day = divmod(h + shift - 7 * m + 114, 31)
    return date(year, month, day + 1)


def _thanksgiving(year: int) -> date:
    first = date(year, 11, 1)
    return first + timedelta((3 - first.weekday()) % 7 + 21)


HOLIDAYS: dict[str, Callable[[int], date]] = {
    "christmas": lambda year: date(year, 12, 25),
    "christmas day": lambda year: date(year, 12, 25),
    "christmas eve": lambda year: date(year, 12, 24),
    "boxing day": lambda year: date(year, 12, 26),
    "new year": lambda year: date(year, 1, 1),
    "new year day": lambda year: date(year, 1, 1),
    "new year eve": lambda year: date(year, 12, 31),
    "halloween": lambda year: date(year, 10, 31),
    "valentine day": lambda year: date(year, 2, 14),
    "easter": _easter,
    "easter sunday": _easter,
    "easter monday": lambda year: _easter(year) + timedelta(1),
    "good friday": lambda year: _easter(year) - timedelta(2),
    "thanksgiving": _thanksgiving,
}

_LEADS = frozenset(
    "in on at since last this next past coming until till before after during of early late mid from by through between and "
    "over around".split()
)
"""What stands before a time."""
_FOLLOWS = frozenset(
    "about and or but on in at by of for from with to that which who what where when i we you they he she it was were is are "
    "did do have had has please again there if because regarding concerning".split()
)
"""What may stand after a time that is not an adjective to the next word."""
_DOUBTFUL = frozenset(("may", "march", "mar", "jan", "sep", "dec", "sun", "sat", "wed", "mon"))
_EVENTS = frozenset(("black", "cyber", "good", "ash", "super", "palm", "bloody", "giving"))
"""What makes a weekday the name of something else."""


def _led(match: Match, at: int) -> bool:
    """In a sentence, does a word that introduces times come before, an article apart?"""
    before = match.word(at - 2) if match.word(at - 1) == "the" else match.word(at - 1)
    return not match.free or before in _LEADS


def _clear(match: Match, at: int) -> bool:
    """In a sentence, is what comes next no noun that the words before would describe (`in spring boot`)?"""
    after = match.word(at)
    return not match.free or not after.isalnum() or after in _FOLLOWS


def _doubtful(match: Match, at: int) -> bool:
    """In a sentence, could the word be a verb or a name here?"""
    token = match.tokens[at]
    if not match.free or token.text not in _DOUBTFUL:
        return False
    before, after = match.word(at - 1), match.word(at + 1)
    if token.text in WEEKDAYS:
        return not (
            before in {"last", "this", "next", "since", "until"} or (before in _LEADS and _clear(match, at + 1))
        )
    return not (before in _LEADS or after.isdigit() or before.isdigit() or (token.capital and at > 0))


def stands_alone(match: Match, first: int, after: int, text: str, span: tuple[int, int]) -> bool:
    """Is a phrase free of its surroundings: no part of an address, no quoted title, no name (`Psychology Today`)?

    `first` and `after` are positions of tokens, `span` the same in characters.
    """
    start, end = span
    if re.search(r"[\w@/#.-]\Z", text[:start]) or re.match(r"[\w@]|[./-]\w", text[end:]):
        return False
    if re.search(r"[\"'“‘]\Z", text[:start]) and re.match(r"[\"'”’]", text[end:]):
        return False
    if match.word(after) == "of":
        return False
    if after - first > 1:
        return True
    if match.word(first - 1) in _EVENTS:
        return False
    before, word, follower = (_capital(match, at) for at in (first - 1, first, first + 1))
    return not (word and ((before and first > 1) or follower))


def _capital(match: Match, at: int) -> bool:
    return 0 <= at < len(match.tokens) and match.tokens[at].capital and match.word(at) != "i"


def _named(words: Mapping[str, Any]) -> Callable[[Match, int], Any]:
    return lambda match, at: None if _doubtful(match, at) else words.get(match.word(at))


def _number(low: int, high: int, pattern: str = r"\d{1,4}") -> Callable[[Match, int], Any]:
    def read(match: Match, at: int) -> int | None:
        word = match.word(at)
        return int(word) if re.fullmatch(pattern, word, re.ASCII) and low <= int(word) <= high else None

    return read


def _date(match: Match, at: int) -> date | None:
    """2026-11-03, 2026/11/03, 3.11.2026, 3/11/2026"""
    word = match.word(at)
    if not re.fullmatch(r"\d+([./-])\d+\1\d+", word, re.ASCII):
        return None
    first, middle, last = (int(part) for part in re.split(r"[./-]", word))
    if first > 31:
        return date(first, middle, last)
    return date(last, middle, first) if middle <= 12 else date(last, first, middle)


def _instant(match: Match, at: int) -> datetime | None:
    """2026-11-03T14:00, with or without seconds and offset"""
    word = match.word(at)
    return datetime.fromisoformat(word.upper()) if re.match(r"\d{4}-\d\d-\d\d[t ]", word, re.ASCII) else None


def _iso_month(match: Match, at: int) -> date | None:
    return date.fromisoformat(match.word(at) + "-01") if re.fullmatch(r"\d{4}-\d\d", match.word(at), re.ASCII) else None


def _wall_time(match: Match, at: int) -> float | None:
    found = re.fullmatch(r"(\d+):(\d\d)", match.word(at), re.ASCII)
    return int(found[1]) + int(found[2]) / 60 if found and int(found[1]) < 25 and int(found[2]) < 60 else None


def define(grammar: Grammar) -> None:
    """Adds the terminals and conditions: what reads one word."""
    names: dict[str, Mapping[str, Any]] = {
        "weekday": WEEKDAYS,
        "weekdays": WEEKDAYS_PLURAL,
        "month": MONTHS,
        "season": SEASONS,
        "unit": UNITS,
        "part": PARTS,
        "number": NUMBERS,
        "tens": TENS,
        "ordinal_word": ORDINALS,
    }
    for name, words in names.items():
        grammar.terminal(name, _named(words))
    grammar.terminal("digits", _number(0, 9999))
    grammar.terminal("dom", _number(1, 31))
    grammar.terminal("hour", _number(0, 24))
    grammar.terminal("year", _number(1900, 2199, r"\d{4}"))
    grammar.terminal("date", _date)
    grammar.terminal("instant", _instant)
    grammar.terminal("iso_month", _iso_month)
    grammar.terminal("wall_time", _wall_time)
    grammar.condition("led", _led)
    grammar.condition("clear", _clear)
