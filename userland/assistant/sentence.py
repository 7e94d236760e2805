"""The sentence on top of the cards: the model chooses the words around the facts, and can say no fact of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from llmos.userland.assistant.cards import Card
from llmos.userland.assistant.words import stems

MAX_TITLE = 120
"""Characters of a title inside a sentence."""
MAX_SENTENCE_TOKENS = 160


class Model(Protocol):
    """What a sentence is made with."""

    def generate(
        self, *, messages: Sequence[dict[str, str]], max_tokens: int, regex: str | None = None
    ) -> Iterator[str]:
        """Pieces of text."""


def about(card: Card, question: str, model: Model, *, sure: bool) -> Iterator[str]:
    """One sentence that names the card, piece by piece: its facts are literals of a grammar, its wording the model's."""
    openings = (
        ("It was", "That was", "I found it:", "I think you mean") if sure else ("It may have been", "The nearest is")
    )
    facts = f"“{_shorten(card.title)}”"
    places = [f" {word} {card.site}" for word in ("on", "from")] if card.url else [f" in {card.site}"] * bool(card.site)
    regex = f"({'|'.join(map(_literal, openings))}) {_literal(facts)}"
    regex += f"({'|'.join(map(_literal, places))})" if places else ""
    regex += _literal(f", {card.when}") if card.when else ""
    told = f"Question: {question}\nFound: {facts}{places[0] if places else ''}{f', {card.when}' if card.when else ''}"
    prompt = [{"role": "system", "content": "Answer in one short sentence."}, {"role": "user", "content": told}]
    return model.generate(messages=prompt, max_tokens=MAX_SENTENCE_TOKENS, regex=regex + r"\.")


def plain(card: Card, *, sure: bool) -> str:
    """The same without a model."""
    place = f" {'on' if card.url else 'in'} {card.site}" if card.site else ""
    return f"{'It was' if sure else 'It may have been'} “{_shorten(card.title)}”{place}{f', {card.when}' if card.when else ''}."


def from_text(question: str, text: str, model: Model) -> str | None:
    """An answer out of a text that was read; None when it says something that neither text nor question says."""
    told = f"{text}\n\nQuestion: {question}\nAnswer in one or two sentences, only from the text above."
    answer = "".join(model.generate(messages=[{"role": "user", "content": told}], max_tokens=90)).strip()
    return answer if answer and is_grounded(answer, f"{question} {text}") else None


def is_grounded(answer: str, source: str) -> bool:
    """Does every name, number and quotation in the answer come from the source? Words inside a sentence only."""
    known = set(stems(source))
    for sentence in re.split(r"(?<=[.!?])\s+", answer):
        words = re.findall(r"[^\W_][\w'’.-]*", sentence)
        for at, word in enumerate(words):
            telling = any(map(str.isdigit, word)) or (at > 0 and word[0].isupper() and word != "I")
            if telling and not set(stems(word)) <= known:
                return False
    quoted = re.findall(r"[“\"]([^”\"]+)[”\"]", answer)
    return all(" ".join(stems(part)) in " ".join(stems(source)) for part in quoted)


def _shorten(title: str) -> str:
    title = title.replace("“", "‘").replace("”", "’").replace('"', "'")
    return title if len(title) <= MAX_TITLE else title[:MAX_TITLE].rsplit(" ", 1)[0] + " …"


def _literal(text: str) -> str:
    """Text as a regular expression that matches itself, escaping only what both Python and Rust understand."""
    return re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", text)
