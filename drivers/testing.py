"""For the tests of a driver: runs one as its host would in the jail, without a bus.

    with running(PACKAGE / "manifest.toml", tmp_path, roots=[folder]) as weather:
        assert weather.call("latest", k=1)["items"][0]["text"] == "14 C"

The class is held against its manifest, arguments and results are checked as the host checks them, and what it publishes is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from typing import Any

from llmos.drivers.host import DriverHost
from llmos.drivers.sdk import Call, Code, DriverEnv, OpError
from llmos.ipc import manifest as manifests
from llmos.ipc import wire


@dataclass
class Running:
    """A driver that has been set up."""

    host: DriverHost
    published: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Topic and data of every event."""

    @property
    def status(self) -> str:
        """What it says of itself."""
        return self.host.driver.status()

    def call(self, op: str, scope: Mapping[str, list[str]] | None = None, /, **args: Any) -> dict[str, Any]:
        """An op's result. Raises `OpError` as the op does, and for arguments and results that the system would refuse.

        Args:
            scope: the bounds of the caller's capability.
        """
        result = self.host.run(op, Call(scope or {}), args)
        size = len(wire.encode(result))
        if size > wire.MAX_BODY:
            raise OpError(Code.TOO_LARGE, f"{op}: a result of {size} bytes", f"at most {wire.MAX_BODY}: page it")
        return result


@contextlib.contextmanager
def running(
    manifest: Path,
    state: Path,
    *,
    roots: Iterable[Path] = (),
    writable: Iterable[Path] = (),
    settings: Mapping[str, Any] | None = None,
    zone: tzinfo | None = None,
) -> Iterator[Running]:
    """A driver with what a user might have granted to it, until the block ends.

    Args:
        state: its own directory, and what `~` is.
        roots: files and directories it may see; those it may change as well are in `writable`.
        settings: where they differ from the manifest's defaults.

    Raises `OpError` when the package does not hold what its manifest says.
    """
    found = manifests.load_driver(manifest)
    made = Running(DriverHost(found))

    def bus(op: str, args: dict[str, Any]) -> dict[str, Any]:
        if op == "bus.publish" and args["topic"] in found.topics:
            made.published.append((args["topic"], args["data"]))
            return {}
        raise OpError(Code.UNAVAILABLE, f"{op}: there is no bus in a test")

    defaults = {name: setting.get("default") for name, setting in found.settings.items()}
    may_write = tuple(writable)
    made.host.setup(
        DriverEnv(
            state=state,
            home=state,
            roots=(*roots, *may_write),
            writable=may_write,
            settings={**defaults, **(settings or {})},
            zone=zone,
            call=bus,
        )
    )
    try:
        yield made
    finally:
        made.host.close()
