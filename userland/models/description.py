"""`llmos.json`: what a model folder says of itself.

Fields: `format`, `kind` ("generator" or "embedding"), `name`, `title`, `architecture`, `parameters`, `license`, `source`
(of an import: `sha256`, `bytes`; of a pull also `package`, `version`; of the hub `hub`, `path`, `revision`, which is a commit, `asked`,
the revision that was named, and `bytes`). A generator has `vocabulary`, `context`, `quantisation` (of the source), `bos`, `add_bos`,
`eos` (every id that ends a turn), `pad`; an embedding model `dim`, `max_tokens`, `pooling`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "llmos.json"
FORMAT = 1
BATCHED_GRAPH = "batched.onnx"
"""The graph for the core's own engine, in the folders that the importer makes; `model.onnx` is for GenAI."""


def write(folder: Path, fields: dict[str, Any]) -> None:
    """Raises `OSError`."""
    text = json.dumps({"format": FORMAT, **fields}, ensure_ascii=False, indent=1)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """The fields. Raises `OSError`, or `ValueError` saying what is wrong with the file."""
    fields: Any = json.loads((folder / FILE).read_text(encoding="utf-8"))
    written = fields.get("format") if isinstance(fields, dict) else None
    if written != FORMAT:
        raise ValueError(f"{FILE} has format {written!r}, this version of llmos reads {FORMAT}")
    described: dict[str, Any] = fields
    return described
