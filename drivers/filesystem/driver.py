"""The filesystem driver: folders listed, files found by name and content, text read a page at a time."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llmos.drivers import records
from llmos.drivers.filesystem import tree
from llmos.drivers.filesystem.areas import Area, areas_of, directory_in, file_in, locate, parent_in, refusal, shown
from llmos.drivers.filesystem.atomic import MAX_FILE, Content, content_of
from llmos.drivers.filesystem.backups import Backups
from llmos.drivers.filesystem.changes import Changes
from llmos.drivers.filesystem.diffs import describe_trash, describe_write, is_text
from llmos.drivers.filesystem.kinds import READABLE, UnsupportedError, kind_of, read_text
from llmos.drivers.filesystem.walk import Entry, Walk, entries_of, entry_at, search
from llmos.drivers.sdk import Call, Code, Driver, DriverEnv, OpError, op, previews
from llmos.drivers.words import content_words
from llmos.ipc import when

MAX_WORDS = 12
"""Words of a query that are looked for."""
MAX_PAGE = 40 * 1024
"""Bytes of text in one answer of `read`."""
Opener = Callable[[Area, str], AbstractContextManager[int]]
_ASKED = frozenset("file files document documents folder folders pc computer disk".split())
"""What a question calls what it is after; dropped while another word is left."""


class Filesystem(Driver):
    """Serves the ops of `manifest.toml`, below the granted roots and inside the caller's scope only."""

    def setup(self, env: DriverEnv) -> None:
        self.env = env
        self._backups: Backups | None = None
        try:
            keep_bytes = int(env.settings.get("undo_mb", 1024)) * 1024 * 1024
            keep_s = float(env.settings.get("undo_days", 30)) * 86400
            self._backups = Backups(env.state / "undo", keep_bytes, keep_s)
        except (OSError, sqlite3.Error) as error:  # reading goes on
            env.log.error("undo.broken", err=f"{type(error).__name__}: {error}")
            return
        self._changes = Changes(self._backups, env.writable)
        self._changes.recover()

    def status(self) -> str:
        if not self.env.roots:
            return "no folder granted: llmosctl perm grant filesystem 'fs.read(path=~/Documents)'"
        status = f"reading {_listed(self.env.roots)}"
        if self.env.writable:
            status += f"; changing {_listed(self.env.writable)}" if self._backups else "; changing nothing: see the log"
        return status

    def close(self) -> None:
        if self._backups:
            self._backups.close()

    @op
    def search(
        self,
        call: Call,
        *,
        query: str = "",
        path: str = "",
        modified: str | None = None,
        types: Sequence[str] = (),
        glob: str = "",
        k: int = 10,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """Files by words in name, text and folders; without words the newest. `truncated` says what was not looked at."""
        areas = self._areas(call)
        if path:
            area, within = self._locate(call, path)
            areas = [Area(area.root, f"{area.within}/{within}".strip("/"))] if within else [area]
        words = content_words(query, MAX_WORDS)
        words = [word for word in words if word.lower() not in _ASKED] or words
        period = _parse(modified, self.env.now()) if modified else None
        walk = Walk(areas, hidden=bool(self.env.settings.get("include_hidden")), check=call.check)
        found = search(walk, words, _filter(period.loose if period else None, types, glob), call.check)
        if period and any(_changed_in(entry, period.start, period.end) for _, entry, _ in found.hits):
            found.hits = [hit for hit in found.hits if _changed_in(hit[1], period.start, period.end)]
        hits = (self._record(entry, text) | {"relevance": round(score, 3)} for score, entry, text in found.hits)
        answer = records.page(hits, records.offset_of(cursor), k)
        return answer | {"truncated": bool(found.missed)} | ({"problems": found.missed} if found.missed else {})

    @op
    def list(self, call: Call, *, path: str = "", k: int = 50, cursor: str | None = None) -> dict[str, Any]:
        """What is in a folder, folders first; the readable places themselves without one."""
        if not path:
            entries: Iterable[Entry] = filter(None, (entry_at(area, "") for area in self._areas(call)))
        else:
            area, within = self._locate(call, path)
            with self._opening(path, area, within, directory_in):
                found = entries_of(area, within)
            entries = sorted(found, key=lambda entry: (not stat.S_ISDIR(entry.mode), entry.name.casefold(), entry.name))
        return records.page((self._record(entry) for entry in entries), records.offset_of(cursor), k)

    @op
    def read(self, call: Call, *, path: str, offset: int = 0, limit: int = 12_000) -> dict[str, Any]:
        """Up to `limit` characters of a file's text from character `offset` on; `next` is where to go on, None at the end."""
        area, within = self._locate(call, path)
        with self._opening(path, area, within, file_in) as descriptor:
            entry = entry_at(area, within)
            try:
                text, more = _slice(read_text(descriptor, path), offset, limit, call.check)
            except UnsupportedError as error:
                raise OpError(
                    Code.INVALID_ARGUMENT, f"argument path: {path}: {error}", "stat tells what kind of file it is"
                ) from error
        if entry is None:
            raise OpError(Code.NOT_FOUND, f"argument path: {path} is gone")
        return {"items": [self._record(entry, text)], "next": offset + len(text) if more else None, "offset": offset}

    @op
    def stat(self, call: Call, *, path: str) -> dict[str, Any]:
        """One file or folder, without its text."""
        area, within = self._locate(call, path)
        entry = entry_at(area, within)
        if entry is None:
            with self._opening(path, area, within, file_in):
                raise OpError(Code.NOT_FOUND, f"argument path: {path} is gone")
        return {"items": [self._record(entry)], "next": None}

    @op
    def write(self, call: Call, *, path: str, content: str, mode: str = "replace") -> dict[str, Any]:
        """A text file's content, replaced in one step or added to; `created` says that there was none."""
        area, within = self._writable(call, path)
        seen: list[Content | None] = []

        def make(old: Content | None) -> bytes:
            seen.append(old)
            return _new_content(path, old, content, mode)

        with self._refusing(path):
            token = self._changing().write(call, area, within, make)
        entry = entry_at(area, within)
        return {"items": [self._record(entry)] if entry else [], "created": seen == [None], "undo": token}

    @previews("write")
    def _preview_write(self, call: Call, *, path: str, content: str, mode: str = "replace") -> str:
        area, within = self._writable(call, path)
        with self._refusing(path), parent_in(area, within) as (folder, name):
            old = content_of(folder, name)
        return describe_write(shown(str(area.path / within)), old, _new_content(path, old, content, mode))

    @op
    def move_to_trash(self, call: Call, *, path: str) -> dict[str, Any]:
        """A file or folder, gone from its place and kept for the undo."""
        area, within = self._writable(call, path)
        with self._refusing(path):
            token, entries = self._changing().trash(call, area, within)
        return {"path": shown(str(area.path / within)), "entries": entries, "undo": token}

    @previews("move_to_trash")
    def _preview_trash(self, call: Call, *, path: str) -> str:
        area, within = self._writable(call, path)
        with self._refusing(path), parent_in(area, within) as (folder, name):
            return describe_trash(shown(str(area.path / within)), tree.measure(folder, name, call.check))

    @op
    def undo(self, call: Call, *, token: str) -> dict[str, Any]:
        """Brings back what was there before the change with this token."""
        with self._refusing("of the change"):
            effect = self._changing().undo(call, token)
        return {"path": shown(effect.path), "undone": effect.op}

    # -- arguments

    def _areas(self, call: Call) -> Sequence[Area]:
        return areas_of(self.env.roots, call.scope, self.env.home)

    def _locate(self, call: Call, path: str) -> tuple[Area, str]:
        return locate(path, self._areas(call), self.env.home)

    def _writable(self, call: Call, path: str) -> tuple[Area, str]:
        if path.rstrip("/").endswith(
            ("/*", "/**")
        ):  # the folder itself, in a capability; not what a person would mean here
            raise OpError(Code.INVALID_ARGUMENT, f"argument path: {path} is a pattern", "name one file or folder")
        return locate(path, areas_of(self.env.writable, call.scope, self.env.home), self.env.home, "write")

    def _changing(self) -> Changes:
        if self._backups is None:
            raise OpError(
                Code.UNAVAILABLE, "nothing can be changed: what is kept for the undo cannot be opened", "see the log"
            )
        return self._changes

    @contextmanager
    def _refusing(self, path: str) -> Iterator[None]:
        """The errors of the system and of the store, in this driver's words."""
        try:
            yield
        except OSError as error:
            raise refusal(path, error) from error
        except sqlite3.Error as error:
            raise OpError(
                Code.UNAVAILABLE, f"what is kept for the undo cannot be written: {error}", "make room"
            ) from error

    @contextmanager
    def _opening(self, path: str, area: Area, within: str, open_: Opener) -> Iterator[int]:
        """The descriptor that `open_` gives, with the system's errors in this driver's words."""
        try:
            with open_(area, within) as descriptor:
                yield descriptor
        except OSError as error:
            raise refusal(path, error) from error

    # -- answers

    def _record(self, entry: Entry, text: str = "") -> dict[str, Any]:
        kind = kind_of(entry.name)
        if stat.S_ISDIR(entry.mode):
            shape: dict[str, Any] = {"kind": "folder"}
        elif not stat.S_ISREG(entry.mode):
            shape = {"kind": "link" if stat.S_ISLNK(entry.mode) else "special"}
        elif kind in READABLE or kind == "other":
            shape = {"kind": kind, "size": entry.size}
        else:
            shape = {"kind": "unsupported", "format": kind, "size": entry.size}
            text = text or f"({kind}: found by its name; its text cannot be read yet)"
        return {
            "uid": "filesystem:" + hashlib.blake2b(entry.path.encode(), digest_size=8).hexdigest(),
            "source": "filesystem",
            "ts": records.utc(entry.mtime),
            "tz": records.zone_name(self.env.now()),
            "title": entry.name,
            "text": text,
            "path": entry.path,
            **shape,
            "provenance": {"driver": "filesystem", "root": str(entry.area.root)},
        }


def _listed(roots: Iterable[Path]) -> str:
    return ", ".join(dict.fromkeys(map(str, roots)))


def _new_content(path: str, old: Content | None, text: str, mode: str) -> bytes:
    """What a write makes of a file. Raises `OpError` where it may not."""
    try:
        new = text.encode()
    except UnicodeEncodeError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"argument content: {error.reason}") from error
    if b"\0" in new:
        raise OpError(Code.INVALID_ARGUMENT, "argument content: holds a NUL character; only text can be written")
    if old is None or mode == "replace":
        return new
    if mode == "create":
        raise OpError(
            Code.CONFLICT, f"argument path: {path} exists already", "mode replace overwrites it, mode append adds to it"
        )
    if not is_text(old.data):
        raise OpError(Code.INVALID_ARGUMENT, f"argument path: {path} is not UTF-8 text; nothing can be added to it")
    if len(old.data) + len(new) > MAX_FILE:
        raise OpError(Code.TOO_LARGE, f"argument path: {path} would grow beyond {MAX_FILE:,} bytes")
    return old.data + new


def _filter(modified: tuple[datetime, datetime] | None, types: Sequence[str], glob: str) -> Callable[[Entry], bool]:
    """Does a file have one of the endings or kinds, a matching name, and a fitting time of change?"""
    wanted = {ending.lower().removeprefix(".") for ending in types}

    def accepts(entry: Entry) -> bool:
        if modified and not _changed_in(entry, *modified):
            return False
        if glob and not fnmatchcase(shown(entry.within) if "/" in glob else entry.name, glob):
            return False
        return not wanted or kind_of(entry.name) in wanted or entry.name.rpartition(".")[2].lower() in wanted

    return accepts


def _changed_in(entry: Entry, start: datetime, end: datetime) -> bool:
    return start.timestamp() <= entry.mtime < end.timestamp()


def _slice(pieces: Iterator[str], offset: int, limit: int, check: Callable[[], None]) -> tuple[str, bool]:
    """Up to `limit` characters and `MAX_PAGE` bytes from `offset` on, and whether there is more."""
    taken, at = "", 0
    for piece in pieces:
        check()
        taken += piece[max(0, offset - at) :]
        at += len(piece)
        if len(taken) > limit:
            break
    page = taken[:limit]
    while len(page.encode()) > MAX_PAGE:
        page = page[: len(page) * 3 // 4]
    return page, len(taken) > len(page)


def _parse(phrase: str, now: datetime) -> when.Period:
    try:
        return when.parse(phrase, now)
    except ValueError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"argument modified: {error}") from error
