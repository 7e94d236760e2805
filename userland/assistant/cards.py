"""Cards: what an op returned, in the one shape in which a person sees it, so that an answer can be checked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import msgspec

from llmos.ipc.when import Period

MAX_CARDS = 5
"""Cards of an answer."""
MAX_READ = 20
"""Records of a result that are looked at."""
NEAR_TIME, OTHER_TIME = 0.4, 0.2
"""What the score of a record counts that is of a time near the one asked for, and of any other."""
MAX_TEXT = 600
"""Characters of a card's text."""
_TITLES = ("title", "name", "subject", "summary", "op")
_TIMES = ("ts", "time", "at", "start", "modified")


class Card(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was found."""

    title: str
    source: str = ""
    url: str = ""
    path: str = ""
    ts: float | None = None
    """Seconds since 1970 UTC."""
    when: str = ""
    """The same in the user's zone and words."""
    score: float | None = None
    """How relevant the op itself finds it, 0 to 1."""
    text: str = ""
    why: str = ""
    """What made it match."""

    @property
    def site(self) -> str:
        """Where it is, in a word or two: the host, the folder, otherwise what gave it."""
        if self.url:
            return (urlsplit(self.url).hostname or self.url).removeprefix("www.")
        return str(PurePosixPath(self.path).parent) if self.path else self.source

    @property
    def words(self) -> str:
        """All of it that can be searched for words."""
        return " ".join((self.title, self.url or self.path, self.text, self.why))


def from_result(result: dict[str, Any], source: str, now: datetime, period: Period | None = None) -> list[Card]:
    """The cards of an op's result, in its order: of its list of records, or of itself when it is one record.

    With `period`, what an op found beyond that time comes after what is of it, unless it fits far better.
    """
    items = result.get("items")
    if not isinstance(items, list):
        items = next((value for value in result.values() if _are_records(value)), [result] if _is_text(result) else [])
    items = [item for item in items if isinstance(item, dict)][:MAX_READ]
    cards = [_card(item, source, now) for item in items]
    return _timely(cards, [item.get("in_period") for item in items], period) if period else cards


def say_when(moment: datetime, now: datetime) -> str:
    """A moment as people say it, both aware, in the zone of `now`: `yesterday at 21:14`, `Tuesday 17 November at 9:05`."""
    moment = moment.astimezone(now.tzinfo)
    clock = f"{moment.hour}:{moment:%M}"
    days = (now.date() - moment.date()) // timedelta(days=1)
    if days in (0, 1):
        return f"{'yesterday' if days else 'today'} at {clock}"
    year = "" if moment.year == now.year else f" {moment.year}"
    return f"{moment:%A} {moment.day} {moment:%B}{year} at {clock}"


def _card(item: dict[str, Any], source: str, now: datetime) -> Card:
    url, path = str(item.get("url") or ""), str(item.get("path") or "")
    title = next((str(item[key]) for key in _TITLES if item.get(key)), "") or PurePosixPath(path).name or url or source
    moment = next((found for key in _TIMES if (found := _moment(item.get(key)))), None)
    score = item.get("relevance", item.get("score"))
    return Card(
        title=" ".join(title.split()),
        source=str(item.get("source") or source),
        url=url,
        path=path,
        ts=moment.timestamp() if moment else None,
        when=say_when(moment, now) if moment else "",
        score=round(float(score), 4) if isinstance(score, (int, float)) and 0 <= score <= 1 else None,
        text=str(item.get("text") or item.get("snippet") or "")[:MAX_TEXT],
        why=_say_why(item.get("why")),
    )


def _timely(cards: list[Card], told: list[Any], period: Period) -> list[Card]:
    """The cards of that time first, in the op's order, the others where their score still has them when it counts less.

    An op may tell whether a record is of that time: it knows of all times at which a page was read, the card only of the
    last.
    """
    worth, weighed = 1.0, []
    for card, said in zip(cards, told, strict=True):
        worth = min(
            worth, 1.0 if card.score is None else card.score
        )  # no more than any before it: the order is the op's
        inside = said if isinstance(said, bool) else card.ts is None or _is_in(card.ts, period.start, period.end)
        near = card.ts is not None and _is_in(card.ts, *period.loose)
        weighed.append((worth * (1.0 if inside else NEAR_TIME if near else OTHER_TIME), card))
    return [card for _, card in sorted(weighed, key=lambda pair: -pair[0])]


def _is_in(ts: float, start: datetime, end: datetime) -> bool:
    return start.timestamp() <= ts < end.timestamp()


def _say_why(why: Any) -> str:
    return "; ".join(map(str, why)) if isinstance(why, list) else str(why or "")


def _moment(value: Any) -> datetime | None:
    """A record's time: ISO 8601, or seconds since 1970."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except (ValueError, OverflowError, OSError):  # a stranger's record; it is shown without a time
        return None
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _is_text(result: dict[str, Any]) -> bool:
    return any(result.get(key) for key in ("text", "url", "path", *_TITLES))
