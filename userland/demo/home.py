"""The demo home: a made-up person's browser histories and documents, relative to a moment."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from llmos.userland.demo.browsing import WORK_HOURS, Article, everyday, moment, read
from llmos.userland.demo.histories import write_chromium, write_firefox

QUESTION = "what was that article I read last week about LLMs?"
DAYS = 56
SEED = 2026


@dataclass(frozen=True, slots=True)
class Home:
    """A demo home on disk."""

    path: Path
    planted: Article
    """What `QUESTION` asks for."""
    visits: int
    documents: int


def make(path: Path, now: datetime | None = None, seed: int = SEED) -> Home:
    """Write the home below `path`; the same `seed` and `now` (aware) give the same home.

    The person works in Chromium and reads in Firefox. Raises `FileExistsError` when there are histories already.
    """
    now = now or datetime.now().astimezone()
    rng = Random(seed)  # noqa: S311  (made-up data)
    visits = everyday(rng, now, DAYS)
    planted: Article | None = None
    for entry in _data("articles")["article"]:
        at = _when(rng, now, entry)
        url = f"https://{entry['site']}/{at.strftime(entry['path'])}"
        article = Article(url, entry["title"], entry.get("description", ""))
        visits += read(rng, article, at, minutes=7 if entry.get("planted") else 0)
        planted = article if entry.get("planted") else planted
    if planted is None:
        raise ValueError("articles.toml plants no article")
    write_chromium(path, (visit for visit in visits if _at_work(visit.at)))
    write_firefox(path, (visit for visit in visits if not _at_work(visit.at)))
    return Home(path, planted, len(visits), _write_documents(path / "Documents", now))


def _when(rng: Random, now: datetime, entry: dict[str, Any]) -> datetime:
    monday = now.date() - timedelta(days=now.weekday() + 7 * entry["week"])
    days = now.weekday() if entry["week"] == 0 else 6
    return moment(rng, monday + timedelta(days=entry.get("day", rng.randint(0, days))), now)


def _at_work(at: datetime) -> bool:
    first, last = WORK_HOURS
    return at.weekday() < 5 and first <= at.hour < last


def _write_documents(root: Path, now: datetime) -> int:
    documents = _data("documents")["document"]
    for document in documents:
        path = root / document["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document["text"].lstrip("\n"))
        changed = (now - timedelta(days=document["days"], hours=3)).timestamp()
        os.utime(path, (changed, changed))
    return len(documents)


@cache
def _data(name: str) -> dict[str, Any]:
    with Path(__file__).with_name(f"{name}.toml").open("rb") as stream:
        return tomllib.load(stream)
