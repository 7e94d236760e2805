"""Agents' lives: born with what they were handed and what their spawner has seen, gone with all that came of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmos.ipc import manifest as manifests
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Effect
from llmos.kernel import net, params
from llmos.kernel.authority import Authority
from llmos.kernel.calls import Call
from llmos.kernel.capability import USER, Capability, Right
from llmos.kernel.flow import Mode
from llmos.kernel.labels import Label
from llmos.kernel.process import Kind, LogRing, Process, ProcessTable
from llmos.kernel.programs import Programs, refuse_control
from llmos.kernel.supervisor import Supervisor


@dataclass(frozen=True)
class Birth:
    """What an agent is to be started with.

    Args:
        allow: texts of the capabilities it is handed; None for what its manifest asks for, and what was granted to it.
        label: of the call that spawns it, with all its arguments.
    """

    program: str
    args: dict[str, Any]
    allow: list[str] | None
    giver: str
    parent: int
    label: Label
    mode: Mode = Mode.DEFAULT


class Agents:
    """Every agent that runs, who waits for it, and what the last ones wrote before they ended."""

    def __init__(
        self,
        authority: Authority,
        programs: Programs,
        processes: ProcessTable,
        supervisor: Supervisor,
        home: str,
        revoked: Callable[[list[Capability]], object],
    ) -> None:
        self._authority = authority
        self._programs = programs
        self._processes = processes
        self._supervisor = supervisor
        self._home = home
        self._revoked = revoked
        self.waiters: dict[int, Call] = {}
        """Agent's pid → the call that waits for its result."""
        self.ended_logs: OrderedDict[str, LogRing] = OrderedDict()
        """What agents that ended last wrote to stderr, by name."""

    def spawn(self, birth: Birth) -> Process:
        """Start one with capabilities derived from its spawner's. Raises `OpError`."""
        caps, giver = self._authority.caps, birth.giver
        manifest = self._programs.agent(birth.program)
        checked = manifests.Op(effect=Effect.EXEC, summary=manifest.summary, args=manifest.args)
        checked.check(birth.args)
        texts = manifest.permissions.capabilities() if birth.allow is None else birth.allow
        rights = [Right.parse(text, self._home, self._programs.scope_kinds) for text in texts]
        for right in rights:
            self._programs.check_right(right)
            refuse_control(right)
            net.refuse_others(right, driver=False)
        if giver != USER and self._kin(birth.parent) >= params.MAX_CHILDREN:
            detail = f"{params.MAX_CHILDREN} processes that {giver} and its like spawned are alive"
            raise OpError(Code.BUSY, detail, "wait for some to end")
        takes_grants = giver == USER and birth.allow is None
        process = self._processes.add(
            Kind.AGENT,
            birth.program,
            parent=birth.parent,
            manifest=manifest,
            args=birth.args,
            takes_grants=takes_grants,
        )
        try:
            for right in rights:
                caps.derive(giver, right, process.name, f"spawned by {giver}")
            for cap in list(caps.held(birth.program)) if takes_grants else ():
                caps.lend(cap, process.name, "granted")
            self._authority.charge(None)
            self._authority.handed(process.name, giver, caps.held(process.name))
        except OpError:
            caps.drop(process.name)
            self._processes.remove(process)
            raise
        self._authority.agent_born(process.name, birth.program, giver, birth.label, birth.args, birth.mode)
        self._supervisor.start(process)
        return process

    def _kin(self, parent: int) -> int:
        """How many agents descend from the same first one as `parent`; without a parent, how many have none: apps' and the user's."""
        agents = [one for one in self._processes if one.kind is Kind.AGENT]
        if not parent:
            return sum(not one.parent for one in agents)
        root = self._root(parent)
        return sum(self._root(one.pid) == root for one in agents)

    def _root(self, pid: int) -> int:
        """The first of its line that is still known."""
        parents = {one.pid: one.parent for one in self._processes}
        while parents.get(pid):
            pid = parents[pid]
        return pid

    def granted(self, cap: Capability) -> None:
        """What was granted to a program, its instances hold at once."""
        for process in self._processes:
            if process.kind is Kind.AGENT and process.program == cap.holder and process.takes_grants:
                self._authority.caps.lend(cap, process.name, "granted")

    def ended(self, process: Process, reason: str) -> None:
        """Whoever waits for it hears so, and all that it had goes."""
        waiter = self.waiters.pop(process.pid, None)
        if waiter is not None:
            detail = f"{process.name} ended without a result ({reason})"
            label = self._authority.labels.of(process.name)  # its exit status is its own word
            source = self._authority.labels.source(process.name, "its end", label)
            waiter.fail(OpError(Code.PEER_DIED, detail, f"see `llmosctl logs {process.name}`"), label, source)
        self._revoked(self._authority.ended(process.name))
        self._processes.remove(process)
        self.ended_logs[process.name] = process.log
        while len(self.ended_logs) > params.LOGS_OF_ENDED:
            self.ended_logs.popitem(last=False)

    def stop_waiting(self, process: Process) -> None:
        """Nobody waits for its result any more: it has given it, or its caller has gone and it ends with it."""
        if self.waiters.pop(process.pid, None) is not None:
            self._supervisor.stop(process)
