"""Looks over a stranger's ONNX graph without running it: which operators it needs, and which files it reads weights from.

Meant for a jail: a hostile file is parsed here, by protobuf.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from llmos.userland.models.errors import ImportRejected

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})
"""Whose operators ONNX Runtime itself has. Any other one would need a library."""
FOREIGN_OPERATORS = frozenset({"EPContext", "PyOp"})
"""Operators that name a file, or run what a provider compiled elsewhere."""
MAX_OBJECTS = 10_000_000


def check_graph(file: Path) -> dict[str, Any]:
    """`external` (file name → the first byte after all that is read from it) and `quantisation` of most of the weights.

    Raises:
        ImportRejected: the file is no graph, or needs operators or files that it may not have.
        OSError: it cannot be read.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ImportRejected(f"{file.name} is no ONNX graph: {error}") from error
    if not model.graph.node:
        raise ImportRejected(f"{file.name} is no ONNX graph: it has no nodes")
    own = {function.domain for function in model.functions}
    external: dict[str, int] = {}
    weights = Counter[str]()
    for item in _walk(model):
        if isinstance(item, onnx.NodeProto):
            _check_node(item, own)
            weights.update(_quantised(item))
        else:
            _note_external(item, external)
    return {"external": external, "quantisation": weights.most_common(1)[0][0] if weights else "float"}


def _walk(model: onnx.ModelProto) -> Iterator[onnx.NodeProto | onnx.TensorProto]:
    """Every node and every tensor, wherever it hides: subgraphs, attributes, functions, sparse values, training graphs."""
    waiting: list[Any] = [model.graph, *model.functions]
    for training in model.training_info:
        waiting += [training.initialization, training.algorithm]
    for _ in range(MAX_OBJECTS):
        if not waiting:
            return
        item = waiting.pop()
        if isinstance(item, onnx.GraphProto):
            waiting += [*item.node, *item.initializer, *item.sparse_initializer]
        elif isinstance(item, onnx.FunctionProto):
            waiting += [*item.node, *item.attribute_proto]
        elif isinstance(item, onnx.NodeProto):
            yield item
            waiting += item.attribute
        elif isinstance(item, onnx.AttributeProto):
            waiting += [item.g, item.t, item.sparse_tensor, *item.graphs, *item.tensors, *item.sparse_tensors]
        elif isinstance(item, onnx.SparseTensorProto):
            waiting += [item.values, item.indices]
        else:
            yield item
    raise ImportRejected("the graph has more parts than any model")


def _check_node(node: onnx.NodeProto, own: set[str]) -> None:
    if node.domain not in DOMAINS and node.domain not in own:
        raise ImportRejected(
            f"the graph needs custom operators: {node.op_type[:100]!r} of {node.domain[:100]!r}",
            "no library of operators is loaded; take a model without them",
        )
    if node.op_type in FOREIGN_OPERATORS:
        raise ImportRejected(
            f"the graph has {node.op_type}: it was compiled for other hardware", "take one for the CPU"
        )


def _quantised(node: onnx.NodeProto) -> dict[str, int]:
    if node.op_type != "MatMulNBits":
        return {}
    said = {attribute.name: attribute.i for attribute in node.attribute}
    return {f"int{said.get('bits', 4)} block {said.get('block_size', 0)}": said.get("K", 0) * said.get("N", 0)}


def _note_external(tensor: onnx.TensorProto, external: dict[str, int]) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL and not tensor.external_data:
        return
    said = {entry.key: entry.value for entry in tensor.external_data}
    if len(said) != len(tensor.external_data):
        raise ImportRejected(f"tensor {tensor.name[:100]!r} says twice where its weights are")
    try:
        offset, length = int(said.get("offset") or 0), int(said.get("length") or 0)
    except ValueError as error:
        raise ImportRejected(f"tensor {tensor.name[:100]!r}: its place in a file is no number") from error
    if min(offset, length) < 0:
        raise ImportRejected(f"tensor {tensor.name[:100]!r} lies before the beginning of its file")
    name = said.get("location", "")
    external[name] = max(external.get(name, 0), offset + length)
