"""Apps: programs from outside, each known by the public half of a key that the user let in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from llmos.ipc.errors import Code, OpError
from llmos.kernel.journal import Journal, Kept

MAX_APPS = 256
"""Keys that are let in."""
_Z85 = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


def holder(name: str) -> str:
    """The badge of an app: no driver and no agent can have one like it."""
    return f"app:{name}"


@dataclass(frozen=True)
class App:
    """One program that is let in."""

    name: str
    key: str
    """Public half of its CURVE key pair, Z85."""
    created: float
    """Seconds since 1970 UTC."""


class Apps:
    """All of them, and the key of the gate they come through; kept in the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._kept = Kept(journal, "app")
        self._apps = {row["id"]: App(row["name"], row["key"], row["created"]) for row in self._kept.load()}

    def __iter__(self) -> Iterator[App]:
        return iter(list(self._apps.values()))

    def __len__(self) -> int:
        return len(self._apps)

    def get(self, name: str) -> App | None:
        return self._apps.get(name)

    @property
    def server_key(self) -> tuple[str, str] | None:
        """The gate's own key pair, (public, secret) in Z85; None before any gate has made one."""
        public, secret = self._journal.get("apps.public"), self._journal.get("apps.secret")
        return (public, secret) if public is not None and secret is not None else None

    def offer_server_key(self, public: str, secret: str) -> None:
        """A fresh pair, taken when there is none yet."""
        if self.server_key is None:
            with self._journal.transaction():
                self._journal.set("apps.public", public)
                self._journal.set("apps.secret", secret)

    def add(self, name: str, key: str, now: float) -> App:
        """In place of an earlier key. Raises `OpError` `INVALID_ARGUMENT`, `CONFLICT` (another's key), `BUSY`."""
        if not _Z85.fullmatch(key):
            raise OpError(Code.INVALID_ARGUMENT, "key: not the 40 characters of a public key in Z85")
        owner = next((app.name for app in self._apps.values() if app.key == key and app.name != name), None)
        if owner is not None or (self.server_key is not None and key in self.server_key):
            raise OpError(Code.CONFLICT, "the key belongs to another app", "make a key pair of its own for each app")
        if name not in self._apps and len(self._apps) >= MAX_APPS:
            raise OpError(Code.BUSY, f"{MAX_APPS} apps are let in already", "remove one with `llmosctl app rm NAME`")
        app = App(name, key, now)
        self._kept.save({"id": name, **asdict(app)})
        self._apps[name] = app
        return app

    def remove(self, name: str) -> App:
        """Raises `OpError(NOT_FOUND)`."""
        if name not in self._apps:
            raise OpError(Code.NOT_FOUND, f"no app is called {name!r}", "see `llmosctl app ls`")
        self._kept.delete(name)
        return self._apps.pop(name)
