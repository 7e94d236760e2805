"""Stretches of time, and the arithmetic on calendars and clocks that phrases need: aware, half-open, right across DST.

Days and longer are counted on the wall clock of the user's zone, hours and minutes as they pass. A wall time that a
zone skips counts from the moment of the jump; one that it shows twice is the first.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

Grain = Literal["minute", "hour", "part", "day", "weekend", "week", "month", "quarter", "season", "year", "all"]
Unit = Literal["minute", "hour", "day", "weekend", "week", "month", "quarter", "year"]

_PAD_HOURS: dict[Grain, float] = {"minute": 0.5, "hour": 2, "part": 4, "all": 0}
_PAD_DAYS: dict[Grain, int] = {"day": 1, "weekend": 2, "week": 7, "month": 15, "quarter": 31, "season": 31, "year": 92}
_MONTHS: dict[Unit, int] = {"month": 1, "quarter": 3, "year": 12}
_FIRST = date(1970, 1, 2)
_LAST = date(2200, 1, 1)


@dataclass(frozen=True, slots=True)
class Period:
    """The half-open stretch [start, end), both aware and in the user's zone.

    `grain` is how precisely it was said; `text` is what was said. `loose` is a wider [start, end) that contains it, for
    when nothing is found in the strict one: people say "last week" for ten days ago. Compare moments of one zone by
    `timestamp()`: Python compares their wall clocks, which repeat when DST ends.
    """

    start: datetime
    end: datetime
    grain: Grain
    loose: tuple[datetime, datetime]
    text: str = ""

    def __contains__(self, moment: datetime) -> bool:
        return self.start.timestamp() <= moment.timestamp() < self.end.timestamp()


class Clock:
    """Now, in a zone, and whether a phrase that could be either (`on Monday`) means the past or the future."""

    def __init__(self, now: datetime, *, past: bool) -> None:
        if now.tzinfo is None:
            raise ValueError("now must be aware: a datetime with the user's time zone")
        self.now = now
        self.today = now.date()
        self.past = past

    # -- moments

    def at(self, day: date, hours: float = 0) -> datetime:
        """The moment when the wall clock shows `hours` after midnight of `day`; 24 and more reach into the next day."""
        wall = datetime.combine(day, datetime.min.time()) + timedelta(hours=hours)
        return wall.replace(tzinfo=self.now.tzinfo).astimezone(UTC).astimezone(self.now.tzinfo)

    def later(self, moment: datetime, hours: float) -> datetime:
        """`hours` of passing time after `moment`; negative is before."""
        return (moment.astimezone(UTC) + timedelta(hours=hours)).astimezone(self.now.tzinfo)

    def moved(self, moment: datetime, days: int) -> datetime:
        """The same wall time `days` later."""
        wall = moment.replace(tzinfo=None) - datetime.combine(moment.date(), datetime.min.time())
        return self.at(moment.date() + timedelta(days), wall / timedelta(hours=1))

    # -- periods

    def period(
        self, start: datetime, end: datetime, grain: Grain, loose: tuple[datetime, datetime] | None = None
    ) -> Period:
        """Raises ValueError for an empty one. Without `loose`: padded on both sides by its grain, not past now."""
        if start.timestamp() >= end.timestamp():
            raise ValueError("a period must end after it starts")
        if loose is None:
            before, after = self._pad(start, grain, -1), self._pad(end, grain, 1)
            if end.timestamp() <= self.now.timestamp() < after.timestamp():
                after = self.now
            loose = before, after
        return Period(start, end, grain, loose)

    def _pad(self, moment: datetime, grain: Grain, sign: int) -> datetime:
        if not _FIRST < moment.date() < _LAST:
            return moment
        if grain in _PAD_DAYS:
            return self.moved(moment, sign * _PAD_DAYS[grain])
        return self.later(moment, sign * _PAD_HOURS[grain])

    def days(self, first: date, after: date, grain: Grain, loose: tuple[date, date] | None = None) -> Period:
        """Whole days from `first` up to, not including, `after`."""
        wide = (self.at(loose[0]), min(self.at(loose[1]), max(self.at(after), self.now))) if loose else None
        return self.period(self.at(first), self.at(after), grain, wide)

    def day(self, day: date) -> Period:
        """One day."""
        return self.days(day, day + timedelta(1), "day")

    def unit(self, unit: Unit, n: int = 0) -> Period:
        """The calendar unit `n` units from the one of now: (`week`, -1) is last week, from Monday to Sunday."""
        if unit in ("hour", "minute"):
            hours = 1 if unit == "hour" else 1 / 60
            start = self.later(
                self.now.replace(minute=self.now.minute if unit == "minute" else 0, second=0, microsecond=0), n * hours
            )
            return self.period(start, self.later(start, hours), unit)
        return self.days(*bounds(shifted(self.today, unit, n), unit), unit)

    def since(self, start: datetime, grain: Grain, loose: datetime | None = None) -> Period:
        """From `start` to now; to the end of time for a start that is still to come."""
        end = self.now if start.timestamp() < self.now.timestamp() else self.at(_LAST)
        return self.period(start, end, grain, (loose or self._pad(start, grain, -1), end))

    def until(self, end: datetime, grain: Grain) -> Period:
        """From now to `end` when the future is meant and `end` lies there; from the beginning of time otherwise."""
        ahead = not self.past and end.timestamp() > self.now.timestamp()
        return self.period(self.now if ahead else self.at(_FIRST), end, grain)

    def ever(self) -> Period:
        """All of time."""
        return self.period(self.at(_FIRST), self.at(_LAST), "all")


def bounds(day: date, unit: Unit) -> tuple[date, date]:
    """First day, and first day after, of the unit that holds `day`.

    Weeks start on Monday; a weekend is Saturday and Sunday of the week of `day`.
    """
    if unit == "day":
        return day, day + timedelta(1)
    monday = day - timedelta(day.weekday())
    if unit == "week":
        return monday, monday + timedelta(7)
    if unit == "weekend":
        return monday + timedelta(5), monday + timedelta(7)
    months = _MONTHS[unit]
    first = date(day.year, (day.month - 1) // months * months + 1, 1)
    return first, add_months(first, months)


def shifted(day: date, unit: Unit, n: int) -> date:
    """The same day `n` units later; the last day of a shorter month."""
    if unit in _MONTHS:
        return add_months(day, n * _MONTHS[unit])
    return day + timedelta(n * (1 if unit == "day" else 7))


def add_months(day: date, n: int) -> date:
    """The same day of the month `n` months later, or that month's last."""
    year, month = divmod(day.year * 12 + day.month - 1 + n, 12)
    return date(year, month + 1, min(day.day, calendar.monthrange(year, month + 1)[1]))
