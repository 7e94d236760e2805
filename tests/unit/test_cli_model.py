"""`llmosctl model` where it speaks of models that are to be had, without a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmos.userland.cli import main
from llmos.userland.models import catalog, description, recommend
from llmos.userland.models.recommend import Machine

GB = 10**9


@pytest.fixture
def kernel(gate_double: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The double, where llmosctl looks for the system, with an empty store beside it."""
    monkeypatch.setenv("LLMOS_BUS", str(gate_double.path))
    monkeypatch.setenv("LLMOS_TOKEN", "t")
    monkeypatch.setenv("LLMOS_MODELS", str(tmp_path))
    return gate_double


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """What this machine is: the last of the list; 8 GB and two processors to begin with."""
    said = [Machine(8 * GB, 2)]
    monkeypatch.setattr(recommend, "this_machine", lambda: said[-1])
    return said


def install(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    description.write(folder / name, {"kind": "generator"})
    for file in ("model.onnx", "tokenizer.json"):
        (folder / name / file).write_bytes(b"0")


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_catalogue_says_what_suits_this_machine(
    kernel: Any, machine: list[Machine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each model with its download, memory and licence, what of it is here, and exactly one that is recommended."""
    install(tmp_path, "smollm2-135m")
    assert main.run(["model", "catalog", "-o", "json"]) == 0
    rows = {row["name"]: row for row in told(capsys)}
    assert list(rows) == list(catalog.entries())
    best = [row["name"] for row in rows.values() if row["recommended"]]
    assert len(best) == 1
    assert rows["smollm2-135m"]["installed"]
    assert rows["qwen2.5-1.5b"]["hub"]["repository"] == "Qwen/Qwen2.5-1.5B-Instruct-GGUF"
    assert rows["qwen2.5-3b"]["terms"]
    assert (rows["phi-4-mini"]["here"], rows["phi-4-mini"]["download"]) == ("too large", 4_930_000_000)
    machine.append(Machine(64 * GB, 2))
    assert main.run(["model", "catalog"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:2] == ["NAME", "TITLE"]
    assert any("phi-4-mini" in line and "fits, slow" in line for line in out)
    assert any("Qwen Research License*" in line for line in out)


def test_recommend_names_one_model(
    kernel: Any, machine: list[Machine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one of the catalogue that is marked; on stdout its name alone, so that `pull` can take it; none is an error."""
    assert main.run(["model", "recommend"]) == 0
    said = capsys.readouterr()
    name = said.out.strip()
    assert name in catalog.entries()
    assert f"llmosctl model pull {name}" in said.err
    install(tmp_path, name)
    assert main.run(["model", "recommend", "-o", "json"]) == 0
    row = told(capsys)
    assert (row["name"], row["installed"], row["memory"], row["cores"]) == (name, True, 8 * GB, 2)
    machine.append(Machine(GB // 10, 2))
    assert main.run(["model", "recommend"]) == 3
    assert "memory" in capsys.readouterr().err


def test_doctor_recommends_too(machine: list[Machine], kernel: Any) -> None:
    """One line, with the command that gets it; a warning where nothing fits."""
    from llmos.userland.cli import doctor

    found = doctor._recommended(set())
    assert (found.state, found.hint) == ("ok", f"llmosctl model pull {found.hint.split()[-1]}")
    assert doctor._recommended({found.hint.split()[-1]}).hint == ""
    machine.append(Machine(0, 1))
    assert doctor._recommended(set()).state == "warn"


def test_default_asks_the_kernel(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a name it only asks; with one it sets."""
    kernel.answers["llm.default"] = lambda args: {"model": args.get("model", "first")}
    assert main.run(["model", "default", "-o", "json"]) == 0
    assert told(capsys) == {"model": "first"}
    assert main.run(["model", "default", "other"]) == 0
    assert capsys.readouterr().out.split() == ["model", "other"]
    assert [args for op, args in kernel.log if op == "llm.default"] == [{}, {"model": "other"}]


def test_show_says_what_runs_the_loaded_model(kernel: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Engine, provider and the reason as the system tells them, of the model that is loaded and of no other."""
    row = {"name": "a", "state": "ready", "engine": "batched", "provider": "cpu", "why": "a known graph"}
    kernel.answers["llm.stats"] = lambda _: {"models": [row]}
    for name in ("a", "b"):
        install(tmp_path, name)
    assert main.run(["model", "show", "a", "-o", "json"]) == 0
    shown = told(capsys)
    assert (shown["engine"], shown["provider"], shown["why"]) == ("batched", "cpu", "a known graph")
    assert main.run(["model", "show", "b", "-o", "json"]) == 0
    assert "engine" not in told(capsys)


def test_pull_says_what_it_cannot_take(
    kernel: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reference that is none is a usage error; a hub that is not asked or not there is unavailable; nothing is installed."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-token"))
    assert main.run(["model", "pull", "hf:nothing"]) == 2
    assert main.run(["model", "pull", "unheard-of"]) == 3
    assert "hf:OWNER/REPO" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main.run(["model", "pull", "qwen2.5-0.5b"]) == 1
    assert "error[resource.unavailable]: HF_HUB_OFFLINE" in capsys.readouterr().err
    assert main.run(["model", "pull", "qwen2.5-3b"]) == 1
    assert "Qwen Research License: for research" in capsys.readouterr().err
    assert main.run(["model", "pull", "smollm2-135m", "--name", "mine"]) == 2
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
