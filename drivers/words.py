"""Words of questions that carry no topic, for every driver that searches."""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
FUNCTION = frozenset(
    "a about again all am an and any are as at be been being but by can could did do does doing don't for from get got had has "
    "have he her here hers him his how i i'd i'm i've if in into is it it's its just like me might mine more most my no not of "
    "off on one ones or other our out over please really she should so some such than that that's the their them then there "
    "these they this those to too up us very was we were what what's when where which while who whom whose why will with "
    "would you your".split()
)


def content_words(text: str, most: int) -> list[str]:
    """The words that carry a topic, as they are spelled; all words when none does. At most `most`."""
    words = [match[0] for match in WORD.finditer(text)]
    return ([word for word in words if word.lower() not in FUNCTION] or words)[:most]
