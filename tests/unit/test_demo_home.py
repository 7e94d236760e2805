"""The demo home."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from llmos.ipc import when
from llmos.userland.demo import home

NOW = datetime(2026, 11, 25, 14, 30, tzinfo=ZoneInfo("Europe/Berlin"))


def visits(root: Path) -> list[tuple[str, str, float]]:
    """Address, title and Unix time of all visits in both browsers."""
    found: list[tuple[str, str, float]] = []
    firefox = root / ".mozilla/firefox" / "xk3v9q2t.default-release" / "places.sqlite"
    chromium = root / ".config/chromium/Default/History"
    queries = {
        firefox: "SELECT url, title, visit_date / 1e6 FROM moz_historyvisits v JOIN moz_places p ON p.id = v.place_id",
        chromium: "SELECT u.url, title, visit_time / 1e6 - 11644473600 FROM visits v JOIN urls u ON u.id = v.url",
    }
    for path, query in queries.items():
        with closing(sqlite3.connect(path)) as db:
            found += db.execute(query).fetchall()
    return found


def digests(root: Path) -> dict[str, str]:
    """Content of every file below."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("days", range(7))
def test_question_has_one_answer(tmp_path: Path, days: int) -> None:
    """On any weekday, the planted article is the only one about language models of the week that the question names."""
    now = NOW + timedelta(days=days)
    made = home.make(tmp_path, now)
    week = when.parse("last week", now)
    about = [
        url
        for url, title, ts in visits(tmp_path)
        if week.start.timestamp() <= ts < week.end.timestamp() and ("language model" in title.lower() or "LLM" in title)
    ]
    assert about == [made.planted.url]


def test_believable(tmp_path: Path) -> None:
    """Some hundred visits over eight weeks, none of them in the future, in both browsers, and documents with old times."""
    made = home.make(tmp_path, NOW)
    found = visits(tmp_path)
    assert len(found) == made.visits
    assert 300 < len(found) < 900
    assert max(ts for *_, ts in found) < NOW.timestamp()
    assert min(ts for *_, ts in found) < (NOW - timedelta(days=45)).timestamp()
    documents = [path for path in (tmp_path / "Documents").rglob("*") if path.is_file()]
    assert {path.suffix for path in documents} == {".md", ".txt", ".csv"}
    assert all(path.stat().st_mtime < NOW.timestamp() for path in documents)


def test_same_seed_same_home(tmp_path: Path) -> None:
    """The same moment and seed give the same bytes; another seed another person."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        home.make(tmp_path / name, NOW, seed)
    first, same, other = (digests(tmp_path / name) for name in "abc")
    assert first == same
    assert first != other
