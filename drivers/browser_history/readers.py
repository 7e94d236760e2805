"""What each family of browsers writes down about a visit, read from a copy of its database.

Formats differ between versions, so a column or table that is not there counts as empty; only what makes a visit — an
address and a time — must be there.
Source: Firefox `toolkit/components/places/nsPlacesTables.h`; Chromium `components/history/core/browser/*_database.cc` and
`ui/base/page_transition_types.h`; WebKit's `History.db` as Safari 8 and later write it.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from llmos.drivers.browser_history.profiles import Family
from llmos.drivers.browser_history.snapshot import UnreadableError

MAX_DWELL_S = 3600.0
"""Seconds of one look that count; a tab left open is not read all night."""
MAX_GUESS_S = 600.0
"""Seconds until the next visit that count as a look, where the browser does not measure it."""
_CHROMIUM_EPOCH_S = 11_644_473_600
"""Seconds from 1601 to 1970."""
_SAFARI_EPOCH_S = 978_307_200
"""Seconds from 1970 to 2001."""

_FIREFOX = """
SELECT v.id, v.visit_date / 1e6 AS ts, p.id AS place, p.url, p.title, {p.description} AS description, v.from_visit AS origin,
       v.visit_type = 2 AS typed, '' AS term, 0 AS dwell
FROM moz_historyvisits v JOIN moz_places p ON p.id = v.place_id
WHERE p.hidden = 0 AND v.visit_type NOT IN (4, 7, 8) AND v.visit_date >= :since * 1e6  -- not embedded, downloads, frames
ORDER BY v.visit_date
"""
_FIREFOX_VIEWS = "SELECT place_id, created_at / 1e3 AS ts, total_view_time / 1e3 AS dwell FROM moz_places_metadata ORDER BY created_at"

_CHROMIUM = """
SELECT v.id, v.visit_time / 1e6 - {epoch} AS ts, u.id AS place, u.url, u.title, '' AS description, v.from_visit AS origin,
       (v.transition & 0xFF) = 1 AS typed, {term} AS term,
       max({foreground}, CASE WHEN {foreground} > 0 THEN 0 ELSE {v.visit_duration} END) / 1e6 AS dwell
FROM visits v JOIN urls u ON u.id = v.url {joins}
WHERE u.hidden = 0 AND (v.transition & 0xFF) NOT IN (3, 4)  -- not frames
  AND ((v.transition & 0x20000000) <> 0 OR (v.transition & 0xD0000000) = 0)  -- the end of a chain of redirects
  AND v.visit_time >= (:since + {epoch}) * 1e6
ORDER BY v.visit_time
"""

_SAFARI = """
SELECT v.id, v.visit_time + {epoch} AS ts, i.id AS place, i.url, v.title, '' AS description, NULL AS origin, 0 AS typed,
       '' AS term, 0 AS dwell
FROM history_visits v JOIN history_items i ON i.id = v.history_item
WHERE {v.redirect_destination} IS NULL AND v.visit_time >= :since - {epoch}
ORDER BY v.visit_time
"""


@dataclass(slots=True)
class Visit:
    """One look at one page. `ts` in seconds since 1970, `dwell` in seconds, `origin` the visit that led here."""

    id: int
    ts: float
    url: str
    title: str
    description: str
    origin: int
    typed: bool
    term: str
    dwell: float


def read_visits(database: sqlite3.Connection, family: Family, since: float) -> list[Visit]:
    """Visits from `since` on, oldest first. Raises `UnreadableError` for an unknown format, `sqlite3.DatabaseError`."""
    columns = _columns(database)
    required = {"firefox": "moz_historyvisits", "chromium": "visits", "safari": "history_visits"}[family]
    if not columns.get(required):
        raise UnreadableError(
            "unknown_format", f"no table {required}: not a history this driver knows", "report the browser's version"
        )
    rows = database.execute(_query(family, columns), {"since": since}).fetchall()
    views = _firefox_views(database) if family == "firefox" and columns["moz_places_metadata"] else {}
    visits = [
        Visit(
            row["id"],
            row["ts"],
            _text(row["url"]),
            _text(row["title"]),
            _text(row["description"]),
            row["origin"] or 0,
            bool(row["typed"]),
            _text(row["term"]),
            min(float(row["dwell"] or 0), MAX_DWELL_S),
        )
        for row in rows
        if isinstance(row["ts"], float) and row["ts"] > 0
    ]
    places = [row["place"] for row in rows if isinstance(row["ts"], float) and row["ts"] > 0]
    if views:
        _add_views(visits, places, views)
    _guess_dwell(visits)
    return visits


def _query(family: Family, columns: dict[str, set[str]]) -> str:
    if family == "firefox":
        return _FIREFOX.replace("{p.description}", "p.description" if "description" in columns["moz_places"] else "''")
    if family == "safari":
        redirect = "redirect_destination" in columns["history_visits"]
        return _SAFARI.replace("{v.redirect_destination}", "v.redirect_destination" if redirect else "NULL").replace(
            "{epoch}", str(_SAFARI_EPOCH_S)
        )
    terms, context = columns["keyword_search_terms"], columns["context_annotations"]
    return (
        _CHROMIUM.replace("{epoch}", str(_CHROMIUM_EPOCH_S))
        .replace("{term}", "(SELECT term FROM keyword_search_terms WHERE url_id = u.id LIMIT 1)" if terms else "''")
        .replace("{joins}", "LEFT JOIN context_annotations c ON c.visit_id = v.id" if context else "")
        .replace(
            "{foreground}",
            "coalesce(c.total_foreground_duration, 0)" if "total_foreground_duration" in context else "0",
        )
        .replace("{v.visit_duration}", "v.visit_duration" if "visit_duration" in columns["visits"] else "0")
    )


def _columns(database: sqlite3.Connection) -> dict[str, set[str]]:
    names = database.execute(
        "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'"
    )
    columns: dict[str, set[str]] = defaultdict(set)
    for table, column in names:
        columns[table].add(column)
    return columns


def _firefox_views(database: sqlite3.Connection) -> dict[int, list[tuple[float, float]]]:
    views: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for place, ts, dwell in database.execute(_FIREFOX_VIEWS):
        views[place].append((ts, dwell))
    return views


def _add_views(visits: list[Visit], places: list[int], views: dict[int, list[tuple[float, float]]]) -> None:
    """Firefox measures looks apart from visits: each goes to the visit of its page that it began with or followed."""
    of_place: dict[int, list[Visit]] = defaultdict(list)
    for visit, place in zip(visits, places, strict=True):
        of_place[place].append(visit)
    for place, looks in views.items():
        seen = of_place.get(place)
        if not seen:
            continue
        starts = [visit.ts - 5 for visit in seen]
        for ts, dwell in looks:
            if at := bisect_right(starts, ts):
                visit = seen[at - 1]
                visit.dwell = min(visit.dwell + dwell, MAX_DWELL_S)


def _guess_dwell(visits: list[Visit]) -> None:
    """Where no visit was measured, the time until the next one is the best there is."""
    if any(visit.dwell for visit in visits):
        return
    for visit, follower in pairwise(visits):
        gap = follower.ts - visit.ts
        visit.dwell = gap if gap <= MAX_GUESS_S else 0.0


def _text(value: object) -> str:
    """Text as stored, whatever was stored: SQLite columns keep any type."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value) if value is not None else ""
