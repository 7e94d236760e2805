"""Each architecture's own computations are imported: `exact` weights make the comparison one of float32 numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from llmos.userland.models.architecture import FAMILIES, read_architecture
from llmos.userland.models.errors import ImportRejected
from llmos.userland.models.gguf_file import GgufFile
from llmos.userland.models.importer import import_gguf
from llmos.userland.models.rotary import Rotary
from tests.unit.test_models_import import Session, differ, imported, nothing
from tests.unit.tiny_gguf import TinyModel

SAME = 1e-4
"""Of the logits' spread. Float32 gives some 3e-6; a window off by one, a wrong base or norm more than 0.01."""
TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 200, 40)]

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tied": False},
    "qwen3": {"head_size": 32, "rope_base": 1e6},
    "qwen3-untied": {"kind": "qwen3", "tied": False, "kv_heads": 4},
    "qwen3-yarn": {"kind": "qwen3", "rope_base": 1e6, "rope_divisor": 4.0, "yarn_context": 16},
    "gemma3": {"layers": 7, "window": 9, "head_size": 32, "rope_base": 1e6, "rope_divisor": 8.0},
    "gemma3-wide-heads": {"kind": "gemma3", "layers": 7, "window": 9, "heads": 2, "kv_heads": 1, "head_size": 256},
    "gemma3-no-window": {"kind": "gemma3"},
    "smollm3": {"layers": 5},
}


def tiny(name: str, **changes: Any) -> TinyModel:
    return TinyModel(**{"kind": name, "exact": True, **MODELS[name], **changes})


def stepped(session: Session, sizes: list[int]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """The last logits of each slice of TOKENS, through the cache."""
    past, done, seen = session.empty(1), 0, []
    for size in sizes:
        rows, past = session.run([TOKENS[done : done + size]], [[1] * (done + size)], past)
        done += size
        seen.append(rows[0])
    return seen


def test_every_architecture_is_tried() -> None:
    """The models here are of all architectures that can be imported."""
    assert {tiny(name).kind for name in MODELS} == set(FAMILIES)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_defined_ones(name: str, tmp_path: Path) -> None:
    """At once, in slices and token by token, each inside and past a window: the logits are those of the definition."""
    model = tiny(name)
    session, expected = Session(imported(model, tmp_path), exact=True), model.logits(TOKENS)
    for length in (1, 9, 10, 40):
        assert differ(session.logits(TOKENS[:length]), expected[length - 1]) < SAME
    sizes = [7, 4, 13, *[1] * 16]
    for end, logits in zip(np.cumsum(sizes), stepped(session, sizes), strict=True):
        assert differ(logits, expected[end - 1]) < SAME


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "smollm3"])
def test_rows_of_different_length_decode_together(name: str, tmp_path: Path) -> None:
    """One step over a right-padded batch of contexts inside and past the window gives each row its defined logits."""
    model = tiny(name)
    session, lengths = Session(imported(model, tmp_path), exact=True), [3, 30, 12]
    longest = max(lengths)
    room = {key: np.zeros((3, *empty.shape[1:2], longest, empty.shape[3])) for key, empty in session.empty(1).items()}
    for row, length in enumerate(lengths):
        _, cache = session.run([TOKENS[:length]], [[1] * length], session.empty(1))
        for key, values in cache.items():
            room[key][row, :, :length] = values[0]
    mask = [[1] * (length + 1) + [0] * (longest - length) for length in lengths]
    past = {key: values.astype(np.float32) for key, values in room.items()}
    together, _ = session.run([[77]] * 3, mask, past)
    for row, length in enumerate(lengths):
        assert differ(together[row], model.logits([*TOKENS[:length], 77])[-1]) < SAME


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("qwen3-yarn", {"yarn_context": 0}),
        ("qwen3-yarn", {"yarn_context": 64}),
        ("gemma3", {"window": 8}),
        ("gemma3", {"window": 10}),
        ("gemma3", {"rope_divisor": 1.0}),
        ("gemma3", {"rope_base": 10_000.0}),
    ],
)
def test_each_setting_counts(name: str, other: dict[str, Any]) -> None:
    """The definitions that the imports are compared with tell these settings apart."""
    assert differ(tiny(name).logits(TOKENS)[-1], tiny(name, **other).logits(TOKENS)[-1]) > 100 * SAME


@pytest.mark.parametrize("kind", FAMILIES)
def test_genai_knows_the_architecture(kind: str, tmp_path: Path) -> None:
    """onnxruntime-genai takes each architecture under the name that is written, and gives the bare session's logits."""
    import onnxruntime_genai

    folder = imported(tiny(kind), tmp_path)
    config = json.loads((folder / "genai_config.json").read_text())
    assert config["model"]["type"] == FAMILIES[kind].genai_type
    model = onnxruntime_genai.Model(str(folder))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=64, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(TOKENS)
    np.testing.assert_allclose(generator.get_logits()[0, -1], Session(folder).logits(TOKENS), rtol=1e-3, atol=1e-4)
    del generator, parameters, model


@pytest.mark.parametrize("name", MODELS)
def test_every_cache_has_one_shape(name: str, tmp_path: Path) -> None:
    """All layers keep [batch, kv_heads, positions, head_size], sliding ones too."""
    model = tiny(name)
    graph = onnx.load(imported(model, tmp_path) / "model.onnx", load_external_data=False).graph
    for value in [*graph.input[2:], *graph.output[1:]]:
        dims = value.type.tensor_type.shape.dim
        assert (dims[1].dim_value, dims[3].dim_value) == (model.kv_heads, model.head_size)
    assert len(graph.input) - 2 == len(graph.output) - 1 == 2 * model.layers


@pytest.mark.parametrize(
    ("pattern", "slides"),
    [
        (None, [True] * 5 + [False] + [True]),
        (2, [True, False, True, False, True, False, True]),
        (1, [False] * 7),
        (0, [True] * 7),
        ([True, False, False, True, True, False, True], [True, False, False, True, True, False, True]),
    ],
)
def test_pattern_says_which_layers_slide(pattern: Any, slides: list[bool], tmp_path: Path) -> None:
    """A period or a flag for each layer; five of six without the key. Sliding layers turn by the local base."""
    key = "gemma3.attention.sliding_window_pattern"
    changes = {key: pattern, "gemma3.rope.freq_base_swa": 500.0}
    with GgufFile(tiny("gemma3", changes=changes).write(tmp_path / "tiny.gguf")) as file:
        layers = read_architecture(file.metadata, file.tensors).attention
    assert [layer.window == 9 for layer in layers] == slides
    assert [layer.rotary == Rotary(500.0) for layer in layers] == slides
    assert {layer.rotary for layer in layers if not layer.window} <= {Rotary(1e6, 8.0)}


@pytest.mark.parametrize(("layers", "width"), [(61, 32), (62, 24)])
def test_largest_gemma_scales_by_its_width(layers: int, width: int, tmp_path: Path) -> None:
    """Products of 62 layers' heads are scaled by hidden / heads, of all others by the head's own size."""
    model = TinyModel(kind="gemma3", layers=layers, hidden=96, heads=4, head_size=32, feed_forward=32)
    with GgufFile(model.write(tmp_path / "tiny.gguf")) as file:
        assert read_architecture(file.metadata, file.tensors).attention_scale == width**-0.5


@pytest.mark.parametrize(
    ("keys", "same"),
    [
        ({"scaling.factor": 2.0}, {"scaling.type": "linear", "scaling.factor": 2.0}),
        ({"scale_linear": 2.0}, {"scaling.type": "linear", "scaling.factor": 2.0}),
        ({"scaling.type": "none", "scaling.factor": 2.0}, {}),
        ({"scaling.factor": 0.0}, {}),
        (
            {"scaling.type": "yarn", "scaling.factor": 2.0, "scaling.original_context_length": 64},
            {"scaling.type": "yarn", "scaling.factor": 2.0},
        ),
    ],
)
def test_rope_keys_mean_what_llama_cpp_reads(keys: dict[str, Any], same: dict[str, Any], tmp_path: Path) -> None:
    """A factor without a type is linear, the older key counts, `none` and 0 do not scale, YaRN starts from the context."""
    read = []
    for scaling in (keys, same):
        model = TinyModel(
            kind="qwen3", layers=1, changes={f"qwen3.rope.{key}": value for key, value in scaling.items()}
        )
        with GgufFile(model.write(tmp_path / "tiny.gguf")) as file:
            read.append(read_architecture(file.metadata, file.tensors).attention[0].rotary)
    assert read[0] == read[1]
    assert (read[0] == Rotary(10_000.0)) == (not same)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("qwen3", {"attention.sliding_window": 4096}, "'qwen3.attention.sliding_window'"),
        ("qwen3", {"attention.key_length": 24}, "heads of 24 dimensions"),
        ("qwen3", {"attention.key_length": 512}, "heads of 512 dimensions"),
        ("qwen3", {"attention.key_length": 32}, "tensor blk.0.attn_q.weight: shape"),
        ("qwen3", {"attention.causal": False}, "'qwen3.attention.causal'"),
        ("qwen3", {"pooling_type": 3}, "'qwen3.pooling_type'"),
        ("qwen3", {"rope.dimension_sections": [24, 20, 20, 0]}, "'qwen3.rope.dimension_sections'"),
        ("qwen3", {"rope.scaling.type": "longrope"}, "'qwen3.rope.scaling.type': 'longrope'"),
        ("qwen3", {"rope.scaling.factor": 0.5}, "'qwen3.rope.scaling.factor': 0.5"),
        ("qwen3", {"rope.scale_linear": 0.5}, "'qwen3.rope.scale_linear': 0.5"),
        ("qwen3", {"rope.scaling.factor": float("nan")}, "'qwen3.rope.scaling.factor'"),
        ("qwen3", {"rope.scaling.attn_factor": 2.0}, "'qwen3.rope.scaling.attn_factor'"),
        ("qwen3", {"rope.scaling.yarn_beta_fast": 8.0}, "'qwen3.rope.scaling.yarn_beta_fast'"),
        ("qwen3", {"rope.scaling.type": "yarn", "rope.freq_base": 1.0}, "'qwen3.rope.freq_base'"),
        (
            "qwen3",
            {"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 0},
            "'qwen3.rope.scaling.original_context_length'",
        ),
        ("gemma3", {"attention.sliding_window": -1}, "'gemma3.attention.sliding_window'"),
        ("gemma3", {"attention.sliding_window": 1 << 31}, "'gemma3.attention.sliding_window'"),
        ("gemma3", {"attention.sliding_window_pattern": -1}, "'gemma3.attention.sliding_window_pattern'"),
        ("gemma3", {"attention.sliding_window_pattern": "6"}, "'gemma3.attention.sliding_window_pattern'"),
        (
            "gemma3",
            {"attention.sliding_window_pattern": [True]},
            "'gemma3.attention.sliding_window_pattern': .* 2 layers",
        ),
        ("gemma3", {"attention.sliding_window_pattern": [1, 2]}, "'gemma3.attention.sliding_window_pattern'"),
        ("gemma3", {"rope.freq_base_swa": -1.0}, "'gemma3.rope.freq_base_swa'"),
        ("gemma3", {"rope.scaling.type": "yarn"}, "'gemma3.rope.scaling.type': yarn is not supported with"),
        ("gemma3", {"attention.key_length_swa": 32}, "'gemma3.attention.key_length_swa'"),
        ("gemma3", {"rope.dimension_count_swa": 32}, "'gemma3.rope.dimension_count_swa'"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "'gemma3.final_logit_softcapping'"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "'gemma3.attn_logit_softcapping'"),
        ("gemma3", {"attention.shared_kv_layers": 1}, "'gemma3.attention.shared_kv_layers'"),
    ],
)
def test_bad_metadata_is_named(kind: str, changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    """A key of an architecture that is out of bounds or asks for what is not computed is refused by its name."""
    window = 9 if kind == "gemma3" else 0
    model = TinyModel(kind=kind, window=window, changes={f"{kind}.{key}": value for key, value in changes.items()})
    with pytest.raises(ImportRejected, match=named):
        import_gguf(model.write(tmp_path / "tiny.gguf"), tmp_path / "made", "tiny", nothing)
    assert not list((tmp_path / "made").glob("*"))


@pytest.mark.parametrize(
    ("kind", "tensors", "named"),
    [
        ("qwen3", {"blk.1.attn_q_norm.weight": None}, "tensor blk.1.attn_q_norm.weight is missing"),
        (
            "qwen3",
            {"blk.0.attn_k_norm.weight": np.ones(32, np.float32)},
            "tensor blk.0.attn_k_norm.weight: shape 1 x 32",
        ),
        ("qwen3", {"blk.0.attn_k_norm.weight": np.full(64, np.nan, np.float32)}, "tensor blk.0.attn_k_norm.weight"),
        ("qwen3", {"blk.0.post_ffw_norm.weight": np.ones(256, np.float32)}, "blk.0.post_ffw_norm.weight is not part"),
        ("qwen3", {"rope_freqs.weight": np.ones(32, np.float32)}, "tensor rope_freqs.weight is not part of a qwen3"),
        ("gemma3", {"blk.0.post_attention_norm.weight": None}, "tensor blk.0.post_attention_norm.weight is missing"),
        ("gemma3", {"blk.1.post_ffw_norm.weight": np.ones(64, np.float32)}, "tensor blk.1.post_ffw_norm.weight: shape"),
        (
            "smollm3",
            {"blk.0.attn_q_norm.weight": np.ones(64, np.float32)},
            "tensor blk.0.attn_q_norm.weight is not part",
        ),
    ],
)
def test_bad_tensor_is_named(kind: str, tensors: dict[str, Any], named: str, tmp_path: Path) -> None:
    """A norm that an architecture has is needed in its shape; one that it has not is refused."""
    with pytest.raises(ImportRejected, match=named):
        imported(TinyModel(kind=kind, tensors=tensors), tmp_path)
    assert not list((tmp_path / "made").glob("*"))
