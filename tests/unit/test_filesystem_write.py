"""Files written by the filesystem driver: whole or not at all, where the user granted it, and taken back exactly."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.filesystem import atomic
from llmos.drivers.filesystem.driver import Filesystem
from llmos.drivers.sdk import Call, Code, DriverEnv, OpError

Make = Callable[..., Filesystem]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    notes = tmp_path / "home" / "Notes"
    notes.mkdir(parents=True)
    (tmp_path / "home" / "Private").mkdir()
    (tmp_path / "state").mkdir()
    return notes


@pytest.fixture
def make(tmp_path: Path, notes: Path) -> Iterator[Make]:
    """A driver that may change Notes; each call is a start of it."""
    made: list[Filesystem] = []

    def start(writable: tuple[Path, ...] = (notes,), **settings: Any) -> Filesystem:
        driver = Filesystem()
        home = tmp_path / "home"
        driver.setup(DriverEnv(tmp_path / "state", home, (home / "Private", *writable), writable, settings))
        made.append(driver)
        return driver

    yield start
    for driver in made:
        driver.close()


@pytest.fixture
def driver(make: Make) -> Filesystem:
    return make()


def refused(code: Code, match: str | None = None) -> Any:
    return pytest.raises(OpError, match=match, check=lambda error: error.code == code)


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A file system in memory, of its own."""
    command = ["mount", "-t", "tmpfs", *options, "none", str(place)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def copies(tmp_path: Path) -> list[str]:
    return names(tmp_path / "state" / "undo" / "items")


def test_write_modes(driver: Filesystem, notes: Path) -> None:
    """`replace` sets the whole content, `create` only a new file's, `append` adds; permission bits stay, nothing is left beside."""
    file = notes / "a.txt"
    assert driver.write(Call(), path="~/Notes/a.txt", content="one\n", mode="create")["created"] is True
    with refused(Code.CONFLICT, "exists"):
        driver.write(Call(), path="~/Notes/a.txt", content="two", mode="create")
    file.chmod(0o640)
    driver.write(Call(), path="~/Notes/a.txt", content="zwei ü\n", mode="append")
    assert file.read_text() == "one\nzwei ü\n"
    answer = driver.write(Call(), path="~/Notes/a.txt", content="three")
    assert (file.read_text(), answer["created"]) == ("three", False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert answer["items"][0]["path"] == str(file)
    assert names(notes) == ["a.txt"]


def test_write_undo_restores_exactly(make: Make, notes: Path, tmp_path: Path) -> None:
    """Bytes, permission bits and time of change come back, also after a restart of the driver; undoing again changes nothing."""
    file = notes / "a.bin"
    file.write_bytes(b"\xff\x00old\r\n")
    file.chmod(0o604)
    os.utime(file, ns=(1_600_000_000_000_000_001, 1_600_000_000_123_456_789))
    token = make().write(Call(), path=str(file), content="new")["undo"]
    again = make()
    again.undo(Call(), token=token)
    status = file.stat()
    assert file.read_bytes() == b"\xff\x00old\r\n"
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o604, 1_600_000_000_123_456_789)
    assert copies(tmp_path) == []
    file.write_text("later")
    assert again.undo(Call(), token=token)["undone"] == "write"
    assert file.read_text() == "later"


def test_write_undo_of_a_new_file_removes_it(driver: Filesystem, notes: Path) -> None:
    """What a write made is gone after its undo."""
    token = driver.write(Call(), path=str(notes / "a.txt"), content="x")["undo"]
    driver.undo(Call(), token=token)
    assert names(notes) == []


def test_write_undo_in_order(driver: Filesystem, notes: Path) -> None:
    """Of two writes the first cannot be undone before the second, and then it can."""
    file = notes / "a.txt"
    file.write_text("0")
    first, second = (driver.write(Call(), path=str(file), content=text)["undo"] for text in ("1", "2"))
    with refused(Code.CONFLICT):
        driver.undo(Call(), token=first)
    assert file.read_text() == "2"
    driver.undo(Call(), token=second)
    driver.undo(Call(), token=first)
    assert file.read_text() == "0"


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("how", ["content", "mode", "gone", "link"])
def test_write_undo_refuses_what_has_changed(driver: Filesystem, notes: Path, existed: bool, how: str) -> None:
    """A file that somebody changed since is left as it is, and the old content is kept."""
    file = notes / "a.txt"
    if existed:
        file.write_text("old")
    token = driver.write(Call(), path=str(file), content="new")["undo"]
    if how == "content":
        file.write_text("the user's own")
    elif how == "mode":
        file.chmod(0o600 if stat.S_IMODE(file.stat().st_mode) != 0o600 else 0o644)
    else:
        file.rename(notes / "elsewhere")
    if how == "link":
        file.symlink_to("elsewhere")
    before = {path.name: path.read_bytes() for path in notes.iterdir()}
    with pytest.raises(OpError, check=lambda error: error.code in (Code.CONFLICT, Code.DENIED)):
        driver.undo(Call(), token=token)
    assert {path.name: path.read_bytes() for path in notes.iterdir()} == before
    if how == "mode":
        return
    (notes / "elsewhere").replace(file) if how in ("gone", "link") else file.write_text("new")
    driver.undo(Call(), token=token)
    assert (file.read_text() if existed else file.exists()) == ("old" if existed else False)


def test_write_sees_who_was_faster(
    driver: Filesystem, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file saved by an editor between the copy and the swap is not overwritten."""
    file = notes / "a.txt"
    file.write_text("old")
    fill = atomic.fill

    def fill_late(folder: int, temporary: str, content: atomic.Content) -> int:
        mode = fill(folder, temporary, content)
        if temporary.startswith(".llmos-"):
            text = content.data.decode()[-3:]
            (notes / "saved").write_text("the editor's" + text)
            (notes / "saved").replace(notes / "b.txt" if text == "abc" else file)
        return mode

    monkeypatch.setattr("llmos.drivers.filesystem.changes.fill", fill_late)
    with refused(Code.CONFLICT, "somebody else"):
        driver.write(Call(), path=str(file), content="new")
    assert file.read_text() == "the editor'snew"
    with refused(Code.CONFLICT, "somebody else"):
        driver.write(Call(), path=str(file), content="add", mode="append")
    with refused(Code.CONFLICT, "somebody else"):
        driver.write(Call(), path=str(notes / "b.txt"), content="abc", mode="create")
    assert [(notes / name).read_text() for name in names(notes)] == ["the editor'sadd", "the editor'sabc"]
    assert copies(tmp_path) == []


def test_write_only_where_it_was_granted(make: Make, driver: Filesystem, notes: Path, tmp_path: Path) -> None:
    """What may only be read, what lies outside and what the caller's scope leaves out is refused, with the grant that would help."""
    for path in ("~/Private/x.txt", "~/x.txt", "/etc/x", "~/Notes/../x.txt"):
        with pytest.raises(OpError, match="may be changed") as caught:
            driver.write(Call(), path=path, content="x")
        assert (caught.value.code, "'fs.write(path=" in str(caught.value.hint)) == (Code.DENIED, True)
    (notes / "mine").mkdir()
    call = Call(scope={"path": [str(notes / "mine")]})
    driver.write(call, path="~/Notes/mine/a.txt", content="x")
    with refused(Code.DENIED):
        driver.write(call, path="~/Notes/a.txt", content="x")
    one = Call(scope={"path": [str(notes / "one.txt")]})
    driver.write(one, path="~/Notes/one.txt", content="x")
    with refused(Code.DENIED):
        driver.write(one, path="~/Notes/two.txt", content="x")
    single = make(writable=(notes / "one.txt",))
    with refused(Code.INVALID_ARGUMENT, "itself what was granted"):
        single.write(Call(), path="~/Notes/one.txt", content="y")
    token = driver.write(Call(), path="~/Notes/a.txt", content="x")["undo"]
    with refused(Code.DENIED, "any more"):
        make(writable=()).undo(Call(), token=token)


def test_write_follows_no_link(driver: Filesystem, notes: Path, tmp_path: Path) -> None:
    """Neither a link in the place of the file nor one on the way to it is written through, wherever it leads."""
    outside = tmp_path / "home" / "Private"
    (outside / "secret").write_text("secret")
    (notes / "real").mkdir()
    (notes / "real" / "x").write_text("x")
    (notes / "file").symlink_to(outside / "secret")
    (notes / "inner").symlink_to("real/x")
    (notes / "out").symlink_to(outside)
    (notes / "in").symlink_to("real")
    for path in ("file", "inner", "out/secret", "out/new", "in/x", "in/new"):
        for act in (driver.write, driver._preview_write):
            with refused(Code.DENIED):
                act(Call(), path=f"~/Notes/{path}", content="y")
    assert (outside / "secret").read_text() == "secret"
    assert names(outside) == ["secret"]
    assert (notes / "real" / "x").read_text() == "x"


def test_write_survives_a_race_of_links(driver: Filesystem, notes: Path, tmp_path: Path) -> None:
    """While a file and its folder are swapped with links to the outside all the time, nothing is ever written outside."""
    outside = tmp_path / "home" / "Private"
    (outside / "x").write_text("secret")
    (notes / "now").mkdir()
    (notes / "trap").symlink_to(outside)
    (notes / "link").symlink_to(outside / "x")
    stop = threading.Event()

    def swap() -> None:
        folder = os.open(notes, os.O_RDONLY)
        while not stop.is_set():
            for one, other in (("now", "trap"), ("y", "link")) * 2:
                with contextlib.suppress(OSError):
                    atomic._renameat2(folder, one, other, 2)
                time.sleep(random.uniform(0, 0.003))
        os.close(folder)

    (notes / "y").write_text("mine")
    thread = threading.Thread(target=swap)
    thread.start()
    codes: set[Code] = set()
    done = {"ok": 0, "refused": 0}
    try:
        end = time.monotonic() + 10
        while min(done.values()) <= 30 and time.monotonic() < end:
            for path in ("now/x", "y"):
                try:
                    driver.write(Call(), path=f"~/Notes/{path}", content=f"{done}")
                    done["ok"] += 1
                except OpError as error:
                    codes.add(error.code)
                    done["refused"] += 1
    finally:
        stop.set()
        thread.join()
    assert (outside / "x").read_text() == "secret"
    assert names(outside) == ["x"]
    assert codes <= {Code.DENIED, Code.CONFLICT, Code.NOT_FOUND, Code.INVALID_ARGUMENT}
    assert sorted({*names(notes), "y"}) == ["link", "now", "trap", "y"]
    assert min(done.values()) > 10, f"the race was not met: {done}"


def test_write_refuses_what_it_could_not_put_back(
    driver: Filesystem, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders, FIFOs, files of several names, set-user-ID ones, missing folders, and binary ones when adding stay untouched."""
    (notes / "folder").mkdir()
    os.mkfifo(notes / "pipe")
    (notes / "one").write_text("x")
    os.link(notes / "one", notes / "two")
    (notes / "suid").write_text("x")
    (notes / "suid").chmod(0o4755)
    (notes / "bin").write_bytes(b"\0\1")
    before = names(notes)
    for path in ("folder", "pipe", "one", "suid", ""):
        with refused(Code.INVALID_ARGUMENT):
            driver.write(Call(), path=f"~/Notes/{path}", content="y")
    with refused(Code.INVALID_ARGUMENT, "not UTF-8 text"):
        driver.write(Call(), path="~/Notes/bin", content="y", mode="append")
    with refused(Code.NOT_FOUND):
        driver.write(Call(), path="~/Notes/none/x", content="y")
    for text in ("\0", "\ud800"):
        with refused(Code.INVALID_ARGUMENT, "content"):
            driver.write(Call(), path="~/Notes/new", content=text)
    monkeypatch.setattr(atomic, "MAX_FILE", 10)
    (notes / "big").write_text("12345678901")
    with refused(Code.TOO_LARGE):
        driver.write(Call(), path="~/Notes/big", content="y")
    assert names(notes) == sorted([*before, "big"])
    assert ((notes / "one").read_text(), (notes / "bin").read_bytes()) == ("x", b"\0\1")


def test_write_two_at_once(driver: Filesystem, notes: Path) -> None:
    """Appends from several threads are all there, each whole, and each can be undone from the last on."""
    tokens: list[str] = []

    def append(letter: str) -> None:
        text = letter * 2000 + "\n"
        tokens.extend(driver.write(Call(), path="~/Notes/log", content=text, mode="append")["undo"] for _ in range(10))

    threads = [threading.Thread(target=append, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (notes / "log").read_text().splitlines()
    assert sorted(lines) == [letter * 2000 for letter in "abcd" for _ in range(10)]
    assert len(set(tokens)) == 40


FULL = """
import os, resource, signal, sys
from pathlib import Path
from llmos.drivers.filesystem.driver import Filesystem
from llmos.drivers.sdk import Call, DriverEnv, OpError
state, notes, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
driver = Filesystem()
driver.setup(DriverEnv(state, notes, (notes,), (notes,)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    driver.write(Call(), path=str(notes / "a.txt"), content="n" * 50_000, mode=sys.argv[4])
except OpError as error:
    print(error.code, error.detail)
"""


@pytest.mark.parametrize("limit", [30_000, 100_000])
def test_write_on_a_full_disk_changes_nothing(notes: Path, tmp_path: Path, make: Make, limit: int) -> None:
    """Where the new content, or the copy of the old, does not fit, the file stays as it was, and nothing is left beside it."""
    (notes / "a.txt").write_text("o" * 20_000 if limit < 50_000 else "o" * 120_000)
    before = (notes / "a.txt").read_bytes()
    command = [sys.executable, "-c", FULL, str(tmp_path / "state"), str(notes), str(limit), "replace"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert out.startswith("UNAVAILABLE"), out
    assert "nothing was changed" in out or "cannot be written" in out
    assert (notes / "a.txt").read_bytes() == before
    assert names(notes) == ["a.txt"]
    make()
    assert copies(tmp_path) == []


@pytest.mark.parametrize("full", ["notes", "state"])
def test_write_without_space_changes_nothing(make: Make, notes: Path, tmp_path: Path, full: str) -> None:
    """On a disk without space, the user's or the driver's own, the file stays; with space again, all works."""
    place = notes if full == "notes" else tmp_path / "state"
    with mounted(place, "-o", "size=400k"):
        (notes / "a.txt").write_text("o" * 50_000)
        driver = make()
        with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(bytes(4096)):
                pass
        with refused(Code.UNAVAILABLE):
            driver.write(Call(), path="~/Notes/a.txt", content="n" * 55_000)
        if full == "state":
            with refused(Code.UNAVAILABLE):
                driver.move_to_trash(Call(), path="~/Notes/a.txt")
        assert {name for name in names(notes) if name != "ballast"} == {"a.txt"}
        assert (notes / "a.txt").read_text() == "o" * 50_000
        (place / "ballast").unlink()
        driver.close()
        driver = make()
        assert copies(tmp_path) == []
        token = driver.write(Call(), path="~/Notes/a.txt", content="n" * 55_000)["undo"]
        driver.undo(Call(), token=token)
        assert (notes / "a.txt").read_text() == "o" * 50_000
        driver.close()


def test_write_copies_are_bounded(make: Make, notes: Path, tmp_path: Path) -> None:
    """The oldest copies go when the bound is reached or their days are over; what can never fit is refused, untouched."""
    driver = make(undo_mb=1)
    file = notes / "a.txt"
    file.write_text("x" * 300_000)
    tokens = [driver.write(Call(), path=str(file), content=str(n) * 300_000)["undo"] for n in range(6)]
    assert len(copies(tmp_path)) == 3
    with refused(Code.NOT_FOUND):
        driver.undo(Call(), token=tokens[0])
    for token in reversed(tokens[-3:]):
        driver.undo(Call(), token=token)
    assert file.read_text() == "2" * 300_000
    file.write_text("x" * 1_100_000)
    with refused(Code.TOO_LARGE, "undo"):
        driver.write(Call(), path=str(file), content="y")
    assert file.read_text() == "x" * 1_100_000
    token = driver.write(Call(), path=str(notes / "b"), content="y")["undo"]
    late = make(undo_days=0)
    with refused(Code.NOT_FOUND):
        late.undo(Call(), token=token)


def test_undo_guessed_token(driver: Filesystem) -> None:
    """A token that was never given is not found."""
    for token in ("", "x", "../../etc", "0" * 32):
        with refused(Code.NOT_FOUND):
            driver.undo(Call(), token=token)


def test_nested_grants_are_all_within_reach(tmp_path: Path) -> None:
    """A folder mounted inside another, as a jail shows a writable one inside a readable one, is read and listed by itself."""
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    with mounted(inner):
        (inner / "a.txt").write_text("x")
        driver = Filesystem()
        (tmp_path / "state").mkdir()
        driver.setup(DriverEnv(tmp_path / "state", tmp_path, (outer, inner), (inner,)))
        assert driver.read(Call(), path=str(inner / "a.txt"))["items"][0]["text"] == "x"
        assert [item["title"] for item in driver.search(Call(), query="a.txt")["items"]] == ["a.txt"]
        driver.write(Call(), path=str(inner / "a.txt"), content="y")
        assert (inner / "a.txt").read_text() == "y"
        driver.close()
