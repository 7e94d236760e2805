"""`model`: the models on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.ipc.errors import OpError
from llmos.userland.cli import failure, progress, session
from llmos.userland.cli.output import Column, Format, Output, as_json, note, record, rows

if TYPE_CHECKING:
    from llmos.userland.models.store import Model

LOAD_S = 600.0
"""Seconds a model may take to load."""
IMPORT_FILE = 256 << 30
"""Bytes of the largest file an import may write."""
IMPORT_MEMORY = 4 << 30
"""Bytes of address space an import may use beside the file itself, which it maps several times."""
IMPORT_MAPS = 6
"""How often."""

app = typer.Typer(name="model", help="Get, see and load models.", no_args_is_help=True)

COLUMNS = (
    Column("name"),
    Column("kind"),
    Column("architecture"),
    Column("parameters", lambda row: f"{row['parameters'] / 1e6:.0f} M" if row["parameters"] else "", right=True),
    Column("context", right=True),
    Column("from", lambda row: row["quantisation"]),
    Column("mb", lambda row: f"{row['size'] / 1e6:.0f}", right=True),
    Column("licence", lambda row: row["license"]),
    Column("state", lambda row: row["problem"] or row["state"]),
)


CATALOGUE = (
    Column("name"),
    Column("kind"),
    Column("mb", lambda row: f"{sum(part['wheel_bytes'] for part in row['parts']) / 1e6:.0f}", right=True),
    Column("licence", lambda row: row["license"]),
    Column("about"),
)


@app.command(epilog="Example: llmosctl model ls")
def ls(output: Output = Format.TABLE) -> None:
    """List the models on this machine, and which of them are loaded."""
    from llmos.userland.models import store

    loaded = _loaded()
    found = [_plain(model, loaded) for model in store.list()]
    rows(found, COLUMNS, output, "no models; get one with `llmosctl model pull smollm2-135m`")


@app.command(epilog="Example: llmosctl model show smollm2-135m")
def show(name: Annotated[str, typer.Argument(help="See `llmosctl model ls`.")], output: Output = Format.TABLE) -> None:
    """Show one model: what it is, where it came from, where it lies, and what runs it and why."""
    from llmos.userland.models import store

    record(_plain(store.show(name), _loaded()), output)


@app.command(epilog="Example: llmosctl model pull smollm2-135m")
def pull(
    name: Annotated[str, typer.Argument(help="Of the catalogue; without one, the catalogue is listed.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Download a model from the package index, check it, and import it. Goes on where an earlier pull stopped."""
    from llmos.userland.models import catalog, install

    if not name:
        rows([asdict(entry) for entry in catalog.entries().values()], CATALOGUE, output)
        return
    with progress.shown() as report:
        made = install.pull(name, report, start_jailed)
    _tell_made(made, output)


@app.command("import", epilog="Example: llmosctl model import ~/Downloads/qwen2.5-0.5b-q4_k_m.gguf --name qwen")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="Of the llama or qwen2 family.")],
    name: Annotated[str, typer.Option(help="What to call it; by default after the file.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Turn a GGUF file into a model of this machine. The file is read in a jail: it may be hostile."""
    from llmos.userland.models import install
    from llmos.userland.models.importer import default_name

    with progress.shown() as report:
        made = install.import_file(file.expanduser().resolve(), name or default_name(file), report, start_jailed)
    _tell_made(made, output)


@app.command(epilog="Example: llmosctl model rm smollm2-135m")
def rm(name: Annotated[str, typer.Argument(help="See `llmosctl model ls`.")], output: Output = Format.TABLE) -> None:
    """Delete a model. One that is loaded answers until it is unloaded, or the system ends."""
    from llmos.userland.models import store

    freed = store.remove(name)
    if output is Format.TABLE:
        note(f"{freed / 1e6:.0f} MB freed")
    else:
        record({"name": name, "freed": freed}, output)


@app.command(epilog="Example: llmosctl model load smollm2-135m")
def load(name: Annotated[str, typer.Argument(help="See `llmosctl model ls`.")], output: Output = Format.TABLE) -> None:
    """Load a model beside those that are loaded. Where memory is short, idle ones go for it, and are named.

    It answers those who ask for it by name, and everybody where there was no model before.
    """
    with failure.model_is_meant():
        loaded = session.ask_kernel("llm.load", {"model": name}, timeout=LOAD_S)
    if output is Format.TABLE:
        record(loaded["model"], output)
        if loaded["unloaded"]:
            note(f"unloaded to make room: {', '.join(loaded['unloaded'])}")
    else:
        record(loaded, output)


@app.command(epilog="Example: llmosctl model unload qwen2.5-coder-1.5b")
def unload(
    name: Annotated[str, typer.Argument(help="See `llmosctl model ls`.")], output: Output = Format.TABLE
) -> None:
    """Give a model's memory back. What runs on it ends; the default comes back when it is next asked for."""
    record(session.ask_kernel("llm.unload", {"model": name}, timeout=LOAD_S), output)


def start_jailed(command: Sequence[str], file: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The importer in a jail that shows it the one file and lets it write the one folder, without a network."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    memory = IMPORT_MEMORY + IMPORT_MAPS * file.stat().st_size
    jail = [sys.executable, "-m", "llmos.kernel.jail", "run", "--read", str(file), "--write", str(folder)]
    limits = ["--memory", str(memory), "--file-size", str(IMPORT_FILE)]
    return subprocess.Popen([*jail, *limits, "--", *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


RUNS = ("engine", "provider", "why")
"""What `model show` says of a model that is loaded: what runs it, on what, and why."""


def _loaded() -> dict[str, dict[str, Any]]:
    """What the kernel says of each model that is loaded, or could not be; empty when no system runs."""
    try:
        rows: list[dict[str, Any]] = session.ask_kernel("llm.stats", timeout=5)["models"]
    except OpError:
        return {}
    return {row["name"]: row for row in rows}


def _plain(model: Model, loaded: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = loaded.get(model.name, {})
    state = row.get("state", "") + (", default" if row.get("default") else "")
    return {
        **asdict(model),
        "path": str(model.path),
        "state": state,
        "problem": model.problem or row.get("problem", ""),
        **{key: row[key] for key in RUNS if row.get(key)},
    }


def _tell_made(model: Model, output: Format) -> None:
    made = _plain(model, _loaded())
    if output is Format.TABLE:
        print(made["path"])
        note(
            f"use it with: llmosctl model load {model.name}" if model.kind == "generator" else f"{model.name} is ready"
        )
    else:
        as_json(made, output)
