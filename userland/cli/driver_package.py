"""`driver install`, `upgrade`, `uninstall`: packages of drivers and agents, and what is granted to them."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from typing import Annotated, Any

import typer

from llmos.ipc import paths
from llmos.ipc.connection import Unreachable
from llmos.ipc.errors import Code, OpError
from llmos.userland import packages
from llmos.userland.cli import failure, perm, progress, question, session
from llmos.userland.cli.output import Column, Format, Output, note, record, rows
from llmos.userland.packages.removal import remove
from llmos.userland.sdk import Client
from llmos.userland.visible import visible

_PURGE_S = 10.0
"""Seconds in which an ending driver may still write into the directory that is being removed."""

_Yes = Annotated[bool, typer.Option("-y", "--yes", help="Give it what it asks for without asking.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command(epilog="Example: llmosctl driver install llmos-weather")(install)
    app.command(epilog="Example: llmosctl driver upgrade weather")(upgrade)
    app.command(epilog="Example: llmosctl driver uninstall weather")(uninstall)


def install(
    package: Annotated[str, typer.Argument(help="A name on the package index, or the path of a wheel or directory.")],
    yes: _Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Install a package of drivers or agents, or another one in its place, and show what each asks for.

    Only wheels are taken, a directory is built into one, and all of that happens in a jail that shows nothing of yours but what you
    named. Nothing of a package runs outside of a jail afterwards either, and nothing is granted that you do not agree to.
    """
    with progress.shown() as report:
        made = packages.install(package, report)
    with session.connect() as client:
        scanned = _scan(client)
        if scanned is None:
            note(
                "llmos is not running: what is new starts with the next `llmosctl up`, and has been granted nothing yet"
            )
            for name in made.programs:
                note(f"once it runs: llmosctl perm grant --requested {visible(name)}")
        else:
            _start_again(client, made, scanned)
            _offer(client, made, yes)
    record({"package": made.name, "version": made.version, "programs": list(made.programs)}, output)


def upgrade(
    name: Annotated[str, typer.Argument(help="A driver, an agent, or their package; by default all of them.")] = "",
    yes: _Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Install the newest version of a package, from where it came. What was granted, stored and set stays.

    You are asked about what the new version wants and the old one did not; without your word it runs with what it had.
    """
    chosen = [packages.find(name)] if name else packages.installed()
    changed: list[tuple[packages.Package, set[str]]] = []
    results: list[dict[str, Any]] = []
    with session.connect() as client:
        for old in chosen:
            asked = _asked(client, old)
            try:
                with progress.shown() as report:
                    made = packages.upgrade(old, report)
            except OpError as error:
                if name:
                    raise
                note(f"{visible(old.name)}: {error.detail}")
                results.append({"package": old.name, "from": old.version, "to": "", "result": "not upgraded"})
                continue
            same = made == old
            results.append(
                {
                    "package": old.name,
                    "from": old.version,
                    "to": made.version,
                    "result": "newest" if same else "upgraded",
                }
            )
            if not same:
                changed.append((made, asked))
        scanned = _scan(client) if changed else None
        if changed and scanned is None:
            note("llmos is not running: what is new starts with the next `llmosctl up`, with what was granted before")
        for made, asked in changed if scanned is not None else ():
            _start_again(client, made, scanned or {})
            _offer(client, made, yes, asked)
    rows(results, [Column(title) for title in ("package", "from", "to", "result")], output, "no packages are installed")
    if any(row["result"] == "not upgraded" for row in results):
        raise typer.Exit(failure.FAILED)


def list_outdated(output: Format) -> None:
    """`driver ls --outdated`. Raises `OpError(UNAVAILABLE)` when the index cannot be asked."""
    results: list[dict[str, str]] = []
    for one in packages.installed():
        try:
            newest = packages.newest(one)
        except OpError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            note(f"{visible(one.name)} is not on the package index any more")
            continue
        if newest and newest != one.version:
            results.append({"package": one.name, "installed": one.version, "newest": newest})
    columns = [Column("package"), Column("installed"), Column("newest")]
    rows(results, columns, output, "every package that came from the package index is the newest")
    if results:
        note("llmosctl driver upgrade installs them")


def uninstall(
    name: Annotated[str, typer.Argument(help="A driver, an agent, or their package.")],
    purge: Annotated[bool, typer.Option("--purge", help="Delete what it has stored, too.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Remove the package that a driver or an agent came with, and take back what was granted to it.

    The next one of that name is another. What it has stored stays, for a later one, unless --purge is given.
    """
    gone = packages.find(name)
    whole = f"{visible(gone.name)} {visible(gone.version)}, which holds {visible(', '.join(gone.programs))}"
    whole += ", with all it has stored" if purge else ""
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
                _forget(client, program)
    for program in gone.programs if purge else ():
        _purge(program)
    record({"package": gone.name, "version": gone.version, "programs": list(gone.programs)}, output)


def _asked(client: Client, package: packages.Package) -> set[str]:
    """What its programs ask for now, granted or not; nothing is known while the system is down."""
    try:
        found = [client.call("perm.list", holder=name, timeout=5)["requests"] for name in package.programs]
    except Unreachable:
        return set()
    return {row["cap"] for requests in found for row in requests}


def _start_again(client: Client, made: packages.Package, scanned: dict[str, Any]) -> None:
    """A driver whose manifest is what it was still runs the old code. Raises `OpError(INVALID_ARGUMENT)` for one that cannot be used."""
    for name in made.programs:
        if name in scanned["broken"]:
            raise OpError(Code.INVALID_ARGUMENT, f"{name} cannot be used: {visible(scanned['broken'][name])}")
    for row in client.call("proc.list", timeout=5)["processes"]:
        if row["name"] in made.programs and row["name"] not in (*scanned["added"], *scanned["changed"]):
            client.call("proc.kill", pid=row["pid"], timeout=5)


def _offer(client: Client, made: packages.Package, yes: bool, asked: Collection[str] = ()) -> None:
    for name in made.programs:
        perm.offer(client, name, yes, asked)


def _scan(client: Client) -> dict[str, Any] | None:
    """What the system makes of the packages that are there now; None when it is not running."""
    try:
        return client.call("driver.scan", timeout=10)
    except Unreachable:
        return None


def _forget(client: Client, program: str) -> None:
    """Its settings, and that it was disabled. An agent has neither."""
    if re.fullmatch("[a-z][a-z0-9_]*", program):
        client.call("driver.forget", name=program, timeout=5)


def _purge(program: str) -> None:
    """The directory is out of the way at once; a driver that has not ended yet may write into it for a moment."""
    state = paths.state_dir() / "drivers" / program
    if not re.fullmatch("[a-z][a-z0-9_]*", program) or not state.is_dir() or state.is_symlink():
        return
    doomed = state.with_name(f".purged-{program}")
    remove(doomed)
    state.rename(doomed)
    end = time.monotonic() + _PURGE_S
    while doomed.exists() and time.monotonic() < end:
        remove(doomed)
        time.sleep(0.05)
