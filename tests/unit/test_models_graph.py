"""A stranger's graph is looked over without being run: operators, files, and whatever hides in corners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError
from llmos.userland.models.graph_check import check_graph
from llmos.userland.models.process import check_in_process


def tensor(name: str = "w", **place: Any) -> TensorProto:
    """A tensor that lies in another file."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in place.items():
        made.external_data.add(key=key, value=str(value))
    return made


def graph(*nodes: onnx.NodeProto, tensors: tuple[TensorProto, ...] = ()) -> onnx.GraphProto:
    plain = helper.make_node("Identity", ["w"], ["y"])
    return helper.make_graph([plain, *nodes], "g", [], [], list(tensors))


def written(folder: Path, model: onnx.ModelProto) -> Path:
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def refused(folder: Path, model: onnx.ModelProto, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        check_graph(written(folder, model))
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_weights_and_their_files(tmp_path: Path) -> None:
    """What a graph reads from its data files, to the last byte, and how most of its weights are stored."""
    bits = {"K": 64, "N": 64, "bits": 4, "block_size": 32}
    node = helper.make_node("MatMulNBits", ["x", "w"], ["z"], domain="com.microsoft", **bits)
    parts = (tensor(location="a.onnx.data", offset=16, length=16), tensor("v", location="a.onnx.data", length=8))
    found = check_graph(written(tmp_path, helper.make_model(graph(node, tensors=parts))))
    assert found == {"external": {"a.onnx.data": 32}, "quantisation": "int4 block 32"}


def corners() -> dict[str, onnx.ModelProto]:
    """The same tensor in each place where a graph can have one."""
    secret = tensor(location="/etc/passwd", length=1)
    inner = helper.make_node("If", ["c"], ["z"], then_branch=graph(tensors=(secret,)), else_branch=graph())
    constant = helper.make_node("Constant", [], ["z"], value=secret)
    several = helper.make_node("X", [], ["z"])
    several.attribute.add(name="t", type=onnx.AttributeProto.TENSORS).tensors.append(secret)
    sparse = helper.make_model(graph())
    sparse.graph.sparse_initializer.add().values.CopyFrom(secret)
    function = helper.make_function("own", "F", [], ["z"], [constant], [helper.make_opsetid("", 21)])
    training = helper.make_model(graph())
    training.training_info.add().algorithm.CopyFrom(graph(tensors=(secret,)))
    hidden = helper.make_model(graph())
    inline = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    inline.external_data.add(key="location", value="/etc/passwd")
    hidden.graph.initializer.append(inline)
    return {
        "initializer": helper.make_model(graph(tensors=(secret,))),
        "subgraph": helper.make_model(graph(inner)),
        "attribute": helper.make_model(graph(constant)),
        "list of tensors": helper.make_model(graph(several)),
        "sparse": sparse,
        "function": helper.make_model(graph(), functions=[function]),
        "training": training,
        "without the mark": hidden,
    }


@pytest.mark.parametrize("place", corners())
def test_no_corner_hides_a_file(place: str, tmp_path: Path) -> None:
    """Wherever a graph names a file, it is seen."""
    assert "/etc/passwd" in check_graph(written(tmp_path, corners()[place]))["external"]


@pytest.mark.parametrize(
    ("node", "match"),
    [
        (helper.make_node("Evil", [], ["z"], domain="ai.onnx.contrib"), "custom operators"),
        (helper.make_node("BpeTokenizer", [], ["z"], domain="com.microsoft.extensions"), "custom operators"),
        (helper.make_node("EPContext", [], ["z"], domain="com.microsoft"), "other hardware"),
        (
            helper.make_node("If", ["c"], ["z"], then_branch=graph(helper.make_node("E", [], ["z"], domain="x"))),
            "custom operators",
        ),
    ],
    ids=["python", "extensions", "compiled", "subgraph"],
)
def test_operators_that_need_a_library(node: onnx.NodeProto, match: str, tmp_path: Path) -> None:
    """Are refused by name, in subgraphs too."""
    refused(tmp_path, helper.make_model(graph(node)), match)


def test_functions_of_its_own_are_no_library(tmp_path: Path) -> None:
    """A graph may bring functions made of known operators."""
    body = helper.make_node("Identity", ["x"], ["y"])
    function = helper.make_function("mine", "F", ["x"], ["y"], [body], [helper.make_opsetid("", 21)])
    call = helper.make_node("F", ["w"], ["z"], domain="mine")
    assert check_graph(written(tmp_path, helper.make_model(graph(call), functions=[function])))["external"] == {}


@pytest.mark.parametrize(
    ("place", "match"),
    [
        ({"location": "a.data", "offset": -1}, "before the beginning"),
        ({"location": "a.data", "length": "all"}, "no number"),
        ({"location": "a.data", "length": "9" * 5000}, "no number"),
    ],
)
def test_places_that_are_none(place: dict[str, Any], match: str, tmp_path: Path) -> None:
    """Offsets and lengths that are no places in a file are refused."""
    refused(tmp_path, helper.make_model(graph(tensors=(tensor(**place),))), match)


def test_two_places_for_one_tensor(tmp_path: Path) -> None:
    """Two readers may each take another one."""
    twice = tensor(location="a.onnx.data")
    twice.external_data.add(key="location", value="/etc/passwd")
    refused(tmp_path, helper.make_model(graph(tensors=(twice,))), "twice")


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"\xff" * 1000, b"\x3a" * 100_000], ids=["empty", "gguf", "ff", "deep"]
)
def test_what_is_no_graph(content: bytes, tmp_path: Path) -> None:
    """Crosses the process as the refusal it is."""
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="no ONNX graph") as caught:
        check_in_process(file, tmp_path)
    assert caught.value.code is Code.INVALID_ARGUMENT
