"""A stranger's words, shown so that what one sees is all there is.

Terminals obey control characters, bidirectional marks turn a line around, and what has no width hides. All of these are written out as
`\\x1b` or `\\u202e`; letters of every script stay as they are.
"""

from __future__ import annotations

import json
import re
import unicodedata

_HIDDEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"  # of no width, or blank
)
_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def visible(text: str) -> str:
    """One line; unseen characters and line ends are written out, a space that is not the plain one too."""
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def lines(text: str) -> str:
    """The same, with line ends and tabs as they are."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))


def exact(value: object) -> str:
    """A value as JSON on one line that holds no unseen character, so that different values look different."""
    text = json.dumps(value, ensure_ascii=False, default=_unknown)
    return "".join(char if _seen(char) else json.dumps(char)[1:-1] if char != "\x7f" else "\\u007f" for char in text)


def cut(text: str, characters: int) -> str:
    """At most so many; what is missing is told by an ellipsis."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _seen(char: str) -> bool:
    category = unicodedata.category(char)
    return category not in _CATEGORIES and (category != "Zs" or char == " ") and not _HIDDEN.match(char)


def _shown(char: str) -> str:
    return char if _seen(char) else char.encode("unicode_escape").decode()


def _unknown(value: object) -> str:
    return f"bytes {value.hex()}" if isinstance(value, bytes) else repr(value)
