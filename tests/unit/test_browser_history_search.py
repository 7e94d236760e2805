"""Finding pages: words, acronyms, meaning, sites, periods; the ops' answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.drivers.browser_history import pages, query
from llmos.drivers.browser_history.driver import BrowserHistory
from llmos.drivers.browser_history.sites import hosts_of
from llmos.drivers.sdk import Call, Code, OpError
from llmos.ipc import wire
from llmos.ipc.embedding import Vectors
from llmos.userland.demo.histories import write_chromium, write_firefox
from tests.unit._browser_fixtures import running, titles, visit

LLM = visit(
    "How Large Language Models Learn to Reason", "https://www.quanta.example/how-large-language-models-learn/", 5
)
LAW = visit("Choosing a law school | Campus News", "https://campus.example/choosing-a-law-school", 5)
RAG = visit("Why Retrieval-Augmented Generation Fails", "https://blog.example/2026/why-it-fails-in-production", 12)
WHALES = visit(
    "Large whales return | Whales | The Guardian", "https://www.theguardian.com/environment/large-whales-return", 4
)
HOME = visit("The Guardian: whales, news, sport", "https://www.theguardian.com/", 4)
SEARCH = visit("whales - Search", "https://duckduckgo.com/?q=whales", 4, search="whales", seconds=5.0)
FICUS = visit("Ten tips against overwatering your ficus", "https://plants.example/ten-tips-ficus", 2)
VISITS = [LLM, LAW, RAG, WHALES, HOME, SEARCH, FICUS]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("home")
    write_firefox(made, VISITS)
    return made


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def top(driver: BrowserHistory, words: str, **args: Any) -> str:
    return str(driver.search(Call(), query=words, **args)["items"][0]["title"])


# -- words


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ("LLMs", LLM.title),
        ("llm", LLM.title),
        ("what was that article I read about LLMs?", LLM.title),
        ("large language model reasoning", LLM.title),
        ("RAG", RAG.title),
        ("rag", RAG.title),
        ("law schools", LAW.title),
        ("overwater", FICUS.title),
        ("whale", WHALES.title),
        ('"quotes" AND -operators* whales', WHALES.title),
    ],
)
def test_search_finds_by_words_alone(home: Path, state: Path, words: str, title: str) -> None:
    """Without an embedding model: inflections, acronyms for phrases, whole questions, and no search syntax to trip over."""
    with running(home, state) as driver:
        assert top(driver, words) == title


def test_search_finds_an_acronym_for_its_phrase(tmp_path: Path) -> None:
    """Asked in full, a title that only has the acronym is found; a known one by the table, an unknown one by initials."""
    home = tmp_path / "home"
    write_chromium(
        home,
        [
            visit("Your first RAG pipeline", "https://a.example/rag"),
            visit("Zonal Octave Transfer explained", "https://b.example/z"),
        ],
    )
    with running(home, tmp_path / "state") as driver:
        assert top(driver, "retrieval augmented generation") == "Your first RAG pipeline"
        assert top(driver, "ZOT") == "Zonal Octave Transfer explained"


def test_search_puts_pages_to_read_before_searches_and_front_pages(home: Path, state: Path) -> None:
    """A search page holds the very words of the question and is still not what it is after."""
    with running(home, state) as driver:
        found = titles(driver.search(Call(), query="whales"))
    assert found[0] == WHALES.title
    assert set(found[1:]) == {HOME.title, SEARCH.title}


def test_search_knows_the_search_that_led_to_a_page(tmp_path: Path) -> None:
    """A page whose title shares no word with the question is found by what was searched for before the click."""
    home = tmp_path / "home"
    looked = visit(
        "container orchestration - Search",
        "https://duckduckgo.com/?q=container+orchestration",
        3.0,
        search="container orchestration",
    )
    clicked = visit("Our Kubernetes Bill Doubled", "https://blog.example/our-kubernetes-bill-doubled", 2.9998)
    write_firefox(
        home, [looked, clicked, visit("Container ships in port", "https://ships.example/container-ships-in-port", 5)]
    )
    with running(home, tmp_path / "state") as driver:
        assert top(driver, "container orchestration") == clicked.title


def test_search_without_words_gives_what_was_read(home: Path, state: Path) -> None:
    """An empty question lists the period's articles, not its searches."""
    with running(home, state) as driver:
        found = titles(driver.search(Call(), period="last week"))
    assert set(found[:4]) == {LLM.title, LAW.title, WHALES.title, FICUS.title}


# -- meaning


def plants(texts: Sequence[str]) -> Vectors:
    """Vectors in which whatever is about plants, by its words, is one direction and all the rest another."""
    about = ["houseplant" in text or "ficus" in text for text in texts]
    return np.array([[1.0, 0.0] if plant else [0.0, 1.0] for plant in about], np.float32)


def test_search_finds_by_meaning(home: Path, state: Path) -> None:
    """A page that shares no word with the question is first when its vector is close."""
    with running(home, state, plants) as driver:
        assert top(driver, "the piece on keeping houseplants alive") == FICUS.title


def test_search_embeds_a_page_once(home: Path, state: Path) -> None:
    """Vectors are kept, across restarts, until the title changes; only the question is embedded again."""
    asked: list[str] = []

    def count(texts: Sequence[str]) -> Vectors:
        asked.extend(texts)
        return plants(texts)

    for _ in range(2):
        with running(home, state, count) as driver:
            driver.search(Call(), query="houseplants")
    assert len([text for text in asked if "ficus" in text]) == 1
    assert len([text for text in asked if "houseplants" in text]) == 4


# -- periods


def test_search_prefers_the_period_and_says_when_it_looked_beyond(home: Path, state: Path) -> None:
    """In the period: found there. Nothing convincing in it: what lies just outside, marked as such."""
    with running(home, state) as driver:
        answer = driver.search(Call(), query="LLMs", period="last week")
        assert next((item["title"], item["in_period"]) for item in answer["items"]) == (LLM.title, True)
        assert answer["period"] == {"text": "last week", "start": "2026-11-15T23:00:00Z", "end": "2026-11-22T23:00:00Z"}
        (beyond, *_) = driver.search(Call(), query="LLMs", period="yesterday")["items"]
        assert (beyond["title"], beyond["in_period"]) == (LLM.title, False)
        assert titles(driver.search(Call(), query="RAG", since="2026-11-09", until="2026-11-12")) == [RAG.title]


def test_search_same_topic_at_another_time_stays_second(tmp_path: Path) -> None:
    """Of two articles about one thing the one of the period is meant, however well the other fits."""
    home = tmp_path / "home"
    write_firefox(home, [visit("LLMs, LLMs and more LLMs", "https://a.example/llms-llms-and-more-llms", 30), LLM])
    with running(home, tmp_path / "state") as driver:
        assert top(driver, "LLMs", period="last week") == LLM.title
        assert top(driver, "LLMs", period="last month").startswith("LLMs, LLMs")


def test_search_what_convinces_in_the_period_is_enough(tmp_path: Path) -> None:
    """A page of the period with half of the words is meant, though one of long ago has them all."""
    home = tmp_path / "home"
    whole = visit("Llamas and knitting", "https://a.example/llamas-and-knitting-in-the-andes", 60, seconds=900.0)
    half = visit("Llamas", "https://b.example/llamas-at-home", 4)
    write_firefox(home, [whole, half])
    with running(home, tmp_path / "state") as driver:
        assert top(driver, "llamas knitting", period="last week") == half.title
        assert top(driver, "llamas knitting") == whole.title


def test_search_says_which_argument_is_wrong(home: Path, state: Path) -> None:
    """A period nobody understands, periods that do not meet, a cursor nobody gave: the error names the argument."""
    with running(home, state) as driver:
        for args, name in (
            ({"period": "when pigs fly"}, "period"),
            ({"since": "today", "until": "2026-01-01"}, "since"),
            ({"cursor": "-1"}, "cursor"),
        ):
            with pytest.raises(OpError, match=name) as caught:
                driver.search(Call(), query="x", **args)  # type: ignore[arg-type]
            assert caught.value.code == Code.INVALID_ARGUMENT


# -- sites


@pytest.mark.parametrize(
    "site", ["theguardian.com", "www.theguardian.com", "the guardian", "Guardian", "https://www.theguardian.com/uk"]
)
def test_search_takes_sites_as_people_name_them(home: Path, state: Path, site: str) -> None:
    """An address, with or without `www.`, and the name of the paper are the same site."""
    with running(home, state) as driver:
        assert titles(driver.search(Call(), query="whales", host=site)) == [WHALES.title, HOME.title]


@pytest.mark.parametrize(
    ("site", "hosts"),
    [
        ("bbc.co.uk", ["bbc.co.uk", "news.bbc.co.uk"]),
        ("bbc", ["bbc.co.uk", "news.bbc.co.uk", "bbc.com"]),
        ("bbc news", ["bbc.co.uk", "news.bbc.co.uk", "bbc.com"]),
        ("new york times", ["nytimes.com"]),
        ("Hacker News", ["news.ycombinator.com"]),
        ("quanta", ["quantamagazine.org"]),
        ("nosuchsite", []),
        ("", []),
    ],
)
def test_sites_are_read_as_strictly_as_fits(site: str, hosts: list[str]) -> None:
    """Labels first, then what titles say, then beginnings, words and initials."""
    known = [
        "bbc.co.uk",
        "news.bbc.co.uk",
        "bbc.com",
        "nytimes.com",
        "news.ycombinator.com",
        "quantamagazine.org",
        "notbbc.net",
    ]
    titled = {"hacker news": ["news.ycombinator.com"]}
    found = hosts_of(site, known, lambda name: titled.get(name.lower(), []))
    assert set(hosts) <= set(found) if site == "bbc news" else found == hosts


def test_search_confines_itself_to_the_scope_of_the_call(home: Path, state: Path) -> None:
    """A capability for one site sees that site alone, in every op, with and without an argument."""
    call = Call(scope={"host": ["theguardian.com"]})
    with running(home, state) as driver:
        for answer in (
            driver.search(call, query="law"),
            driver.visits(call),
            driver.most_read(call, period="this month"),
        ):
            assert {item["host"] for item in answer["items"]} <= {"theguardian.com"}
        assert driver.search(call, query="law", host="campus.example")["items"] == []
        assert driver.visits(call, url=LAW.url)["items"] == []
        assert driver.search(Call(scope={"host": ["*.example"]}), query="law")["items"]


# -- answers


def test_search_one_page_is_one_result(tmp_path: Path) -> None:
    """Tracking parameters, fragments, a slash, `www.` and AMP do not make another page; neither does the other browser."""
    home = tmp_path / "home"
    addresses = [
        "http://www.a.example/story/",
        "https://a.example/story?utm_source=x&fbclid=1",
        "https://a.example/story#part",
        "https://a.example/story/amp",
    ]
    write_firefox(home, [visit("A story to read", address, 1) for address in addresses])
    write_chromium(home, [visit("A story to read", addresses[0], 2)])
    with running(home, tmp_path / "state") as driver:
        (item,) = driver.search(Call(), query="story")["items"]
        assert item["provenance"]["visits"] == 5
        assert item["provenance"]["profiles"] == ["chromium:Default", "firefox:default-release"]
        assert "utm" not in item["url"]
        assert len(driver.visits(Call(), url=addresses[1])["items"]) == 5


def test_search_pages_through_everything_once(tmp_path: Path) -> None:
    """`next` leads through all results without repeating one, and every answer fits a reply however long the titles."""
    home = tmp_path / "home"
    long = "whale " + "слово " * 70
    write_firefox(home, [visit(f"{long} {i}", f"https://e.example/{'x' * 900}/{i}", i / 10) for i in range(60)])
    with running(home, tmp_path / "state") as driver:
        for op, args in ((driver.search, {"query": "whale"}), (driver.visits, {})):
            seen: list[str] = []
            cursor = None
            while True:
                answer = op(Call(), k=50, cursor=cursor, **args)
                assert len(wire.encode(answer)) < 60 * 1024
                seen += [item["url"] for item in answer["items"]]
                if not (cursor := answer["next"]):
                    break
            assert len(seen) == len(set(seen)) == 60


def test_search_records_carry_what_every_record_does(home: Path, state: Path) -> None:
    """uid, source, ts in UTC, tz, title, text, url, provenance; and they travel."""
    with running(home, state) as driver:
        for answer in (driver.search(Call()), driver.visits(Call()), driver.most_read(Call()), driver.sources(Call())):
            wire.encode(answer)
            for item in answer["items"]:
                assert {"uid", "source", "ts", "tz", "title", "text", "provenance"} <= item.keys()
                assert item["ts"].endswith("Z")


def test_most_read_goes_by_time_spent(tmp_path: Path) -> None:
    """Several looks add up; a mailbox that stood open all day is not what was read."""
    home = tmp_path / "home"
    twice = "https://a.example/a-long-read-in-parts"
    write_firefox(
        home,
        [
            visit("Read twice", twice, 1, seconds=400.0),
            visit("Read twice", twice, 2, seconds=400.0),
            visit("Read once", "https://b.example/a-shorter-piece-of-news", 1, seconds=500.0),
            visit("Inbox (3)", "https://mail.example.com/inbox", 1, seconds=3000.0),
            visit("Too long ago", "https://c.example/an-essay-of-long-ago", 50, seconds=3000.0),
        ],
    )
    with running(home, tmp_path / "state") as driver:
        assert titles(driver.most_read(Call(), period="this week and last week")) == [
            "Read twice",
            "Read once",
            "Inbox (3)",
        ]
        assert driver.most_read(Call())["items"][0]["provenance"]["dwell_s"] == 800


def test_visits_are_single_and_latest_first(home: Path, state: Path) -> None:
    """Of a site in a period."""
    with running(home, state) as driver:
        assert titles(driver.visits(Call(), period="last week", host="campus")) == [LAW.title]
        assert titles(driver.visits(Call(), period="over the weekend")) == [FICUS.title]


# -- parts


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("what was that article I read about LLMs?", "LLMs"),
        ("that thing I saw on the guardian about whales", "guardian whales"),
        ("the history of Rome", "history Rome"),
        ("open source licences", "open source licences"),
        ("what did I read about search engines", "search engines"),
        ("working from home tips", "working from home tips"),
        ("WHO report on malaria", "WHO malaria"),
        ("something", "something"),
        ("", ""),
    ],
)
def test_topic_drops_what_only_asks(question: str, words: str) -> None:
    """The frame of a question goes, its topic stays whole; a question that is all frame keeps its words."""
    assert query.topic(question) == words


def test_acronyms_that_are_words_need_capitals() -> None:
    """`who` is a pronoun, `WHO` an organisation; a lone word may be either."""
    assert query.concepts("WHO malaria")[0].phrases == ("who", "world health organization")
    assert query.concepts("sad songs")[0].phrases == ("sad",)
    assert "seasonal affective disorder" in query.concepts("sad")[0].phrases


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://a.example/x?utm_source=a&id=7&fbclid=z", "https://a.example/x?id=7"),
        ("https://a.example/x?q=a%20b&c", "https://a.example/x?q=a%20b&c"),
        ("https://a.example/x#top", "https://a.example/x"),
        ("https://a.example/#/route", "https://a.example/#/route"),
    ],
)
def test_clean_url_keeps_what_names_the_page(url: str, clean: str) -> None:
    """Only what tracks goes; an address without any keeps its spelling."""
    assert pages.clean_url(url) == clean


def test_reads_like_article_orders_kinds_of_pages() -> None:
    """Articles above other pages, those above searches, logins, mailboxes, feeds and front pages."""
    article = pages.reads_like_article(
        "https://p.example/2026/11/03/why-rents-fall-in-the-city", "Why rents fall in the city"
    )
    shop = pages.reads_like_article("https://s.example/dp/B07", "Pan 26 cm")
    for address in (
        "https://g.example/search?q=why+rents+fall",
        "https://p.example/",
        "https://a.example/login",
        "https://mail.p.example/u/0",
        "https://x.com/home",
    ):
        assert pages.reads_like_article(address, "Why rents fall in the city today") < shop < article


@pytest.mark.parametrize(
    ("title", "parts"),
    [
        ("A story - The Paper", ("A story", "The Paper")),
        ("Well-being at work | Mind | Site", ("Well-being at work | Mind", "Site")),
        ("No site here", ("No site here", "")),
        (
            "Pros - and a very long tail that is no name of any site at all",
            ("Pros - and a very long tail that is no name of any site at all", ""),
        ),
        ("", ("", "")),
    ],
)
def test_split_title_takes_the_site_off(title: str, parts: tuple[str, str]) -> None:
    """A short last part after a separator is the site's name."""
    assert pages.split_title(title) == parts
