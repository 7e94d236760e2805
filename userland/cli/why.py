"""`why`: which datum tainted whom, through which call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from llmos.ipc.errors import Code, OpError
from llmos.userland.cli import session
from llmos.userland.cli.output import Format, Output, as_json
from llmos.userland.visible import visible

Row = Mapping[str, Any]


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: llmosctl why assistant#7")(why)


def why(
    what: Annotated[
        str,
        typer.Argument(metavar="ID", help="An approval, the number of a call (`audit ls`), or who, as in assistant#7."),
    ],
    output: Output = Format.TABLE,
) -> None:
    """Show how something came to be untrusted or secret: what it has read, and from whom that came, nearest first."""
    try:
        found = session.ask_kernel("label.why", {"id": what}, timeout=5)
    except OpError as error:
        if error.code is not Code.NOT_FOUND or not what.isdecimal():
            raise
        detail = f"nothing is kept about call {what}: it changed and sent nothing, or it is too long ago"
        hint = "what only reads has nothing to explain; `llmosctl why HOLDER`, as in assistant#7, says what somebody has read"
        raise OpError(error.code, detail, hint) from None
    if output is not Format.TABLE:
        as_json(found, output)
        return
    print(f"{visible(str(found['id']))}  {in_words(found['label'])}")
    if not found["chain"]:
        print("nothing untrusted and nothing of anybody's has reached it")
    for line in tree(found["chain"]):
        print(line)


def tree(chain: Sequence[Row]) -> list[str]:
    """The chain as lines: under each taint those that had made its sender what it was."""
    below: dict[int, list[int]] = {}
    for number in range(len(chain)):
        below.setdefault(_above(chain, number), []).append(number)
    return list(_lines(chain, below, -1, ""))


def in_words(label: object) -> str:
    """A label as the kernel writes it, or from the wire's `["u", tag, …]`."""
    if not isinstance(label, list):
        return visible(str(label))
    integrity = "untrusted" if label[:1] == ["u"] else "trusted"
    tags = ", ".join(visible(str(tag)) for tag in label[1:])
    return f"{integrity} {{{tags}}}" if tags else integrity


def _above(chain: Sequence[Row], number: int) -> int:
    """The taint that this one explains: the nearest whose sender it had reached before; -1 for what was asked about."""
    row = chain[number]
    for above in range(number):
        if chain[above]["sender"] == row["holder"] and chain[above]["taint"] > row["taint"]:
            return above
    return -1


def _lines(chain: Sequence[Row], below: Mapping[int, list[int]], above: int, indent: str) -> Iterator[str]:
    numbers = below.get(above, [])
    for number in numbers:
        last = number == numbers[-1]
        yield f"{indent}{'└─' if last else '├─'} {_said(chain[number])}"
        yield from _lines(chain, below, number, indent + ("   " if last else "│  "))


def _said(row: Row) -> str:
    time = datetime.fromtimestamp(row["at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    call = f" (call {row['call']})" if row["call"] else ""
    holder, sender, via = (visible(str(row[key])) for key in ("holder", "sender", "via"))
    added = in_words(row["added"])
    change = f"took on {added.removeprefix('trusted ')}" if added.startswith("trusted") else f"became {added}"
    return f"{holder} {change} from {sender} through {via}{call}, {time}"
