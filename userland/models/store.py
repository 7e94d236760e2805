"""The models on this machine: one folder each, below `llmos.ipc.paths.models_dir()`.

Folders whose name begins with a dot are being built, downloaded or removed.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.ipc import paths
from llmos.ipc.errors import Code
from llmos.userland.models import description
from llmos.userland.models.errors import ModelError, checked_name
from llmos.userland.models.staging import staging

DEFAULT_GENERATOR = "smollm2-135m"
DEFAULT_EMBEDDER = "minilm"


@dataclass(frozen=True, slots=True)
class Model:
    """One installed model.

    Attributes:
        kind: `generator` or `embedding`.
        parameters: count of weights; None when its maker does not say.
        context: tokens it can see at once.
        quantisation: of the source's weights, such as `Q4_1`.
        license: an SPDX expression where known.
        source: where it came from, for people.
        size: bytes on disk.
        problem: why it cannot be used; empty for a sound one.
    """

    name: str
    path: Path
    kind: str = ""
    architecture: str = ""
    parameters: int | None = None
    context: int | None = None
    quantisation: str = ""
    license: str | None = None
    source: str = ""
    size: int = 0
    problem: str = ""


def list() -> builtins.list[Model]:  # noqa: A001 -- callers say `store.list()`
    """All models, by name; a damaged one is listed with its problem."""
    root = paths.models_dir()
    if not root.is_dir():
        return []
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    return [_described(folder) for folder in folders]


def show(name: str) -> Model:
    """One model. Raises `ModelError` NOT_FOUND naming those there are."""
    return _described(path(name))


def path(name: str) -> Path:
    """The folder of an installed model. Raises `ModelError` NOT_FOUND."""
    folder = paths.models_dir() / checked_name(name)
    if not folder.is_dir():
        there = ", ".join(model.name for model in list()) or "none"
        raise ModelError(
            Code.NOT_FOUND, f"no model {name!r} is installed; installed: {there}", f"llmosctl model pull {name}"
        )
    return folder


def remove(name: str) -> int:
    """Delete a model; the bytes freed. A process that has it loaded keeps its mapped weights until it lets go.

    Raises `ModelError` NOT_FOUND, `OSError`.
    """
    model = show(name)
    with staging(paths.models_dir()) as grave:  # gone at once under its name, whatever interrupts the deletion
        model.path.rename(grave / name)
    return model.size


def default(kind: str = "generator") -> Model:
    """The model to use where none is named: the embedded one, otherwise the first sound one of its kind.

    Raises `ModelError` NOT_FOUND when there is none.
    """
    preferred = DEFAULT_GENERATOR if kind == "generator" else DEFAULT_EMBEDDER
    sound = [model for model in list() if model.kind == kind and not model.problem]
    chosen = next((model for model in sound if model.name == preferred), None) or next(iter(sound), None)
    if chosen is None:
        raise ModelError(Code.NOT_FOUND, f"no {kind} model is installed", f"llmosctl model pull {preferred}")
    return chosen


def _described(folder: Path) -> Model:
    size = sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())
    try:
        said = description.read(folder)
    except (OSError, ValueError) as error:
        return Model(folder.name, folder, size=size, problem=f"it cannot be described: {error}")
    missing = [name for name in ("model.onnx", "tokenizer.json") if not (folder / name).is_file()]
    return Model(
        name=folder.name,
        path=folder,
        kind=str(said.get("kind", "")),
        architecture=str(said.get("architecture", "")),
        parameters=said.get("parameters"),
        context=said.get("context"),
        quantisation=str(said.get("quantisation") or ""),
        license=said.get("license"),
        source=_source(said.get("source")),
        size=size,
        problem=f"{', '.join(missing)} missing: pull or import it again" if missing else "",
    )


def _source(said: Any) -> str:
    if not isinstance(said, dict):
        return ""
    if "hub" in said:
        path = f"/{said['path']}" if said.get("path") else ""
        return f"hf:{said['hub']}{path}@{str(said.get('revision', ''))[:12]}"
    if "package" in said:
        return f"{said['package']} {said.get('version', '')}".strip()
    return f"file, sha256 {str(said.get('sha256', ''))[:16]}…"
