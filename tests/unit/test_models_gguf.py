"""A GGUF is hostile input: whatever is wrong with it is named, costs no memory, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos.userland.models import gguf_file
from llmos.userland.models.errors import ImportRejected
from llmos.userland.models.gguf_file import GgufFile
from llmos.userland.models.importer import import_gguf
from tests.unit.tiny_gguf import MERGES, TinyModel

U32, STRING, ARRAY = 4, 8, 9


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def header(*, tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "the header"),
        (header(magic=b"GGML"), "not a GGUF file"),
        (header(version=1), "version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "version 50331648"),
        (header(tensors=1 << 60), "1152921504606846976 tensors"),
        (header(keys=1 << 40), "1099511627776 keys"),
        (header(keys=1) + text(b"", length=1 << 62), "metadata key number 1"),
        (header(keys=1) + key(b"k", STRING, text(b"", length=1 << 63)), "metadata key 'k'"),
        (header(keys=1) + key(b"k", STRING, text(b"\xff")), "metadata key 'k'.*UTF-8"),
        (header(keys=1) + key(b"k", 77, b""), "metadata key 'k'.*77"),
        (header(keys=1) + key(b"k", ARRAY, struct.pack("<IQ", U32, 1 << 50)), "metadata key 'k'.*array"),
        (header(keys=1) + key(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1)), "metadata key 'k'.*nested"),
        (header(keys=1) + key(b"k", ARRAY, struct.pack("<IQ", STRING, 1000)), "metadata key 'k'"),
        (header(keys=2) + 2 * key(b"k", U32, bytes(4)), "metadata key 'k' stands twice"),
        (header(keys=1) + key(b"general.alignment", U32, struct.pack("<I", 33)), "'general.alignment'"),
        (header(tensors=1) + tensor(b"t", ()), "tensor t: 0 dimensions"),
        (header(tensors=1) + tensor(b"t", (1,) * 5), "tensor t: 5 dimensions"),
        (header(tensors=1) + tensor(b"t", (1 << 62, 1 << 62)), "tensor t: impossible shape"),
        (header(tensors=1) + tensor(b"t", (0,)), "tensor t: impossible shape"),
        (header(tensors=1) + tensor(b"t", (32,), kind=4_000), "tensor t: unknown tensor type 4000"),
        (header(tensors=1) + tensor(b"t", (33, 2), kind=Kind.Q8_0), "tensor t: rows of 33"),
        (header(tensors=1) + tensor(b"t", (32,), offset=1 << 63), "tensor t: its data ends"),
        (header(tensors=1) + tensor(b"t", (32,), offset=5), "tensor t: offset 5"),
        (header(tensors=1) + tensor(b"t" * 200, (32,)), "tensor number 1"),
        (header(tensors=2) + tensor(b"t", (32,)) + tensor(b"u", (32,)) + bytes(400), "tensor u: .* overlaps .* t"),
        (
            header(tensors=2) + tensor(b"t", (32,)) + tensor(b"t", (32,), offset=128) + bytes(400),
            "tensor t is listed twice",
        ),
    ],
)
def test_bad_header_is_named(content: bytes, named: str, tmp_path: Path) -> None:
    """Every count, length, type, shape and offset is checked before it is believed, and named when it is wrong."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ImportRejected, match=named):
        GgufFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_endless_header_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header is not read beyond its limit, however large the file."""
    monkeypatch.setattr(gguf_file, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(ImportRejected, match=r"'tokenizer\.ggml\.tokens'"):
        GgufFile(TinyModel().write(tmp_path / "tiny.gguf"))


def test_header_is_read_as_gguf_reads_it(tmp_path: Path) -> None:
    """Our scanner and the `gguf` library agree on every key, tensor, shape and byte."""
    model = TinyModel(kind="qwen2", tied=False)
    path = model.write(tmp_path / "tiny.gguf")
    theirs = gguf.GGUFReader(path)
    with GgufFile(path) as ours:
        assert ours.metadata == {
            name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")
        }
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for expected in theirs.tensors:
            found = ours.tensors[expected.name]
            assert (found.type, found.elements) == (expected.tensor_type, expected.n_elements)
            assert ours.read(found, 0, found.rows) == expected.data.tobytes()


def attempt(path: Path, folder: Path) -> None:
    import_gguf(path, folder, "tiny", lambda done, total, what: None)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    """A file cut anywhere is refused, the key or tensor where it ends is named, and nothing stays."""
    path = TinyModel().write(tmp_path / "tiny.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImportRejected, match=r"metadata key|tensor ") as caught:
        attempt(path, tmp_path / "made")
    assert caught.value.hint is not None
    assert not (tmp_path / "made").exists() or list((tmp_path / "made").iterdir()) == []


def test_file_that_shrinks_is_refused(tmp_path: Path) -> None:
    """A file that loses its end between the header's check and the reading is refused, not read as zeros."""
    path = TinyModel().write(tmp_path / "tiny.gguf")
    with GgufFile(path) as file:
        last = list(file.tensors.values())[-1]
        os.truncate(path, last.offset + 1)
        with pytest.raises(ImportRejected, match=last.name):
            file.read(last, 0, last.rows)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def header_bytes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """A small valid file, and where its tensors' data begins."""
    window = 9 if request.param == "gemma3" else 0
    path = TinyModel(kind=request.param, window=window, layers=1).write(tmp_path_factory.mktemp("valid") / "tiny.gguf")
    with GgufFile(path) as file:
        return path.read_bytes(), min(tensor.offset for tensor in file.tensors.values())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_header_bytes_never_crash(
    flips: list[tuple[float, int]], header_bytes: tuple[bytes, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A header with flipped bytes is imported or refused with `ImportRejected`; there is no third way."""
    content, end = bytearray(header_bytes[0]), header_bytes[1]
    for place, change in flips:
        content[int(place * end)] ^= change
    folder = tmp_path_factory.mktemp("flipped")
    path = folder / "bad.gguf"
    path.write_bytes(content)
    with contextlib.suppress(ImportRejected):
        attempt(path, folder / "made")
    assert [made.name for made in (folder / "made").glob("*")] in ([], ["tiny"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general.architecture": "mamba"}, "'general.architecture': 'mamba'"),
        ({"llama.block_count": None}, "'llama.block_count' is missing"),
        ({"llama.block_count": 0}, "'llama.block_count'"),
        ({"llama.block_count": 1}, "tensor blk.1.attn_norm.weight is not part"),
        ({"llama.block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
        ({"llama.embedding_length": 4_000_000_000}, "'llama.embedding_length'"),
        ({"llama.embedding_length": 128}, "tensor token_embd.weight: shape"),
        ({"llama.attention.head_count": 3}, "'llama.attention.head_count'"),
        ({"llama.attention.head_count": 32, "llama.attention.head_count_kv": 2}, "heads of 8 dimensions"),
        ({"llama.attention.head_count_kv": 3}, "'llama.attention.head_count_kv'"),
        ({"llama.attention.head_count_kv": [2, 2]}, "'llama.attention.head_count_kv'"),
        ({"llama.attention.value_length": 32}, "'llama.attention.value_length'"),
        ({"llama.rope.dimension_count": 32}, "'llama.rope.dimension_count'"),
        ({"llama.rope.freq_base": -1.0}, "'llama.rope.freq_base'"),
        ({"llama.rope.freq_base": float("nan")}, "'llama.rope.freq_base'"),
        ({"llama.rope.scaling.type": "longrope"}, "'llama.rope.scaling.type': 'longrope'"),
        ({"llama.expert_count": 8}, "'llama.expert_count'"),
        ({"llama.attention.sliding_window": 4096}, "'llama.attention.sliding_window'"),
        ({"llama.context_length": "long"}, "'llama.context_length'"),
        ({"tokenizer.ggml.tokens": None}, "'tokenizer.ggml.tokens'"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "tensor token_embd.weight: shape"),
        ({"tokenizer.ggml.model": "bert"}, "'tokenizer.ggml.model': 'bert'"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "'tokenizer.ggml.pre': 'unheard-of'"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "'tokenizer.ggml.token_type'"),
        ({"tokenizer.ggml.merges": [*MERGES, "zz zz"]}, "'tokenizer.ggml.merges': 'zz zz'"),
        ({"tokenizer.ggml.eos_token_id": None}, "'tokenizer.ggml.eos_token_id' is missing"),
        ({"tokenizer.ggml.eos_token_id": 99_999}, "'tokenizer.ggml.eos_token_id'"),
        ({"tokenizer.chat_template": 5}, "'tokenizer.chat_template'"),
    ],
)
def test_bad_metadata_is_named(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    """A key that is missing, wrong or asks for what is not supported is refused by its name, and nothing stays."""
    path = TinyModel(changes=changes).write(tmp_path / "tiny.gguf")
    with pytest.raises(ImportRejected, match=named):
        attempt(path, tmp_path / "made")
    assert not list((tmp_path / "made").glob("*"))


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"output_norm.weight": None}, "tensor output_norm.weight is missing"),
        ({"blk.0.attn_q.weight": np.ones((8, 256), np.float32)}, "tensor blk.0.attn_q.weight: shape 8 x 256"),
        (
            {"blk.0.ffn_gate_exps.weight": np.ones((2, 256), np.float32)},
            "tensor blk.0.ffn_gate_exps.weight is not part",
        ),
        ({"blk.1.ffn_down.weight": np.full((256, 256), np.nan, np.float32)}, "tensor blk.1.ffn_down.weight: .*NaN"),
        ({"blk.1.ffn_norm.weight": np.full(256, np.inf, np.float32)}, "tensor blk.1.ffn_norm.weight"),
        ({"rope_freqs.weight": np.zeros(32, np.float32)}, "tensor rope_freqs.weight"),
        ({"blk.0.attn_q.weight": np.ones((256, 256), np.int32)}, "tensor blk.0.attn_q.weight: type I32"),
    ],
)
def test_bad_tensor_is_named(tensors: dict[str, Any], named: str, tmp_path: Path) -> None:
    """A tensor that is missing, foreign, misshapen, of another type or not numbers is refused by its name."""
    path = TinyModel(tensors=tensors).write(tmp_path / "tiny.gguf")
    with pytest.raises(ImportRejected, match=named):
        attempt(path, tmp_path / "made")
    assert not list((tmp_path / "made").glob("*"))


def test_rows_without_blocks_are_refused(tmp_path: Path) -> None:
    """A matrix whose rows do not divide into the smallest blocks is refused by its name."""
    path = TinyModel(weights=Kind.F32, hidden=80, heads=5, kv_heads=5).write(tmp_path / "tiny.gguf")
    with pytest.raises(ImportRejected, match=r"tensor token_embd\.weight: rows of 80"):
        attempt(path, tmp_path / "made")


def test_limits_let_real_headers_pass() -> None:
    """The limits are above what the largest published vocabularies and templates need."""
    assert gguf_file.MAX_ARRAY_ITEMS >= 3 * 256_000
    assert gguf_file.MAX_STRING_BYTES >= 10 * 20_000
