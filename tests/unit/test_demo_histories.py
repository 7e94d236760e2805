"""Histories written in the browsers' own formats."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llmos.userland.demo.histories import Visit, url_hash, write_chromium, write_firefox

AT = datetime(2026, 11, 17, 20, 15, 30, 123456, tzinfo=UTC)
PAGE = "https://www.example.org/essays/whales?ref=1"
VISITS = [
    Visit(AT + timedelta(minutes=2), PAGE, "Whales, at last", 61.5, description="On whales."),
    Visit(AT, "https://duckduckgo.com/?q=whales", "whales at DuckDuckGo", 12, typed=True, search="whales"),
    Visit(AT + timedelta(days=2), PAGE, "Whales, at last", 30),
]


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """What a reader of the file gets."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def test_firefox(tmp_path: Path) -> None:
    """Firefox: microseconds since 1970, one place per address, reversed host, dwell in ms, in a profile that `profiles.ini` names."""
    path = write_firefox(tmp_path, VISITS)
    assert path.parent.name in (tmp_path / ".mozilla/firefox/profiles.ini").read_text()
    visits = "SELECT v.visit_date, p.url, v.from_visit, v.visit_type FROM moz_historyvisits v JOIN moz_places p ON p.id = v.place_id"
    first, second, third = rows(path, visits + " ORDER BY v.visit_date")
    assert first == (int(AT.timestamp()) * 1_000_000 + 123456, VISITS[1].url, 0, 2)
    assert second[2] == 1
    assert third[2] == 0
    place = rows(
        path, f"SELECT visit_count, rev_host, description, title, length(guid) FROM moz_places WHERE url = '{PAGE}'"
    )
    assert place == [(2, "gro.elpmaxe.www.", "On whales.", "Whales, at last", 12)]
    assert rows(path, "SELECT sum(total_view_time) FROM moz_places_metadata") == [(103_500,)]
    assert rows(path, "SELECT terms FROM moz_places_metadata_search_queries") == [("whales",)]


def test_chromium(tmp_path: Path) -> None:
    """Chromium: microseconds since 1601, durations in microseconds, the search's words beside its page."""
    path = write_chromium(tmp_path, VISITS)
    assert path == tmp_path / ".config/chromium/Default/History"
    first, *_ = rows(path, "SELECT visit_time, visit_duration, transition & 255 FROM visits ORDER BY visit_time")
    assert first == ((int(AT.timestamp()) + 11_644_473_600) * 1_000_000 + 123456, 12_000_000, 5)
    assert rows(path, "SELECT url, title, visit_count, typed_count FROM urls WHERE visit_count > 1") == [
        (PAGE, "Whales, at last", 2, 0)
    ]
    assert rows(path, "SELECT term FROM keyword_search_terms") == [("whales",)]


@pytest.mark.parametrize("write", [write_firefox, write_chromium])
def test_never_overwrites(tmp_path: Path, write: object) -> None:
    """A history that exists is left alone, and files are sound and without a journal beside them."""
    assert callable(write)
    path = write(tmp_path, VISITS)
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    with pytest.raises(FileExistsError):
        write(tmp_path, VISITS)


def test_url_hash() -> None:
    """The hash is Firefox's own: this is the value in a fresh profile for a page every profile visits."""
    assert url_hash("https://www.mozilla.org/privacy/firefox/") == 47356411089529
