"""`model`: the models on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.ipc.errors import Code, OpError
from llmos.userland.cli import failure, progress, session
from llmos.userland.cli.output import Column, Format, Output, as_json, note, record, rows

if TYPE_CHECKING:
    from llmos.userland.models.catalog import Entry
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
    Column("title"),
    Column("parameters", lambda row: f"{row['parameters'] / 1e6:.0f} M", right=True),
    Column("download mb", lambda row: f"{row['download'] / 1e6:.0f}", right=True),
    Column("ram mb", lambda row: f"{row['ram'] / 1e6:.0f}", right=True),
    Column("licence", lambda row: row["license"] + ("*" if row["terms"] else "")),
    Column("here"),
    Column("good for", lambda row: row["about"]),
)
RUNNING = ("engine", "provider", "why")
"""What `model show` says of a model that is loaded: what runs it, on what, and why."""


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


@app.command(epilog="Example: llmosctl model catalog -o json")
def catalog(output: Output = Format.TABLE) -> None:
    """List the models known by name: what they take, their licences, what they are good for, and which suit this machine.

    A licence with a * asks something of whoever uses the model; `-o json` says what, under `terms`.
    """
    rows([_of_catalogue(*each) for each in _catalogue()], CATALOGUE, output)


@app.command(epilog="Example: llmosctl model recommend")
def recommend(output: Output = Format.TABLE) -> None:
    """Name the most capable model of the catalogue that runs at ease here, in half of the memory that is available."""
    from llmos.userland.models.recommend import this_machine

    chosen = next((_of_catalogue(entry, here) for entry, here in _catalogue() if here.recommended), None)
    if chosen is None:
        raise OpError(Code.NOT_FOUND, "no model of the catalogue fits this machine's memory", "llmosctl model catalog")
    machine = this_machine()
    if output is not Format.TABLE:
        as_json({**chosen, "memory": machine.memory, "cores": machine.cores}, output)
        return
    print(chosen["name"])
    note(
        f"{chosen['title']}: {chosen['about']}; takes {chosen['ram'] / 1e9:.1f} of {machine.memory / 1e9:.1f} GB that are"
        f" available, {machine.cores} processors ({chosen['license']})"
    )
    note("it is installed" if chosen["installed"] else f"get it with: llmosctl model pull {chosen['name']}")


@app.command(
    epilog="Example: llmosctl model pull smollm2-135m, or llmosctl model pull hf:microsoft/Phi-4-mini-instruct-onnx --name phi"
)
def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|hf:OWNER/REPO[/PATH][@REVISION]",
            help="Of the catalogue, or of the Hugging Face hub; without one, the catalogue is listed.",
        ),
    ] = "",
    as_: Annotated[str, typer.Option("--name", help="What to call a model of the hub; by default after it.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Download a model, check it, and install it. Goes on where an earlier pull stopped.

    From the hub it takes a GenAI folder (with a genai_config.json) as it is, and imports a GGUF file. HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE are honoured.
    """
    from llmos.userland.models import catalog as known
    from llmos.userland.models import install

    if not name:
        catalog(output)
        return
    entry = known.entries().get(name)
    if entry is not None and entry.terms:
        note(f"{entry.license}: {entry.terms}")
    with progress.shown() as report:
        made = install.pull(name, report, start_jailed, name=as_)
    _tell_made(made, output)


@app.command("import", epilog="Example: llmosctl model import ~/Downloads/qwen2.5-0.5b-q4_k_m.gguf --name qwen")
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.gguf", help="Its architecture: llama, qwen2, qwen3, gemma3 or smollm3.")
    ],
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


@app.command(epilog="Example: llmosctl model default qwen2.5-1.5b")
def default(
    name: Annotated[
        str, typer.Argument(help="See `llmosctl model ls`; without one, the present default is shown.")
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """Show or set the model that answers those who name none, now and after restarts. It is loaded when it is first asked."""
    record(session.ask_kernel("llm.default", {"model": name} if name else {}), output)


def start_jailed(command: Sequence[str], file: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The importer in a jail that shows it the one file and lets it write the one folder, without a network."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    memory = IMPORT_MEMORY + IMPORT_MAPS * file.stat().st_size
    jail = [sys.executable, "-m", "llmos.kernel.jail", "run", "--read", str(file), "--write", str(folder)]
    limits = ["--memory", str(memory), "--file-size", str(IMPORT_FILE)]
    return subprocess.Popen([*jail, *limits, "--", *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


@dataclass(frozen=True)
class Here:
    """What an entry of the catalogue is on this machine."""

    installed: bool
    importable: bool
    fits: bool
    quick: bool
    recommended: bool

    @property
    def word(self) -> str:
        """In one word or two."""
        if not self.importable:
            return "cannot be imported yet"
        fits = "fits" if self.quick else "fits, slow"
        said = "recommended" if self.recommended else fits if self.fits else "too large"
        return f"installed, {said}" if self.installed else said


def _catalogue() -> Iterator[tuple[Entry, Here]]:
    from llmos.userland.models import catalog, recommend, store
    from llmos.userland.models.install import importable

    machine, there = recommend.this_machine(), {model.name for model in store.list() if not model.problem}
    known = list(catalog.entries().values())
    best = recommend.recommended(filter(importable, known), machine)
    for entry in known:
        yield (
            entry,
            Here(
                installed=entry.name in there,
                importable=importable(entry),
                fits=recommend.fits(entry, machine),
                quick=recommend.quick(entry, machine),
                recommended=entry is best,
            ),
        )


def _of_catalogue(entry: Entry, here: Here) -> dict[str, Any]:
    return {**asdict(entry), "download": entry.download, "here": here.word, **asdict(here)}


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
        **{key: row[key] for key in RUNNING if row.get(key)},
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
