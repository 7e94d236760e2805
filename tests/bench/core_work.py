"""What the benchmarks of the core share: a model in this process, and jobs on it, without a kernel."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmos.ipc import paths
from llmos.kernel.core.job import Generation
from llmos.kernel.core.model import Model, load_model
from llmos.kernel.core.request import Message, Request
from llmos.kernel.core.turn import Turn

TEXT = Path(__file__).parents[1] / "evals" / "data" / "engineers_thumb.txt"
_numbers = itertools.count(1)


def chosen(wanted: Sequence[str] = ("qwen2.5-coder-0.5b", "smollm2-135m")) -> str:
    """The model named on the command line, or the first of those wanted that is installed."""
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        return sys.argv[1]
    return next(name for name in wanted if (paths.models_dir() / name / "genai_config.json").is_file())


def loaded(name: str) -> Model:
    return load_model(paths.models_dir() / name, "cpu")


def passages(model: Model, count: int, tokens: int) -> list[str]:
    """Different texts of `tokens` tokens each, a few more or fewer."""
    words = TEXT.read_text(encoding="utf-8").split(" ")
    share = int(len(words) * tokens / model.length(" ".join(words)))
    return [f"{number}. " + " ".join(words[number * 97 : number * 97 + share]) for number in range(count)]


def generation(name: str, model: Model, prompt: str | list[Message], max_tokens: int, **fields: Any) -> Generation:
    said = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
    return Generation(Request(job=next(_numbers), max_tokens=max_tokens, **said, **fields), name, model)


def read(jobs: Iterable[Generation]) -> None:
    """Read their prompts, one after the other."""
    for job in jobs:
        while job.reading:
            _worked(Turn((job, 128), []))


def decode(jobs: Sequence[Generation]) -> int:
    """Decode them together until all have ended; how many tokens that took."""
    turn = Turn(None, [(job, 1 << 30) for job in jobs])
    _worked(turn)
    return sum(job.decode for job in jobs)


def _worked(turn: Turn) -> None:
    while turn.work():
        pass
    for _, error in turn.failed:
        raise error


def leave(jobs: Iterable[Generation]) -> None:
    for job in jobs:
        job.leave()
