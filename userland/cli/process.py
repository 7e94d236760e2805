"""`ps`, `spawn`, `kill`, `logs`: processes."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from llmos.ipc.connection import Unreachable
from llmos.userland.cli import arguments, session, system
from llmos.userland.cli.output import Column, Format, Output, line_json, note, print_json, record, rows

FOLLOW_S = 0.3
"""Seconds between two looks at a log that is followed."""

COLUMNS = (
    Column("pid", right=True),
    Column("name"),
    Column("kind"),
    Column("state"),
    Column("up", lambda row: system.since(row["started"]), right=True),
    Column("mb", lambda row: f"{row['rss_mb']:.0f}", right=True),
    Column("cpu", lambda row: f"{row['cpu_s']:.1f} s", right=True),
    Column("calls", right=True),
    Column("restarts", right=True),
    Column("status"),
)


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: llmosctl ps -o json")(ps)
    app.command(epilog="Example: llmosctl spawn assistant question='what did I read?' --wait")(spawn)
    app.command(epilog="Example: llmosctl kill 5")(kill)
    app.command(epilog="Example: llmosctl logs browser_history -n 50 -f")(logs)


def ps(output: Output = Format.TABLE) -> None:
    """List the processes of the system."""
    rows(session.ask_kernel("proc.list", timeout=5)["processes"], COLUMNS, output)


def spawn(
    program: Annotated[str, typer.Argument(help="Name of an installed agent.")],
    values: Annotated[list[str] | None, typer.Argument(metavar="k=v…", help="Its arguments.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="A capability it is born with, in place of what it requests; may be repeated."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for its result and print that.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Start an agent.

    Without --allow it gets the capabilities that its manifest requests; with it exactly those named.
    """
    args = arguments.literals(values or [])
    with session.connect() as client:
        if not wait:
            pid = client.spawn(program, args, allow=allow)
            if output is Format.TABLE:
                print(pid)
            else:
                record({"pid": pid}, output)
            return
        with session.cancelling(client, client.spawn(program, args, allow=allow, wait=True)) as run:
            for data in run:
                if output is Format.JSONL:
                    line_json(data)
                else:
                    note(" ".join(f"{key}={value}" for key, value in data.items()))
        result: dict[str, Any] = run.result["result"]
    (line_json if output is Format.JSONL else print_json)(result)


def kill(
    pid: Annotated[int, typer.Argument(help="See `llmosctl ps`.")],
    force: Annotated[bool, typer.Option(help="At once, without the two seconds to end in order.")] = False,
) -> None:
    """End a process. Drivers and the system's own come back."""
    session.ask_kernel("proc.kill", {"pid": pid, "force": force}, timeout=5)


def logs(
    name: Annotated[str, typer.Argument(help="A process, or `kernel`.")] = "kernel",
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=1000, help="How many, from the end.")] = 100,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes, until Ctrl-C.")] = False,
) -> None:
    """Show what a process wrote to its log, oldest first."""
    with session.connect() as client:
        try:
            seen = client.call("proc.logs", name=name, lines=1000, timeout=5)["lines"]
        except Unreachable:
            path = system.log_file()
            if name != "kernel" or not path.exists():
                raise
            seen = path.read_text(errors="replace").splitlines()
            follow = False
        for line in seen[-lines:]:
            print(line, flush=True)
        while follow:
            time.sleep(FOLLOW_S)
            now = client.call("proc.logs", name=name, lines=1000, timeout=5)["lines"]
            for line in fresh(seen, now):
                print(line, flush=True)
            seen = now


def fresh(seen: list[str], now: list[str]) -> list[str]:
    """The lines of `now` that came after `seen`, both being tails of one growing log; all of them when none is known."""
    for end in range(len(now), 0, -1):
        both = min(end, len(seen))
        if both and now[end - both : end] == seen[-both:]:
            return now[end:]
    return now
