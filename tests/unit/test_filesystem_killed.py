"""The filesystem driver killed at every line of a change: what the disk shows, and what the next start makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# For n = 1, 2, … a child does the change and is killed by SIGKILL at the n-th line it runs in the modules that change the disk,
# until one is not killed any more. After each, the disk as it was left, and as the next start left it, and after an undo.
KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
from llmos.drivers.filesystem.driver import Filesystem
from llmos.drivers.sdk import Call, DriverEnv, OpError

change, top = sys.argv[1], Path(sys.argv[2])
WATCHED = tuple(f"/filesystem/{name}.py" for name in ("atomic", "backups", "changes", "tree"))
notes, state = top / "notes", top / "state"

def start():
    driver = Filesystem()
    driver.setup(DriverEnv(state, top, (notes,), (notes,)))
    return driver

def shown():
    return {
        str(path.relative_to(notes)): path.read_text() if path.is_file() else "/" for path in sorted(notes.rglob("*"))
    }

def prepare():
    shutil.rmtree(top, ignore_errors=True)
    (notes / "folder" / "deep").mkdir(parents=True)
    state.mkdir()
    (notes / "folder" / "deep" / "x").write_text("x")
    if not change.startswith("create"):
        (notes / "a").write_text("old" * 1000)
    driver = start()
    if change.endswith("undo"):
        return driver, act(driver)["undo"]
    return driver, None

def act(driver):
    if change.startswith("trash"):
        return driver.move_to_trash(Call(), path=str(notes / "folder"))
    return driver.write(Call(), path=str(notes / "a"), content="new" * 2000)

def do(driver, token):
    if token:
        driver.undo(Call(), token=token)
    else:
        act(driver)

def killed_at(n):
    driver, token = prepare()
    pid = os.fork()
    if pid == 0:
        left = n
        def line(frame, event, arg):
            nonlocal left
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return line
        def called(frame, event, arg):
            return line if frame.f_code.co_filename.endswith(WATCHED) else None
        try:
            driver.close()
            driver = start()
            sys.settrace(called)
            do(driver, token)
        finally:
            os._exit(0)
    died = os.waitpid(pid, 0)[1] == signal.SIGKILL
    driver.close()
    left = shown()
    driver = start()
    settled = shown()
    undone = None
    if token:
        try:
            driver.undo(Call(), token=token)
        except OpError as error:
            undone = str(error.code)
    last = shown()
    rows = [effect.state for effect in driver._backups._select("")]
    items = len(os.listdir(state / "undo" / "items"))
    driver.close()
    return died, {"left": left, "settled": settled, "undone": undone, "last": last, "rows": rows, "items": items}

n, reports = 0, []
while True:
    n += STEP
    died, report = killed_at(n)
    reports.append(report)
    if not died:
        break
print(json.dumps(reports))
"""

OLD, NEW = "old" * 1000, "new" * 2000


def killed(change: str, step: int) -> list[dict[str, object]]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as top:
        command = [sys.executable, "-c", KILLED.replace("STEP", str(step)), change, f"{top}/top"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    reports: list[dict[str, object]] = json.loads(done.stdout)
    assert len(reports) > 30 // step
    return reports


def file_of(shown: object) -> str | None:
    """The content of `a`; everything else must be as it was."""
    assert isinstance(shown, dict)
    rest = {name: text for name, text in shown.items() if name != "a"}
    assert rest == {"folder": "/", "folder/deep": "/", "folder/deep/x": "x"}
    return shown.get("a")


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("change", "old"), [("write", OLD), ("create", None)])
def test_killed_write(change: str, old: str | None) -> None:
    """At no line does a kill leave anything but the old or the new content; the next start removes every temporary file."""
    seen = []
    for report in killed(change, 1):
        left = report["left"]
        assert isinstance(left, dict)
        assert left.get("a") in (old, NEW)
        settled = file_of(report["settled"])
        assert settled == left.get("a")
        kept = {"rows": report["rows"], "items": report["items"]}
        assert kept == (
            {"rows": ["done"], "items": int(old is not None)} if settled == NEW else {"rows": [], "items": 0}
        )
        seen.append(settled)
    assert seen == sorted(seen, key=lambda text: text == NEW)
    assert {*seen} == {old, NEW}


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("change", "old"), [("write+undo", OLD), ("create+undo", None)])
def test_killed_undo_of_a_write(change: str, old: str | None) -> None:
    """A kill during an undo leaves the old or the new; undoing again brings the old back in either case."""
    for report in killed(change, 3):
        left = report["left"]
        assert isinstance(left, dict)
        assert left.get("a") in (old, NEW)
        file_of(report["settled"])
        assert (file_of(report["last"]), report["undone"], report["items"]) == (old, None, 0)


WHOLE = {"a": OLD, "folder": "/", "folder/deep": "/", "folder/deep/x": "x"}
GONE = {"a": OLD}


@pytest.mark.timeout(150)
def test_killed_trash() -> None:
    """After the next start a folder is in its place and whole, or gone and whole in the trash, and nothing lies beside it."""
    seen = set()
    for report in killed("trash", 5):
        settled = report["settled"]
        assert settled in (WHOLE, GONE)
        assert (report["rows"], report["items"]) == ((["done"], 1) if settled == GONE else ([], 0))
        seen.add(settled == GONE)
    assert seen == {True, False}


@pytest.mark.timeout(150)
def test_killed_undo_of_trash() -> None:
    """A kill while a folder is brought back loses nothing: it is back, or still in the trash and comes back by undoing again."""
    for report in killed("trash+undo", 5):
        assert report["settled"] in (WHOLE, GONE)
        assert report["last"] == WHOLE
        assert report["undone"] in (None, "CONFLICT")  # it was back, and the kill came before that was noted
