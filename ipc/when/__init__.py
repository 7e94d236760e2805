"""Time as people say it in English: the meaning of the argument role `period`, resolved in code, never by a model.

`parse` reads a whole phrase, `find` the phrases inside a free sentence. Both are pure: now comes in, with its zone. The
conventions, where English has none:

- Weeks start on Monday. `last week` is the calendar week before this one; `the last week`, `the past two weeks` and
  `past 10 days` roll, from the start of a day until now. `two weeks ago` is the calendar week that holds that day,
  `two months ago` the month around it.
- A bare `Monday`, `March` or `November 3rd` is the latest one that has begun (a weekday: before today), or, with
  `past=False`, the one of now or the next. `last Tuesday` is the latest before today, `next Tuesday` that of next week.
- A morning is 5–12 h, an afternoon 12–18, an evening 17–24, a night 20–5; `last night` is 18–6.
- `since X` starts with X and ends now; `until X` and `by X` include X; `before X` and `after X` do not.
- 3.11.2026 and 3/11/2026 have the day first unless that cannot be. Seasons are the northern meteorological ones.
- What is vague gets a sensible stretch (`recently`: two weeks), and every period a wider `loose` one.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from llmos.ipc.when.grammar import Match
from llmos.ipc.when.period import Clock, Period
from llmos.ipc.when.spans import GRAMMAR
from llmos.ipc.when.words import stands_alone

__all__ = ["MAX_TEXT", "Period", "find", "parse"]

MAX_TEXT = 2000
"""Characters that are looked at; the rest of a longer text is ignored."""

Span = tuple[int, int]
"""[start, end) in characters."""


def parse(phrase: str, now: datetime, *, past: bool = True) -> Period:
    """The period that the whole phrase means. Raises ValueError, which says what could be said instead."""
    period: Period
    match = Match(GRAMMAR, phrase.strip().rstrip("?!., ")[:MAX_TEXT], Clock(now, past=past), free=False)
    for end, period in match.at("period", 0):
        if end == len(match.tokens):
            return replace(period, text=phrase.strip())
    raise ValueError(
        f"{phrase[:80]!r} is not a time this system understands; say for example 'last week', 'since Tuesday', "
        "'in March', 'three days ago' or '2026-11-03'"
    )


def find(sentence: str, now: datetime, *, past: bool = True) -> list[tuple[Span, Period]]:
    """Every time phrase in a sentence, in order, with its [start, end) in characters, preposition included.

    Words that only look like times are left alone: `in May` counts, `it may` does not, nor does `Psychology Today`.
    """
    text = sentence[:MAX_TEXT]
    match = Match(GRAMMAR, text, Clock(now, past=past), free=True)
    found: list[tuple[Span, Period]] = []
    position = 0
    while position < len(match.tokens):
        after = position + 1
        for end, period in match.at("period", position):
            span = match.tokens[position].start, match.tokens[end - 1].end
            if stands_alone(match, position, end, text, span):
                found.append((span, replace(period, text=text[slice(*span)])))
                after = end
                break
        position = after
    return found
