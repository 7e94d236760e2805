"""Drivers' lives: which of the installed ones run, what each is by being installed, what a new scan changes."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from llmos.ipc.errors import OpError
from llmos.kernel import params
from llmos.kernel.authority import Authority
from llmos.kernel.capability import Capability, Right
from llmos.kernel.choices import Choices
from llmos.kernel.forward import Forwarder
from llmos.kernel.loop import Loop
from llmos.kernel.process import Kind, Process, ProcessTable
from llmos.kernel.programs import Changes, Programs
from llmos.kernel.supervisor import Supervisor
from llmos.kernel.topics import Topics

log = structlog.get_logger()


class Drivers:
    """Starts and ends them; the supervisor sees to those that run.

    Args:
        revoked: told of the capabilities that a driver had by its manifest alone, when that is gone.
        settled: called when one that was waited for will not come.
    """

    def __init__(
        self,
        loop: Loop,
        programs: Programs,
        processes: ProcessTable,
        supervisor: Supervisor,
        authority: Authority,
        forwarder: Forwarder,
        topics: Topics,
        choices: Choices,
        revoked: Callable[[list[Capability], str], object],
        settled: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._programs = programs
        self._processes = processes
        self._supervisor = supervisor
        self._authority = authority
        self._forwarder = forwarder
        self._topics = topics
        self._choices = choices
        self._revoked = revoked
        self._settled = settled
        self._declared: dict[str, list[str]] = {}
        """Driver → the capabilities it has by its manifest alone."""

    def admit_all(self) -> None:
        """What every driver is by being installed."""
        for name in self._programs.drivers:
            self._admit(name)

    def start_all(self) -> None:
        for name in self._programs.drivers:
            self._start_installed(name)

    def start(self, name: str) -> None:
        """Unless the user has switched it off, or it is there. Calls may come from now on."""
        if name not in self._choices.off and self._processes.named(name) is None:
            self._start_alone(self._processes.add(Kind.DRIVER, name, manifest=self._programs.drivers[name]))

    def end(self, name: str, why: str) -> None:
        """For good: nothing starts it again by itself."""
        process = self._processes.named(name)
        if process is not None:
            self._supervisor.retire(process)
            self._processes.remove(process)
            self._forwarder.given_up(process, why)
            self._settled()

    def rescan(self) -> Changes:
        """Something was installed or removed: new drivers start, changed ones start again, removed ones end."""
        changes = self._programs.scan()
        caps = self._authority.caps
        for name in (*changes.removed, *changes.changed):
            self._revoked([cap for one in self._declared.pop(name, []) for cap in caps.revoke(one)], "removed")
        for name in changes.removed:
            self.end(name, "it was removed")
        for name in (*changes.added, *changes.changed):
            manifest = self._programs.drivers[name]
            self._admit(name)
            self._topics.declare_for(manifest)
            process = self._processes.named(name)
            if process is None:
                self._start_installed(name)
            else:
                process.manifest = manifest
                self._supervisor.restart(process)
        return changes

    def trust_changed(self, name: str) -> None:
        """`label.trust` was given to it, or taken back."""
        self._authority.born(name, self._forwarder.driver_label(name), "its manifest", fixed=True)

    def _start_installed(self, name: str) -> None:
        """One that there is no room for stays down; a package with hundreds of drivers must not keep the system from booting."""
        try:
            self.start(name)
        except OpError as error:
            self._programs.broken[name] = error.detail
            log.error("driver.no_room", name=name, err=error.detail)

    def _start_alone(self, process: Process) -> None:
        """Once an earlier one of its name has ended: two would share a state directory."""
        if self._supervisor.ending(process.name):
            self._loop.later(params.LEAVING_S, lambda: self._start_alone(process))
        elif not process.born and self._processes.named(process.name) is process:
            self._supervisor.start(process)

    def _admit(self, name: str) -> None:
        """Its label, and its own topics to publish on."""
        manifest = self._programs.drivers[name]
        if manifest.topics:
            own = Right("bus", "publish", {"topic": tuple(manifest.topics)})
            self._declared[name] = [self._authority.caps.mint(name, own, "its manifest declares them").id]
        self.trust_changed(name)
