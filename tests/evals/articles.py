"""Does the assistant find the article? Generated questions over generated histories, asked of the live system.

    python tests/evals/articles.py --model smollm2-135m [--model qwen2.5-coder-1.5b] [--questions 40] [--show]

Each home is a system of its own: booted, granted what its drivers request, asked, shut down. Two seeds are run: the one that
the code may have been tuned on, and one that only judges. Figures go to build/figures/articles.json, of the second
unless their name says otherwise; a model's earlier figures are kept until it is run again. See tests/evals/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
if not __package__:  # started by its path: its neighbours are modules of the package `tests.evals`
    sys.path.insert(0, os.fspath(ROOT))

from llmos.ipc import paths  # noqa: E402
from llmos.ipc.connection import Connection  # noqa: E402
from llmos.userland.sdk import Client  # noqa: E402
from tests.evals.articles_homes import DEVELOPMENT, HELD_OUT, Case, EvalHome, generate  # noqa: E402

FIGURES = ROOT / "build" / "figures" / "articles.json"
DRIVERS = ("browser_history", "filesystem")
SETS = {"development": DEVELOPMENT, "held-out": HELD_OUT}
PER_HOME = 10
LOADED_S = 300.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was asked, and what came."""

    case: Case
    correct: bool
    seconds: float
    result: dict[str, Any]


def main() -> int:
    """→ exit status: 2 when no model of those named is installed."""
    parser = argparse.ArgumentParser(description="Ask the assistant for articles in generated histories.")
    parser.add_argument("--model", action="append", required=True, help="name in the model store; may be repeated")
    parser.add_argument("--questions", type=int, default=40, help="of each of the two sets")
    parser.add_argument("--show", action="store_true", help="show the questions that went wrong")
    options = parser.parse_args()
    store = paths.models_dir().absolute()
    models = [model for model in options.model if (store / model).is_dir()]
    for model in options.model:
        if model not in models:
            print(f"{model} is not installed and was left out: llmosctl model pull {model}", file=sys.stderr)
    for model in models:
        asked = {name: run(seed, model, store, options.questions) for name, seed in SETS.items()}
        report(model, asked, show=options.show)
        save(model, asked)
    return 0 if models else 2


def run(seed: int, model: str, store: Path, questions: int) -> list[Asked]:
    """Ask that many questions, on as many homes as they take."""
    now = datetime.now().astimezone()
    asked: list[Asked] = []
    for home in generate(seed, now, -(-questions // PER_HOME), PER_HOME):
        with booted(home, model, store) as client:
            asked += [ask(client, case) for case in home.cases[: questions - len(asked)]]
    return asked


def ask(client: Client, case: Case) -> Asked:
    """One question, timed from the asking to the whole answer."""
    start = time.perf_counter()
    spawned = client.spawn("assistant", {"question": case.question}, wait=True)
    for _ in spawned:
        pass
    result: dict[str, Any] = spawned.result["result"]
    top = next((card.get("url", "") for card in result["cards"]), "")
    return Asked(case, _page(top) == _page(case.url), time.perf_counter() - start, result)


@contextlib.contextmanager
def booted(home: EvalHome, model: str, store: Path) -> Iterator[Client]:
    """A system on the home, with the model loaded; it is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="llmos-eval-"))
    environment = os.environ | {"LLMOS_HOME": os.fspath(directory / "llmos"), "LLMOS_MODELS": os.fspath(store)}

    def llmosctl(*args: str) -> str:
        command = [sys.executable, "-m", "llmos.userland.cli", *args]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"llmosctl {args[0]}: {done.stderr.strip()}")
        return done.stdout

    home.write(directory / "home")
    try:
        llmosctl("up", "-d", "--home", os.fspath(directory / "home"), "--model", model)
        for driver in DRIVERS:
            llmosctl("perm", "grant", "--requested", driver, "--yes")
        limit = time.monotonic() + LOADED_S
        while json.loads(llmosctl("status", "-o", "json"))["model"]["state"] != "ready":
            if time.monotonic() > limit:
                raise TimeoutError(f"{model} did not load within {LOADED_S:.0f} s")
            time.sleep(0.3)
        runtime = directory / "llmos" / "run"
        with Client(Connection(paths.bus_socket(runtime), client="articles")) as client:
            yield client
    finally:
        with contextlib.suppress(RuntimeError):  # it may never have come up
            llmosctl("down")
        shutil.rmtree(directory, ignore_errors=True)


def report(model: str, asked: dict[str, list[Asked]], *, show: bool) -> None:
    """The table, by what makes a question hard."""
    print(f"\n{model}: the right article in the top card")
    for name, answers in asked.items():
        right = sum(answer.correct for answer in answers)
        print(
            f"  {name:<12} {right:>3} of {len(answers)}   median {_seconds(answers, 50):.1f} s, 90 % in {_seconds(answers, 90):.1f} s"
        )
    kinds, good = Counter[str](), Counter[str]()
    for answers in asked.values():
        for answer in answers:
            kinds.update(answer.case.kinds)
            good.update(answer.case.kinds if answer.correct else ())
    print("  " + ", ".join(f"{kind} {good[kind]}/{count}" for kind, count in kinds.most_common()))
    if show:
        for name, answers in asked.items():
            for answer in answers:
                if not answer.correct:
                    found = [f"{card['title']} ({card.get('when', '')})" for card in answer.result["cards"][:3]]
                    calls = [step["args"] for step in answer.result["steps"] if step["stage"] == "call"]
                    print(
                        f"\n  {name}: {answer.case.question}\n    wanted {answer.case.title}\n    found {found}\n    calls {calls}"
                    )


def save(model: str, asked: dict[str, list[Asked]]) -> None:
    """Merge this model's figures into the file."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    size, judged = _size(model), asked["held-out"]
    figures |= {
        f"correct_{size}": sum(answer.correct for answer in judged),
        f"correct_{size}_development": sum(answer.correct for answer in asked["development"]),
        f"seconds_median_{size}": round(_seconds(judged, 50), 2),
        f"seconds_p90_{size}": round(_seconds(judged, 90), 2),
        "seconds_median": round(_seconds(judged, 50), 2),
        "seconds_p90": round(_seconds(judged, 90), 2),
        "model": model,
        "total": len(judged),
        "cores": os.cpu_count(),
        "commit": _commit(),
    }
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")


def _seconds(asked: list[Asked], percent: int) -> float:
    seconds = [answer.seconds for answer in asked]
    return seconds[0] if len(seconds) == 1 else statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]


def _size(model: str) -> str:
    """`smollm2-135m` → `135m`, `qwen2.5-coder-1.5b` → `1b5`."""
    sizes = re.findall(r"(\d+)(?:\.(\d+))?([mb])\b", model.lower())
    return "{0}{2}{1}".format(*sizes[-1]) if sizes else re.sub(r"\W+", "_", model)


def _page(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return (parts.hostname or "").removeprefix("www."), parts.path.rstrip("/")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "none"


if __name__ == "__main__":
    sys.exit(main())
