"""The demonstration behind `make run`: a made-up home, the real system booted on it, one question asked of it.

Everything is done with `llmosctl`, each command shown, so that what is seen here can be typed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmos.ipc import paths
from llmos.userland.demo import home

MODELS = ("smollm2-135m", "minilm")
"""The embedded model, and the one that compares texts by meaning."""
DRIVERS = ("browser_history", "filesystem")
LOADED_S = 120.0
"""Seconds the model may take to load."""
MORE = ("which articles did I spend the longest on last month", "where did I write down the boiler warranty")


class Failed(Exception):
    """A step of the demonstration failed; what it printed says why."""


@dataclass
class Tour:
    """A run's directory, its screen, and the seconds of its stages."""

    directory: Path
    screen: Console
    models: Path
    stages: list[tuple[str, float]] = field(default_factory=list)
    booted: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """What makes `llmosctl` talk to this demonstration's system."""
        return {"LLMOS_HOME": os.fspath(self.directory / "llmos"), "LLMOS_MODELS": os.fspath(self.models)}

    def llmosctl(self, *args: str, shown: bool = True, check: bool = True) -> str:
        """Runs a command. → its standard output; what it says to people goes to the screen. Raises `Failed`."""
        if shown:
            self.screen.print(Text(f"$ llmosctl {shlex.join(args)}", style="bold"))
        command = [sys.executable, "-m", "llmos.userland.cli", *args]
        done = subprocess.run(
            command, env=os.environ | self.environment, stdout=subprocess.PIPE, text=True, check=False
        )
        if check and done.returncode:
            raise Failed(f"llmosctl {args[0]} ended with status {done.returncode}")
        return done.stdout

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what is done inside."""
        start = time.monotonic()
        yield
        self.stages.append((name, time.monotonic() - start))


def run(*, keep: bool = False) -> int:
    """The whole demonstration; → its exit status: 0 when the planted article came first."""
    screen = Console(highlight=False, soft_wrap=True)
    # short on purpose: the path of a unix socket below it is limited
    tour = Tour(Path(tempfile.mkdtemp(prefix="llmos-demo-")), screen, paths.models_dir().absolute())
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _show(tour, keep=keep)
    except Failed as failure:
        screen.print(Text(f"error: {failure}", style="red"))
        _show_log(tour)
        return 1
    except KeyboardInterrupt:
        screen.print("\nstopped")
        return 130
    finally:
        if not (keep and tour.booted):
            if tour.booted:
                tour.llmosctl("down", shown=not keep, check=False)
            shutil.rmtree(tour.directory, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def _show(tour: Tour, *, keep: bool) -> int:
    with tour.stage("demo home made"):
        made = home.make(tour.directory / "home")
    tour.screen.print(f"A made-up person's home: {made.visits} visits in two browsers, {made.documents} documents.")
    with tour.stage("models there"):
        for model in MODELS:
            tour.llmosctl("model", "pull", model, shown=not (tour.models / model).exists())
    with tour.stage("system booted"):
        tour.booted = True  # from here on `down` has something to end, however the boot goes
        tour.llmosctl("up", "-d", "--home", os.fspath(made.path), "--model", MODELS[0])
    with tour.stage("drivers granted their requests"):
        for driver in DRIVERS:
            tour.llmosctl("perm", "grant", "--requested", driver, "--yes")
    with tour.stage("model loaded"):
        _await_model(tour)
    with tour.stage("question answered"):
        answer = json.loads(tour.llmosctl("ask", home.QUESTION, "-o", "json"))
    _show_answer(tour.screen, answer)
    _show_stages(tour, answer["timings"])
    found = next((card.get("url", "") for card in answer["cards"]), "")
    if found != made.planted.url:
        raise Failed(f"the first card should be {made.planted.url}")
    _show_next(tour, keep=keep)
    return 0


def _await_model(tour: Tour) -> None:
    limit = time.monotonic() + LOADED_S
    while time.monotonic() < limit:
        model = json.loads(tour.llmosctl("status", "-o", "json", shown=False))["model"]
        if model["state"] == "ready":
            return
        if model["state"] in ("failed", "none"):
            raise Failed(f"the model did not load: {model.get('problem') or model['state']}")
        time.sleep(0.2)
    raise Failed(f"the model has not loaded within {LOADED_S:.0f} s")


def _show_answer(screen: Console, answer: dict[str, Any]) -> None:
    screen.print()
    screen.print(Text(answer["answer"], style="bold green"))
    for number, card in enumerate(answer["cards"], 1):
        screen.print(Text(f"\n{number}. {card['title']}", style="bold"))
        screen.print(Text(f"   {card.get('url') or card.get('path', '')}"))
        facts = (card.get("when"), card.get("source"), card.get("why"))
        screen.print(Text(f"   {' · '.join(fact for fact in facts if fact)}", style="dim"))


def _show_stages(tour: Tour, timings: dict[str, float]) -> None:
    table = Table(title="How long it took", title_justify="left", box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name, seconds in tour.stages:
        table.add_row(name, f"{seconds:.2f}")
    for name, ms in timings.items():
        if name != "total":
            table.add_row(f"  of which: {name}", f"{ms / 1000:.2f}", style="dim")
    tour.screen.print()
    tour.screen.print(table)


def _show_next(tour: Tour, *, keep: bool) -> None:
    lines = ["", "Two more things to ask:", *(f"  llmosctl ask {shlex.quote(question)}" for question in MORE)]
    if keep:
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in tour.environment.items())
        lines += ["", "The demo's system is still running. To talk to it:", f"  export {exports}"]
        lines += ["and to end it:", "  llmosctl down", f"  rm -r {shlex.quote(os.fspath(tour.directory))}"]
    else:
        lines += ["", "To ask them here, keep the demo running:", "  python -m llmos.userland.demo run --keep"]
    lines += [
        "",
        "On your own home (nothing leaves this machine; each driver sees only what you grant):",
        "  llmosctl up -d",
        *(f"  llmosctl perm grant --requested {driver}" for driver in DRIVERS),
        f"  llmosctl ask {shlex.quote(home.QUESTION)}",
    ]
    tour.screen.print(Text("\n".join(lines)))


def _show_log(tour: Tour) -> None:
    """The end of the system's log, before its directory goes."""
    log = tour.directory / "llmos" / "logs" / "kernel.log"
    with contextlib.suppress(OSError):
        tour.screen.print(Text("\n".join(log.read_text(errors="replace").splitlines()[-15:]), style="dim"))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
