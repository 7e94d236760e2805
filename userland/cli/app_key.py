"""`app`: programs from outside, each let in by a key of its own. The secret half is made here and goes nowhere but into its file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from llmos.ipc import paths
from llmos.ipc.app_key import KEY_VARIABLE, AppKey
from llmos.ipc.errors import Code, OpError
from llmos.userland.cli import failure, question, session, words
from llmos.userland.cli.output import Column, Format, Output, as_json, note, record, rows
from llmos.userland.sdk import Client
from llmos.userland.visible import visible

app = typer.Typer(name="app", help="Let programs from outside in, see them, shut them out.", no_args_is_help=True)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_Name = Annotated[str, typer.Argument(metavar="NAME", help="See `llmosctl app ls`.")]


@app.command(
    epilog="Example: llmosctl app add notes --allow 'browser_history.read' --allow 'bus.subscribe(topic=mail.*)'"
)
def add(
    name: Annotated[str, typer.Argument(help="What to call it: small letters, digits, _.")],
    allow: Annotated[
        list[str] | None, typer.Option(help="A capability, object.right(key=value); once for each.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write its key; by default beside llmos' settings.")] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Make a key for a program, and let whoever holds it do what is allowed here.

    Each thing is shown in plain words, and asked for once, unless --yes is given. An app that exists gets the new key in place of its
    old one; whoever held that is shut out at once.
    """
    if not _NAME.fullmatch(name):
        raise OpError(
            Code.INVALID_ARGUMENT, f"{name!r} is no name for an app", "small letters, digits and _, at most 40"
        )
    allowed = list(dict.fromkeys(allow or []))
    path = (out or key_file(name)).expanduser().absolute()
    with session.connect() as client:
        known = next((row for row in client.call("apps.list", timeout=5)["apps"] if row["name"] == name), None)
        kept = list(known["caps"]) if known else []
        new = [cap for cap in allowed if cap not in kept]
        note(f"the app {name}, with the key in {path}, may" + ("" if kept or new else " do nothing yet"))
        for cap in [*kept, *new]:
            note(f"  {words.of_capability(cap)}    {visible(cap)}" + (", as before" if cap in kept else ""))
        if known:
            note("it exists already: its old key will open nothing any more")
        if not question.agreed("Is that right?", yes, f"what the app {name} may do"):
            note(f"no key was made for {name}")
            raise typer.Exit(failure.FAILED)
        made = _issue(client, name, allowed, path)
    if output is not Format.TABLE:
        record(made, output)
        return
    print(path)
    note(
        f"\nuse it with: {KEY_VARIABLE}={shlex.quote(str(path))} python …\n\n"
        "    from llmos.userland.sdk import Client\n"
        "    with Client() as client:\n"
        '        print(client.call("perm.mine"))'
    )


def _issue(client: Client, name: str, allowed: list[str], path: Path) -> dict[str, object]:
    """The key is written before it opens anything: one that cannot be kept is worth nothing, and would replace one that can."""
    import zmq  # 30 ms to import, and the other commands need none of it

    public, secret = (half.decode("ascii") for half in zmq.curve_keypair())
    told = client.call("apps.list", timeout=5)
    if not told["server_key"]:
        raise OpError(Code.UNAVAILABLE, "the apps' gate is not up", "try again in a moment, or see `llmosctl ps`")
    key = AppKey(name, told["address"], told["server_key"], public, secret)
    if path.is_dir():
        raise OpError(Code.INVALID_ARGUMENT, f"{path} is a directory", "name a file in it with --out")
    fresh = path.with_name(f"{path.name}.new")
    try:
        key.save(fresh)
    except OSError as error:
        detail = f"{path}: the key cannot be written: {error.strerror}"
        raise OpError(Code.INVALID_ARGUMENT, detail, "choose a place of your own with --out") from None
    try:
        made = client.call("apps.add", name=name, key=public, allow=allowed, timeout=5)
        if (made["address"], made["server_key"]) != (key.address, key.server_key):
            AppKey(name, made["address"], made["server_key"], public, secret).save(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return {"name": name, "key_file": str(path), "address": made["address"], "caps": made["caps"]}


@app.command(epilog="Example: llmosctl app ls")
def ls(output: Output = Format.TABLE) -> None:
    """List the apps that have a key."""
    found = session.ask_kernel("apps.list", timeout=5)
    if output is not Format.TABLE:
        as_json(found, output)
        return
    may = Column("may", lambda row: "; ".join(map(words.of_capability, row["caps"])))
    rows(found["apps"], [Column("name"), Column("connections", right=True), may], output, "no app has a key")


@app.command(epilog="Example: llmosctl app show notes")
def show(name: _Name, output: Output = Format.TABLE) -> None:
    """Show what one app may do."""
    found = session.ask_kernel("apps.list", timeout=5)["apps"]
    mine = next((row for row in found if row["name"] == name), None)
    if mine is None:
        known = ", ".join(row["name"] for row in found)
        raise OpError(Code.NOT_FOUND, f"no app {name!r} has a key", f"these have one: {known or 'none'}")
    if output is not Format.TABLE:
        record(mine, output)
        return
    print(f"{visible(name)} may" + ("" if mine["caps"] else " do nothing"))
    for cap in mine["caps"]:
        print(f"  {words.of_capability(cap)}\n    {visible(cap)}")


@app.command(epilog="Example: llmosctl app rm notes")
def rm(name: _Name, output: Output = Format.TABLE) -> None:
    """Shut an app out: its key opens nothing from now on, and its connections and permissions end."""
    record(session.ask_kernel("apps.remove", {"name": name}, timeout=5), output)
    try:
        key_file(name).unlink()
    except FileNotFoundError:
        note(f"there is no {key_file(name)}; a key that was written elsewhere with --out is left, and opens nothing")
    except OSError as error:
        note(f"{key_file(name)} is left, and opens nothing: {error.strerror}")


def key_file(name: str) -> Path:
    """Where an app's key lies unless one says otherwise."""
    return paths.config_dir() / "apps" / f"{name}.toml"
