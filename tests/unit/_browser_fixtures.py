"""Homes with browser histories for the tests of the history driver, and the driver on them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

from llmos.drivers.browser_history.driver import BrowserHistory
from llmos.drivers.sdk import Code, DriverEnv, OpError
from llmos.ipc.embedding import Vectors
from llmos.userland.demo.histories import Visit

NOW = datetime(2026, 11, 23, 15, 30, tzinfo=ZoneInfo("Europe/Berlin"))
"""A Monday."""

SAFARI = """
CREATE TABLE history_items (id INTEGER PRIMARY KEY AUTOINCREMENT, url TEXT NOT NULL UNIQUE, domain_expansion TEXT NULL,
  visit_count INTEGER NOT NULL, daily_visit_counts BLOB NOT NULL, weekly_visit_counts BLOB NULL,
  autocomplete_triggers BLOB NULL, should_recompute_derived_visit_counts INTEGER NOT NULL,
  visit_count_score INTEGER NOT NULL, status_code INTEGER NOT NULL DEFAULT 0);
CREATE TABLE history_visits (id INTEGER PRIMARY KEY AUTOINCREMENT, history_item INTEGER NOT NULL REFERENCES
  history_items(id) ON DELETE CASCADE, visit_time REAL NOT NULL, title TEXT NULL, load_successful BOOLEAN NOT NULL DEFAULT 1,
  http_non_get BOOLEAN NOT NULL DEFAULT 0, synthesized BOOLEAN NOT NULL DEFAULT 0, redirect_source INTEGER NULL UNIQUE,
  redirect_destination INTEGER NULL UNIQUE, origin INTEGER NOT NULL DEFAULT 0, generation INTEGER NOT NULL DEFAULT 0,
  attributes INTEGER NOT NULL DEFAULT 0, score INTEGER NOT NULL DEFAULT 0);
"""
"""Tables of Safari's History.db that concern history. Source: WebKit-era Safari 13 and later."""


def visit(title: str, url: str, days: float = 1, **more: Any) -> Visit:
    """A look at a page so many days before now."""
    return Visit(at=NOW - timedelta(days=days), url=url, title=title, **{"seconds": 120.0, **more})


def write_safari(home: Path, visits: Sequence[Visit]) -> Path:
    """`History.db` as Safari keeps it: seconds since 2001, the title at the visit."""
    path = home / "Library" / "Safari" / "History.db"
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(SAFARI)
        for number, look in enumerate(visits, 1):
            database.execute(
                "INSERT INTO history_items VALUES (?, ?, NULL, 1, '', NULL, NULL, 0, 0, 200)", (number, look.url)
            )
            database.execute(
                "INSERT INTO history_visits (id, history_item, visit_time, title) VALUES (?, ?, ?, ?)",
                (number, number, look.at.timestamp() - 978_307_200, look.title),
            )
    return path


@dataclass(frozen=True)
class Env(DriverEnv):
    """Time stands still unless moved; events are kept; vectors come from a function of the test, or there are none."""

    moment: list[datetime] = field(default_factory=lambda: [NOW])
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    vectors: Any = None

    def now(self) -> datetime:
        return self.moment[0]

    def publish(self, topic: str, data: dict[str, Any]) -> None:
        self.events.append((topic, data))

    def embed(self, texts: Sequence[str]) -> Vectors:
        if self.vectors is None:
            raise OpError(Code.UNAVAILABLE, "no embedding model")
        made: Vectors = self.vectors(texts)
        return made


@contextmanager
def running(home: Path, state: Path, vectors: Any = None, **settings: Any) -> Iterator[BrowserHistory]:
    """The driver on a home of which everything was granted; its background reading is left to the test."""
    state.mkdir(exist_ok=True)
    driver = BrowserHistory()
    with mock.patch.object(BrowserHistory, "_watch", return_value=None):
        driver.setup(Env(state=state, home=home, roots=(home,), settings=settings, vectors=vectors))
    try:
        yield driver
    finally:
        driver.close()


def titles(answer: dict[str, Any]) -> list[str]:
    """Of an answer's items."""
    return [item["title"] for item in answer["items"]]
