"""A model without weights: a byte-level tokenizer, and an engine whose next token is the last one's successor.

Its keys and values can be told from any others: those of a token depend on all tokens before it, as a real model's do. Before
every run the engine compares what a row holds with what it would have computed, so that no mistake of a cache goes unseen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core.cache import shared_length
from llmos.kernel.core.engine import KV, ModelInfo
from llmos.kernel.core.loop import Loop
from llmos.kernel.core.model import Model
from llmos.kernel.core.sampler import Logits
from llmos.kernel.core.seats import Memory, seats_for
from llmos.kernel.core.template import CHATML, ChatTemplate
from llmos.kernel.core.tokenizer import Tokenizer

Message = dict[str, Any]

SPECIAL = ("<|im_start|>", "<|im_end|>")
VOCAB = 256 + len(SPECIAL)
EOS = VOCAB - 1
WINDOW = 400
KV_BYTES = 16
"""Of one token: 2 for keys and values, 1 head of 2 numbers."""


def byte_tokenizer(folder: Path) -> Tokenizer:
    """Token n is byte n; `<|im_start|>` and `<|im_end|>` are one each, the latter ending a text."""
    alphabet = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
    made = tokenizers.Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(made.to_str())))
    return Tokenizer(path, VOCAB, [EOS])


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte. Source: Radford et al. 2019, GPT-2, `bytes_to_unicode`."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (chr(256 + at) for at in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def keys_and_values(tokens: Sequence[int], before: KV | None = None) -> KV:
    """What the engine computes of a text, shape `(2, 1, tokens, 2)`; any change before a token changes its numbers.

    `before` is the same of a beginning of it.
    """
    kv: KV = np.empty((2, 1, len(tokens), 2), np.float32)
    start = 0 if before is None else before.shape[2]
    state = 1
    if before is not None and start:
        kv[:, :, :start], state = before, int(before[0, 0, -1, 0])
    for position, token in enumerate(tokens[start:], start):
        state = (state * 8191 + token + 1) % 1_000_003
        kv[:, 0, position] = (state, token), (position, (state * 31) % 65_521)
    return kv


class CountingRow:
    def __init__(self, room: int) -> None:
        self.room = room
        self.tokens: list[int] = []
        self.kv: KV = np.full((2, 1, room + 1, 2), np.nan, np.float32)
        self._of: list[int] = []
        self._expected = keys_and_values([])

    def expected(self) -> KV:
        """What it ought to hold."""
        same = shared_length(self._of, self.tokens)
        self._of, self._expected = list(self.tokens), keys_and_values(self.tokens, self._expected[:, :, :same])
        return self._expected


class CountingEngine:
    """After token t comes t + 1, as long as that is a byte.

    Attributes:
        fed: of every run, how many tokens each of its rows was fed.
        at: what is called when so many runs are done (from 1).
        fail_at: these runs fail, and leave their rows as they were.
        taken: the rows that somebody sits in.
    """

    name, why = "counting", "it is a double"

    def __init__(self, *, rows: int = 16, portable: bool = True, looks_back: bool = True) -> None:
        self.rows, self.portable, self.looks_back = rows, portable, looks_back
        self.fed: list[list[int]] = []
        self.at: dict[int, Callable[[], object]] = {}
        self.fail_at: set[int] = set()
        self.taken: list[CountingRow] = []
        self.successor: dict[int, int] = {}
        """Exceptions from t + 1."""

    def seat(self, room: int) -> CountingRow | None:
        if len(self.taken) == self.rows:
            return None
        self.taken.append(row := CountingRow(room))
        return row

    def leave(self, row: CountingRow) -> None:
        self.taken.remove(row)
        row.tokens, row.kv = [], row.kv[:, :, :0]

    def extend(self, row: CountingRow, tokens: Sequence[int], told: int = 1) -> Logits:
        assert told == 1 or self.looks_back
        self._run([row], [tokens])
        return np.stack([self._scores(token) for token in tokens[len(tokens) - told :]])

    def step(self, rows: Sequence[CountingRow], tokens: Sequence[int]) -> Logits:
        assert len(set(map(id, rows))) == len(rows)
        self._run(rows, [[token] for token in tokens])
        return np.stack([self._scores(token) for token in tokens])

    def cut(self, row: CountingRow, length: int) -> None:
        assert length <= len(row.tokens)
        del row.tokens[length:]

    def take(self, row: CountingRow, start: int, stop: int) -> KV:
        assert self.portable
        return row.kv[:, :, start:stop]

    def put(self, row: CountingRow, tokens: Sequence[int], kv: KV) -> None:
        assert self.portable
        assert row in self.taken
        held = len(row.tokens)
        row.tokens += tokens
        assert np.array_equal(kv, row.expected()[:, :, held:]), "these are not its keys and values"
        row.kv[:, :, held : len(row.tokens)] = kv

    def _run(self, rows: Sequence[CountingRow], fed: Sequence[Sequence[int]]) -> None:
        self.fed.append([len(tokens) for tokens in fed])
        if len(self.fed) in self.fail_at:
            raise OpError(Code.INTERNAL, "the model runtime failed: it was told to")
        for row, tokens in zip(rows, fed, strict=True):
            assert row in self.taken, "nobody sits here"
            assert all(0 <= token < VOCAB for token in tokens)
            held = len(row.tokens)
            assert np.array_equal(row.kv[:, :, :held], row.expected()), "a row holds another text"
            row.tokens += tokens
            assert tokens and len(row.tokens) <= row.room  # noqa: PT018
            row.kv[:, :, held : len(row.tokens)] = row.expected()[:, :, held:]
        self.at.pop(len(self.fed), lambda: None)()

    def _scores(self, token: int) -> Logits:
        scores = np.zeros(VOCAB, dtype=np.float32)
        scores[self.successor.get(token, (token + 1) % 256)] = 1.0
        return scores


def counting_model(
    folder: Path, memory: Memory | None = None, *, window: int = WINDOW, engine: CountingEngine | None = None
) -> Model:
    """A model around a `CountingEngine`, with ChatML for a template."""
    engine = engine or CountingEngine()
    info = ModelInfo(
        name="counting",
        architecture="none",
        parameters=0,
        vocab=VOCAB,
        context=window,
        provider="cpu",
        bos=None,
        eos=(EOS,),
        kv_bytes=KV_BYTES,
        chat=True,
    )
    seats = seats_for(engine, KV_BYTES, memory or Memory())
    return Model(info, engine, seats, byte_tokenizer(folder), ChatTemplate(CHATML))


class Desk:
    """A core's loop without its process: `tell` hands it one message and returns what it answered.

    Args:
        folder: for the tokenizer and what is spilled.
        engines: of the models, by name.
        limits: the fields of `limits`.
    """

    def __init__(
        self, folder: Path, engines: dict[str, CountingEngine] | None = None, *, window: int = WINDOW, **limits: Any
    ) -> None:
        self.engines = engines or {"m": CountingEngine()}
        self.said: list[Message] = []
        self.arriving: list[Message] = []
        """What comes while a turn is under way."""
        self.loop = Loop(self, self._load)  # type: ignore[arg-type]  # it speaks as a pipe does
        self._folder, self._window = folder, window
        self.tell("limits", **{"kv_bytes": 1 << 20, "spill_dir": None, "spill_bytes": 0, **limits})
        for name in self.engines:
            self.tell("load", model=name, folder=name, provider="cpu", kind="generator")
        self._turns = 0

    def _load(self, folder: Path, _: str, memory: Memory) -> Model:
        if folder.name not in self.engines:
            raise OpError(Code.NOT_FOUND, f"no model in {folder}")
        return counting_model(self._folder, memory, window=self._window, engine=self.engines[folder.name])

    # -- the pipe's face

    def send(self, message: Message) -> None:
        self.said.append(message)

    def drain(self) -> list[Message]:
        arrived, self.arriving = self.arriving, []
        return arrived

    # -- the kernel's side

    def tell(self, op: str, **fields: Any) -> list[Message]:
        """Hand over one message, and what was put off by it."""
        self.said = []
        self.loop._handle({"op": op, **fields})
        while self.loop._backlog:
            self.loop._handle(self.loop._backlog.popleft())
        return self.said

    def ask(self, op: str, **fields: Any) -> Message:
        (answer,) = self.tell(op, **fields)
        return answer

    def job(self, number: int, model: str = "m", **fields: Any) -> Message:
        return self.ask("job", job=number, model=model, **fields)

    def run(self, prefill: list[int] | None = None, *decode: list[int]) -> Message:
        """A turn; its `ran`, with the text of each job under `text` and other messages under `said`."""
        self._turns += 1
        said = self.tell("run", turn=self._turns, prefill=prefill, decode=list(decode))
        ran = next(message for message in said if message["op"] == "ran")
        assert ran["turn"] == self._turns
        text: dict[int, str] = {}
        for chunk in said:
            if chunk["op"] == "chunk":
                text[chunk["job"]] = text.get(chunk["job"], "") + chunk["text"]
        others = [message for message in said if message["op"] not in ("chunk", "ran")]
        return {**ran, "text": text, "said": others, "jobs": {entry[0]: entry[1:] for entry in ran["jobs"]}}

    def finish(self, number: int, tokens: int = 1000) -> tuple[str, str]:
        """Run a job alone to its end: its text, and how it ended."""
        text = ""
        while True:
            ran = self.run([number, tokens], [number, tokens])
            text += ran["text"].get(number, "")
            *_, state, finish = ran["jobs"][number]
            if state == "done":
                return text, finish

    def generate(self, number: int, model: str = "m", **fields: Any) -> str:
        """A job from its admission to its end; its text."""
        admitted = self.job(number, model, **fields)
        assert admitted["op"] == "admitted", admitted
        return self.finish(number)[0]

    @property
    def memory(self) -> Memory:
        return self.loop._memory
