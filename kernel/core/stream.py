"""From a job's tokens to the text that may be shown: no half characters, no part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Text that grows by the bytes of tokens and ends at the first stop string.

    A character whose bytes have not all come is held back, and so is the longest tail that could still become a stop
    string. A stop string itself is never part of the text.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._ready: list[str] = []
        self.stopped = False

    def push(self, piece: bytes) -> None:
        """Add one token's bytes; nothing counts once a stop string has been found."""
        self._add(self._decoder.decode(piece))

    def finish(self) -> None:
        """No more tokens come: what was held back becomes text, an incomplete character U+FFFD."""
        self._add(self._decoder.decode(b"", final=True))
        if not self.stopped:
            self._ready.append(self._held)
            self._held = ""

    def take(self) -> str:
        """The text that has become final since the last call."""
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def _add(self, text: str) -> None:
        if self.stopped or not text:
            return
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._ready.append(text[: min(found)])
            self._held = ""
            return
        keep = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._ready.append(text[:keep])
        self._held = text[keep:]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that are a beginning of `stop`, but not all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
