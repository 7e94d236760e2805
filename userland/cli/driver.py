"""`driver`: what gives the system its senses and hands."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from llmos.ipc.errors import Code, OpError
from llmos.userland.cli import failure, perm, question, session, words
from llmos.userland.cli.output import Column, Format, Output, line_json, note, print_json, record, rows
from llmos.userland.visible import visible

app = typer.Typer(name="driver", help="See, install and remove the drivers.", no_args_is_help=True)

GROUPS = ("llmos.drivers", "llmos.agents")
"""Entry points that make a package one of drivers or agents."""


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


@app.command(epilog="Example: llmosctl driver add llmos-weather")
def add(
    package: Annotated[str, typer.Argument(help="A name on the package index, or the path of a wheel.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Give it what it asks for without asking.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Install a package of drivers or agents, and show what each of them asks for.

    Only wheels are taken: they are unpacked and run no code while they are installed. Nothing of a package runs outside of a jail
    afterwards, and nothing is granted that you do not agree to.
    """
    known = _installed()
    from rich import console

    with console.Console(stderr=True).status(f"installing {visible(package)}"):
        _pip("install", "--only-binary", ":all:", package)
    made = {name: group for name, group in _installed().items() if name not in known}
    if not made:
        note(f"{visible(package)} holds no driver and no agent that was not there before")
    with session.connect() as client:
        changes = client.call("driver.scan", timeout=10)
        for name in (*made, *changes["changed"]):
            if name in changes["broken"]:
                raise OpError(Code.INVALID_ARGUMENT, f"{name} cannot be used: {changes['broken'][name]}")
            perm.offer(client, name, yes)
    record({"installed": list(made), "changed": changes["changed"]}, output)


@app.command(epilog="Example: llmosctl driver rm weather")
def rm(
    name: Annotated[str, typer.Argument(help="See `llmosctl driver ls`.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Remove the package that a driver or an agent came with. What was granted to it stays until it is revoked."""
    package = next((one for group in GROUPS for one in metadata.entry_points(group=group) if one.name == name), None)
    if package is None or package.dist is None:
        known = ", ".join(_installed())
        raise OpError(Code.NOT_FOUND, f"no driver and no agent is called {name!r}", f"installed: {known}")
    distribution = package.dist.name
    if distribution == "llmos":
        raise OpError(
            Code.CONFLICT, f"{name} comes with the system", "take its rights back with `llmosctl perm revoke`"
        )
    if not question.agreed(f"remove the package {distribution}?", yes, f"whether to remove {distribution}"):
        raise typer.Exit(failure.FAILED)
    _pip("uninstall", "--yes", distribution)
    with session.connect() as client:
        record({"package": distribution, "removed": client.call("driver.scan", timeout=10)["removed"]}, output)


def _installed() -> dict[str, str]:
    """Name → group, of every driver and agent there is."""
    importlib.invalidate_caches()
    return {point.name: group for group in GROUPS for point in metadata.entry_points(group=group)}


def _pip(*words_: str) -> None:
    """Raises `OpError(UNAVAILABLE)` with what pip said last."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *words_]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it gave no reason"]
        raise OpError(Code.UNAVAILABLE, f"pip {words_[0]}: {visible(said[-1])}", "is it a wheel, for this Python?")


def _args(op: Any) -> str:
    return " ".join(f"{arg}{'' if spec.get('required') else '?'}:{spec['type']}" for arg, spec in op["args"].items())


def _granted(driver: Any) -> str:
    requests = [row for row in driver.get("requests", []) if row["present"]]
    return f"{sum(row['granted'] for row in requests)}/{len(requests)}"
