"""What is imported computes what the GGUF's network is defined to compute."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gguf.constants import GGMLQuantizationType as Kind

from llmos.ipc.errors import Code
from llmos.userland.models import description, packing
from llmos.userland.models.errors import ImportRejected, ModelError
from llmos.userland.models.importer import default_name, import_gguf
from llmos.userland.models.packing import SUPPORTED
from tests.unit.tiny_gguf import SPECIAL, Floats, TinyModel

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

CLOSE = 0.15
TOKENS = [1, 40, 41, 99, 7, 200, 55, 56, 57, 2, 12, 13]


def nothing(done: int, total: int, what: str) -> None:
    pass


def imported(model: TinyModel, folder: Path) -> Path:
    return import_gguf(model.write(folder / "tiny.gguf"), folder / "made", "tiny", nothing)


class Session:
    """A bare inference session on an imported folder; `exact` without the rounding of activations to int8."""

    def __init__(self, folder: Path, *, exact: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = folder / "model.onnx"
        if exact:
            model = onnx.load(path, load_external_data=False)
            for node in model.graph.node:
                for attribute in node.attribute:
                    if attribute.name == "accuracy_level":
                        attribute.i = 1
            path = folder / "exact.onnx"
            onnx.save(model, path)
        self._session = onnxruntime.InferenceSession(path, options)
        self._caches = [node for node in self._session.get_inputs() if node.name.startswith("past_key_values")]

    def empty(self, rows: int) -> dict[str, Floats]:
        return {node.name: np.zeros((rows, node.shape[1], 0, node.shape[3]), np.float32) for node in self._caches}

    def run(self, tokens: Any, mask: Any, past: dict[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
        """Logits [rows, vocabulary] after the last token, and the cache."""
        feeds = {"input_ids": np.array(tokens, np.int64), "attention_mask": np.array(mask, np.int64), **past}
        logits, *caches = self._session.run(None, feeds)
        return logits[:, -1], {node.name: cache for node, cache in zip(self._caches, caches, strict=True)}

    def logits(self, tokens: list[int]) -> Floats:
        rows, _ = self.run([tokens], [[1] * len(tokens)], self.empty(1))
        row: Floats = rows[0]
        return row


def differ(one: Floats, other: Floats) -> float:
    """The largest difference, in units of the logits' spread: below 0.15 by rounding weights, 2 with rows in a wrong order."""
    return float(np.abs(one - other).max() / other.std())


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in sorted(SUPPORTED)])
def test_every_tensor_type_gives_the_defined_logits(kind: Kind, tmp_path: Path) -> None:
    """A model of any supported tensor type computes what its definition says, to the rounding of weights to 8 bits."""
    model = TinyModel(weights=kind)
    folder = imported(model, tmp_path)
    assert differ(Session(folder, exact=True).logits(TOKENS), model.logits(TOKENS)[-1]) < CLOSE
    assert description.read(folder)["quantisation"] == kind.name


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_both_architectures_give_the_defined_logits(kind: str, tied: bool, tmp_path: Path) -> None:
    """Row order for rotation, biases and a separate output matrix are those of each architecture."""
    model = TinyModel(kind=kind, tied=tied)
    session = Session(imported(model, tmp_path), exact=True)
    for length in (1, 5, len(TOKENS)):
        assert differ(session.logits(TOKENS[:length]), model.logits(TOKENS[:length])[-1]) < CLOSE


def test_rotary_factors_are_applied(tmp_path: Path) -> None:
    """A file with `rope_freqs` rotates by the frequencies it divides."""
    model = TinyModel(rope_factors=True, kv_heads=4)
    assert differ(Session(imported(model, tmp_path), exact=True).logits(TOKENS), model.logits(TOKENS)[-1]) < CLOSE


def test_linear_rope_scaling_divides_positions(tmp_path: Path) -> None:
    """Linear scaling by 2 computes what factors of 2 on every frequency compute."""
    scaled = TinyModel(changes={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0})
    twos = TinyModel(tensors={"rope_freqs.weight": np.full(32, 2, np.float32)})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (Session(imported(model, tmp_path / place)) for model, place in ((scaled, "a"), (twos, "b")))
    np.testing.assert_allclose(one.logits(TOKENS), other.logits(TOKENS), rtol=1e-4, atol=1e-5)
    assert differ(one.logits(TOKENS), TinyModel().logits(TOKENS)[-1]) > 0.2


def test_rows_of_different_length_decode_together(tmp_path: Path) -> None:
    """A batched decode step over contexts of different lengths gives each row what it gives alone."""
    session = Session(imported(TinyModel(kind="qwen2"), tmp_path))
    contexts = [TOKENS[:3], TOKENS[:9], TOKENS[:6]]
    longest = max(map(len, contexts))
    alone, caches = [], []
    for context in contexts:
        _, cache = session.run([context], [[1] * len(context)], session.empty(1))
        alone.append(session.run([[77]], [[1] * (len(context) + 1)], cache)[0][0])
        caches.append(cache)
    room = {
        name: np.zeros((len(contexts), *shape.shape[1:2], longest, shape.shape[3]), np.float32)
        for name, shape in caches[0].items()
    }
    for row, cache in enumerate(caches):
        for name, values in cache.items():
            room[name][row, :, : values.shape[2]] = values[0]
    mask = [[1] * (len(context) + 1) + [0] * (longest - len(context)) for context in contexts]
    together, _ = session.run([[77]] * len(contexts), mask, room)
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-4)


def test_genai_loads_and_generates(tmp_path: Path) -> None:
    """onnxruntime-genai loads the folder, reads its tokenizer and continues as the bare session does."""
    import onnxruntime_genai

    folder = imported(TinyModel(tied=False), tmp_path)
    model = onnxruntime_genai.Model(str(folder))
    assert list(onnxruntime_genai.Tokenizer(model).encode("hello")) == [3 + 256 + 3]
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=32, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(TOKENS)
    np.testing.assert_allclose(generator.get_logits()[0, -1], Session(folder).logits(TOKENS), rtol=1e-3, atol=1e-4)
    del generator, parameters, model


def test_q4_0_is_copied_exactly(tmp_path: Path) -> None:
    """Q4_0 weights, unpacked from the imported file, are the GGUF's, bit for bit."""
    model = TinyModel(weights=Kind.Q4_0, kind="qwen2", layers=1)
    graph = onnx.load(imported(model, tmp_path) / "model.onnx").graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    codes, scales = arrays["blk.0.ffn_down.codes"], arrays["blk.0.ffn_down.scales"]
    unpacked = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1).astype(np.float32) - 8
    np.testing.assert_array_equal(
        (unpacked * scales[..., np.newaxis]).reshape(256, 256), model.values["blk.0.ffn_down.weight"]
    )


@pytest.fixture
def offsets_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as small as a test's are stored as a large model's are."""
    monkeypatch.setattr(packing, "SMALLEST_OFFSET", 1)


@pytest.mark.usefixtures("offsets_everywhere")
@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q4_K])
def test_four_bits_with_offsets_are_the_files_weights(kind: Kind, tmp_path: Path) -> None:
    """Q4_1 and Q4_K keep their own codes and scales; a weight is off by at most 1 / 196 of the largest offset of its row."""
    model = TinyModel(weights=kind, layers=1)
    graph = onnx.load(imported(model, tmp_path) / "model.onnx").graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    packed, scales = arrays["blk.0.ffn_down.codes"], arrays["blk.0.ffn_down.scales"]
    assert packed.shape == (256, (256 + 2 * 32) // 32, 16)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float32) - 8
    stored = (codes * scales[..., np.newaxis]).reshape(256, -1)
    weights, offsets = stored[:, :256], stored[:, 256:288] + stored[:, 288:]
    assert not offsets[:, 8:].any()
    off = weights + np.repeat(offsets[:, :8], 32, axis=1) - model.values["blk.0.ffn_down.weight"]
    largest = np.abs(offsets).max(axis=1, keepdims=True)
    assert (np.abs(off) <= largest / 196 * 1.01 + 1e-6).all()
    blocks = off.reshape(256, 8, 32)
    np.testing.assert_allclose(blocks, np.broadcast_to(blocks[..., :1], blocks.shape), atol=1e-6)


@pytest.mark.usefixtures("offsets_everywhere")
@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q4_K])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_offsets_give_the_defined_logits(family: str, kind: Kind, tmp_path: Path) -> None:
    """A model whose offsets are separate columns computes what its definition says.

    Random minimums make offsets many times larger than a real file's, and their rounding with them.
    """
    model = TinyModel(kind=family, weights=kind)
    session = Session(imported(model, tmp_path), exact=True)
    for length in (1, 5, len(TOKENS)):
        assert differ(session.logits(TOKENS[:length]), model.logits(TOKENS[:length])[-1]) < 2 * CLOSE


@pytest.mark.usefixtures("offsets_everywhere")
def test_offsets_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """With offsets, a row of two, four or eight that decode together gets the same logits bit for bit."""
    session = Session(imported(TinyModel(weights=Kind.Q4_K), tmp_path))
    _, cache = session.run([TOKENS], [[1] * len(TOKENS)], session.empty(1))
    tokens = np.arange(3, 11)[:, np.newaxis]

    def decoded(rows: int) -> Floats:
        past = {name: np.repeat(values, rows, axis=0) for name, values in cache.items()}
        return session.run(tokens[:rows], [[1] * (len(TOKENS) + 1)] * rows, past)[0]

    for rows in (2, 4):
        np.testing.assert_array_equal(decoded(rows), decoded(8)[:rows])


def test_small_products_stay_in_eight_bits(tmp_path: Path) -> None:
    """Below the size from which offsets pay, a Q4_K matrix becomes 8 bits and no sums are computed."""
    graph = onnx.load(imported(TinyModel(weights=Kind.Q4_K), tmp_path) / "model.onnx", load_external_data=False).graph
    bits = {a.i for node in graph.node if node.op_type == "MatMulNBits" for a in node.attribute if a.name == "bits"}
    assert bits == {8}
    assert not [node.name for node in graph.node if node.op_type == "Concat"]


@pytest.mark.usefixtures("offsets_everywhere")
@pytest.mark.parametrize(("kind", "place"), [(Kind.Q4_0, 0), (Kind.Q4_1, 2), (Kind.Q4_K, 0)])
def test_scales_that_are_no_numbers_are_refused(kind: Kind, place: int, tmp_path: Path) -> None:
    """Copied scales and minimums are checked: an infinity in a block is refused, naming the tensor."""
    model, name = TinyModel(weights=kind), "blk.1.ffn_up.weight"
    data = model.stored[name][0].copy()
    data[3, place : place + 2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    model.stored[name] = (data, kind)
    with pytest.raises(ImportRejected, match=r"blk\.1\.ffn_up\.weight: a scale is not a number"):
        imported(model, tmp_path)


def test_tied_table_is_stored_once(tmp_path: Path) -> None:
    """A tied vocabulary table takes its bytes once: the data file is smaller by it than an untied model's."""
    sizes = {}
    for tied in (True, False):
        (tmp_path / str(tied)).mkdir()
        folder = imported(TinyModel(tied=tied), tmp_path / str(tied))
        sizes[tied] = (folder / "model.onnx.data").stat().st_size
    assert sizes[False] - sizes[True] >= len(TinyModel().vocabulary) * 256


def test_folder_describes_itself(tmp_path: Path) -> None:
    """The folder has its files, its template, and a description with what the file said."""
    folder = imported(TinyModel(), tmp_path)
    assert {file.name for file in folder.iterdir()} == {
        *(
            "batched.onnx",
            "model.onnx",
            "model.onnx.data",
            "genai_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        *("chat_template.jinja", "llmos.json"),
    }
    said = description.read(folder)
    assert said["kind"] == "generator"
    assert said["context"] == 64
    assert said["vocabulary"] == len(TinyModel().vocabulary)
    assert said["parameters"] == sum(values.size for values in TinyModel().values.values())
    assert (said["bos"], said["eos"], said["add_bos"], said["license"]) == (1, [2, 0], False, "apache-2.0")
    config = json.loads((folder / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [2, 0]
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert template == (folder / "chat_template.jinja").read_text()
    assert SPECIAL[1] in template


def test_progress_reaches_its_end(tmp_path: Path) -> None:
    """Progress only grows and ends at its total."""
    seen: list[tuple[int, int]] = []
    path = TinyModel().write(tmp_path / "tiny.gguf")
    import_gguf(path, tmp_path / "made", "tiny", lambda done, total, what: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_existing_folder_is_kept(tmp_path: Path) -> None:
    """A name that is taken is refused and its folder left as it is."""
    (tmp_path / "made" / "tiny").mkdir(parents=True)
    with pytest.raises(ModelError) as caught:
        imported(TinyModel(), tmp_path)
    assert caught.value.code is Code.CONFLICT
    assert list((tmp_path / "made").iterdir()) == [tmp_path / "made" / "tiny"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "UPPER", "x" * 65])
def test_name_cannot_be_a_path(name: str, tmp_path: Path) -> None:
    """Only plain names name models."""
    with pytest.raises(ModelError, match="cannot name a model"):
        import_gguf(TinyModel().write(tmp_path / "tiny.gguf"), tmp_path / "made", name, nothing)


def test_name_comes_from_the_file(tmp_path: Path) -> None:
    """Any file name gives a name that the store accepts."""
    assert default_name(Path("Qwen2.5-0.5B Instruct.Q4_K_M.gguf")) == "qwen2.5-0.5b-instruct.q4_k_m"
    assert default_name(Path("…….gguf")) == "model"


def test_rejected_import_leaves_nothing(tmp_path: Path) -> None:
    """A file refused late, at its last tensor, leaves no file behind."""
    rotten = np.full((1, 256), np.inf, np.float32)[0]
    with pytest.raises(ImportRejected, match=r"tensor output_norm\.weight"):
        imported(TinyModel(tensors={"output_norm.weight": rotten}), tmp_path)
    assert list((tmp_path / "made").iterdir()) == []
