"""The filesystem driver: folders listed, files found by name and content, text read a page at a time."""

from __future__ import annotations

import errno
import hashlib
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from llmos.drivers import records
from llmos.drivers.filesystem.areas import Area, areas_of, directory_in, file_in, locate, shown
from llmos.drivers.filesystem.kinds import READABLE, UnsupportedError, kind_of, read_text
from llmos.drivers.filesystem.walk import Entry, Walk, entries_of, entry_at, search
from llmos.drivers.sdk import Call, Code, Driver, DriverEnv, OpError, op
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

    def status(self) -> str:
        roots = ", ".join(str(root) for root in self.env.roots)
        return (
            f"reading {roots}"
            if roots
            else "no folder granted: llmosctl perm grant filesystem 'fs.read(path=~/Documents)'"
        )

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

    # -- arguments

    def _areas(self, call: Call) -> Sequence[Area]:
        return areas_of(self.env.roots, call.scope, self.env.home)

    def _locate(self, call: Call, path: str) -> tuple[Area, str]:
        return locate(path, self._areas(call), self.env.home)

    @contextmanager
    def _opening(self, path: str, area: Area, within: str, open_: Opener) -> Iterator[int]:
        """The descriptor that `open_` gives, with the system's errors in this driver's words."""
        try:
            with open_(area, within) as descriptor:
                yield descriptor
        except OSError as error:
            raise _refusal(path, error) from error

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


def _refusal(path: str, error: OSError) -> OpError:
    match error.errno:
        case errno.ENOENT:
            return OpError(
                Code.NOT_FOUND, f"argument path: {path} does not exist", "filesystem.search finds files by name"
            )
        case errno.EXDEV:
            return OpError(
                Code.DENIED, f"argument path: {path} leads out of what may be read", "grant the place it leads to"
            )
        case errno.ELOOP:
            return OpError(Code.DENIED, f"argument path: {path} is a symbolic link that is not followed")
        case errno.EACCES | errno.EPERM:
            return OpError(Code.DENIED, f"argument path: {path}: the file's own permissions forbid it")
        case errno.ENOTDIR:
            return OpError(
                Code.INVALID_ARGUMENT, f"argument path: {path} is not a folder", "filesystem.read reads a file"
            )
        case errno.EINVAL | errno.EISDIR | errno.ENXIO:
            return OpError(Code.INVALID_ARGUMENT, f"argument path: {path} is not a regular file")
        case errno.ENAMETOOLONG:
            return OpError(Code.INVALID_ARGUMENT, f"argument path: {path[:80]}… is longer than the system allows")
    return OpError(Code.UNAVAILABLE, f"argument path: {path}: {error.strerror}")
