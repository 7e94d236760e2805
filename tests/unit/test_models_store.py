"""The store: what is installed, described, removed and chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.errors import Code
from llmos.userland.models import catalog, description, store
from llmos.userland.models.errors import ModelError
from llmos.userland.models.staging import publish, staging


def install(home: Path, name: str, **fields: Any) -> Path:
    folder = home / "models" / name
    folder.mkdir(parents=True)
    for file in ("model.onnx", "tokenizer.json"):
        (folder / file).write_bytes(b"0123456789")
    description.write(folder, {"kind": "generator", "name": name, "architecture": "llama", "parameters": 5, **fields})
    return folder


def test_empty_store(llmos_home: Path) -> None:
    """Without models the list is empty, and asking for one says how to get it."""
    assert store.list() == []
    asks: list[Callable[[], object]] = [lambda: store.show("smollm2-135m"), store.default]
    for ask in asks:
        with pytest.raises(ModelError) as caught:
            ask()
        assert caught.value.code is Code.NOT_FOUND
        assert caught.value.hint == "llmosctl model pull smollm2-135m"


def test_models_are_described(llmos_home: Path) -> None:
    """A model shows what its folder says, its size on disk, and where it came from."""
    source = {"package": "llm-tiny", "version": "1.0", "sha256": "ab"}
    folder = install(llmos_home, "tiny", context=64, quantisation="Q4_1", license="MIT", source=source)
    shown = store.show("tiny")
    assert (shown.name, shown.path, shown.kind, shown.architecture) == ("tiny", folder, "generator", "llama")
    assert (shown.parameters, shown.context, shown.quantisation, shown.license) == (5, 64, "Q4_1", "MIT")
    assert shown.source == "llm-tiny 1.0"
    assert shown.size == sum(file.stat().st_size for file in folder.iterdir())
    assert shown.problem == ""
    assert store.path("tiny") == folder


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 99}'])
def test_damaged_model_is_listed_with_its_problem(damage: str, llmos_home: Path) -> None:
    """A folder whose description is broken does not hide the others, and is never the default."""
    install(llmos_home, "good")
    (install(llmos_home, "bad") / "llmos.json").write_text(damage)
    listed = {model.name: model.problem for model in store.list()}
    assert listed["good"] == ""
    assert "llmos.json" in listed["bad"] or "described" in listed["bad"]
    assert store.default().name == "good"


def test_missing_file_is_a_problem(llmos_home: Path) -> None:
    """A model without its graph says so, and is not the default."""
    (install(llmos_home, "tiny") / "model.onnx").unlink()
    install(llmos_home, "whole")
    assert "model.onnx missing" in store.show("tiny").problem
    assert store.default().name == "whole"


def test_default_prefers_the_embedded_model(llmos_home: Path) -> None:
    """The embedded model is the default where it is there; each kind has its own."""
    install(llmos_home, "aaa")
    install(llmos_home, "vectors", kind="embedding")
    assert store.default().name == "aaa"
    assert store.default("embedding").name == "vectors"
    install(llmos_home, store.DEFAULT_GENERATOR)
    assert store.default().name == store.DEFAULT_GENERATOR


def test_removed_model_is_gone(llmos_home: Path) -> None:
    """Removing frees what the model took and leaves no trace."""
    size = sum(file.stat().st_size for file in install(llmos_home, "tiny").iterdir())
    assert store.remove("tiny") == size
    assert list((llmos_home / "models").iterdir()) == []
    with pytest.raises(ModelError):
        store.remove("tiny")


@pytest.mark.parametrize("name", ["../tiny", ".downloads", "a/b", ""])
def test_names_stay_in_the_store(name: str, llmos_home: Path) -> None:
    """No name reaches a folder outside the store, or a hidden one in it."""
    (llmos_home / "models" / ".downloads").mkdir(parents=True)
    (llmos_home / "tiny").mkdir()
    with pytest.raises(ModelError, match="cannot name a model"):
        store.remove(name)
    assert (llmos_home / "tiny").is_dir()


def test_staging_folder_never_survives(tmp_path: Path) -> None:
    """A folder under construction is gone after its block, whether that ends well or not; what was published stays."""
    with staging(tmp_path) as folder:
        (folder / "made").mkdir()
        publish(folder / "made", tmp_path / "made")

    def interrupted() -> None:
        with staging(tmp_path) as folder:
            (folder / "half").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


def test_publishing_replaces_nothing(tmp_path: Path) -> None:
    """A name that got taken meanwhile is not overwritten."""
    for name in ("new", "taken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(FileExistsError):
        publish(tmp_path / "new", tmp_path / "taken")
    assert (tmp_path / "taken" / "file").read_text() == "taken"


def test_catalogue_is_sound() -> None:
    """Every entry of the package index can be pulled: hashes are there, generators have a GGUF, embedding models both files."""
    for entry in (entry for entry in catalog.entries().values() if entry.parts):
        becomes = {part.becomes for part in entry.parts}
        assert becomes == ({"model.gguf"} if entry.kind == "generator" else {"model.onnx", "tokenizer.json"})
        for part in entry.parts:
            assert len(bytes.fromhex(part.sha256)) == len(bytes.fromhex(part.wheel_sha256)) == 32
            assert part.wheel.startswith(f"{part.package.replace('-', '_')}-{part.version}-")
    assert {store.DEFAULT_GENERATOR, store.DEFAULT_EMBEDDER} <= set(catalog.entries())


def test_unknown_entry_names_the_known() -> None:
    """A name the catalogue does not have is answered with those it has."""
    with pytest.raises(ModelError, match="smollm2-135m") as caught:
        catalog.entry("gpt-99")
    assert caught.value.code is Code.NOT_FOUND


def test_description_is_plain_json(tmp_path: Path) -> None:
    """The description is JSON with its format, readable by anyone."""
    description.write(tmp_path, {"kind": "generator", "title": "naïve"})
    assert json.loads((tmp_path / "llmos.json").read_text()) == {"format": 1, "kind": "generator", "title": "naïve"}
