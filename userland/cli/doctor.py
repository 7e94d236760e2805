"""`doctor`: what works on this machine and what does not, found by trying; with or without a running system."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from llmos.ipc import paths
from llmos.ipc.connection import Unreachable
from llmos.ipc.errors import OpError
from llmos.userland.cli import failure, session
from llmos.userland.cli.output import Format, Output, line_json, print_json

State = Literal["ok", "warn", "fail"]

TRY_S = 60.0
"""Seconds a trial in a subprocess may take."""
LITTLE_SPACE, TOO_LITTLE_SPACE = 2_000_000_000, 300_000_000
"""Bytes: what one larger model takes; what the embedded one takes while it is imported."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    state: State
    name: str
    detail: str
    hint: str = ""


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: llmosctl doctor -o json")(doctor)


def doctor(output: Output = Format.TABLE) -> None:
    """Check what this machine offers and how the system is doing. Exit status 1 if anything fails."""
    failed = False
    found = []
    for check in checks():
        failed |= check.state == "fail"
        found.append(asdict(check))
        if output is Format.TABLE:
            _print(check)
        elif output is Format.JSONL:
            line_json(asdict(check))
    if output is Format.JSON:
        print_json(found)
    raise typer.Exit(failure.FAILED if failed else 0)


def _print(check: Check) -> None:
    colour = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}[check.state]
    typer.echo(f"{typer.style(f'{check.state:<4}', fg=colour)}  {check.name:<16}  {check.detail}")
    if check.hint:
        typer.echo(f"{'':24}hint: {check.hint}")


def checks() -> Iterator[Check]:
    """All of them, in the order a new machine meets them."""
    yield _python()
    yield from _sandbox()
    yield _limits()
    yield _disk()
    yield from _providers()
    yield from _models()
    yield from _system()


def _python() -> Check:
    return Check("ok", "python", f"{platform.python_version()} at {sys.executable}, on {platform.platform(terse=True)}")


def _sandbox() -> Iterator[Check]:
    report, trouble = _try("llmos.kernel.jail", "probe", "-o", "json")
    if report is None:
        yield Check("fail", "sandbox", trouble, "install llmos again: its jail cannot be started")
        return
    for finding in report["findings"]:
        state: State = "ok" if finding["works"] else "fail"
        yield Check(state, str(finding["layer"]), finding["reason"], finding["hint"])
    said: dict[str, tuple[State, str, str]] = {
        "A": ("ok", "tier A: all layers", ""),
        "B": ("warn", "tier B: weaker than it should be; `up` wants --tier B to accept it", "see the layers above"),
        "C": (
            "fail",
            "tier C: nothing can be confined here, so no driver or agent will be started",
            "see the layers above",
        ),
    }
    yield Check(said[report["tier"]][0], "sandbox", *said[report["tier"]][1:])


def _limits() -> Check:
    report, trouble = _try("llmos.kernel.cgroup")
    if report is not None and report["works"]:
        return Check("ok", "limits", f"held by control groups: {report['reason']}")
    why = trouble if report is None else report["reason"]
    hint = "log in through systemd, or `loginctl enable-linger`, so that Linux itself holds them"
    return Check("warn", "limits", f"looked after every few seconds; no control groups ({why})", hint)


def _disk() -> Check:
    state = paths.state_dir()
    place = next(parent for parent in (state, *state.absolute().parents) if parent.exists())
    if not os.access(place, os.W_OK):
        return Check("fail", "disk", f"{place} cannot be written", "choose another place with LLMOS_HOME")
    free = shutil.disk_usage(place).free
    detail = f"{free / 1e9:.1f} GB free for {state}"
    if free < TOO_LITTLE_SPACE:
        return Check("fail", "disk", detail, "make room, or choose another place with LLMOS_HOME")
    return Check("warn" if free < LITTLE_SPACE else "ok", "disk", detail)


def _providers() -> Iterator[Check]:
    report, trouble = _try("llmos.userland.cli.providers")
    if report is None:
        yield Check("fail", "onnxruntime", trouble, "install llmos again: onnxruntime does not load")
        return
    for provider, problem in report["providers"].items():
        ours = provider == "CPUExecutionProvider"
        state: State = "ok" if not problem else "fail" if ours else "warn"
        yield Check(state, "onnxruntime", f"{report['version']}, {provider}: {problem or 'works'}")


def _models() -> Iterator[Check]:
    from llmos.userland.models import store

    models = store.list()
    for model in models:
        if model.problem:
            yield Check("warn", "models", f"{model.name}: {model.problem}", f"llmosctl model pull {model.name}")
    for kind, wanted in (("generator", store.DEFAULT_GENERATOR), ("embedding", store.DEFAULT_EMBEDDER)):
        names = [model.name for model in models if model.kind == kind and not model.problem]
        if names:
            yield Check("ok", "models", f"{kind}: {', '.join(names)}")
        else:
            yield Check("warn", "models", f"no {kind} model in {paths.models_dir()}", f"llmosctl model pull {wanted}")
    yield _recommended({model.name for model in models})


def _recommended(installed: set[str]) -> Check:
    from llmos.userland.models import catalog, recommend
    from llmos.userland.models.install import importable

    machine = recommend.this_machine()
    found = recommend.recommended(filter(importable, catalog.entries().values()), machine)
    if found is None:
        return Check("warn", "models", f"none of the catalogue fits into half of {machine.memory / 1e9:.1f} GB")
    said = f"for {machine.memory / 1e9:.1f} GB available and {machine.cores} processors: {found.name} is recommended"
    return Check("ok", "models", said, "" if found.name in installed else f"llmosctl model pull {found.name}")


def _system() -> Iterator[Check]:
    try:
        with session.connect() as client:
            status = client.call("sys.status", timeout=5)
            drivers = client.call("driver.list", timeout=5)["drivers"]
            models = client.call("llm.stats", timeout=5)["models"]
    except Unreachable as error:
        yield Check("warn", "system", error.detail, error.hint or "")
        return
    except OpError as error:
        yield Check("fail", "system", error.detail, error.hint or "")
        return
    detail = f"llmos {status['version']} runs, pid {status['pid']}, {status['rss_mb']:.0f} MB, tier {status['tier']}"
    yield Check("ok", "system", detail)
    if not models:
        yield Check("warn", "model", "none is loaded", "llmosctl model load NAME, one of `llmosctl model ls`")
    yield from map(_model, models)
    for driver in drivers:
        yield _driver(driver)


def _model(model: dict[str, Any]) -> Check:
    """What runs it, and why that."""
    said = f"{model['name']}: {model['state']}"
    if model["state"] == "failed":
        return Check("fail", "model", f"{said}: {model['problem']}", "llmosctl logs core")
    if model["engine"]:
        said += f", by the {model['engine']} engine on {model['provider']} ({model['why']})"
    return Check("ok" if model["state"] == "ready" else "warn", "model", said)


def _driver(driver: dict[str, Any]) -> Check:
    name = f"driver {driver['name']}"
    said = f"{driver['state']}: {driver['status']}" if driver["status"] else driver["state"]
    if driver["state"] in ("failed", "broken"):
        return Check("fail", name, said, f"llmosctl logs {driver['name']}")
    missing = [row for row in driver.get("requests", ()) if row["present"] and not row["granted"]]
    if missing:
        hint = f"llmosctl perm grant --requested {driver['name']}"
        return Check("warn", name, f"{said}; {len(missing)} of its requests not granted", hint)
    return Check("ok" if driver["state"] == "ready" else "warn", name, said)


def _try(module: str, *args: str) -> tuple[dict[str, Any] | None, str]:
    """What a module of ours prints as JSON, run in a process of its own; or None and what went wrong."""
    command = [sys.executable, "-m", module, *args]
    env = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(
            command, env=env, cwd=Path("/"), capture_output=True, text=True, timeout=TRY_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"{module} did not end within {TRY_S:.0f} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return None, last[0]
    return json.loads(done.stdout), ""
