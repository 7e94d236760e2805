"""A bounded walk through areas, and the search over what it finds."""

from __future__ import annotations

import os
import re
import stat
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from llmos.drivers.filesystem.areas import Area, directory_in, file_in, shown
from llmos.drivers.filesystem.beneath import open_directory, opened
from llmos.drivers.filesystem.kinds import READABLE, UnsupportedError, kind_of, read_text

MAX_ENTRIES = 100_000
"""Files and folders that one walk looks at."""
MAX_DEPTH = 32
WALK_S, READ_S = 6.0, 8.0
"""Seconds for finding names, and for reading content after that."""
MAX_SEARCHED = 2 * 1024 * 1024
"""Characters of one file that are searched."""
SKIPPED = frozenset(
    "node_modules __pycache__ venv site-packages target dist build vendor bower_components cache caches Library AppData".split()
)
"""Folders that hold what programs made, besides all hidden ones."""
_NAME, _TEXT, _FOLDER = 1.0, 0.6, 0.4
"""Weight of a word in a file's name, in its text, and in the names of its folders."""
_EXCERPT = 160


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder: where it is, and what lstat(2) says. `within` is the path inside the area, as the disk spells it."""

    area: Area
    within: str
    mode: int
    size: int
    mtime: float

    @property
    def name(self) -> str:
        return shown(PurePosixPath(self.within).name or self.area.path.name)

    @property
    def path(self) -> str:
        return shown(str(self.area.path / self.within))


@dataclass(slots=True)
class Found:
    """What a search gave. `missed` says what it did not look at, and why."""

    hits: list[tuple[float, Entry, str]] = field(default_factory=list)
    """(score, file, excerpt), best first."""
    missed: list[str] = field(default_factory=list)


class Walk:
    """Walks files of areas breadth first, following no links; what cannot be opened is left out."""

    def __init__(self, areas: Iterable[Area], *, hidden: bool, check: Callable[[], None]) -> None:
        self._folders = deque((area, "", 0) for area in areas)
        self._hidden = hidden
        self._check = check
        self.missed: list[str] = []

    def __iter__(self) -> Iterator[Entry]:
        seen, end = 0, time.monotonic() + WALK_S
        while self._folders:
            area, folder, depth = self._folders.popleft()
            self._check()
            if seen >= MAX_ENTRIES or time.monotonic() > end:
                self.missed.append(
                    f"stopped after {seen} entries; {len(self._folders) + 1} folders were not looked into"
                )
                return
            for entry in entries_of(area, folder):
                seen += 1
                if stat.S_ISDIR(entry.mode):
                    if self._enters(entry.name) and depth < MAX_DEPTH:
                        self._folders.append((area, entry.within, depth + 1))
                elif stat.S_ISREG(entry.mode) and (self._hidden or not entry.name.startswith(".")):
                    yield entry

    def _enters(self, name: str) -> bool:
        return self._hidden or not (name.startswith(".") or name in SKIPPED)


def entries_of(area: Area, folder: str) -> list[Entry]:
    """What is in a folder, in no order; nothing when it cannot be opened. An area that is one file is its own entry."""
    found = []
    try:
        with (
            area.base() as base,
            opened(open_directory(base, folder, follow=False)) as descriptor,
            os.scandir(descriptor) as entries,
        ):
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # gone meanwhile
                within = f"{folder}/{entry.name}" if folder else entry.name
                found.append(Entry(area, within, status.st_mode, status.st_size, status.st_mtime))
    except NotADirectoryError:
        return [the_file] if (the_file := entry_at(area, "")) else []
    except OSError:
        return found
    return found


def entry_at(area: Area, within: str) -> Entry | None:
    """The file or folder at a path; None when there is none that could be opened."""
    for open_ in (file_in, directory_in):
        try:
            with open_(area, within) as descriptor:
                status = os.fstat(descriptor)
        except OSError:
            continue
        return Entry(area, within, status.st_mode, status.st_size, status.st_mtime)
    return None


def search(
    walk: Walk,
    words: Sequence[str],
    accepts: Callable[[Entry], bool],
    check: Callable[[], None],
) -> Found:
    """Files whose name or text holds the words, most of them first; the newest first where there are no words."""
    entries = sorted(filter(accepts, walk), key=lambda entry: -entry.mtime)
    found = Found(missed=walk.missed)
    if not words:
        found.hits = [(0.0, entry, "") for entry in entries]
        return found
    patterns = [_pattern(word) for word in words]
    end = time.monotonic() + READ_S
    unread = 0
    for entry in entries:
        check()
        text = _content(entry) if time.monotonic() < end else ""
        unread += not text and time.monotonic() >= end and kind_of(entry.name) in READABLE
        places = ((_spaced(entry.name), _NAME), (text, _TEXT), (_spaced(entry.within), _FOLDER))
        weights = [next((weight for place, weight in places if pattern.search(place)), 0.0) for pattern in patterns]
        if any(weights):
            found.hits.append(((sum(weights) / len(weights)) ** 2, entry, _excerpt(text, patterns)))
    found.hits.sort(key=lambda hit: (-round(hit[0], 2), -hit[1].mtime))
    if unread:
        found.missed.append(f"the text of {unread} older files was not searched for lack of time")
    return found


def _content(entry: Entry) -> str:
    """The beginning of a file's text, letters and accents apart; empty for a file without any."""
    try:
        with file_in(entry.area, entry.within) as descriptor:
            pieces, size = [], 0
            for piece in read_text(descriptor, entry.name):
                pieces.append(piece)
                size += len(piece)
                if size >= MAX_SEARCHED:
                    break
    except (UnsupportedError, OSError):
        return ""
    return unicodedata.normalize("NFD", "".join(pieces))


def _pattern(word: str) -> re.Pattern[str]:
    """The word at the beginning of a word, without regard to case and accents; a short one as a whole word."""
    letters = [letter for letter in unicodedata.normalize("NFD", word) if not unicodedata.combining(letter)]
    if len(letters) > 4 and letters[-1].lower() == "s" and letters[-2].lower() != "s":
        letters.pop()
    spelled = "".join(re.escape(letter) + r"[\u0300-\u036f]*" for letter in letters)
    return re.compile(rf"(?<![^\W_]){spelled}" + (r"s?(?![^\W_])" if len(letters) < 4 else ""), re.IGNORECASE)


def _spaced(name: str) -> str:
    """A name with its words apart: `waterBill_2026-03` is `water Bill 2026 03`."""
    plain = unicodedata.normalize("NFD", name)
    return re.sub(r"[_.\-/]+|(?<=[a-z])(?=[A-Z])", " ", plain)


def _excerpt(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    """What stands around the first word found; the beginning of the text when only the name matched."""
    starts = [match.start() for pattern in patterns if (match := pattern.search(text))]
    middle = min(starts, default=0)
    start = max(0, middle - _EXCERPT // 3)
    piece = " ".join(text[start : start + _EXCERPT].split())
    return unicodedata.normalize("NFC", ("…" if start else "") + piece + ("…" if start + _EXCERPT < len(text) else ""))
