"""What to call, in which order: the likeliest reading first, then, while nothing convincing is found, looser ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from llmos.ipc.protocol import Effect
from llmos.ipc.when import Period
from llmos.userland.assistant.reading import Question, Reading
from llmos.userland.assistant.tools import Tool

MAX_CALLS = 8
"""Calls made for one question."""
CONVINCING = 0.15
"""Likeness of the words asked for and the first card from which nothing else need be tried."""
LIKELY = 0.05
"""The same, where place and time leave little to choose from."""
BLIND = 0.45
"""The same, of an op that could not be told the words."""
WANTED = 20
"""Records asked for when the question names no number: what is right need not be first."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call, and how far it departs from what was asked."""

    tool: Tool
    args: dict[str, Any]
    query: str = ""
    why: str = ""
    """What was given up, for the person who watches; empty for what was asked."""
    cost: float = 0.0
    """How much better its finding has to be than one that departs less; in cosine."""
    enough: float = CONVINCING
    """Likeness of its first card from which nothing else need be tried."""
    rival: bool = False
    """It is made even when the one before it has found enough."""
    timely: bool = True
    """It asks for the time that the question names."""
    missing: list[str] = field(default_factory=list)
    """Required arguments that the question does not give to code."""


def plan(tools: list[Tool], question: Question, rivals: int = 0) -> Iterator[Attempt]:
    """Attempts with the best tool, then the others. Only reading is ever tried twice.

    `rivals`, how many of the others fit so nearly as well that what they find is compared before anything is decided.
    """
    best, others = tools[0], [tool for tool in tools[1:] if tool.effect is Effect.READ]
    readings = _readings(best, question)
    yield next(readings)
    if best.effect is not Effect.READ:
        return
    yield from _elsewhere(others[:rivals], question, cost=0.0, rival=True)
    yield from readings
    yield from _looser(best, question)
    yield from _elsewhere(others[rivals:], question, cost=0.35, rival=False)


def _elsewhere(tools: list[Tool], question: Question, *, cost: float, rival: bool) -> Iterator[Attempt]:
    for tool in tools:
        first = next(_readings(tool, question))
        if not first.missing:
            yield replace(first, why=f"another way: {tool.summary}", cost=cost, rival=rival)


def with_query(attempt: Attempt, query: str, why: str, cost: float) -> Attempt:
    """The same call, looking for other words."""
    return Attempt(attempt.tool, {**attempt.args, attempt.tool.taking("query"): query}, query, why, cost)


def _readings(tool: Tool, question: Question) -> Iterator[Attempt]:
    """One attempt per reading that the tool's arguments can tell apart, and one for all that a place holds."""
    seen = []
    for number, reading in enumerate(question.readings):
        if reading.place and not tool.taking("host") and len(question.readings) > 1:
            continue
        args = arguments(tool, question, reading, question.period)
        if args in seen:
            continue
        seen.append(args)
        why = f"“{question.readings[0].place}” may be no place" if number and question.readings[0].place else ""
        missing = [name for name, arg in tool.args.items() if arg.required and name not in args]
        enough = CONVINCING if tool.taking("query") or not reading.query else BLIND
        yield Attempt(tool, args, reading.query, why, cost=0.25 * number, enough=enough, missing=missing)
        if reading.place and reading.query and tool.taking("host") and tool.taking("query"):
            rest = {name: value for name, value in args.items() if name != tool.taking("query")}
            enough = LIKELY if question.period else CONVINCING
            yield Attempt(tool, rest, reading.query, f"all of {reading.place}", cost=0.0, enough=enough)


def _looser(tool: Tool, question: Question) -> Iterator[Attempt]:
    """Less than was asked for: a time around the one named, any place, any time."""
    reading = question.readings[min(1, len(question.readings) - 1)]  # a place in doubt has been tried
    period, timed = question.period, tool.taking("period")
    if period and timed:
        start, end = (moment.isoformat(timespec="minutes") for moment in period.loose)
        args = {**arguments(tool, question, reading, None), timed: f"{start} to {end}"}
        yield Attempt(tool, args, reading.query, f"a while around {period.text}", cost=0.3, timely=False)
    if reading.place and tool.taking("host"):
        bare = Reading(reading.query or reading.place)
        yield Attempt(tool, arguments(tool, question, bare, period), bare.query, "any place", cost=0.3)
    if period and timed:
        yield Attempt(
            tool, arguments(tool, question, reading, None), reading.query, "any time", cost=0.35, timely=False
        )


def arguments(tool: Tool, question: Question, reading: Reading, period: Period | None) -> dict[str, Any]:
    """What code can fill in, by the roles that the tool's manifest gives its arguments."""
    given: dict[str, Any] = {
        "query": reading.query,
        "host": reading.place,
        "period": period.text if period else "",
        "path": question.paths[0] if question.paths else "",
        "count": question.count or WANTED,
    }
    args: dict[str, Any] = {}
    for name, arg in tool.args.items():
        value = given.get(arg.role) if arg.role else None
        if value and arg.type == "array":
            value = [value]
        if value and (not isinstance(value, str) or len(value) <= arg.max_length):
            args[name] = _within(value, arg.minimum, arg.maximum) if arg.role == "count" else value
    return args


def _within(count: int, least: float | None, most: float | None) -> int:
    return int(max(count if most is None else min(count, most), least or 1))
