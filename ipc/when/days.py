"""Rules for numbers, times of day, days, and parts of days."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, timedelta

from llmos.ipc.when.grammar import Grammar
from llmos.ipc.when.period import Clock, Period, add_months, bounds
from llmos.ipc.when.words import HOLIDAYS, define

GRAMMAR = Grammar()
rule = GRAMMAR.rule
define(GRAMMAR)

Amount = tuple[int, int]
"""At least and at most: `a few` is (2, 5), `3` is (3, 3)."""
Hours = tuple[float, float]
"""Start and end, in hours of the wall clock after a day's midnight."""


@rule("exact", "<digits>", "a? <number>")
def _exact(_: Clock, n: int) -> int:
    return n


@rule("exact", "<tens> -? <number>?")
def _tens(_: Clock, tens: int, ones: int | None) -> int | None:
    return tens + (ones or 0) if (ones or 0) < 10 else None


@rule("exact", "a|an")
def _one(_: Clock) -> int:
    return 1


@rule("n", "<exact>")
def _exactly(_: Clock, n: int) -> Amount:
    return n, n


@rule("n", "<exact> -|to|or <exact>")
def _from_to(_: Clock, low: int, high: int) -> Amount | None:
    return (low, high) if low < high else None


@rule("n", "a? couple of?")
def _couple(_: Clock) -> Amount:
    return 2, 3


@rule("n", "a? few", "some")
def _few(_: Clock) -> Amount:
    return 2, 5


@rule("n", "several", "many")
def _several(_: Clock) -> Amount:
    return 3, 8


@rule("ordinal", "<dom> st|nd|rd|th", "<ordinal_word>")
@rule("dayno", "<dom> st|nd|rd|th?")
def _ordinal(_: Clock, n: int) -> int:
    return n


@rule("time", "<wall_time> {am|pm|a.m.|p.m.|a.m|p.m}?", "<hour> {am|pm|a.m.|p.m.|a.m|p.m}")
def _time(_: Clock, hours: float, half: str | None) -> float | None:
    if half is None:
        return hours
    return hours % 12 + (12 if half[0] == "p" else 0) if 1 <= hours < 13 else None


@rule("time", "<hour> o'clock|o’clock")
def _hour(_: Clock, hours: int) -> float:
    return hours


@rule("time", "{noon|midday|midnight}")
def _noon(_: Clock, name: str) -> float:
    return 0.0 if name == "midnight" else 12.0


@rule("hours", "{early|late|mid}? <part>")
def _part_of_day(_: Clock, where: str | None, part: Hours) -> Hours:
    start, end = part
    half = (end - start) / 2
    return {
        None: part,
        "early": (start, start + half),
        "late": (start + half, end),
        "mid": (start + half / 2, end - half / 2),
    }[where]


@rule("hours", "early|small hours")
def _small_hours(_: Clock) -> Hours:
    return 0, 5


# -- days --------------------------------------------------------------------------------------------------------------


def choose(c: Clock, make: Callable[[int], Period], which: str | None = None) -> Period:
    """Of a thing that comes round, `make(n)` being the nth from about now: the one meant by last, this, next or nothing."""
    if which == "this":
        return make(0)
    rounds = []
    for n in range(-9, 10):
        with suppress(ValueError):  # 29 February is not in every round
            rounds.append(make(n))
    now = c.now.timestamp()
    if which == "last" or (which is None and c.past):
        meant = [r for r in reversed(rounds) if (r.end if which else r.start).timestamp() <= now]
    else:
        meant = [r for r in rounds if (r.start if which else r.end).timestamp() > now]
    if not meant:
        raise ValueError("it does not come round")
    return meant[0]


@rule("which", "the|this? {last|past|previous|next|coming|upcoming}", "{this}")
def _which(_: Clock, word: str) -> str:
    return {"past": "last", "previous": "last", "coming": "next", "upcoming": "next"}.get(word, word)


@rule("day", "{today|yesterday|tomorrow}")
def _near(c: Clock, name: str) -> Period:
    return c.day(c.today + timedelta({"today": 0, "yesterday": -1, "tomorrow": 1}[name]))


@rule("day", "the? day {before|after} {yesterday|tomorrow}")
def _next_but_one(c: Clock, side: str, name: str) -> Period | None:
    days = {("before", "yesterday"): -2, ("after", "tomorrow"): 2}.get((side, name))
    return None if days is None else c.day(c.today + timedelta(days))


@rule("day", "all day")
def _all_day(c: Clock) -> Period:
    return c.day(c.today)


@rule("day", "<exact> day|days|d ago|back|earlier")
def _days_ago(c: Clock, n: int) -> Period:
    return c.day(c.today - timedelta(n))


@rule("calendar_day", "<date>")
def _date(c: Clock, day: date) -> Period:
    return c.day(day)


@rule("calendar_day", "the? <dayno> of? <month> ,? <in_year>", "the? <dayno> of? <month>")
def _day_month(c: Clock, day: int, month: int, year: int | None = None) -> Period:
    return (
        choose(c, lambda n: c.day(date(c.today.year + n, month, day)))
        if year is None
        else c.day(date(year, month, day))
    )


@rule("calendar_day", "<month> the? <dayno> ,? <in_year>", "<month> the? <dayno>")
def _month_day(c: Clock, month: int, day: int, year: int | None = None) -> Period:
    return _day_month(c, day, month, year)


@rule("day", "the <dom> st|nd|rd|th <clear>")
def _day_of_month(c: Clock, day: int) -> Period:
    first = c.today.replace(day=1)
    return choose(c, lambda n: c.day(add_months(first, n).replace(day=day)))


@rule("day", "<weekday>")
def _weekday(c: Clock, weekday: int) -> Period:
    """The latest before today: people call today's own weekday today. A time to come may be today."""
    back = (c.today.weekday() - weekday - 1) % 7 + 1
    return c.day(c.today - timedelta(back) if c.past else c.today + timedelta((weekday - c.today.weekday()) % 7))


@rule("day", "<which> <weekday>")
def _which_weekday(c: Clock, which: str, weekday: int) -> Period:
    if which == "last":
        day = c.today - timedelta((c.today.weekday() - weekday - 1) % 7 + 1)
        return c.days(day, day + timedelta(1), "day", (day - timedelta(7), day + timedelta(2)))
    monday = bounds(c.today, "week")[0]
    return c.day(monday + timedelta(weekday + (7 if which == "next" else 0)))


@rule("day", "the? <weekday> before last")
def _weekday_before_last(c: Clock, weekday: int) -> Period:
    return c.day(_weekday(c, weekday).start.date() - timedelta(7))


@rule("day", "<exact> <weekdays> ago")
def _weekdays_ago(c: Clock, n: int, weekday: int) -> Period:
    return c.day(c.today - timedelta((c.today.weekday() - weekday - 1) % 7 + 1 + 7 * (n - 1)))


@rule("day", "the? <weekday> of|in|from? <week>", "the? <weekday> , <week>")
def _weekday_of(c: Clock, weekday: int, week: Period) -> Period:
    return c.day(week.start.date() + timedelta(weekday))


@rule("day", "<week> ,? on? <weekday>")
def _week_on(c: Clock, week: Period, weekday: int) -> Period:
    return _weekday_of(c, weekday, week)


def _holiday_rules() -> None:
    for name, date_of in HOLIDAYS.items():

        def meant(c: Clock, which: str | None, date_of: Callable[[int], date] = date_of) -> Period:
            return choose(c, lambda n: c.day(date_of(c.today.year + n)), which)

        def of_year(c: Clock, year: int, date_of: Callable[[int], date] = date_of) -> Period:
            return c.day(date_of(year))

        rule("calendar_day", f"<led> <which>? {name} <clear>")(meant)
        rule("calendar_day", f"<led> {name} <in_year>")(of_year)


_holiday_rules()


@rule("day", "<calendar_day>")
def _calendar_day(_: Clock, day: Period) -> Period:
    return day


@rule("day", "<weekday> ,? on? <calendar_day>")
def _weekday_date(_: Clock, _weekday: int, day: Period) -> Period:
    """Of the two the date is what people remember or copy right."""
    return day


@rule("day", "<exact> day|days {before|after} <calendar_day>")
def _days_beside(c: Clock, n: int, side: str, day: Period) -> Period:
    return c.day(day.start.date() + timedelta(n if side == "after" else -n))


@rule("day", "the? day {before|after} <calendar_day>")
def _day_beside(c: Clock, side: str, day: Period) -> Period:
    return _days_beside(c, 1, side, day)


# -- moments: a part of a day, a time on a day -------------------------------------------------------------------------


def _part(c: Clock, day: Period, hours: Hours) -> Period:
    first = day.start.date()
    return c.period(c.at(first, hours[0]), c.at(first, hours[1]), "part")


@rule("moment", "<day> ,? in|during|over? the? <hours>", "<day> ,? at|around <hours>")
def _day_part(c: Clock, day: Period, hours: Hours) -> Period:
    return _part(c, day, hours)


@rule("moment", "{early|late|mid} <day> in? the? <part>")
def _within_part(c: Clock, where: str, day: Period, part: Hours) -> Period:
    return _part(c, day, _part_of_day(c, where, part))


@rule("moment", "the? <hours> of|on? <day>")
def _part_day(c: Clock, hours: Hours, day: Period) -> Period:
    return _part(c, day, hours)


@rule("moment", "this|all <hours>", "in|during|over the <hours>", "over <hours>")
def _this_part(c: Clock, hours: Hours) -> Period:
    """Today's; yesterday's when today's is still to come and the past is meant."""
    today = _part(c, c.day(c.today), hours)
    ahead = today.start.timestamp() > c.now.timestamp()
    return _part(c, c.day(c.today - timedelta(1)), hours) if ahead and c.past else today


@rule("moment", "tonight")
def _tonight(c: Clock) -> Period:
    return c.period(c.at(c.today, 18), c.at(c.today, 29), "part")


@rule("moment", "{late|early}? last {night|evening}")
def _last_night(c: Clock, where: str | None, _part: str) -> Period:
    start, end = {None: (-6, 6), "early": (-7, -3), "late": (-3, 6)}[where]
    return c.period(c.at(c.today, start), c.at(c.today, end if _part == "night" else 0), "part")


@rule("moment", "<instant>")
def _instant(c: Clock, moment: datetime) -> Period:
    if moment.tzinfo is None:
        start = c.at(moment.date(), moment.hour + moment.minute / 60 + moment.second / 3600)
    else:
        start = moment.astimezone(c.now.tzinfo)
    return c.period(start, c.later(start, 1 / 60), "minute")


def _clock_span(c: Clock, day: date, hours: float, *, vague: bool) -> Period:
    start = c.at(day, hours)
    if vague:
        return c.period(c.later(start, -1), c.later(start, 1), "hour")
    on_the_hour = float(hours).is_integer()
    return c.period(start, c.later(start, 1 if on_the_hour else 1 / 60), "hour" if on_the_hour else "minute")


@rule("moment", "<day> ,? {at|around|about|by}? <time>", "<day> ,? {at|around|about} <bare_hour>")
def _day_time(c: Clock, day: Period, how: str | None, time: float) -> Period:
    return _clock_span(c, day.start.date(), time, vague=how in {"around", "about"})


@rule("bare_hour", "<hour> <clear>")
def _bare_hour(_: Clock, hour: int) -> float:
    """An hour without am or pm is the one people are awake at."""
    return float(hour + 12 if 1 <= hour <= 6 else hour)


@rule("moment", "{at|around|about} <hour> o'clock|o’clock? ,? on? <day> in? the? <hours>")
def _hour_part(c: Clock, how: str, hour: int, day: Period, hours: Hours) -> Period:
    """At 3 yesterday afternoon."""
    noon_passed = hour < 12 <= hours[1] and hours[0] > 10
    return _clock_span(c, day.start.date(), hour + 12 if noon_passed else hour, vague=how != "at")


@rule("moment", "<day> in? the? <hours> ,? {at|around|about} <hour> o'clock|o’clock? <clear>")
def _part_hour(c: Clock, day: Period, hours: Hours, how: str, hour: int) -> Period:
    return _hour_part(c, how, hour, day, hours)


@rule("moment", "{at|around|about}? <time> ,? on? <day>")
def _time_day(c: Clock, how: str | None, time: float, day: Period) -> Period:
    return _day_time(c, day, how, time)


@rule("moment", "{at|around} <time>")
@rule("moment", "{at|around}? <time>", "{at|around} <bare_hour>", whole=True)
def _time_alone(c: Clock, how: str | None, time: float) -> Period:
    return choose(c, lambda n: _clock_span(c, c.today + timedelta(n), float(time), vague=how == "around"))


@rule(
    "moment",
    "<day> ,? {after|since|from|before|until|till|by} <time>",
    "<day> ,? {after|since|before|until|by} <hours>",
)
def _day_beyond(c: Clock, day: Period, side: str, time: float | Hours) -> Period:
    first = day.start.date()
    starts, ends = time if isinstance(time, tuple) else (time, time)
    if side in {"before", "until", "till", "by"}:
        return c.period(day.start, c.at(first, starts if side == "before" else ends), "part")
    return c.period(c.at(first, ends if side == "after" else starts), day.end, "part")


@rule("times", "between|from? <hour> and|to|until|till|- <time>")
def _half_times(_: Clock, start: int, end: float) -> Hours | None:
    """Between 2 and 4pm: the afternoon is meant for both."""
    return _times(_, start + 12 if end > 12 and start + 12 < end else start, end)


@rule("times", "between|from <hour> and|to|until|till|- <hour>", whole=True)
@rule("times", "between|from <time> and|to|until|till|- <time>", "<time> to|- <time>")
def _times(_: Clock, start: float, end: float) -> Hours | None:
    return (start, end) if start < end else None


@rule("moment", "<day> ,? <times>")
def _day_times(c: Clock, day: Period, times: Hours) -> Period:
    return _part(c, day, times)


@rule("moment", "<times> ,? on? <day>")
@rule("moment", "<times>")
def _times_day(c: Clock, times: Hours, day: Period | None = None) -> Period:
    return _part(c, day, times) if day else _this_part(c, times)
