"""llmosctl's commands on a double of the wire: what they ask for, print and end with."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc import paths, wire
from llmos.ipc.protocol import GREETING, Header, Kind, pack_header
from llmos.userland import packages
from llmos.userland.cli import main
from llmos.userland.models import description
from llmos.userland.sdk import Code, OpError


@pytest.fixture
def kernel(gate_double: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The double, where llmosctl looks for the system."""
    monkeypatch.setenv("LLMOS_BUS", str(gate_double.path))
    monkeypatch.setenv("LLMOS_TOKEN", "t")
    return gate_double


def _failing(code: Code, detail: str = "it is so", hint: str | None = "do this") -> Any:
    def answer(_: dict[str, Any]) -> dict[str, Any]:
        raise OpError(code, detail, hint)

    return answer


@pytest.mark.parametrize("argv", [["-o", "json", "ps"], ["ps", "-o", "json"], ["-o", "jsonl", "ps", "-o", "json"]])
def test_format_before_or_after(argv: list[str], kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`-o` means the same in front of the command and behind it; the one behind wins."""
    kernel.answers["proc.list"] = lambda _: {"processes": [{"pid": 1}]}
    assert main.run(argv) == 0
    assert json.loads(capsys.readouterr().out) == [{"pid": 1}]


@pytest.mark.parametrize(
    ("code", "status", "name"),
    [
        (Code.DENIED, 4, "perm.denied"),
        (Code.NEEDS_APPROVAL, 5, "perm.needs_approval"),
        (Code.NOT_FOUND, 3, "call.not_found"),
        (Code.CONFLICT, 8, "call.conflict"),
        (Code.TIMEOUT, 124, "resource.timeout"),
        (Code.UNAVAILABLE, 1, "resource.unavailable"),
    ],
)
def test_call_error(code: Code, status: int, name: str, kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """An error of an op is printed with its hint on stderr and ends with its status."""
    kernel.answers["some.op"] = _failing(code)
    assert main.run(["call", "some.op"]) == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error[{name}]: it is so\nhint: do this\n")


def test_call_without_model(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the op is the model's own, UNAVAILABLE means that: status 7."""
    kernel.answers["llm.generate"] = _failing(Code.UNAVAILABLE)
    assert main.run(["call", "llm.generate", "prompt=hi"]) == 7
    assert "error[model.unavailable]" in capsys.readouterr().err


def test_call_types_arguments(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments have the manifest's types; `--json` and `k=v` may be mixed."""
    args = {"query": {"type": "string"}, "k": {"type": "integer"}}
    kernel.answers["sys.ops"] = lambda _: {"ops": [{"op": "some.op", "args": args}]}
    kernel.answers["some.op"] = lambda args: {"items": [{"got": json.dumps(args)}]}
    assert main.run(["call", "some.op", "query=7", "k=7", "--json", '{"deep": {"a": 1}}', "-o", "jsonl"]) == 0
    assert kernel.wait_for("some.op") == {"query": "7", "k": 7, "deep": {"a": 1}}


def test_call_streams(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With jsonl the chunks are printed as they come, then the result."""
    kernel.chunks["llm.generate"] = [{"text": "a"}, {"text": "b"}]
    kernel.answers["llm.generate"] = lambda _: {"text": "ab"}
    assert main.run(["call", "llm.generate", "prompt=5", "-o", "jsonl"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["a", "b", "ab"]
    assert kernel.wait_for("llm.generate") == {"prompt": "5"}


def test_interrupt_sends_cancel(kernel: Any) -> None:
    """Ctrl-C in the middle of an answer tells the system that nobody wants the rest, and ends with 130."""
    kernel.chunks["llm.generate"] = [{"text": "a"}]
    command = [sys.executable, "-m", "llmos.userland.cli", "call", "llm.generate", "prompt=5", "-o", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"text": "a"}
        process.send_signal(signal.SIGINT)
        kernel.cancels.get(timeout=10)
    assert process.returncode == 130


ANSWER = {
    "answer": "It was “Sourdough”.",
    "cards": [
        {"title": "Sourdough", "url": "https://example.org/s", "when": "yesterday at 21:14", "source": "firefox"},
        {"title": "Notes", "path": "/home/me/notes.md"},
    ],
    "steps": [],
    "timings": {"choose": 12.0, "total": 340.0},
}


def test_ask_shows_cards(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence comes on top, then the cards with address, time and source; what was done goes to stderr."""
    kernel.chunks["proc.spawn"] = [
        {"stage": "call", "op": "browser_history.search", "args": {"query": "sourdough"}},
        {"stage": "unheard of", "x": 1},
        {"stage": "answer", "text": "It was "},
        {"stage": "answer", "text": "“Sourdough”."},
    ]
    kernel.answers["proc.spawn"] = lambda _: {"pid": 5, "result": ANSWER}
    assert main.run(["ask", "what", "was", "it?", "--timings"]) == 0
    assert kernel.wait_for("proc.spawn")["args"] == {"question": "what was it?"}
    out, err = capsys.readouterr()
    assert out == (
        "It was “Sourdough”.\n"
        "\n1. Sourdough\n   https://example.org/s\n   yesterday at 21:14 · firefox\n"
        "\n2. Notes\n   /home/me/notes.md\n"
    )
    assert "· browser_history.search query=sourdough" in err
    assert "total             340 ms" in err


def test_ask_as_json(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A program gets the assistant's whole result."""
    kernel.answers["proc.spawn"] = lambda _: {"pid": 5, "result": ANSWER}
    assert main.run(["ask", "what was it?", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWER


@pytest.mark.parametrize(("state", "status"), [("none", 7), ("ready", 1)])
def test_ask_unavailable(state: str, status: int, kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """That something is unavailable means the model only where there is none."""
    kernel.answers["proc.spawn"] = _failing(Code.UNAVAILABLE)
    kernel.answers["sys.status"] = lambda _: {"model": {"state": state}}
    kernel.answers["perm.list"] = lambda _: {"caps": [], "requests": []}
    assert main.run(["ask", "what?"]) == status
    assert main.run(["spawn", "assistant", "--wait"]) == status


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["event", "tail", "bad topic!"], '"bad topic!" is no topic'),
        (["event", "tail", ""], "is no topic"),
        (["audit", "ls", "--kind", "x"], "'x' is not one of 'boot'"),
        (["audit", "ls", "--last", "x"], "it has to be a whole number"),
        (["audit", "ls", "--last", "0"], "it has to be greater than or equal to 1"),
    ],
)
def test_wrong_arguments_in_words(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What was wrong is told without patterns and without the parser's own terms, with a hint, before a system is looked for."""
    assert main.run(argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "hint: " in err
    assert not any(jargon in err for jargon in ("Value error", "Input should", "regex", "^"))


def test_events_show_label_and_loss(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What a stranger may have written is marked and written out; what was lost is counted. JSON has all of it."""

    def subscribed(_: dict[str, Any]) -> dict[str, Any]:
        for seq, label in ((1, []), (5, ["u", "mail"])):
            header = Header(kind=Kind.EVENT, topic="mail.new", sender="mail", seq=seq, ts=1e9, label=label)
            kernel._out.put([kernel._peer, GREETING, pack_header(header), wire.encode({"text": "a\u202eb"})])
        return {"subscription": 1}

    kernel.answers["bus.subscribe"] = subscribed
    kernel.answers["bus.unsubscribe"] = lambda _: {}
    assert main.run(["event", "tail", "mail.*", "-n", "2"]) == 0
    out, err = capsys.readouterr()
    trusted, untrusted = out.splitlines()
    assert "untrusted" not in trusted
    assert "mail  [untrusted {mail}]  " in untrusted
    assert "\u202e" not in out
    assert "3 of mail.new before this were lost" in err
    assert main.run(["event", "tail", "mail.*", "-n", "2", "-o", "jsonl"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["label"], last["lost"], last["data"]) == (["u", "mail"], 3, {"text": "a\u202eb"})


@pytest.fixture
def weather(llmos_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an installed package with one driver, `weather`; nobody is at the terminal."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    place = paths.packages_dir() / "llmos-weather"
    about = place / "llmos_weather-2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llmos-weather\nVersion: 2\n")
    (about / "entry_points.txt").write_text("[llmos.drivers]\nweather = weather_package\n")
    return place


def test_uninstall_looks_asks_and_removes(weather: Path, kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not there is not found, whoever is there to ask; what is there is named before it is removed."""
    kernel.answers["driver.scan"] = lambda _: {"added": [], "changed": [], "removed": ["weather"], "broken": {}}
    kernel.answers["perm.list"] = lambda _: {"caps": [{"id": "c7"}], "requests": []}
    kernel.answers["perm.revoke"] = lambda _: {"revoked": 1}
    kernel.answers["driver.forget"] = lambda _: {}
    assert main.run(["driver", "uninstall", "nothing"]) == 3
    assert main.run(["driver", "uninstall", "weather"]) == 5
    assert "llmos-weather 2, which holds weather" in capsys.readouterr().err
    assert weather.exists()
    assert main.run(["driver", "uninstall", "weather", "-y"]) == 0
    assert not weather.exists()
    assert [op for op, _ in kernel.log].count("driver.scan") == 1
    assert ("perm.revoke", {"id": "c7"}) in kernel.log
    assert ("driver.forget", {"name": "weather"}) in kernel.log


def test_packages_while_the_system_is_down(
    weather: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They come and go all the same, and it is said what that means."""
    monkeypatch.delenv("LLMOS_BUS", raising=False)
    monkeypatch.setattr(packages, "install", lambda _, report: packages.find("weather"))
    assert main.run(["driver", "install", "llmos-weather", "-y"]) == 0
    err = capsys.readouterr().err
    assert "starts with the next `llmosctl up`" in err
    assert "llmosctl perm grant --requested weather" in err
    assert main.run(["driver", "uninstall", "weather", "-y"]) == 0
    assert "llmos is not running" in capsys.readouterr().err
    assert not weather.exists()


REQUESTS = [
    {"holder": "files", "cap": "fs.read(path=/home/me/Documents)", "granted": False, "present": True},
    {"holder": "files", "cap": "fs.read(path=/home/me/Nowhere)", "granted": False, "present": False},
    {"holder": "files", "cap": "llm.embed", "granted": True, "present": True},
]


def test_grant_requested(kernel: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a manifest asks for is granted in one go, said in plain words, and never without somebody's yes."""
    kernel.answers["perm.list"] = lambda args: {"caps": [], "requests": REQUESTS if args.get("holder") != "x" else []}
    kernel.answers["perm.grant"] = lambda args: {"id": "c9", "cap": args["cap"]}
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main.run(["perm", "grant", "files", "--requested"]) == 5
    assert "see the files in /home/me/Documents" in capsys.readouterr().err
    assert main.run(["perm", "grant", "files", "--requested", "--yes"]) == 0
    granted = [args for op, args in kernel.log if op == "perm.grant"]
    assert granted == [{"holder": "files", "cap": "fs.read(path=/home/me/Documents)"}]
    assert main.run(["perm", "grant", "x", "--requested", "--yes"]) == 3
    assert main.run(["perm", "grant", "files"]) == 2


def test_doctor_without_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a running system, `doctor` still says of each part whether it works, and what to do."""
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path / "new"))
    monkeypatch.delenv("LLMOS_MODELS", raising=False)
    monkeypatch.delenv("LLMOS_BUS", raising=False)
    status = main.run(["doctor", "-o", "json"])
    found = json.loads(capsys.readouterr().out)
    assert status == int(any(check["state"] == "fail" for check in found))
    by_name = {check["name"]: check for check in found}
    assert {"python", "sandbox", "disk", "onnxruntime", "models", "system"} <= set(by_name)
    assert by_name["onnxruntime"]["state"] == "ok"
    assert by_name["system"]["hint"] == "start it with `llmosctl up`"
    assert "llmosctl model pull" in by_name["models"]["hint"]


def test_kernel_not_running(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command that needs the system says that it does not run, with status 6; `down` has nothing to do."""
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path))
    monkeypatch.delenv("LLMOS_BUS", raising=False)
    for argv in (
        ["status"],
        ["ps"],
        ["ask", "x"],
        ["driver", "ls"],
        ["logs", "core"],
        ["event", "tail"],
        ["call", "a.b"],
    ):
        assert main.run(argv) == 6, argv
        assert capsys.readouterr().err.startswith("error[kernel.unreachable]: llmos is not running\nhint: ")
    assert main.run(["down"]) == 0


def _install(folder: Any, name: str, **said: Any) -> None:
    (folder / name).mkdir(parents=True)
    description.write(folder / name, {"kind": "generator", **said})
    for file in ("model.onnx", "tokenizer.json"):
        (folder / name / file).write_bytes(b"0" * 500_000)


def test_models_of_this_machine(
    kernel: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Installed models are listed with what is wrong with them and which is loaded, shown, and removed."""
    monkeypatch.setenv("LLMOS_MODELS", str(tmp_path))
    row = {"name": "small", "state": "ready", "default": True, "engine": "batched", "provider": "cpu", "why": "it can"}
    kernel.answers["llm.stats"] = lambda _: {"models": [row]}
    assert main.run(["model", "ls"]) == 0
    assert "llmosctl model pull" in capsys.readouterr().err
    _install(tmp_path, "small", parameters=135_000_000, context=2048, architecture="llama", license="Apache-2.0")
    _install(tmp_path, "torn")
    (tmp_path / "torn" / "model.onnx").unlink()
    assert main.run(["model", "ls"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["small", "generator", "llama", "135", "M", "2048", "1", "Apache-2.0", "ready,", "default"]
    assert "model.onnx missing" in out[2]
    assert main.run(["model", "show", "small", "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["engine"], shown["why"]) == ("ready, default", "batched", "it can")
    assert main.run(["model", "show", "other"]) == 3
    assert main.run(["model", "rm", "torn"]) == 0
    assert not (tmp_path / "torn").exists()


STATS = {
    "jobs": [
        {"class": "interactive", "new": 1, "prefill": 2, "decode": 3, "parked": 0},
        {"class": "background", "new": 0, "prefill": 0, "decode": 1, "parked": 4},
    ],
    "running": 4,
    "contexts": 7,
    "kv": {"rows": 1e6, "cache": 2e6, "spilled": 5e6, "reserved": 4e6, "limit": 2e9, "spill_limit": 0},
    "weights": {"used": 100, "limit": 200},
    "models": [
        {"name": 'a"b', "kind": "generator", "state": "ready", "engine": "batched", "provider": "cpu", "why": ""}
    ],
    "tokens": {"prefill": 10, "cached": 30, "decode": 20, "forced": 5},
    "tokens_s": {"prefill": 99.0, "decode": 41.0},
    "hit_rate": 0.75,
    "ended": {"stop": 2, "BUDGET": 1},
    "turns": 8,
    "steps": 9,
    "rows": 12,
    "prefill_s": 0.5,
    "decode_s": 1.5,
}


def test_top_shows_what_the_models_do(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs, queue by class, contexts, tokens per second, KV and hits stand above the processes; who may not see them sees those alone."""
    row = {
        "pid": 1,
        "name": "core",
        "state": "ready",
        "cpu_pct": 1,
        "rss_mb": 5,
        "disk_mb": 0,
        "started": 0,
        "cpu_s": 0,
    }
    kernel.answers["proc.list"] = lambda _: {"processes": [row]}
    kernel.answers["llm.stats"] = lambda _: STATS
    assert main.run(["top"]) == 0
    out = capsys.readouterr().out
    for said in (
        "4 in this turn, 4 decode",
        "3 interactive, 4 background",
        "41 decode",
        "contexts 7",
        "3 of 2000 MB",
        "75 %",
    ):
        assert said in out
    kernel.answers["llm.stats"] = _failing(Code.DENIED)
    assert main.run(["top"]) == 0
    assert "core" in capsys.readouterr().out


def test_metrics_are_in_prometheus_text_format(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each metric has its help and type once, its values behind, and a hostile name stays inside its quotes."""
    kernel.answers["sys.status"] = lambda _: {"uptime_s": 5.5}
    kernel.answers["llm.stats"] = lambda _: STATS
    row = {"pid": 1, "name": "core", "kind": "core", "rss_mb": 5, "cpu_s": 2.5}
    kernel.answers["proc.list"] = lambda _: {"processes": [row]}
    assert main.run(["metrics"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for wanted in (
        'llmos_jobs{class="interactive",state="prefill"} 2',
        'llmos_tokens_total{kind="forced"} 5',
        'llmos_jobs_ended_total{how="BUDGET"} 1',
        "llmos_cache_hit_ratio 0.75",
        "llmos_kv_limit_bytes 2000000000",
        'llmos_model_ready{model="a\\"b",kind="generator",engine="batched",provider="cpu"} 1',
        'llmos_process_memory_bytes{name="core",kind="core"} 5000000',
    ):
        assert wanted in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    for line in lines:
        assert line.startswith("# ") or line.split("{")[0].split(" ")[0] in names


def test_catalogue_is_shown(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`model pull` without a name says what there is."""
    assert main.run(["model", "pull", "-o", "json"]) == 0
    assert "smollm2-135m" in {entry["name"] for entry in json.loads(capsys.readouterr().out)}
