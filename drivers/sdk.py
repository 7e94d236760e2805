"""What a driver is written with. AUTHORING.md is the guide; the driver host (`llmos.drivers.host`) runs the result.

class Weather(Driver):
    def setup(self, env: DriverEnv) -> None:
        self.store = Store(env.state / "weather.db")

    def status(self) -> str:
        return f"{self.store.count()} stations"

    @op
    def forecast(self, call: Call, *, place: str, days: int = 3) -> dict[str, Any]:
        if place not in self.store:
            raise OpError(Code.NOT_FOUND, f"no station called {place!r}", "list them with weather.stations")
        return {"items": self.store.forecast(place, days)}
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from llmos.drivers.hooks import hookimpl
from llmos.drivers.network import Network
from llmos.ipc import log as logs
from llmos.ipc.errors import Code, OpError

if TYPE_CHECKING:
    import socket
    import ssl
    from pathlib import Path

    import structlog

    from llmos.ipc import embedding

__all__ = ["Call", "Code", "Driver", "DriverEnv", "OpError", "hookimpl", "op", "previews"]

MARK = "__llmos_op__"
"""Attribute of a method that serves an op: the op's name."""
PREVIEW_MARK = "__llmos_preview__"
"""Attribute of a method that says what an op would change: that op's name."""
MAX_UNDO = 1024
"""Characters of the text by which an op is undone."""

_TAG = re.compile(r"[a-z0-9][a-z0-9_.:\-]{0,59}")
_Method = TypeVar("_Method", bound=Callable[..., dict[str, Any]])
_Previewer = TypeVar("_Previewer", bound=Callable[..., str])


@overload
def op(method: _Method, /) -> _Method: ...
@overload
def op(*, name: str) -> Callable[[_Method], _Method]: ...
def op(method: _Method | None = None, /, *, name: str = "") -> _Method | Callable[[_Method], _Method]:
    """Marks a method as the op of the same name, or of `name` where Python keeps that word to itself (`import`).

    It is called with a `Call` and the arguments that came, by keyword, checked against the manifest; one that did not
    come takes the method's default. It returns the result, a map of at most 64 KiB on the wire, or raises `OpError`. Where the
    manifest says `undo = true`, the result carries `undo`, a text of at most `MAX_UNDO` characters: what the op `undo` needs.
    """

    def mark(marked: _Method) -> _Method:
        setattr(marked, MARK, name or marked.__name__)
        return marked

    return mark if method is None else mark(method)


def previews(name: str) -> Callable[[_Previewer], _Previewer]:
    """Marks the method that says what the op `name` would change, for whoever has to approve it; the host makes the op `preview` of them.

    It takes what the op takes, changes nothing, and returns a unified diff or plain words. Raises `OpError` as the op would.
    """

    def mark(marked: _Previewer) -> _Previewer:
        setattr(marked, PREVIEW_MARK, name)
        return marked

    return mark


@dataclass(frozen=True)
class Call:
    """Who asks, how far they may see, and how long they wait. `Call()` in tests: unbounded."""

    scope: Mapping[str, list[str]] = field(default_factory=dict)
    """Scope key → bounds of the capability that allowed the call; a key that is missing is unbounded."""
    sender: str = ""
    """Badge of the caller, stamped by the kernel."""
    deadline: float | None = None
    """On the clock of `time.monotonic`; None for no end."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set once nobody wants the answer any more."""
    _raised: set[str] = field(default_factory=set, repr=False, compare=False)
    """Tags, and `""` for untrusted."""

    @property
    def label(self) -> list[str]:
        """What `raise_label` has said so far, as on the wire: empty, or `t` or `u` and the tags in order."""
        tags = sorted(self._raised - {""})
        return ["u" if "" in self._raised else "t", *tags] if self._raised else []

    def raise_label(self, integrity: Literal["trusted", "untrusted"] = "untrusted", tags: Iterable[str] = ()) -> None:
        """This answer is worse, or about more, than the manifest says of the op. It adds up, and nothing takes it back.

        Raises `ValueError` for what is no integrity or no tag: never make a tag of a stranger's words.
        """
        added = {tags} if isinstance(tags, str) else set(tags)
        wrong = [tag for tag in added if not _TAG.fullmatch(tag)]
        if wrong or integrity not in ("trusted", "untrusted"):
            raise ValueError(f"not a label: {integrity!r} {sorted(added)!r:.200}")
        self._raised.update(added, {""} if integrity == "untrusted" else ())

    def remaining(self) -> float:
        """Seconds until the deadline, at least 0; infinity when there is none."""
        return float("inf") if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """For long loops: raises `OpError` `CANCELLED` or `TIMEOUT` when going on is of no use."""
        if self.cancelled.is_set():
            raise OpError(Code.CANCELLED, "the caller cancelled")
        if self.remaining() == 0:
            raise OpError(Code.TIMEOUT, "the caller's deadline has passed")


def _no_bus(op: str, args: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001  (the shape of a connection's call)
    raise OpError(Code.UNAVAILABLE, f"{op}: not connected to a bus")


@dataclass(frozen=True)
class DriverEnv:
    """What a driver has of the world. `DriverEnv(state=tmp, home=tmp)` in tests: no bus, no settings."""

    state: Path
    """Its own directory: writable, kept across restarts, nobody else's."""
    home: Path
    """The user's home, what `~` means; only the roots below are visible of it."""
    roots: tuple[Path, ...] = ()
    """Files and directories that the user let it read."""
    writable: tuple[Path, ...] = ()
    """Those that it may change, too."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every setting of the manifest, at the user's value or its default."""
    zone: tzinfo | None = None
    """The user's time zone; None for the machine's."""
    call: embedding.Call = _no_bus
    """Calls any op the driver holds a capability for: `call("llm.embed", {"texts": [...]})`. Raises `OpError`."""
    network: Network = field(default_factory=Network)
    """How `connect` gets out."""
    log: structlog.typing.FilteringBoundLogger = field(default_factory=logs.get_logger)
    """Events with facts as keys; never a payload."""

    def embed(self, texts: Sequence[str]) -> embedding.Vectors:
        """One row of length 1 per text, float32 `[len(texts), 384]`; texts are cut at 8,000 characters.

        Raises `OpError`: `UNAVAILABLE` without an embedding model, `DENIED` without the capability `llm.embed`.
        """
        from llmos.ipc import embedding  # NumPy: most drivers never need it

        return embedding.embed(self.call, texts)

    def connect(
        self, host: str, port: int, *, tls: bool | ssl.SSLContext = False, timeout: float | None = 30.0
    ) -> socket.socket:
        """A connected socket to a host that the user has granted, with `timeout` for this and for every later operation.

        Args:
            tls: encrypt here, in the driver, and check the host's certificate; a context of your own in place of Python's default.

        Raises `ConnectError`, an `OpError` and an `OSError`: `DENIED` without a grant or for an address inside, `NOT_FOUND` (no such
        name), `TIMEOUT`, `UNAVAILABLE`; `ssl.SSLError` when the certificate is not the host's.
        """
        return self.network.connect(host, port, tls=tls, timeout=timeout)

    def publish(self, topic: str, data: dict[str, Any]) -> None:
        """Sends an event of a topic that the manifest declares. Raises `OpError(DENIED)` for any other."""
        self.call("bus.publish", {"topic": topic, "data": data})

    def now(self) -> datetime:
        """The time in the user's zone; aware."""
        return datetime.now(self.zone) if self.zone else datetime.now().astimezone()


def zone_named(name: str) -> tzinfo | None:
    """An IANA time zone; None (the machine's own) for an empty or unknown name."""
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError):
        return None


class Driver:
    """Base of a driver: one object per process, its ops called from several threads."""

    threads: int = 4
    """Ops that run at once. 0: one by one in the main thread, where a cancel is noticed only by an op that calls."""

    def setup(self, env: DriverEnv) -> None:
        """Called once before the first op. A failure ends the driver, so a missing source belongs into `status`."""

    def status(self) -> str:
        """One line for people, after `setup`: what works and what is missing."""
        return "ready"

    def close(self) -> None:
        """Called at an orderly end, after the last op."""

    def plugins(self) -> Iterable[object]:
        """Further objects or modules with hook implementations."""
        return ()

    @hookimpl(specname="llmos_driver_setup", tryfirst=True)
    def _set_up(self, env: DriverEnv) -> None:
        self.setup(env)

    @hookimpl(specname="llmos_driver_close", trylast=True)
    def _shut(self) -> None:
        self.close()
