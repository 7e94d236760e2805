"""Writes the network as an ONNX graph, its weights streamed from the GGUF into the data file beside it.

The graph is the one onnxruntime-genai's own builder makes, with its input and output names, and three differences: query,
key and value are one product and so are the two halves of the feed-forward; the embedding table is quantised and, when the
model ties it to the output, stored once; and `logits` holds the last position only ([batch, 1, vocabulary]) unless the
input `told_positions` asks for others, because they are seldom read and cost a third of a prefill. Every layer's cache has the same
shape: one that sees a window only keeps all positions, so that contexts can be cut, joined and moved without knowing the layers.

Source: the operators, https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from llmos.userland.models.architecture import Architecture, Layer
from llmos.userland.models.errors import ImportRejected
from llmos.userland.models.gguf_file import GgufFile, Tensor
from llmos.userland.models.packing import Layout, layout_for, pack, read_values
from llmos.userland.models.rotary import Rotary
from llmos.userland.models.weights import Region, WeightsFile

LAST_POSITION = "last_position"
"""The node that drops all positions but those told."""
TOLD = "told_positions"
"""An input that may be left out: int64 [told], the positions whose logits are wanted, counted as Python counts; [-1] if not given."""

_PIECE = 1 << 20
"""Weights converted at a time; bounds the memory an import needs beside the file's header."""
_POSITIONS = 4096
"""Positions of the rotary tables computed at a time."""
_ONNX, _IR, _CONTRIB = 21, 10, "com.microsoft"

Wrote = Callable[[str, int], None]
"""Called with a tensor's name and how many of its bytes have been converted just now."""


class DecoderGraph:
    """Builds one model. Use once: `DecoderGraph(...).build()`.

    Raises `ImportRejected` naming a tensor that cannot be converted, `OSError` when the data file cannot be written.
    """

    def __init__(self, architecture: Architecture, file: GgufFile, weights: WeightsFile, wrote: Wrote) -> None:
        self._shape = architecture
        self._file = file
        self._weights = weights
        self._wrote = wrote
        self._nodes: list[onnx.NodeProto] = []
        self._rotaries = list(dict.fromkeys(layer.rotary for layer in architecture.attention if layer.rotary))
        self._summed: set[int] = set()

    def build(self) -> onnx.ModelProto:
        """The model; its initialisers refer to the weights file."""
        shape = self._shape
        self._masks()
        for rotary in self._rotaries:
            self._rotary_tables(rotary)
        if shape.family.head_norms:
            self._head_shapes()
        table = self._table("token_embd.weight", gathered=True, multiplied=shape.tied)
        branch, stream = "", self._embed(*table)
        for layer in range(shape.layers):
            branch, stream = self._layer(layer, branch, stream)
        hidden, _ = self._norm("output_norm", branch, stream, last=True)
        self._weights.constant(TOLD, np.array([-1], np.int64))
        self._add("Gather", [hidden, TOLD], [LAST_POSITION], axis=1)
        if not shape.tied:
            table = self._table("output.weight", gathered=False, multiplied=True)
        self._product(LAST_POSITION, "logits", table, shape.hidden, shape.vocabulary)
        graph = helper.make_graph(
            self._nodes, shape.kind, self._inputs(), self._outputs(), initializer=self._weights.initializers
        )
        opsets = [helper.make_opsetid("", _ONNX), helper.make_opsetid(_CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="llmos")

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        text = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        ]
        told = helper.make_tensor_value_info(TOLD, TensorProto.INT64, ["told"])
        return [*text, *self._cache_values("past_key_values", "past"), told]

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "told", self._shape.vocabulary])
        return [logits, *self._cache_values("present", "total")]

    def _cache_values(self, prefix: str, length: str) -> list[onnx.ValueInfoProto]:
        dims = ["batch", self._shape.kv_heads, length, self._shape.head_size]
        return [
            helper.make_tensor_value_info(f"{prefix}.{layer}.{part}", TensorProto.FLOAT, dims)
            for layer in range(self._shape.layers)
            for part in ("key", "value")
        ]

    def _masks(self) -> None:
        """What GroupQueryAttention wants of the mask: each row's last position, and the longest row's length."""
        self._weights.constant("one", np.array(1, np.int64))
        self._weights.constant("axis_one", np.array([1], np.int64))
        self._add("ReduceSum", ["attention_mask", "axis_one"], ["row_lengths"], keepdims=0)
        self._add("Sub", ["row_lengths", "one"], ["last_positions_64"])
        self._add("Cast", ["last_positions_64"], ["last_positions"], to=TensorProto.INT32)
        self._add("Shape", ["attention_mask"], ["mask_shape"])
        self._add("Gather", ["mask_shape", "one"], ["total_length_64"], axis=0)
        self._add("Cast", ["total_length_64"], ["total_length"], to=TensorProto.INT32)

    def _rotary_tables(self, rotary: Rotary) -> None:
        """Cosine and sine of position times frequency, float32 [context, head_size / 2]."""
        context, frequencies = self._shape.context, rotary.frequencies(self._shape.head_size)
        if rotary.factored:
            factors = self._vector("rope_freqs.weight")
            if not (factors > 0).all():
                raise ImportRejected("tensor rope_freqs.weight: a factor is not positive")
            frequencies = frequencies / factors
        for name, function in zip(self._rotary_names(rotary), (np.cos, np.sin), strict=True):
            row_bytes = frequencies.size * 4
            region = self._weights.reserve(context * row_bytes)
            self._weights.refer(name, np.float32, (context, frequencies.size), region)
            for first in range(0, context, _POSITIONS):
                angles = np.outer(np.arange(first, min(first + _POSITIONS, context)), frequencies)
                self._weights.write(region, first * row_bytes, (function(angles) * rotary.magnitude).astype(np.float32))

    def _rotary_names(self, rotary: Rotary) -> tuple[str, str]:
        number = self._rotaries.index(rotary)
        suffix = f".{number}" if number else ""
        return f"cosines{suffix}", f"sines{suffix}"

    def _table(self, name: str, *, gathered: bool, multiplied: bool) -> tuple[str, Layout]:
        """A vocabulary table, stored once whatever it serves for: rows to gather, or a matrix to multiply with.

        Always in the wide layout: the smallest errors here are felt by every token.
        """
        rows, columns, tensors = self._shape.vocabulary, self._shape.hidden, [self._file.tensors[name]]
        layout = layout_for(tensors, wide=True)
        codes = self._packed(name, tensors, layout)
        if gathered:
            self._weights.refer(f"{name}.rows", np.uint8, (rows, columns), codes)
        if multiplied:
            self._weights.refer(f"{name}.codes", np.uint8, layout.codes_shape(rows, columns), codes)
        return name, layout

    def _embed(self, name: str, layout: Layout) -> str:
        embedded = self._contrib(
            "GatherBlockQuantized",
            [f"{name}.rows", "input_ids", f"{name}.scales"],
            ["embedded"],
            bits=layout.bits,
            block_size=layout.block,
            gather_axis=0,
            quantize_axis=1,
        )
        if not self._shape.family.scaled_embedding:
            return embedded
        self._weights.constant("embedding_scale", np.array(self._shape.hidden**0.5, np.float32))
        return self._add("Mul", [embedded, "embedding_scale"], ["embedded.scaled"])

    def _layer(self, layer: int, branch: str, stream: str) -> tuple[str, str]:
        """One block. `stream` is the residual stream and `branch` what is still to be added to it."""
        shape, block = self._shape, f"blk.{layer}"
        normed, stream = self._norm(f"{block}.attn_norm", branch, stream)
        branch = self._attend(layer, shape.attention[layer], normed)
        if shape.family.branch_norms:
            branch = self._plain_norm(f"{block}.post_attention_norm", branch)
        normed, stream = self._norm(f"{block}.ffn_norm", branch, stream)
        branch = self._feed_forward(block, normed)
        if shape.family.branch_norms:
            branch = self._plain_norm(f"{block}.post_ffw_norm", branch)
        return branch, stream

    def _attend(self, layer: int, how: Layer, normed: str) -> str:
        shape, block = self._shape, f"blk.{layer}"
        bias = [f"{block}.attn_{part}.bias" for part in "qkv"] if shape.biased_attention else []
        joined = self._project(normed, f"{block}.qkv", [f"{block}.attn_{part}.weight" for part in "qkv"], bias)
        heads = self._normed_heads(block, joined) if shape.family.head_norms else [joined, "", ""]
        cache = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        tables = self._rotary_names(how.rotary) if how.rotary else ()
        window = {"local_window_size": how.window} if how.window else {}
        attended = self._contrib(
            "GroupQueryAttention",
            [*heads, *cache, "last_positions", "total_length", *tables],
            [f"{block}.attended", f"present.{layer}.key", f"present.{layer}.value"],
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            scale=shape.attention_scale,
            do_rotary=int(how.rotary is not None),
            rotary_interleaved=0,
            **window,
        )
        return self._project(attended, f"{block}.attn_output", [f"{block}.attn_output.weight"])

    def _normed_heads(self, block: str, joined: str) -> list[str]:
        """Query, key and value apart, each query and key head normed.

        GroupQueryAttention has inputs for these norms, but onnxruntime 1.32 refuses them on CPU.
        """
        query, key, value = f"{block}.q", f"{block}.k", f"{block}.v"
        self._add("Split", [joined, "part_sizes"], [query, key, value], axis=-1)
        normed = []
        for part, norm in ((query, f"{block}.attn_q_norm"), (key, f"{block}.attn_k_norm")):
            heads = self._add("Reshape", [part, "by_heads"], [f"{part}.heads"])
            normed.append(self._add("Reshape", [self._plain_norm(norm, heads), "joined_heads"], [f"{part}.normed"]))
        return [*normed, value]

    def _head_shapes(self) -> None:
        shape = self._shape
        sizes = np.array([shape.heads, shape.kv_heads, shape.kv_heads], np.int64) * shape.head_size
        self._weights.constant("part_sizes", sizes)
        self._weights.constant("by_heads", np.array([0, 0, -1, shape.head_size], np.int64))
        self._weights.constant("joined_heads", np.array([0, 0, -1], np.int64))

    def _feed_forward(self, block: str, normed: str) -> str:
        both = self._project(normed, f"{block}.ffn", [f"{block}.ffn_gate.weight", f"{block}.ffn_up.weight"])
        gate, up = f"{block}.gate", f"{block}.up"
        self._add("Split", [both], [gate, up], axis=-1, num_outputs=2)
        if self._shape.family.gelu:
            self._contrib("FastGelu", [gate], [f"{gate}.active"])  # GELU by tanh
        else:
            self._contrib("QuickGelu", [gate], [f"{gate}.active"], alpha=1.0)  # x * sigmoid(x)
        self._add("Mul", [f"{gate}.active", up], [f"{block}.gated"])
        return self._project(f"{block}.gated", f"{block}.ffn_down", [f"{block}.ffn_down.weight"])

    def _plain_norm(self, name: str, source: str) -> str:
        """RMS norm over the last axis. Source: Zhang and Sennrich 2019."""
        weight = f"{name}.weight"
        self._weights.add(weight, self._vector(weight))
        epsilon = self._shape.norm_epsilon
        return self._add(
            "SimplifiedLayerNormalization", [source, weight], [name], axis=-1, epsilon=epsilon, stash_type=1
        )

    def _norm(self, name: str, branch: str, stream: str, *, last: bool = False) -> tuple[str, str]:
        """RMS norm of `stream` plus `branch`, and that sum."""
        if not branch:
            return self._plain_norm(name, stream), stream
        weight = f"{name}.weight"
        self._weights.add(weight, self._vector(weight))
        outputs = [name] if last else [name, "", "", f"{name}.stream"]
        self._contrib(
            "SkipSimplifiedLayerNormalization", [stream, branch, weight], outputs, epsilon=self._shape.norm_epsilon
        )
        return name, outputs[-1]

    def _project(self, source: str, output: str, names: Sequence[str], biases: Sequence[str] = ()) -> str:
        """`source` times the stacked matrices of the named tensors."""
        tensors = [self._file.tensors[name] for name in names]
        rows, columns, layout = (
            sum(tensor.rows for tensor in tensors),
            tensors[0].columns,
            layout_for(tensors),
        )
        codes = self._packed(output, tensors, layout)
        if layout.offsets:
            source = self._with_sums(source, output, columns, layout)
            columns = layout.stored_columns(columns)
        self._weights.refer(f"{output}.codes", np.uint8, layout.codes_shape(rows, columns), codes)
        bias = ""
        if biases:
            bias = f"{output}.bias"
            self._weights.add(bias, np.concatenate([self._in_halves(name, self._vector(name)) for name in biases]))
        return self._product(source, output, (output, layout), columns, rows, bias)

    def _with_sums(self, source: str, output: str, columns: int, layout: Layout) -> str:
        """`source`, then the sums over its blocks, filled with zeros to `layout.sums`, twice: what offsets are multiplied by."""
        blocks, width = columns // layout.block, layout.sums(columns)
        shape, filling, last = f"blocks.{columns}", f"filling.{columns}", f"last_axis.{columns}"
        if columns not in self._summed:
            self._summed.add(columns)
            self._weights.constant(shape, np.array([0, 0, blocks, layout.block], np.int64))
            self._weights.constant(filling, np.array([0, 0, 0, 0, 0, width - blocks], np.int64))
            self._weights.constant(last, np.array([3], np.int64))
        self._add("Reshape", [source, shape], [f"{output}.blocks"])
        sums = self._add("ReduceSum", [f"{output}.blocks", last], [f"{output}.sums"], keepdims=0)
        if width != blocks:
            sums = self._add("Pad", [sums, filling], [f"{output}.filled"])
        return self._add("Concat", [source, sums, sums], [f"{output}.source"], axis=-1)

    def _product(
        self, source: str, output: str, packed: tuple[str, Layout], columns: int, rows: int, bias: str = ""
    ) -> str:
        name, layout = packed
        optional = ["", "", bias] if bias else []  # zero points, group indices, bias
        return self._contrib(
            "MatMulNBits",
            [source, f"{name}.codes", f"{name}.scales", *optional],
            [output],
            K=columns,
            N=rows,
            bits=layout.bits,
            block_size=layout.block,
            accuracy_level=4,  # int8 activations; with less, 8-bit products are 250 times slower
        )

    def _packed(self, name: str, tensors: Sequence[Tensor], layout: Layout) -> Region:
        """Write the stacked matrices' codes, and their scales as the initialiser `NAME.scales`; where the codes are."""
        rows, columns = sum(tensor.rows for tensor in tensors), layout.stored_columns(tensors[0].columns)
        codes = self._weights.reserve(rows * columns * layout.bits // 8)
        scales = self._weights.reserve(rows * columns // layout.block * 4)
        self._weights.refer(f"{name}.scales", np.float32, layout.scales_shape(rows, columns), scales)
        written = 0
        for tensor in tensors:
            step = max(1, _PIECE // columns // self._shape.head_size) * self._shape.head_size
            for first in range(0, tensor.rows, step):
                count = min(step, tensor.rows - first)
                some_codes, some_scales = pack(self._file, tensor, first, count, layout)
                self._weights.write(codes, written * codes.nbytes // rows, self._in_halves(tensor.name, some_codes))
                self._weights.write(scales, written * scales.nbytes // rows, self._in_halves(tensor.name, some_scales))
                written += count
                self._wrote(tensor.name, count * tensor.row_bytes)
        return codes

    def _in_halves(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Whole heads' rows in the order that rotation by halves wants.

        Some files hold a head's rows so that neighbours rotate together: 0, 32, 1, 33, … of a 64-row head.
        """
        if not self._shape.family.interleaved_rotary or not name.endswith(
            ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")
        ):
            return rows
        heads = rows.reshape(-1, self._shape.head_size // 2, 2, *rows.shape[1:])
        return heads.swapaxes(1, 2).reshape(rows.shape)

    def _vector(self, name: str) -> NDArray[np.float32]:
        tensor = self._file.tensors[name]
        self._wrote(name, tensor.nbytes)
        values: NDArray[np.float32] = read_values(self._file, tensor, 0, 1)[0]
        return values

    def _contrib(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> str:
        return self._add(op, inputs, outputs, domain=_CONTRIB, **attributes)

    def _add(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        """Append a node named after its first output, and return that output."""
        self._nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]


def last_position_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network for readers that take the shape of `logits` from the graph and know no `TOLD`, as onnxruntime-genai does."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    plain.graph.input.remove(next(value for value in plain.graph.input if value.name == TOLD))
    plain.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    return plain
