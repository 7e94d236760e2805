"""The profiles of this home, read into the index whenever their databases change, and what is wrong with each."""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from llmos.drivers.browser_history.index import REREAD_DAYS, Index, Look
from llmos.drivers.browser_history.profiles import Profile, find_profiles
from llmos.drivers.browser_history.readers import read_visits
from llmos.drivers.browser_history.sites import within
from llmos.drivers.browser_history.snapshot import UnreadableError, copy_database, damaged, fingerprint, open_copy
from llmos.drivers.sdk import DriverEnv

DAY_S = 86_400
_REST = 10
"""Times its own length that a reading rests before the next: a browser at work changes its files every few seconds."""


@dataclass(slots=True)
class Source:
    """A profile and how reading it went. `detail` and `hint` are for people; `rests_until` is on the monotonic clock."""

    profile: Profile
    state: str = "new"
    detail: str = ""
    hint: str = ""
    rests_until: float = 0.0


class Sources:
    """All profiles that the grants and the settings allow."""

    def __init__(self, env: DriverEnv, index: Index) -> None:
        self._env = env
        self._index = index
        self._wanted = frozenset(env.settings.get("profiles", ()))
        self._excluded = tuple(env.settings.get("exclude_hosts", ()))
        self._keep_days = int(env.settings.get("keep_days", 730))
        self._known: dict[str, Source] = {}
        index.forget(self.excludes, lambda name: not self._wanted or name in self._wanted)

    def find(self) -> list[Source]:
        """The profiles there are now, with what is known about each."""
        profiles = find_profiles(self._env.home, self._env.roots)
        wanted = [profile for profile in profiles if not self._wanted or profile.name in self._wanted]
        self._known = {profile.name: self._known.get(profile.name) or Source(profile) for profile in wanted}
        return self.known()

    def known(self) -> list[Source]:
        """What `find` found last."""
        return list(self._known.values())

    def excludes(self, host: str) -> bool:
        """Did the user rule this site out?"""
        return any(within(host, bound) or host == bound.removeprefix("*.") for bound in self._excluded)

    def refresh(self) -> list[Look]:
        """Reads every profile that changed. Returns the visits that came since it was read last, oldest first."""
        self._index.expire(self._env.now().timestamp() - self._keep_days * DAY_S)
        return [look for source in self.find() for look in self._refresh(source)]

    def _refresh(self, source: Source) -> list[Look]:
        started = time.monotonic()
        if started < source.rests_until:
            return []
        try:
            seen = json.dumps(fingerprint(source.profile.database))
            before = self._index.seen(source.profile.name)
            if seen == before:
                source.state, source.detail, source.hint = "ok", "", ""
                return []
            new = self._read(source.profile, seen, first=not before)
        except UnreadableError as error:
            self._env.log.warning("history.unreadable", source=source.profile.name, state=error.state)
            source.state, source.detail, source.hint = error.state, error.detail, error.hint
            new = []
        except (OSError, sqlite3.OperationalError) as error:  # of the copy or of our own index: a full disk, mostly
            self._env.log.warning("history.failed", source=source.profile.name, error=str(error))
            source.state, source.hint = "failed", "see that there is room on the disk"
            source.detail = f"{source.profile.database.name} could not be taken over: {error}"
            new = []
        else:
            source.state, source.detail, source.hint = "ok", "", ""
        source.rests_until = time.monotonic() + _REST * (time.monotonic() - started)
        return new

    def _read(self, profile: Profile, seen: str, *, first: bool) -> list[Look]:
        now = self._env.now().timestamp()
        since = 0.0 if first else now - REREAD_DAYS * DAY_S
        with tempfile.TemporaryDirectory(dir=self._env.state, prefix="copy-") as folder:
            copy = copy_database(profile.database, Path(folder))
            try:
                with closing(open_copy(copy)) as database:
                    visits = read_visits(database, profile.browser.family, since)
            except sqlite3.DatabaseError as error:
                raise damaged(profile.database.name, error) from error
        visits = [visit for visit in visits if visit.ts < now + DAY_S]  # a clock was wrong once
        new = self._index.ingest(profile.name, visits, since, seen, self.excludes)
        self._env.log.info("history.read", source=profile.name, visits=len(visits), new=len(new))
        return [] if first else self._index.new_looks(profile.name, new)
