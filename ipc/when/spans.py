"""Rules for vague words, and for what bounds a period: since, before, between."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from llmos.ipc.when.days import GRAMMAR, choose
from llmos.ipc.when.period import Clock, Period, add_months, shifted
from llmos.ipc.when.units import month_of

__all__ = ["GRAMMAR"]

rule = GRAMMAR.rule

# -- vague words -------------------------------------------------------------------------------------------------------


@rule("span", "recently|lately", "these days", "of late", "in recent days|weeks")
def _recently(c: Clock) -> Period:
    return _before_now(c, 14, 0, 60)


@rule("span", "the other day|night|evening|morning")
def _other_day(c: Clock) -> Period:
    return _before_now(c, 7, 0, 21)


@rule("span", "the other week")
def _other_week(c: Clock) -> Period:
    return _before_now(c, 28, 5, 60)


@rule("span", "the other month")
def _other_month(c: Clock) -> Period:
    return _before_now(c, 120, 20, 240)


@rule("span", "some time ago", "quite? a while ago|back")
def _a_while_ago(c: Clock) -> Period:
    return _before_now(c, 180, 10, 730)


@rule("span", "ages|years|months ago", "long ago", "a long time|while ago|back")
def _long_ago(c: Clock) -> Period:
    return _before_now(c, 3650, 60, 3650)


def _before_now(c: Clock, first: int, last: int, loose: int) -> Period:
    """From `first` to `last` days ago; to now for 0."""
    end = c.at(c.today - timedelta(last - 1)) if last else c.now
    return c.period(c.at(c.today - timedelta(first)), end, "day", (c.at(c.today - timedelta(loose)), c.now))


@rule("span", "just now", "a moment|second|minute ago", "moments ago")
def _just_now(c: Clock) -> Period:
    return c.period(c.later(c.now, -0.25), c.now, "minute", (c.later(c.now, -2), c.now))


@rule("span", "earlier on? <clear>")
def _earlier(c: Clock) -> Period:
    return c.period(c.at(c.today), c.now, "day")


@rule("period", "ever|anytime", "at? any time", "all time")
def _ever(c: Clock) -> Period:
    return c.ever()


# -- periods -----------------------------------------------------------------------------------------------------------


@rule("span", "<moment>", "<day>", "<named>")
def _span(_: Clock, span: Period) -> Period:
    return span


@rule("some", "sometime|back", "some time", "at some point", "all of?", "the whole of", "over|in the course of")
@rule("some", "one|some day|morning|afternoon|evening|night")
@rule("at", "in|on|at|during|over|from|of|within|throughout|for|dated")
def _no_value(_: Clock) -> bool:
    return True


@rule("period", "so far <span>", "<span> so far")
def _so_far(c: Clock, span: Period) -> Period:
    return c.since(span.start, span.grain)


@rule("period", "<some>? <at>? <span>")
def _period(_: Clock, *captures: Period) -> Period:
    return captures[-1]


@rule("period", "around|circa <span>")
def _around(c: Clock, span: Period) -> Period:
    """The stretch with half its grain's slack, so that the days next to a day count."""
    return c.period(*span.loose, span.grain)


@rule("period", "ever? since <span>", "from <span> on|onwards|onward <clear>", "starting <at>? <span>")
def _since(c: Clock, *captures: Period) -> Period:
    span = captures[-1]
    return c.since(span.start, span.grain, span.loose[0])


@rule("period", "after <span>", "later than <span>")
def _after(c: Clock, span: Period) -> Period:
    return c.since(span.end, span.grain)


@rule("period", "before <span>", "earlier than <span>", "prior to <span>")
def _before(c: Clock, span: Period) -> Period:
    return c.until(span.start, span.grain)


@rule("period", "until|till|til|by|through <span>", "up to|until <span>")
def _until(c: Clock, span: Period) -> Period:
    return c.until(span.end, span.grain)


@rule("period", "<at>? <span> or|and on? <span>")
def _hull(c: Clock, *captures: Period) -> Period:
    first, second = sorted(captures[-2:], key=lambda span: span.start.timestamp())
    return c.period(first.start, max(first.end, second.end, key=lambda end: end.timestamp()), first.grain)


@rule("period", "<at>? <span> or|and the <unit> before")
def _or_before(c: Clock, *captures: Any) -> Period:
    """Yesterday or the day before; last week or the week before."""
    span, (name, size) = captures[-2:]
    return c.period(c.moved(span.start, (shifted(c.today, name, -size) - c.today).days), span.end, span.grain)


@rule("period", "between|from? <weekday> and|to|until|till|through|- <weekday>")
def _weekdays(c: Clock, first: int, last: int) -> Period:
    """The latest such stretch; its last day may be today."""
    past_last = choose(c, lambda n: c.day(c.today + timedelta((last - c.today.weekday()) % 7 + 7 * n)))
    after = past_last.end.date()
    return c.days(after - timedelta((last - first) % 7 + 1), after, "day")


@rule("period", "between|from? <month> and|to|until|till|through|- <month>")
def _months(c: Clock, first: int, last: int) -> Period:
    end = choose(c, lambda n: month_of(c, c.today.year + n, last))
    return c.days(add_months(end.start.date(), -((last - first) % 12)), end.end.date(), "month")


@rule("period", "between <span> and <span>", "from? <span> to|until|till|through|-|/|.. <span>")
def _between(c: Clock, first: Period, last: Period) -> Period:
    return c.period(first.start, last.end, first.grain)


@rule("span", "<month> <dayno> to|until|till|through|-|and <dayno>")
def _days_of_month(c: Clock, month: int, first: int, last: int) -> Period | None:
    """Chosen by its first day."""
    if first >= last:
        return None
    return choose(
        c,
        lambda n: c.days(
            date(c.today.year + n, month, first), date(c.today.year + n, month, last) + timedelta(1), "day"
        ),
    )


@rule("span", "the? <dayno> to|until|till|through|-|and the? <dayno> of? <month>")
def _month_days(c: Clock, first: int, last: int, month: int) -> Period | None:
    return _days_of_month(c, month, first, last)
