"""What the supervisor is made of: words for an end, a log with a cursor, a walk through a hostile directory, pings."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc import wire
from llmos.ipc.protocol import parse_header
from llmos.kernel import disk, exits, health, params, sweep, usage
from llmos.kernel.jail import Jailed
from llmos.kernel.loop import Loop, Timer
from llmos.kernel.process import Kind, LogRing, Process, ProcessTable, State
from llmos.kernel.sweep import Sweeper

HOST_LINE = '{"driver": "x", "detail": "KeyError in setup: \\"db\\"", "event": "driver.failed", "level": "error"}'


@pytest.mark.parametrize(
    ("status", "lines", "told"),
    [
        (0, ["bye"], "exit: it ended by itself"),
        (1, [], "exit status 1"),
        (
            1,
            ["Traceback…", "ValueError: no such folder", ""],
            "exit status 1; it said last: ValueError: no such folder",
        ),
        (1, [HOST_LINE], 'exit status 1; it said last: KeyError in setup: "db"'),
        (1, ["MemoryError"], "it asked for more memory than it may have"),
        (1, ["PermissionError: [Errno 13] Permission denied: '/etc/shadow'"], "refused it something"),
        (1, ["OSError: [Errno 28] No space left on device"], "no room left"),
        (1, ["ModuleNotFoundError: No module named 'numpy'"], "it cannot be imported (No module named 'numpy')"),
        (-signal.SIGKILL, ["x"], "killed by SIGKILL: ended by the system, most likely for lack of memory"),
        (-signal.SIGSYS, [], "killed by SIGSYS: it made a system call that the jail forbids"),
        (-signal.SIGSEGV, [], "killed by SIGSEGV: a fault in its compiled code"),
        (-signal.SIGABRT, ["free(): invalid pointer"], "it said last: free(): invalid pointer"),
        (-99, [], "killed by signal 99"),
    ],
)
def test_an_end_is_told_in_words(status: int, lines: list[str], told: str) -> None:
    """Every way to end has words; the part that everybody hears holds nothing that the process wrote."""
    assert told in exits.explain(status, lines)
    public = exits.cause(status)
    assert public.split()[0].rstrip(":") in ("exit", "killed")
    assert not any(line and line in public for line in lines)


@given(parts=st.lists(st.integers(0, 700), max_size=8))
def test_a_followed_log_loses_and_doubles_nothing(parts: list[int]) -> None:
    """With the number of the last line seen, a follower gets every line once, as far as the log keeps them."""
    ring, seen, written = LogRing(), 0, itertools.count()
    for count in parts:
        lines = [f"{next(written)}" for _ in range(count)]
        ring.feed("".join(f"{line}\n" for line in lines).encode())
        assert ring.after(seen) == lines
        seen = ring.count
    assert ring.after(seen + 1) == list(ring.lines), "the number is of another log"


def test_lines_that_came_too_fast_are_counted() -> None:
    """A block with more lines than are kept moves the cursor by all of them."""
    ring = LogRing()
    ring.feed(b"x\n" * (params.LOG_LINES + 500))
    assert ring.count == params.LOG_LINES + 500
    assert len(ring.after(0)) == params.LOG_LINES
    assert ring.after(0, since=9e12) == []


def walk(root: Path, **limits: int) -> disk.Walk:
    made = disk.Walk(root, limits.get("bytes", 1 << 40), limits.get("files", 1 << 30))
    while not made.step(7):
        pass
    return made


def test_a_walk_counts_and_follows_nothing(tmp_path: Path) -> None:
    """Files and directories below, blocks as the disk has them, links as themselves; no descriptor stays open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    root = tmp_path / "own"
    for name in ("a/b", "c"):
        (root / name).mkdir(parents=True)
    (root / "a/b/file").write_bytes(b"x" * 50_000)
    (root / "out").symlink_to("/usr")
    (root / "loop").symlink_to(".")
    (root / "hole").touch()
    os.truncate(root / "hole", 1 << 40)
    done = walk(root)
    assert done.files == 7
    assert 50_000 <= done.bytes < 200_000
    assert not done.over
    assert walk(root, files=3).over
    assert walk(root, bytes=20_000).over
    half = disk.Walk(root, 1 << 40, 1 << 30)
    half.step(2)
    half.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not walk(tmp_path / "none").over


def test_a_tree_that_is_too_deep_is_found_as_that_and_removed(tmp_path: Path) -> None:
    """Deeper than any path may be long, without recursion and without a descriptor for each level."""
    (tmp_path / "own").mkdir()
    fd = os.open(tmp_path / "own", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert walk(tmp_path / "own").hidden
    loop = Loop()
    sweeper = Sweeper(loop)
    sweeper.sweep(tmp_path / "own")
    loop.turn()
    sweeper.close()
    loop.close()
    assert not (tmp_path / "own").exists()


def test_a_sweep_that_takes_too_long_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell has started to delete a tree ends with it: the next boot must not meet it."""
    monkeypatch.setattr(sweep, "_COMMAND", ("sh", "-c", 'sleep 60 > "$1/held"; true', "sh"))
    monkeypatch.setattr(sweep, "_LONGEST_S", 0.1)
    os.mkfifo(tmp_path / "held")
    with os.fdopen(os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as held:
        loop = Loop()
        sweeper = Sweeper(loop)
        sweeper.sweep(tmp_path)
        while held.read(1) is not None:  # nobody has opened it for writing yet
            time.sleep(0.01)
        sweeper.close()
        loop.close()
        assert select.select([held], [], [], 30)[0], "somebody still holds it"


def test_a_number_that_is_anothers_by_now_is_not_taken_for_the_jails() -> None:
    """Of a process that ended as soon as it had reported, the parent is looked for too late: whoever it is, it is not to be killed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    monitor: Any = SimpleNamespace(pid=os.getpid())
    jailed = Jailed(monitor, ours, mounts=True, share_pid=False)
    with ours, theirs:
        theirs.send(b"closed 7")
        assert jailed.started(10).pid == os.getpid()
    assert jailed.init is None


def test_a_link_is_deleted_and_not_followed(tmp_path: Path) -> None:
    """What it leads to keeps its content and its mode, whether it is what is swept or lies in it."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "own" / "link").symlink_to(outside)
    loop = Loop()
    sweeper = Sweeper(loop)
    for name in ("link", "own", "link"):
        sweeper.sweep(tmp_path / name)
    while [path.name for path in tmp_path.iterdir()] != ["outside"]:
        loop.turn()
    sweeper.close()
    loop.close()
    assert outside.stat().st_mode & 0o777 == 0o500


def test_memory_is_counted_over_a_whole_family() -> None:
    """A process and its child: tasks, processor and memory of both; shared pages once."""
    read, write = os.pipe()
    hog = b"x" * (40 << 20)
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    try:
        assert child in usage.members(os.getpid())
        both = [os.getpid(), child]
        told = usage.shared_out(both)
        assert told is not None
        assert usage.sample(both, -1).rss > sum(told) >= len(hog)
    finally:
        os.close(write)
        os.waitpid(child, 0)


class Slow:
    """A loop whose time is turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self.timers: list[Any] = []

    def clock(self) -> float:
        return self.now

    def later(self, seconds: float, action: Callable[[], None]) -> Timer:
        timer = Timer(action)
        heapq.heappush(self.timers, (self.now + seconds, next(self._order), timer))
        return timer

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and self.timers[0][0] <= end:
            self.now, _, timer = heapq.heappop(self.timers)
            if timer.action is not None:
                timer.action()
        self.now = end


class Pinged:
    """Health, over one driver and a core."""

    def __init__(self) -> None:
        self.loop, self.table, self.stuck = Slow(), ProcessTable(), ""
        self.sent: list[tuple[int, int]] = []
        self.failed: list[tuple[str, str]] = []
        self.driver = self.table.add(Kind.DRIVER, "mail", conn=7)
        self.driver.state = State.READY
        self.table.add(Kind.CORE, "core")
        self.health = health.Health(self.loop, self.table, self._send, lambda: self.stuck, self._fail)  # type: ignore[arg-type]
        self.health.start()

    def _send(self, conn: int, header: bytes, body: bytes) -> None:
        made = parse_header(wire.decode_map(header))
        assert made.op == "sys.ping"
        self.sent.append((conn, made.id))

    def _fail(self, process: Process, why: str) -> None:
        self.failed.append((process.name, why))


def test_three_unanswered_pings_end_a_driver_and_one_answer_saves_it() -> None:
    """Only its own connection answers for it, and a new connection starts anew."""
    world = Pinged()
    world.loop.pass_time(params.PING_S * params.PING_MISSES)
    assert not world.failed
    conn, number = world.sent[-1]
    assert world.health.answered(99, number), "it was no call of anybody's"
    assert world.health.answered(conn, number)
    assert not world.health.answered(conn, 5), "a call"
    world.loop.pass_time(params.PING_S * params.PING_MISSES)
    world.driver.conn = 8
    world.loop.pass_time(params.PING_S * params.PING_MISSES)
    assert not world.failed
    world.loop.pass_time(params.PING_S)
    assert world.failed == [("mail", "it did not answer for 15 s")]
    world.driver.state = State.STOPPING
    world.loop.pass_time(params.PING_S * 5)
    assert len(world.failed) == 1


def test_a_core_that_is_stuck_is_ended() -> None:
    """With the reason that whoever noticed gives."""
    world = Pinged()
    world.driver.conn = 0
    world.loop.pass_time(params.PING_S)
    assert not world.failed
    world.stuck = "it said nothing"
    world.loop.pass_time(params.PING_S)
    assert world.failed == [("core", "it said nothing")]
