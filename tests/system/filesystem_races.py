"""Reads of granted folders while other processes rename, link and swap beneath them; no read may show what was not granted.

python -m tests.system.filesystem_races [--reads N]        (figures in build/figures)

The reads are the driver's own ops. The control is what the driver does not do: `realpath`, a check, and an open by name.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from llmos.drivers.filesystem.driver import Filesystem
from llmos.drivers.sdk import Call, DriverEnv, OpError

SECRET, MINE = "the-secret", "what is mine"
_EXCHANGE = 2
_SEARCH_EVERY = 50
"""A search walks the whole tree and reads every file: one for so many other reads."""


def scene(top: Path) -> None:
    """`root` is granted and `root/own` the caller's scope. Secrets lie beside the root, and in the root beside the scope."""
    for folder in (
        "root/own/real/deep",
        "root/own/spare",
        "root/neighbour/deep",
        "outside/deep",
        "outside/own/now/deep",
        "roots",
    ):
        (top / folder).mkdir(parents=True)
    secrets = ("root/neighbour", "outside", "outside/own/now")
    for folder, text in (("root/own/real", MINE), *((folder, SECRET) for folder in secrets)):
        for name in ("file.txt", "deep/file.txt"):
            (top / folder / name).write_text(text)
        (top / folder / f"named-{text.replace(' ', '-')}.txt").write_text(text)
    own = top / "root/own"
    (own / "real").rename(own / "now")
    (own / "to-outside").symlink_to(top / "outside")
    (own / "to-neighbour").symlink_to("../neighbour")
    (own / "to-dots").symlink_to("now/../../../outside")
    (own / "plain.txt").write_text(MINE)
    (own / "link.txt").symlink_to(top / "outside/file.txt")
    (own / "second.txt").hardlink_to(own / "plain.txt")
    (top / "roots/trap").symlink_to(top / "outside")


def race(top: Path, kind: str) -> None:
    """Change names for ever, in one of these ways."""
    swap, own = _exchange(), top / "root/own"
    sys.stdout.write("x")
    sys.stdout.flush()
    while True:
        with suppress(OSError):
            if kind == "directories":
                for trap in ("to-outside", "to-neighbour", "to-dots"):
                    swap(own / "now", own / trap)
                    swap(own / "now", own / trap)
            elif kind == "files":
                swap(own / "plain.txt", own / "link.txt")
                swap(own / "plain.txt", own / "link.txt")
                (own / "second.txt").unlink()
                (own / "second.txt").symlink_to("../neighbour/file.txt")
                (own / "second.txt").unlink()
                (own / "second.txt").hardlink_to(own / "plain.txt")
            elif kind == "moves":  # a folder that somebody is in the middle of goes elsewhere, and its `..` with it
                (own / "now/deep").rename(top / "outside/moved")
                (top / "outside/moved").rename(own / "now/deep")
            else:
                swap(top / "root", top / "roots/trap")
                swap(top / "root", top / "roots/trap")


def _exchange() -> Callable[[Path, Path], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def swap(one: Path, other: Path) -> None:
        if libc.renameat2(-100, bytes(one), -100, bytes(other), _EXCHANGE) < 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    return swap


KINDS = ("directories", "files", "moves", "root")


@contextmanager
def racing(top: Path, kind: str) -> Iterator[None]:
    """Two other processes that do it, and are at it."""
    with ExitStack() as left:
        for _ in range(2):
            command = [sys.executable, "-m", __spec__.name, "--race", kind, "--top", str(top)]
            process = left.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            left.callback(process.kill)
            assert process.stdout is not None
            process.stdout.read(1)
        yield


def by_the_driver(top: Path) -> Generator[str, None, None]:
    """What each of the driver's reads shows, and the error's code where it shows nothing; without end."""
    driver = Filesystem()
    state = top / "state"
    state.mkdir()
    driver.setup(DriverEnv(state=state, home=top, roots=(top / "root",)))
    call = Call(scope={"path": [f"{top}/root/own"]})
    own = f"{top}/root/own"
    reads: list[Callable[[], object]] = [
        lambda: driver.read(call, path=f"{own}/now/file.txt"),
        lambda: driver.read(call, path=f"{own}/plain.txt"),
        lambda: driver.list(call, path=f"{own}/now"),
        lambda: driver.read(call, path=f"{own}/now/deep/file.txt"),
        lambda: driver.read(call, path=f"{own}/second.txt"),
        lambda: driver.list(call, path=f"{own}/now/deep"),
    ]
    rounds = reads * _SEARCH_EVERY
    rounds.append(lambda: driver.search(call, query="secret mine"))
    try:
        while True:
            for read in rounds:
                try:
                    yield str(read())
                except OpError as error:
                    yield error.code.value
    finally:
        driver.close()


def by_name(top: Path) -> Generator[str, None, None]:
    """The control: the same files, their real path looked up and checked, then opened; without end."""
    own = f"{top}/root/own"
    paths = [f"{own}/{name}" for name in ("now/file.txt", "plain.txt", "now/deep/file.txt", "second.txt")]
    while True:
        for path in paths:
            try:
                if not os.path.realpath(path).startswith(own + "/"):
                    yield "DENIED"
                    continue
                yield Path(path).read_text()
            except OSError as error:
                yield type(error).__name__


def measure(reads: Iterator[str], count: int) -> Counter[str]:
    """Of so many reads: how many leaked the secret, showed what is granted, or were refused."""
    seen: Counter[str] = Counter()
    for _, shown in zip(range(count), reads, strict=False):
        seen["leaked" if SECRET in shown else "shown" if MINE in shown or "deep" in shown else "refused"] += 1
    return seen


def run(count: int, reader: Callable[[Path], Generator[str, None, None]]) -> tuple[Counter[str], float]:
    """Such reads in each kind of race: what became of them, and the seconds it took."""
    total: Counter[str] = Counter()
    took = 0.0
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            top = Path(folder).resolve()
            scene(top)
            with closing(reader(top)) as reads, racing(top, kind):
                started = time.monotonic()
                total += measure(reads, count // len(KINDS))
                took += time.monotonic() - started
    return total, took


def main() -> int:
    """The campaign."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reads", type=int, default=120_000)
    parser.add_argument("--race", choices=KINDS)
    parser.add_argument("--top", type=Path)
    options = parser.parse_args()
    if options.race:
        race(options.top, options.race)
    from tests.bench.figures import report

    ours, took = run(options.reads, by_the_driver)
    control, _ = run(options.reads, by_name)
    report(
        "filesystem_races",
        {
            "reads": ours.total(),
            "leaks": ours["leaked"],
            "shown": ours["shown"],
            "refused": ours["refused"],
            "seconds": took,
            "control_reads": control.total(),
            "control_leaks": control["leaked"],
        },
    )
    return 0 if not ours["leaked"] and control["leaked"] and ours["shown"] and ours["refused"] else 1


if __name__ == "__main__":
    sys.exit(main())
