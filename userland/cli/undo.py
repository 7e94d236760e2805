"""`undo`: takes back what was done, where its driver can."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from llmos.userland.cli import failure, question, session
from llmos.userland.cli.output import Column, Format, Output, note, record, rows
from llmos.userland.visible import visible

MOST = 200
"""Effects listed at once."""


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: llmosctl undo u1b2c3d4")(undo)


def undo(
    number: Annotated[
        str, typer.Argument(metavar="[ID]", help="What to undo; without it, what can be is listed.")
    ] = "",
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Undo something that was done, or list what can be undone, newest first."""
    with session.connect() as client:
        found: list[dict[str, Any]] = client.call("undo.list", {"limit": MOST}, timeout=5)["effects"]
        if not number:
            columns = [
                Column("id"),
                Column("op", lambda row: visible(row["op"])),
                Column("by", lambda row: visible(row["holder"])),
                Column("at", lambda row: _moment(row["at"])),
                Column("until", lambda row: _moment(row["expires"])),
            ]
            rows(found, columns, output, "nothing can be undone")
            return
        effect = next((row for row in found if row["id"] == number), None)
        what = visible(number)
        if effect is not None:
            what = f"{visible(effect['op'])} by {visible(effect['holder'])} of {_moment(effect['at'])}"
        if not question.agreed(f"Undo {what}?", yes, f"whether to undo {what}"):
            note("nothing was undone")
            raise typer.Exit(failure.FAILED)
        record(client.call("undo.run", {"id": number}) or {"undone": number}, output)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
