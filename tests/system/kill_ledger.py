"""What the system acknowledged, and what it only may have done, against what it says it has.

A request that was answered has happened, or has not; one whose answer got lost may have. Whatever is found then has to stay.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path


class Kept:
    """Things by key that were put there and taken away.

    Args:
        what: the word for one, in a complaint.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._there: set[str] = set()
        self._unsure: set[str] = set()

    def trying(self, key: str) -> None:
        """A request that adds or removes it is under way."""
        with self._lock:
            self._unsure.add(key)

    def added(self, key: str) -> None:
        with self._lock:
            self._unsure.discard(key)
            self._there.add(key)

    def removed(self, key: str) -> None:
        with self._lock:
            self._unsure.discard(key)
            self._there.discard(key)

    @property
    def there(self) -> list[str]:
        """Those that were acknowledged, and that nobody is about to take away."""
        with self._lock:
            return sorted(self._there - self._unsure)

    def compare(self, found: Iterable[str]) -> list[str]:
        """What is wrong with what is there; whatever was unsure is sure from now on."""
        with self._lock:
            seen = set(found)
            missing = sorted(self._there - self._unsure - seen)
            strange = sorted(seen - self._there - self._unsure)
            self._there, self._unsure = seen, set()
        wrong = [f"lost: {self._what} {key}" for key in missing]
        return wrong + [f"lost: {self._what} {key} is there again, or never was asked for" for key in strange]


class Counted:
    """Events by their content: acknowledged ones are there once, the others at most once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._acknowledged: set[int] = set()
        self._sent = 0

    def next(self) -> int:
        with self._lock:
            self._sent += 1
            return self._sent

    def acknowledged(self, number: int) -> None:
        with self._lock:
            self._acknowledged.add(number)

    @property
    def sure(self) -> set[int]:
        with self._lock:
            return set(self._acknowledged)

    def compare(self, found: list[int]) -> list[str]:
        """What is wrong with a replay of everything."""
        seen = Counter(found)
        wrong = [f"lost: event {number}" for number in sorted(self.sure - seen.keys())]
        wrong += [f"lost: event {number} is stored twice" for number, times in seen.items() if times > 1]
        return wrong + [f"lost: event {number} was never sent" for number in sorted(seen) if number > self._sent]


class Files:
    """Files of one folder: each is whole or is not there, and which of the two as was acknowledged."""

    def __init__(self, folder: Path, content: Callable[[str], str]) -> None:
        self._folder = folder
        self._content = content
        self.kept = Kept("file")

    def compare(self) -> list[str]:
        """What is wrong with the folder."""
        wrong, names = [], []
        for path in sorted(self._folder.iterdir()):
            if not path.name.startswith("f"):
                wrong.append(f"leak: {path.name} in the user's folder")
            elif path.read_text() != self._content(path.name):
                wrong.append(f"lost: {path.name} is not whole")
            else:
                names.append(path.name)
        return wrong + self.kept.compare(names)
