"""`driver`: what gives the system its senses and hands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmos.ipc.errors import Code, OpError
from llmos.userland.cli import arguments, driver_author, driver_package, session, words
from llmos.userland.cli.output import Column, Format, Output, as_json, record, rows

app = typer.Typer(name="driver", help="See, install, write and remove the drivers.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="See `llmosctl driver ls`.")]


@app.command(epilog="Example: llmosctl driver ls")
def ls(
    outdated: Annotated[
        bool, typer.Option("--outdated", help="The installed packages of which the package index has a newer one.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """List the installed drivers: whether they run, and what they say of themselves."""
    if outdated:
        driver_package.list_outdated(output)
        return
    columns = [Column("name"), Column("version"), Column("state"), Column("granted", _granted), Column("status")]
    rows(session.ask_kernel("driver.list", timeout=5)["drivers"], columns, output, "no drivers are installed")


@app.command(epilog="Example: llmosctl driver show browser_history")
def show(name: _Name, output: Output = Format.TABLE) -> None:
    """Show one driver: its state, its ops and their arguments, its settings, what it asks for and what it was given."""
    found = session.ask_kernel("driver.show", {"name": name}, timeout=5)
    if output is not Format.TABLE:
        as_json(found, output)
        return
    record({key: found[key] for key in ("name", "version", "summary", "state", "status")}, output)
    print()
    ops = [{"op": f"{name}.{verb}", **op} for verb, op in found["ops"].items()]
    rows(ops, [Column("op"), Column("effect"), Column("args", _args), Column("summary")], output)
    settings = found.get("settings", {})
    if settings:
        print()
        declared = found["manifest"]["settings"]
        said = [{"setting": key, "value": value, **declared.get(key, {})} for key, value in settings.items()]
        rows(said, [Column("setting"), Column("value"), Column("type"), Column("description")], output)
    wanted = [row for row in found["requests"] if row["present"]]
    if wanted:
        print()
        columns = [Column("granted"), Column("may", lambda row: words.of_capability(row["cap"])), Column("cap")]
        rows(wanted, columns, output)


@app.command(epilog="Example: llmosctl driver disable browser_history")
def disable(name: _Name, output: Output = Format.TABLE) -> None:
    """Stop a driver, and keep it stopped over restarts. What was granted to it, and what it has stored, stays."""
    record(session.ask_kernel("driver.disable", {"name": name}, timeout=5), output)


@app.command(epilog="Example: llmosctl driver enable browser_history")
def enable(name: _Name, output: Output = Format.TABLE) -> None:
    """Start a driver that was disabled."""
    record(session.ask_kernel("driver.enable", {"name": name}, timeout=5), output)


@app.command("set", epilog="Example: llmosctl driver set weather station Orchard")
def set_(
    name: _Name,
    key: Annotated[str, typer.Argument(help="One of its settings; see `llmosctl driver show`.")],
    value: Annotated[str | None, typer.Argument(help="Left out: its default again.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Change one of a driver's settings, from now on and after restarts. The driver starts again with it.

    Settings are shown to whoever may see the drivers: they are no place for passwords.
    """
    with session.connect() as client:
        declared = client.call("driver.show", name=name, timeout=5)["manifest"]["settings"]
        if key not in declared:
            raise OpError(
                Code.NOT_FOUND, f"{name} has no setting {key!r}", f"its settings: {', '.join(declared) or 'none'}"
            )
        kind = declared[key].get("type", "string")
        typed = None if value is None else arguments.convert(key, value, kind, declared[key].get("items", "string"))
        found = client.call("driver.set", {"name": name, "key": key, "value": typed}, timeout=5)
    record(found["settings"], output)


@app.command(epilog="Example: llmosctl driver restart browser_history")
def restart(name: _Name) -> None:
    """Start a driver again: one that was given up, or one that runs."""
    with session.connect() as client:
        found = client.call("driver.show", name=name, timeout=5)
        if found["state"] == "disabled":
            raise OpError(Code.UNAVAILABLE, f"the driver {name} is disabled", f"llmosctl driver enable {name}")
        client.call("proc.kill", pid=found["pid"], timeout=5)


driver_package.add_to(app)
driver_author.add_to(app)


def _args(op: Any) -> str:
    return " ".join(f"{arg}{'' if spec.get('required') else '?'}:{spec['type']}" for arg, spec in op["args"].items())


def _granted(driver: Any) -> str:
    requests = [row for row in driver.get("requests", []) if row["present"]]
    return f"{sum(row['granted'] for row in requests)}/{len(requests)}"
