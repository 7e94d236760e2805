"""What each kind of process is started with: its module, its jail, and what it is told."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.ipc import paths
from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import AgentManifest, DriverManifest
from llmos.kernel import jail, params
from llmos.kernel.capability import Capability, Right
from llmos.kernel.jail import Limits, Policy, Tier
from llmos.kernel.process import Kind, Process
from llmos.kernel.spares import Command


@dataclass(frozen=True)
class Places:
    """Where this system lives, resolved."""

    home: Path
    """The user's home: what `~` means in a capability."""
    state: Path
    runtime: Path
    models: Path
    packages: Path
    """Packages of drivers and agents, a directory for each."""


def gate(fd: int, address: Path, tier: Tier, *, apps: bool) -> Command:
    """It keeps the host's process ids, because that is what a socket's credentials are looked up in."""
    policy = Policy(
        write=(address.parent,),
        kernel_modules=("gate", "gate_frames", "gate_guard", "params"),
        share_pid=True,
        limits=Limits(address_space=params.GATE_MEMORY, open_files=params.GATE_FILES),
        tier=tier,
    )
    return Command(policy, "llmos.kernel.gate", (str(fd), str(address), *(("--apps",) if apps else ())), (fd,))


def egress(fd: int, address: Path, tier: Tier) -> Command:
    """It keeps the host's process ids as a gate does, and it alone has a network."""
    policy = Policy(
        write=(address.parent,),
        kernel_modules=("egress", "egress_address", "egress_frames", "params"),
        # a look-up comes to its end, and its threads share their memory
        env={"RES_OPTIONS": "timeout:3 attempts:2", "MALLOC_ARENA_MAX": "2"},
        share_pid=True,
        network=True,
        limits=Limits(address_space=params.EGRESS_MEMORY, open_files=params.EGRESS_FILES, nice=params.NICE),
        tier=tier,
    )
    return Command(policy, "llmos.kernel.egress", (str(fd), str(address)), (fd,))


def core(fd: int, folders: Sequence[Path], scratch: Path, tier: Tier) -> Command:
    """It sees the models, and a directory of its own for the contexts that it puts aside."""
    policy = Policy(
        read=tuple(folders),
        write=(scratch,),
        kernel_modules=("core",),
        limits=Limits(
            address_space=params.CORE_MEMORY,
            open_files=params.CORE_OPEN_FILES,
            file_size=params.SPILL_MOST,
            nice=params.NICE,
        ),
        tier=tier,
    )
    return Command(policy, "llmos.kernel.core", ("--fd", str(fd)), (fd,))


def program(
    process: Process, places: Places, held: Iterable[Capability], tier: Tier, settings: Mapping[str, Any] | None = None
) -> Command:
    """A driver or an agent: its own directory, what of the file system was granted to it, and the bus."""
    if process.manifest is None:
        raise OpError(Code.INTERNAL, f"{process.name} has no manifest")
    driver = process.kind is Kind.DRIVER
    rights = list(held)
    read, write = (_granted_paths(rights, verb, places) for verb in ("read", "write"))
    connects = driver and any(cap.right.object == "net" for cap in rights)
    net = paths.egress_socket(places.runtime)
    told = {
        "kind": process.kind.value,
        "name": process.name,
        "manifest": str(Path(process.manifest.directory) / ("manifest.toml" if driver else "agent.toml")),
        "home": str(places.home),
        "roots": [str(path) for path in (*read, *write)],
        "writable": [str(path) for path in write],
        "settings": dict(settings or {}),
        "args": process.args,
        "tz": _zone(),
        "net": str(net) if connects else None,
    }
    state: tuple[Path, ...] = ()
    if driver:
        state = (private_directory(driver_folder(process.program, places)),)
        told["state"] = str(state[0])
    bus = paths.bus_socket(places.runtime)
    own = {"LLMOS_TOKEN": process.token, "LLMOS_CONFIG": _packed(told)}
    policy = Policy(
        read=(bus.parent, *((private_directory(net.parent),) if connects else ()), *read),
        write=(*state, *write),
        path=_import_roots(process.manifest),
        certificates=connects,
        env={"LLMOS_BUS": str(bus), "TZ": _zone()},
        limits=Limits(
            address_space=params.DRIVER_MEMORY if driver else params.AGENT_MEMORY,
            nice=params.NICE if driver else params.AGENT_NICE,
        ),
        tier=tier,
    )
    ours = jail.is_own(Path(process.manifest.directory))
    args = (process.manifest.entry.partition(":")[0],) if ours else ()  # of others nothing runs before they are wanted
    orders = json.dumps(own).encode()
    if driver:
        return Command(policy, "llmos.drivers.host", args, orders=orders, program=process.program)
    return Command(policy, "llmos.userland.agent", args, own=agents_folder(places), orders=orders)


def _import_roots(manifest: DriverManifest | AgentManifest) -> tuple[Path, ...]:
    """Where a package that is installed outside of the interpreter's directories, as editable ones are, is imported from."""
    package = Path(manifest.directory).resolve()
    levels = manifest.entry.partition(":")[0].count(".")
    root = package.parents[levels - 1] if 0 < levels <= len(package.parents) else package
    return () if jail.sees(root) else (root,)


def agents_folder(places: Places) -> Path:
    """Where each agent has a directory of its own while it lives."""
    return places.state / "agents"


def core_folder(places: Places) -> Path:
    """The core's own directory; what is in it is worth nothing to the next core."""
    return places.state / "core"


def emptied(path: Path) -> Path:
    """A private directory with nothing in it. Raises `OpError(UNAVAILABLE)`."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        while found := [*private_directory(path).iterdir()]:
            for left in found:
                _remove(left, path)
        path.chmod(0o700)
    except OSError as error:
        raise OpError(Code.UNAVAILABLE, f"{path} cannot be emptied: {error.strerror}", "remove it by hand") from None
    return path


def _remove(left: Path, top: Path) -> None:
    """Take it out of `top`; what is in it comes up there, so that no depth is too much, and closed directories are opened."""
    if left.is_symlink() or not left.is_dir():
        left.unlink()
        return
    left.chmod(0o700)
    for inner in left.iterdir():
        if inner.is_dir() and not inner.is_symlink():
            inner.chmod(0o700)  # a directory that may not be written to cannot be moved
            inner.rename(top / secrets.token_hex(8))
        else:
            inner.unlink()
    left.rmdir()


def driver_folder(name: str, places: Places) -> Path:
    """A driver's own directory, which it keeps."""
    return places.state / "drivers" / name


def private_directory(path: Path) -> Path:
    """A directory of our own, mode 0700, resolved. Raises `OpError(UNAVAILABLE)`."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path.resolve()
    except OSError as error:
        raise OpError(Code.UNAVAILABLE, f"{path}: {error.strerror}", "choose another place with LLMOS_HOME") from None


def refuse_own(right: Right, places: Places) -> None:
    """Raises `OpError(INVALID_ARGUMENT)` for a grant that would show a jail the system's own files, the user's token among them."""
    if right.object != "fs":
        return
    for text in right.scope.get("path", ("/",)):
        if _shows_own(Path(os.path.realpath(text)), places):
            detail = f"{text} holds, or is part of, the system's own directory {places.state}"
            raise OpError(Code.INVALID_ARGUMENT, detail, "grant the folders beside it, one by one")


def _shows_own(path: Path, places: Places) -> bool:
    return any(path.is_relative_to(own) or own.is_relative_to(path) for own in (places.state, places.runtime))


def _granted_paths(held: Iterable[Capability], verb: str, places: Places) -> list[Path]:
    """What the jail shows: what was granted and is there, by its real name."""
    granted = [
        Path(path)
        for cap in held
        if cap.right.object == "fs" and cap.right.does(verb)
        for path in cap.right.scope.get("path", ())
    ]
    real = {Path(os.path.realpath(path)) for path in granted if os.path.exists(path)}  # noqa: PTH110  (a name too long is not there)
    return sorted(path for path in real if not _shows_own(path, places))  # a link may have been moved since the grant


def _packed(told: dict[str, Any]) -> str:
    try:
        return json.dumps(told, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise OpError(Code.INVALID_ARGUMENT, f"an argument cannot be handed over: {error}") from None


def _zone() -> str:
    """The IANA name of the machine's time zone; UTC when it has none."""
    if os.environ.get("TZ"):
        return os.environ["TZ"]
    try:
        return str(Path("/etc/localtime").readlink()).partition("zoneinfo/")[2] or "UTC"
    except OSError:
        return "UTC"
