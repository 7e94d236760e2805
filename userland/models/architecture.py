"""What a GGUF's metadata says about the network, checked, and the tensors that such a network must have.

Anything that would change the computation and is not implemented is refused by the name of its key or tensor: a model that
imports is a model that computes what llama.cpp computes.

Source: the key names of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the networks of llama.cpp's
architectures of the same names, `src/models/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmos.userland.models.errors import ImportRejected
from llmos.userland.models.gguf_file import MetadataValue, Tensor
from llmos.userland.models.metadata import Metadata, shown
from llmos.userland.models.rotary import Rotary, read_rotary

MAX_LAYERS = 512
MAX_WIDTH = 1 << 17
MAX_HEAD = 256
MAX_CONTEXT = 1 << 17
"""Positions of the rotary tables written into the graph; a longer context is cut to this."""


@dataclass(frozen=True, slots=True)
class Family:
    """What is fixed by an architecture's name."""

    genai_type: str
    """What onnxruntime-genai calls it."""
    interleaved_rotary: bool = False
    """Rows of a query or key head are stored so that neighbours rotate together, not the two halves."""
    head_norms: bool = False
    """Each query and key head is normed before it is rotated."""
    branch_norms: bool = False
    """What attention and feed-forward give is normed before it is added to the residual stream."""
    gelu: bool = False
    """The feed-forward's gate is GELU (its tanh approximation) instead of SiLU."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of their width."""
    sliding: bool = False
    """Some layers may see a window of the last positions only."""
    unrotated_every: int = 0
    """Each so many'th layer has no positions at all (NoPE, Yang et al. 2025); 0 for none."""
    rope_factors: bool = False
    """A tensor `rope_freqs` is part of it where the file has one."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", interleaved_rotary=True, rope_factors=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3", head_norms=True),
    "gemma3": Family("gemma3_text", head_norms=True, branch_norms=True, gelu=True, scaled_embedding=True, sliding=True),
    "smollm3": Family("smollm3", interleaved_rotary=True, unrotated_every=4),
}
"""The architectures that can be imported, by their name in a GGUF."""

_UNSUPPORTED_IF_SET = (
    "expert_count",
    "attention.scale",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
    "attention.shared_kv_layers",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "pooling_type",
    "rope.dimension_sections",
)


@dataclass(frozen=True, slots=True)
class Layer:
    """How one layer attends."""

    rotary: Rotary | None
    """None: its heads are not rotated."""
    window: int | None
    """It sees this many last positions, its own included; None: all."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of one decoder-only transformer: blocks of grouped-query attention and a gated feed-forward."""

    kind: str
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    context: int
    norm_epsilon: float
    attention_scale: float
    """Products of queries and keys are multiplied by this."""
    attention: tuple[Layer, ...]
    """One for each block."""
    tied: bool
    """The output projection is the embedding table."""
    biased_attention: bool

    @property
    def layers(self) -> int:
        return len(self.attention)

    @property
    def family(self) -> Family:
        return FAMILIES[self.kind]


def read_architecture(values: Mapping[str, MetadataValue], tensors: Mapping[str, Tensor]) -> Architecture:
    """The architecture of a file, with every tensor's presence and shape checked. Raises `ImportRejected`."""
    metadata = Metadata(values)
    kind = metadata.text("general.architecture")
    family = FAMILIES.get(kind)
    if family is None:
        raise ImportRejected(
            f"metadata key 'general.architecture': {shown(kind)} is not supported",
            hint=f"supported architectures: {', '.join(FAMILIES)}",
        )
    _refuse_unsupported(metadata, values, kind, family)
    hidden = metadata.integer(f"{kind}.embedding_length", 1, MAX_WIDTH)
    heads = metadata.integer(f"{kind}.attention.head_count", 1, 1024)
    head_size = _head_size(metadata, kind, hidden, heads)
    kv_heads = metadata.integer(f"{kind}.attention.head_count_kv", 1, heads, heads)
    if heads % kv_heads:
        raise ImportRejected(f"metadata key '{kind}.attention.head_count_kv': {kv_heads} does not divide {heads} heads")
    context = metadata.integer(f"{kind}.context_length", 1, 1 << 31)
    layers = metadata.integer(f"{kind}.block_count", 1, MAX_LAYERS)
    factored = family.rope_factors and "rope_freqs.weight" in tensors
    rotary = read_rotary(metadata, kind, context, factored=factored)
    architecture = Architecture(
        kind=kind,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        feed_forward=metadata.integer(f"{kind}.feed_forward_length", 1, 8 * MAX_WIDTH),
        vocabulary=len(metadata.texts("tokenizer.ggml.tokens")),
        context=min(context, MAX_CONTEXT),
        norm_epsilon=metadata.number(f"{kind}.attention.layer_norm_rms_epsilon", 0.0, 1.0),
        attention_scale=_attention_scale(kind, layers, hidden, heads, head_size),
        attention=_layers(metadata, kind, family, layers, rotary),
        tied="output.weight" not in tensors,
        biased_attention="blk.0.attn_q.bias" in tensors,
    )
    _check_tensors(architecture, tensors)
    return architecture


def _refuse_unsupported(metadata: Metadata, values: Mapping[str, MetadataValue], kind: str, family: Family) -> None:
    windowed = () if family.sliding else ("attention.sliding_window",)
    for name in (*_UNSUPPORTED_IF_SET, *windowed):
        if values.get(f"{kind}.{name}"):
            raise ImportRejected(f"metadata key '{kind}.{name}' asks for a computation that is not supported")
    key = f"{kind}.attention.causal"
    if not metadata.flag(key, default=True):
        raise ImportRejected(f"metadata key {key!r}: only causal attention is supported")


def _head_size(metadata: Metadata, kind: str, hidden: int, heads: int) -> int:
    """Elements of a query, key and value head: one number, or the file is refused."""
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
    names = ("attention.value_length", "rope.dimension_count")
    windowed = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")
    for key in (f"{kind}.{name}" for name in (*names, *windowed)):
        if metadata.integer(key, 1, 4096, head_size) != head_size:
            raise ImportRejected(f"metadata key {key!r}: only the head size, {head_size}, is supported")
    return head_size


def _attention_scale(kind: str, layers: int, hidden: int, heads: int, head_size: int) -> float:
    """No key says it: llama.cpp knows Gemma 3's 27B, the one that scales by another width, by its 62 layers."""
    width = hidden // heads if (kind, layers) == ("gemma3", 62) else head_size
    return float(width**-0.5)


def _layers(metadata: Metadata, kind: str, family: Family, count: int, rotary: Rotary) -> tuple[Layer, ...]:
    if family.unrotated_every:
        return tuple(
            Layer(None if (layer + 1) % family.unrotated_every == 0 else rotary, None) for layer in range(count)
        )
    window = metadata.integer(f"{kind}.attention.sliding_window", 0, 1 << 30, 0) if family.sliding else 0
    if not window:
        return (Layer(rotary, None),) * count
    if rotary.trained_context is not None:
        raise ImportRejected(f"metadata key '{kind}.rope.scaling.type': yarn is not supported with a sliding window")
    near = Rotary(metadata.number(f"{kind}.rope.freq_base_swa", 1.0, 1e12, 10_000.0))
    slides = _sliding_pattern(metadata, f"{kind}.attention.sliding_window_pattern", count)
    return tuple(Layer(near, window) if slid else Layer(rotary, None) for slid in slides)


def _sliding_pattern(metadata: Metadata, key: str, count: int) -> list[bool]:
    """Which layers slide: a flag for each, or a period of which all but the last do; 0 is a period without a last."""
    if metadata.is_list(key):
        flags = metadata.integers(key)
        if len(flags) != count or not all(flag in (0, 1) for flag in flags):
            raise ImportRejected(f"metadata key {key!r}: {shown(flags)} is not a flag for each of {count} layers")
        return [bool(flag) for flag in flags]
    period = metadata.integer(key, 0, MAX_LAYERS, 6)
    return [period == 0 or layer % period < period - 1 for layer in range(count)]


def expected_tensors(architecture: Architecture) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every tensor the network is made of, with its shape as (rows, columns); vectors have one row."""
    a = architecture
    query, key_value = a.heads * a.head_size, a.kv_heads * a.head_size
    yield "token_embd.weight", (a.vocabulary, a.hidden)
    yield "output_norm.weight", (1, a.hidden)
    if not a.tied:
        yield "output.weight", (a.vocabulary, a.hidden)
    if any(layer.rotary is not None and layer.rotary.factored for layer in a.attention):
        yield "rope_freqs.weight", (1, a.head_size // 2)
    for layer in range(a.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (1, a.hidden)
        for name, rows in (("q", query), ("k", key_value), ("v", key_value)):
            yield f"{block}.attn_{name}.weight", (rows, a.hidden)
            if a.biased_attention:
                yield f"{block}.attn_{name}.bias", (1, rows)
        if a.family.head_norms:
            yield f"{block}.attn_q_norm.weight", (1, a.head_size)
            yield f"{block}.attn_k_norm.weight", (1, a.head_size)
        yield f"{block}.attn_output.weight", (a.hidden, query)
        yield f"{block}.ffn_norm.weight", (1, a.hidden)
        yield f"{block}.ffn_gate.weight", (a.feed_forward, a.hidden)
        yield f"{block}.ffn_up.weight", (a.feed_forward, a.hidden)
        yield f"{block}.ffn_down.weight", (a.hidden, a.feed_forward)
        if a.family.branch_norms:
            yield f"{block}.post_attention_norm.weight", (1, a.hidden)
            yield f"{block}.post_ffw_norm.weight", (1, a.hidden)


def _check_tensors(architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    expected = dict(expected_tensors(architecture))
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
