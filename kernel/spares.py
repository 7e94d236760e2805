"""Jails made before they are needed, so that an agent starts in a few milliseconds, and a driver that died is back in some more.

Each is a process of its own that was started from nothing, has imported llmos's own modules and waits. It is used once, by
one process, which is told only then who it is: nothing of one agent is ever in reach of another. What a jail shows cannot be
changed later, so a spare fits agents of the same policy; the policies wanted last have one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from llmos.ipc.errors import OpError
from llmos.kernel import params
from llmos.kernel.jail import Jailed, JailError, Layer, Policy, spawn, view
from llmos.kernel.loop import Loop, Timer

log = structlog.get_logger()


@dataclass(frozen=True)
class Command:
    """How a process is to be started: made anew for every start, so that a restart sees today's grants."""

    policy: Policy
    module: str
    args: Sequence[str] = ()
    pass_fds: tuple[int, ...] = ()
    """Handed to the process, and closed here once it has them."""
    own: Path | None = None
    """Where a directory is made that it alone uses, works in, and may write; None for none."""
    orders: bytes = b""
    """What it reads on its standard input, to its end. A process with orders may have been started before they were known."""
    program: str = ""
    """Of which there is one process at a time, so that what it was started with before is not wanted any more; empty for agents."""

    def fits(self, other: Command) -> bool:
        """Whether a process started for one serves the other."""
        return (self.policy, self.module, self.args, self.own) == (other.policy, other.module, other.args, other.own)


@dataclass(frozen=True)
class Start:
    """A started process, and its own directory, if it has one."""

    jailed: Jailed
    own: Path | None


def start(command: Command, layers: frozenset[Layer], prefix: Sequence[str]) -> Start:
    """Does not wait. `prefix` comes before the command, which it executes. Raises `JailError`, `OSError`."""
    policy, own = command.policy, None
    if command.own is not None:
        command.own.mkdir(parents=True, exist_ok=True, mode=0o700)
        own = command.own.resolve() / secrets.token_hex(8)
        own.mkdir(mode=0o700)
        policy = replace(policy, write=(own, *policy.write))
    try:
        jailed = spawn(
            policy,
            command.module,
            command.args,
            layers=layers,
            pass_fds=command.pass_fds,
            stdin=subprocess.PIPE if command.orders else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            prefix=prefix,
        )
    except (JailError, OSError):
        if own is not None:
            own.rmdir()
        raise
    if jailed.stderr is not None:
        os.set_blocking(jailed.stderr.fileno(), False)
    return Start(jailed, own)


def give(jailed: Jailed, orders: bytes) -> None:
    """Tell a process what it is to do. Raises `OSError`: it has ended, or there is more than a pipe holds."""
    stdin = jailed.stdin
    if stdin is None:
        return
    with contextlib.closing(stdin):
        os.set_blocking(stdin.fileno(), False)
        if len(orders) > fcntl.fcntl(stdin, fcntl.F_GETPIPE_SZ):
            fcntl.fcntl(stdin, fcntl.F_SETPIPE_SZ, len(orders))
        if os.write(stdin.fileno(), orders) < len(orders):
            raise OSError(errno.E2BIG, "its orders are too long for a pipe")


def _shown(command: Command) -> list[tuple[str, int, int]]:
    """What its jail is to show, as it is now. Raises `JailError` for what is not there."""
    return view.identities(command.policy)


@dataclass(eq=False)
class _Spare:
    command: Command
    start: Start
    shows: list[tuple[str, int, int]]
    """What its jail was to show when it was made: paths, with device and inode."""
    closed: bool = False
    """Whether its jail is."""


class Spares:
    """A few of them: one of each kind that was wanted last, and of the very last kind as many as there is room for, if `fill`.

    Args:
        make: starts one.
        discard: called with the directory of one that is not needed.
        most: how many at once.
        pause: seconds without a start after which one is made.
    """

    def __init__(
        self,
        make: Callable[[Command], Start],
        loop: Loop,
        discard: Callable[[Path], None],
        *,
        most: int,
        pause: float,
        fill: bool,
    ) -> None:
        self._start = make
        self._most = most
        self._pause = pause
        self._fill = fill
        self._loop = loop
        self._discard = discard
        self._spares: list[_Spare] = []
        self._wanted: list[Command] = []
        """What was started last, latest first, each kind once."""
        self._timer: Timer | None = None
        self._ending: list[_Spare] = []
        """Killed, and not reaped yet."""
        self._ended = False

    def expect(self, command: Command) -> None:
        """One like this is going to be wanted."""
        program = command.program
        others = [one for one in self._wanted if not one.fits(command) and not (program and one.program == program)]
        self._wanted = [command, *others][: self._most]
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.later(self._pause, self._make)

    def forget(self, program: str) -> None:
        """It is not going to be started again."""
        self._wanted = [one for one in self._wanted if one.program != program]
        for spare in [one for one in self._spares if one.command.program == program]:
            self._end(spare)

    def take(self, command: Command) -> Start | None:
        """One that is ready for these orders; None when there is none. Another is made in a while."""
        if not command.orders or self._ended:
            return None
        self.expect(command)
        fitting = [one for one in self._spares if one.closed and one.command.fits(command)]
        shows = _shown(command) if fitting else []
        for spare in fitting:
            if spare.shows != shows:  # a directory was renamed, mounted upon or upgraded: it would see the one before
                self._end(spare)
            elif spare.start.jailed.poll() is None:
                self._spares.remove(spare)
                return spare.start
        return None

    def reap(self) -> None:
        """Some process has ended; perhaps one of these."""
        for spare in [one for one in self._spares if one.start.jailed.poll() is not None]:
            self._end(spare)
            if self._timer is None and not self._ended:
                self._timer = self._loop.later(params.SPARE_AGAIN_S, self._make)
        for spare in [one for one in self._ending if one.start.jailed.poll() is not None]:
            self._over(spare)

    def close(self) -> None:
        """End them all."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        for spare in list(self._spares):
            self._end(spare)
        for spare in list(self._ending):
            with contextlib.suppress(subprocess.TimeoutExpired):
                spare.start.jailed.wait(params.TERM_S)
            self._over(spare)

    def _make(self) -> None:
        """One at a time; what is not wanted any more ends."""
        self._timer = None
        for spare in [one for one in self._spares if not any(one.command.fits(kind) for kind in self._wanted)]:
            self._end(spare)
        lacking = [kind for kind in self._wanted if not any(one.command.fits(kind) for one in self._spares)]
        if not lacking and (not self._wanted or not self._fill or len(self._spares) >= self._most):
            return
        if len(self._spares) >= self._most:
            self._end(self._spares[0])
        command = (lacking or self._wanted)[0]
        try:
            shows = _shown(command)
            made = self._start(command)
        except (JailError, OSError, OpError) as error:
            log.warning("spare.failed", err=str(error))
            return
        spare = _Spare(command, made, shows)
        self._spares.append(spare)
        self._loop.watch(made.jailed, lambda: self._closed(spare))

    def _closed(self, spare: _Spare) -> None:
        self._loop.unwatch(spare.start.jailed)
        try:
            spare.start.jailed.started(timeout=0)
        except (JailError, TimeoutError) as error:
            log.warning("spare.failed", err=str(error))
            self._end(spare)
            return
        spare.closed = True
        if self._timer is None:
            self._timer = self._loop.later(self._pause, self._make)

    def _end(self, spare: _Spare) -> None:
        self._spares.remove(spare)
        self._ending.append(spare)
        if not spare.closed:
            with contextlib.suppress(KeyError, ValueError):
                self._loop.unwatch(spare.start.jailed)
        spare.start.jailed.kill()

    def _over(self, spare: _Spare) -> None:
        self._ending.remove(spare)
        jailed = spare.start.jailed
        with contextlib.suppress(subprocess.TimeoutExpired):
            jailed.wait(0)
        for pipe in (jailed.stdin, jailed.stderr):
            if pipe is not None:
                pipe.close()
        if spare.start.own is not None:
            self._discard(spare.start.own)
