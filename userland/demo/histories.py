"""Browser histories written to disk in the browsers' own formats, from a list of visits.

For the demo home, for tests of whatever reads histories, and for evaluations. The files are what Firefox and Chromium
leave after a clean exit: no journal beside them.
"""

from __future__ import annotations

import base64
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from llmos.userland.demo.schemas import CHROMIUM, FIREFOX

FIREFOX_PROFILE = "xk3v9q2t.default-release"
CHROMIUM_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND_US = 1_000_000
_SESSION = timedelta(minutes=30)
"""After a longer break a page is not what led to the next one."""
_FIREFOX_LINK, _FIREFOX_TYPED = 1, 2
_CHROMIUM_LINK, _CHROMIUM_TYPED, _CHROMIUM_GENERATED = 0, 1, 5
_CHROMIUM_WHOLE_CHAIN = 0x30000000
"""`CHAIN_START | CHAIN_END`: a visit that no redirect was part of."""
_CHROMIUM_KEYWORD = 2
"""Id of the default search engine in Chromium's own `keywords` table, which is in another file."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One look at one page."""

    at: datetime
    """Aware; any zone."""
    url: str
    title: str
    seconds: float = 20.0
    """How long the page was looked at."""
    typed: bool = False
    """The address was typed instead of following a link."""
    search: str = ""
    """The words searched for, when the page is a search engine's answer."""
    description: str = ""
    """What the page says about itself (`<meta name=description>`); only Firefox keeps it."""


def write_firefox(home: Path, visits: Iterable[Visit], profile: str = FIREFOX_PROFILE) -> Path:
    """Write a Firefox profile below `home/.mozilla/firefox`. Returns the path of its `places.sqlite`.

    Raises `FileExistsError` when the profile has a history already.
    """
    root = home / ".mozilla" / "firefox"
    path = _fresh(root / profile / "places.sqlite")
    (root / "profiles.ini").write_text(
        f"[Install4F96D1932A9F858E]\nDefault={profile}\nLocked=1\n\n"
        f"[Profile0]\nName=default-release\nIsRelative=1\nPath={profile}\n\n[General]\nStartWithLastProfile=1\nVersion=2\n"
    )
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(FIREFOX)
        for number, before, visit in _in_order(visits):
            place = _firefox_place(db, visit)
            at = _since(UNIX_EPOCH, visit.at)
            db.execute(
                "UPDATE moz_places SET visit_count = visit_count + 1, typed = typed + ?, title = ?,"
                " last_visit_date = ?, frecency = (visit_count + 1) * 100, description = coalesce(nullif(?, ''), description) WHERE id = ?",
                (visit.typed, visit.title, at, visit.description, place),
            )
            _insert(
                db,
                "moz_historyvisits",
                id=number,
                from_visit=before,
                place_id=place,
                visit_date=at,
                visit_type=_FIREFOX_TYPED if visit.typed else _FIREFOX_LINK,
                session=0,
            )
            _add_firefox_view(db, visit, place, at // 1000)
    return path


def write_chromium(home: Path, visits: Iterable[Visit], browser: str = "chromium") -> Path:
    """Write a Chromium profile below `home/.config/<browser>/Default`. Returns the path of its `History`.

    Raises `FileExistsError` when the profile has a history already.
    """
    path = _fresh(home / ".config" / browser / "Default" / "History")
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(CHROMIUM)
        for number, before, visit in _in_order(visits):
            url = _chromium_url(db, visit)
            at = _since(CHROMIUM_EPOCH, visit.at)
            db.execute(
                "UPDATE urls SET title = ?, visit_count = visit_count + 1, typed_count = typed_count + ?,"
                " last_visit_time = ? WHERE id = ?",
                (visit.title, visit.typed, at, url),
            )
            kind = _CHROMIUM_GENERATED if visit.search else _CHROMIUM_TYPED if visit.typed else _CHROMIUM_LINK
            _insert(
                db,
                "visits",
                id=number,
                url=url,
                visit_time=at,
                from_visit=before,
                external_referrer_url="",
                transition=kind | _CHROMIUM_WHOLE_CHAIN,
                segment_id=0,
                visit_duration=int(visit.seconds * _SECOND_US),
                incremented_omnibox_typed_score=visit.typed,
                opener_visit=0,
                originator_cache_guid="",
                originator_visit_id=0,
                originator_from_visit=0,
                originator_opener_visit=0,
                consider_for_ntp_most_visited=True,
            )
    return path


def url_hash(url: str) -> int:
    """Firefox's 48-bit hash of an address: 16 bits of its scheme, 32 of the whole.

    Source: Firefox `toolkit/components/places/Helpers.cpp`, `HashURL`.
    """
    scheme, colon, _ = url[:50].partition(":")
    return ((_hash(scheme) & 0xFFFF) << 32 if colon else 0) + _hash(url[:1500])


def _hash(text: str) -> int:
    value = 0
    for byte in text.encode():
        rotated = (value << 5 | value >> 27) & 0xFFFFFFFF
        value = 0x9E3779B9 * (rotated ^ byte) & 0xFFFFFFFF
    return value


def _firefox_place(db: sqlite3.Connection, visit: Visit) -> int:
    known = db.execute("SELECT id FROM moz_places WHERE url_hash = ? AND url = ?", (url_hash(visit.url), visit.url))
    row = known.fetchone()
    if row is not None:
        return int(row[0])
    parts = urlsplit(visit.url)
    origin = {"prefix": f"{parts.scheme}://", "host": parts.netloc}
    db.execute("INSERT OR IGNORE INTO moz_origins (prefix, host, frecency) VALUES (:prefix, :host, 100)", origin)
    return _insert(
        db,
        "moz_places",
        url=visit.url,
        title=visit.title,
        rev_host=(parts.hostname or "")[::-1] + ".",
        guid=base64.urlsafe_b64encode(hashlib.sha256(visit.url.encode()).digest()[:9]).decode(),
        url_hash=url_hash(visit.url),
        origin_id=_only(db.execute("SELECT id FROM moz_origins WHERE prefix = :prefix AND host = :host", origin)),
    )


def _add_firefox_view(db: sqlite3.Connection, visit: Visit, place: int, created_ms: int) -> None:
    query = None
    if visit.search:
        terms = (visit.search.lower(),)
        db.execute("INSERT OR IGNORE INTO moz_places_metadata_search_queries (terms) VALUES (?)", terms)
        query = _only(db.execute("SELECT id FROM moz_places_metadata_search_queries WHERE terms = ?", terms))
    viewed = int(visit.seconds * 1000)
    _insert(
        db,
        "moz_places_metadata",
        place_id=place,
        created_at=created_ms,
        updated_at=created_ms + viewed,
        total_view_time=viewed,
        scrolling_time=viewed // 5,
        scrolling_distance=viewed // 4,
        search_query_id=query,
    )


def _chromium_url(db: sqlite3.Connection, visit: Visit) -> int:
    row = db.execute("SELECT id FROM urls WHERE url = ?", (visit.url,)).fetchone()
    if row is not None:
        return int(row[0])
    number = _insert(db, "urls", url=visit.url, title=visit.title, last_visit_time=0)
    if visit.search:
        terms = {"term": visit.search, "normalized_term": visit.search.lower()}
        _insert(db, "keyword_search_terms", keyword_id=_CHROMIUM_KEYWORD, url_id=number, **terms)
    return number


def _in_order(visits: Iterable[Visit]) -> Iterator[tuple[int, int, Visit]]:
    """Number from 1, number of the visit whose page led here (0 for none), visit; oldest first."""
    before: Visit | None = None
    for number, visit in enumerate(sorted(visits, key=lambda visit: visit.at), 1):
        led = before is not None and not visit.typed and before.url != visit.url and visit.at - before.at < _SESSION
        yield number, number - 1 if led else 0, visit
        before = visit


def _insert(db: sqlite3.Connection, table: str, **columns: object) -> int:
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    row = db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(columns.values()))  # noqa: S608  (own names)
    return int(row.lastrowid or 0)


def _only(rows: sqlite3.Cursor) -> int:
    return int(rows.fetchone()[0])


def _since(epoch: datetime, at: datetime) -> int:
    return (at - epoch) // timedelta(microseconds=1)


def _fresh(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise FileExistsError(f"{path} exists; choose an empty directory")
    return path
