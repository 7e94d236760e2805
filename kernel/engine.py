"""The core's life: which model it loads, and when it starts. What runs in it is `inference.py`'s."""

from __future__ import annotations

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from llmos.kernel.inference import Model
from llmos.kernel.journal import Journal
from llmos.kernel.loop import Loop, Timer
from llmos.kernel.process import Kind, Process, ProcessTable
from llmos.kernel.supervisor import Supervisor


class Engine:
    """One core at a time; it is started again to take another model."""

    def __init__(
        self, loop: Loop, model: Model, processes: ProcessTable, supervisor: Supervisor, journal: Journal
    ) -> None:
        self._loop = loop
        self._model = model
        self._processes = processes
        self._supervisor = supervisor
        self._journal = journal
        self._process: Process | None = None
        self._due: Timer | None = None

    def choose(self, name: str | None) -> None:
        """The model of this run: the one named, else the one last chosen, else a default. Raises `OpError(NOT_FOUND)`.

        It is loaded after the drivers have started, so that it does not hold them up.
        """
        self._model.name = self._present(name if name is not None else self._remembered())
        if self._model.name is not None:
            self._model.state = "starting"
            self._due = self._loop.later(params.CORE_START_S, self._start)

    def drivers_ready(self) -> None:
        """There is nothing more to wait for."""
        if self._due is not None:
            self._start()

    def load(self, name: str) -> None:
        """Take another model, from now on. Raises `OpError(NOT_FOUND)`."""
        self._model.name = self._present(name)
        self._start()

    def default(self, name: str | None) -> str | None:
        """What the next start takes, having made it `name` if that is given; what is loaded stays. Raises `OpError(NOT_FOUND)`."""
        if name is not None:
            self._present(name)
            self._journal.set("model", name)
        return self._model.choose(self._remembered())

    def settled(self) -> None:
        """The core has loaded its model, or could not: it is up, and can load another."""
        if self._process is not None:
            self._supervisor.ready(self._process)

    def _remembered(self) -> str | None:
        """The model last chosen; one that has been removed since is no reason not to boot."""
        name = self._journal.get("model")
        return name if name is not None and self._model.choose(name) is not None else None

    def _present(self, name: str | None) -> str | None:
        chosen = self._model.choose(name)
        if chosen is None and name is not None:
            hint = f"llmosctl model pull {name}, or see `llmosctl model ls`"
            raise OpError(Code.NOT_FOUND, f"no model {name!r} is installed", hint)
        return chosen

    def _start(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._process is None:
            self._process = self._processes.add(Kind.CORE, "core")
            self._supervisor.start(self._process)
        else:
            self._supervisor.restart(self._process)
