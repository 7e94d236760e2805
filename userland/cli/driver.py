"""`driver`: what gives the system its senses and hands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmos.ipc.connection import Unreachable
from llmos.ipc.errors import Code, OpError
from llmos.userland import packages
from llmos.userland.cli import failure, perm, question, session, words
from llmos.userland.cli.output import Column, Format, Output, as_json, note, record, rows
from llmos.userland.sdk import Client
from llmos.userland.visible import visible

app = typer.Typer(name="driver", help="See, install and remove the drivers.", no_args_is_help=True)


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
        as_json(found, output)
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


@app.command(epilog="Example: llmosctl driver install llmos-weather")
def install(
    package: Annotated[str, typer.Argument(help="A name on the package index, or the path of a wheel.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Give it what it asks for without asking.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Install a package of drivers or agents, or a newer one in its place, and show what each asks for.

    Only wheels are taken: they are unpacked into a directory of their own and run no code while they are installed. Nothing of a package
    runs outside of a jail afterwards, and nothing is granted that you do not agree to.
    """
    from rich import console

    with console.Console(stderr=True).status(f"installing {visible(package)}"):
        made = packages.install(package)
    with session.connect() as client:
        scanned = _scan(client)
        if scanned is None:
            note(
                "llmos is not running: what is new starts with the next `llmosctl up`, and has been granted nothing yet"
            )
            for name in made.programs:
                note(f"once it runs: llmosctl perm grant --requested {visible(name)}")
        else:
            _offer(client, made, scanned["broken"], yes)
    record({"package": made.name, "version": made.version, "programs": list(made.programs)}, output)


@app.command(epilog="Example: llmosctl driver uninstall weather")
def uninstall(
    name: Annotated[str, typer.Argument(help="A driver, an agent, or their package.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Remove the package that a driver or an agent came with, and take back what was granted to it.

    The next one of that name is another.
    """
    gone = packages.find(name)
    whole = f"{visible(gone.name)} {visible(gone.version)}, which holds {visible(', '.join(gone.programs))}"
    if not question.agreed(f"Remove {whole}?", yes, f"whether to remove {whole}"):
        note("nothing was removed")
        raise typer.Exit(failure.FAILED)
    packages.remove(gone)
    with session.connect() as client:
        if _scan(client) is None:
            note(
                f"llmos is not running: what was granted stays until `llmosctl perm revoke`; see `perm show {gone.programs[0]}`"
            )
        else:
            for program in gone.programs:
                for held in client.call("perm.list", holder=program, timeout=5)["caps"]:
                    client.call("perm.revoke", id=held["id"], timeout=5)
    record({"package": gone.name, "version": gone.version, "programs": list(gone.programs)}, output)


@app.command(epilog="Example: llmosctl driver restart browser_history")
def restart(name: Annotated[str, typer.Argument(help="See `llmosctl driver ls`.")]) -> None:
    """Start a driver again: one that was given up, or one that runs."""
    with session.connect() as client:
        found = client.call("driver.show", name=name, timeout=5)
        client.call("proc.kill", pid=found["pid"], timeout=5)


def _offer(client: Client, made: packages.Package, broken: dict[str, str], yes: bool) -> None:
    for name in made.programs:
        if name in broken:
            raise OpError(Code.INVALID_ARGUMENT, f"{name} cannot be used: {visible(broken[name])}")
        perm.offer(client, name, yes)


def _scan(client: Client) -> dict[str, Any] | None:
    """What the system makes of the packages that are there now; None when it is not running."""
    try:
        return client.call("driver.scan", timeout=10)
    except Unreachable:
        return None


def _args(op: Any) -> str:
    return " ".join(f"{arg}{'' if spec.get('required') else '?'}:{spec['type']}" for arg, spec in op["args"].items())


def _granted(driver: Any) -> str:
    requests = [row for row in driver.get("requests", []) if row["present"]]
    return f"{sum(row['granted'] for row in requests)}/{len(requests)}"
