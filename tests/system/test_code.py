"""Programs that the model or the user writes, as real hostile processes in a real system."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.connection import Connection
from llmos.ipc.errors import Code, OpError
from llmos.userland.cli import main
from tests.system.conftest import System
from tests.system.processes import is_alive

LLMOSCTL = [sys.executable, "-m", "llmos.userland.cli"]
FOREVER = "print('here', flush=True)\nwhile True: pass"
SECRET = "a secret of the user's"


@pytest.fixture
def user(shared: System) -> Iterator[Connection]:
    """The user, without any project at the end."""
    connection = shared.connect()
    yield connection
    for row in connection.call("code.ls")["projects"]:
        shared.until(partial(_removed, connection, row["project"]))
    assert "loop.bug" not in shared.log()
    assert "syscall.bug" not in shared.log()


def _removed(connection: Connection, project: str) -> bool:
    try:
        connection.call("code.rm", {"project": project})
    except OpError as error:
        if error.code is not Code.BUSY:
            raise
        return False
    return True


def run(connection: Connection, source: str, project: str = "p", **args: Any) -> dict[str, Any]:
    """What became of a program."""
    request = {"project": project, "source": textwrap.dedent(source), **args}
    return connection.stream("code.run", request, timeout=60).finish()


def refused(connection: Connection, op: str, args: dict[str, Any]) -> Code:
    """The code of the error that a call comes to."""
    with pytest.raises(OpError) as caught:
        connection.stream(op, args).finish()
    return caught.value.code


def programs(connection: Connection) -> list[dict[str, Any]]:
    """Rows of those that run."""
    return [row for row in connection.call("proc.list")["processes"] if row["kind"] == "code"]


def folder(system: System, project: str = "p") -> Path:
    return Path(system.environment["LLMOS_HOME"]) / "code" / project


def line_of(pid: int) -> list[int]:
    """A program's process and those of its jail above it, up to the kernel's."""
    found = [pid]
    for _ in range(2):
        found.append(int(Path(f"/proc/{found[-1]}/stat").read_text().rpartition(")")[2].split()[1]))
    return found


def test_what_a_program_says_and_makes_comes_back(user: Connection) -> None:
    """Its output while it runs, its status, and what became of each file, of which any part can be read."""
    stream = user.stream(
        "code.run", {"project": "p", "source": "print('hello')\nopen('a.txt', 'w').write('x' * 100_000)"}
    )
    assert next(stream) == {"stream": "stdout", "text": "hello\n"}
    first = stream.finish()
    assert (first["exit"], first["reason"], first["stdout"], first["truncated"]) == (0, "", "hello\n", False)
    assert first["files"] == [{"path": "a.txt", "bytes": 100_000, "change": "new"}]
    assert first["cpu_s"] > 0
    assert first["peak_mb"] > 1
    second = run(user, "import os\nopen('a.txt', 'a').write('y'); os.mkdir('d'); open('d/b', 'w')")
    assert [(row["path"], row["change"]) for row in second["files"]] == [("a.txt", "changed"), ("d/b", "new")]
    content, at = b"", 0
    while True:
        page = user.call("code.read", {"project": "p", "path": "a.txt", "offset": at, "limit": 40_000})
        content, at = content + page["data"], page["next"]
        if not at:
            break
    assert content == b"x" * 100_000 + b"y"
    assert run(user, "import os; os.unlink('a.txt')")["files"] == [{"path": "a.txt", "bytes": 0, "change": "removed"}]
    assert [row["path"] for row in user.call("code.ls", {"project": "p"})["files"]] == ["d/b"]


def test_a_program_is_plain_python(user: Connection) -> None:
    """Arguments, standard input, a traceback of its own lines, its status; a stored file imports what lies beside it, a source does not."""
    told = run(
        user, "import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(3)", args=["a b", "c\0\nd"], stdin="in"
    )
    assert (told["exit"], told["stdout"]) == (3, "['a b', 'c\\x00\\nd'] in\n")
    failed = run(user, "def f():\n    1 / 0\nf()")
    assert failed["exit"] == 1
    assert failed["stderr"].splitlines()[0].startswith("Traceback")
    assert "1 / 0" in failed["stderr"]
    assert "code_inner" not in failed["stderr"]
    for name, text in (
        ("lib/helper.py", "x = 7"),
        ("lib/main.py", "import helper; print(helper.x, __name__, __file__)"),
    ):
        user.call("code.write", {"project": "p", "path": name, "text": text})
    told = user.stream("code.run", {"project": "p", "file": "lib/main.py"}).finish()
    assert told["stdout"].startswith("7 __main__ /")
    assert "ModuleNotFoundError" in run(user, "import helper")["stderr"]


@pytest.mark.parametrize(
    ("source", "args", "reason"),
    [
        ("while True: pass", {"seconds": 0.5}, "it took longer than 0.5 s"),
        ("import time; time.sleep(99)", {"seconds": 0.5}, "it took longer than 0.5 s"),
        ("x = bytearray(600_000_000)", {}, "it needed more than 512 MB"),
        ("x = []\nwhile True: x.append(bytearray(1_000_000))", {"memory_mb": 100}, "it needed more than 100 MB"),
        (
            "import mmap, time\nm = mmap.mmap(-1, 300_000_000)\nfor n in range(300): m.write(bytes(1_000_000))\ntime.sleep(60)",
            {"memory_mb": 64},
            "it needed more than 64 MB",
        ),
        ("while True: print('y' * 1000)", {}, "it wrote more than 65,536 bytes to stdout"),
        ("import os\nwhile True: os.write(2, b'y' * 999)", {"output_bytes": 5}, "it wrote more than 5 bytes to stderr"),
        ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", {"processes": True, "seconds": 1}, "it "),
        (
            "import os\nfor n in range(6):\n  if not os.fork(): break\nx = b'x' * 40_000_000\nwhile True: pass",
            {"processes": True, "memory_mb": 100},
            "it needed more than 100 MB",
        ),
        ("n = 0\nwhile True:\n  n += 1\n  open(str(n), 'w')", {}, "more than 2,000 files are in the project"),
        (
            "import os\nos.mkdir('d'); os.chmod('d', 0o300)\nn = 0\nwhile True:\n  n += 1\n  open(f'd/{n}', 'w')",
            {},
            "more than 2,000 files are in the project",
        ),
        (
            "import os\nn = 0\nwhile True:\n  n += 1\n  os.posix_fallocate(os.open(str(n), os.O_CREAT | os.O_RDWR), 0, 60 << 20)",
            {},
            "more than 256 MiB are in the project",
        ),
        (
            "import os\nwhile True: os.mkdir('d'); os.chdir('d')",
            {},
            "more than 16 folders are inside one another in the project",
        ),
        pytest.param(
            "import os, time\nfor n in range(9):\n  os.posix_fallocate(os.open('x', 66), 0, 60 << 20); os.unlink('x')\ntime.sleep(60)",
            {},
            "it held more than 256 MiB in files that it had deleted",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root may see what a jail holds open"),
        ),
        ("import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)", {}, "it made a forbidden system call"),
        ("import os; os.kill(os.getpid(), 11)", {}, "it was ended by SIGSEGV"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_limit_ends_a_program(
    user: Connection, shared: System, source: str, args: dict[str, Any], reason: str
) -> None:
    """With the limit in plain words; the system answers all the while, and nothing of the program is left."""
    stream = user.stream("code.run", {"project": "p", "source": source, **args}, timeout=60)
    assert shared.connect().call("sys.ping", timeout=30) == {}
    told = stream.finish()
    assert told["reason"].startswith(reason), told
    assert told["exit"] != 0
    assert programs(user) == []


FORBIDDEN = {
    "import os; os.fork()": "Operation not permitted",
    "import subprocess; subprocess.run(['true'])": "Operation not permitted",
    "x = []\nwhile True: x.append(open('/dev/null'))": "Too many open files",
    "open('big', 'wb').truncate(65 << 20)": "File too large",
    "import os; os.memfd_create('x')": "Operation not permitted",
    "import os; os.mkfifo('x')": "Operation not permitted",
    "import os; os.mknod('x', 0o60600, 0x800)": "Operation not permitted",
    "open('/tmp/x', 'wb').write(bytes(33 << 20))": "No space left",
    "import socket; socket.create_connection(('127.0.0.1', 9))": "Permission denied",
    "bytearray(600_000_000)": "memory",
    "import os; open(os.__file__, 'ab')": "Read-only file system",
}
TRY = """
import json, sys
for source in json.load(sys.stdin):
    try:
        exec(source, {})
    except OSError as error:
        print(error.strerror)
    except MemoryError:
        print("memory")
    else:
        print("nothing")
"""


def test_what_a_program_may_not_fails_in_it(user: Connection) -> None:
    """As an error that it can handle: processes, descriptors, large files, files in memory, devices, scratch, sockets, its own Python."""
    told = run(user, TRY, stdin=json.dumps(list(FORBIDDEN)))
    said = dict(zip(FORBIDDEN, told["stdout"].splitlines(), strict=True))
    assert {source: line for source, line in said.items() if FORBIDDEN[source] not in line} == {}


def test_what_it_started_ends_with_it(shared: System, user: Connection) -> None:
    """A process in a session of its own does not outlive the program, though it ends well."""
    mark = f"9{time.monotonic_ns()}"
    told = run(
        user,
        f"import subprocess; subprocess.Popen(['sleep', '{mark}'], start_new_session=True)",
        processes=True,
    )
    assert (told["exit"], told["reason"]) == (0, "")
    shared.until(lambda: not [one for one in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _content(one)])


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


SPY = """
import json, os, socket, sys
told = {"env": sorted(os.environ), "pids": [name for name in os.listdir("/proc") if name.isdigit()], "uid": os.uname().nodename}
for path in json.loads(sys.argv[1]):
    try:
        told[path] = open(path).read() if not os.path.isdir(path) else os.listdir(path)
    except OSError as error:
        told[path] = type(error).__name__
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
    try:
        told[f"socket {int(family)}"] = bool(socket.socket(family, socket.SOCK_DGRAM))
    except OSError as error:
        told[f"socket {int(family)}"] = type(error).__name__
bus = socket.socket(socket.AF_UNIX)
try:
    bus.connect(sys.argv[2])
    told["bus"] = True
except OSError as error:
    told["bus"] = type(error).__name__
try:
    import llmos.ipc
    told["llmos"] = True
except ImportError:
    told["llmos"] = "ImportError"
print(json.dumps(told))
"""


def test_a_program_sees_its_project_and_nothing_else(shared: System, user: Connection) -> None:
    """Not the home, the system's files, the bus, another project, what another run left in /tmp, nor a network; outside it all is there."""
    secret = shared.home / "diary.txt"
    secret.write_text(SECRET)
    run(
        user,
        "open('theirs', 'w').write('x'); open('/tmp/left', 'w').write('x'); open('/dev/shm/left', 'w')",
        project="other",
    )
    run(user, "open('mine', 'w').write('me')")
    home = Path(shared.environment["LLMOS_HOME"])
    hidden = [secret, shared.home, home / "journal.db", home / "run/user.token", folder(shared, "other") / "theirs"]
    assert all(path.exists() for path in hidden)
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(os.fspath(shared.socket))
    paths = [*map(str, hidden), str(folder(shared) / "mine"), "/tmp/left", "/dev/shm/left", "/proc/1/environ"]
    told = json.loads(run(user, SPY, args=[json.dumps(paths), os.fspath(shared.socket)])["stdout"])
    assert told.pop(str(folder(shared) / "mine")) == "me"
    assert told.pop("uid") == "llmos"
    assert [name for name in told.pop("env") if "LLMOS" in name] in ([], ["LLMOS_RUN"])
    assert len(told.pop("pids")) <= 2
    assert {value for value in told.values() if not isinstance(value, str) or not value.endswith("Error")} == set(), (
        told
    )


def test_a_projects_files_are_read_as_what_they_are(shared: System, user: Connection) -> None:
    """A link, a second name of a file outside, a FIFO, a socket, a folder, a way out: each is refused, and none is written through."""
    run(user, "pass")
    outside = shared.home / "outside"
    outside.mkdir()
    (outside / "f").write_text(SECRET)
    (outside / "g").write_text(SECRET)
    place = folder(shared)
    (place / "link").symlink_to(outside / "g")
    (place / "way").symlink_to(outside)
    os.link(outside / "f", place / "hard")
    os.mkfifo(place / "pipe")
    (place / "dir").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(place / "sock"))
    denied = ["link", "way/g", "way/../f", "hard", "pipe", "dir", "sock", "dir/../../p/hard"]
    malformed = ["..", "../other/x", "/etc/passwd", "a//b", "./hard", "a\0b", "d/" * 20 + "x", "dir/"]
    for path in (*denied, *malformed):
        assert refused(user, "code.read", {"project": "p", "path": path}) in (Code.DENIED, Code.INVALID_ARGUMENT)
        assert refused(user, "code.run", {"project": "p", "file": path}) in (Code.DENIED, Code.INVALID_ARGUMENT)
    for path in ("way/new", "hard", "pipe", "dir", "link"):
        args = {"project": "p", "path": path, "text": "evil", "append": True}
        assert refused(user, "code.write", args) is Code.DENIED
    user.call("code.write", {"project": "p", "path": "link", "text": "in its place"})
    assert (place / "link").read_text() == "in its place"
    assert (outside / "f").read_text() == (outside / "g").read_text() == SECRET
    listed = user.call("code.ls", {"project": "p"})
    assert [row["path"] for row in listed["files"]] == ["hard", "link"]
    assert listed["hidden"] == 3
    user.call("code.rm", {"project": "p", "path": "way"})
    assert (outside / "f").exists()


def test_names_that_nobody_would_choose(shared: System, user: Connection) -> None:
    """Newlines, long names, bytes that are no text, directories one may not enter: listed or counted, and removed with the rest."""
    told = run(
        user,
        """
        import os
        for name in (b"new\\nline", b"\\xff\\xfe", b"x" * 255, "ü".encode(), b"\\x1b[2J"):
            os.close(os.open(name, os.O_CREAT))
        os.makedirs("shut/in"); open("shut/in/f", "w"); os.chmod("shut/in", 0); os.chmod("shut", 0); os.chmod(".", 0)
        os.write(1, b"\\xff\\xfe\\x00 ok")
        """,
    )
    assert told["stdout"] == "\ufffd\ufffd\0 ok"
    assert {"new\nline", "x" * 255, "ü", "\x1b[2J"} <= {row["path"] for row in told["files"]}
    assert user.call("code.ls", {"project": "p"})["hidden"] >= 1
    assert user.call("code.read", {"project": "p", "path": "new\nline"}) == {"data": b"", "bytes": 0, "next": 0}
    user.call("code.rm", {"project": "p"})
    shared.until(lambda: not list((folder(shared, ".rubbish")).iterdir()))
    assert not folder(shared).exists()


def test_a_text_is_read_in_whole_characters(user: Connection) -> None:
    """Page by page, whatever the size of a page; bytes that are none are replaced, and never make a page too large to send."""
    text = "aü🜂" * 9_000
    for start in range(0, len(text), 10_000):
        part = {"text": text[start : start + 10_000], "append": start > 0}
        user.call("code.write", {"project": "p", "path": "t", **part})
    for limit in (48_000, 5_001):
        read, at = "", 0
        while True:
            page = user.call("code.read", {"project": "p", "path": "t", "text": True, "offset": at, "limit": limit})
            read, at = read + page["text"], page["next"]
            if not at:
                break
        assert read == text
    user.call("code.write", {"project": "p", "path": "b", "data": b"\xff" * 48_000})
    assert user.call("code.read", {"project": "p", "path": "b", "text": True})["text"] == "\ufffd" * 20_000
    assert user.call("code.read", {"project": "p", "path": "t", "text": True, "offset": 1, "limit": 1})["next"] == 2


RACE = """
import os
os.makedirs("real"); open("real/f", "w").write("mine"); os.symlink({secret!r}, "fake")
print("here", flush=True)
while True:
    os.rename("real", "d"); os.rename("d", "real")
    os.rename("fake", "d"); os.rename("d", "fake")
"""


def test_a_rename_race_leads_nowhere_else(shared: System, user: Connection) -> None:
    """While a program swaps a folder for a link out of its project, reads give its file or an error; reads by path give the secret."""
    outside = shared.home / "race"
    outside.mkdir()
    (outside / "f").write_text(SECRET)
    stream = user.stream("code.run", {"project": "p", "source": RACE.format(secret=str(outside)), "seconds": 60})
    next(stream)
    reader = shared.connect()
    seen: dict[Any, int] = {}
    leaked = False
    end = time.monotonic() + 30
    while time.monotonic() < end and (sum(seen.values()) < 1000 or b"mine" not in seen or not leaked):
        try:
            found = reader.call("code.read", {"project": "p", "path": "d/f"})["data"]
        except OpError as error:
            found = error.code
        seen[found] = seen.get(found, 0) + 1
        with contextlib.suppress(OSError):
            leaked = leaked or (folder(shared) / "d/f").read_text() == SECRET
    stream.cancel()
    assert leaked, "the race was never on"
    assert set(seen) <= {b"mine", Code.NOT_FOUND, Code.DENIED}, seen
    assert b"mine" in seen


def test_a_lease_holds_nobody_up(shared: System, user: Connection) -> None:
    """A program that has taken a lease on a file would make who opens it wait for 45 s; the kernel says BUSY at once."""
    stream = user.stream(
        "code.run",
        {
            "project": "p",
            "source": "import fcntl, time\nf = open('f', 'w'); fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
            "print('held', flush=True); time.sleep(60)",
        },
    )
    assert next(stream)["text"] == "held\n"
    reader = shared.connect()
    with pytest.raises(OpError) as caught:
        reader.call("code.read", {"project": "p", "path": "f"}, timeout=30)
    assert caught.value.code is Code.BUSY
    stream.cancel()


@pytest.mark.parametrize("how", ["cancel", "kill", "close", "deadline"])
def test_a_program_ends_with_its_call(shared: System, user: Connection, how: str) -> None:
    """Cancelled, killed by its number in `ps`, or left by a caller whose connection is gone."""
    caller = shared.connect()
    stream = caller.stream("code.run", {"project": "p", "source": FOREVER}, timeout=3 if how == "deadline" else None)
    next(stream)
    (row,) = programs(user)
    assert (row["name"], row["status"]) == (f"code#{row['pid']}", "in p, for user")
    processes = line_of(row["os_pid"])
    if how == "cancel":
        stream.cancel()
    elif how == "kill":
        user.call("proc.kill", {"pid": row["pid"]})
        assert stream.finish()["reason"] == "it was killed"
    elif how == "deadline":
        with pytest.raises(OpError) as caught:
            stream.finish()
        assert caught.value.code is Code.TIMEOUT
    else:
        caller.close()
    shared.until(lambda: not programs(user))
    shared.until(lambda: not any(map(is_alive, processes[:2])))


def test_a_program_ends_with_a_caller_that_is_killed(shared: System, user: Connection) -> None:
    """kill -9 of the process whose call it is."""
    command = [*LLMOSCTL, "code", "run", "-", "-p", "p", "--seconds", "600"]
    caller = subprocess.Popen(command, env=shared.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert caller.stdin is not None
    assert caller.stdout is not None
    caller.stdin.write(FOREVER.encode())
    caller.stdin.close()
    assert caller.stdout.readline() == b"here\n"
    (row,) = programs(user)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    shared.until(lambda: not programs(user))
    shared.until(lambda: not is_alive(row["os_pid"]))


def test_few_at_once(shared: System, user: Connection) -> None:
    """Two of one caller's run beside one another; a third is BUSY, and so is whatever is to change a project in which one runs."""
    streams = [user.stream("code.run", {"project": name, "source": FOREVER}) for name in ("a", "b")]
    for stream in streams:
        next(stream)
    other = shared.connect()
    for project in ("a", "c"):
        assert refused(other, "code.run", {"project": project, "source": "pass"}) is Code.BUSY
    for op, args in (("code.write", {"path": "x", "text": ""}), ("code.rm", {})):
        assert refused(other, op, {"project": "a", **args}) is Code.BUSY
    for stream in streams:
        stream.cancel()
    shared.until(lambda: not programs(user))
    assert run(user, "print(1)", project="c")["stdout"] == "1\n"


SLOWLY = """
import time
for n in range(100):
    print(n, flush=True)
    time.sleep(0.015)
open("all", "w")
for n in range(100, 40_000):
    print(n, "x" * 10)
"""


def test_a_slow_reader_slows_the_program(shared: System, user: Connection) -> None:
    """Who reads nothing until there is more than there is credit and room for gets all of it then, in order."""
    stream = user.stream("code.run", {"project": "p", "source": SLOWLY, "output_bytes": 1 << 20})
    other = shared.connect()
    shared.until(lambda: other.call("code.ls", {"project": "p"})["files"])
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert programs(other)
    text = "".join(chunk["text"] for chunk in stream)
    assert [int(line.split()[0]) for line in text.splitlines()] == list(range(40_000))
    assert stream.result["truncated"]
    assert text.startswith(stream.result["stdout"])


@pytest.mark.parametrize(
    "args",
    [
        {"source": "pass", "file": "x"},
        {},
        {"source": "pass", "project": "../x"},
        {"source": "pass", "project": "P"},
        {"source": "pass", "seconds": 0},
        {"source": "pass", "memory_mb": 1},
        {"source": "pass", "args": ["x"] * 65},
        {"source": "pass", "network": True},
    ],
    ids=str,
)
def test_arguments_that_make_no_sense(user: Connection, args: dict[str, Any]) -> None:
    """Are refused by name, before there is a project."""
    assert refused(user, "code.run", {"project": "p", **args}) is Code.INVALID_ARGUMENT
    assert user.call("code.ls") == {"projects": []}


def test_what_is_too_large_goes_in_parts(user: Connection) -> None:
    """A source that does not fit a message is refused; written in parts it runs, and a project has an end too."""
    source = f"x = '{'x' * 1_000_000}'\nprint(len(x))"
    assert refused(user, "code.run", {"project": "p", "source": source}) is Code.TOO_LARGE
    for start in range(0, len(source), 48_000):
        part = {"text": source[start : start + 48_000], "append": start > 0}
        user.call("code.write", {"project": "p", "path": "big.py", **part})
    told = user.stream("code.run", {"project": "p", "file": "big.py"}).finish()
    assert told["stdout"] == "1000000\n"
    run(user, "import os\nfor n in range(4): os.posix_fallocate(os.open(str(n), os.O_CREAT | os.O_RDWR), 0, 63 << 20)")
    user.call("code.write", {"project": "p", "path": "4", "data": bytes(40_000)})
    run(user, "import os\nos.posix_fallocate(os.open('5', os.O_CREAT | os.O_RDWR), 0, 10 << 20)")
    for op, args in (("code.write", {"path": "6", "text": "x"}), ("code.run", {"source": "pass"})):
        assert refused(user, op, {"project": "p", **args}) is Code.TOO_LARGE
    user.call("code.rm", {"project": "p", "path": "5"})
    user.call("code.write", {"project": "p", "path": "6", "text": "x"})


def test_the_command(
    shared: System, user: Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`code run` streams, lists what was made and ends like the program; `put`, `ls`, `get` and `rm` are about its files."""
    monkeypatch.setenv("LLMOS_HOME", shared.environment["LLMOS_HOME"])

    def ctl(*words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = main.run(["code", *words])
        return status, *capsys.readouterr()

    script, data = shared.root / "script.py", shared.root / "data.csv"
    script.write_text(
        "import sys; print(sys.argv[1:], open('data.csv').read()); open('out', 'w').write('made'); sys.exit(7)"
    )
    data.write_text("1,2")
    assert ctl("put", "p", str(data))[0] == 0
    done = ctl("run", str(script), "-p", "p", "--", "--points", "3")
    assert done == (7, "['--points', '3'] 1,2\n", "new: out (4 bytes)\n")
    assert ctl("get", "p", "out") == (0, "made", "")
    assert [row["path"] for row in json.loads(ctl("ls", "p", "-o", "json")[1])] == ["data.csv", "out"]
    status, _, said = ctl("run", "-", "-p", "p", "--seconds", "0.5", stdin="while True: pass")
    assert status == 124
    assert "error[code.ended]: it took longer than 0.5 s" in said
    assert ctl("run", "nothing.py", "--stored", "-p", "p")[0] == 3
    status, _, said = ctl("run", str(shared.root / "nothing.py"))
    assert status == 3
    assert "hint: " in said
    status, _, said = ctl("run", str(script), "-p", "Data 1")
    assert status == 2
    assert "cannot name a project" in said
    assert json.loads(ctl("run", "-", "-p", "p", "-o", "json", stdin="print(2)")[1])["stdout"] == "2\n"
    assert ctl("rm", "p")[0] == 5
    assert ctl("rm", "p", "--yes")[0] == 0
    assert ctl("get", "p", "out")[0] == 3


def test_a_killed_kernel_leaves_no_program(running: System) -> None:
    """After kill -9 in the middle of a run nothing of it is left; the next kernel finds the project with its files, and runs it."""
    user = running.connect()
    source = (
        "import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)\nopen('f', 'w').write('kept')\n"
        + FOREVER
    )
    stream = user.stream("code.run", {"project": "p", "source": source, "processes": True})
    next(stream)
    processes = line_of(programs(user)[0]["os_pid"])
    running.stop(kill=True)
    running.until(lambda: not any(map(is_alive, processes)))
    assert running.start()["ready"], running.log()
    user = running.connect()
    assert [row["project"] for row in user.call("code.ls")["projects"]] == ["p"]
    assert run(user, "print(open('f').read())")["stdout"] == "kept\n"
