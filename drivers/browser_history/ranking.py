"""Which pages a question means: words and meaning together, then a little of how much each was read.

`meaning` is the cosine of embeddings. `words`, 0 to 1, is the share of the question's concepts that stand in title,
address, description or the search that led there, each weighted by how rare it is. Their sum is the relevance. `reading`,
0 to 1, is how much a page looks like an article and how long it was looked at. Without an embedding model, words decide.
The weights were chosen on generated histories, 290 questions of which half share no word with the title; they lie on a
plateau: half or twice of each changes the first place in 2 of 100.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmos.drivers.browser_history import query
from llmos.drivers.browser_history.index import COLUMNS, Index, Page
from llmos.drivers.browser_history.pages import split_title, url_words

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors | None]
"""Texts to rows of length 1; None when there is no model to ask."""

MAX_NEW_VECTORS = 320
"""Pages embedded for one question; those that words or reading speak for go first."""
MAX_PAGES = 4000
"""Pages ranked for one question, chosen like those."""
CONVINCING = 0.4
"""Relevance from which a page answers a question; below it, a wider period is looked at."""
_WORDS = 0.4
"""Weight of words against the cosine, which is near 0 for pages that have nothing to do with a topic."""
_READING = 0.2
READABLE = 0.3
"""`Page.article` from which a page counts as one to read."""
_PART = 0.5
"""Weight of the single words of a spelled-out acronym, against the whole."""
_LONG_LOOK_S = 600.0


@dataclass(frozen=True, slots=True)
class Hit:
    """A page with its scores; `relevance` is words and meaning, `score` what it is ranked by."""

    page: Page
    relevance: float
    score: float


class Ranker:
    """Ranks the index's pages for one topic."""

    def __init__(self, index: Index, embed: Embed, topic: str) -> None:
        self._index = index
        self._embed = embed
        self._topic = topic
        self._concepts = query.concepts(topic)
        self._matches = [(concept, *self._match(concept)) for concept in self._concepts]
        self._query: Vectors | None = None

    def rank(self, pages: Sequence[Page]) -> list[Hit]:
        """Best first. Embeds pages that have no vector yet, as far as `MAX_NEW_VECTORS` goes."""
        scored = sorted(((page, self._words(page), _reading(page)) for page in pages), key=lambda s: (-s[1], -s[2]))[
            :MAX_PAGES
        ]
        meaning = self._meaning([page for page, _, _ in scored])
        hits = []
        for page, words, reading in scored:
            relevance = min(1.0, meaning[page.id] + _WORDS * words**2) if page.id in meaning else words
            hits.append(Hit(page, relevance, _worth(page) * (relevance + _READING * reading)))
        return _distinct(sorted(hits, key=lambda hit: (-hit.score, -hit.page.last)))

    def _match(self, concept: query.Concept) -> tuple[float, dict[int, float], list[dict[int, float]]]:
        """Rarity, pages with the concept, and for each of its parts the pages with that word."""
        whole = self._index.match(concept.phrases)
        parts = [self._index.match((part,)) for part in concept.parts]
        return math.log(1 + self._index.size() / (1 + len(whole))), whole, parts

    def _words(self, page: Page) -> float:
        total = sum(rarity for _, rarity, _, _ in self._matches)
        if not total:
            return 0.0
        found = 0.0
        for concept, rarity, whole, parts in self._matches:
            weight = whole.get(page.id, 0.0)
            if weight < COLUMNS["title"] and concept.acronym and query.stands_for(concept.acronym, page.title):
                weight = COLUMNS["title"]
            if parts:
                weight = max(weight, _PART * sum(part.get(page.id, 0.0) for part in parts) / len(parts))
            found += rarity * weight
        return found / total

    def _embed_query(self) -> Vectors | None:
        """The topic alone and in a sentence, halfway between: each form finds some pages that the other misses."""
        words = query.replaced(self._topic)
        forms = self._embed([words, f"an article about {words}"])
        if forms is None:
            return None
        middle: Vectors = forms.sum(axis=0)
        return middle / np.linalg.norm(middle)

    def _meaning(self, pages: Sequence[Page]) -> dict[int, float]:
        if not pages:
            return {}
        if self._query is None:
            self._query = self._embed_query()
        vectors = {} if self._query is None else page_vectors(self._index, self._embed, pages, MAX_NEW_VECTORS)
        if self._query is None or not vectors:
            return {}
        cosines = np.clip(np.stack(list(vectors.values())) @ self._query, 0, 1)
        return dict(zip(vectors, cosines.tolist(), strict=True))


def page_vectors(index: Index, embed: Embed, pages: Sequence[Page], most: int) -> dict[int, Vectors]:
    """Vectors of pages, known ones and up to `most` new ones, which are kept."""
    texts = {page.id: page_text(page) for page in pages}
    digests = {number: hashlib.blake2b(text.encode(), digest_size=8).digest() for number, text in texts.items()}
    known = index.vectors(list(texts))
    vectors = {number: vector for number, (digest, vector) in known.items() if digest == digests[number]}
    missing = [page.id for page in pages if page.id not in vectors][:most]
    if missing:
        made = embed([texts[number] for number in missing])
        if made is None:
            return vectors
        index.keep_vectors((number, digests[number], made[row]) for row, number in enumerate(missing))
        vectors.update(zip(missing, made, strict=True))
    return vectors


def page_text(page: Page) -> str:
    """What a page is embedded as: headline and description; a bare one with the words of its address."""
    headline, _ = split_title(page.title)
    if len(headline.split()) < 2:
        headline = f"{page.title}. {url_words(page.url)}"
    return query.spelled_out(f"{headline}. {page.description[:200]}".strip(". "))


def by_reading(pages: Sequence[Page]) -> list[Hit]:
    """Pages without a topic to rank them by: what was read, most read first."""
    hits = [Hit(page, 0.0, _reading(page)) for page in pages]
    return _distinct(sorted(hits, key=lambda hit: (-hit.score, -hit.page.last)))


def _worth(page: Page) -> float:
    """Less than 1 for what is no page to read: a search holds the question's very words, and is not what it is after."""
    return 0.4 + 0.6 * min(1.0, page.article / READABLE)


def _reading(page: Page) -> float:
    look = math.log1p(min(page.dwell, _LONG_LOOK_S) / 15) / math.log1p(_LONG_LOOK_S / 15)
    return 0.65 * page.article + 0.35 * look


def _distinct(hits: Sequence[Hit]) -> list[Hit]:
    """The first of pages of one site under one title: sites give a story several addresses."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for hit in hits:
        name = (hit.page.host, hit.page.title or hit.page.url)
        if name not in seen:
            seen.add(name)
            kept.append(hit)
    return kept
