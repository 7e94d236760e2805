"""`call`: any op of the system, by name."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from llmos.ipc import protocol
from llmos.userland.cli import arguments, failure, session
from llmos.userland.cli.output import Column, Format, Output, line_json, record, rows
from llmos.userland.sdk import Client


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: llmosctl call browser_history.search query=sourdough period='last week' k=5")(call)
    app.command(epilog="Example: llmosctl ops browser_history")(ops)


def call(
    op: Annotated[str, typer.Argument(metavar="TARGET.OP", help="See `llmosctl ops`.")],
    values: Annotated[
        list[str] | None, typer.Argument(metavar="k=v…", help="Arguments; lists as JSON or with commas.")
    ] = None,
    json_args: Annotated[str, typer.Option("--json", metavar="OBJECT", help="Arguments as one JSON object.")] = "{}",
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds to wait; by default the op's own.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Call an op of a driver, of a running program (app.NAME), or of the system, and print its result.

    With -o jsonl the chunks of a streamed answer are printed as they come.
    """
    with session.connect() as client:
        args = {**arguments.from_json(json_args), **_typed(client, op, values or [])}
        with failure.model_is_meant() if op.startswith("llm.") else contextlib.nullcontext():
            with session.cancelling(client, client.stream(op, args, timeout=timeout)) as stream:
                for chunk in stream:
                    if output is Format.JSONL:
                        line_json(chunk)
            record(stream.result, output)


def _typed(client: Client, op: str, values: list[str]) -> dict[str, Any]:
    if op in protocol.SYSCALLS:
        return arguments.of_syscall(values, protocol.SYSCALLS[op])
    if not values:
        return {}
    specs = {row["op"]: row["args"] for row in client.ops()}
    return arguments.typed(values, specs.get(op, {}))


def ops(
    target: Annotated[str, typer.Argument(help="Only those of this driver.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List the ops that can be called, with their arguments."""
    found = [row for row in session.ask_kernel("sys.ops", timeout=5)["ops"] if row["op"].startswith(target)]
    columns = [Column("op"), Column("effect"), Column("args", lambda row: " ".join(row["args"])), Column("summary")]
    rows(found, columns, output, "no ops: no driver is installed")
