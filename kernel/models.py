"""The models of this machine: which are loaded, and how they share its memory. No core here: `engine.py` loads and unloads.

Memory is divided once, at boot: the models and their KV get `MODEL_SHARE` of the machine's, of which KV gets half of what the default
model's weights leave. `LLMOS_MODEL_MEMORY`, `LLMOS_KV_MEMORY` and `LLMOS_SPILL` say otherwise: bytes, or a number with K, M or G.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params

PREFERRED = "smollm2-135m"
"""The model taken when the user has chosen none, if it is in the store; otherwise the first that is."""
EMBEDDER = "minilm"
"""The same for embeddings."""
_SIZE = re.compile(r"([0-9]{1,15})([KMG]?)(?:i?B)?", re.IGNORECASE)


class Kind(StrEnum):
    """What a model makes."""

    GENERATOR = "generator"
    EMBEDDING = "embedding"


class State(StrEnum):
    """Of one model that is wanted."""

    WAITING = "waiting"
    """For the core, or for another model to be loaded."""
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(eq=False)
class Model:
    """One that is loaded, is to be, or could not be."""

    name: str
    folder: Path
    kind: Kind
    weights: int
    """Bytes of its files, which is about what it takes in memory."""
    state: State = State.WAITING
    problem: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    """What the core says of it: `context`, `kv_bytes` of a token, `engine`, `provider`, `why`."""
    used: float = 0.0
    """When a job was last given to it, or it was loaded, on the loop's clock."""
    crashes: int = 0
    """In a row, of the core, while it was being loaded."""

    def describe(self) -> dict[str, Any]:
        """A row of `llm.stats`."""
        told = {name: self.info.get(name, "") for name in ("engine", "provider", "why")}
        row = {"name": self.name, "kind": self.kind.value, "state": self.state.value, "problem": self.problem}
        return {**row, **told, "weights_mb": round(self.weights / 1e6, 1)}


@dataclass(frozen=True)
class Memory:
    """How much of the machine's memory, and of its disk, the models and their contexts may have. Bytes."""

    weights: int
    kv: int
    spill: int

    @classmethod
    def plan(cls, machine: int, first: int, disk: int, environment: Mapping[str, str]) -> Memory:
        """Divide it.

        Args:
            machine: bytes of memory that there are for everything.
            first: bytes of the default model's weights.
            disk: bytes that are free where contexts are spilled to.

        Raises:
            OpError: INVALID_ARGUMENT for a variable that is no size.
        """
        whole = _size(environment, "LLMOS_MODEL_MEMORY", int(machine * params.MODEL_SHARE))
        rest = max(0, whole - first) // 2
        kv = _size(environment, "LLMOS_KV_MEMORY", max(params.KV_LEAST, min(rest, params.KV_MOST)))
        spill = _size(environment, "LLMOS_SPILL", min(params.SPILL_MOST, int(disk * params.SPILL_SHARE)))
        return cls(max(0, whole - kv), kv, min(spill, params.SPILL_MOST))


class Models:
    """What is in the store, and which of it is loaded.

    Args:
        store: the directory with a directory for each model.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.memory = Memory(0, 0, 0)
        self.default: str | None = None
        """The model of requests that name none."""
        self._wanted: dict[str, Model] = {}

    def __iter__(self) -> Iterator[Model]:
        """Those that are loaded, are to be, or could not be; the default first."""
        return iter(sorted(self._wanted.values(), key=lambda one: one.name != self.default))

    @property
    def weights(self) -> int:
        """Bytes of those that are loaded, or are to be."""
        return sum(one.weights for one in self._wanted.values() if one.state is not State.FAILED)

    def get(self, name: str) -> Model | None:
        """One that is wanted."""
        return self._wanted.get(name)

    def names(self, kind: Kind = Kind.GENERATOR) -> list[str]:
        """Those in the store, sorted."""
        with suppress(OSError):
            return sorted(path.name for path in self.store.iterdir() if _kind(path) is kind)
        return []

    def choose(self, name: str | None, kind: Kind = Kind.GENERATOR) -> str | None:
        """The one named, else the preferred one, else any; None when there is none such."""
        names = self.names(kind)
        if name is not None:
            return name if name in names else None
        preferred = PREFERRED if kind is Kind.GENERATOR else EMBEDDER
        return preferred if preferred in names else names[0] if names else None

    def installed(self, name: str) -> Model:
        """A model of the store, not wanted by that. Raises `OpError(NOT_FOUND)`."""
        folder = self.store / name
        kind = _kind(folder)
        if kind is None:
            hint = f"llmosctl model pull {name}, or see `llmosctl model ls`"
            raise OpError(Code.NOT_FOUND, f"no model {name!r} is installed", hint)
        return Model(name, folder.resolve(), kind, _bytes_of(folder))

    def room_for(self, model: Model, idle: Callable[[Model], bool]) -> list[Model]:
        """The loaded models that have to go before `model` fits, least recently used first; only idle ones go.

        The default stays for as long as others suffice. Raises `OpError`: `TOO_LARGE` when it would not fit alone, `BUSY` when those in the
        way are in use.
        """
        limit = self.memory.weights
        if model.weights > limit:
            detail = f"{model.name} takes {_mb(model.weights)}, and all models together may have {_mb(limit)}"
            raise OpError(Code.TOO_LARGE, detail, "take a smaller one, or set LLMOS_MODEL_MEMORY, e.g. to 12G")
        held = [one for one in self._wanted.values() if one is not model and one.state is not State.FAILED]
        left = limit - sum(one.weights for one in held)
        going: list[Model] = []
        for one in sorted(held, key=lambda one: (one.name == self.default, one.used)):
            if left >= model.weights:
                break
            if one.state is State.READY and idle(one):
                going.append(one)
                left += one.weights
        if left < model.weights:
            busy = ", ".join(one.name for one in held if one not in going)
            detail = f"{model.name} takes {_mb(model.weights)}; {_mb(left)} are left beside {busy}, in use now"
            raise OpError(Code.BUSY, detail, "wait, or unload one with `llmosctl model unload NAME`")
        for one in list(going):  # a small one need not go for nothing
            if left - one.weights >= model.weights:
                going.remove(one)
                left -= one.weights
        return going

    def want(self, model: Model) -> None:
        """It is to be loaded."""
        self._wanted[model.name] = model

    def drop(self, model: Model) -> None:
        """It is not loaded any more, nor to be."""
        self._wanted.pop(model.name, None)


def machine_memory() -> int:
    """Bytes that the kernel's processes may use: the machine's, or its control group's where that is less."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found = min(found, int(Path(path).read_text()))
    return found


def free_disk(path: Path) -> int:
    """Bytes; 0 where that cannot be told."""
    with suppress(OSError):
        return shutil.disk_usage(path).free
    return 0


def _kind(folder: Path) -> Kind | None:
    """By what lies in it: None for what is no model."""
    with suppress(OSError):
        if (folder / "genai_config.json").is_file():
            return Kind.GENERATOR
        if (folder / "llmos.json").is_file() and (folder / "model.onnx").is_file():
            return Kind.EMBEDDING
    return None


def _bytes_of(folder: Path) -> int:
    """Of the files right in it."""
    with suppress(OSError):
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return 0


def _size(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return otherwise
    match = _SIZE.fullmatch(text)
    if match is None:
        raise OpError(Code.INVALID_ARGUMENT, f"{name}={text!r} is no size", "write bytes, or a number with K, M or G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
