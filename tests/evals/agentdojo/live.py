"""Plays on a real system: kernel, gate, drivers and agents in their jails; the user is played here."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llmos.ipc.connection import Connection, Event
from llmos.ipc.errors import Code, OpError
from tests.evals.agentdojo import packages
from tests.evals.agentdojo.manifests import MANIFESTS, Labels, driver_name
from tests.evals.agentdojo.pairs import Play, Step
from tests.evals.agentdojo.program.worlds import SUITES, op_name
from tests.evals.agentdojo.scoring import Outcome, judge, revive, without
from tests.system.conftest import System

PATIENCE_S = 300.0
"""Seconds an agent may take."""


class User:
    """Answers approvals: `once` for the calls of her own script that have not been made yet, `no` for all others.

    One agent at a time works on a suite, so that the op tells the play.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._plays: dict[str, tuple[Play, list[Step], list[Step]]] = {}
        self._thread = threading.Thread(
            target=self._answer_all, name="user", args=[connection.subscribe("approval.requested")]
        )
        self._thread.start()

    def close(self) -> None:
        """Stops with its connection."""
        self._connection.close()
        self._thread.join()

    def begin(self, play: Play) -> tuple[list[Step], list[Step]]:
        """What she has approved and what she has refused, to be read when the play is over."""
        answers: tuple[list[Step], list[Step]] = ([], [])
        self._plays[driver_name(play.suite.name)] = (play, *answers)
        return answers

    def _answer_all(self, events: Iterable[Event]) -> None:
        try:
            for event in events:
                self._answer(event.data["id"])
        except OpError as error:
            if error.code is not Code.CANCELLED:
                raise

    def _answer(self, number: str) -> None:
        asked = self._connection.call("approval.show", {"id": number})
        driver, _, function = asked["op"].partition(".")
        play, approved, refused = self._plays[driver]
        call = {"function": function, "args": asked["args"]}
        made = self._connection.call(f"{driver}.ran")["calls"]
        own = call in without(play.script, made)
        (approved if own else refused).append(call)
        self._connection.call("approval.answer", {"id": number, "answer": "once" if own else "no"})


class Stage:
    """A system with the drivers of all suites, and plays on it."""

    def __init__(self, connection: Connection, user: User, mode: str) -> None:
        self._connection = connection
        self._user = user
        self._mode = mode

    def play(self, play: Play) -> Outcome:
        """One agent's life. Raises `OpError` when it ended otherwise than by its end."""
        driver = driver_name(play.suite.name)
        plan = [{"op": f"{driver}.{op_name(step['function'])}", "args": step["args"]} for step in play.plan]
        errand = {"plan": plan, "script": play.script, "injected": play.injected}
        self._call(f"{driver}.begin", task=play.task.ID, vectors=play.vectors, errand=errand)
        approved, refused = self._user.begin(play)
        verbs = sorted({MANIFESTS[tool.name].effect.value for tool in play.suite.tools})
        ended = self._call(
            "proc.spawn",
            program=packages.AGENT,
            args={"prompt": play.task.PROMPT, "driver": driver},
            allow=[f"{driver}.{verb}" for verb in verbs],
            mode=self._mode,
            wait=True,
        )["result"]
        unasked = [
            step for step in ended["refused"] if step not in refused
        ]  # a no stands when the same call comes again
        if ended["failed"] or unasked:
            raise OpError(Code.INTERNAL, f"{play.name}: failed {ended['failed']}, refused unasked {unasked}")
        calls = self._call(f"{driver}.ran")["calls"]
        env = revive(play.suite.environment_type, json.loads("".join(self._pages(driver))))
        return judge(play, calls, env, approved, refused)

    def play_all(self, plays: Iterable[Iterable[Play]]) -> Iterator[Outcome]:
        """Every suite's plays one after the other, the suites side by side."""
        with ThreadPoolExecutor() as pool:
            for outcomes in pool.map(lambda some: [self.play(play) for play in some], plays):
                yield from outcomes

    def _pages(self, driver: str) -> Iterator[str]:
        offset = 0
        while True:
            page = self._call(f"{driver}.dump", offset=offset)
            yield page["json"]
            offset = page["next"]
            if not offset:
                return

    def _call(self, op: str, **args: Any) -> dict[str, Any]:
        return self._connection.call(op, args, timeout=PATIENCE_S)


@contextlib.contextmanager
def stage(labels: Labels, mode: str) -> Iterator[Stage]:
    """Boots a system whose manifests say `labels`."""
    with tempfile.TemporaryDirectory(prefix="adojo") as directory:
        root = Path(directory).resolve()
        packages.write(root / "packages", labels)
        system = System(root)
        system.environment["PYTHONPATH"] = str(root / "packages")
        if not system.start().get("ready"):
            raise OpError(Code.UNAVAILABLE, f"the system did not start:\n{system.log()[-4000:]}")
        try:
            connection = system.connect()
            for suite in SUITES:  # a third party's results count as trusted only where the user says so
                connection.call("perm.grant", {"holder": driver_name(suite), "cap": "label.trust"})
            user = User(system.connect())
            try:
                yield Stage(connection, user, mode)
            finally:
                user.close()
        finally:
            system.stop()
