"""The embedded model with other graphs, and ways to have a text from an engine."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from llmos.kernel.core.job import Generation
from llmos.kernel.core.model import Model
from llmos.kernel.core.passage import next_slice
from llmos.kernel.core.request import Request
from llmos.kernel.core.sampler import Logits
from llmos.kernel.core.turn import Turn
from tests.system.conftest import STORE

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the runtime is imported, which a model's loading does

FOLDER = STORE / "smollm2-135m"
STORIES = [
    "Once upon a time there was a fox who lived by the sea.",
    "The history of the bicycle began in",
    "List of metals: iron, copper, tin, iron, copper, tin, iron, copper,",
    "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n",
    "Q: What is the capital of France?\nA:",
]


def variant(folder: Path, change: Any) -> Path:
    """A folder with the model's files and another graph."""
    folder.mkdir()
    for path in FOLDER.iterdir():
        if path.name != "model.onnx":
            try:
                (folder / path.name).hardlink_to(path)  # the runtime follows no link out of the folder
            except OSError:
                shutil.copyfile(path, folder / path.name)
    graph = onnx.load(str(FOLDER / "model.onnx"), load_external_data=False)
    change(graph.graph)
    onnx.save(graph, str(folder / "model.onnx"))
    return folder


def tell_positions(graph: Any) -> None:
    """As the importer writes it: which positions' logits to compute is an input with a default."""
    if any(node.name == "told_positions" for node in graph.input):
        return
    graph.input.append(helper.make_tensor_value_info("told_positions", TensorProto.INT64, ["told"]))
    graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "told_positions"))
    for node in graph.node:
        if node.op_type == "Gather" and node.input[1] == "minus_one" and "logits" in str(graph.node[-1].output):
            node.input[1] = "told_positions"
    shape = next(output for output in graph.output if output.name == "logits").type.tensor_type.shape
    shape.dim[1].dim_param = "told"


def want_more(graph: Any) -> None:
    """With an input that the batched engine does not know."""
    graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "new"]))


def seated_in(model: Model, room: int) -> Any:
    row = model.engine.seat(room)
    assert row is not None
    return row


def read(model: Model, row: Any, tokens: Sequence[int], limit: int = 128) -> Logits:
    """Read what the row does not hold of a prompt; the logits after it."""
    while len(row.tokens) < len(tokens):
        count = next_slice(len(tokens) - len(row.tokens), limit)
        logits = model.engine.extend(row, tokens[len(row.tokens) : len(row.tokens) + count])
    last: Logits = logits[-1]
    return last


def alone(model: Model, tokens: Sequence[int], count: int) -> list[Logits]:
    """The logits of each step of a greedy text that nobody is beside."""
    row = model.engine.seat(len(tokens) + count)
    steps = [read(model, row, tokens)]
    while len(steps) < count:
        steps.append(model.engine.step([row], [int(steps[-1].argmax())])[0].copy())
    model.engine.leave(row)
    return steps


def passage(model: Model, prompt: str, *, parked: Sequence[int] = (), **fields: Any) -> tuple[str, Any]:
    """Its text, run by itself and parked after some tokens; and the job."""

    job = Generation(Request(job=1, prompt=prompt, label=str(random.random()), **fields), "m", model)
    text, parks = "", list(parked)
    while job.finish is None:
        turn = Turn((job, 4096) if job.reading else None, [(job, 1)])
        while turn.work():
            text += (job.chunk(last=True) or {}).get("text", "")
        if parks and len(job.passage.output) >= parks[0]:
            parks.pop(0)
            job.leave()
    assert not turn.failed, turn.failed
    job.leave()
    return text + (job.chunk(last=True) or {}).get("text", ""), job
