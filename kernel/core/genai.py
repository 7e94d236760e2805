"""The engine on ONNX Runtime GenAI: one `Generator` for each context, fed token by token, sampled from outside."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_genai

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core import limits, runtime
from llmos.kernel.core.sampler import Logits


class GenaiEngine:
    """A model folder in memory.

    Args:
        folder: with `genai_config.json` and what it names.
        provider: `cpu`, or a provider of this machine in GenAI's spelling (`cuda`, `webgpu`, …).
        window: tokens of the model's context window.

    Raises:
        OpError: UNAVAILABLE when the provider does not work here, INVALID_ARGUMENT when the folder does not load.
    """

    def __init__(self, folder: Path, provider: str, window: int) -> None:
        self.window = window
        try:
            config = onnxruntime_genai.Config(str(folder))
            config.clear_providers()
            if provider == "cpu":
                options = {"intra_op_num_threads": runtime.threads(), **dict([runtime.SPINNING])}
                config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            else:
                config.append_provider(provider)
            self.model = onnxruntime_genai.Model(config)
        except Exception as error:  # GenAI raises RuntimeError, ValueError or its own for the same faults
            raise _unloadable(folder, provider, error) from error

    def open(self, *, lasting: bool) -> GenaiContext:
        return GenaiContext(self, lasting)

    def extend(self, batch: Sequence[tuple[GenaiContext, Sequence[int]]]) -> None:
        for context, tokens in batch:
            context.extend(tokens)


class GenaiContext:
    """One `Generator` and the tokens it holds.

    Its cache is one buffer for past and present, allocated at its full length: letting it grow instead copies all of it
    at each token (measured: 10 % of the speed at 256 tokens, 40 % at 2,000). A job's own context has the length that the
    job can reach; a lasting one starts longer and doubles, and what it held is read again when it does.
    """

    def __init__(self, engine: GenaiEngine, lasting: bool) -> None:
        self._engine = engine
        self._lasting = lasting
        self._generator: Any = None
        self._room = 0
        self.tokens: list[int] = []

    def align(self, prompt: Sequence[int], room: int) -> int:
        if self._generator is None or room > self._room:
            self.close()
            if self._lasting:
                room = min(max(1 << (room - 1).bit_length(), limits.LASTING_ROOM), self._engine.window)
            with _faults():
                parameters = onnxruntime_genai.GeneratorParams(self._engine.model)
                parameters.set_search_options(max_length=room, do_sample=False, past_present_share_buffer=True)
                self._generator = onnxruntime_genai.Generator(self._engine.model, parameters)
            self._room = room
        kept = shared_length(self.tokens, prompt[:-2]) & ~1
        if kept < len(self.tokens):
            with _faults():
                self._generator.rewind_to(kept)
            del self.tokens[kept:]
        return kept

    def extend(self, tokens: Sequence[int]) -> None:
        with _faults():
            self._generator.append_tokens(np.asarray(tokens, dtype=np.int32))
        self.tokens += tokens

    def logits(self) -> Logits:
        with _faults():
            scores: Logits = self._generator.get_logits()[0, -1]
        return scores

    def close(self) -> None:
        self._generator = None
        self.tokens = []


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for length, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return length
    return min(len(one), len(other))


def _unloadable(folder: Path, provider: str, error: Exception) -> OpError:
    if provider == "cpu":
        detail = f"the model in {folder} does not load: {error}"
        return OpError(Code.INVALID_ARGUMENT, detail, "pull or import the model again")
    known = ", ".join(onnxruntime.get_available_providers())
    return OpError(Code.UNAVAILABLE, f"provider {provider} does not work here: {error}", f"this machine has {known}")


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """GenAI's failures as ours."""
    try:
        yield
    except MemoryError as error:
        raise OpError(Code.BUSY, "no memory for another context") from error
    except RuntimeError as error:
        raise OpError(Code.INTERNAL, f"the model runtime failed: {error}") from error
