"""Quotas: how much may be used, and the accounts that say what is left. Pure; the time is always handed in.

A quota bounds each *window*: `100/d` is a hundred from one midnight UTC to the next, not in any 24 hours. Windows are counted from
1970, so those of one length begin together whoever holds the quota, and shorter ones lie wholly inside longer ones. That is what
makes it safe to move a part of one account into another: `spent ≤ limit` holds in each, moving shifts `limit` from one to the
other, so an account and all that came of it never spend more in a window than it was given. The time
handed in must never go back.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from llmos.ipc.errors import Code, OpError

UNITS = ("calls", "bytes", "tokens")
"""What is counted: requests; bytes of arguments and results; tokens of prompt and completion."""

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
"""Letter → seconds. Each divides the next."""

_FACTORS = {"G": 1_000_000_000, "M": 1_000_000, "k": 1000}
_LIMIT = re.compile(r"([1-9][0-9]{0,14})([kMG]?)(?:/([smhdw]))?")
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhdw])")


class Limit(NamedTuple):
    """`amount` in each window of `per` seconds; in all, when `per` is 0."""

    amount: int
    per: int

    @classmethod
    def parse(cls, text: str) -> Limit:
        """`100/d`, `20k/h`, `5`; k, M and G are thousands. Raises `OpError(INVALID_ARGUMENT)`."""
        match = _LIMIT.fullmatch(text)
        if not match:
            hint = "write an amount and a period: 100/d, 20k/h, or 5 for all in all; periods are s, m, h, d, w"
            raise OpError(Code.INVALID_ARGUMENT, f"{text!r} is not a quota", hint)
        return cls(int(match[1]) * _FACTORS.get(match[2], 1), SECONDS[match[3]] if match[3] else 0)

    def __str__(self) -> str:
        suffix, factor = next(((s, f) for s, f in _FACTORS.items() if self.amount % f == 0), ("", 1))
        period = next((f"/{letter}" for letter, seconds in SECONDS.items() if seconds == self.per), "")
        return f"{self.amount // factor}{suffix}{period}"

    def covers(self, other: Limit) -> bool:
        """Whether `other` never allows more in one of its windows. A longer window that holds no more does not."""
        return other.amount <= self.amount and self.spans(other)

    def spans(self, other: Limit) -> bool:
        """Whether each window of `self` lies inside one of `other`'s."""
        return other.per == 0 or 0 < self.per <= other.per


def parse_duration(text: str) -> int:
    """Seconds of `90s`, `2h`, `7d`. Raises `OpError(INVALID_ARGUMENT)`."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise OpError(Code.INVALID_ARGUMENT, f"{text!r} is not a duration", "write 90s, 15m, 2h, 7d or 2w")
    return int(match[1]) * SECONDS[match[2]]


def format_duration(seconds: int) -> str:
    """In the largest unit that divides it."""
    letter, size = next((s, n) for s, n in reversed(SECONDS.items()) if seconds % n == 0)
    return f"{seconds // size}{letter}"


class Spending(NamedTuple):
    """What must be remembered of an account across a restart."""

    window: int
    """Number of the window, counted from 1970."""
    spent: int
    """At most this much has been used in it."""
    moved: int
    """In the hands of accounts that end with this run: counted as used when it ends without warning."""


class Account:
    """What is left of one unit. Shared by every capability that draws on it."""

    __slots__ = ("limit", "owner", "per", "saved", "source", "spent", "unit", "window")

    def __init__(self, owner: str, unit: str, limit: Limit, source: Account | None, now: float) -> None:
        self.owner = owner
        """Id of the capability it was made for."""
        self.unit = unit
        self.limit = limit.amount
        self.per = limit.per
        self.source = source
        """Where its limit was moved from, and returns to."""
        self.window = int(now // limit.per) if limit.per else 0
        self.spent = 0
        """In this window; never more than `limit`."""
        self.saved = math.inf
        """Up to here the journal knows of it; infinite when it does not outlive this run."""

    def left(self, now: float) -> int:
        """In the present window. `now` never goes back."""
        window = int(now // self.per) if self.per else 0
        if window != self.window:
            self.window, self.spent = window, 0
            if self.saved != math.inf:
                self.saved = 0
        return self.limit - self.spent

    def resume(self, spending: Spending) -> None:
        """Go on where the journal says it was."""
        used = spending.spent if spending.window == self.window else 0
        self.spent = min(self.limit, spending.moved + used)

    def move(self, owner: str, limit: Limit, now: float) -> Account:
        """A new account with a part of this one's limit. The caller has seen that so much is left."""
        self.limit -= limit.amount
        return Account(owner, self.unit, limit, self, now)

    def close(self, now: float) -> None:
        """Give back what was moved; what was spent of it in the present window stays spent. Those moved from here closed before."""
        if self.source is not None:
            self.left(now)
            self.source.left(now)
            self.source.limit += self.limit
            self.source.spent += self.spent

    def refills(self) -> float:
        """When the next window begins, in seconds since 1970; infinite when none does."""
        return (self.window + 1) * self.per if self.per else math.inf
