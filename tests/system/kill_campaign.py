"""kill -9 of anything at any moment, and what must hold after each. `python -m tests.system.kill_campaign --count 1000 [--seed N]`.

Victims: the kernel (also while it boots), both gates, the core, drivers, agents, people's programs, and bubblewrap's processes, the outer
that the kernel started and the inner that is pid 1 of the jail. After each: every request was answered in time, nobody is left who
belongs to nobody, no directory, socket or descriptor is left, and all that was acknowledged is there, no more and no less.
[kills: count, hangs, orphans, leaks, lost]
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmos.ipc.connection import Connection
from llmos.ipc.errors import OpError
from llmos.kernel import params
from tests.bench.figures import report
from tests.system.conftest import STORE, System
from tests.system.kill_load import BOUND_S, Load
from tests.system.processes import Tree, adopt, is_alive, reap, tree
from tests.system.test_authority import install

WEIGHTS = {
    "kernel": 12, "gate": 8, "apps_gate": 6, "core": 6, "driver": 20, "agent": 20, "outer": 12, "inner": 12, "client": 8,
}  # fmt: skip
GATES_PER_BOOT = 4
"""The kernel gives up, as it should, when its gate ends six times in a minute."""
AT_ONCE = (1, 1, 2, 3)
"""How many are killed before the system may recover."""
ORPHAN_S = 3.0
"""Seconds after the kernel's death in which all that it started has ended."""
CLIENTS = 2
FDS_SLACK = 3 + 3 * (params.SPARES + 8)  # three for each spare, of agents and of drivers
"""Descriptors that come and go while they are counted, and those of jails that wait for an agent."""
_KIND = re.compile(r": (hang|orphan|leak|lost|bug): ")
_RUNTIME = {"kernel.lock", "user.token", "bus", "bus/gate", "bus/apps"}
_PROBES = ("sys.ping", "filesystem.list", "browser_history.sources", "post.book")


class Campaign:
    """One system, killed again and again."""

    def __init__(self, system: System, seed: int, *, model: bool) -> None:
        self._system = system
        self._chosen = random.Random(seed)
        self._seed = seed
        self._model = model
        self._notes = system.home / "Notes"
        self._notes.mkdir()
        self._pause = system.root / "pause"
        self._clients: list[subprocess.Popen[bytes]] = []
        self._gates_killed = 0
        self._fds = 0
        self._orphans: list[str] = []
        """What outlived its kernel."""
        self._left = 0
        """Kills that are still to be done."""
        self._load = Load(system.socket, self._notes, seed, model=model)
        self._user = Connection(system.socket, client="campaign")
        self.killed: Counter[str] = Counter()
        self.wrong: list[str] = []

    # -- from start to end -----------------------------------------------------------------------------------------

    def run(self, count: int, say: Callable[[str], None] = lambda _: None) -> None:
        """Kill so often; what was wrong is in `wrong`."""
        adopt(True)
        try:
            self._run(count, say)
            self.wrong += [f"seed {self._seed}, after the end: {one}" for one in self._left_over()]
        finally:
            adopt(False)

    def _run(self, count: int, say: Callable[[str], None]) -> None:
        self._boot()
        self._load.admit(self._user)
        self._load.start()
        try:
            told: set[str] = set()
            self.wrong += [f"seed {self._seed}, before any kill: {one}" for one in self._settle()]
            self._left = count
            while self._left:
                started, step = time.monotonic(), count - self._left + 1
                what = self._step()
                wrong = [one for one in self._settle() if one not in told]  # once for each
                told.update(wrong)
                self.wrong += [f"seed {self._seed}, kill {step} ({what}): {one}" for one in wrong]
                for one in wrong:
                    say(f"  {one}")
                say(f"{step} {what} {time.monotonic() - started:.1f} s")
            self.wrong += [f"seed {self._seed}, at the end: {one}" for one in self._audit()]
        finally:
            self._load.close()
            self._user.close()
            for client in self._clients:
                client.kill()
                client.wait()
            self._system.stop()

    def figures(self) -> dict[str, float | int | str]:
        """`[kills: …]`, and what was killed how often."""
        kinds = Counter(found[1] for one in self.wrong if (found := _KIND.search(one)))
        words = {"hangs": "hang", "orphans": "orphan", "leaks": "leak", "lost": "lost", "bugs": "bug"}
        return {
            "count": self.killed.total(),
            **{name: kinds[word] for name, word in words.items()},
            **{f"killed_{kind}": number for kind, number in sorted(self.killed.items())},
            "seed": self._seed,
        }

    def _boot(self) -> None:
        told = self._system.start()
        if not told.get("ready"):
            raise RuntimeError(f"the system did not start: {told}\n{self._system.log()[-3000:]}")
        self._gates_killed, self._fds = 0, 0

    # -- one kill --------------------------------------------------------------------------------------------------

    def _step(self) -> str:
        """Let them work for a while, then kill, often more than one, the later while the system sees to the earlier; who it was."""
        while len(self._clients) < CLIENTS:
            self._start_client()
        self._pause.unlink(missing_ok=True)
        self._load.resume()
        dead = []
        for _ in range(min(self._chosen.choice(AT_ONCE), self._left)):
            time.sleep(self._chosen.uniform(0.0, 0.4))
            dead.append(self._kill(self._chosen.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]))
        self._left -= len(dead)
        return ", ".join(dead)

    def _kill(self, kind: str) -> str:
        who = self._kill_one(kind) if kind != "kernel" else kind
        if who == "kernel":
            self._kill_kernel()
        self.killed[who.partition(" ")[0]] += 1
        return who

    def _start_client(self) -> None:
        command = [sys.executable, "-m", "tests.system.kill_client"]
        command += [str(self._system.socket), str(self._pause), str(self._chosen.random())[2:]]
        self._clients.append(subprocess.Popen(command, env=self._system.environment))

    def _kill_one(self, kind: str) -> str:
        """Of this kind, or of another when there is none; `kernel` when a gate's turn has come too often."""
        if kind == "client" and self._clients:
            client = self._clients.pop(self._chosen.randrange(len(self._clients)))
            client.kill()
            client.wait()
            return kind
        victims = self._victims(kind)
        end = time.monotonic() + 0.5
        while not victims and time.monotonic() < end:
            victims = self._victims(kind)
        if not victims:
            return "kernel" if kind == "driver" else self._kill_one("driver")
        pid, role = self._chosen.choice(victims)
        if role == "gate":
            if self._gates_killed >= GATES_PER_BOOT:
                return "kernel"
            self._gates_killed += 1
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return kind if kind == role else f"{kind} {role}"

    def _victims(self, kind: str) -> list[tuple[int, str]]:
        """(pid, role) of those alive now."""
        jails = self._jails()
        if kind == "outer":
            return [(jail.pid, jail.role) for jail in jails]
        if kind == "inner":
            return [(child.pid, jail.role) for jail in jails for child in jail.children if child.is_monitor]
        return [(pid, jail.role) for jail in jails if jail.role == kind and (pid := jail.program) is not None]

    def _jails(self) -> list[Tree]:
        process = self._system.process
        return tree(process.pid).children if process is not None else []

    def _kill_kernel(self) -> None:
        """And start it again over the same home, at once or after a while; sometimes it does not survive its start."""
        process = self._system.process
        assert process is not None
        its = tree(process.pid).all()

        def outlived() -> list[str]:
            return [f"{child.pid} {child.words[:100]}" for child in its if is_alive(child.pid)]

        process.kill()
        process.wait()
        died = time.monotonic()
        if self._chosen.random() < 0.3:
            boot = [sys.executable, "-m", "llmos.kernel", "--home", str(self._system.home)]
            again = subprocess.Popen(boot, env=self._system.environment, stderr=subprocess.DEVNULL)
            time.sleep(self._chosen.uniform(0.05, 1.0))
            again.kill()
            again.wait()
        if self._chosen.random() < 0.5:
            self._orphans += self._until(outlived, "orphan: of the kernel: ", ORPHAN_S)
        self._boot()
        self._orphans += self._until(outlived, "orphan: of the kernel: ", died + ORPHAN_S - time.monotonic())

    # -- what must hold --------------------------------------------------------------------------------------------

    def _settle(self) -> list[str]:
        """Everything answers again, everybody rests; what is wrong then."""
        wrong = self._answers()
        self._load.pause()
        self._pause.touch()
        wrong += self._until(self._no_agents, "hang: agents that do not end")
        wrong += self._until(self._no_orphans, "orphan: ") + self._orphans
        self._orphans = []
        try:
            wrong += self._load.compare(self._user)
            wrong += self._audit() if not self._fds else []
        except OpError as error:
            wrong.append(f"hang: the system did not tell what it has: {error}")
        return wrong + self._until(self._no_leaks, "leak: ")

    def _until(self, left: Callable[[], list[str]], word: str, seconds: float = BOUND_S) -> list[str]:
        """What is left when the time is over."""
        end = time.monotonic() + seconds
        while (found := left()) and time.monotonic() < end:
            time.sleep(0.01)
        return [f"{word}{one}" for one in found]

    def _answers(self) -> list[str]:
        """What was given up or waits for its next start is started, as the user would; then each part serves."""

        def silent() -> list[str]:
            try:
                for row in self._user.call("proc.list", timeout=5)["processes"]:
                    if row["state"] in ("failed", "waiting"):
                        self._user.call("proc.kill", {"pid": row["pid"]}, timeout=5)
                for op in _PROBES:
                    self._user.call(op, timeout=5)
                if self._model:
                    self._user.call("llm.generate", {"prompt": "Once", "max_tokens": 1}, timeout=20)
            except OpError as error:
                return [str(error)]
            return []

        return self._until(silent, "hang: it does not serve again: ", 2 * BOUND_S)

    def _rows(self) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = self._user.call("proc.list", timeout=5)["processes"]
        except OpError as error:
            return [{"kind": "agent", "name": f"unknown, for {error}", "os_pid": 0}]
        return rows

    def _no_agents(self) -> list[str]:
        return [row["name"] for row in self._rows() if row["kind"] == "agent"]

    def _no_orphans(self) -> list[str]:
        """Of ours there are the kernel and the clients; of the kernel's one jail for each process it knows."""
        reap()
        process = self._system.process
        known = {client.pid for client in self._clients} | ({process.pid} if process is not None else set())
        left = [f"{child.pid} {child.words[:200]}" for child in tree(os.getpid()).children if child.pid not in known]
        rows = self._rows()
        alive = {row["os_pid"] for row in rows}
        drivers = sum(row["kind"] == "driver" for row in rows)
        jails = self._jails()
        strange = [jail for jail in jails if jail.role and jail.program not in alive]
        spare = [jail for jail in strange if jail.role == "agent"][: params.SPARES]
        spare += [jail for jail in strange if jail.role == "driver"][:drivers]  # one for each
        return left + [
            f"{jail.pid} {jail.role}, which the kernel does not list" for jail in strange if jail not in spare
        ]

    def _no_leaks(self) -> list[str]:
        """No directory, socket or descriptor more than there should be."""
        state = Path(self._system.environment["LLMOS_HOME"])
        left = [f"{path} of an agent" for path in list((state / "agents").glob("*"))[params.SPARES :]]
        left += [str(path) for path in state.rglob(".install-*")]
        runtime = state / "run"
        left += [str(path) for path in runtime.rglob("*") if str(path.relative_to(runtime)) not in _RUNTIME]
        process = self._system.process
        if process is None:
            return left
        files = _open_files(process.pid)
        watched = files.pop("anon_inode:[pidfd]", 0)
        self._fds = self._fds or files.total()
        if files.total() > self._fds + FDS_SLACK:
            left.append(f"{files.total()} descriptors of the kernel, {self._fds} at first: {dict(files)}")
        if watched > self._load.connections + len(self._clients) + 1:
            left.append(f"{watched} programs watched of {self._load.connections + len(self._clients) + 1}")
        with suppress(OpError):  # one that does not answer is a hang, and told of as one
            calls = self._user.call("sys.status", timeout=5)["counts"]["calls"]
            left += [f"{calls - 1} calls that nobody waits for"] if calls > 1 else []
        return left

    def _audit(self) -> list[str]:
        fault = self._user.call("audit.verify", timeout=BOUND_S)["fault"]
        return [f"lost: the audit log: {fault}"] if fault else []

    def _left_over(self) -> list[str]:
        """After an orderly end nobody and nothing is there, and the kernel never met a bug of its own."""
        wrong = self._until(self._nobody, "orphan: ", 5)
        runtime = Path(self._system.environment["LLMOS_HOME"]) / "run"
        wrong += [f"leak: {path}" for path in runtime.rglob("*") if path.is_socket() or path.name == "user.token"]
        bugs = [line for line in self._system.log().splitlines() if '.bug"' in line or line.startswith("Traceback")]
        return wrong + [f"leak: {one}" for one in self._no_leaks()] + [f"bug: {line[:500]}" for line in bugs]

    def _nobody(self) -> list[str]:
        reap()
        return [f"{child.pid} {child.words[:200]}" for child in tree(os.getpid()).children]


def _open_files(pid: int) -> Counter[str]:
    """How many descriptors of each kind."""
    names: Counter[str] = Counter()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            name = str(fd.readlink())
            names[name if name.startswith(("/", "anon")) else name.partition(":")[0]] += 1
    return names


def prepare(root: Path) -> System:
    """A system that is not started yet, with the driver and the agent that the campaign needs."""
    system = System(root)
    system.environment["PYTHONPATH"] = str(install(root / "packages"))
    return system


def main() -> None:
    """Print what was wrong, the table, and fail if anything was."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--no-model", action="store_true", help="without the model, even where it is installed")
    parser.add_argument("--keep", action="store_true", help="leave the system's files where they are")
    given = parser.parse_args()
    model = (STORE / "smollm2-135m").is_dir() and not given.no_model
    root = Path(tempfile.mkdtemp(prefix="kills-"))
    print(f"seed {given.seed}, {'with' if model else 'without'} the model, in {root}", flush=True)
    system = prepare(root)
    if model:
        system.use_models()
    campaign = Campaign(system, given.seed, model=model)
    try:
        campaign.run(given.count, lambda line: print(line, flush=True))
    finally:
        report("kills", campaign.figures(), model="smollm2-135m" if model else "")
        if not given.keep:
            shutil.rmtree(root, ignore_errors=True)
    for one in campaign.wrong:
        print(one)
    sys.exit(bool(campaign.wrong))


if __name__ == "__main__":
    main()
