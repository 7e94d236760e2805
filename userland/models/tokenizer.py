"""Builds `tokenizer.json` from a GGUF's vocabulary, so that token ids equal llama.cpp's.

Two families exist in the supported architectures: byte-level BPE (`tokenizer.ggml.model` = "gpt2"), whose pre-tokenizer
llama.cpp knows by name, and SentencePiece BPE ("llama"), whose merge order is given by the pieces' scores.

Source: https://huggingface.co/docs/tokenizers (the file format); llama.cpp `src/llama-vocab.cpp` (which split goes by which name).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmos.userland.models.errors import ImportRejected
from llmos.userland.models.metadata import Metadata

Json = dict[str, Any]

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
"""Values of `tokenizer.ggml.token_type` that matter here."""

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES: Json = {**_GPT2, "use_regex": False}
_DIGITS: Json = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_PRE_TOKENIZERS: dict[str, Json] = {
    "gpt-2": _GPT2,
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "minerva-7b"), _sequence(_DIGITS, _GPT2)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), _sequence(_split(_QWEN2), _BYTES)),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe"), _sequence(_split(_LLAMA3), _BYTES)
    ),
    "deepseek-coder": _sequence(
        *map(_split, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-\x{D7FF}]+", r"\p{N}")), _BYTES
    ),
    "default": _sequence(
        _split(r"[\p{P}\$\+<=>\^~\|]+"),
        _split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
        _split(r"\p{N}+"),
        _split(r"[0-9][0-9][0-9]"),
        _BYTES,
    ),
}
_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"})
"""A word that is a token stays one, whatever the merges say; these vocabularies also begin a text with BOS by default."""

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")
"""How vocabularies name the end of a turn or of a text. Where the file marks such a token as control, generation ends at it;
in any case it is one token wherever it stands in a text, as in llama.cpp.
"""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What an import writes about tokens: two files' contents and the ids a caller needs."""

    json: Json
    config: Json
    chat_template: str | None
    bos: int | None
    eos: tuple[int, ...]
    """Every id that ends a turn, the GGUF's `eos_token_id` first."""
    pad: int | None
    add_bos: bool


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """The tokenizer a file describes. Raises `ImportRejected` naming the key that is missing, wrong or unsupported."""
    tokens = metadata.texts("tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens):
        raise ImportRejected("metadata key 'tokenizer.ggml.tokens': a token stands twice")
    types = (
        metadata.integers("tokenizer.ggml.token_type") if "tokenizer.ggml.token_type" in metadata else [1] * len(tokens)
    )
    if len(types) != len(tokens):
        raise ImportRejected(f"metadata key 'tokenizer.ggml.token_type': {len(types)} types for {len(tokens)} tokens")
    family = metadata.text("tokenizer.ggml.model")
    if family == "gpt2":
        body, begins_with_bos = _byte_level(metadata, tokens)
    elif family == "llama":
        body, begins_with_bos = _sentence_piece(metadata, tokens, types), True
    else:
        raise ImportRejected(
            f"metadata key 'tokenizer.ggml.model': {family[:40]!r} is not supported", hint="supported: gpt2, llama"
        )
    bos, eos, pad = (_special_id(metadata, name, len(tokens)) for name in ("bos", "eos", "padding"))
    if eos is None:
        raise ImportRejected("metadata key 'tokenizer.ggml.eos_token_id' is missing")
    add_bos = metadata.flag("tokenizer.ggml.add_bos_token", default=begins_with_bos) and bos is not None
    template = metadata.text("tokenizer.chat_template", "") or None
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(tokens, types)),
        "normalizer": None,
        **body,
    }
    if add_bos and bos is not None:
        document["post_processor"] = _begin_with(tokens[bos], bos)
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast" if family == "gpt2" else "LlamaTokenizer",
        "model_max_length": 1 << 30,
        "add_bos_token": add_bos,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[eos],
    }
    if bos is not None:
        config["bos_token"] = tokens[bos]
    if pad is not None:
        config["pad_token"] = tokens[pad]
    if template is not None:
        config["chat_template"] = template
    return Tokenizer(document, config, template, bos, _ends_of_turn(metadata, tokens, types, eos), pad, add_bos)


def _ends_of_turn(metadata: Metadata, tokens: list[str], types: list[int], eos: int) -> tuple[int, ...]:
    ids = [eos]
    for name in ("eot", "eom"):
        other = _special_id(metadata, name, len(tokens))
        if other is not None:
            ids.append(other)
    ids += [number for number, token in enumerate(tokens) if token in _TURN_ENDS and types[number] == _CONTROL]
    return tuple(dict.fromkeys(ids))


def _special_id(metadata: Metadata, name: str, size: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    return metadata.integer(key, 0, size - 1) if key in metadata else None


def _added_tokens(tokens: list[str], types: list[int]) -> Iterator[Json]:
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if token and (kind in (_CONTROL, _USER_DEFINED, _UNKNOWN) or token in _TURN_ENDS):
            yield {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind in (_CONTROL, _UNKNOWN),
            }


def _begin_with(token: str, number: int) -> Json:
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}, special, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _byte_level(metadata: Metadata, tokens: list[str]) -> tuple[Json, bool]:
    name = metadata.text("tokenizer.ggml.pre", "default")
    pre_tokenizer = _PRE_TOKENIZERS.get(name)
    if pre_tokenizer is None:
        raise ImportRejected(
            f"metadata key 'tokenizer.ggml.pre': {name[:40]!r} is not supported",
            hint=f"supported: {', '.join(sorted(_PRE_TOKENIZERS))}",
        )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = []
    for merge in metadata.texts("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise ImportRejected(
                f"metadata key 'tokenizer.ggml.merges': {merge[:60]!r} does not join two tokens into a third"
            )
        merges.append([left, right])
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": name in _WHOLE_WORDS_FIRST,
        "vocab": vocabulary,
        "merges": merges,
    }
    return {
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": _GPT2,
        "model": model,
    }, name in _WHOLE_WORDS_FIRST


def _sentence_piece(metadata: Metadata, tokens: list[str], types: list[int]) -> Json:
    scores = metadata.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise ImportRejected(f"metadata key 'tokenizer.ggml.scores': {len(scores)} scores for {len(tokens)} tokens")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", default=True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps: list[Json] = [{"type": "Prepend", "prepend": "▁"}, spaces] if prefix else [spaces]
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": _merges_by_score(vocabulary, scores, types),
    }
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _merges_by_score(vocabulary: dict[str, int], scores: list[float], types: list[int]) -> list[list[str]]:
    """Every way to join two pieces into a third, the best third piece first: SentencePiece's greedy order as BPE merges."""
    ranked: list[tuple[float, int, str, str]] = []
    for piece, number in vocabulary.items():
        if types[number] in (_CONTROL, _UNKNOWN, _BYTE):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-scores[number], number, left, right))
    ranked.sort(key=lambda merge: (merge[0], merge[1], vocabulary[merge[2]], vocabulary[merge[3]]))
    return [[left, right] for _, _, left, right in ranked]
