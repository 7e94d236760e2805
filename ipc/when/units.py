"""Rules for weeks, months, seasons and years, for amounts of them, and for parts of them."""

from __future__ import annotations

import math
from datetime import date, timedelta

from llmos.ipc.when.days import GRAMMAR, Amount, choose
from llmos.ipc.when.period import Clock, Grain, Period, Unit, add_months, bounds, shifted

rule = GRAMMAR.rule

Units = tuple[Unit, int]
"""A unit and how many of it a word means: a fortnight is (`week`, 2)."""

# -- weeks, months, seasons, years -------------------------------------------------------------------------------------


@rule("week", "{last|this|next|previous} week")
def _week(c: Clock, which: str) -> Period:
    return c.unit("week", {"this": 0, "next": 1}.get(which, -1))


@rule("week", "the? week before last")
def _week_before_last(c: Clock) -> Period:
    return c.unit("week", -2)


@rule("week", "<exact> {week|weeks|fortnight|fortnights} ago")
def _weeks_ago(c: Clock, n: int, unit: str) -> Period:
    return c.unit("week", -n * (2 if unit.startswith("fort") else 1))


@rule("week", "the? week of|beginning|starting|commencing <day>")
def _week_of(c: Clock, day: Period) -> Period:
    return c.days(*bounds(day.start.date(), "week"), "week")


@rule("week", "calendar week <digits>")
@rule("week", "week <digits>", whole=True)
def _week_number(c: Clock, n: int) -> Period:
    return choose(c, lambda r: c.days(*bounds(date.fromisocalendar(c.today.year + r, n, 1), "week"), "week"))


@rule("in_year", "of|in? <year>")
def _year_number(_: Clock, year: int) -> int:
    return year


@rule("in_year", "of|in? {last|this|next|previous} year")
def _near_year(c: Clock, which: str) -> int:
    return c.today.year + {"this": 0, "next": 1}.get(which, -1)


@rule("in_year", "of|in? <exact> years|year ago")
def _years_ago(c: Clock, n: int) -> int:
    return c.today.year - n


def month_of(c: Clock, year: int, month: int, n: int = 1, grain: Grain = "month") -> Period:
    first = date(year, month, 1)
    return c.days(first, add_months(first, n), grain)


@rule("named", "<month> ,? <in_year>", "<month>")
def _month(c: Clock, month: int, year: int | None = None) -> Period:
    return _which_month(c, None, month) if year is None else month_of(c, year, month)


@rule("named", "<which> <month>")
def _which_month(c: Clock, which: str | None, month: int) -> Period:
    return choose(c, lambda n: month_of(c, c.today.year + n, month), which)


@rule("named", "<iso_month>")
def _iso_month(c: Clock, first: date) -> Period:
    return month_of(c, first.year, first.month)


@rule("named", "<led> the? <season> ,? <in_year>")
def _season_of(c: Clock, season: int, year: int) -> Period:
    return month_of(c, year, season, 3, "season")


@rule("named", "<which> <season>")
def _which_season(c: Clock, which: str | None, season: int) -> Period:
    return choose(c, lambda n: month_of(c, c.today.year + n, season, 3, "season"), which)


@rule("named", "<led> the? <season> <clear>")
def _season(c: Clock, season: int) -> Period:
    return _which_season(c, None, season)


@rule("named", "the? <ordinal> quarter <in_year>", "q <dom> <in_year>")
def _quarter_of(c: Clock, n: int, year: int) -> Period | None:
    return month_of(c, year, 3 * n - 2, 3, "quarter") if n <= 4 else None


@rule("named", "the? <ordinal> quarter", "q <dom>")
def _quarter(c: Clock, n: int) -> Period | None:
    return choose(c, lambda r: month_of(c, c.today.year + r, 3 * n - 2, 3, "quarter")) if n <= 4 else None


@rule("named", "<led> <year> <clear>")
def _year(c: Clock, year: int) -> Period:
    return c.days(date(year, 1, 1), date(year + 1, 1, 1), "year")


@rule("named", "<week>")
def _named_week(_: Clock, week: Period) -> Period:
    return week


# -- units: this one, the last three, two ago --------------------------------------------------------------------------


def _calendar(unit: Units) -> Unit:
    """Refuses units that have no calendar of their own (a decade, a fortnight) and those too short for one."""
    name, size = unit
    if size > 1 or name in {"minute", "day"}:
        raise ValueError(f"no calendar {name}")
    return name


@rule("named", "the? {last|previous|next|following|current} <unit>", "{this|all} <unit>")
def _unit(c: Clock, which: str, unit: Units) -> Period:
    name = _calendar(unit)
    if name == "weekend" and which == "this" and c.past:
        return _weekend(c)
    return c.unit(name, {"last": -1, "previous": -1, "next": 1, "following": 1}.get(which, 0))


@rule("named", "the|this? weekend", whole=True)
@rule("named", "<led> the weekend <clear>", "this|the past weekend")
def _weekend(c: Clock) -> Period:
    return choose(c, lambda n: c.unit("weekend", n))


@rule("named", "the? <unit> {before|after} last|next")
def _unit_beyond(c: Clock, unit: Units, side: str) -> Period:
    return c.unit(_calendar(unit), -2 if side == "before" else 2)


@rule("span", "the? {last|past} hour", "the|this {last|past|next|coming} <unit>", "{past} <unit>")
def _rolling_unit(c: Clock, which: str, unit: Units = ("hour", 1)) -> Period:
    return _rolling(c, which, (1, 1), unit)


@rule("span", "the|these|this? {last|past|previous|next|coming} <n> <unit>")
def _rolling(c: Clock, which: str, n: Amount, unit: Units) -> Period:
    """From so many units ago until now (from the start of that day, for days and longer), or the mirror image."""
    (name, size), ahead = unit, which in {"next", "coming"}
    count = n[1] * size * (1 if ahead else -1)
    if name in {"minute", "hour"}:
        edge = c.later(c.now, count / (60 if name == "minute" else 1))
    else:
        edge = c.at(shifted(c.today, name, count) + timedelta(ahead))
    return c.period(c.now, edge, name) if ahead else c.period(edge, c.now, name)


def _distant(c: Clock, n: Amount, unit: Units, sign: int) -> Period:
    """The unit, or stretch of units, that lies `n` away; for hours and minutes a stretch around that moment."""
    name, (near, far) = unit[0], (sign * n[0] * unit[1], sign * n[1] * unit[1])
    low, high = min(near, far), max(near, far)
    if name in {"minute", "hour"}:
        step, spread = (1 / 60 if name == "minute" else 1), max(0.5, abs(far) / 5)
        return c.period(c.later(c.now, (low - spread) * step), c.later(c.now, (high + spread) * step), name)
    first, after = shifted(c.today, name, low), shifted(c.today, name, high)
    if name in {"month", "quarter", "year"}:
        slack = 15 if name == "month" else min(abs(far), 2) * 90
        first, after = first - timedelta(slack), after + timedelta(slack)
    else:
        first, after = bounds(first, name)[0], bounds(after, name)[1]
    if low == high:
        return c.days(first, after, name)
    return c.days(first, after, name, (shifted(first, name, -2), shifted(after, name, 1)))


@rule("span", "about|around|roughly|nearly|almost|over|approximately|like|maybe? <n> <unit> ago|back|earlier")
@rule("span", "about? <n> or so <unit> ago|back", "about? <n> <unit> or so ago|back")
def _ago(c: Clock, n: Amount, unit: Units) -> Period:
    return _distant(c, n, unit, -1)


@rule("span", "half an hour ago|back")
def _half_an_hour_ago(c: Clock) -> Period:
    return _distant(c, (30, 30), ("minute", 1), -1)


@rule("span", "half a year ago|back")
def _half_a_year_ago(c: Clock) -> Period:
    return _distant(c, (6, 6), ("month", 1), -1)


@rule("span", "<n> <unit> from now|today")
@rule("span", "in <n> <unit> time?", whole=True)
def _ahead(c: Clock, n: Amount, unit: Units) -> Period:
    return _distant(c, n, unit, 1)


@rule("span", "the? <unit> {before|after} <calendar_day>")
def _unit_beside(c: Clock, unit: Units, side: str, day: Period) -> Period:
    name = _calendar(unit)
    return c.days(*bounds(shifted(day.start.date(), name, -1 if side == "before" else 1), name), name)


@rule("span", "this time {last} <unit>", "this time {next} <unit>")
def _this_time(c: Clock, which: str, unit: Units) -> Period:
    name = _calendar(unit)
    day = shifted(c.today, name, -1 if which == "last" else 1)
    return c.days(day - timedelta(1), day + timedelta(2), "day" if name == "week" else "week")


# -- parts of units ----------------------------------------------------------------------------------------------------


def _rest_of(c: Clock, side: str, whole: Period) -> Period:
    if side == "later":
        return c.period(c.now, whole.end, whole.grain, (c.now, whole.end))
    ends = c.at(c.today) if whole.start.date() < c.today else c.now
    return c.period(whole.start, ends, whole.grain)


@rule("span", "{earlier|later} today")
def _rest_of_today(c: Clock, side: str) -> Period:
    return _rest_of(c, side, c.day(c.today))


@rule("span", "{earlier|later} this <unit>")
def _rest_of_unit(c: Clock, side: str, unit: Units) -> Period:
    """Earlier this week is its days before today, as far as there are any."""
    return _rest_of(c, side, c.unit(_calendar(unit)))


_FRACTIONS = {
    **dict.fromkeys(("early", "earlier"), (0.0, 0.4)),
    **dict.fromkeys(("beginning", "start"), (0.0, 0.25)),
    **dict.fromkeys(("mid", "middle"), (0.3, 0.7)),
    **dict.fromkeys(("late", "later"), (0.6, 1.0)),
    "end": (0.75, 1.0),
    "first": (0.0, 0.5),
    "second": (0.5, 1.0),
}
_OF_WEEK = {
    **dict.fromkeys(("early", "earlier", "beginning", "start"), (0.0, 3 / 7)),
    **dict.fromkeys(("late", "later", "end"), (3 / 7, 1.0)),
}
"""A week's end begins on Thursday."""


@rule(
    "fraction",
    "{early|mid|late}",
    "{earlier|later} in",
    "the? {beginning|start|middle|end} of",
    "the? {first|second} half of",
)
def _fraction(_: Clock, name: str) -> str:
    return name


@rule("whole", "in? <named>")
def _whole(_: Clock, whole: Period) -> Period:
    return whole


@rule("whole", "the <unit>")
def _whole_unit(c: Clock, unit: Units) -> Period:
    return c.unit(_calendar(unit))


@rule("span", "<fraction> -? <whole>")
def _part_of(c: Clock, name: str, whole: Period) -> Period:
    part = (_FRACTIONS | _OF_WEEK if whole.grain == "week" else _FRACTIONS)[name]
    first, after = whole.start.date(), whole.end.date()
    days = (after - first).days
    start, end = first + timedelta(math.floor(days * part[0])), first + timedelta(math.ceil(days * part[1]))
    return c.days(start, end, whole.grain, (first, after))


@rule("span", "the? <ordinal> {day|week} of|in <whole>")
def _nth(c: Clock, n: int, unit: Unit, whole: Period) -> Period | None:
    """The second week of March is its days 8 to 14."""
    start = shifted(whole.start.date(), unit, n - 1)
    return c.days(start, shifted(start, unit, 1), unit) if start < whole.end.date() else None


@rule("span", "the? last {day|week} of|in <whole>")
def _last_of(c: Clock, unit: Unit, whole: Period) -> Period:
    return c.days(shifted(whole.end.date(), unit, -1), whole.end.date(), unit)
