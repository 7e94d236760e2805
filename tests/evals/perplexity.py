"""Imported models against llama.cpp on the same GGUF: perplexity of a fixed text, token ids of a multilingual sample.

`python -m tests.evals.perplexity [--model FILE.gguf ...] [--windows N]`; without --model, the evaluation models that are in
~/.cache/llmos-eval. Needs the development-only reference (`make reference`). Ends with status 1 when a perplexity is off by more
than 2 % or a token differs. Both sides score the same windows of 512 tokens, every token after a window's first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnxruntime
import tokenizers
from numpy.typing import NDArray

from llmos.userland.models.graph import LAST_POSITION
from llmos.userland.models.importer import default_name
from llmos.userland.models.process import import_in_process
from tests.bench.figures import report

WINDOW = 512
TOLERANCE = 0.02
DATA = Path(__file__).parent / "data"
CACHE = Path.home() / ".cache" / "llmos-eval"

Score = Callable[[list[int]], NDArray[np.float32]]
"""Tokens of one window to logits [tokens, vocabulary]."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", action="append", type=Path, metavar="FILE.gguf", help="default: those in the cache")
    parser.add_argument("--windows", type=int, default=8, help=f"windows of {WINDOW} tokens to score (default 8)")
    options = parser.parse_args()
    models = options.model or sorted(CACHE.glob("*.gguf"))
    if not models:
        parser.error(f"no GGUF files in {CACHE}; name one with --model")
    try:
        from llama_cpp import Llama
    except ImportError:
        print("llama-cpp-python is not installed: run `make reference` (it compiles for some minutes)", file=sys.stderr)
        return 1
    figures: dict[str, float | int | str] = {}
    failed = False
    for file in models:
        measured = measure(file, options.windows, Llama)
        name = default_name(file).replace("-", "_").replace(".", "_")
        figures |= {f"{name}_{key}": value for key, value in measured.items()}
        failed |= abs(measured["ratio"] - 1) > TOLERANCE or measured["tokens_differ"] > 0
    report("perplexity", figures, model=" ".join(default_name(file) for file in models))
    return int(failed)


def measure(file: Path, windows: int, reference: Callable[..., Any]) -> dict[str, float]:
    """One model's figures; the import is thrown away afterwards."""
    with tempfile.TemporaryDirectory() as place:
        imported = import_in_process(file, Path(place), "model", lambda what, done, total: None)
        folder = Path(imported["folder"])
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        llama = reference(
            str(file), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False, n_threads=os.cpu_count()
        )
        text = (DATA / "engineers_thumb.txt").read_text(encoding="utf-8")
        sample = [text, *json.loads((DATA / "multilingual.json").read_text(encoding="utf-8"))]
        differ = sum(
            tokenizer.encode(each, add_special_tokens=False).ids
            != llama.tokenize(each.encode(), add_bos=False, special=True)
            for each in sample
        )
        pieces = list(windows_of(tokenizer.encode(text, add_special_tokens=False).ids))[:windows]
        ours, theirs = perplexity(onnx_scorer(folder), pieces), perplexity(llama_scorer(llama), pieces)
        llama.close()
    return {
        "perplexity": ours,
        "reference": theirs,
        "ratio": ours / theirs,
        "tokens_differ": differ,
        "texts": len(sample),
        "import_seconds": imported["seconds"],
        "import_rss_over_file": imported["peak_rss"] / file.stat().st_size,
    }


def windows_of(tokens: list[int]) -> Iterator[list[int]]:
    for first in range(0, len(tokens) - WINDOW + 1, WINDOW):
        yield tokens[first : first + WINDOW]


def perplexity(score: Score, windows: list[list[int]]) -> float:
    """The exponential of the mean negative log likelihood of every token after a window's first."""
    losses = []
    for window in windows:
        logits = score(window)[:-1].astype(np.float64)
        highest = logits.max(-1)
        total = highest + np.log(np.exp(logits - highest[:, np.newaxis]).sum(-1))
        losses.append(total - logits[np.arange(WINDOW - 1), window[1:]])
    return float(np.exp(np.mean(losses)))


def onnx_scorer(folder: Path) -> Score:
    """The imported graph, with the node that keeps only the last position taken out."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.name == LAST_POSITION:
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output, name=node.name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "sequence"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # the index of the last position is left over
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    empty = {
        node.name: np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32)
        for node in session.get_inputs()
        if node.name.startswith("past_key_values")
    }

    def score(window: list[int]) -> NDArray[np.float32]:
        tokens = np.array([window], np.int64)
        feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **empty}
        logits: NDArray[np.float32] = session.run(["logits"], feeds)[0][0]
        return logits

    return score


def llama_scorer(llama: Any) -> Score:
    def score(window: list[int]) -> NDArray[np.float32]:
        llama.reset()
        llama.eval(window)
        logits: NDArray[np.float32] = llama.scores[: len(window)]
        return logits

    return score


if __name__ == "__main__":
    sys.exit(main())
