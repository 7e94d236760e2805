"""The driver host, on a double of the wire: what a driver's caller gets, whatever the driver does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.sdk import Call
from llmos.ipc import wire
from llmos.ipc.protocol import Kind, parse_header

MANIFEST = """
name = "probe"
version = "1"
summary = "A driver to test its host"
entry = "probe_driver:Probe"
[ops.echo]
effect = "read"
summary = "Gives back what it got"
[ops.echo.args.text]
type = "string"
required = true
[ops.echo.args.times]
type = "integer"
[ops.crash]
effect = "read"
summary = "Fails"
[ops.refuse]
effect = "read"
summary = "Says what is wrong"
[ops.wait]
effect = "read"
summary = "Until cancelled"
[ops.import]
effect = "read"
summary = "An op whose name is a word of Python"
[ops.vectors]
effect = "read"
summary = "Calls while being called"
"""

DRIVER = """
from llmos.drivers.sdk import Call, Code, Driver, DriverEnv, OpError, hookimpl, op, previews

class Probe(Driver):
    threads = {threads}
    def setup(self, env: DriverEnv) -> None:
        self.env = env
    def status(self) -> str:
        return f"home {{self.env.home}}, {{self.env.settings['depth']}} deep"
    def close(self) -> None:
        (self.env.state / "closed").write_text("yes")
    @op
    def echo(self, call: Call, *, text: str, times: int = 1) -> dict:
        return {{"items": [text] * times, "sender": call.sender, "scope": dict(call.scope)}}
    @op
    def crash(self, call: Call) -> dict:
        raise ValueError("secret payload")
    @op
    def refuse(self, call: Call) -> dict:
        raise OpError(Code.NOT_FOUND, "nothing there", "look elsewhere")
    @op
    def wait(self, call: Call) -> dict:
        self.env.publish("probe.waiting", {{}})
        (self.env.state / "waiting").touch()
        call.cancelled.wait()
        (self.env.state / "cancelled").write_text("yes")
        call.check()
    @op(name="import")
    def import_(self, call: Call) -> dict:
        return {{"items": []}}
    @op
    def vectors(self, call: Call) -> dict:
        return {{"rows": len(self.env.embed(["a"] * 41))}}
    {more}

@hookimpl
def llmos_driver_call_finished(op, error):
    import sys
    sys.stderr.write("hook " + op + " " + str(error) + "\\n")
"""

CHANGING = (
    MANIFEST
    + """
[ops.set]
effect = "write"
summary = "Changes something"
undo = true
preview = true
[ops.set.args.text]
type = "string"
required = true
max_length = 30000
[ops.undo]
effect = "write"
summary = "Changes it back"
[ops.undo.args.token]
type = "string"
required = true
[ops.preview]
effect = "read"
summary = "Says what it would change"
[ops.preview.args.op]
type = "string"
required = true
[ops.preview.args.args]
type = "object"
required = true
"""
)
SET = """
    @op
    def set(self, call: Call, *, text: str) -> dict:
        call.raise_label(tags=["mail"])
        call.raise_label("trusted", ["calendar"])
        return {"undo": text}
"""
PREVIEWS = """
    @previews("set")
    def _preview_set(self, call: Call, *, text: str) -> str:
        return "would become " + text
"""
UNDO = """
    @op
    def undo(self, call: Call, *, token: str) -> dict:
        return {"back": token}
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(gate_double: Any, tmp_path: Path) -> Iterator[Start]:
    """Runs the host on a driver of the test's own; ends it afterwards."""
    started: list[subprocess.Popen[str]] = []

    def run(threads: int = 4, manifest: str = MANIFEST, more: str = "") -> subprocess.Popen[str]:
        (tmp_path / "manifest.toml").write_text(manifest)
        (tmp_path / "probe_driver.py").write_text(DRIVER.format(threads=threads, more=more))
        config = {
            "kind": "driver",
            "name": "probe",
            "manifest": str(tmp_path / "manifest.toml"),
            "state": str(tmp_path),
            "home": "/home/user",
            "settings": {"depth": 3},
            "tz": "Europe/Berlin",
        }
        env = {
            **os.environ,
            "LLMOS_BUS": str(gate_double.path),
            "LLMOS_TOKEN": "t",
            "LLMOS_CONFIG": json.dumps(config),
            "PYTHONPATH": str(tmp_path),
        }
        gate_double.answers["bus.publish"] = lambda _: {"receivers": 0}
        gate_double.answers["llm.embed"] = lambda args: {"dim": 2, "vectors": bytes(8 * len(args["texts"]))}
        command = [sys.executable, "-m", "llmos.drivers.host"]
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.terminate()
        process.communicate(timeout=10)


def test_host_serves_ops(gate_double: Any, start: Start, tmp_path: Path) -> None:
    """A driver says it is ready, serves typed ops with who asked and their scope, and ends in order on SIGTERM."""
    host = start()
    assert gate_double.wait_for("sys.ready")["status"] == "home /home/user, 3 deep"

    ok, result = gate_double.call("probe.echo", {"text": "hi", "times": 2}, scope={"path": ["/a"]})
    assert ok
    assert result == {"items": ["hi", "hi"], "sender": "caller", "scope": {"path": ["/a"]}}
    assert gate_double.call("probe.import") == (True, {"items": []})

    host.terminate()
    _, err = host.communicate(timeout=5)
    assert host.returncode == 0
    assert (tmp_path / "closed").read_text() == "yes"
    assert "hook echo None" in err
    done = json.loads(next(line for line in err.splitlines() if '"op.done"' in line and '"echo"' in line))
    assert (done["op"], done["items"], done["code"]) == ("echo", 2, None)
    assert "hi" not in done.values()


@pytest.mark.parametrize("threads", [0, 1])
def test_host_maps_errors(gate_double: Any, start: Start, threads: int) -> None:
    """An op's own errors travel as they are; a crash becomes INTERNAL with its type, and its text stays in the log."""
    host = start(threads)
    gate_double.wait_for("sys.ready")

    wrong = {"code": "NOT_FOUND", "detail": "nothing there", "hint": "look elsewhere"}
    assert gate_double.call("probe.refuse") == (False, wrong)
    ok, error = gate_double.call("probe.crash")
    assert (ok, error["code"], error["detail"]) == (False, "INTERNAL", "probe.crash: ValueError")
    assert "secret" not in str(error)
    ok, error = gate_double.call("probe.nothing")
    assert (ok, error["code"]) == (False, "UNKNOWN_OP")
    ok, error = gate_double.call("probe.echo", {"text": 5})
    assert (ok, error["code"]) == (False, "INVALID_ARGUMENT")
    assert "text" in error["detail"]
    ok, error = gate_double.call("probe.echo")
    assert (ok, error["detail"]) == (False, "argument text: missing")

    host.terminate()
    assert "secret payload" in host.communicate(timeout=5)[1]


def test_host_cancels_and_calls_back(gate_double: Any, start: Start) -> None:
    """With every worker busy a cancel still arrives, and an op's own calls name the call they are made for."""
    start(threads=1)
    gate_double.wait_for("sys.ready")
    waiting = gate_double.send_call("probe.wait", {})
    gate_double.wait_for("bus.publish")
    gate_double.cancel(waiting)
    ok, error = gate_double.reply_to(waiting)
    assert (ok, error["code"]) == (False, "CANCELLED")

    number = gate_double.send_call("probe.vectors", {})
    assert gate_double.reply_to(number) == (True, {"rows": 41})
    embeds = [header for header in gate_double.headers if header.op == "llm.embed"]
    assert [header.parent for header in embeds] == [number, number]


def test_host_ends_with_op_running(gate_double: Any, start: Start, tmp_path: Path) -> None:
    """SIGTERM cancels what runs and still closes the driver."""
    host = start()
    gate_double.wait_for("sys.ready")
    gate_double.send_call("probe.wait", {})
    end = time.monotonic() + 10
    while not (tmp_path / "waiting").exists() and time.monotonic() < end:
        time.sleep(0.01)
    host.terminate()
    host.communicate(timeout=5)
    assert host.returncode == 0
    assert (tmp_path / "cancelled").exists()
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    ("manifest", "more", "complaint"),
    [
        (MANIFEST.replace("[ops.crash]", "[ops.crush]"), "", "crash is not in the manifest; no @op method for crush"),
        (MANIFEST.replace("required = true", ""), "", "echo: text is optional in the manifest and needs a default"),
        (MANIFEST.replace("[ops.echo.args.times]", "[ops.echo.args.count]"), "", "echo: the method takes no count"),
        (MANIFEST.replace(":Probe", ":Prob"), "", "probe_driver:Prob is not a subclass"),
        (CHANGING, SET + UNDO, "no @previews method for set"),
        (CHANGING, SET + PREVIEWS, "no @op method for undo; set: undo is true, and there is no op undo"),
        (
            CHANGING,
            SET + UNDO + PREVIEWS.replace("text", "txt"),
            "preview of set: the method takes no text; preview of set: txt",
        ),
        (
            CHANGING.replace("preview = true", ""),
            SET + UNDO + PREVIEWS,
            "set has a preview that is not in the manifest",
        ),
        (CHANGING.replace("ops.preview", "ops.foresee"), SET + UNDO + PREVIEWS, "preview is not in the manifest"),
        (MANIFEST, "def setup(self, env): raise RuntimeError()", "RuntimeError in setup"),
    ],
)
def test_host_refuses_misfit(gate_double: Any, start: Start, manifest: str, more: str, complaint: str) -> None:
    """A driver that is not what its manifest says ends at once, and the log's last line says what does not fit."""
    host = start(manifest=manifest, more=more)
    _, err = host.communicate(timeout=10)
    assert host.returncode == 1
    last = json.loads(err.strip().splitlines()[-1])
    assert last["event"] == "driver.failed"
    assert complaint in last["detail"]
    assert not [op for op, _ in gate_double.log if op == "sys.ready"]


def test_host_previews(gate_double: Any, start: Start) -> None:
    """`preview` checks the other op's arguments, answers with its text, and shows no character that would change how others look."""
    start(manifest=CHANGING, more=SET + UNDO + PREVIEWS)
    gate_double.wait_for("sys.ready")

    def preview(**args: Any) -> tuple[bool, dict[str, Any]]:
        answer: tuple[bool, dict[str, Any]] = gate_double.call("probe.preview", {"op": "set", "args": args})
        return answer

    assert preview(text="x\n\ty ü") == (True, {"preview": "would become x\n\ty ü"})
    assert preview(text="\x1b[2J\r\u202eabc\u200b")[1] == {"preview": r"would become \x1b[2J\r\u202eabc\u200b"}
    for text in ("z" * 30_000, "\x07" * 19_000):
        shown = preview(text=text)[1]["preview"]
        assert len(shown) <= 20_000
        assert re.search(r"cut here, about [\d,]+ characters more$", shown)
    assert preview(txt="x")[1]["code"] == "INVALID_ARGUMENT"
    ok, error = gate_double.call("probe.preview", {"op": "echo", "args": {}})
    assert (ok, error["code"]) == (False, "UNKNOWN_OP")


def test_host_undo_tokens(gate_double: Any, start: Start) -> None:
    """An op that can be undone answers with a token of 1 to 1024 characters; anything else is the driver's mistake."""
    start(manifest=CHANGING, more=SET + UNDO + PREVIEWS)
    gate_double.wait_for("sys.ready")
    assert gate_double.call("probe.set", {"text": "t" * 1024}) == (True, {"undo": "t" * 1024})
    assert gate_double.call("probe.undo", {"token": "t"}) == (True, {"back": "t"})
    for text in ("", "t" * 1025):
        ok, error = gate_double.call("probe.set", {"text": text})
        assert (ok, error["code"]) == (False, "INTERNAL")


def test_call_raises_its_label() -> None:
    """What an op says of its answer adds up, goes to the wire in order, and cannot be no label."""
    call = Call()
    assert call.label == []
    call.raise_label("trusted", ["web", "mail"])
    assert call.label == ["t", "mail", "web"]
    call.raise_label(tags="calendar")
    call.raise_label("trusted")
    assert call.label == ["u", "calendar", "mail", "web"]
    for wrong in (["A"], [""], ["a b"], ["x" * 61]):
        with pytest.raises(ValueError, match="label"):
            call.raise_label(tags=wrong)
    with pytest.raises(ValueError, match="label"):
        call.raise_label("t")  # type: ignore[arg-type]
    assert Call().label == []


def test_host_sends_the_raised_label(gate_double: Any, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply's header carries what the op said of its answer, and nothing where it said nothing."""
    labels: list[list[str]] = []
    take = gate_double._take

    def taking(peer: bytes, greeting: bytes, packed: bytes, body: bytes) -> None:
        header = parse_header(wire.decode_map(packed))
        if header.kind is Kind.REPLY:
            labels.append(header.label)
        take(peer, greeting, packed, body)

    monkeypatch.setattr(gate_double, "_take", taking)
    start(manifest=CHANGING, more=SET + UNDO + PREVIEWS)
    gate_double.wait_for("sys.ready")
    gate_double.call("probe.set", {"text": "x"})
    gate_double.call("probe.undo", {"token": "x"})
    assert labels == [["u", "calendar", "mail"], []]
