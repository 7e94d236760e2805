"""A system of one made-up driver, scripted, for the assistant: what it knows of the world comes in through ops alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from llmos.ipc.embedding import DIM, Vectors
from llmos.ipc.errors import Code, OpError
from llmos.userland.assistant.loop import Assistant
from llmos.userland.assistant.reading import FUNCTION_WORDS
from llmos.userland.assistant.words import stems

NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)
"""A Monday."""

Serve = Callable[[dict[str, Any]], dict[str, Any]]


def embed(texts: Sequence[str]) -> Vectors:
    """Vectors that are alike as far as the texts share words, and function words hardly count."""
    rows = np.full((len(texts), DIM), 1e-3, np.float32)
    for row, text in zip(rows, texts, strict=True):
        for stem in stems(text):
            row[zlib.crc32(stem.encode()) % DIM] += 0.3 if stem in FUNCTION_WORDS else 1.0
    normal: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normal


@dataclass
class Said:
    """A generation that has ended."""

    text: str

    def __iter__(self) -> Iterator[str]:
        return iter([self.text[: len(self.text) // 2], self.text[len(self.text) // 2 :]])


@dataclass
class System:
    """`ops` as `sys.ops` lists them, `serve` what answers each, `says` the model's answers in turn."""

    ops_listed: list[dict[str, Any]]
    serve: dict[str, Serve]
    says: list[str] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    emitted: list[dict[str, Any]] = field(default_factory=list)

    @property
    def client(self) -> System:
        return self

    def ops(self) -> list[dict[str, Any]]:
        return self.ops_listed

    def embed(self, texts: Sequence[str]) -> Vectors:
        return embed(texts)

    def call(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((op, args))
        return self.serve[op](args)

    def generate(self, **request: Any) -> Said:
        self.asked.append(request)
        if not self.says:
            raise OpError(Code.UNAVAILABLE, "no model", "llmosctl model pull smollm2-135m")
        return Said(self.says.pop(0))

    def now(self) -> datetime:
        return NOW

    def emit(self, **data: Any) -> None:
        self.emitted.append(data)

    def answer(self, question: str) -> dict[str, Any]:
        """What the assistant answers on this system."""
        return Assistant(self).answer(question)  # type: ignore[arg-type]  # a double of the agent


def op(name: str, summary: str, utterances: list[str], effect: str = "read", **args: dict[str, Any]) -> dict[str, Any]:
    """An entry of `sys.ops`."""
    return {
        "op": name,
        "summary": summary,
        "utterances": utterances,
        "effect": effect,
        "args": args,
        "control": [],
        "tags": [],
    }


RECIPES = [
    op(
        "pantry.search",
        "Find recipes in the cook book by dish and cook",
        [
            "find a recipe for pancakes",
            "the recipe about lentils I cooked last week",
            "which dish with rice did I make",
        ],
        query={"type": "string", "role": "query"},
        cooked={"type": "string", "role": "period"},
        cook={"type": "string", "role": "host"},
        most={"type": "integer", "role": "count", "maximum": 30},
    ),
    op("pantry.stock", "List what is in the pantry", ["what is in the pantry", "do we have flour in stock"]),
    op(
        "pantry.timer",
        "Set a kitchen timer",
        ["set a timer for the eggs", "start the kitchen timer", "remind me when the pasta is done"],
        effect="actuate",
        minutes={"type": "integer", "required": True, "description": "how long"},
    ),
]
"""A driver that the assistant has never heard of."""
