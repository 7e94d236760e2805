"""Brings a model from the hub into the store: a GenAI folder as it is, a GGUF file through the importer.

Every file is fetched to a place named after its content, so that an interrupted pull continues whatever the reference was.
What is small and decides is fetched and checked first: the configuration, then the graph, then gigabytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.ipc import paths
from llmos.ipc.errors import Code
from llmos.userland.models import description, genai_folder, room, store
from llmos.userland.models.catalog import Entry
from llmos.userland.models.download import fetch
from llmos.userland.models.errors import ImportRejected, ModelError, checked_name
from llmos.userland.models.genai_folder import Configuration
from llmos.userland.models.hub import Hub, HubNetwork, HubSettings, RemoteFile, Snapshot
from llmos.userland.models.index import Settings
from llmos.userland.models.process import Progress, Start, check_in_process, import_in_process
from llmos.userland.models.reference import Reference
from llmos.userland.models.staging import publish, staging

PREFIX = "hf-"


@dataclass(frozen=True, slots=True)
class _Pull:
    """What every step of one pull needs."""

    reference: Reference
    name: str
    entry: Entry | None
    network: HubNetwork
    hub: Hub
    snapshot: Snapshot
    progress: Progress
    start: Start

    def obtain(self, file: RemoteFile) -> Path:
        """A file, checked, where downloads wait."""
        kept = _kept(file)
        if not kept.is_file():
            address = self.hub.address(self.snapshot, file)
            what = f"fetching {file.name}"
            fetch(
                address, kept, file.size, file.checksum, self.network, lambda done: self.progress(what, done, file.size)
            )
        return kept

    def source(self, path: str, files: Iterable[RemoteFile]) -> dict[str, Any]:
        """Where the model came from, as its description says it."""
        return {
            "hub": self.snapshot.repository,
            "path": path,
            "revision": self.snapshot.commit,
            "asked": self.reference.revision,
            "bytes": sum(file.size for file in files),
        }


def pull_from_hub(
    reference: Reference,
    name: str,
    progress: Progress,
    start: Start,
    settings: Settings,
    hub_settings: HubSettings,
    entry: Entry | None = None,
) -> store.Model:
    """Install what `reference` names as the model `name`; returns at once when that is there and sound.

    Args:
        start: runs the importer, and what looks a graph over; jailed if it jails them.
        entry: of the catalogue, where the model is of it: what it pins is checked too.

    Raises:
        ModelError: NOT_FOUND (no such model, revision or folder), INVALID_ARGUMENT (several would do, or a file of it is refused),
            CONFLICT (the name is another model's), UNAVAILABLE (no network, not for everybody, disk full, wrong content),
            BUSY (being fetched by another process), or what the importer says.
        OSError: the store cannot be written.
    """
    target = paths.models_dir() / checked_name(name)
    if target.is_dir():
        installed = store.show(name)
        if not installed.problem:
            return _same(installed, reference)
        store.remove(name)
    network = HubNetwork(settings, hub_settings)
    with staging(paths.models_dir()) as scratch, room.explained_disk():
        hub = Hub(hub_settings, network)
        snapshot = hub.snapshot(reference.repository, reference.revision)
        pull = _Pull(reference, name, entry, network, hub, snapshot, progress, start)
        folder, used = (_gguf if reference.is_gguf else _folder)(pull, scratch)
        try:
            publish(folder, target)
        except FileExistsError as error:
            raise ModelError(Code.CONFLICT, str(error), "another process installed it meanwhile") from error
    _forget(used)
    return store.show(name)


def _same(installed: store.Model, reference: Reference) -> store.Model:
    """The model that has the name already, if it is the one that is meant. Raises `ModelError` CONFLICT."""
    source = description.read(installed.path).get("source") or {}
    same = source.get("hub") == reference.repository and reference.path in ("", source.get("path"))
    asked = (reference.revision or "main") == (source.get("asked") or "main")
    if same and (asked or not reference.revision or str(source.get("revision", "")).startswith(reference.revision)):
        return installed
    hint = f"llmosctl model rm {installed.name}, or choose another name with --name"
    raise ModelError(Code.CONFLICT, f"another model {installed.name!r} is installed: {installed.source}", hint)


def _gguf(pull: _Pull, scratch: Path) -> tuple[Path, list[RemoteFile]]:
    file = pull.snapshot.files.get(pull.reference.path)
    if file is None:
        others = sorted(path for path in pull.snapshot.files if path.endswith(".gguf"))
        hint = f"it has: {', '.join(others[:12])}" if others else "it has no GGUF file"
        raise ModelError(Code.NOT_FOUND, f"{pull.reference}: there is no such file", hint)
    _check_pin(pull, file)
    room.need(file.size + (2 * file.size if pull.entry is None else pull.entry.disk), _there([file]))
    with _nothing_refused_is_kept([file]):
        import_in_process(pull.obtain(file), scratch, pull.name, pull.progress, pull.start)
    folder = scratch / pull.name
    said = description.read(folder)
    known = {
        "license": said.get("license") or pull.snapshot.license,
        "source": {**said["source"], **pull.source(file.path, [file])},
    }
    description.write(folder, {**said, **known, **_of_catalogue(pull.entry)})
    return folder, [file]


def _check_pin(pull: _Pull, file: RemoteFile) -> None:
    pinned = pull.entry.hub.sha256 if pull.entry is not None and pull.entry.hub is not None else None
    if pinned is not None and (file.checksum.kind, file.checksum.value) != ("sha256", pinned):
        raise ModelError(
            Code.UNAVAILABLE,
            f"{file.path} at the hub is not the file that the catalogue knows: its SHA-256 is another",
            f"if you trust {pull.reference.repository}: llmosctl model pull hf:{pull.reference.repository}/{file.path}",
        )


def _folder(pull: _Pull, scratch: Path) -> tuple[Path, list[RemoteFile]]:
    files = pull.snapshot.files
    place = genai_folder.choose_folder(files, pull.reference)
    config = files[f"{place}/{genai_folder.CONFIG}".lstrip("/")]
    if config.size > genai_folder.CONFIG_BYTES:
        raise ImportRejected(f"{config.path}: {config.size} bytes are more than a configuration has")
    used = [config]
    with _nothing_refused_is_kept(used):
        configuration = genai_folder.read_configuration(pull.obtain(config).read_bytes())
        if configuration.providers and not pull.reference.path:
            made_for = ", ".join(configuration.providers)
            hint = f"to have it all the same, name its folder: hf:{pull.reference.repository}/FOLDER"
            raise ImportRejected(f"{place or pull.reference} is made for {made_for}, not for the CPU", hint)
        graph = genai_folder.graph_file(files, place, configuration)
        used += [*genai_folder.side_files(files, place), graph]
        room.need(sum(file.size for file in used), _there(used))
        fetched = {file.name: pull.obtain(file) for file in used[1:-1]}
        looked = check_in_process(pull.obtain(graph), scratch, pull.start)
        data = genai_folder.data_files(files, place, _external(looked))
    used += data
    room.need(sum(file.size for file in used), _there(used))
    fetched |= {"model.onnx": pull.obtain(graph), **{file.name: pull.obtain(file) for file in data}}
    folder = scratch / pull.name
    folder.mkdir()
    for name, kept in fetched.items():
        _take(kept, folder / name)
    (folder / genai_folder.CONFIG).write_text(configuration.text, encoding="utf-8")
    source = pull.source(place, used)
    description.write(folder, _description(pull, configuration, looked, source, fetched.get("tokenizer_config.json")))
    return folder, used


def _external(looked: dict[str, Any]) -> dict[str, int]:
    """What the process that parsed a stranger's graph says, which may have been taken over. Raises `ImportRejected`."""
    external = looked.get("external")
    if not isinstance(external, dict) or not all(isinstance(end, int) for end in external.values()):
        raise ImportRejected("the graph could not be looked over: its checker answers nonsense")
    return external


def _description(
    pull: _Pull, configuration: Configuration, looked: dict[str, Any], source: dict[str, Any], tokenizer: Path | None
) -> dict[str, Any]:
    return {
        "kind": "generator",
        "name": pull.name,
        "title": pull.snapshot.repository.rpartition("/")[2],
        "architecture": configuration.architecture,
        "parameters": None,
        "vocabulary": configuration.vocabulary,
        "context": configuration.context,
        "quantisation": str(looked.get("quantisation", ""))[:40],
        "bos": configuration.bos,
        "add_bos": _adds_bos(tokenizer),
        "eos": list(configuration.eos),
        "pad": configuration.pad,
        "license": pull.snapshot.license,
        "source": source,
        **_of_catalogue(pull.entry),
    }


def _adds_bos(tokenizer_config: Path | None) -> bool | None:
    try:
        said = json.loads(tokenizer_config.read_bytes()) if tokenizer_config is not None else {}
    except (ValueError, RecursionError):
        return None
    adds = said.get("add_bos_token") if isinstance(said, dict) else None
    return adds if isinstance(adds, bool) else None


def _of_catalogue(entry: Entry | None) -> dict[str, Any]:
    """What the catalogue knows better than the files."""
    return {} if entry is None else {"title": entry.title, "license": entry.license, "parameters": entry.parameters}


def _take(kept: Path, target: Path) -> None:
    """Two names may have one content, so nothing is moved; where files cannot be linked they are copied."""
    try:
        target.hardlink_to(kept)
    except OSError:
        shutil.copyfile(kept, target)


def _kept(file: RemoteFile) -> Path:
    return room.downloads() / f"{PREFIX}{file.checksum.value}"


def _there(files: Iterable[RemoteFile]) -> int:
    """Bytes of `files` that have come already."""
    kept = [place for file in files for place in (_kept(file), _kept(file).with_name(f"{_kept(file).name}.part"))]
    return sum(place.stat().st_size for place in kept if place.is_file())


@contextmanager
def _nothing_refused_is_kept(files: Iterable[RemoteFile]) -> Iterator[None]:
    """What may not be installed would be fetched for nothing again; whoever made it has to change it first."""
    try:
        yield
    except ModelError as error:
        if error.code is Code.INVALID_ARGUMENT:
            _forget(files)
        raise


def _forget(files: Iterable[RemoteFile]) -> None:
    for file in files:
        _kept(file).unlink(missing_ok=True)
