"""Made-up people with browsing histories, and questions about what they read that have exactly one right answer.

What is varied: the topic and how it is named (as in the title, otherwise, by an acronym, with a typo), the site and how it is
named, the time and how it is named (a day, a week, a vague "the other day"), the sentence around them, and what stands
in the way: pages of the same topic at other times and on other sites, near topics at the same time, the search that led to
the page, a shop. The times are worked out here from the calendar, independently of the code under test.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from random import Random

from llmos.userland.demo.browsing import Article, everyday, glance, moment, read, slug
from llmos.userland.demo.histories import Visit, write_chromium, write_firefox

DATA = Path(__file__).with_name("data")
DEVELOPMENT, HELD_OUT = 11, 7919
"""Seeds: what the code may be tuned on, and what only judges it."""
DAYS = 56
OTHERS = 60
"""Articles in a history that nobody asks about."""


@dataclass(frozen=True, slots=True)
class Topic:
    """Several pages, and several ways to ask for any of them."""

    field: str
    asks: tuple[str, ...]
    titles: tuple[str, ...]
    special: dict[str, tuple[str, ...]]
    """Title → ways to ask that mean this page alone."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where pages are, and what people call it."""

    host: str
    names: tuple[str, ...]
    suffix: str
    path: str

    def article(self, topic: Topic, title: str, at: datetime, rng: Random) -> Article:
        """The page, as if published a little before it was read."""
        path = (at - timedelta(days=rng.randint(0, 3))).strftime(self.path).replace("{slug}", slug(title))
        about = f"{rng.choice(_BLURBS)} {topic.asks[0]}." if rng.random() < 0.5 else ""
        return Article(f"https://{self.host}/{path}", title + self.suffix, about)


@dataclass(frozen=True, slots=True)
class When:
    """A way to say a time. Days count back from today, both ends included."""

    text: str
    days: tuple[int, int]
    others: tuple[tuple[int, int], ...] = ()
    """Days that the words plainly do not mean."""
    hours: tuple[int, int] | None = None
    bare: bool = False
    """It also stands without a preposition, after "from"."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question and its answer."""

    question: str
    url: str
    title: str
    kinds: tuple[str, ...]
    """What is hard about it: how the topic is named, whether site and period are, what stands in the way."""


@dataclass(slots=True)
class EvalHome:
    """One person's browsing and the questions about it."""

    seed: int
    now: datetime
    browser: str
    visits: list[Visit] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)

    def write(self, home: Path) -> None:
        """Write the histories in the browsers' formats below `home`."""
        if self.browser == "firefox":
            write_firefox(home, self.visits)
        elif self.browser == "chromium":
            write_chromium(home, self.visits)
        else:
            write_firefox(home, (visit for visit in self.visits if visit.at.hour >= 17))
            write_chromium(home, (visit for visit in self.visits if visit.at.hour < 17), "google-chrome")


def generate(seed: int, now: datetime, homes: int = 4, each: int = 10) -> list[EvalHome]:
    """`homes` people with `each` questions; `now` is aware. The same arguments give the same homes."""
    return [_home(seed * 1000 + number, now, each) for number in range(homes)]


def _home(seed: int, now: datetime, questions: int) -> EvalHome:
    rng = Random(seed)
    home = EvalHome(seed, now, rng.choice(["firefox", "chromium", "both"]))
    home.visits = everyday(rng, now, DAYS, works=rng.random() < 0.7, busy=rng.randint(4, 9))
    topics = rng.sample(_topics(), len(_topics()))
    for topic in topics[:questions]:
        home.cases.append(_plant(rng, home, topic))
    asked = topics[:questions]
    for _ in range(OTHERS):
        topic = rng.choice(topics[questions:])
        _add(rng, home, topic, rng.choice(topic.titles), rng.choice(_sites()), (0, DAYS))
    for topic in asked:  # near topics around the same time
        near = [other for other in topics[questions:] if other.field == topic.field]
        for other in near[:3]:
            _add(rng, home, other, rng.choice(other.titles), rng.choice(_sites()), (0, 20))
    home.visits.sort(key=lambda visit: visit.at)
    return home


def _plant(rng: Random, home: EvalHome, topic: Topic) -> Case:
    title, *rest = rng.sample(topic.titles, len(topic.titles))
    when = rng.choice(_whens(rng, home.now)) if rng.random() < 0.8 else None
    site, *elsewhere = rng.sample(_sites(), 4)
    named = site if rng.random() < (0.35 if when else 0.5) else None
    ask = _ask(rng, topic, title)
    kinds = [_naming(ask, title)]
    at = _moment(rng, home.now, when.days if when else (1, DAYS), when.hours if when else None)
    article = site.article(topic, title, at, rng)
    searched = ask if rng.random() < 0.25 else ""
    home.visits += read(rng, article, at, searched=searched)
    kinds += ["searched"] * bool(searched) + ["when"] * bool(when) + ["site"] * bool(named)
    for other in rest[: rng.randint(1, 3)]:
        if when and when.others:
            _add(rng, home, topic, other, rng.choice([site, *elsewhere]), rng.choice(when.others))
            kinds.append("other times")
        elif named:
            _add(rng, home, topic, other, elsewhere[0], (0, DAYS))
            kinds.append("other sites")
    question, marks = _phrase(rng, ask, title, when, named)
    if "article" in question and rng.random() < 0.15:
        shop = Article(f"https://www.amazon.com/s?k={slug(ask)}", f"Amazon.com: {ask}")
        home.visits += glance(rng, shop, at - timedelta(minutes=3))
        kinds.append("shop")
    return Case(question, article.url, article.title, tuple(dict.fromkeys(kinds + marks)))


def _ask(rng: Random, topic: Topic, title: str) -> str:
    """A way to ask for the page: in half of the cases with words of its title, if there is such a way."""
    asks = topic.asks + topic.special[title]
    literal = [ask for ask in asks if _naming(ask, title) == "words"]
    return rng.choice(literal) if literal and rng.random() < 0.5 else rng.choice(asks)


def _add(rng: Random, home: EvalHome, topic: Topic, title: str, site: Site, days: tuple[int, int]) -> None:
    """Somebody also read this, unless its address is in the history already."""
    at = _moment(rng, home.now, days, None)
    article = site.article(topic, title, at, rng)
    if all(visit.title != article.title for visit in home.visits):
        home.visits += read(rng, article, at, minutes=rng.uniform(0.5, 9))


def _moment(rng: Random, now: datetime, days: tuple[int, int], hours: tuple[int, int] | None) -> datetime:
    on = now.date() - timedelta(days=rng.randint(*days))
    return moment(rng, on, now, hours)


# -- times -------------------------------------------------------------------------------------------------------------


def _whens(rng: Random, now: datetime) -> list[When]:
    """Every way to say a time that makes sense at `now`; the day is picked where the words leave one open."""
    today, since_monday = now.date(), now.weekday()
    whens = [
        When("yesterday", (1, 1), ((3, DAYS),), bare=True),
        When("yesterday evening", (1, 1), ((3, DAYS),), hours=(18, 23), bare=True),
        When("last night", (1, 1), ((3, DAYS),), hours=(20, 23), bare=True),
        When("a few days ago", (2, 4), ((12, DAYS),), bare=True),
        When("a couple of days ago", (2, 3), ((10, DAYS),), bare=True),
        When("the other day", (2, 5), ((21, DAYS),), bare=True),
        When("recently", (1, 8), ((42, DAYS),)),
        When("lately", (1, 8), ((42, DAYS),)),
        When("in the last few days", (1, 4), ((12, DAYS),)),
        When("about a month ago", (27, 33), ((0, 14), (50, DAYS)), bare=True),
        When("some weeks ago", (15, 35), ((0, 4),), bare=True),
    ]
    last_week = When("", (since_monday + 1, since_monday + 7), ((since_monday + 11, DAYS),))
    recent = ((0, since_monday - 2),) if since_monday >= 2 else ()
    whens += [
        When(text, last_week.days, last_week.others + recent, bare=True)
        for text in ("last week", "last week", "the week before this one", "sometime last week", "last wk")
    ]
    whens += [
        When(
            text,
            (max(11, since_monday + 8), min(17, since_monday + 14)),
            ((0, 4), (since_monday + 24, DAYS)),
            bare=True,
        )
        for text in ("two weeks ago", "2 weeks ago", "a couple of weeks ago", "a fortnight ago")
    ]
    whens.append(When("three weeks ago", (19, 23), ((0, 9), (38, DAYS)), bare=True))
    if since_monday >= 2:
        whens += [
            When("this week", (0, since_monday), ((since_monday + 4, DAYS),), bare=True),
            When("earlier this week", (1, since_monday), ((since_monday + 4, DAYS),), bare=True),
            When("since Monday", (0, since_monday), ((since_monday + 4, DAYS),)),
        ]
    if since_monday <= 4:
        weekend = (since_monday + 1, since_monday + 2)
        whens += [
            When(text, weekend, ((since_monday + 5, DAYS),), bare=bare)
            for text, bare in (("over the weekend", False), ("last weekend", True), ("at the weekend", False))
        ]
    if now.hour >= 12:
        whens.append(When("this morning", (0, 0), ((2, DAYS),), hours=(6, 11), bare=True))
    back = rng.randint(2, 6)
    weekday = f"{today - timedelta(days=back):%A}"
    whens.append(When(f"on {weekday}", (back, back), ((9, DAYS),)))
    whens.append(When(f"on {weekday} evening", (back, back), ((9, DAYS),), hours=(18, 23)))
    back = rng.randint(since_monday + 1, 6) if since_monday < 6 else 7  # "last" means the same whichever way one counts
    whens.append(When(f"last {today - timedelta(days=back):%A}", (back, back), ((15, DAYS),), bare=True))
    back = rng.randint(4, 25)
    date = today - timedelta(days=back)
    for text in (f"on {date:%B} {date.day}", f"on the {_ordinal(date.day)} of {date:%B}", f"on {date.day} {date:%b}"):
        whens.append(When(text, (back, back), ((back + 4, DAYS), (0, back - 3))))
    first, last = today.day + (today.replace(day=1) - timedelta(days=1)).day - 1, today.day
    whens.append(When("last month", (last, min(first, DAYS - 1)), ((0, max(0, last - 5)),), bare=True))
    whens.append(
        When(
            f"in {today.replace(day=1) - timedelta(days=1):%B}", (last, min(first, DAYS - 1)), ((0, max(0, last - 5)),)
        )
    )
    if today.day >= 12:
        whens.append(When("earlier this month", (4, today.day - 1), ((today.day + 4, DAYS),), bare=True))
    return whens


def _ordinal(day: int) -> str:
    return f"{day}{'th' if 10 <= day % 100 <= 13 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


# -- words -------------------------------------------------------------------------------------------------------------

_BLURBS = [
    "A long look at",
    "Everything we know about",
    "Our reporter on",
    "What recent research says about",
    "Notes on",
]

_FRAMES = [
    "what was that article I read{when} about {ask}?",
    "what was the article{site} about {ask} that I read{when}?",
    "which article about {ask} did I read{site}{when}?",
    "{When} I read something{site} about {ask}, what was it?",
    "I read something{site} on {ask}{when}. Where was that?",
    "that thing on {ask} I had open{when}{site}",
    "that thing{site} about {ask}{when}, what was it called",
    "the piece about {ask}{site} I read{when}",
    "can you find the page about {ask} I looked at{site}{when}?",
    "find the{site} article I read{when} on {ask}",
    "pls find the article about {ask}, think it was{when}{site}",
    "{ask} article{site}{when}??",
    "what did I read about {ask}{site}{when}?",
    "do you remember that blog post about {ask}? I think I saw it{site}{when}",
    "whats the link of the story on {ask} I saw{site}{when}",
    "give me the link to the text about {ask} I was reading{when}{site}",
    "where did I read about {ask}{when}?",
    "I'm looking for an essay{site} I came across{when}, it was about {ask}",
    "I want to send a friend the article on {ask} that I read{when}{site}. Which one was it?",
    "hey, there was this long read about {ask}{site}{when}, can you get it for me",
    "find what I read{when} regarding {ask}",
    "open that page on {ask} again, the one from{bare}",
    "show me the story about {ask}{site}{when}",
    "Which page did I visit{when} to learn about {ask}?",
    "the one about {ask}{site}{when}",
    "help me find again something I read{when}: it dealt with {ask}",
]
_QUOTING = [
    'the article{site} called something like "{part}"{when}',
    "which page had {part} in its title? I read it{when}{site}",
    "I read a piece titled {part} or so{site}{when}, find it",
]


def _phrase(rng: Random, ask: str, title: str, when: When | None, site: Site | None) -> tuple[str, list[str]]:
    """The question, and what is special about its words."""
    marks = []
    frame = rng.choice([frame for frame in _FRAMES if _fits(frame, when, site)])
    part = ""
    if rng.random() < 0.1:
        frame, part = rng.choice(_QUOTING), _part(rng, title)
        marks.append("quoted")
    elif rng.random() < 0.08:
        ask = _mistype(rng, ask)
        marks.append("typo")
    said = rng.choice(["on", "from"]) + " " + rng.choice(site.names) if site else ""
    time = when.text if when else ""
    question = frame.format(
        ask=ask,
        part=part,
        site=f" {said}" if said else "",
        when=f" {time}" if time else "",
        When=time[:1].upper() + time[1:],
        bare=f" {time}",
    )
    question = re.sub(r"the (on|from|in) (.+?) article", r"the article \1 \2", question)
    if rng.random() < 0.35:
        question = question.rstrip("?.")
        question = question if rng.random() < 0.4 else question.lower()
    return question, marks


def _fits(frame: str, when: When | None, site: Site | None) -> bool:
    """Has the sentence a place for the site, and for the time if there is one, and none for what there is not?"""
    if site and "{site}" not in frame:
        return False
    if when is None:
        return not any(part in frame for part in ("{bare}", "{When}", "was{when}"))
    return when.bare or "{bare}" not in frame


def _part(rng: Random, title: str) -> str:
    words = title.split()
    length = min(len(words), rng.randint(3, 4))
    start = rng.randint(0, len(words) - length)
    return " ".join(words[start : start + length]).strip(",.:?!")


def _mistype(rng: Random, text: str) -> str:
    """One letter doubled, dropped or swapped with the next, inside one of the longer words."""
    spots = list(re.finditer(r"[a-z]{6,}", text))
    if not spots:
        return text
    word = rng.choice(spots)
    at = rng.randint(word.start() + 1, word.end() - 3)
    change = rng.choice(["double", "drop", "swap"])
    pair = text[at : at + 2]
    return text[:at] + {"double": pair[0] + pair, "drop": pair[1], "swap": pair[::-1]}[change] + text[at + 2 :]


def _naming(ask: str, title: str) -> str:
    """How the question names the topic, compared with the title: its `words`, an `acronym` not in it, a `paraphrase`."""
    acronyms = re.findall(r"\b[A-Z0-9]{2,}", ask)
    if acronyms and not any(acronym in title for acronym in acronyms):
        return "acronym"
    stems = {word[:5] for word in re.findall(r"[a-z]{4,}", title.lower())}
    return "words" if stems & {word[:5] for word in re.findall(r"[a-z]{4,}", ask.lower())} else "paraphrase"


# -- data --------------------------------------------------------------------------------------------------------------


@cache
def _topics() -> Sequence[Topic]:
    topics: list[Topic] = []
    current, titles = "", dict[str, tuple[str, ...]]()
    asks: tuple[str, ...] = ()
    for line in [*(DATA / "topics.txt").read_text().splitlines(), "## "]:
        if line.startswith("- "):
            title, _, special = line[2:].partition(" :: ")
            titles[title] = _parts(special)
        elif line and (not line.startswith("#") or line.startswith("## ")):
            if titles:
                topics.append(Topic(current, asks, tuple(titles), titles))
                titles = {}
            if line.startswith("## "):
                current = line[3:]
            else:
                asks = _parts(line)
    return topics


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())


@cache
def _sites() -> Sequence[Site]:
    with (DATA / "sites.toml").open("rb") as stream:
        sites = tomllib.load(stream)["site"]
    return [Site(site["host"], tuple(site["names"]), site["suffix"], site["path"]) for site in sites]
