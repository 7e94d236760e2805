"""`audit`: what was decided and done, and whether the log of it is whole."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from llmos.ipc.errors import Code, OpError
from llmos.userland.cli import failure, session
from llmos.userland.cli.output import Column, Format, Output, Record, note, record, rows
from llmos.userland.sdk import Client
from llmos.userland.visible import visible

app = typer.Typer(name="audit", help="See what was decided and done.", no_args_is_help=True)


class Kind(StrEnum):
    """What `--kind` takes."""

    BOOT = "boot"
    GRANT = "grant"
    DENIAL = "denial"
    APPROVAL = "approval"
    EFFECT = "effect"
    LABEL = "label"


_CALLS = {
    Kind.EFFECT.value: re.compile(r"call (?P<call>\d+)(?:, (?P<rest>.*))?", re.DOTALL),
    Kind.LABEL.value: re.compile(r"(?P<rest>.*), call (?P<call>\d+)", re.DOTALL),
}
"""Details that name a call; nowhere else is one looked for, as words of strangers may stand there."""
VERIFY_S = 600.0
"""Seconds the whole chain may take to be recomputed."""

Report = Callable[[int, int], None]
"""Rows done, rows there are."""


@app.command(epilog="Example: llmosctl audit ls --kind denial --since '2 hours ago'")
def ls(
    last: Annotated[int, typer.Option("--last", "-n", min=1, max=200, help="How many, from the end.")] = 50,
    holder: Annotated[str, typer.Option(help="Only of this process, driver, agent or app.")] = "",
    kind: Annotated[Kind | None, typer.Option(help="Only rows about this.")] = None,
    since: Annotated[str, typer.Option(help="Only from then on: 'yesterday', '2 hours ago', 2026-11-03.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List the last grants, denials, approvals, effects and changes of labels, oldest first. No row holds content."""
    wanted: dict[str, Any] = {"last": last, "holder": holder, "since": _moment(since)}
    if kind is not None:
        wanted["kind"] = kind.value
    found = session.ask_kernel("audit.list", wanted, timeout=10)["rows"]
    columns = [
        Column("seq", right=True),
        Column("time", lambda row: datetime.fromtimestamp(row["ts"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")),
        Column("kind"),
        *map(_column, ("holder", "op", "decision", "label")),
        Column("call", lambda row: _call_and_detail(row)[0], right=True),
        Column("detail", lambda row: visible(_call_and_detail(row)[1])),
    ]
    rows(found, columns, output, "no such rows")


def _call_and_detail(row: Record) -> tuple[str, str]:
    """The number of the call that a row is about, for `llmosctl why`, and what else its detail says."""
    pattern = _CALLS.get(str(row["kind"]))
    found = pattern.fullmatch(row["detail"]) if pattern else None
    return (found["call"], found["rest"] or "") if found else ("", str(row["detail"]))


def _column(name: str) -> Column:
    return Column(name, lambda row: visible(str(row[name])))


def _moment(phrase: str) -> float:
    """Seconds since 1970 at which the period begins; 0 for none."""
    if not phrase:
        return 0.0
    from llmos.ipc import when  # 12 ms to import, for this option alone

    try:
        return max(0.0, when.parse(phrase, datetime.now().astimezone()).start.timestamp())
    except ValueError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"--since: {error}") from None


@app.command(epilog="Example: llmosctl audit verify")
def verify(output: Output = Format.TABLE) -> None:
    """Recompute the whole log: exit status 1, and the row that is not what it was, when anything was changed."""
    found = session.ask_kernel("audit.verify", timeout=VERIFY_S)
    fault = found["fault"]
    if output is not Format.TABLE or fault is None:
        told = {"rows": found["rows"], "head": _hash(found["head"])} if output is Format.TABLE else found
        record(told, output)
    if fault is not None:
        hint = "`llmosctl audit export` keeps what there is; compare it with a head that you noted before"
        failure.print_error("audit.broken", f"row {fault['seq']} {fault['what']}", hint)
        raise typer.Exit(failure.FAILED)


@app.command(epilog="Example: llmosctl audit export audit.jsonl")
def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; - is standard output.")],
) -> None:
    """Write the whole log as JSON lines, at the end its head: whoever notes that elsewhere sees any later change.

    The file appears when it is whole, and readable by you alone.
    """
    with session.connect() as client, _progress() as report:
        if file == "-":
            head = _write(client, sys.stdout, report)
        else:
            with _whole(Path(file)) as stream:
                head = _write(client, stream, report)
    note(f"{head['seq']} rows; the head is {head['hash']}")


def _write(client: Client, stream: IO[str], report: Report) -> dict[str, Any]:
    after = 0
    while True:
        page = client.call("audit.export", {"after": after}, timeout=30)
        for row in page["rows"]:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        head = {"seq": page["head"]["seq"], "hash": _hash(page["head"])}
        report(page["next"] or head["seq"], head["seq"])
        if not page["next"]:
            stream.write(json.dumps({"head": head["seq"], "hash": head["hash"]}) + "\n")
            return head
        if page["next"] <= after:
            raise OpError(Code.INTERNAL, f"the log does not go on after row {after}", "see `llmosctl audit verify`")
        after = page["next"]


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """A file that is there under its name only once all of it is on disk."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            Path(stream.name).replace(path)
        except BaseException:
            Path(stream.name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _progress() -> Iterator[Report]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _hash(head: Any) -> str:
    return str(head["hash"] if isinstance(head, dict) else head)
