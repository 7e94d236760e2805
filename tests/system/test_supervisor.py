"""Processes that take what is not theirs, stop answering, or will not end: what becomes of them, and what the user is told."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.kernel.jail import Policy, probe
from llmos.kernel.loop import Loop
from llmos.kernel.process import Kind, ProcessTable, State
from llmos.kernel.spares import Command
from llmos.kernel.supervisor import Supervisor
from tests.system.authority_world import World
from tests.system.conftest import System
from tests.system.test_faults import in_background

QUICK = {
    "WATCH_S": 0.3,
    "WATCH_PAUSE_S": 0.005,
    "WATCH_IDLE_S": 0.05,
    "DRIVER_PSS": 200 << 20,
    "AGENT_PSS": 150 << 20,
    "DRIVER_DISK": 20 << 20,
    "DRIVER_FILES": 1000,
    "AGENT_FILES": 1000,
    "BURN_SHARE": 0.02,
    "DRIVER_BURN_S": 1.0,
    "AGENT_BURN_S": 2.0,
    "PING_S": 1.0,
    "RESTART_S": (0.02,) * 30,
}
HOG = 250 << 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A system with a hostile driver and a hostile agent, that looks at them often and allows them little."""
    system = System(tmp_path_factory.mktemp("s"))
    system.params = QUICK
    made = World(system)
    made.boot()
    yield made
    system.stop()


def do(world: World, code: str, **more: Any) -> dict[str, Any]:
    """Let the hostile driver run this; where it does not live to answer, the error."""
    try:
        return world.user.call("hostile.do", {"code": code}, timeout=40, **more)
    except OpError as error:
        return {"code": error.code, "detail": error.detail}


def row(world: World, name: str = "hostile") -> dict[str, Any]:
    return next(one for one in world.processes() if one["name"] == name)


def log_of(world: World, name: str = "hostile") -> str:
    return "\n".join(world.user.call("proc.logs", {"name": name})["lines"])


def test_a_driver_that_eats_memory_is_ended_and_comes_back(world: World) -> None:
    """Its caller hears of it, an event says so first, the reason with figures stays in its log, and it serves again."""
    before = world.system.until(lambda: (found := row(world))["state"] == "ready" and found)
    events = world.user.subscribe("proc.*")
    thread, heard = in_background(lambda: [next(events) for _ in range(3)])
    world.system.await_subscriber("proc.*")
    told = do(world, f"self.hog = b'x' * {HOG}; import time; time.sleep(60)")
    assert told["code"] is Code.PEER_DIED
    assert "it used more memory than it may" in told["detail"]
    world.system.until(lambda: row(world)["state"] == "ready")
    assert row(world)["restarts"] == before["restarts"] + 1
    assert "MB, and may have 210 MB" in log_of(world)
    thread.join(30)
    topics = [event.topic for event in heard[0]]
    assert topics == ["proc.limit", "proc.ended", "proc.started"]
    assert heard[0][0].data["limit"] == "memory"
    assert heard[0][0].data["used"] > heard[0][0].data["allowed"]
    assert world.is_well()


@pytest.mark.parametrize(
    "fill",
    [
        "open(d + '/big', 'wb').write(b'x' * (30 << 20))",
        "[open(f'{d}/{n}', 'w').close() for n in range(1500)]",
        "[(os.mkdir('d'), os.chdir('d')) for _ in range(100)]",
    ],
    ids=["bytes", "files", "depth"],
)
def test_a_driver_whose_directory_is_full_is_left_down_until_it_is_emptied(world: World, fill: str) -> None:
    """It says what to do, restarting it alone does not help for long, and emptied it runs."""
    directory = world.home("drivers/hostile")
    world.user.call("proc.kill", {"pid": row(world)["pid"]})
    world.system.until(lambda: row(world)["state"] == "ready")
    do(world, f"import os; d = {str(directory)!r}; os.chdir(d); {fill}")
    failed = world.system.until(lambda: (found := row(world))["state"] == "failed" and found)
    assert "llmosctl driver restart hostile" in failed["status"]
    assert str(directory) in failed["status"]
    assert failed["status"] in log_of(world)
    world.user.call("proc.kill", {"pid": failed["pid"]})
    world.system.until(lambda: row(world)["started"] > failed["started"])
    world.system.until(lambda: row(world)["state"] == "failed")
    subprocess.run(["rm", "-rf", directory], check=True)
    world.user.call("proc.kill", {"pid": failed["pid"]})
    assert do(world, "out['alive'] = True") == {"alive": True}


def test_deleted_files_that_are_held_open_count(world: World) -> None:
    """They take room that no walk finds; the driver comes back, because its end gives it free."""
    before = row(world)["restarts"]
    path = str(world.home("drivers/hostile/x"))
    do(world, f"import os; self.held = open({path!r}, 'wb'); self.held.write(b'x' * (30 << 20)); os.unlink({path!r})")
    world.system.until(lambda: (found := row(world))["restarts"] > before and found["state"] == "ready")
    assert "deleted" in log_of(world)


def test_who_computes_for_nobody_is_ended(world: World) -> None:
    """A driver with no call to serve, and an agent; one that computes for its caller is left alone."""
    before = row(world)["restarts"]
    busy = "import time\nend = time.monotonic() + 2.5\nwhile time.monotonic() < end: pass\nout['done'] = True"
    assert do(world, busy) == {"done": True}
    assert row(world)["restarts"] == before
    do(world, "import threading\ndef burn():\n while True: pass\nthreading.Thread(target=burn, daemon=True).start()")
    world.system.until(lambda: row(world)["restarts"] > before)
    assert "kept a processor busy" in log_of(world)
    with pytest.raises(OpError) as caught:
        world.run("while True: pass")
    assert caught.value.code is Code.PEER_DIED
    assert "kept a processor busy" in caught.value.detail


def test_an_agents_directory_is_bounded_and_goes_with_it(world: World) -> None:
    """However many files it made, and however deep."""
    with pytest.raises(OpError) as caught:
        world.run(
            "for n in range(1100): open(f'{n}', 'w').close()\nfor n in range(300): os.mkdir('d'), os.chdir('d')\ntime.sleep(60)"
        )
    assert "holds" in caught.value.detail
    agents = world.home("agents")
    world.system.until(lambda: all(not any(own.iterdir()) for own in agents.iterdir()), 30)


def test_a_driver_that_does_not_answer_is_restarted_and_a_busy_one_is_not(world: World) -> None:
    """Stopped, or with a loop in C that holds the interpreter: ended. All of its workers asleep: left alone."""
    world.system.until(lambda: row(world)["state"] == "ready")
    before = {name: row(world, name)["restarts"] for name in ("hostile", "post", "browser_history")}
    sleepers = [in_background(lambda: do(world, "import time; time.sleep(4.5); out['slept'] = 1")) for _ in range(5)]
    os.kill(row(world, "browser_history")["os_pid"], signal.SIGSTOP)
    for thread, told in sleepers:
        thread.join(30)
        assert told[0] == {"slept": 1}
    world.system.until(lambda: row(world, "browser_history")["restarts"] > before["browser_history"])
    assert "did not answer" in log_of(world, "browser_history")
    assert row(world)["restarts"] == before["hostile"]
    end = do(world, "import re; re.match('(a+)+$', 'a' * 60 + 'b')")
    assert end["code"] is Code.PEER_DIED
    assert "did not answer" in end["detail"]
    assert row(world, "post")["restarts"] == before["post"]


def test_a_flood_of_stderr_is_bounded(world: World) -> None:
    """The last thousand lines are kept, the kernel grows by no more than those, and answers meanwhile."""
    world.system.until(lambda: row(world)["state"] == "ready")
    grown = row(world, "kernel")["rss_mb"]
    thread, told = in_background(
        lambda: do(world, "import os\nfor n in range(3000): os.write(2, (b'%d ' % n) * 4000 + b'\\n')\nout['done'] = 1")
    )
    while thread.is_alive():
        world.user.call("sys.ping", timeout=30)
    thread.join()
    assert told[0] == {"done": 1}
    answer = world.user.call("proc.logs", {"name": "hostile", "lines": 1000})
    assert sum(map(len, answer["lines"])) < 64_000
    assert row(world, "kernel")["rss_mb"] - grown < 20


def test_a_crash_loop_is_told_in_words_and_ends_when_asked(system: System) -> None:
    """Given up after its restarts with what it said last and what to do; once it works, `driver restart` brings it back."""
    system.params = {"RESTART_S": (0.01, 0.01)}
    world = World(system)
    shutil.copytree(world.packages / "hostile", world.packages / "crash")
    manifest = world.packages / "crash" / "manifest.toml"
    manifest.write_text(manifest.read_text().replace("hostile", "crash"))
    driver = world.packages / "crash" / "driver.py"
    source = driver.read_text().replace("self.env = env", "self.env = env; (env.state / 'ready').read_text()")
    driver.write_text(source)
    world.pretend("crash", "drivers")
    world.boot()
    failed = world.system.until(lambda: (found := row(world, "crash"))["state"] == "failed" and found, 30)
    for words in ("it ended 3 times in a row", "No such file", "`llmosctl driver restart crash`"):
        assert words in failed["status"], failed
    (world.home("drivers/crash") / "ready").write_text("")
    environment = {**system.environment, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "llmos.userland.cli", "driver", "restart", "crash"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    world.system.until(lambda: row(world, "crash")["state"] == "ready")


STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.set_wakeup_fd(-1)\n"


def test_those_that_will_not_end_are_ended_in_order(system: System) -> None:
    """Agents before drivers before gates, by force after two seconds; asking twice changes nothing, and nothing is left."""
    system.params = {"TERM_S": 0.5}
    world = World(system)
    world.boot()
    world.start(STUBBORN + "told['x'] = call('post.note', {'name': 'here', 'text': ''})\ntime.sleep(60)")
    do(world, "import signal\nself.keep = signal.SIG_IGN")
    world.system.until(lambda: world.user.call("post.notes")["notes"])
    pids = [one["os_pid"] for one in world.processes()]
    events = world.user.subscribe("proc.ended")
    thread, heard = in_background(lambda: [next(events).data["name"] for _ in range(3)])
    system.await_subscriber("proc.ended")
    assert system.process is not None
    system.process.send_signal(signal.SIGTERM)
    thread.join(30)
    assert heard[0][0].startswith("evil#"), heard
    system.process.send_signal(signal.SIGTERM)
    system.process.send_signal(signal.SIGINT)
    assert system.process.wait(60) == 0
    system.process = None
    world.user.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(("number", "count"), [("SIGKILL", "4"), ("SIGTERM", "2")])
def test_a_kernel_that_is_killed_while_it_boots_leaves_nothing(number: str, count: str) -> None:
    """At random moments; the next one boots over what files it left, and clears its agents' directories."""
    command = [sys.executable, "-m", "tests.system.kernel_kills", count, "0.8", number]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_jail_that_is_killed_while_it_is_built_leaves_nothing() -> None:
    """bubblewrap's child waits for its monitor's word: killing the monitor alone would leave it waiting for ever."""
    code = (
        "import random, subprocess, time, sys\nfrom tests.system.kernel_kills import adopt, living\n"
        "from llmos.kernel.jail import Policy, spawn\nadopt()\n"
        "for _ in range(40):\n"
        "    made = spawn(Policy(), 'llmos.ipc.paths', stderr=subprocess.DEVNULL)\n"
        "    time.sleep(random.uniform(0, 0.01))\n    made.kill()\n    made.wait(30)\n"
        "end = time.monotonic() + 30\nwhile living() and time.monotonic() < end: time.sleep(0.01)\n"
        "sys.exit(len(living()))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


FAKE_SYSTEMD = """#!/bin/sh
echo "$*" >> "${0%/*}/scopes"
while [ "$1" != -- ]; do shift; done
case "$*" in *memory.max*) echo 268435456; exit;; esac
shift
exec "$@"
"""


def test_jails_run_in_scopes_where_systemd_makes_them(system: System) -> None:
    """Drivers and agents get one with their limits, gates do not; what systemd-run needs to know does not reach a jail, and all works."""
    fake = system.root / "bin" / "systemd-run"
    fake.parent.mkdir()
    fake.write_text(FAKE_SYSTEMD)
    fake.chmod(0o755)
    system.environment |= {"PATH": f"{fake.parent}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(system.root)}
    world = World(system)
    world.boot()
    assert world.user.call("sys.status")["limits"]["by"] == "cgroup"
    told = do(world, "import os; out['env'] = sorted(os.environ)")
    assert "XDG_RUNTIME_DIR" not in told["env"]
    assert "LLMOS_TOKEN" in told["env"]
    assert world.run("told['ran'] = 1") == {"ran": 1}
    lines = (fake.parent / "scopes").read_text().splitlines()
    _trial, *scopes = [line for line in lines if line.startswith("--user")]
    drivers = sum(one["kind"] == "driver" for one in world.processes())
    assert len(scopes) > drivers  # the agent had one too, and a spare may have
    assert all("MemoryMax=" in scope and "TasksMax=512" in scope for scope in scopes)
    os.kill(row(world)["os_pid"], signal.SIGKILL)
    system.until(lambda: (found := row(world))["restarts"] == 1 and found["state"] == "ready")
    assert do(world, "out['back'] = 1") == {"back": 1}


def ctl(world: World, *argv: str, **more: Any) -> subprocess.Popen[Any]:
    """llmosctl, on this system."""
    environment = {**os.environ, **world.system.environment}
    command = [sys.executable, "-m", "llmos.userland.cli", *argv]
    return subprocess.Popen(command, env=environment, **more)


def test_a_log_is_followed_over_restarts(world: World) -> None:
    """Every line once, whoever wrote it."""
    world.system.until(lambda: row(world)["state"] == "ready")
    do(world, "import os; os.write(2, b'first\\n')")
    follow = ctl(world, "logs", "hostile", "-n", "1", "-f", stdout=subprocess.PIPE, text=True)
    assert follow.stdout is not None
    follow.stdout.readline()  # it follows
    for number in range(3):
        do(world, f"import os\nfor n in range(200): os.write(2, b'mark %d\\n' % (n + {200 * number}))")
        world.user.call("proc.kill", {"pid": row(world)["pid"], "force": True})
        world.system.until(lambda: row(world)["state"] == "ready")
    seen: list[int] = []
    while len(seen) < 600:
        line = follow.stdout.readline()
        seen += [int(line.split()[1])] if line.startswith("mark") else []
    assert seen == list(range(600))
    follow.send_signal(signal.SIGINT)
    follow.stdout.close()
    assert follow.wait(30) == 130


def test_top_shows_everybody_and_ends_with_q(world: World) -> None:
    """Once where nobody looks, live on a terminal, in both with what each uses of what it may."""
    out, _ = ctl(world, "top", stdout=subprocess.PIPE, text=True).communicate(timeout=30)
    assert next(line for line in out.splitlines() if " hostile " in line).count("/") == 2
    ours, theirs = os.openpty()
    live = ctl(world, "top", "--every", "0.3", stdin=theirs, stdout=theirs)
    os.close(theirs)
    text = b""
    while b"q ends" not in text or b"hostile" not in text:
        text += os.read(ours, 65536)
    os.write(ours, b"q")
    reader = in_background(lambda: list(iter(lambda: _rest(ours), b"")))
    assert live.wait(60) == 0
    os.close(ours)
    reader[0].join(30)


def _rest(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # its other end is closed
        return b""


@pytest.mark.model
def test_a_core_that_hangs_is_ended_and_comes_back(system: System) -> None:
    """Stopped in the middle of a generation: the caller hears PEER_DIED, and the next one is served."""
    system.params = {"PING_S": 0.3, "CORE_SILENT_S": 2.0, "PING_MISSES": 100}
    system.use_models()
    assert system.start()["ready"]
    user = system.connect()
    prompt = {"prompt": "Once upon a time", "max_tokens": 2000}
    system.until(lambda: user.call("sys.status")["model"]["state"] == "ready", 60)
    stream = system.connect().stream("llm.generate", prompt, timeout=60)
    next(iter(stream))
    os.kill(row_of_core(system)["os_pid"], signal.SIGSTOP)
    with pytest.raises(OpError) as caught:
        stream.finish()
    assert caught.value.code is Code.PEER_DIED
    assert "said nothing" in caught.value.detail
    assert user.call("llm.generate", {**prompt, "max_tokens": 3}, timeout=60)["usage"]["completion"] >= 1


def row_of_core(system: System) -> dict[str, Any]:
    return system.process_named("core")


def test_whatever_bears_the_mark_of_a_kernel_ends_with_it(system: System) -> None:
    """The guard kills it when the kernel is killed, and the next boot what a guard that was killed has left; others' are let alone."""

    def marked(mark: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "100"], env={"LLMOS_RUN": mark})

    system.start()
    environment = Path(f"/proc/{system.process_named('filesystem')['os_pid']}/environ").read_bytes().decode()
    mark = environment.partition("LLMOS_RUN=")[2].partition("\0")[0]
    runtime, _, number = mark.rpartition(":")
    assert runtime == str(system.socket.parent.parent)
    assert number
    own, other = marked(mark), marked(f"{runtime}2:{number}")
    system.stop(kill=True)
    assert own.wait(30) == -signal.SIGKILL
    left = marked(f"{runtime}:of-another-run")
    assert system.start()["ready"]
    assert left.wait(30) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_an_end_between_a_start_and_the_word_of_it_leaves_nothing_in_the_loop(tmp_path: Path) -> None:
    """Whoever gets the descriptor's number next can be watched: the loop raises when it cannot."""
    loop, report = Loop(), probe()
    policy = Policy(write=(tmp_path.resolve(),), tier=report.tier)
    supervisor = Supervisor(loop, report, lambda _: Command(policy, "this", ()), lambda *_: None)
    table = ProcessTable()
    try:
        first, second = (table.add(Kind.DRIVER, name) for name in ("first", "second"))
        supervisor.start(first)
        assert first.jailed is not None
        assert select.select([first.jailed], [], [], 30)[0]
        supervisor.retire(first)
        supervisor.start(second)
        supervisor.retire(second)
        while {process.state for process in table} != {State.ENDED}:
            loop.turn()
    finally:
        supervisor.close()
        loop.close()
