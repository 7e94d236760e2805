"""Text to tokens and tokens to bytes, with what a model's `tokenizer.json` says and no other opinion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import llguidance
import tokenizers

_MARK = "\ufdd0"  # a noncharacter: it stands for nothing in any text that is interchanged (Unicode 23.7)
_MARKED = re.compile(f"{_MARK}(.)", re.DOTALL)
_INDEX = 0xF0000


class Tokenizer:
    """A model's tokenizer.

    Args:
        path: `tokenizer.json`, in the format of the `tokenizers` library.
        vocab: rows of the model's logits; at least the tokenizer's own size, often padded above it.
        eos: tokens that end a text.
    """

    def __init__(self, path: Path, vocab: int, eos: Sequence[int]) -> None:
        source = path.read_text(encoding="utf-8")
        self._tokenizer = tokenizers.Tokenizer.from_str(source)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.grammars = llguidance.LLTokenizer(source, n_vocab=vocab, eos_token=list(eos))
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._special = [token.content for token in added if token.special]
        self._forgeable = re.compile("|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) or r"(?!)")
        self.bytes_of = lru_cache(maxsize=vocab)(self._bytes_of)

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a raw prompt, with what the tokenizer itself puts around a text (often a BOS)."""
        tokens: list[int] = self._tokenizer.encode(prompt).ids
        return tokens

    def shield(self, content: str) -> str:
        """Text that a chat template may carry without its special tokens becoming the model's: see `encode_chat`."""
        content = content.replace(_MARK, "\ufffd")
        return self._forgeable.sub(lambda found: _MARK + chr(_INDEX + self._special.index(found[0])), content)

    def encode_chat(self, rendered: str) -> list[int]:
        """The tokens of a rendered conversation. Special tokens count where the template wrote them; where they come
        out of shielded content they are spelled out as ordinary text, so that no message can pose as another role.
        """
        tokens: list[int] = []
        for index, part in enumerate(_MARKED.split(rendered)):
            forged = index % 2 == 1
            self._tokenizer.encode_special_tokens = forged
            text = self._special[ord(part) - _INDEX] if forged else part
            tokens += self._tokenizer.encode(text, add_special_tokens=False).ids
        self._tokenizer.encode_special_tokens = False
        return tokens

    def text_of(self, token: int) -> str:
        """The name of a token in the vocabulary, empty for one that is not in it."""
        return self._tokenizer.id_to_token(token) or ""

    def _bytes_of(self, token: int) -> bytes:
        """The bytes a token adds to a text; none for a special token."""
        if self.grammars.is_special_token(token):
            return b""
        piece: bytes = self.grammars.decode_bytes([token])
        return piece
