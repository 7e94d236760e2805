"""An ordinary person's browsing, made up: mail, news, shops, work, searches, and articles read in between."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote_plus

from llmos.userland.demo.histories import Visit

SITTINGS = ((7, 9), (12, 14), (19, 23))
"""Hours between which a person sits down to browse, on any day; work fills weekdays between the first two."""
WORK_HOURS = (9, 17)


@dataclass(frozen=True, slots=True)
class Article:
    """Something to read."""

    url: str
    title: str
    description: str = ""


def everyday(rng: Random, now: datetime, days: int, *, works: bool = True, busy: int = 7) -> list[Visit]:
    """Visits of the `days` days before `now` and of today so far, oldest first; about `busy` activities a day."""
    habits = _everyday()["habit"]
    visits: list[Visit] = []
    for day in range(days, -1, -1):
        on = now.date() - timedelta(days=day)
        working = works and on.weekday() < 5
        for _ in range(rng.randint(max(1, busy - 3), busy + 3)):
            habit = rng.choices(habits, [h["weight"] if working or not h.get("work") else 0 for h in habits])[0]
            hours = WORK_HOURS if habit.get("work") else rng.choice(SITTINGS)
            visits += _act(rng, habit, moment(rng, on, now, hours))
    return sorted((visit for visit in visits if visit.at < now), key=lambda visit: visit.at)


def read(rng: Random, article: Article, at: datetime, *, minutes: float = 0, searched: str = "") -> list[Visit]:
    """Someone reads an article at `at`, for a few minutes; `searched` puts the search that led to it before it."""
    seconds = 60 * minutes or rng.uniform(90, 700)
    visit = Visit(at, article.url, article.title, round(seconds, 1), description=article.description)
    if not searched:
        return [visit]
    answer = f"https://duckduckgo.com/?q={quote_plus(searched)}"
    looked = Visit(at - timedelta(seconds=20), answer, f"{searched} at DuckDuckGo", 15, typed=True, search=searched)
    return [looked, visit]


def glance(rng: Random, article: Article, at: datetime) -> list[Visit]:
    """Someone opens an article and leaves at once."""
    return [Visit(at, article.url, article.title, round(rng.uniform(2, 9), 1), description=article.description)]


def moment(rng: Random, on: date, now: datetime, hours: tuple[int, int] | None = None) -> datetime:
    """A time on that day in the zone of `now`, between two hours (any sitting by default), and before `now`."""
    first, last = hours or rng.choice(SITTINGS)
    at = datetime.combine(on, time(first), tzinfo=now.tzinfo) + timedelta(seconds=rng.uniform(0, (last - first) * 3600))
    return at if at < now else now - timedelta(minutes=rng.uniform(1, 50))


def slug(text: str) -> str:
    """Text as it stands in an address: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _path(text: str) -> str:
    return "/".join(map(slug, text.split("/")))


def _act(rng: Random, habit: dict[str, Any], at: datetime) -> list[Visit]:
    words = {name: rng.choice(choice) for name, choice in _everyday()["words"].items()}
    search = words[habit["search"]] if "search" in habit else ""
    visits = []
    for number, (address, title, seconds) in enumerate(_pages(rng, habit["pages"])):
        url = address.format_map({name: quote_plus(word) if search else _path(word) for name, word in words.items()})
        looked = round(seconds * rng.uniform(0.3, 2.0), 1)
        visits.append(Visit(at, url, title.format_map(words), looked, typed=number == 0, search=search))
        at += timedelta(seconds=looked + rng.uniform(1, 20))
    return visits


def _pages(rng: Random, pages: Sequence[tuple[str, str, float]]) -> Sequence[tuple[str, str, float]]:
    return pages[: rng.randint(1, len(pages))]


@cache
def _everyday() -> dict[str, Any]:
    with Path(__file__).with_name("everyday.toml").open("rb") as stream:
        return tomllib.load(stream)
