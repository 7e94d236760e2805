"""Tokens per second of 1, 2, 4, 8 and 16 contexts that decode together, and of GenAI's own Generators doing the same work.

Contexts of 256 tokens, 48 more decoded in each, greedy; ours and theirs alternate in one run. `python -m tests.bench.batching [MODEL]`.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import onnxruntime_genai

from llmos.ipc import paths
from llmos.kernel.core.genai import GenaiEngine
from llmos.kernel.core.model import Model
from tests.bench import core_work
from tests.bench.figures import report

CONTEXT, TOKENS, ROUNDS = 256, 48, 3
SIZES = (1, 2, 4, 8, 16)


def ours(name: str, model: Model, count: int) -> float:
    """Tokens per second, all contexts together."""
    texts = core_work.passages(model, count, CONTEXT)
    jobs = [core_work.generation(name, model, text, TOKENS) for text in texts]
    core_work.read(jobs)
    started = time.perf_counter()
    tokens = core_work.decode(jobs)
    seconds = time.perf_counter() - started
    core_work.leave(jobs)
    return tokens / seconds


def theirs(model: Model, engine: GenaiEngine, count: int) -> float:
    """The same by that many `Generator`s, a token of each in turn."""
    generators = []
    for text in core_work.passages(model, count, CONTEXT):
        parameters = onnxruntime_genai.GeneratorParams(engine.model)
        parameters.set_search_options(max_length=CONTEXT + TOKENS + 64, do_sample=False)
        generator = onnxruntime_genai.Generator(engine.model, parameters)
        generator.append_tokens(np.asarray(model.encode_text(text), np.int32))
        generators.append(generator)
    started = time.perf_counter()
    for _ in range(TOKENS - 1):
        for generator in generators:
            generator.generate_next_token()
    return (TOKENS - 1) * count / (time.perf_counter() - started)


def main() -> None:
    """Print and keep the figures."""
    name = core_work.chosen()
    model = core_work.loaded(name)
    engine = GenaiEngine(paths.models_dir() / name, "cpu", model.info.context, "")
    rates: dict[int, list[float]] = {count: [] for count in SIZES}
    genai: list[float] = []
    for _ in range(ROUNDS):
        for count in SIZES:
            rates[count].append(ours(name, model, count))
        genai.append(theirs(model, engine, 8))
    best = {count: statistics.median(rates[count]) for count in SIZES}
    figures: dict[str, float | int | str] = {
        "ratio_8_to_1": best[8] / best[1],
        "ratio_to_genai": best[8] / statistics.median(genai),
        **{f"tokens_per_s_{count}": rate for count, rate in best.items()},
        "genai_8_tokens_per_s": statistics.median(genai),
    }
    report("batching", figures, model=name)


if __name__ == "__main__":
    main()
