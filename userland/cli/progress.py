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
    """A function to report to, until the block ends."""
    if not sys.stderr.isatty():
        yield _line_per_stage()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total or None)

        yield report


def _line_per_stage() -> Report:
    seen: set[str] = set()

    def report(what: str, _done: int, total: int) -> None:
        if what not in seen:
            seen.add(what)
            note(f"{what} ({total / 1e6:.0f} MB)" if total else what)

    return report
