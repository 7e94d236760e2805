"""The embedded model with other graphs, and ways to have a text from an engine."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

from onnx import TensorProto, helper

from llmos.kernel.core.job import Generation
from llmos.kernel.core.model import Model
from llmos.kernel.core.passage import next_slice
from llmos.kernel.core.request import Request
from llmos.kernel.core.sampler import Logits
from llmos.kernel.core.turn import Turn

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the runtime is imported, which a model's loading does

STORIES = [
    "Once upon a time there was a fox who lived by the sea.",
    "The history of the bicycle began in",
    "List of metals: iron, copper, tin, iron, copper, tin, iron, copper,",
    "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n",
    "Q: What is the capital of France?\nA:",
]


def tell_positions(graph: Any) -> None:
    """As the importer writes it for the batched engine: which positions' logits to compute is an input with a default."""
    graph.input.append(helper.make_tensor_value_info("told_positions", TensorProto.INT64, ["told"]))
    shape = next(output for output in graph.output if output.name == "logits").type.tensor_type.shape
    shape.dim[1].dim_param = "told"


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
