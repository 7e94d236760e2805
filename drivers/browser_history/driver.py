"""The browser history driver: pages visited in any browser of this machine, found by words, meaning, site and time."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llmos.drivers import records
from llmos.drivers.browser_history.index import Index, Look, Page
from llmos.drivers.browser_history.pages import page_key
from llmos.drivers.browser_history.query import topic
from llmos.drivers.browser_history.ranking import CONVINCING, READABLE, Hit, Ranker, Vectors, by_reading, page_vectors
from llmos.drivers.browser_history.sites import hosts_of, within
from llmos.drivers.browser_history.sources import DAY_S, Source, Sources
from llmos.drivers.browser_history.spelling import corrected
from llmos.drivers.sdk import Call, Code, Driver, DriverEnv, OpError, op
from llmos.ipc import when

WATCH_S = 45.0
"""Seconds between two looks at the browsers' files when nobody asks."""
WARM_DAYS, WARM_PAGES = 30, 800
"""Days back, and pages at most, that get a vector before anybody asks."""
WARM_BATCH = 20
"""Pages embedded while nothing else can be answered."""
MAX_EVENTS = 50
"""Events of one reading; a browser that syncs a year of another machine's history is no news."""
DEFAULT_DAYS = 30
"""Days that `most_read` looks back when no period is given."""
IRRELEVANT = 0.1
"""Relevance below which a page is not worth showing."""
CLEARLY_BETTER = (0.0, 0.12, 0.4)
"""What each wider period's best score must have on that of the narrower ones, when they do not convince."""
FEW = 12
"""Pages to read that a stated period and site may leave for all of them to be shown, however little the words fit."""
NARROW = 0.6
"""What a wider period's best score must have on a narrower one with a single page to read; less with more."""

Bounds = tuple[float, float]
"""[start, end) in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Window:
    """A period asked for, with the wider ones to fall back on, narrowest first."""

    tiers: tuple[Bounds, ...]
    text: str


class BrowserHistory(Driver):
    """Serves the ops of `manifest.toml` from an index of its own, brought up to date before each answer."""

    def setup(self, env: DriverEnv) -> None:
        """Opens the index; the first reading happens in the background, and the first op waits for it."""
        self.env = env
        self._index = Index(env.state / "history-1.db")
        self._sources = Sources(env, self._index)
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="history-watch", daemon=True)
        self._watcher.start()

    def status(self) -> str:
        names = [source.profile.name for source in self._sources.find()]
        if not names:
            return "no browser profile found: none of the granted folders holds a history"
        return f"reading {', '.join(names)}"

    def close(self) -> None:
        self._stop.set()
        self._watcher.join()
        self._index.close()

    @op
    def search(
        self,
        call: Call,
        *,
        query: str = "",
        period: str | None = None,
        since: str | None = None,
        until: str | None = None,
        host: str | None = None,
        k: int = 10,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """Pages by topic, best first. Looks beyond the period when nothing in it convinces; `in_period` tells."""
        window, words = self._window(period, since, until), topic(query)
        with self._lock:
            self._refresh()
            words = corrected(words, lambda word: bool(self._index.match((word,))), self._index.title_words)
            hosts = self._hosts(call, host)
            call.check()
            hits = self._ranked(words, window, hosts, call) if words else self._unranked(window, hosts)
            within = {page.id: page for page in self._index.pages(*window.tiers[0], hosts)}
        found = (
            self._record(within.get(hit.page.id, hit.page))
            | {"relevance": round(hit.relevance, 3), "in_period": hit.page.id in within}
            for hit in hits
        )
        return self._answer(records.page(found, records.offset_of(cursor), k), window)

    @op
    def visits(
        self,
        call: Call,
        *,
        url: str | None = None,
        host: str | None = None,
        period: str | None = None,
        k: int = 20,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """Single visits, latest first."""
        window, offset = self._window(period), records.offset_of(cursor)
        try:
            key = page_key(url) if url else None
        except ValueError as error:
            raise OpError(Code.INVALID_ARGUMENT, f"argument url: {error}") from error
        with self._lock:
            self._refresh()
            looks = self._index.looks(*window.tiers[0], self._hosts(call, host), key, offset, k + 1)
        answer = records.page((self._look_record(look) for look in looks), 0, k)
        answer["next"] = answer["next"] and str(offset + len(answer["items"]))
        return self._answer(answer, window)

    @op
    def most_read(
        self, call: Call, *, period: str | None = None, host: str | None = None, k: int = 10, cursor: str | None = None
    ) -> dict[str, Any]:
        """Pages by the time spent on them; mailboxes, searches and front pages come after what can be read."""
        window = self._window(period or f"past {DEFAULT_DAYS} days")
        with self._lock:
            self._refresh()
            pages = self._index.pages(*window.tiers[0], self._hosts(call, host))
        pages.sort(key=lambda page: (page.article < READABLE, -page.dwell, -page.visits))
        return self._answer(records.page(map(self._record, pages), records.offset_of(cursor), k), window)

    @op
    def sources(self, call: Call) -> dict[str, Any]:  # noqa: ARG002  (every op gets its call)
        """Every profile: its state, how much it gave, what to do about it."""
        with self._lock:
            self._refresh()
            return {"items": [self._source_record(source) for source in self._sources.find()], "next": None}

    # -- ranking

    def _ranked(self, words: str, window: Window, hosts: Sequence[str] | None, call: Call) -> list[Hit]:
        """From the narrowest period that convinces; otherwise from the best one, a wider only if it is clearly better.

        The fewer pages a stated period and site leave, the more they say, and the less the words must.
        """
        ranker = Ranker(self._index, self._embed, words)
        best: list[Hit] = []
        margin = 0.0
        for bounds, better in zip(window.tiers, CLEARLY_BETTER, strict=False):
            call.check()
            hits = ranker.rank(self._index.pages(*bounds, hosts))
            readable = sum(hit.page.article >= READABLE for hit in hits)
            if not (window.text and hosts and bounds == window.tiers[0] and 0 < readable <= FEW):
                hits = [hit for hit in hits if hit.relevance >= IRRELEVANT]
            if hits and (not best or hits[0].score > best[0].score + better + margin):
                best = hits
            if best and max(hit.relevance for hit in best) >= CONVINCING:
                break
            if window.text and readable:
                margin = max(margin, NARROW / readable)
        return best

    def _unranked(self, window: Window, hosts: Sequence[str] | None) -> list[Hit]:
        for bounds in window.tiers:
            if pages := self._index.pages(*bounds, hosts):
                return by_reading(pages)
        return []

    def _embed(self, texts: Sequence[str]) -> Vectors | None:
        """None without an embedding model: words must do."""
        try:
            return self.env.embed(texts)
        except OpError as error:
            self.env.log.warning("history.no_vectors", code=str(error.code))
            return None

    # -- arguments

    def _window(self, period: str | None, since: str | None = None, until: str | None = None) -> Window:
        now = self.env.now()
        ever = when.parse("ever", now)
        said = {"period": period, "since": since, "until": until}
        spans = {name: _parse(name, text, now) for name, text in said.items() if text and text.strip()}
        whole = (ever.start.timestamp(), ever.end.timestamp())
        if not spans:
            return Window((whole,), "")
        strict, loose = [whole], [whole]
        for name, span in spans.items():
            for bounds, (start, end) in ((strict, (span.start, span.end)), (loose, span.loose)):
                first = whole[0] if name == "until" else start.timestamp()
                last = whole[1] if name == "since" else end.timestamp()
                bounds.append((max(bounds[-1][0], first), min(bounds[-1][1], last)))
        if strict[-1][0] >= strict[-1][1]:
            raise OpError(Code.INVALID_ARGUMENT, "arguments period, since, until: no time is in all of them")
        return Window((strict[-1], loose[-1], whole), " ".join(text for text in said.values() if text))

    def _hosts(self, call: Call, site: str | None) -> list[str] | None:
        """The hosts that the caller may see and asks for; None for all."""
        scope = call.scope.get("host")
        if scope is None and not site:
            return None
        hosts = list(self._index.hosts())
        if scope is not None:
            hosts = [host for host in hosts if any(within(host, bound) for bound in scope)]
        return hosts_of(site, hosts, self._index.hosts_titled) if site else hosts

    # -- answers

    def _answer(self, answer: dict[str, Any], window: Window) -> dict[str, Any]:
        if window.text:
            start, end = window.tiers[0]
            answer["period"] = {"text": window.text, "start": records.utc(start), "end": records.utc(end)}
        wrong = [f"{source.profile.name}: {source.detail}" for source in self._sources.known() if source.detail]
        if wrong:
            answer["problems"] = wrong[:10]
        return answer

    def _record(self, page: Page) -> dict[str, Any]:
        profiles = sorted(json.loads(page.profiles))
        provenance = {
            "driver": "browser_history",
            "profiles": profiles,
            "visits": page.visits,
            "first": records.utc(page.first),
            "last": records.utc(page.last),
            "dwell_s": round(page.dwell),
        }
        return self._base(page.url, page.host, page.title, page.description, page.last, profiles[0], provenance)

    def _look_record(self, look: Look) -> dict[str, Any]:
        provenance = {
            "driver": "browser_history",
            "profiles": [look.source],
            "visit": look.id,
            "dwell_s": round(look.dwell),
        }
        return self._base(look.url, look.host, look.title, look.description, look.ts, look.source, provenance)

    def _base(
        self, url: str, host: str, title: str, text: str, ts: float, source: str, provenance: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "uid": "browser_history:" + hashlib.blake2b(page_key(url).encode(), digest_size=8).hexdigest(),
            "source": source,
            "ts": records.utc(ts),
            "tz": records.zone_name(self.env.now()),
            "title": title,
            "text": text[:500],
            "url": url,
            "host": host,
            "provenance": provenance,
        }

    def _source_record(self, source: Source) -> dict[str, Any]:
        count, first, last = self._index.counts(source.profile.name)
        browser = source.profile.browser
        record = {
            "uid": f"browser_history:{source.profile.name}",
            "source": source.profile.name,
            "ts": records.utc(last) if last else None,
            "tz": records.zone_name(self.env.now()),
            "title": f"{browser.name} ({source.profile.name.partition(':')[2] or browser.name}): {source.state}",
            "text": source.detail or f"{count} visits",
            "path": str(source.profile.database),
            "state": source.state,
            "provenance": {
                "driver": "browser_history",
                "family": browser.family,
                "visits": count,
                "first": records.utc(first) if first else None,
            },
        }
        return record | ({"hint": source.hint} if source.hint else {})

    # -- keeping up

    def _refresh(self) -> list[Look]:
        return self._sources.refresh()

    def _watch(self) -> None:
        """Reads what browsers add, tells it, and embeds ahead; browsers forget, and questions should not wait."""
        while not self._stop.is_set():
            with self._lock:
                looks = self._refresh()
            try:
                self._tell(looks)
                self._warm()
            except OpError as error:
                self.env.log.info("history.watch_paused", code=str(error.code))
            self._stop.wait(WATCH_S)

    def _tell(self, looks: Sequence[Look]) -> None:
        for look in looks[-MAX_EVENTS:]:
            self.env.publish("history.visited", self._look_record(look))

    def _warm(self) -> None:
        now = self.env.now().timestamp()
        with self._lock:
            pages = by_reading(self._index.pages(now - WARM_DAYS * DAY_S, now))[:WARM_PAGES]
        for start in range(0, len(pages), WARM_BATCH):
            if self._stop.is_set():
                return
            with self._lock:
                batch = [hit.page for hit in pages[start : start + WARM_BATCH]]
                page_vectors(self._index, self.env.embed, batch, WARM_BATCH)


def _parse(name: str, text: str, now: datetime) -> when.Period:
    try:
        return when.parse(text, now)
    except ValueError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"argument {name}: {error}") from error
