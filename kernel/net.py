"""The kernel's side of the egress broker: who may connect where, and what is known of every connection. `egress.py` is the broker's.

The right is `net.connect(host=…, port=…, private=yes)`, and drivers alone hold it. Each connection is allowed by one capability and ends
with it, or with its driver.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from llmos.ipc.egress import normal_host
from llmos.ipc.errors import Code, OpError
from llmos.kernel import egress_frames as frames
from llmos.kernel.authority import Authority
from llmos.kernel.capability import Capability, Right
from llmos.kernel.link import Link
from llmos.kernel.loop import Loop
from llmos.kernel.process import Kind, Process, ProcessTable, State
from llmos.kernel.scope import normal_value

log = structlog.get_logger()

NAME = "egress"
"""The broker's name in the process table."""
OP = "net.connect"
RESOLVER = Path("/etc/resolv.conf")
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True)
class _Live:
    """A connection that was allowed, and has not ended."""

    process: Process
    cap: Capability
    where: str


class Egress:
    """Every connection that is open, and the broker that carries them.

    Args:
        ready: called when the broker listens.
        restart: called when it has to be started again.
        written: called when the audit log may have new rows.
    """

    def __init__(
        self,
        loop: Loop,
        authority: Authority,
        processes: ProcessTable,
        ready: Callable[[], None],
        restart: Callable[[], None],
        written: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._authority = authority
        self._processes = processes
        self._ready = ready
        self._restart = restart
        self._written = written
        self._resolver = _resolver()
        self._link: Link | None = None
        self._live: dict[int, _Live] = {}

    # -- the broker's life -----------------------------------------------------------------------------------------

    def attach(self) -> int:
        """A new broker is about to start: the descriptor for it; ours is watched from now on."""
        self._resolver = _resolver()
        ours, theirs = socket.socketpair()
        self._link = Link(self._loop, ours, self._receive)
        return theirs.detach()

    def detach(self) -> None:
        """It has ended, and every connection with it."""
        if self._link is not None:
            self._link.close()
            self._link = None
        gone, self._live = self._live, {}
        for live in gone.values():
            self._authority.disconnected(live.process.name, live.cap.id, f"{live.where}: the broker ended")

    # -- what ends connections -------------------------------------------------------------------------------------

    def revoked(self, caps: set[str]) -> None:
        """What these allowed ends now."""
        self._cut([n for n, live in self._live.items() if live.cap.id in caps], "the capability was taken back")

    def process_ended(self, process: Process) -> None:
        """So does what it had open."""
        self._cut([n for n, live in self._live.items() if live.process is process], "the driver ended")

    def _cut(self, ns: list[int], reason: str) -> None:
        if ns:
            self._post(frames.Cut(ns, reason))

    # -- what the broker says --------------------------------------------------------------------------------------

    def _receive(self, frame: bytes) -> None:
        try:
            message = frames.to_kernel.decode(frame)
        except msgspec.MsgspecError as error:
            log.error("egress.malformed", err=str(error))
            return
        if isinstance(message, frames.Ask):
            self._asked(message)
        elif isinstance(message, frames.Moved):
            self._moved(message)
        elif isinstance(message, frames.Over):
            self._over(message)
        else:
            self._ready()
        self._written()

    def _asked(self, ask: frames.Ask, *, again: bool = False) -> None:
        if _resolver() != self._resolver:  # another network: the broker sees the old file, and its drivers ask again
            self._resolver = _resolver()
            self._restart()
            return
        alive = (one for one in self._processes if one.os_pid == ask.pid and one.alive)
        process = next((one for one in alive if one.born <= ask.since), None)
        unheard_of = any(one.state is State.STARTING and not one.os_pid for one in self._processes)
        if process is None and unheard_of and not again:  # one whose start we are about to hear of
            link = self._link  # its numbers mean nothing to the next broker
            self._loop.later(_LOOK_AGAIN_S, lambda: self._asked(ask, again=True) if link is self._link else None)
            return
        holder = process.name if process is not None else ""
        where = f"{ask.host}:{ask.port}"
        try:
            if process is None or process.kind is not Kind.DRIVER:
                raise OpError(Code.DENIED, "connections are for drivers", "reach the web through a driver's ops")
            cap = self._allowed(holder, ask.host, ask.port)
            self._authority.connecting(holder, cap, where)
        except OpError as error:
            self._authority.refused(holder, OP, error, where)
            self._post(frames.No(ask.n, error.code.value, error.detail, error.hint or ""))
            return
        except Exception:
            log.exception("egress.bug")
            self._post(frames.No(ask.n, Code.INTERNAL.value, "a bug in the kernel", ""))
            return
        self._live[ask.n] = _Live(process, cap, where)
        inside = Right("net", "connect", {"host": (ask.host,), "port": (str(ask.port),), "private": ("yes",)})
        metered = any(account.unit == "bytes" for account in cap.accounts)
        private = not {"yes", "*"}.isdisjoint(cap.right.scope.get("private", ()))
        self._post(frames.Yes(ask.n, private, metered, f"llmosctl perm grant {holder} '{inside}'"))

    def _allowed(self, holder: str, host: str, port: int) -> Capability:
        """The capability that allows it, one that allows addresses inside before others. Raises `OpError` `DENIED`, `BUDGET`."""
        values = {"host": (normal_value("host", host, "/"),), "port": (str(port),)}
        try:
            return self._authority.check(holder, "net", "connect", {**values, "private": ("yes",)})
        except OpError as inside:
            try:
                return self._authority.check(holder, "net", "connect", {**values, "private": ("no",)})
            except OpError as error:
                raise (inside if inside.code is Code.BUDGET else error) from None

    def _moved(self, moved: frames.Moved) -> None:
        live = self._live.get(moved.n)
        if live is None:
            return
        try:
            self._authority.charge(live.cap, bytes=moved.bytes)
        except OpError as error:
            self._authority.refused(live.process.name, OP, error, live.where)
            self._cut([moved.n], error.detail)

    def _over(self, over: frames.Over) -> None:
        live = self._live.pop(over.n, None)
        if live is None:
            return
        holder, where = live.process.name, f"{live.where} {over.address}".strip()
        if over.refused:
            self._authority.refused(holder, OP, OpError(Code.DENIED, over.reason), f"{where}: {over.reason}")
            return
        told = f"{where}: {over.reason}; sent={over.sent} received={over.received} seconds={over.seconds:g}"
        self._authority.disconnected(holder, live.cap.id, told)

    def _post(self, message: frames.Yes | frames.No | frames.Cut) -> None:
        if self._link is not None:
            self._link.post(frames.encode(message))


def _resolver() -> int:
    """Which file says how names are resolved; another one when it was replaced."""
    try:
        return RESOLVER.stat().st_ino
    except OSError:
        return 0


def check_right(right: Right) -> None:
    """Raises `OpError(INVALID_ARGUMENT)` for what means nothing of a connection."""
    for host in right.scope.get("host", ()):
        bare = host.removeprefix("*.")
        if host != "*" and normal_host(bare) != bare:
            hint = f"write {host.removesuffix(bare)}{normal_host(bare)}, as it is looked up"
            raise OpError(Code.INVALID_ARGUMENT, f"{right}: {host!r} would never be met", hint)
    for port in right.scope.get("port", ()):
        if port != "*" and not (port.isascii() and port.isdigit() and port[0] != "0" and int(port) < 1 << 16):
            raise OpError(Code.INVALID_ARGUMENT, f"{right}: {port!r} is no port", "give a number from 1 to 65535")
    for answer in right.scope.get("private", ()):
        if answer not in ("yes", "no", "*"):
            raise OpError(Code.INVALID_ARGUMENT, f"{right}: private is yes or no, not {answer!r}")
    if not right.unconditional:
        detail = f"{right}: nobody is asked about a connection, and what goes through it has no label"
        raise OpError(Code.INVALID_ARGUMENT, detail, "bound it by host and port; approval is for calls of the driver")


def refuse_others(right: Right, *, driver: bool) -> None:
    """Connections are for drivers. Raises `OpError(DENIED)`."""
    if right.object == "net" and not driver:
        raise OpError(Code.DENIED, f"{right} is for drivers", "agents and apps reach the web through a driver's ops")
