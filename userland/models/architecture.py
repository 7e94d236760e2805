"""What a GGUF's metadata says about the network, checked, and the tensors that such a network must have.

Anything that would change the computation and is not implemented is refused by the name of its key or tensor: a model that
imports is a model that computes what llama.cpp computes.

Source: the key names of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the networks of llama.cpp's
`llama` and `qwen2` architectures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmos.userland.models.errors import ImportRejected
from llmos.userland.models.gguf_file import MetadataValue, Tensor
from llmos.userland.models.metadata import Metadata, shown

ARCHITECTURES = ("llama", "qwen2")
MAX_LAYERS = 512
MAX_WIDTH = 1 << 17
MAX_HEAD = 256
MAX_CONTEXT = 1 << 17
"""Positions of the rotary tables written into the graph; a longer context is cut to this."""

_UNSUPPORTED_IF_SET = (
    "expert_count",
    "attention.sliding_window",
    "attention.scale",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of one decoder-only transformer: `layers` blocks of grouped-query attention and a gated SiLU feed-forward."""

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rope_base: float
    rope_scale: float
    """Positions are divided by this (linear RoPE scaling); 1 without scaling."""
    tied: bool
    """The output projection is the embedding table."""
    biased_attention: bool

    @property
    def interleaved_rotary(self) -> bool:
        """llama.cpp stores the `llama` query and key rows for rotation of neighbouring pairs, `qwen2`'s for halves."""
        return self.kind == "llama"


def read_architecture(values: Mapping[str, MetadataValue], tensors: Mapping[str, Tensor]) -> Architecture:
    """The architecture of a file, with every tensor's presence and shape checked. Raises `ImportRejected`."""
    metadata = Metadata(values)
    kind = metadata.text("general.architecture")
    if kind not in ARCHITECTURES:
        raise ImportRejected(
            f"metadata key 'general.architecture': {shown(kind)} is not supported",
            hint=f"supported architectures: {', '.join(ARCHITECTURES)}",
        )
    for name in _UNSUPPORTED_IF_SET:
        if values.get(f"{kind}.{name}"):
            raise ImportRejected(f"metadata key '{kind}.{name}' asks for a computation that is not supported")
    hidden = metadata.integer(f"{kind}.embedding_length", 1, MAX_WIDTH)
    heads = metadata.integer(f"{kind}.attention.head_count", 1, 1024)
    if f"{kind}.attention.key_length" not in metadata and hidden % heads:
        raise ImportRejected(
            f"metadata key '{kind}.attention.head_count': {heads} heads do not divide {hidden} dimensions"
        )
    head_size = metadata.integer(f"{kind}.attention.key_length", 1, MAX_WIDTH, hidden // heads)
    if head_size % 16 or head_size > MAX_HEAD:
        raise ImportRejected(
            f"metadata key '{kind}.attention.head_count': heads of {head_size} dimensions are not supported; multiples of 16 "
            f"up to {MAX_HEAD} are"
        )
    kv_heads = metadata.integer(f"{kind}.attention.head_count_kv", 1, heads, heads)
    if heads % kv_heads:
        raise ImportRejected(f"metadata key '{kind}.attention.head_count_kv': {kv_heads} does not divide {heads} heads")
    for key in (f"{kind}.attention.value_length", f"{kind}.rope.dimension_count"):
        if metadata.integer(key, 1, 4096, head_size) != head_size:
            raise ImportRejected(f"metadata key {key!r}: only the head size, {head_size}, is supported")
    architecture = Architecture(
        kind=kind,
        layers=metadata.integer(f"{kind}.block_count", 1, MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        feed_forward=metadata.integer(f"{kind}.feed_forward_length", 1, 8 * MAX_WIDTH),
        vocabulary=len(metadata.texts("tokenizer.ggml.tokens")),
        context=min(metadata.integer(f"{kind}.context_length", 1, 1 << 31), MAX_CONTEXT),
        norm_epsilon=metadata.number(f"{kind}.attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope_base=metadata.number(f"{kind}.rope.freq_base", 1.0, 1e12, 10_000.0),
        rope_scale=_rope_scale(metadata, kind),
        tied="output.weight" not in tensors,
        biased_attention="blk.0.attn_q.bias" in tensors,
    )
    _check_tensors(architecture, tensors)
    return architecture


def _rope_scale(metadata: Metadata, kind: str) -> float:
    scaling = metadata.text(f"{kind}.rope.scaling.type", "none")
    if scaling == "none":
        return metadata.number(f"{kind}.rope.scale_linear", 1.0, 1e6, 1.0)
    if scaling == "linear":
        return metadata.number(f"{kind}.rope.scaling.factor", 1.0, 1e6)
    raise ImportRejected(
        f"metadata key '{kind}.rope.scaling.type': {shown(scaling)} is not supported; none and linear are"
    )


def expected_tensors(architecture: Architecture) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every tensor the network is made of, with its shape as (rows, columns); vectors have one row."""
    a = architecture
    query, key_value = a.heads * a.head_size, a.kv_heads * a.head_size
    yield "token_embd.weight", (a.vocabulary, a.hidden)
    yield "output_norm.weight", (1, a.hidden)
    if not a.tied:
        yield "output.weight", (a.vocabulary, a.hidden)
    for layer in range(a.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (1, a.hidden)
        for name, rows in (("q", query), ("k", key_value), ("v", key_value)):
            yield f"{block}.attn_{name}.weight", (rows, a.hidden)
            if a.biased_attention:
                yield f"{block}.attn_{name}.bias", (1, rows)
        yield f"{block}.attn_output.weight", (a.hidden, query)
        yield f"{block}.ffn_norm.weight", (1, a.hidden)
        yield f"{block}.ffn_gate.weight", (a.feed_forward, a.hidden)
        yield f"{block}.ffn_up.weight", (a.feed_forward, a.hidden)
        yield f"{block}.ffn_down.weight", (a.hidden, a.feed_forward)


OPTIONAL_TENSORS = ("rope_freqs.weight",)


def _check_tensors(architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    expected = dict(expected_tensors(architecture))
    if "rope_freqs.weight" in tensors:
        expected["rope_freqs.weight"] = (1, architecture.head_size // 2)
    for name, (rows, columns) in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ImportRejected(f"tensor {name} is missing")
        if (tensor.rows, tensor.columns) != (rows, columns):
            raise ImportRejected(
                f"tensor {name}: shape {tensor.rows} x {tensor.columns}, the metadata asks for {rows} x {columns}"
            )
    for name in tensors:
        if name not in expected:
            raise ImportRejected(f"tensor {name} is not part of a {architecture.kind} model")
