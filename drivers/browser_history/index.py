"""The driver's own index: every visit it has seen, by page, with words and vectors. It outlives what browsers forget.

One SQLite file, one writer. All times are seconds since 1970. A page is an address without what only tracks; the visits of
several profiles to it are together.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmos.drivers.browser_history.pages import (
    MAX_URL,
    clean_url,
    host_of,
    is_page,
    page_key,
    reads_like_article,
    search_terms,
    url_words,
)
from llmos.drivers.browser_history.readers import Visit
from llmos.drivers.words import WORD

REREAD_DAYS = 60
"""Days back that every reading covers again: titles and times of looks come late, and what is gone there was deleted by
the user. No browser expires visits younger than this by itself."""
COLUMNS = {"title": 1.0, "via": 0.9, "url": 0.75, "description": 0.6}
"""Columns of words, and how much a word found there counts."""
SEARCH_TO_CLICK_S = 90.0
"""Seconds after a search in which the next page is what came of it."""
_MAX_TITLE, _MAX_DESCRIPTION, _MAX_VIA = 500, 1000, 300

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pages (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, url TEXT NOT NULL, host TEXT NOT NULL,
  title TEXT NOT NULL, description TEXT NOT NULL, via TEXT NOT NULL, article REAL NOT NULL);
CREATE TABLE IF NOT EXISTS visits (source TEXT NOT NULL, id INTEGER NOT NULL, page INTEGER NOT NULL, ts REAL NOT NULL,
  dwell REAL NOT NULL, typed INTEGER NOT NULL, PRIMARY KEY (source, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS visits_ts ON visits (ts, page);
CREATE INDEX IF NOT EXISTS visits_page ON visits (page, ts);
CREATE INDEX IF NOT EXISTS pages_host ON pages (host);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(title, url, via, description, tokenize = 'porter unicode61 remove_diacritics 2');
CREATE TABLE IF NOT EXISTS vectors (page INTEGER PRIMARY KEY, digest BLOB NOT NULL, vector BLOB NOT NULL);
CREATE VIEW IF NOT EXISTS looks AS SELECT v.source, v.id, v.ts, v.dwell, p.url, p.host, p.title, p.description, p.key
  FROM visits v JOIN pages p ON p.id = v.page;
CREATE TABLE IF NOT EXISTS sources (name TEXT PRIMARY KEY, seen TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Page:
    """A page with its visits in a stretch of time: how many, first and last, seconds looked at, by which profiles."""

    id: int
    url: str
    host: str
    title: str
    description: str
    article: float
    last: float
    first: float
    dwell: float
    visits: int
    profiles: str
    """Names, as a JSON array."""


@dataclass(frozen=True, slots=True)
class Look:
    """One visit."""

    source: str
    id: int
    ts: float
    dwell: float
    url: str
    host: str
    title: str
    description: str
    key: str


SEPARATORS = tuple("-|–—·•»:/")
"""Marks that set a site's name apart at the end of a title; "by" and the like set apart anybody."""


class Index:
    """The index in a file; not for use from two threads at once."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Ends the use of the file."""
        self._db.close()

    # -- writing

    def seen(self, source: str) -> str:
        """What `ingest` was last told about a source's file; empty for a new one."""
        row = self._db.execute("SELECT seen FROM sources WHERE name = ?", (source,)).fetchone()
        return row[0] if row else ""

    def ingest(
        self,
        source: str,
        visits: Sequence[Visit],
        since: float,
        seen: str,
        excluded: Callable[[str], bool] = lambda _: False,
    ) -> list[int]:
        """Takes all visits of a source from `since` on. Returns the ids of those that are new, oldest first.

        Visits from `since` on that were known and have gone were deleted by the user, and go here, too; when none of the
        known ones is left the history was cleared, and everything of the source goes.
        """
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            rows = self._db.execute("SELECT id, ts FROM visits WHERE source = ? AND ts >= ?", (source, since))
            known: dict[int, float] = dict(rows)
            given = {visit.id: visit.ts for visit in visits}
            gone = [number for number, ts in known.items() if abs(given.get(number, 0.0) - ts) > 1]
            if known and len(gone) == len(known):
                self._db.execute("DELETE FROM visits WHERE source = ?", (source,))
                known = {}
            else:
                self._db.executemany(
                    "DELETE FROM visits WHERE source = ? AND id = ?", [(source, number) for number in gone]
                )
            written = self._write(source, visits, excluded)
            self._db.execute("INSERT OR REPLACE INTO sources VALUES (?, ?)", (source, seen))
            self._sweep()
        return [number for number in written if number not in known or number in gone]

    def _write(self, source: str, visits: Sequence[Visit], excluded: Callable[[str], bool]) -> list[int]:
        terms = _terms_before(visits)
        of_page: dict[str, list[Visit]] = {}
        for visit in visits:
            with suppress(ValueError):  # an address that is none: nothing could open it either
                if is_page(visit.url) and not excluded(host_of(visit.url)):
                    of_page.setdefault(page_key(visit.url)[:MAX_URL], []).append(visit)
        written: list[int] = []
        for key, looks in of_page.items():
            page = self._page(key, looks, {terms[look.id] for look in looks if look.id in terms})
            self._db.executemany(
                "INSERT OR REPLACE INTO visits VALUES (?, ?, ?, ?, ?, ?)",
                [(source, look.id, page, look.ts, look.dwell, look.typed) for look in looks],
            )
            written += [look.id for look in looks]
        return sorted(written)

    def _page(self, key: str, looks: Sequence[Visit], via: set[str]) -> int:
        """The page's id, with the newest of what its visits say of it."""
        row = self._db.execute("SELECT id, title, description, via FROM pages WHERE key = ?", (key,)).fetchone()
        page, title, description, known_via = row or (0, "", "", "")
        new_title = next((look.title for look in reversed(looks) if look.title), title)[:_MAX_TITLE]
        new_description = next((look.description for look in reversed(looks) if look.description), description)[
            :_MAX_DESCRIPTION
        ]
        new_via = " · ".join(sorted(via | set(filter(None, known_via.split(" · ")))))[:_MAX_VIA]
        if row and (new_title, new_description, new_via) == (title, description, known_via):
            return int(page)
        url = clean_url(looks[-1].url)[:MAX_URL]
        facts = (url, new_title, new_description, new_via, reads_like_article(url, new_title))
        if row:
            self._db.execute(
                "UPDATE pages SET url = ?, title = ?, description = ?, via = ?, article = ? WHERE id = ?",
                (*facts, page),
            )
            self._db.execute("DELETE FROM words WHERE rowid = ?", (page,))
        else:
            page = (
                self._db.execute(
                    "INSERT INTO pages (url, title, description, via, article, key, host) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*facts, key, host_of(url)),
                ).lastrowid
                or 0
            )
        self._db.execute(
            "INSERT INTO words (rowid, title, url, via, description) VALUES (?, ?, ?, ?, ?)",
            (page, new_title, url_words(url), new_via, new_description),
        )
        return int(page)

    def expire(self, before: float) -> None:
        """Drops visits before a time."""
        if self._db.execute("SELECT 1 FROM visits WHERE ts < ? LIMIT 1", (before,)).fetchone():
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute("DELETE FROM visits WHERE ts < ?", (before,))
                self._sweep()

    def forget(self, host: Callable[[str], bool], keeps_source: Callable[[str], bool]) -> None:
        """Drops what the user no longer wants here: all pages of some hosts, all visits of some sources."""
        hosts = [name for name in self.hosts() if host(name)]
        sources = [name for (name,) in self._db.execute("SELECT name FROM sources") if not keeps_source(name)]
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "DELETE FROM visits WHERE page IN (SELECT id FROM pages WHERE host IN (SELECT value FROM json_each(?)))",
                (json.dumps(hosts),),
            )
            for table, column in (("visits", "source"), ("sources", "name")):
                self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(name,) for name in sources])  # noqa: S608
            self._sweep()

    def _sweep(self) -> None:
        """Drops pages without visits, with their words and vectors."""
        orphans = self._db.execute(
            "SELECT id FROM pages WHERE NOT EXISTS (SELECT 1 FROM visits WHERE page = pages.id)"
        ).fetchall()
        for table, column in (("words", "rowid"), ("vectors", "page"), ("pages", "id")):
            self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", orphans)  # noqa: S608  (names from above)

    # -- reading

    def pages(
        self, start: float, end: float, hosts: Sequence[str] | None = None, only: Sequence[int] | None = None
    ) -> list[Page]:
        """Pages visited in [start, end), latest first; of some hosts, or with some ids, only."""
        rows = self._db.execute(
            "SELECT p.id, p.url, p.host, p.title, p.description, p.article, max(v.ts), min(v.ts), sum(v.dwell), count(*),"
            " json_group_array(DISTINCT v.source) FROM visits v JOIN pages p ON p.id = v.page WHERE v.ts >= :start AND v.ts < :end"
            " AND (:hosts IS NULL OR p.host IN (SELECT value FROM json_each(:hosts)))"
            " AND (:only IS NULL OR p.id IN (SELECT value FROM json_each(:only)))"
            " GROUP BY p.id ORDER BY max(v.ts) DESC",
            {
                "start": start,
                "end": end,
                "hosts": None if hosts is None else json.dumps(list(hosts)),
                "only": None if only is None else json.dumps(list(only)),
            },
        )
        return [Page(*row) for row in rows]

    def looks(
        self, start: float, end: float, hosts: Sequence[str] | None, key: str | None, offset: int, count: int
    ) -> list[Look]:
        """Single visits in [start, end), latest first; of some hosts, or of the page with a key, only."""
        rows = self._db.execute(
            "SELECT * FROM looks WHERE ts >= :start AND ts < :end AND (:key IS NULL OR key = :key)"
            " AND (:hosts IS NULL OR host IN (SELECT value FROM json_each(:hosts)))"
            " ORDER BY ts DESC, source, id LIMIT :count OFFSET :offset",
            {
                "start": start,
                "end": end,
                "key": key,
                "hosts": None if hosts is None else json.dumps(list(hosts)),
                "count": count,
                "offset": offset,
            },
        )
        return [Look(*row) for row in rows]

    def new_looks(self, source: str, ids: Sequence[int]) -> list[Look]:
        """The visits of a source with these ids."""
        rows = self._db.execute(
            "SELECT * FROM looks WHERE source = ? AND id IN (SELECT value FROM json_each(?)) ORDER BY ts",
            (source, json.dumps(list(ids))),
        )
        return [Look(*row) for row in rows]

    def hosts(self) -> dict[str, int]:
        """Every host with its number of pages."""
        return dict(self._db.execute("SELECT host, count(*) FROM pages GROUP BY host"))

    def hosts_titled(self, site: str) -> set[str]:
        """Hosts of pages whose title ends with the site's name, behind one of `SEPARATORS`."""
        name = site.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return {
            row[0]
            for mark in SEPARATORS
            for row in self._db.execute(
                "SELECT DISTINCT host FROM pages WHERE title LIKE ? ESCAPE '\\'", (f"_%{mark} {name}",)
            )
        }

    def title_words(self) -> set[str]:
        """Every word of every title, in lower case."""
        return {
            match[0].lower()
            for (title,) in self._db.execute("SELECT title FROM pages")
            for match in WORD.finditer(title or "")
        }

    def counts(self, source: str) -> tuple[int, float | None, float | None]:
        """(visits, first, last) of a source."""
        row = self._db.execute("SELECT count(*), min(ts), max(ts) FROM visits WHERE source = ?", (source,)).fetchone()
        return row[0], row[1], row[2]

    def size(self) -> int:
        """Pages in all."""
        return int(self._db.execute("SELECT count(*) FROM pages").fetchone()[0])

    def match(self, phrases: Iterable[str]) -> dict[int, float]:
        """Page id → the weight of the best column in which any of the phrases stands, words in any inflection."""
        wanted = " OR ".join('"' + phrase.replace('"', " ") + '"' for phrase in phrases if phrase.strip())
        found: dict[int, float] = {}
        for column, weight in COLUMNS.items():
            for (page,) in self._db.execute("SELECT rowid FROM words WHERE words MATCH ?", (f"{column} : ({wanted})",)):
                found[page] = max(found.get(page, 0.0), weight)
        return found

    def vectors(self, pages: Sequence[int]) -> dict[int, tuple[bytes, npt.NDArray[np.float32]]]:
        """Page id → (digest of the text it was made of, vector), as far as there are any."""
        rows = self._db.execute(
            "SELECT page, digest, vector FROM vectors WHERE page IN (SELECT value FROM json_each(?))",
            (json.dumps(list(pages)),),
        )
        return {page: (digest, np.frombuffer(vector, np.float16).astype(np.float32)) for page, digest, vector in rows}

    def keep_vectors(self, vectors: Iterable[tuple[int, bytes, npt.NDArray[np.float32]]]) -> None:
        """Stores (page id, digest, vector) in half precision."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR REPLACE INTO vectors SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM pages WHERE id = ?1)",
                [(page, digest, vector.astype(np.float16).tobytes()) for page, digest, vector in vectors],
            )


def _terms_before(visits: Sequence[Visit]) -> dict[int, str]:
    """Visit id → the words of the search that led there: by its link, or without one, by coming right after."""
    searches = {visit.id: term for visit in visits if (term := visit.term or _searched(visit.url))}
    found = {visit.id: searches[visit.origin] for visit in visits if visit.origin in searches}
    for before, visit in pairwise(visits):
        if (
            before.id in searches
            and visit.id not in searches
            and visit.ts - before.ts < SEARCH_TO_CLICK_S
            and not visit.typed
        ):
            found.setdefault(visit.id, searches[before.id])
    return found


def _searched(url: str) -> str:
    try:
        return search_terms(url)
    except ValueError:
        return ""
