"""What a plain question says, taken apart by rules: the time, the place, the thing, and how many.

An English question names the thing after *about*, *on*, *called* or between quotes, the place after *on*, *from*, *at*, and
the time in phrases that `llmos.ipc.when` finds. "on" may do either, so a question has several readings, likeliest first;
trying one tells.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest

from llmos.ipc import when
from llmos.ipc.when import Period
from llmos.userland.assistant.words import stems

MAX_PLACE_WORDS = 4
"""A longer phrase names no site."""

PLACES = ("on", "from")
"""Kinds of phrases that may name a place."""
SHARED = 2
"""A word that this many utterances share is about the ops, not about what they are asked for."""

_QUOTED = re.compile(
    r"[\"“„]([^\"“”„]{2,200})[\"”“]|(?<!\w)['‘]([^'‘’]{2,200})['’](?!\w)"
    r"|\b(?:had|has|with|containing|contains)\s+((?:\S+\s+){1,12}?)in\s+(?:its|the)\s+(?:title|name|headline)\b",
    re.IGNORECASE,
)
_DOMAIN = re.compile(r"(?<![\w@/.-])(?:https?://)?((?:[a-z0-9-]+\.)+[a-z]{2,24})(?![\w@-])(?:/\S*)?", re.IGNORECASE)
_CUE = re.compile(
    r"(?P<title>(?i:\b(?:called|titled|named|entitled)(?:\s+something like)?(?=\s)))"
    r"|(?P<topic>(?i:\b(?:about|regarding|concerning|deal(?:ing|s|t) with)(?=\s)|\bre:))"
    r"|(?P<on>(?i:\bon(?=\s)))|(?P<from>(?i:\b(?:from|at|via)(?=\s))|\bin(?=\s+(?:the\s+)?(?!I\b)[A-Z]))"
)
_TURN = re.compile(r"[,;:?!()\"“”\0]|\.(?=\s|$)")
# where a phrase ends: punctuation or something understood already, a new clause, an afterthought
_END = re.compile(
    rf"{_TURN.pattern}|\bor so\b|\b(?:i|we|you|it|they|he|she)\b|\b(?:that|which|who)(?=\s+(?:i|we|you|was|were|is|had)\b)"
    r"|\b(?:was|were|can|could|please|pls|again|thanks)\b|\b(?:did|do|have|had)(?=\s+(?:i|we|you)\b)",
    re.IGNORECASE,
)
_ASKING = re.compile(r"(?:what|why|how|whether|where|who)\b", re.IGNORECASE)
_AFTER_VERB = re.compile(
    r"\b(?:read|reading|saw|seen|see|visit(?:ed)?|open(?:ed)?|look(?:ed|ing)?|brows(?:ed|ing)|watched)\s*$", re.I
)
_NOUN_PHRASE = re.compile(r"(?<!\w)(?:(?!\b(?:the|that|this|a|an|of|any|some|my)\b)[\w'’.-]+\s+){1,6}$", re.IGNORECASE)
_NAME = re.compile(r"(?:the\s+)?[A-Z]")
_NAME_BEFORE = re.compile(r"\b(?:the|that|this|a|an)\s+((?:[A-Z][\w'’]*\s+){1,3})[a-z]+\s*$")
_PATH = re.compile(r"(?<![\w/~])(?:~?/[^\s\0?!,;]+|[\w-]+(?:/[\w.-]+)+|[\w-]+\.[A-Za-z][A-Za-z0-9]{0,4}(?![\w.]))")
_FOLDER = re.compile(
    r"\b(?:my|the|our)\s+([\w-]+)\s+(?:folder|directory)\b|\b(?:folder|directory)\s+(?:called\s+)?([\w-]+)",
    re.IGNORECASE,
)
_NUMBERS = {word: n for n, word in enumerate("one two three four five six seven eight nine ten".split(), 1)}
_COUNT = re.compile(rf"\b(?:top|first|last|latest|newest|up to)\s+(\d{{1,3}}|{'|'.join(_NUMBERS)})\b", re.IGNORECASE)

FILE_ENDINGS = frozenset(
    "txt md csv tsv pdf doc docx odt rtf xls xlsx ods ppt pptx odp png jpg jpeg gif svg mp3 mp4 zip gz tar py js json toml "
    "yaml yml xml html htm log ini conf db eml ics".split()
)
"""What ends a file's name rather than a site's."""
FUNCTION_WORDS = frozenset(
    "a an the this that these those some any all my your our his her its their i you we he she it they me him us them who "
    "whom whose which what where when why how is are was were be been being am do does did done have has had having can "
    "could may might will would shall should must not no nor and or but if then than so as of in on at by to from for with "
    "about into over out up down off again there here just only also too very please pls plz hey hi hello ok okay thanks "
    "thank one ones thing things something anything stuff kind sort s t m re ve ll d whats wheres im dont didnt "
    "find show give tell get open look looking looked search searching remember recall know knew want wanted need think "
    "thought guess believe see saw seen come came across bring help send called titled named like new good".split()
)
"""Words that carry no topic in a request, whatever it asks for."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to understand a question: the words to look for and the place to look in; either may be empty."""

    query: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, taken apart."""

    text: str
    readings: tuple[Reading, ...]
    """Likeliest first; never empty."""
    period: Period | None = None
    paths: tuple[str, ...] = ()
    count: int | None = None
    announced: str = ""
    """How what it is about is introduced: `title` in quotes or after *called*, `topic` after *about*, `on` after that, or not."""
    bare: str = ""
    """The question with *something* for what it is about, without time and place: what is left says what to do."""


def op_words(utterances: Iterable[str], now: datetime) -> frozenset[str]:
    """Stems that say what to do: words outside the topic of the utterances that have one, and words that several share."""
    outside: set[str] = set()
    shared: Counter[str] = Counter()
    for utterance in utterances:
        shared.update(set(stems(utterance)))
        question = read(utterance, now)
        if question.announced:
            outside.update(stems(question.bare))
    return frozenset(outside | {stem for stem, count in shared.items() if count >= SHARED})


@dataclass(frozen=True, slots=True)
class _Part:
    """A phrase and the word that announces it, as offsets."""

    kind: str
    cue: int
    start: int
    end: int


def read(text: str, now: datetime, op_words: Collection[str] = ()) -> Question:
    """Take a question apart. `now` is aware; `op_words` are stems that say what to do rather than what about."""
    period, left = _take_period(text, now)
    counted = _COUNT.search(left)
    if counted:
        left = _blank(left, *counted.span())
    sure = next(
        (found for found in _DOMAIN.finditer(left) if found[1].rpartition(".")[2].lower() not in FILE_ENDINGS), None
    )
    if sure:
        left = _blank(left, *sure.span())
    paths = [found[0] for found in _PATH.finditer(left)] + [found[1] or found[2] for found in _FOLDER.finditer(left)]
    parts = _parts(left)
    topic, place = _roles(left, parts, op_words, need_place=sure is None)
    if sure:
        query = left[topic.start : topic.end] if topic else _content(left, parts, op_words)
        readings = [Reading(query, sure[1])]
    else:
        readings = _readings(left, topic, place, parts, op_words)
    return Question(
        text,
        tuple(dict.fromkeys(readings)),
        period,
        tuple(dict.fromkeys(paths)),
        (_NUMBERS.get(counted[1].lower()) or int(counted[1])) if counted else None,
        announced=topic.kind if topic else "",
        bare=_bare(left, topic, place, readings[0].query),
    )


def _take_period(text: str, now: datetime) -> tuple[Period | None, str]:
    """The time a question names, and the question with that blanked out. A time that is the topic stays."""
    found = [(at, period) for at, period in when.find(text, now) if not re.search(r"(?i)\babout\s*$", text[: at[0]])]
    if not found:
        return None, text
    (start, end), period = found[0]
    for (_, later), _ in found[1:]:
        try:
            period, end = when.parse(text[start:later], now), later  # "on Tuesday of last week"
        except ValueError:
            break
    return period, _blank(text, start, end)


def _parts(left: str) -> list[_Part]:
    """The announced phrases, in order, none of them empty."""
    quoted = _QUOTED.search(left)
    if quoted:
        start, end = quoted.span(quoted.lastindex or 0)
        end = start + len(left[start:end].rstrip())
        before = _parts(left[: quoted.start()])
        after = _parts("\0" * quoted.end() + left[quoted.end() :])
        title = _Part("title", quoted.start(), start, end)
        return [*(part for part in before if part.kind in PLACES), title, *after]
    cues = list(_CUE.finditer(left))
    parts = []
    for cue, following in zip_longest(cues, cues[1:]):
        start = cue.end() + len(left[cue.end() :]) - len(left[cue.end() :].lstrip())
        ends = _TURN if _ASKING.match(left, start) else _END  # "about why it was built": the clause is the topic
        found = ends.search(left, start)
        end = min(found.start() if found else len(left), following.start() if following else len(left))
        end = start + len(left[start:end].rstrip())
        if end > start:
            parts.append(_Part(str(cue.lastgroup), cue.start(), start, end))
    return parts


def _roles(
    left: str, parts: list[_Part], op_words: Collection[str], *, need_place: bool
) -> tuple[_Part | None, _Part | None]:
    """Which phrase is what the question is about, and which may name a place."""
    topic = next((part for kind in ("title", "topic") for part in parts if part.kind == kind), None)
    places = [
        part for part in parts if part.kind in PLACES and len(left[part.start : part.end].split()) <= MAX_PLACE_WORDS
    ]
    ons = [part for part in parts if part.kind == "on"]
    if topic is None and ons:
        others = [part for part in places if part.kind == "from"]
        if len(ons) > 1 and not others:  # "on the New Yorker … on knitting": a name is rather the place
            after_verb = [part for part in ons if _AFTER_VERB.search(left[: part.cue])]
            names = [part for part in ons if _NAME.match(left, part.start)]
            named = next((part for part in (*after_verb, *names, ons[-1]) if part in places), ons[-1])
            topic = next(part for part in ons if part is not named)
        elif not need_place or others or not _rather_place(left[: ons[0].cue], op_words):
            topic = ons[0]
    places = [part for part in places if part is not topic]
    place = min(places, key=lambda part: part.kind != "from", default=None) if need_place else None
    return topic, place


def _rather_place(before: str, op_words: Collection[str]) -> bool:
    """Does "on" after these words rather announce a place: after "I read", and after "the sourdough article"?"""
    noun_phrase = _NOUN_PHRASE.search(before)
    words = noun_phrase[0].split()[:-1] if noun_phrase else []
    return bool(_AFTER_VERB.search(before)) or not all(_is_common(word, op_words) for word in words)


def _readings(
    left: str, topic: _Part | None, place: _Part | None, parts: list[_Part], op_words: Collection[str]
) -> list[Reading]:
    about = left[topic.start : topic.end] if topic else _content(left, parts, op_words)
    if place is None:
        named = _NAME_BEFORE.search(left[: topic.cue]) if topic else None
        if named:  # "that Guardian piece about whales"
            name = named[1].strip()
            return [Reading(about, name), Reading(f"{name} {about}"), Reading(about)]
        if topic and topic.kind == "on":
            return [Reading(about), Reading("", about)]
        return [Reading(about)]
    site = left[place.start : place.end]
    if topic and topic.end <= place.cue and not left[topic.end : place.cue].strip():
        whole = left[topic.start : place.end]  # "working from home" names no place
    elif topic:
        whole = about
    else:
        whole = f"{about} {site}".strip()
    swapped = [Reading(site, about)] if topic and topic.kind == "on" == place.kind else []
    return [Reading(about, site), *swapped, Reading(whole)]


def _content(left: str, parts: list[_Part], op_words: Collection[str]) -> str:
    """The words outside the announced phrases that say neither what to do nor nothing."""
    for part in parts:
        left = _blank(left, part.cue, part.end)
    words = re.findall(r"[^\W_][\w'’.+#-]*", left.replace("\0", " "))
    return " ".join(word for word in words if not _is_common(word, op_words))


def _is_common(word: str, op_words: Collection[str]) -> bool:
    return word.lower() in FUNCTION_WORDS or all(stem in op_words or stem in FUNCTION_WORDS for stem in stems(word))


def _bare(left: str, topic: _Part | None, place: _Part | None, query: str) -> str:
    for part, instead in sorted(
        ((topic, " something "), (place, " ")), key=lambda pair: pair[0].start if pair[0] else -1
    )[::-1]:
        if part:
            cue = left[part.cue : part.start] if instead.strip() else ""
            left = left[: part.cue] + cue + instead + left[part.end :]
    if topic is None:
        wanted = set(query.split())
        left = re.sub(r"[^\W_][\w'’.+#-]*", lambda word: "something" if word[0] in wanted else word[0], left)
        left = re.sub(r"something(?:\s+something)+", "something", left)
    left = re.sub(r"\b(?:on|from|at|via|in)\s*(?=\0)", "", left, flags=re.IGNORECASE)
    return " ".join(left.replace("\0", " ").split())


def _blank(text: str, start: int, end: int) -> str:
    return text[:start] + "\0" * (end - start) + text[end:]
