"""`top`: what the models do and what every process uses, as it changes."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmos.ipc.errors import OpError
from llmos.userland.cli import process, session, system
from llmos.userland.cli.output import Column, Format, Output, rows
from llmos.userland.visible import visible

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from llmos.userland.sdk import Client


class Sort(StrEnum):
    """What `--sort` takes."""

    CPU = "cpu"
    MEMORY = "memory"
    DISK = "disk"
    CALLS = "calls"
    PID = "pid"


COLUMNS = (
    Column("pid", right=True),
    Column("name"),
    Column("state"),
    Column("%", lambda row: row["cpu_pct"], right=True),
    Column("mb", lambda row: _of_limit(process.memory(row), row, "pss_mb"), right=True),
    Column("disk", lambda row: _of_limit(row["disk_mb"], row, "disk_mb"), right=True),
    Column("threads", right=True),
    Column("cpu", lambda row: f"{row['cpu_s']:.1f} s", right=True),
    Column("calls", right=True),
    Column("restarts", right=True),
    Column("up", lambda row: system.since(row["started"]), right=True),
    Column("status"),
)
_KEYS = {
    Sort.CPU: lambda row: (-row["cpu_pct"], -row["cpu_s"]),
    Sort.MEMORY: lambda row: -process.memory(row),
    Sort.DISK: lambda row: -row["disk_mb"],
    Sort.CALLS: lambda row: -row["calls"],
    Sort.PID: lambda row: row["pid"],
}


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: llmosctl top --sort memory -n 1")(top)


def top(
    count: Annotated[int, typer.Option("-n", "--count", min=0, help="End after so many looks; 0 for never.")] = 0,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2, max=60)] = 2.0,
    sort: Annotated[Sort, typer.Option(help="What uses most of it comes first.")] = Sort.CPU,
    output: Output = Format.TABLE,
) -> None:
    """Show what the models do and what every process uses, again and again until q or Ctrl-C; once where the output is not a terminal.

    Above the processes: jobs that run and wait by class, contexts, tokens per second, memory for KV and how much of all prompts was
    found in the cache. % is of one processor since the look before; MB and DISK stand before what the process may have.
    """
    with session.connect() as client:
        found = _sorted(process.processes(client), sort)
        if count == 1 or output is not Format.TABLE or not sys.stdout.isatty():
            if output is Format.TABLE:
                print(*_block(client), "", sep="\n")
            rows(found, COLUMNS, output)
            return
        from rich.live import Live

        with _keys() as pressed, Live(_screen(found, _block(client)), auto_refresh=False, screen=True) as live:
            looks, last = 1, time.monotonic()
            while count == 0 or looks < count:
                if pressed(every) in ("q", "Q", "\x04"):
                    return
                now = time.monotonic()
                seen = _since(process.processes(client), found, now - last)
                found, last, looks = _sorted(seen, sort), now, looks + 1
                live.update(_screen(found, _block(client)), refresh=True)


def _sorted(found: list[dict[str, Any]], sort: Sort) -> list[dict[str, Any]]:
    return sorted(found, key=_KEYS[sort])


def _since(found: list[dict[str, Any]], before: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """The rows, with the share of a processor since those before where that is known better than the kernel does."""
    known = {(row["pid"], row["started"]): row["cpu_s"] for row in before}
    for row in found:
        used = row["cpu_s"] - known.get((row["pid"], row["started"]), row["cpu_s"])
        if used > 0:
            row["cpu_pct"] = round(100 * used / max(seconds, 0.1))
    return found


def _block(client: Client) -> list[str]:
    """What the models do, in a few lines; nothing for who may not see it."""
    try:
        return block(client.call("llm.stats", timeout=5))
    except OpError:
        return []


def block(stats: Mapping[str, Any]) -> list[str]:
    """The lines above the processes, of `llm.stats`."""
    waiting = {row["class"]: row["new"] + row["prefill"] + row["parked"] for row in stats["jobs"]}
    decoding = sum(row["decode"] for row in stats["jobs"])
    queued = ", ".join(f"{count} {name}" for name, count in waiting.items())
    rate, kv = stats["tokens_s"], stats["kv"]
    held, limit, spilled = (size / 1e6 for size in (kv["rows"] + kv["cache"], kv["limit"], kv["spilled"]))
    models = ", ".join(f"{one['name']} ({_how(one)})" for one in stats["models"]) or "none"
    return [
        f"models    {visible(models)}",
        f"jobs      {stats['running']} in this turn, {decoding} decode; waiting or reading: {queued}",
        f"tokens/s  {rate['decode']:.0f} decode, {rate['prefill']:.0f} prefill; contexts {stats['contexts']}",
        f"KV        {held:.0f} of {limit:.0f} MB, {spilled:.0f} MB on disk; {100 * stats['hit_rate']:.0f} % of prompts from the cache",
    ]


def _how(model: Mapping[str, Any]) -> str:
    if model["state"] != "ready" or not model["engine"]:
        return str(model["state"])
    return f"{model['engine']}, {model['provider']}"


def _screen(found: list[dict[str, Any]], lines: list[str]) -> Group:
    from rich.console import Group
    from rich.text import Text

    return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines), _table(found))


def _of_limit(value: float, row: Any, name: str) -> str:
    limit = row.get("limits", {}).get(name)
    return f"{value:.0f}/{limit:.0f}" if limit else f"{value:.0f}"


def _table(found: list[dict[str, Any]]) -> Table:
    from rich import box, table
    from rich.text import Text

    total = sum(process.memory(row) for row in found)
    busy = sum(row["cpu_pct"] for row in found)
    title = f"llmos: {len(found)} processes, {total:.0f} MB, {busy} % of a processor; q ends"
    made = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for column in COLUMNS:
        side: Literal["left", "right"] = "right" if column.right else "left"
        made.add_column(column.title.upper(), justify=side, no_wrap=True, overflow="ellipsis")
    for row in found:
        made.add_row(*(Text(column.text(row)) for column in COLUMNS))
    return made


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits for a key at most so many seconds, and gives it; without a terminal to type at it only waits."""
    if not sys.stdin.isatty():
        yield time.sleep
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([fd], [], [], seconds)
        return os.read(fd, 1).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
