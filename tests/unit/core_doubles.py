"""A model without weights: a byte-level tokenizer, and an engine whose next token is the last one's successor."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core.engine import ModelInfo
from llmos.kernel.core.genai import shared_length
from llmos.kernel.core.model import Model
from llmos.kernel.core.sampler import Logits
from llmos.kernel.core.template import CHATML, ChatTemplate
from llmos.kernel.core.tokenizer import Tokenizer

SPECIAL = ("<|im_start|>", "<|im_end|>")
VOCAB = 256 + len(SPECIAL)
WINDOW = 400


def byte_tokenizer(folder: Path) -> Tokenizer:
    """Every byte is a token; `<|im_start|>` and `<|im_end|>` are one each, the latter ending a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={symbol: at for at, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(made.to_str())))
    return Tokenizer(path, VOCAB, [VOCAB - 1])


class CountingContext:
    """After token t comes t + 1, as long as that is a byte."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def align(self, prompt: Sequence[int], room: int) -> int:
        kept = shared_length(self.tokens, prompt[:-2]) & ~1
        del self.tokens[kept:]
        return kept

    def logits(self) -> Logits:
        scores = np.zeros(VOCAB, dtype=np.float32)
        scores[(self.tokens[-1] + 1) % 256] = 1.0
        return scores

    def close(self) -> None:
        self.tokens = []


class CountingEngine:
    """`at[n]` is called when the n-th extend (from 1) has been done; `fail_at` makes that one fail."""

    def __init__(self) -> None:
        self.fed: list[int] = []
        self.at: dict[int, Callable[[], None]] = {}
        self.fail_at = 0

    def open(self, *, lasting: bool) -> CountingContext:
        return CountingContext()

    def extend(self, batch: Sequence[tuple[CountingContext, Sequence[int]]]) -> None:
        for context, tokens in batch:
            self.fed.append(len(tokens))
            if len(self.fed) == self.fail_at:
                raise OpError(Code.INTERNAL, "the model runtime failed: it was told to")
            context.tokens += tokens
            self.at.get(len(self.fed), lambda: None)()


def counting_model(folder: Path) -> tuple[Model, CountingEngine]:
    """A model around a `CountingEngine`, with ChatML for a template."""
    tokenizer, engine = byte_tokenizer(folder), CountingEngine()
    info = ModelInfo(
        name="counting",
        architecture="none",
        parameters=0,
        vocab=VOCAB,
        context=WINDOW,
        provider="cpu",
        bos=None,
        eos=(VOCAB - 1,),
        kv_bytes=0,
        chat=True,
    )
    return Model(info, engine, tokenizer, ChatTemplate(CHATML)), engine
