"""Progress of something long, on stderr: a bar on a terminal, one line per stage otherwise."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from llmos.userland.cli.output import note

Report = Callable[[str, int, int], None]
"""What is being done, how many bytes of it are done, and how many there are (0: unknown)."""


@contextlib.contextmanager
def shown() -> Iterator[Report]:
    """A function to report to, until the block ends. What begins with the same word and has the same size is one stage."""
    if not sys.stderr.isatty():
        yield _line_per_stage()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[tuple[str, int], TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            stage = _stage(what, total)
            if stage not in tasks:
                tasks[stage] = bar.add_task(what)
            bar.update(tasks[stage], description=what, completed=done, total=total or None)

        yield report


def _line_per_stage() -> Report:
    seen: set[tuple[str, int]] = set()

    def report(what: str, _done: int, total: int) -> None:
        stage = _stage(what, total)
        if stage not in seen:
            seen.add(stage)
            note(f"{what} ({total / 1e6:.1f} MB)" if total else what)

    return report


def _stage(what: str, total: int) -> tuple[str, int]:
    return what.partition(" ")[0], total
