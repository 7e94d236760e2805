"""llmosctl against a real system: started, used, and ended by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.userland.models.importer import import_gguf
from tests.system.processes import is_alive
from tests.unit.hub_server import FakeHub
from tests.unit.tiny_gguf import TinyModel

LLMOSCTL = [sys.executable, "-m", "llmos.userland.cli"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _runner(system: Any) -> Run:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [*LLMOSCTL, *argv]
        return subprocess.run(
            command, env=system.environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )

    return run


@pytest.fixture
def ctl(system: Any) -> Iterator[Run]:
    """llmosctl on a system of the test's own, which is not running yet; it is ended afterwards."""
    run = _runner(system)
    yield run
    run("down")


@pytest.fixture
def there(shared: Any) -> Run:
    """llmosctl on a system that runs, and that the test leaves as it found it."""
    return _runner(shared)


def _start(system: Any, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LLMOSCTL, *argv], env=system.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_up_detached_and_down(system: Any, ctl: Run) -> None:
    """`up -d` returns when the system answers; a second `up` ends with 8; `down` ends it and what it started."""
    told = _json(ctl("up", "-d", "--home", str(system.home), "-o", "json"))
    assert Path(told["log"]).exists()
    status = _json(ctl("status", "-o", "json"))
    assert (status["pid"], status["home"]) == (told["pid"], str(system.home))
    assert {driver["state"] for driver in status["drivers"]} == {"ready"}

    again = ctl("up", "-d")
    assert again.returncode == 8
    assert "error[call.conflict]" in again.stderr
    assert "llmosctl down" in again.stderr

    rows = _json(ctl("ps", "-o", "json"))
    assert {"kernel", "gate", "filesystem", "browser_history"} <= {row["name"] for row in rows}
    assert ctl("down").returncode == 0
    for row in rows:
        assert not is_alive(row["os_pid"]), row["name"]
    assert ctl("status").returncode == 6


def test_up_after_a_crash(system: Any, ctl: Run) -> None:
    """A socket that a killed kernel left behind does not stop the next one."""
    told = _json(ctl("up", "-d", "--home", str(system.home), "-o", "json"))
    os.kill(told["pid"], signal.SIGKILL)
    system.until(lambda: not is_alive(told["pid"]))
    assert ctl("status").returncode == 6
    assert ctl("up", "-d", "--home", str(system.home)).returncode == 0
    assert ctl("status").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_in_the_foreground(system: Any, ctl: Run, number: int) -> None:
    """`up` stays with the system and ends it in order on Ctrl-C and on SIGTERM."""
    up = subprocess.Popen(
        [*LLMOSCTL, "up", "--home", str(system.home)],
        env=system.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert up.stderr is not None
    assert any("llmos is ready after" in line for line in up.stderr)
    if number == signal.SIGINT:
        os.killpg(up.pid, number)  # as a terminal does
    else:
        up.send_signal(number)
    _, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    assert ctl("status").returncode == 6


def test_up_that_cannot(system: Any, ctl: Run) -> None:
    """A boot that fails says why and what to do, and ends with the error's status."""
    nowhere = ctl("up", "-d", "--home", str(system.root / "nowhere"))
    assert nowhere.returncode == 3
    assert "nowhere is not a directory\nhint: give the user's home with --home" in nowhere.stderr
    unknown = ctl("up", "-d", "--home", str(system.home), "--model", "nope")
    assert unknown.returncode == 3
    assert "llmosctl model pull nope" in unknown.stderr


def test_drivers_and_permissions(system: Any, ctl: Run) -> None:
    """A grant widens a driver's jail, a revocation closes it again; what was granted is listed."""
    (system.home / "Documents").mkdir()
    (system.home / "Documents" / "plan.txt").write_text("sow the beans")
    assert ctl("up", "-d", "--home", str(system.home)).returncode == 0
    shown = _json(ctl("driver", "show", "filesystem", "-o", "json"))
    wanted = [row["cap"] for row in shown["requests"] if row["present"]]
    assert wanted == [f"fs.read(path={system.home}/Documents)"]
    assert ctl("perm", "grant", "filesystem", "--requested").returncode == 5

    granted = _json(ctl("perm", "grant", "filesystem", "--requested", "--yes", "-o", "json"))
    assert [row["cap"] for row in granted] == wanted
    assert _json(ctl("perm", "ls", "filesystem", "-o", "json"))["caps"][0]["id"] == granted[0]["id"]
    listed = _json(ctl("call", "filesystem.list", f"path={system.home}/Documents", "-o", "json"))
    assert [item["title"] for item in listed["items"]] == ["plan.txt"]

    assert ctl("perm", "revoke", granted[0]["id"]).returncode == 0
    assert ctl("call", "filesystem.list", f"path={system.home}/Documents").returncode in (3, 4)
    assert ctl("perm", "revoke", "c99").returncode == 3


def test_calls_that_cannot(there: Run) -> None:
    """Wrong names, wrong types and too much: each a clear error with its status."""
    for argv, status, said in (
        (("call", "nothing.at_all"), 3, "unknown op 'nothing.at_all'"),
        (("call", "filesystem.nothing"), 3, "it has filesystem.search"),
        (("call", "filesystem.list", "k=many"), 2, "argument k: 'many' is no integer"),
        (("call", "filesystem.list", "--json", '{"k": "many"}'), 2, "argument k: expected integer"),
        (("call", "filesystem.list", "depth=1"), 2, "argument depth: unknown"),
        (("call", "filesystem.search", "query=" + "x" * 100_000), 1, "the limit is 65536"),
        (("call", "llm.generate", "prompt=hi"), 7, "llmosctl model pull"),
        (("spawn", "nobody"), 3, "no agent is called 'nobody'"),
        (("spawn", "assistant", "question=hi", "--wait", "--yes"), 7, "llmosctl model pull"),
        (("event", "tail", "bad topic!"), 2, "is no topic"),
        (("driver", "show", "nobody"), 3, "installed: "),
        (("kill", "999"), 3, "no process 999"),
        (("logs", "nobody"), 3, "known: kernel"),
    ):
        done = there(*argv)
        assert (done.returncode, done.stdout) == (status, ""), (argv, done)
        assert said in done.stderr, done.stderr


def test_events_and_logs(shared: Any, there: Run) -> None:
    """`event tail` prints what happens until it has enough; `logs` shows what a process wrote, `-f` what it writes."""
    tail = _start(shared, "event", "tail", "proc.*", "-n", "2", "-o", "jsonl")
    follow = _start(shared, "logs", "kernel", "-n", "1", "-f")
    assert follow.stdout is not None
    assert follow.stdout.readline()  # it follows
    shared.await_subscriber("proc.*")
    row = next(row for row in _json(there("ps", "-o", "json")) if row["name"] == "filesystem")
    assert there("kill", str(row["pid"])).returncode == 0
    out, _ = tail.communicate(timeout=60)
    events = [json.loads(line) for line in out.splitlines()]
    assert [(event["topic"], event["data"]["name"]) for event in events] == [
        ("proc.ended", "filesystem"),
        ("proc.started", "filesystem"),
    ]
    assert any("process.ended" in line for line in follow.stdout)
    follow.send_signal(signal.SIGINT)
    follow.communicate(timeout=30)
    assert follow.returncode == 130
    assert "driver=" not in there("logs", "filesystem", "-n", "5").stdout


def test_logs_of_a_dead_kernel(system: Any, ctl: Run) -> None:
    """When the system does not run, `logs` shows what the kernel wrote last."""
    assert ctl("up", "-d", "--home", str(system.home)).returncode == 0
    assert ctl("down").returncode == 0
    done = ctl("logs", "-n", "2")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2


def test_interrupt_cancels_the_call(shared: Any, there: Run) -> None:
    """Ctrl-C ends a waiting command with 130, and the call it made with it."""
    tail = _start(shared, "event", "tail")
    shared.await_subscriber("*")
    tail.send_signal(signal.SIGINT)
    tail.communicate(timeout=30)
    assert tail.returncode == 130
    assert _json(there("status", "-o", "json"))["counts"]["calls"] == 1


def test_doctor_of_a_running_system(there: Run) -> None:
    """`doctor` names every driver and its state."""
    found = {check["name"]: check for check in json.loads(there("doctor", "-o", "json").stdout)}
    assert found["system"]["state"] == "ok"
    assert {"driver filesystem", "driver browser_history"} <= found.keys()


def test_import_is_jailed_and_refuses(there: Run, shared: Any) -> None:
    """A file that is no model is refused by the importer in its jail: the status, the reason, and nothing left behind."""
    file = shared.root / "cut.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    done = there("model", "import", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[call.invalid_argument]: ")
    models = Path(shared.environment["LLMOS_MODELS"])
    assert [path for path in models.rglob("*") if path.is_file()] == []


def test_the_default_model_is_what_the_next_start_takes(ctl: Run, system: Any) -> None:
    """`model default` shows and sets it, loads nothing now, survives a restart, and knows only what is installed."""
    models = Path(system.environment["LLMOS_MODELS"])
    assert ctl("up", "-d", "--home", str(system.home)).returncode == 0
    for name in ("first", "second"):
        (models / name).mkdir(parents=True)
        (models / name / "genai_config.json").write_text("{}")
    assert _json(ctl("model", "default", "-o", "json")) == {"model": "first"}
    assert ctl("model", "default", "third").returncode == 3
    assert _json(ctl("model", "default", "second", "-o", "json")) == {"model": "second"}
    assert _json(ctl("status", "-o", "json"))["model"]["state"] == "unloaded"
    assert ctl("down").returncode == 0
    assert ctl("up", "-d", "--home", str(system.home)).returncode == 0
    assert _json(ctl("status", "-o", "json"))["model"]["name"] == "second"
    shutil.rmtree(models / "second")
    assert _json(ctl("model", "default", "-o", "json")) == {"model": "first"}


def test_pull_from_a_hub(ctl: Run, system: Any) -> None:
    """A GenAI folder is looked over in a jail and installed, a GGUF is imported in one; a hub that is not there is an error."""
    root, models = system.root, Path(system.environment["LLMOS_MODELS"])
    gguf = TinyModel(layers=1).write(root / "tiny.gguf")
    made = import_gguf(gguf, root, "tiny", lambda done, total, what: None)
    files = {f"cpu/{file.name}": file.read_bytes() for file in made.iterdir() if file.name != "llmos.json"}
    hostile = {path: content.replace(b"com.microsoft", b"com.evilcorp!") for path, content in files.items()}
    with FakeHub({**files, "tiny.gguf": gguf.read_bytes()}).running() as hub:
        system.environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(root / "nothing")}
        assert ctl("model", "pull", "hf:owner/tiny").returncode == 0
        assert ctl("model", "pull", "hf:owner/tiny/tiny.gguf", "--name", "imported").returncode == 0
        listed = {model["name"]: model for model in json.loads(ctl("model", "ls", "-o", "json").stdout)}
        assert {name: model["problem"] for name, model in listed.items()} == {"tiny": "", "imported": ""}
        hub.files = hostile
        refused = ctl("model", "pull", "hf:owner/tiny", "--name", "hostile")
        assert (refused.returncode, "com.evilcorp!" in refused.stderr) == (2, True)
    assert ctl("model", "pull", "hf:owner/tiny", "--name", "late").returncode == 1
    assert sorted(path.name for path in models.iterdir() if not path.name.startswith(".")) == ["imported", "tiny"]
