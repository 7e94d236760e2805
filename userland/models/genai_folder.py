"""A GenAI folder on the hub, as hostile input: which folder of a repository, which of its files, and what its configuration may say.

Only what one text decoder needs is taken: `genai_config.json`, one graph, the data files that the graph names, and the
tokenizer's files. The configuration is written anew from what was read, so that what the engine reads is what was checked.

Source: https://onnxruntime.ai/docs/genai/reference/config.html and `src/config.cpp` of
https://github.com/microsoft/onnxruntime-genai.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ImportRejected, ModelError
from llmos.userland.models.hub import RemoteFile
from llmos.userland.models.reference import Reference, safe_name

CONFIG = "genai_config.json"
CONFIG_BYTES = 1 << 20
SIDE_FILES = {
    "tokenizer.json": 64 << 20,
    "tokenizer_config.json": 4 << 20,
    "special_tokens_map.json": 1 << 20,
    "added_tokens.json": 4 << 20,
    "chat_template.jinja": 1 << 20,
    "tokenizer.model": 64 << 20,
}
"""What is taken beside the configuration and the graph where it is there, and the most bytes of each."""
GRAPH_BYTES = 2 << 30
"""The most that a protocol buffer can be."""
MAX_DATA_FILES = 64

_GRAPH = re.compile(r".+\.onnx")
_DATA = re.compile(r".+\.(onnx[._]data(_\d{1,3})?|data)")
_PROVIDER_WORDS = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "gpu", "tensorrt", "trt", "rtx"),
    "dml": ("directml", "dml"),
    "webgpu": ("webgpu",),
    "npu": ("qnn", "npu", "openvino", "vitisai", "ryzenai", "amd", "intel", "qualcomm"),
}
_OTHER_GRAPHS = ("encoder", "embedding", "vision", "speech", "audio", "mtp", "pipeline")
_TEXTS = ("inputs", "outputs", "prompt_templates")
"""Under these keys strings are names of tensors, or texts: no file is opened by them."""
_OPTIONS = ("session_options", "run_options", "provider_options")
_FILE_OPTION = re.compile(r"path|file|folder|dir(ectory)?\b|_dir|library|profil", re.IGNORECASE)
_REACHES_OUT = re.compile(r"^[/~\\]|^[A-Za-z]:[\\/]|(^|[/\\])\.\.([/\\]|$)|://|\.(so|dll|dylib)(\.|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a checked configuration says.

    Attributes:
        text: the configuration as it is to be written; its graph is called `model.onnx`.
        graph: what the graph is called in the repository's folder.
        providers: for which it was made, by its own word; empty for the CPU.
        eos: every id that ends a turn.
    """

    text: str
    graph: str
    architecture: str
    vocabulary: int
    context: int
    providers: tuple[str, ...]
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def choose_folder(files: Mapping[str, RemoteFile], wanted: Reference) -> str:
    """The folder of the repository that is meant, "" for its root.

    Without a path it is the only one for the CPU, or else the only one that does not say what it is for.

    Raises `ModelError` NOT_FOUND (the hint lists what there is) or INVALID_ARGUMENT (more than one would do).
    """
    folders = sorted(path.removesuffix(CONFIG).rstrip("/") for path in files if path.rpartition("/")[2] == CONFIG)
    folders = [folder for folder in folders if all(map(safe_name, folder.split("/") if folder else []))]
    ggufs = sorted(path for path in files if path.endswith(".gguf"))
    if wanted.path:
        if wanted.path in folders:
            return wanted.path
        raise ModelError(Code.NOT_FOUND, f"{wanted} has no {CONFIG}", _offered(wanted, folders, ggufs))
    if not folders:
        detail = f"{wanted.repository} has no GenAI folder: there is no {CONFIG}"
        raise ModelError(Code.NOT_FOUND, detail, _offered(wanted, folders, ggufs))
    fitting = [folder for folder in folders if provider_of(folder) == "cpu"]
    fitting = fitting or [folder for folder in folders if provider_of(folder) is None]
    if len(fitting) != 1:
        detail = f"{wanted.repository} has {len(folders)} model(s), {len(fitting)} of them for the CPU: say which"
        raise ModelError(Code.INVALID_ARGUMENT, detail, _offered(wanted, folders, ggufs))
    return fitting[0]


def _offered(wanted: Reference, folders: list[str], ggufs: list[str]) -> str:
    offered = [f"hf:{wanted.repository}{'/' + path if path else ''}" for path in (*folders, *ggufs)]
    if not offered:
        return "llmos installs GenAI folders (with a genai_config.json) and GGUF files; look for one with -onnx or -GGUF in its name"
    return "there is: " + ", ".join(offered[:12]) + (f" and {len(offered) - 12} more" if len(offered) > 12 else "")


def provider_of(folder: str) -> str | None:
    """For what a folder was made, by the words of its path; None when they do not say."""
    words = re.split(r"[^a-z0-9]+", folder.lower())
    return next((name for name, known in _PROVIDER_WORDS.items() if any(word in known for word in words)), None)


def side_files(files: Mapping[str, RemoteFile], folder: str) -> list[RemoteFile]:
    """The tokenizer's files. Raises `ImportRejected` without a tokenizer, or when one is larger than any is."""
    taken = []
    for name, limit in SIDE_FILES.items():
        file = files.get(_beneath(folder, name))
        if file is None:
            continue
        if file.size > limit:
            raise ImportRejected(f"{file.path}: {file.size} bytes, where {limit} are the most")
        taken.append(file)
    if not any(file.name == "tokenizer.json" for file in taken):
        raise ImportRejected(f"{folder or 'the folder'} has no tokenizer.json", "take a model with one")
    return taken


def graph_file(files: Mapping[str, RemoteFile], folder: str, configuration: Configuration) -> RemoteFile:
    """The graph. Raises `ImportRejected`."""
    file = files.get(_beneath(folder, configuration.graph))
    if file is None:
        raise ImportRejected(f"{CONFIG} names {configuration.graph}, which is not there")
    if file.size > GRAPH_BYTES:
        raise ImportRejected(f"{file.path}: {file.size} bytes are more than a graph can have")
    return file


def data_files(files: Mapping[str, RemoteFile], folder: str, external: Mapping[str, int]) -> list[RemoteFile]:
    """The files that a graph keeps its weights in. `external`: their names, and how far into each it reads.

    Raises `ImportRejected` for one that is no data file of the folder's, or is shorter than the graph reads.
    """
    if len(external) > MAX_DATA_FILES:
        raise ImportRejected(f"the graph keeps its weights in {len(external)} files")
    taken = []
    for name, end in external.items():
        file = files.get(_beneath(folder, name)) if safe_name(name) and _DATA.fullmatch(name) else None
        if file is None:
            raise ImportRejected(f"the graph reads weights from {name[:200]!r}, which is no data file of its folder")
        if file.size < end:
            raise ImportRejected(f"{name} has {file.size} bytes, the graph reads {end}")
        taken.append(file)
    return taken


def _beneath(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def read_configuration(content: bytes) -> Configuration:
    """Check a `genai_config.json`. Raises `ImportRejected` naming the key."""
    try:
        said = json.loads(content, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise ImportRejected(f"{CONFIG} cannot be read: {error}") from error
    try:
        model, decoder = said["model"], said["model"]["decoder"]
        _check(said, ())
        for name in _OTHER_GRAPHS:
            if model.get(name) or decoder.get(name):
                raise ImportRejected(
                    f"{CONFIG}: model.{name}: the model has more graphs than one decoder", "take one for text alone"
                )
        graph = decoder["filename"]
        if not isinstance(graph, str) or not safe_name(graph) or not _GRAPH.fullmatch(graph):
            raise ImportRejected(f"{CONFIG}: model.decoder.filename: {str(graph)[:200]!r} names no graph of the folder")
        for name in ("num_hidden_layers", "num_key_value_heads", "head_size"):
            _count(decoder[name], f"model.decoder.{name}")
        decoder["filename"] = "model.onnx"
        return Configuration(
            text=json.dumps(said, ensure_ascii=False, indent=1) + "\n",
            graph=graph,
            architecture=str(model["type"])[:100],
            vocabulary=_count(model["vocab_size"], "model.vocab_size"),
            context=_count(model["context_length"], "model.context_length"),
            providers=_providers(decoder),
            bos=model.get("bos_token_id") if isinstance(model.get("bos_token_id"), int) else None,
            eos=_ids(model["eos_token_id"]),
            pad=model.get("pad_token_id") if isinstance(model.get("pad_token_id"), int) else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ImportRejected(f"{CONFIG} does not describe a text model: {type(error).__name__} {error}") from error


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers may each take another one of two values under one key."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands there twice")
    return made


def _check(value: Any, path: tuple[str, ...]) -> None:
    """Raises `ImportRejected` for what names a file, a library or a place; depth is bounded by the JSON parser's own."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_key((*path, key), inner)
            _check(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            _check(inner, path)
    elif isinstance(value, str) and not any(name in path for name in _TEXTS) and _REACHES_OUT.search(value):
        raise ImportRejected(f"{CONFIG}: {'.'.join(path)}: {value[:200]!r} reaches out of the folder")


def _check_key(path: tuple[str, ...], value: Any) -> None:
    where, key = ".".join(path), path[-1]
    if "custom_op" in key.lower():
        raise ImportRejected(
            f"{CONFIG}: {where}: a library of its own is not loaded", "take a model without custom operators"
        )
    if (
        any(name in path[:-1] for name in _OPTIONS)
        and _FILE_OPTION.search(key)
        and value not in (None, "", False, [], {})
    ):
        raise ImportRejected(f"{CONFIG}: {where}: settings that name files or libraries are not taken")
    if key.endswith("filename") and path != ("model", "decoder", "filename"):
        raise ImportRejected(f"{CONFIG}: {where}: the model has more files than one decoder", "take one for text alone")


def _count(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise ImportRejected(f"{CONFIG}: {key}: {str(value)[:100]} is no count")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(token, int) and not isinstance(token, bool) for token in found):
        raise ImportRejected(f"{CONFIG}: model.eos_token_id: {str(value)[:100]} is no token")
    return tuple(found)


def _providers(decoder: Mapping[str, Any]) -> tuple[str, ...]:
    options = decoder.get("session_options", {}).get("provider_options", [])
    return tuple(name for option in options for name in option if str(name).lower() != "cpu")
