"""Folders that the batched engine does not run: those that GenAI does, and those that nothing does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core import limits
from llmos.kernel.core.conversation import Conversation
from llmos.kernel.core.job import Embedding, Generation
from llmos.kernel.core.model import Model, load_model
from llmos.kernel.core.request import Request
from llmos.kernel.core.seats import KeptSeats
from llmos.kernel.core.turn import Turn
from tests.system.conftest import STORE
from tests.system.core_variants import STORIES, alone, passage, read
from tests.system.model_folders import FOLDER, take_all_for_the_longest, variant, want_more

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def genai(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """On GenAI, since its graph has an input too many for the batched engine."""
    return load_model(variant(tmp_path_factory.mktemp("odd") / "smollm2-135m", want_more), "cpu")


def name_no_shape(graph: Any) -> None:
    """Logits of which the file does not say what they are like."""
    next(output for output in graph.output if output.name == "logits").type.tensor_type.ClearField("shape")


def claim_a_scalar(graph: Any) -> None:
    shape = next(output for output in graph.output if output.name == "logits").type.tensor_type.shape
    del shape.dim[:]


def claim_a_huge_vocabulary(graph: Any) -> None:
    shape = next(output for output in graph.output if output.name == "logits").type.tensor_type.shape
    shape.dim[2].dim_value = 1 << 50


def flatten_the_cache(graph: Any) -> None:
    for node in graph.input:
        if node.name.startswith("past"):
            del node.type.tensor_type.shape.dim[2:]


def lose_the_cache(graph: Any) -> None:
    for output in [output for output in graph.output if output.name != "logits"]:
        graph.output.remove(output)


def refusal(folder: Path) -> OpError | None:
    """What a folder is refused with, None when it loads and gives text."""
    try:
        loaded = load_model(folder, "cpu")
    except OpError as error:
        return error
    assert passage(loaded, STORIES[4], max_tokens=4)[1].finish == "length"
    return None


@pytest.mark.parametrize(
    "change", [name_no_shape, claim_a_scalar, claim_a_huge_vocabulary, flatten_the_cache, lose_the_cache]
)
def test_a_graph_that_lies_is_refused_or_works(tmp_path: Path, change: Any) -> None:
    """Whatever a file says of its shapes: it loads and gives text, or is refused by name; nothing else is raised."""
    error = refusal(variant(tmp_path / "m", change))
    assert error is None or (error.code is Code.INVALID_ARGUMENT and str(tmp_path) in error.detail)


@pytest.mark.parametrize("value", [0, -1, "x", None, [2], 1 << 70])
@pytest.mark.parametrize("name", ["num_hidden_layers", "head_size", "context_length", "vocab_size"])
def test_a_description_that_lies_is_refused_or_works(tmp_path: Path, name: str, value: Any) -> None:
    """The same of the numbers in `genai_config.json`."""
    folder = variant(tmp_path / "m", lambda _: None)
    config = json.loads((folder / "genai_config.json").read_text())
    (config["model"]["decoder"] if name in config["model"]["decoder"] else config["model"])[name] = value
    (folder / "genai_config.json").unlink()
    (folder / "genai_config.json").write_text(json.dumps(config))
    error = refusal(folder)
    assert error is None or error.code in (Code.INVALID_ARGUMENT, Code.BUSY)


def test_an_embedding_model_that_wants_more_fails_its_job(tmp_path: Path) -> None:
    """A graph with an input that nobody has is an error of the job that uses it, and not the core's end."""
    from llmos.kernel.core.embedder import Embedder

    graph = onnx.load(str(STORE / "minilm" / "model.onnx"))
    (tmp_path / "tokenizer.json").symlink_to(STORE / "minilm" / "tokenizer.json")
    graph.graph.input.append(helper.make_tensor_value_info("more", TensorProto.INT64, ["batch"]))
    onnx.save(graph, str(tmp_path / "model.onnx"))
    job = Embedding(1, "e", ["a text"], Embedder(tmp_path))
    with pytest.raises(OpError, match="embedding model failed"):
        job.read(100)


# -- GenAI


def test_a_graph_that_is_not_known_runs_on_genai(genai: Model) -> None:
    """One more input, and the other engine takes over, with the reason in words."""
    assert genai.info.engine == "genai"
    assert "position_ids" in genai.info.why
    assert isinstance(genai.seats, KeptSeats)
    text, job = passage(genai, STORIES[4], max_tokens=12)
    assert "Paris" in text
    assert job.finish in ("length", "eos")


def test_rows_that_disturb_one_another_are_found_out(tmp_path: Path) -> None:
    """A graph that takes every row for as long as the longest is not decoded in batches, though its inputs look the same."""
    model = load_model(variant(tmp_path / "m", take_all_for_the_longest), "cpu")
    assert model.info.engine == "genai"
    assert "disturb one another" in model.info.why


def test_a_loaded_model_says_what_runs_it(genai: Model, tmp_path: Path) -> None:
    """How many rows its engine has, and the provider it runs on in the end: GenAI has none of plain ONNX Runtime's but the CPU's."""
    assert (genai.info.rows, genai.info.provider) == (limits.GENAI_ROWS, "cpu")
    asked = "CPUExecutionProvider"
    batched = load_model(FOLDER, asked)
    assert (batched.info.engine, batched.info.rows, batched.info.provider) == ("batched", limits.ROWS, asked)
    odd = load_model(variant(tmp_path / "smollm2-135m", want_more), asked)
    assert (odd.info.engine, odd.info.provider) == ("genai", "cpu")


def test_genai_goes_on_without_reading_again(genai: Model) -> None:
    """The next turn of a conversation continues in the row of the last one, and gives the text of a cold start."""
    first = Request(job=1, prompt=STORIES[0], max_tokens=10)

    conversation, cached = Conversation(), []
    for request in (first, Request(job=2, prompt=" Every day", max_tokens=10)):
        job = Generation(request, "m", genai, conversation)
        turn = Turn((job, 4096), [(job, 100)])
        while turn.work():
            job.chunk(last=True)
        assert job.finish == "length"
        cached.append(job.cached)
        job.leave()
        job.close()
    assert cached[0] == 0
    assert cached[1] >= len(genai.tokenizer.encode(STORIES[0]))


def test_both_engines_agree(genai: Model) -> None:
    """The two read a prompt to like logits, and choose the same next token."""
    model = load_model(FOLDER, "cpu")
    for story in STORIES:
        tokens = model.tokenizer.encode(story)
        row = genai.engine.seat(len(tokens) + 1)
        theirs = read(genai, row, tokens)
        genai.engine.leave(row)
        assert int(theirs.argmax()) == int(alone(model, tokens, 1)[0].argmax())


def test_nothing_goes_on_in_a_row_that_failed(genai: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what GenAI holds after a failure, so the row counts as empty, and the next text is read anew."""

    class Broken:
        def append_tokens(self, tokens: Any) -> None:
            raise RuntimeError("no")

    tokens = genai.tokenizer.encode(STORIES[0])
    row = genai.seats.seat("x", tokens, 40)
    assert row is not None
    genai.engine.extend(row, tokens)
    monkeypatch.setattr(row, "generator", Broken())
    with pytest.raises(OpError, match="runtime failed"):
        genai.engine.extend(row, [1])
    genai.seats.leave(row, "x")
    assert genai.seats.known("x", tokens) == 0
    assert genai.seats.seat("x", tokens, 40) is not row
