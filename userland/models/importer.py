"""Turns a GGUF file into a model folder that onnxruntime-genai loads, without PyTorch.

The file is hostile until proven otherwise, and the import is meant to run in a jail: it reads the one file, writes below
one folder, and needs nothing else. `llmos.userland.models.process` runs it so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from llmos.ipc.errors import Code
from llmos.userland.models import description
from llmos.userland.models.architecture import Architecture, read_architecture
from llmos.userland.models.errors import ImportRejected, ModelError, checked_name
from llmos.userland.models.gguf_file import GgufFile
from llmos.userland.models.graph import DecoderGraph, last_position_only
from llmos.userland.models.metadata import Metadata
from llmos.userland.models.packing import SUPPORTED
from llmos.userland.models.staging import publish, staging
from llmos.userland.models.tokenizer import Tokenizer, build_tokenizer
from llmos.userland.models.weights import WeightsFile

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and what is being done."""


def import_gguf(source: Path, parent: Path, name: str, progress: Progress) -> Path:
    """Import `source` as the folder `parent / name`, and return that.

    The folder appears complete or not at all. Reads the file twice: once for its digest, once for its tensors.

    Raises:
        ImportRejected: the file is truncated, corrupt or unsupported; the detail names the tensor or the key.
        ModelError: CONFLICT when the folder exists, INVALID_ARGUMENT for a name that is none.
        OSError: the file cannot be read or the disk is full.
    """
    target = parent / checked_name(name)
    if target.exists():
        raise ModelError(Code.CONFLICT, f"{target} exists already", "remove it first, or choose another name")
    with GgufFile(source) as file, staging(parent) as scratch:
        metadata = Metadata(file.metadata)
        architecture = read_architecture(file.metadata, file.tensors)
        for tensor in file.tensors.values():
            if tensor.type not in SUPPORTED:
                raise ImportRejected(
                    f"tensor {tensor.name}: type {tensor.type.name} is not supported",
                    hint=f"supported types: {', '.join(sorted(kind.name for kind in SUPPORTED))}",
                )
        tokenizer = build_tokenizer(metadata)
        folder = scratch / name
        folder.mkdir()
        total = file.size + sum(tensor.nbytes for tensor in file.tensors.values())
        digest = _digest(source, lambda done: progress(done, total, "reading"))
        _write_model(folder, architecture, file, lambda done, what: progress(file.size + done, total, what))
        _write_json(folder / "genai_config.json", _genai_config(architecture, tokenizer))
        _write_json(folder / "tokenizer.json", tokenizer.json, indent=None)
        _write_json(folder / "tokenizer_config.json", tokenizer.config)
        if tokenizer.chat_template is not None:
            (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
        description.write(folder, _description(name, architecture, tokenizer, file, metadata, digest))
        publish(folder, target)
    return target


def default_name(source: Path) -> str:
    """A model name from a file's own: `Qwen2.5-0.5B.Q4_K_M.gguf` becomes `qwen2.5-0.5b.q4_k_m`."""
    stem = source.name.removesuffix(".gguf").lower()
    return re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")[:64] or "model"


def _digest(source: Path, report: Callable[[int], None]) -> str:
    digest, done = hashlib.sha256(), 0
    with source.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
            done += len(piece)
            report(done)
    return digest.hexdigest()


def _write_model(folder: Path, architecture: Architecture, file: GgufFile, report: Callable[[int, str], None]) -> None:
    done = 0

    def wrote(name: str, nbytes: int) -> None:
        nonlocal done
        done += nbytes
        report(done, name)

    with WeightsFile(folder / "model.onnx.data") as weights:
        model = DecoderGraph(architecture, file, weights, wrote).build()
    onnx.save(model, folder / description.BATCHED_GRAPH)
    onnx.save(last_position_only(model), folder / "model.onnx")


def _write_json(path: Path, content: dict[str, Any], indent: int | None = 1) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


def _genai_config(architecture: Architecture, tokenizer: Tokenizer) -> dict[str, Any]:
    """Source: https://onnxruntime.ai/docs/genai/reference/config.html."""
    a = architecture
    return {
        "model": {
            "type": a.family.genai_type,
            "bos_token_id": tokenizer.bos if tokenizer.bos is not None else tokenizer.eos[0],
            "eos_token_id": list(tokenizer.eos),
            "pad_token_id": tokenizer.pad if tokenizer.pad is not None else tokenizer.eos[0],
            "context_length": a.context,
            "vocab_size": a.vocabulary,
            "decoder": {
                "filename": "model.onnx",
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "hidden_size": a.hidden,
                "head_size": a.head_size,
                "num_attention_heads": a.heads,
                "num_key_value_heads": a.kv_heads,
                "num_hidden_layers": a.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": a.context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def _description(
    name: str, architecture: Architecture, tokenizer: Tokenizer, file: GgufFile, metadata: Metadata, digest: str
) -> dict[str, Any]:
    """What people and the core want to know of a model without loading it."""
    weights = Counter[str]()
    for tensor in file.tensors.values():
        weights[tensor.type.name] += tensor.elements
    return {
        "kind": "generator",
        "name": name,
        "title": metadata.text("general.name", ""),
        "architecture": architecture.kind,
        "parameters": weights.total(),
        "vocabulary": architecture.vocabulary,
        "context": architecture.context,
        "quantisation": weights.most_common(1)[0][0],
        "bos": tokenizer.bos,
        "add_bos": tokenizer.add_bos,
        "eos": list(tokenizer.eos),
        "pad": tokenizer.pad,
        "license": metadata.text("general.license", "") or None,
        "source": {"sha256": digest, "bytes": file.size},
    }
