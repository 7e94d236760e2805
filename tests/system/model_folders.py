"""Folders of the embedded model with something changed, which take no room: all other files are links."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from tests.system.conftest import STORE

FOLDER = STORE / "smollm2-135m"


def variant(folder: Path, change: Callable[[Any], None]) -> Path:
    """The model's files and another graph, for either engine, which `change` makes of the one that it is given."""
    _link(folder, "model.onnx", "batched.onnx")
    graph = onnx.load(str(FOLDER / "model.onnx"), load_external_data=False)
    change(graph.graph)
    onnx.save(graph, str(folder / "model.onnx"))
    return folder


def small_window(folder: Path, tokens: int) -> Path:
    """The model with a context window of so many tokens."""
    _link(folder, "genai_config.json")
    config = json.loads((FOLDER / "genai_config.json").read_text())
    config["model"]["context_length"] = tokens
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def want_more(graph: Any) -> None:
    """With an input that the batched engine does not know."""
    graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "new"]))


def take_all_for_the_longest(graph: Any) -> None:
    """With the longest row's length for all rows."""
    at, maker = next((at, node) for at, node in enumerate(graph.node) if "row_lengths" in node.output)
    maker.output[0] = "own_lengths"
    longest = helper.make_node("ReduceMax", ["own_lengths"], ["longest"], keepdims=1)
    nothing = helper.make_node("Sub", ["own_lengths", "own_lengths"], ["nothing"])
    for node in (helper.make_node("Add", ["nothing", "longest"], ["row_lengths"]), nothing, longest):
        graph.node.insert(at + 1, node)


def contradict(graph: Any) -> None:
    """Turn logits round: what was likeliest is last, and so this is another model."""
    maker = next(node for node in graph.node if "logits" in node.output)
    maker.output[list(maker.output).index("logits")] = "agreed"
    graph.node.append(helper.make_node("Neg", ["agreed"], ["logits"]))


def _link(folder: Path, *but: str) -> None:
    folder.mkdir()
    for path in FOLDER.iterdir():
        if path.name not in but:
            try:
                (folder / path.name).hardlink_to(path)  # the runtime follows no link out of the folder
            except OSError:
                shutil.copyfile(path, folder / path.name)
