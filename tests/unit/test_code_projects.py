"""Projects, alone: their labels, their hostile files, the output of a program."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc.errors import Code, OpError
from llmos.kernel import code_files, params
from llmos.kernel.code import CodeRuns
from llmos.kernel.code_projects import Projects
from llmos.kernel.code_run import Output
from llmos.kernel.code_usage import Usage, look
from llmos.kernel.journal import Journal
from llmos.kernel.labels import BOTTOM, TOP, Label
from llmos.kernel.loop import Loop

MAIL = Label.make("untrusted", ["mail"])

_T = TypeVar("_T")


def through(steps: Generator[None, None, _T]) -> _T:
    """What it returns, after all its steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            returned: _T = end.value
            return returned


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path.resolve() / "code"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.db")
    yield made
    made.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[int]:
    """A directory, by descriptor."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_a_label_outlives_the_kernel_and_never_falls(root: Path, journal: Journal) -> None:
    """What was put into a project once is in its label until the project is removed; the next of its name has none."""
    projects = Projects(root, journal)
    assert projects.enter("p", BOTTOM).label == BOTTOM
    assert projects.enter("p", MAIL).label == MAIL
    assert projects.enter("p", BOTTOM).label == MAIL
    projects.close()
    again = Projects(root, journal)
    assert again.label("p") == MAIL
    again.remove("p")
    assert not (root / "p").exists()
    assert again.enter("p", BOTTOM).label == BOTTOM
    again.close()


def test_a_directory_that_nothing_is_known_of_may_hold_anything(root: Path, journal: Journal) -> None:
    """Its label is the highest."""
    (root / "found").mkdir(parents=True)
    projects = Projects(root, journal)
    assert projects.enter("found", BOTTOM).label == TOP
    projects.close()


def test_there_are_so_many_projects(root: Path, journal: Journal) -> None:
    """One more is BUSY, and leaves nothing."""
    projects = Projects(root, journal)
    for number in range(params.CODE_PROJECTS):
        projects.enter(f"p{number}", BOTTOM)
    with pytest.raises(OpError) as caught:
        projects.enter("more", MAIL)
    assert caught.value.code is Code.BUSY
    assert not (root / "more").exists()
    projects.close()


def test_a_scan_stops_at_its_bounds_and_yields_on_the_way(tmp_path: Path, place: int) -> None:
    """However many entries there are, only so many are looked at, a slice at a time."""
    for number in range(params.CODE_FILES + 50):
        (tmp_path / str(number)).touch()
    steps = code_files.scan(place)
    for _ in range(params.CODE_FILES // params.CODE_SLICE):
        next(steps)
    found = through(steps)
    assert "files" in found.over
    assert len(found.files) <= params.CODE_FILES


def test_two_scans_at_once_each_see_everything(tmp_path: Path, place: int) -> None:
    """They share a descriptor, and not its position."""
    for number in range(3 * params.CODE_SLICE):
        (tmp_path / str(number)).touch()
    one, other = code_files.scan(place), code_files.scan(place)
    next(one)
    next(other)
    assert len(through(one).files) == len(through(other).files) == 3 * params.CODE_SLICE


def test_a_file_is_replaced_as_a_whole_or_not_at_all(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written leaves the old file, and nothing beside it."""
    code_files.write(place, "d/f", b"old", append=False)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OpError) as caught:
        code_files.write(place, "d/f", b"new", append=False)
    assert caught.value.code is Code.UNAVAILABLE
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["f"]
    assert (tmp_path / "d/f").read_bytes() == b"old"


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 120))
def test_output_is_decoded_across_blocks_up_to_its_limit(blocks: list[bytes], limit: int) -> None:
    """However the bytes come, the text is that of the first `limit` bytes, and more than those is told."""
    read, write = os.pipe()
    output = Output("stdout", os.fdopen(read, "rb"), limit)
    text = ""
    for block in blocks:
        if block and not output.ended:
            os.write(write, block)
            text += output.take()
    os.close(write)
    while not output.ended:
        text += output.take()
    whole = b"".join(blocks)
    kept = whole[:limit]
    assert output.over == (len(whole) > limit)
    assert text == (kept.decode(errors="replace") if not output.over else text)
    assert kept.decode(errors="replace").startswith(text)
    assert output.text == text
    output.pipe.close()


def test_the_answer_repeats_the_head_of_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more bytes than an answer has room for, whole characters, and told to be cut."""
    monkeypatch.setattr(params, "CODE_TEXT", 7)
    read, write = os.pipe()
    output = Output("stdout", os.fdopen(read, "rb"), 1000)
    os.write(write, "üüü".encode())
    output.take()
    assert not output.cut
    os.write(write, "üüü".encode())
    os.close(write)
    while not output.ended:
        output.take()
    assert (output.text, output.cut) == ("üüü", True)
    output.pipe.close()


def test_output_that_nobody_holds_and_that_stays_open_ends_with_the_program() -> None:
    """A pipe in flight in a socket that is in flight in itself is open without a process: the kernel does not wait for its end."""
    read, write = os.pipe()
    os.write(write, b"said")
    said: list[str] = []
    runs = object.__new__(CodeRuns)
    runs._loop = Loop()
    runs.told_by = lambda *_: (BOTTOM, None)  # type: ignore[method-assign, assignment]
    runs._forget = lambda run: None  # type: ignore[method-assign]
    call = SimpleNamespace(chunk=lambda chunk, *_: said.append(chunk["text"]), done=True)
    with os.fdopen(read, "rb") as pipe:
        output = Output("stdout", pipe, 100)
        ended = SimpleNamespace(
            started=0.0, outputs=[output], args=SimpleNamespace(project="p", output_bytes=100), call=call
        )
        ended.end_by = ended.take_report = lambda *_: None
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(20)
        try:
            runs._gone(ended)  # type: ignore[arg-type]
        finally:
            signal.alarm(0)
    os.close(write)
    assert said == ["said"]
    assert ended.over


def test_a_program_of_many_processes_is_looked_at_a_little_at_a_time(tmp_path: Path) -> None:
    """And to the last of them: the loop goes on in between, and what each holds that it has deleted is found."""
    read, write = os.pipe()
    here = tmp_path.stat().st_dev
    children = []
    for _ in range(9):
        child = os.fork()
        if not child:
            file = tmp_path / str(os.getpid())
            os.write(os.open(file, os.O_RDWR | os.O_CREAT), bytes(1 << 20))
            file.unlink()
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        children.append(child)
    try:
        held, steps = 0, 0
        for _ in range(1000):
            steps, looking = 0, look(os.getpid(), here, Usage())
            try:
                while True:
                    next(looking)
                    steps += 1
            except StopIteration as end:
                held = end.value.held_bytes
            if held >= 9 << 20:
                break
            time.sleep(0.01)
        assert held >= 9 << 20
        assert steps >= 2
    finally:
        os.close(write)
        for child in children:
            os.waitpid(child, 0)
