"""Words compared the way people do: whatever their ending, and whether spelled out or by their first letters."""

from __future__ import annotations

import re

_ENDINGS = ("ies", "ing", "ed", "es", "s")


def stems(text: str) -> list[str]:
    """Lower-case words without their commonest English endings, in order."""
    return [_stem(word) for word in re.findall(r"[^\W_]+", text.lower())]


def mentions(text: str, word: str) -> bool:
    """Does the text hold the word in any of its forms, or as an acronym the words it stands for?"""
    if set(stems(word)) <= set(stems(text)):
        return True
    if not re.fullmatch(r"[A-Za-z]{2,6}s?", word):
        return False
    initials = "".join(part[0] for part in re.findall(r"[^\W_]+", text.lower()))
    return len(word) > 2 and word.lower().removesuffix("s") in initials and sum(map(str.isupper, word)) > 1


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)] + ("y" if ending == "ies" else "")
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word
