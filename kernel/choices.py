"""What the user decided about each driver beside what it may do: whether it runs, and its settings. On disk before it is acknowledged."""

from __future__ import annotations

from typing import Any

import msgspec

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import Arg, DriverManifest
from llmos.kernel import params
from llmos.kernel.journal import Journal, Kept


class Choices:
    """Kept by name, so that they are there again when a package is unreadable for a while."""

    def __init__(self, journal: Journal) -> None:
        self._kept = Kept(journal, "drivers")
        self._settings: dict[str, dict[str, Any]] = {}
        self.off: set[str] = set()
        """Drivers that stay off over restarts."""
        for row in self._kept.load():
            self._settings[row["id"]] = row.get("settings", {})
            if row.get("off"):
                self.off.add(row["id"])

    def settings(self, name: str) -> dict[str, Any]:
        """Those that differ from the manifest's defaults."""
        return dict(self._settings.get(name, {}))

    def switch(self, name: str, *, off: bool) -> None:
        """Raises `OpError(UNAVAILABLE)`: then nothing has changed."""
        self._save(name, off=off, settings=self.settings(name))

    def set(self, manifest: DriverManifest, key: str, value: Any) -> None:
        """None for the default again. Raises `OpError` `NOT_FOUND`, `INVALID_ARGUMENT`, `TOO_LARGE`, `UNAVAILABLE`."""
        if key not in manifest.settings:
            known = ", ".join(manifest.settings) or "none"
            raise OpError(Code.NOT_FOUND, f"{manifest.name} has no setting {key!r}", f"its settings: {known}")
        try:
            msgspec.convert(manifest.settings[key], Arg).check(key, value)
        except msgspec.ValidationError as error:
            raise OpError(
                Code.INVALID_ARGUMENT, f"{manifest.name}: settings.{key}: {error}", "tell its author"
            ) from None
        settings = self.settings(manifest.name) | {key: value}
        if value is None:
            del settings[key]
        if len(msgspec.json.encode(settings)) > params.SETTINGS_BYTES:
            raise OpError(
                Code.TOO_LARGE, f"argument value: the settings of {manifest.name} exceed {params.SETTINGS_BYTES} bytes"
            )
        self._save(manifest.name, off=manifest.name in self.off, settings=settings)

    def forget(self, name: str) -> None:
        """All of it."""
        self._kept.delete(name)
        self._settings.pop(name, None)
        self.off.discard(name)

    def _save(self, name: str, *, off: bool, settings: dict[str, Any]) -> None:
        self._kept.save({"id": name, "off": off, "settings": settings})
        self._settings[name] = settings
        (self.off.add if off else self.off.discard)(name)
