"""Tiny GGUF models with random weights, and what they compute, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_K_SCALES = {
    Kind.Q2_K: {80: 7e-3, 82: 1e-2},
    Kind.Q3_K: {108: 1.5e-3},
    Kind.Q4_K: {0: 4e-4, 2: 3e-3},
    Kind.Q5_K: {0: 2e-4, 2: 3e-3},
    Kind.Q6_K: {208: 5e-5},
}
"""Where float16 numbers lie in the blocks of the types that `gguf` cannot quantise to, and how large they must be for random
codes to become weights around zero, of the size of the other types'.
"""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o")


def byte_level_vocabulary() -> list[str]:
    """Special tokens, then every byte, then what the merges make."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


@dataclass
class TinyModel:
    """A model to write; change fields to make it wrong.

    `changes` replaces or adds metadata, a value of None takes a key away; `tensors` replaces or adds tensors likewise.
    `exact` weights are float32 numbers that blocks of 8-bit codes hold without an error.
    """

    kind: str = "llama"
    weights: Kind = Kind.Q8_0
    layers: int = 2
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 256
    head_size: int = 0
    """0: the heads divide the hidden dimensions."""
    context: int = 64
    window: int = 0
    """Positions that a sliding layer sees."""
    rope_base: float = 10_000.0
    rope_divisor: float = 1.0
    yarn_context: int = 0
    """With YaRN, the context it stretches; 0 without."""
    tied: bool = True
    rope_factors: bool = False
    exact: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, NDArray[Any] | None] = field(default_factory=dict)
    seed: int = 7

    def __post_init__(self) -> None:
        self.head_size = self.head_size or self.hidden // self.heads
        if self.exact:
            self.weights = Kind.F32
        self.vocabulary = byte_level_vocabulary()
        rng = np.random.default_rng(self.seed)
        self.stored: dict[str, tuple[NDArray[Any], Kind]] = {}
        self.values: dict[str, Floats] = {}
        for name, shape in self._shapes():
            kind = self.weights if len(shape) == 2 else Kind.F32
            stored = _exact(rng, shape) if self.exact and len(shape) == 2 else _random(rng, shape, kind, name)
            self.stored[name] = (stored, kind)
            self.values[name] = stored.astype(np.float32) if len(shape) == 1 else dequantize(stored, kind)

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        query, key_value = self.heads * self.head_size, self.kv_heads * self.head_size
        shapes: list[tuple[str, tuple[int, ...]]] = [
            ("token_embd.weight", (len(self.vocabulary), self.hidden)),
            ("output_norm.weight", (self.hidden,)),
        ]
        if not self.tied:
            shapes.append(("output.weight", (len(self.vocabulary), self.hidden)))
        if self.rope_factors:
            shapes.append(("rope_freqs.weight", (self.head_size // 2,)))
        for layer in range(self.layers):
            block = f"blk.{layer}"
            shapes += [(f"{block}.attn_norm.weight", (self.hidden,)), (f"{block}.ffn_norm.weight", (self.hidden,))]
            for part, rows in (("q", query), ("k", key_value), ("v", key_value)):
                shapes.append((f"{block}.attn_{part}.weight", (rows, self.hidden)))
                if self.kind == "qwen2":
                    shapes.append((f"{block}.attn_{part}.bias", (rows,)))
            if self.kind in ("qwen3", "gemma3"):
                shapes += [(f"{block}.attn_{part}_norm.weight", (self.head_size,)) for part in "qk"]
            if self.kind == "gemma3":
                shapes += [(f"{block}.post_{part}_norm.weight", (self.hidden,)) for part in ("attention", "ffw")]
            shapes += [
                (f"{block}.attn_output.weight", (self.hidden, query)),
                (f"{block}.ffn_gate.weight", (self.feed_forward, self.hidden)),
                (f"{block}.ffn_up.weight", (self.feed_forward, self.hidden)),
                (f"{block}.ffn_down.weight", (self.hidden, self.feed_forward)),
            ]
        return shapes

    def metadata(self) -> dict[str, Any]:
        """What is written, `changes` included."""
        tokens = self.vocabulary
        plain = {
            f"{self.kind}.block_count": self.layers,
            f"{self.kind}.context_length": self.context,
            f"{self.kind}.embedding_length": self.hidden,
            f"{self.kind}.feed_forward_length": self.feed_forward,
            f"{self.kind}.attention.head_count": self.heads,
            f"{self.kind}.attention.head_count_kv": self.kv_heads,
            f"{self.kind}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{self.kind}.rope.freq_base": self.rope_base,
            "general.name": "Tiny",
            "general.license": "apache-2.0",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
            "tokenizer.ggml.merges": list(MERGES),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
        }
        if self.head_size != self.hidden // self.heads:
            plain |= {f"{self.kind}.attention.{part}_length": self.head_size for part in ("key", "value")}
        if self.window:
            plain[f"{self.kind}.attention.sliding_window"] = self.window
        if self.rope_divisor != 1:
            plain[f"{self.kind}.rope.scaling.type"] = "yarn" if self.yarn_context else "linear"
            plain[f"{self.kind}.rope.scaling.factor"] = self.rope_divisor
        if self.yarn_context:
            plain[f"{self.kind}.rope.scaling.original_context_length"] = self.yarn_context
        return {key: value for key, value in {**plain, **self.changes}.items() if value is not None}

    def write(self, path: Path) -> Path:
        """The file."""
        writer = gguf.GGUFWriter(path, self.kind)
        for key, value in self.metadata().items():
            _add(writer, key, value)
        for name, (stored, kind) in self.stored.items():
            replaced = self.tensors.get(name, stored)
            if replaced is not None:
                writer.add_tensor(name, replaced, raw_dtype=kind if replaced is stored else None)
        for name, extra in self.tensors.items():
            if name not in self.stored and extra is not None:
                writer.add_tensor(name, extra)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def logits(self, tokens: list[int]) -> Floats:
        """Every position's, [tokens, vocabulary]: the plain definition of the network, one layer after another.

        Source: `modeling_llama.py`, `_qwen2`, `_qwen3`, `_gemma3`, `_smollm3` of Hugging Face's transformers; Gemma's norm
        weights are one more there.
        """
        values, gemma = self.values, self.kind == "gemma3"
        stream = values["token_embd.weight"][tokens] * (self.hidden**0.5 if gemma else 1)
        for layer in range(self.layers):
            block = f"blk.{layer}"
            branch = self._attended(layer, _norm(stream, values[f"{block}.attn_norm.weight"]))
            stream = stream + (_norm(branch, values[f"{block}.post_attention_norm.weight"]) if gemma else branch)
            normed = _norm(stream, values[f"{block}.ffn_norm.weight"])
            gate, up = (normed @ values[f"{block}.ffn_{part}.weight"].T for part in ("gate", "up"))
            branch = ((_gelu(gate) if gemma else gate / (1 + np.exp(-gate))) * up) @ values[
                f"{block}.ffn_down.weight"
            ].T
            stream = stream + (_norm(branch, values[f"{block}.post_ffw_norm.weight"]) if gemma else branch)
        head = values["token_embd.weight" if self.tied else "output.weight"]
        return _norm(stream, values["output_norm.weight"]) @ head.T

    def _attended(self, layer: int, normed: Floats) -> Floats:
        """Grouped-query attention. Gemma slides in five of six layers, SmolLM3 does not rotate in one of four."""
        block, count = f"blk.{layer}", len(normed)
        query, key, value = (self._heads(normed, f"{block}.attn_{part}") for part in "qkv")
        if f"{block}.attn_q_norm.weight" in self.values:
            query, key = (
                _norm(heads, self.values[f"{block}.attn_{part}_norm.weight"])
                for part, heads in (("q", query), ("k", key))
            )
        slides = bool(self.window) and layer % 6 != 5
        if self.kind != "smollm3" or layer % 4 != 3:
            query, key = (self._rotated(heads, local=slides) for heads in (query, key))
        key, value = (np.repeat(heads, self.heads // self.kv_heads, axis=0) for heads in (key, value))
        scores = query @ key.swapaxes(1, 2) / np.sqrt(self.head_size)
        seen = np.tri(count, dtype=bool)
        if slides:
            seen &= ~np.tri(count, k=-self.window, dtype=bool)
        scores = np.where(seen, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (shares / shares.sum(-1, keepdims=True)) @ value
        joined: Floats = attended.swapaxes(0, 1).reshape(count, -1)
        return joined @ self.values[f"{block}.attn_output.weight"].T

    def _heads(self, normed: Floats, name: str) -> Floats:
        projected = normed @ self.values[f"{name}.weight"].T + self.values.get(f"{name}.bias", np.float32(0))
        return projected.reshape(len(normed), -1, self.head_size).swapaxes(0, 1)

    def _rotated(self, heads: Floats, *, local: bool) -> Floats:
        """`llama` and `smollm3` files rotate neighbours, the others the two halves of a head."""
        half = self.head_size // 2
        frequencies, magnitude = self._frequencies(local=local)
        angles = np.outer(np.arange(heads.shape[1]), frequencies)
        cosines, sines = np.cos(angles) * magnitude, np.sin(angles) * magnitude
        neighbours = self.kind in ("llama", "smollm3")
        one, two = (slice(0, None, 2), slice(1, None, 2)) if neighbours else (slice(half), slice(half, None))
        rotated = np.empty_like(heads)
        rotated[..., one] = heads[..., one] * cosines - heads[..., two] * sines
        rotated[..., two] = heads[..., one] * sines + heads[..., two] * cosines
        return rotated

    def _frequencies(self, *, local: bool) -> tuple[NDArray[np.float64], float]:
        """And what YaRN multiplies the rotated with. Source: transformers' `modeling_rope_utils.py`."""
        size, base = self.head_size, 10_000.0 if local else self.rope_base
        plain = 1.0 / base ** (np.arange(0, size, 2) / size)
        if local:
            return plain, 1.0
        if self.rope_factors:
            plain = plain / self.values["rope_freqs.weight"]
        if not self.yarn_context:
            return plain / self.rope_divisor, 1.0
        low, high = (
            size * np.log(self.yarn_context / (turns * 2 * np.pi)) / (2 * np.log(self.rope_base)) for turns in (32, 1)
        )
        low, high = max(np.floor(low), 0), min(np.ceil(high), size - 1)
        ramp = np.clip((np.arange(size // 2) - low) / (high - low), 0, 1)
        return plain / self.rope_divisor * ramp + plain * (1 - ramp), 0.1 * float(np.log(self.rope_divisor)) + 1


def _norm(stream: Floats, weight: Floats) -> Floats:
    normed: Floats = stream / np.sqrt((stream * stream).mean(-1, keepdims=True) + 1e-5) * weight
    return normed


def _gelu(values: Floats) -> Floats:
    gelu: Floats = 0.5 * values * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))
    return gelu


def _exact(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Multiples of a power of two up to 127 of them, which every 32 neighbours reach: any block's scale is that power."""
    codes = np.clip(np.rint(rng.normal(0, 40, shape)), -126, 126)
    codes[:, ::32] = 127 * rng.choice([-1, 1], codes[:, ::32].shape)
    weights: Floats = (codes / 1024).astype(np.float32)
    return weights


def _random(rng: np.random.Generator, shape: tuple[int, ...], kind: Kind, name: str) -> NDArray[Any]:
    if len(shape) == 1:
        low, high = (-0.5, 0.5) if name.endswith("bias") else (0.5, 1.5)
        return rng.uniform(low, high, shape).astype(np.float32)
    if kind not in _K_SCALES:
        stored: NDArray[Any] = quantize((rng.standard_normal(shape) / 16).astype(np.float32), kind)
        return stored
    block, nbytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // block, nbytes), dtype=np.uint8)
    for place, size in _K_SCALES[kind].items():
        scale = (rng.uniform(0.8, 1.2, blocks.shape[:2]) * size).astype(np.float16)
        blocks[..., place : place + 2] = scale[..., np.newaxis].view(np.uint8)
    return blocks.reshape(shape[0], -1)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_int32 if value < 0 else writer.add_uint32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
