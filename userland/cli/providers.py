"""Which of onnxruntime's execution providers work here, by running a graph on each. Prints JSON; run by `doctor`.

A process of its own: a provider whose driver is broken may take its process down with it.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: its wheels send telemetry unless they are told not to

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

ort.set_default_logger_severity(4)


def trial() -> bytes:
    """A graph of one MatMul."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "trial", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    packed: bytes = model.SerializeToString()
    return packed


def problem(provider: str, model: bytes) -> str:
    """What is wrong with a provider; empty when it computes."""
    try:
        session = ort.InferenceSession(model, providers=[provider])
        if session.get_providers()[0] != provider:
            return "it cannot be loaded here"
        (result,) = session.run(None, {"x": np.eye(2, dtype=np.float32)})
    except Exception as error:  # noqa: BLE001  (whatever the native library raises is the finding)
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return "" if np.allclose(result, np.eye(2)) else "it computes wrongly"


def main() -> None:
    """Every provider that the installed wheel carries; `AzureExecutionProvider` only calls a service, so it is left out."""
    model = trial()
    found = {name: problem(name, model) for name in ort.get_available_providers() if name != "AzureExecutionProvider"}
    json.dump({"version": ort.__version__, "providers": found}, sys.stdout)


if __name__ == "__main__":
    main()
