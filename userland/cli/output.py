"""How commands show what they found: tables for people, JSON for programs; data on stdout, the rest on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from llmos.userland.visible import exact, lines, visible

Record = Mapping[str, Any]


class Format(StrEnum):
    """What `-o` takes."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


def _inherited(ctx: typer.Context, value: Format) -> Format:
    """`llmosctl -o json ps` says the same as `llmosctl ps -o json`; the nearer one wins."""
    source = ctx.get_parameter_source("output")
    if source is not None and source.name == "DEFAULT" and ctx.parent is not None:
        return Format(ctx.find_root().params.get("output") or value)
    return value


Output = Annotated[Format, typer.Option("-o", "--output", callback=_inherited, help="How to print what was found.")]
"""The option every command takes."""


@dataclass(frozen=True)
class Column:
    """One column of a table: its title, and how a cell is made of a record; by default the value under the title."""

    title: str
    cell: Callable[[Record], object] | None = None
    right: bool = False

    def text(self, record: Record) -> str:
        """The cell, on one line."""
        value = record.get(self.title, "") if self.cell is None else self.cell(record)
        return plain(value)


def plain(value: object) -> str:
    """A value on one line, as people read it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, (dict, list)):
        return exact(value)
    return visible(" ".join(str(value).split()))


def rows(records: Sequence[Record], columns: Sequence[Column], output: Format, empty: str = "nothing to show") -> None:
    """Many records: a table of the columns, or the whole records as a JSON array or as one JSON object a line."""
    if output is Format.JSON:
        print_json(list(records))
    elif output is Format.JSONL:
        for record in records:
            line_json(record)
    elif not records:
        note(empty)
    else:
        _table([column.title for column in columns], [[c.text(record) for c in columns] for record in records], columns)


def record(found: Record, output: Format) -> None:
    """One record: `key  value` lines, or JSON. A list of maps under `items` becomes a table."""
    if output is Format.JSON:
        print_json(found)
    elif output is Format.JSONL:
        for item in _items(found) or [found]:
            line_json(item)
    else:
        items = _items(found)
        if items:
            keys = dict.fromkeys(
                key for item in items for key, value in item.items() if not isinstance(value, dict | list)
            )
            rows(items, [Column(key) for key in keys], output)
        elif found.get("items") == []:
            note("nothing was found")
        pairs = {key: value for key, value in found.items() if key != "items" or (value and not items)}
        width = max(map(len, pairs), default=0)
        for key, value in pairs.items():
            print(f"{key:<{width}}  {plain(value)}")


def _items(found: Record) -> list[Record]:
    items = found.get("items")
    return items if isinstance(items, list) and items and all(isinstance(item, dict) for item in items) else []


def print_json(value: object) -> None:
    """The whole answer as one JSON document."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def as_json(found: object, output: Format) -> None:
    """The whole answer for programs: on one line with `jsonl`, otherwise as a document."""
    (line_json if output is Format.JSONL else print_json)(found)


def line_json(value: object) -> None:
    """One record of a stream; written at once."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def note(text: str) -> None:
    """For people, beside the data. A stranger's words may be in it: a terminal obeys none of them."""
    print(lines(text), file=sys.stderr, flush=True)


def _table(titles: Sequence[str], cells: Iterable[Sequence[str]], columns: Sequence[Column]) -> None:
    if sys.stdout.isatty():
        from rich import box, console, table
        from rich.text import Text

        made = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for column in columns:
            made.add_column(column.title.upper(), justify="right" if column.right else "left", overflow="fold")
        for row in cells:
            made.add_row(*map(Text, row))
        console.Console().print(made)
        return
    table_rows = [[title.upper() for title in titles], *cells]
    widths = [max(len(row[n]) for row in table_rows) for n in range(len(titles))]
    for row in table_rows:
        padded = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        print("  ".join(padded).rstrip())
