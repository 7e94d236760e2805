"""The assistant on real drivers without a kernel: quick to run while working on either, and no substitute for the live run."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before any import of onnxruntime

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from llmos.drivers.browser_history.driver import BrowserHistory
from llmos.drivers.sdk import Call, DriverEnv
from llmos.ipc import manifest, paths
from llmos.ipc.embedding import Vectors
from llmos.ipc.errors import Code, OpError
from llmos.kernel.core.embedder import Embedder
from llmos.userland.assistant.loop import Assistant
from tests.evals.articles_homes import EvalHome

DRIVERS = Path(__file__).resolve().parents[2] / "drivers"


@cache
def embedder() -> Embedder:
    """The embedding model of the user's own store."""
    return Embedder(paths.models_dir() / "minilm")


_vectors: dict[str, Vectors] = {}


def embed(texts: Sequence[str]) -> Vectors:
    """One row per text; what was embedded once is remembered."""
    new = [text for text in dict.fromkeys(texts) if text not in _vectors]
    if new:
        _vectors.update(zip(new, _result(embedder().embed(new)), strict=True))
    return np.stack([_vectors[text] for text in texts])


def _result(steps: Any) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@dataclass
class Client:
    """What an agent calls, served here: one driver, the embedding model, and no language model."""

    driver: BrowserHistory
    listed: list[dict[str, Any]]
    log: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def ops(self) -> list[dict[str, Any]]:
        return self.listed

    def embed(self, texts: Sequence[str]) -> Vectors:
        return embed(texts)

    def call(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        self.log.append((op, args))
        provider, _, verb = op.partition(".")
        if provider != "browser_history":
            raise OpError(Code.UNKNOWN_OP, f"{op} is not served offline")
        serve: Callable[..., dict[str, Any]] = getattr(self.driver, verb)
        return serve(Call(), **args)

    def generate(self, **_: Any) -> Iterator[str]:
        raise OpError(Code.UNAVAILABLE, "no model offline")


@dataclass
class Agent:
    """The agent that the assistant runs in."""

    client: Client
    moment: datetime

    def now(self) -> datetime:
        return self.moment

    def emit(self, **_: Any) -> None:
        """Nobody listens."""


def ops() -> list[dict[str, Any]]:
    """What `sys.ops` lists with both drivers granted."""
    listed = []
    for name in ("browser_history", "filesystem"):
        driver = manifest.load_driver(DRIVERS / name / "manifest.toml")
        for verb, op in driver.ops.items():
            listed.append({"op": f"{name}.{verb}", **msgspec.to_builtins(op)})
    return listed


@contextmanager
def serving(home: EvalHome) -> Iterator[Client]:
    """The history driver on a generated home."""
    root = Path(tempfile.mkdtemp(prefix="llmos-eval-"))
    driver = None
    try:
        home.write(root / "home")
        (root / "state").mkdir()

        def call(op: str, args: dict[str, Any]) -> dict[str, Any]:
            vectors = embed(args["texts"])
            return {"dim": vectors.shape[1], "vectors": vectors.astype("<f4").tobytes()}

        granted = tuple(
            path for path in (root / "home/.mozilla/firefox", *(root / "home/.config").glob("*")) if path.exists()
        )
        settings = {"profiles": [], "exclude_hosts": [], "keep_days": 730}
        env = DriverEnv(state=root / "state", home=root / "home", roots=granted, settings=settings, call=call)
        driver = BrowserHistory()
        driver.setup(env)
        yield Client(driver, ops())
    finally:
        if driver is not None:
            driver.close()
        shutil.rmtree(root)


def ask(client: Client, question: str, now: datetime) -> dict[str, Any]:
    """The assistant's whole result."""
    client.log.clear()
    return Assistant(Agent(client, now)).answer(question)  # type: ignore[arg-type]  # doubles for the system
