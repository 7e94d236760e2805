"""Whether those that serve still answer: drivers by a ping that their main thread answers, the core by its own word while it works."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from llmos.ipc import protocol
from llmos.ipc.protocol import Header, pack_header
from llmos.kernel import params
from llmos.kernel.calls import EMPTY
from llmos.kernel.loop import Loop
from llmos.kernel.process import Kind, Process, ProcessTable, State

_FIRST = 1 << 62
"""Ids of pings: calls never get that far."""


class Health:
    """Pings every driver that serves each `PING_S`.

    Args:
        send: a message to a connection.
        core_stuck: how it was noticed that the core is stuck; empty when it is not.
        failed: told of one that does not answer, and how that was noticed.
    """

    def __init__(
        self,
        loop: Loop,
        processes: ProcessTable,
        send: Callable[[int, bytes, bytes], None],
        core_stuck: Callable[[], str],
        failed: Callable[[Process, str], None],
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._send = send
        self._core_stuck = core_stuck
        self._failed = failed
        self._ids = itertools.count(_FIRST)
        self._open: dict[int, tuple[int, int]] = {}
        """Connection → the ping that it has not answered, and how many times it was looked for."""

    def start(self) -> None:
        """From now on."""
        self._loop.later(params.PING_S, self._turn)

    def answered(self, conn: int, number: int) -> bool:
        """Whether a reply with this id was one to a ping; only the ping's own connection can answer it."""
        if number < _FIRST:
            return False
        if self._open.get(conn, (0, 0))[0] == number:
            del self._open[conn]
        return True

    def _turn(self) -> None:
        self._loop.later(params.PING_S, self._turn)
        serving = [one for one in self._processes if one.kind is Kind.DRIVER and one.state is State.READY and one.conn]
        conns = {one.conn for one in serving}
        self._open = {conn: ping for conn, ping in self._open.items() if conn in conns}
        for process in serving:
            number, missed = self._open.get(process.conn, (0, 0))
            if not number:
                self._ping(process.conn)
            elif missed + 1 < params.PING_MISSES:
                self._open[process.conn] = number, missed + 1
            else:
                del self._open[process.conn]
                self._failed(process, f"it did not answer for {params.PING_MISSES * params.PING_S:g} s")
        stuck = self._core_stuck()
        core = next((one for one in self._processes if one.kind is Kind.CORE), None)
        if core is not None and stuck:
            self._failed(core, stuck)

    def _ping(self, conn: int) -> None:
        number = next(self._ids)
        self._open[conn] = number, 0
        limit = int(params.PING_S * params.PING_MISSES * 1000)
        header = Header(kind=protocol.Kind.CALL, id=number, op=protocol.Ping.OP, deadline_ms=limit, sender="kernel")
        self._send(conn, pack_header(header), EMPTY)
