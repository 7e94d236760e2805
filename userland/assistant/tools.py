"""The ops an assistant may use, and which of them a question asks for: by likeness to what people say to want each.

A small model that chooses among six ops is right one time in twelve, likeness to example utterances nearly always. So code
ranks, and a model is asked only about a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from llmos.ipc.embedding import Vectors
from llmos.ipc.manifest import Arg
from llmos.ipc.protocol import Effect
from llmos.userland.assistant.reading import Question, op_words, read

Embed = Callable[[Sequence[str]], Vectors]

NEAREST = 2
"""Utterances of an op that count: a mean of two is less easily fooled by an example's topic than the nearest alone."""
LOST_ABOUT, LOST_TOPIC, LOST_DETAIL = 0.2, 0.1, 0.05
"""What an op loses that has no argument for what is asked *about*, for other words, for a time or a place; in cosine."""
NAMED_FILE = 0.1
"""What an op gains that works on one file, when a file is named."""


class Tool(msgspec.Struct, frozen=True):
    """One op, as `sys.ops` lists it."""

    op: str
    summary: str
    effect: Effect = Effect.READ
    utterances: list[str] = []
    args: dict[str, Arg] = {}

    def taking(self, role: str) -> str:
        """Name of the argument with that role; empty when there is none."""
        return next((name for name, arg in self.args.items() if arg.role == role), "")

    @property
    def provider(self) -> str:
        """Who serves it: a driver's name, or `app`."""
        return self.op.partition(".")[0]

    @property
    def can_be_compared(self) -> bool:
        """Is it a search, harmless to make beside another and judged by what it finds?"""
        return self.effect is Effect.READ and bool(self.taking("query"))

    @property
    def examples(self) -> list[str]:
        """What says what it is for."""
        return [self.summary, *self.utterances]


@dataclass(frozen=True, slots=True)
class Choice:
    """A tool and how well it fits; about 1 is perfect, under 0.3 is chance."""

    tool: Tool
    score: float


class Toolbox:
    """The ops at hand, ready to be compared with questions."""

    def __init__(self, tools: Sequence[Tool], now: datetime, embed: Embed) -> None:
        self.tools = list(tools)
        self.words = op_words((text for tool in tools for text in tool.utterances), now)
        self._embed = embed
        self._bare = [[read(text, now, self.words).bare for text in tool.examples] for tool in tools]

    def rank(self, question: Question) -> list[Choice]:
        """Every tool, best first: by what the question says as a whole, and by what is left without its topic."""
        if not self.tools:
            return []
        whole = self._likeness(question.text, [tool.examples for tool in self.tools])
        bare = self._likeness(question.bare or question.text, self._bare)
        choices = [
            Choice(tool, _nearest((of_whole + of_bare) / 2) - _lost(tool, question))
            for tool, of_whole, of_bare in zip(self.tools, whole, bare, strict=True)
        ]
        return sorted(choices, key=lambda choice: -choice.score)

    def _likeness(self, text: str, groups: Sequence[Sequence[str]]) -> list[Vectors]:
        """Per group, the cosine of each of its texts with `text`."""
        vectors = self._embed([text, *(example for group in groups for example in group)])
        return np.split(vectors[1:] @ vectors[0], np.cumsum([len(group) for group in groups])[:-1])


def read_tools(ops: Iterable[dict[str, Any]]) -> list[Tool]:
    """The tools of a `sys.ops` answer; an entry of a shape this version does not know is left out."""
    tools = []
    for entry in ops:
        try:
            tools.append(msgspec.convert(entry, Tool, strict=False))
        except msgspec.ValidationError:  # another version's entry: the others still serve
            continue
    return tools


def _nearest(likeness: npt.NDArray[np.floating[Any]]) -> float:
    return float(np.mean(np.sort(likeness)[-NEAREST:]))


def _lost(tool: Tool, question: Question) -> float:
    """How much of what the question says the tool has no argument for."""
    topic = any(reading.query for reading in question.readings)
    kept = tool.taking("query") or (question.paths and tool.taking("path"))
    lost = 0.0 if kept or not topic else LOST_ABOUT if question.announced in ("topic", "title") else LOST_TOPIC
    lost += LOST_DETAIL if question.readings[0].place and not tool.taking("host") else 0.0
    lost += LOST_DETAIL if question.period and not tool.taking("period") else 0.0
    path = tool.args.get(tool.taking("path"))
    named = any(set("/.") & set(name) for name in question.paths)
    return lost - (NAMED_FILE if named and path is not None and path.required else 0.0)
