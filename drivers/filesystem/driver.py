"""The filesystem driver: folders listed, files found by name and content, text read a page at a time."""

from __future__ import annotations

from typing import Any

from llmos.drivers.sdk import Call, Driver, DriverEnv, op


class Filesystem(Driver):
    """Serves the ops of `manifest.toml`, below the granted roots only."""

    def setup(self, env: DriverEnv) -> None:
        self.env = env

    @op
    def search(
        self,
        call: Call,
        *,
        query: str = "",
        path: str = "",
        modified: str | None = None,
        types: list[str] | None = None,
        glob: str = "",
        k: int = 10,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        return {"items": []}

    @op
    def list(self, call: Call, *, path: str = "", k: int = 50, cursor: str | None = None) -> dict[str, Any]:
        return {"items": []}

    @op
    def read(self, call: Call, *, path: str, offset: int = 0, limit: int = 12_000) -> dict[str, Any]:
        return {"items": []}

    @op
    def stat(self, call: Call, *, path: str) -> dict[str, Any]:
        return {"items": []}
