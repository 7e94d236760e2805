"""The tokenizer that is written gives the ids that the vocabulary and its family define."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llguidance
import pytest
import tokenizers

from llmos.userland.models.errors import ImportRejected
from llmos.userland.models.metadata import Metadata
from llmos.userland.models.tokenizer import Tokenizer, build_tokenizer
from tests.unit.tiny_gguf import SPECIAL, TinyModel

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def byte_level(**changes: Any) -> Tokenizer:
    return build_tokenizer(
        Metadata(TinyModel(changes={f"tokenizer.{key}": value for key, value in changes.items()}).metadata())
    )


def pieces(words: dict[str, float], **changes: Any) -> Tokenizer:
    """A SentencePiece vocabulary of `words` with their scores, after the special and byte pieces."""
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*PIECES, *words],
        "tokenizer.ggml.scores": [0.0] * len(PIECES) + list(words.values()),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return build_tokenizer(Metadata({**metadata, **changes}))


def encode(made: Tokenizer, text: str, *, special: bool = False) -> list[str]:
    loaded = tokenizers.Tokenizer.from_str(json.dumps(made.json))
    tokens: list[str] = loaded.encode(text, add_special_tokens=special).tokens
    return tokens


def decode(made: Tokenizer, text: str) -> str:
    loaded = tokenizers.Tokenizer.from_str(json.dumps(made.json))
    decoded: str = loaded.decode(loaded.encode(text, add_special_tokens=False).ids)
    return decoded


def test_merges_apply_in_order() -> None:
    """Byte-level pieces join by the file's merges, and digits stay single as `smollm` wants."""
    assert encode(byte_level(), "hello world 123") == [*("hello", "Ġwo", "r", "l", "d", "Ġ", "1", "2", "3")]


def test_special_tokens_are_single() -> None:
    """Control tokens are one token each wherever they stand."""
    assert encode(byte_level(), "<|im_start|>he<|im_end|>") == ["<|im_start|>", "he", "<|im_end|>"]


@pytest.mark.parametrize("text", ["", " ", "naïve — 日本語 🙂\n\tx", "e\u0301", "\x00\x7f", "  a  "])
def test_every_text_survives(text: str) -> None:
    """Decoding gives back the text, byte for byte, in both families."""
    assert decode(byte_level(), text) == text
    assert decode(pieces({"▁": -1.0, "a": -2.0}), text) == text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-2", ["Ġ123", "Ċ", "Ċ", "he", "'", "LL"]),
        ("smollm", ["Ġ", "1", "2", "3", "Ċ", "Ċ", "he", "'", "LL"]),
        ("qwen2", ["Ġ", "1", "2", "3", "ĊĊ", "he", "'LL"]),
        ("llama-bpe", ["Ġ", "123", "ĊĊ", "he", "'LL"]),
        ("default", ["Ġ", "123", "Ċ", "Ċ", "he", "'", "LL"]),
    ],
)
def test_text_is_cut_as_the_name_says(name: str, expected: list[str]) -> None:
    """Each pre-tokenizer name cuts numbers, line ends and contractions in its own way, which is llama.cpp's."""
    loaded = tokenizers.Tokenizer.from_str(json.dumps(byte_level(**{"ggml.pre": name}).json))
    assert [cut for cut, _ in loaded.pre_tokenizer.pre_tokenize_str(" 123\n\nhe'LL")] == expected


def test_whole_words_come_before_merges() -> None:
    """`llama-bpe` takes a word that is a token as it is, where merges would not reach it."""
    changes = {"ggml.pre": "llama-bpe", "ggml.merges": ["h e"]}
    assert encode(byte_level(**changes), "hello") == ["hello"]
    assert encode(byte_level(**{**changes, "ggml.pre": "gpt-2"}), "hello") == ["he", "l", "l", "o"]


def test_best_scored_pieces_join_first() -> None:
    """SentencePiece joins the best-scored pair first, wherever it stands: a-bc and not ab-c."""
    words = {"▁": -9.0, "a": -9.0, "b": -9.0, "c": -9.0, "ab": -3.0, "bc": -2.0, "▁a": -4.0}
    assert encode(pieces(words), "abc") == ["▁a", "bc"]
    assert encode(pieces({**words, "ab": -1.0, "▁ab": -1.5}), "abc") == ["▁ab", "c"]


def test_unknown_characters_become_bytes() -> None:
    """What no piece covers is spelled in bytes."""
    assert encode(pieces({"▁": -1.0}), "é") == ["▁", "<0xC3>", "<0xA9>"]


def test_space_prefix_follows_its_key() -> None:
    """A text begins with a space piece unless `add_space_prefix` says no."""
    words = {"▁": -1.0, "a": -2.0}
    assert encode(pieces(words), "a") == ["▁", "a"]
    assert encode(pieces(words, **{"tokenizer.ggml.add_space_prefix": False}), "a") == ["a"]


def test_user_defined_runs_are_taken_whole() -> None:
    """As in Gemma's files: the longest run of spaces or line ends that is a token of its own comes before any piece, tags too."""
    words = {"▁": -1.0, "▁a": -2.0, "a": -3.0, "\n": -4.0, "<": -5.0, "b": -6.0, ">": -7.0}
    runs = ["  ", "   ", "\n\n", "<b>"]
    made = pieces(
        {**words, **dict.fromkeys(runs, 0.0)},
        **{
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words), *[4] * len(runs)],
            "tokenizer.ggml.add_space_prefix": False,
        },
    )
    assert encode(made, "a a     a") == ["a", "▁a", "   ", "  ", "a"]
    assert encode(made, "\n\n\n<b>é") == ["\n\n", "\n", "<b>", "<0xC3>", "<0xA9>"]
    for text in ("a a     a", "\n\n\n<b>é"):
        assert decode(made, text) == text


def test_bos_follows_its_key() -> None:
    """A text begins with BOS where the file says so, or where its family does and the file is silent."""
    assert encode(byte_level(), "he", special=True) == ["he"]
    assert encode(byte_level(**{"ggml.add_bos_token": True}), "he", special=True) == ["<|im_start|>", "he"]
    assert encode(pieces({"▁": -1.0}), "", special=True) == ["<s>"]
    assert not pieces({"▁": -1.0}, **{"tokenizer.ggml.add_bos_token": False}).add_bos


def test_ends_of_turn_are_found() -> None:
    """Besides the file's EOS, control tokens that end turns by name or by key end a generation; ordinary ones do not."""
    assert byte_level().eos == (2, 0)
    assert byte_level(**{"ggml.eot_token_id": 1}).eos == (2, 1, 0)
    plain = [1, 3, 3, *[1] * (len(TinyModel().vocabulary) - len(SPECIAL))]
    made = byte_level(**{"ggml.token_type": plain})
    assert made.eos == (2,)
    assert encode(made, "<|endoftext|>") == ["<|endoftext|>"]
    assert not made.json["added_tokens"][0]["special"]


def test_grammars_can_be_built_on_it() -> None:
    """llguidance reads both families: without it no generation can follow a schema."""
    for made in (byte_level(), pieces({"▁": -1.0, "a": -2.0})):
        size = len(made.json["model"]["vocab"])
        reader = llguidance.LLTokenizer(json.dumps(made.json), n_vocab=size, eos_token=list(made.eos))
        assert reader.vocab_size == size


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizer.ggml.scores": [0.0]}, "'tokenizer.ggml.scores': 1 scores"),
        ({"tokenizer.ggml.scores": [float("nan")] * len(PIECES)}, "'tokenizer.ggml.scores'"),
        ({"tokenizer.ggml.tokens": ["a"] * len(PIECES)}, "'tokenizer.ggml.tokens': a token stands twice"),
        ({"tokenizer.ggml.add_space_prefix": 1}, "'tokenizer.ggml.add_space_prefix'"),
    ],
)
def test_bad_pieces_are_named(changes: dict[str, Any], named: str) -> None:
    """A SentencePiece vocabulary that does not fit together is refused by its key."""
    with pytest.raises(ImportRejected, match=named):
        pieces({}, **changes)


def test_written_file_is_read_back(tmp_path: Path) -> None:
    """The JSON survives a file: nothing in it depends on how it is encoded."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(byte_level().json, ensure_ascii=False), encoding="utf-8")
    assert tokenizers.Tokenizer.from_file(str(path)).encode("hello").tokens == ["hello"]
