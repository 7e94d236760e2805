"""`driver`: what gives the system its senses and hands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmos.userland.cli import session, words
from llmos.userland.cli.output import Column, Format, Output, line_json, print_json, record, rows

app = typer.Typer(name="driver", help="See the drivers.", no_args_is_help=True)


@app.command(epilog="Example: llmosctl driver ls")
def ls(output: Output = Format.TABLE) -> None:
    """List the installed drivers: whether they run, and what they say of themselves."""
    columns = [Column("name"), Column("version"), Column("state"), Column("granted", _granted), Column("status")]
    rows(session.ask_kernel("driver.list", timeout=5)["drivers"], columns, output, "no drivers are installed")


@app.command(epilog="Example: llmosctl driver show browser_history")
def show(name: Annotated[str, typer.Argument(help="See `llmosctl driver ls`.")], output: Output = Format.TABLE) -> None:
    """Show one driver: its state, its ops and their arguments, what it asks for and what it was given."""
    found = session.ask_kernel("driver.show", {"name": name}, timeout=5)
    if output is not Format.TABLE:
        (print_json if output is Format.JSON else line_json)(found)
        return
    record({key: found[key] for key in ("name", "version", "summary", "state", "status")}, output)
    print()
    ops = [{"op": f"{name}.{verb}", **op} for verb, op in found["ops"].items()]
    rows(ops, [Column("op"), Column("effect"), Column("args", _args), Column("summary")], output)
    wanted = [row for row in found["requests"] if row["present"]]
    if wanted:
        print()
        columns = [Column("granted"), Column("may", lambda row: words.of_capability(row["cap"])), Column("cap")]
        rows(wanted, columns, output)


def _args(op: Any) -> str:
    return " ".join(f"{arg}{'' if spec.get('required') else '?'}:{spec['type']}" for arg, spec in op["args"].items())


def _granted(driver: Any) -> str:
    requests = [row for row in driver.get("requests", []) if row["present"]]
    return f"{sum(row['granted'] for row in requests)}/{len(requests)}"
