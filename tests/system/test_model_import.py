"""The embedded model as it was pulled and imported, and what an import costs; the models are those of `make models`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tokenizers
from gguf.constants import GGMLQuantizationType as Kind

from llmos.userland.models import store
from llmos.userland.models.process import import_in_process
from tests.system.conftest import STORE
from tests.unit.tiny_gguf import TinyModel

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

DATA = Path(__file__).parents[1] / "evals" / "data"
REFERENCE = 32.236
"""llama.cpp's perplexity (llama-cpp-python 0.3.36) of the first two windows of the evaluation text, on the same GGUF."""


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMOS_MODELS", str(STORE))
    model = store.show(store.DEFAULT_GENERATOR)
    assert not model.problem
    return model.path


@pytest.mark.model
def test_tokens_are_those_of_llama_cpp(embedded: Path) -> None:
    """The imported tokenizer gives llama.cpp's ids on text in many scripts, code, emoji, white space and special tokens.

    The expected ids were written by llama-cpp-python 0.3.36 from the same GGUF; tests/evals/perplexity.py compares live.
    """
    sample = json.loads((DATA / "multilingual.json").read_text(encoding="utf-8"))
    expected = json.loads((DATA / "multilingual.smollm2-135m.json").read_text(encoding="utf-8"))
    tokenizer = tokenizers.Tokenizer.from_file(str(embedded / "tokenizer.json"))
    assert [tokenizer.encode(text, add_special_tokens=False).ids for text in sample] == expected


@pytest.mark.model
def test_perplexity_is_that_of_llama_cpp(embedded: Path) -> None:
    """The imported network scores the evaluation text within 2 % of llama.cpp on the same GGUF."""
    from tests.evals.perplexity import onnx_scorer, perplexity, windows_of

    tokenizer = tokenizers.Tokenizer.from_file(str(embedded / "tokenizer.json"))
    text = (DATA / "engineers_thumb.txt").read_text(encoding="utf-8")
    windows = list(windows_of(tokenizer.encode(text, add_special_tokens=False).ids))[:2]
    assert perplexity(onnx_scorer(embedded), windows) == pytest.approx(REFERENCE, rel=0.02)


@pytest.mark.model
def test_model_answers_through_genai(embedded: Path) -> None:
    """onnxruntime-genai loads the folder and the model knows a capital."""
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(embedded))
    tokenizer = tokenizers.Tokenizer.from_file(str(embedded / "tokenizer.json"))
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=64, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(tokenizer.encode(prompt, add_special_tokens=False).ids)
    said: list[int] = []
    while not generator.is_done() and len(said) < 24:
        generator.generate_next_token()
        said.append(int(generator.get_next_tokens()[0]))
    del generator, parameters, model
    assert "Paris" in tokenizer.decode(said)
    assert said[-1] in json.loads((embedded / "llmos.json").read_text())["eos"]


def test_import_stays_below_twice_its_file(tmp_path: Path) -> None:
    """An import's peak memory is at most twice the size of its file, process included."""
    model = TinyModel(weights=Kind.F16, hidden=1024, heads=16, kv_heads=16, feed_forward=2048, layers=6)
    file = model.write(tmp_path / "large.gguf")
    said = import_in_process(file, tmp_path / "made", "large", lambda what, done, total: None)
    assert said["peak_rss"] <= 2 * file.stat().st_size
