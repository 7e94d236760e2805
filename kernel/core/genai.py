"""The engine on ONNX Runtime GenAI: one `Generator` for each row, fed one after the other, sampled from outside.

It runs what the batched engine does not: graphs of other shapes, and the providers that GenAI knows (CUDA, DirectML, WebGPU).
"""

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
from llmos.kernel.core.engine import KV
from llmos.kernel.core.sampler import Logits


class GenaiEngine:
    """A model folder in memory.

    Args:
        folder: with `genai_config.json` and what it names.
        provider: `cpu`, or a provider of this machine in GenAI's spelling (`cuda`, `webgpu`, …).
        window: tokens of the model's context window.
        why: it was chosen, for people.

    Raises:
        OpError: UNAVAILABLE when the provider does not work here, INVALID_ARGUMENT when the folder does not load.
    """

    name = "genai"
    looks_back = portable = False

    def __init__(self, folder: Path, provider: str, window: int, why: str) -> None:
        self.window, self.why = window, why
        self.rows = limits.GENAI_ROWS
        self._seated = 0
        try:
            config = onnxruntime_genai.Config(str(folder))
            config.clear_providers()
            if provider == "cpu":
                options = {"intra_op_num_threads": runtime.threads(), **dict(runtime.SPINNING)}
                config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            else:
                config.append_provider(provider)
            self.model = onnxruntime_genai.Model(config)
        except Exception as error:  # GenAI raises RuntimeError, ValueError or its own for the same faults
            raise _unloadable(folder, provider, error) from error

    def seat(self, room: int) -> GenaiRow | None:
        if self._seated >= self.rows:
            return None
        with _faults():
            parameters = onnxruntime_genai.GeneratorParams(self.model)
            parameters.set_search_options(
                max_length=min(room, self.window), do_sample=False, past_present_share_buffer=True
            )
            row = GenaiRow(onnxruntime_genai.Generator(self.model, parameters))
        self._seated += 1
        return row

    def leave(self, row: GenaiRow) -> None:
        self._seated -= 1
        row.generator, row.tokens = None, []

    def extend(self, row: GenaiRow, tokens: Sequence[int], told: int = 1) -> Logits:  # noqa: ARG002 -- it never looks back
        # Nobody knows what a generator holds that has failed: nothing may go on in it.
        held, row.tokens = row.tokens, []
        with _faults():
            row.generator.append_tokens(np.asarray(tokens, dtype=np.int32))
            scores: Logits = row.generator.get_logits()[0, -1:]
        row.tokens = [*held, *tokens]
        return scores

    def step(self, rows: Sequence[GenaiRow], tokens: Sequence[int]) -> Logits:
        return np.concatenate([self.extend(row, [token]) for row, token in zip(rows, tokens, strict=True)])

    def cut(self, row: GenaiRow, length: int) -> None:
        if length < len(row.tokens):
            with _faults():
                row.generator.rewind_to(length)
            del row.tokens[length:]

    def take(self, row: GenaiRow, start: int, stop: int) -> KV:
        raise NotImplementedError

    def put(self, row: GenaiRow, tokens: Sequence[int], kv: KV) -> None:
        raise NotImplementedError


class GenaiRow:
    """One `Generator` and the tokens it holds.

    Its cache is one buffer for past and present, allocated at the full length its job can reach: letting it grow instead
    copies all of it at each token (measured: 10 % of the speed at 256 tokens, 40 % at 2,000).
    """

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.tokens: list[int] = []


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
