"""The watchdog: what every jail uses, looked at in turn and a little at a time, against what its kind may use.

One that uses more is reported, with what there was of it; ending it is the supervisor's. Where control groups hold the limits
(`cgroup.py`) they act first, and this is what remains: disk, and who computes for nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from llmos.kernel import params, usage
from llmos.kernel.disk import Walk
from llmos.kernel.loop import Loop
from llmos.kernel.process import Kind, Process, ProcessTable
from llmos.kernel.usage import Allowed

log = structlog.get_logger()


@dataclass(frozen=True)
class Excess:
    """Of what a process uses too much."""

    limit: str
    """`memory`, `tasks`, `cpu` or `disk`."""
    used: float
    allowed: float
    """In MB, tasks, seconds beyond a fifth of a processor, or MB; of a directory with too many files, the files."""
    public: str
    """In words that say nothing of what the process did."""
    details: str
    lasting: bool = False
    """Whether it would be the same after a restart."""


class Watchdog:
    """Looks at all processes within `WATCH_S`.

    Args:
        directory: of a process; None for one that has none.
        serving: whether it has a call to show for the time that it takes.
        over: told of an excess.
    """

    def __init__(
        self,
        loop: Loop,
        processes: ProcessTable,
        directory: Callable[[Process], Path | None],
        serving: Callable[[Process], bool],
        over: Callable[[Process, Excess], None],
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._directory = directory
        self._serving = serving
        self._over = over
        self._looked: dict[Process, None] = {}
        """Those that have had their turn in this round."""
        self._walk: tuple[Process, Walk] | None = None
        self._walked: dict[Process, float] = {}
        """When each one's directory was last gone through."""

    def start(self) -> None:
        """From now on."""
        self._loop.later(params.WATCH_S, self._turn)
        self._loop.later(params.WATCH_S, self._walk_on)

    # -- memory, processes, processor ----------------------------------------------------------------------------------

    def _turn(self) -> None:
        alive = [one for one in self._processes if self._watched(one)]
        chosen = next((one for one in alive if one not in self._looked), None)
        if chosen is None:
            self._looked.clear()
            chosen = alive[0] if alive else None
        self._loop.later(params.WATCH_S / max(1, len(alive)), self._turn)
        if chosen is not None:
            self._looked[chosen] = None
            self._look(chosen)

    def _watched(self, process: Process) -> bool:
        return process.alive and process.jailed is not None and process.jailed.pid is not None

    def _look(self, process: Process) -> None:
        if process.jailed is None:
            return
        allowed, now = Allowed.of(process.kind.value), self._loop.clock()
        pids = usage.members(process.jailed.monitor)
        seen = usage.sample(pids, self._device(process))
        known = process.usage
        if known.at < process.born:  # it has been started again since
            process.usage = known = usage.Usage()
        memory = seen.rss + seen.held_memory
        if seen.rss <= params.WATCH_PSS_RSS or (allowed.memory is not None and memory > allowed.memory):
            told = usage.shared_out(pids)
            memory = memory if told is None else told[0] + max(told[1], seen.held_memory)
        took, passed = max(0.0, seen.cpu_s - known.cpu_s), now - (known.at or process.born)
        known.share = took / max(passed, 1e-3)
        charged = 0.0 if self._serving(process) else took
        known.burnt = max(0.0, known.burnt + charged - params.BURN_SHARE * passed)
        known.at, known.memory, known.cpu_s, known.tasks = now, memory, seen.cpu_s, seen.tasks
        known.held = seen.held_disk
        excess = self._excess(process, allowed)
        if excess is not None:
            self._report(process, excess)

    def _excess(self, process: Process, allowed: Allowed) -> Excess | None:
        seen = process.usage
        if allowed.memory is not None and seen.memory > allowed.memory:
            return _sized("memory", "it used more memory than it may", "it used", seen.memory, allowed.memory)
        if seen.tasks > params.MAX_TASKS:
            details = f"it had {seen.tasks} processes and threads, and may have {params.MAX_TASKS}"
            return Excess("tasks", seen.tasks, params.MAX_TASKS, "it had more processes than it may", details)
        if allowed.burn_s is not None and seen.burnt > allowed.burn_s:
            details = f"it kept a processor busy for {seen.burnt:.0f} s more than it may with no call to show for it"
            return Excess("cpu", round(seen.burnt, 1), allowed.burn_s, "it kept a processor busy for nobody", details)
        if allowed.disk is not None and seen.disk + seen.held > allowed.disk:
            words = f"with {seen.disk / 1e6:.0f} MB in its directory, files that it had deleted and held open made"
            return _sized(
                "disk", "it took more room on the disk than it may", words, seen.disk + seen.held, allowed.disk
            )
        return None

    # -- the disk ------------------------------------------------------------------------------------------------------

    def _walk_on(self) -> None:
        if self._walk is None:
            self._next_walk()
        self._loop.later(params.WATCH_PAUSE_S if self._walk is not None else params.WATCH_IDLE_S, self._walk_on)
        if self._walk is None:
            return
        process, walk = self._walk
        if not self._watched(process):
            walk.close()
            self._walk = None
        elif walk.step(params.WATCH_ENTRIES):
            self._walk = None
            process.usage.disk, process.usage.files = walk.bytes, walk.files
            if walk.over:
                self._report(process, self._full(process, Allowed.of(process.kind.value), hidden=walk.hidden))

    def _next_walk(self) -> None:
        """The one that was not looked through for longest, if that is long enough ago."""
        now = self._loop.clock()
        waiting = [one for one in self._processes if self._watched(one) and self._directory(one) is not None]
        self._walked = {one: self._walked[one] for one in waiting if one in self._walked}
        chosen = min(waiting, key=lambda one: self._walked.get(one, 0.0), default=None)
        if chosen is None or now - self._walked.get(chosen, 0.0) < params.WATCH_S:
            return
        self._walked[chosen] = now
        path, allowed = self._directory(chosen), Allowed.of(chosen.kind.value)
        if path is not None and allowed.disk is not None and allowed.files is not None:
            self._walk = chosen, Walk(path, allowed.disk, allowed.files)

    def _full(self, process: Process, allowed: Allowed, *, hidden: bool = False) -> Excess:
        seen, path = process.usage, self._directory(process)
        public = "its directory holds more than it may"
        if hidden:
            deep = f"{path} holds what cannot be looked at: more than {params.WATCH_DEPTH} directories deep, or closed"
            found = Excess("disk", 0, 0, public, deep)
        elif allowed.files is not None and seen.files > allowed.files:
            details = f"{path} holds more than {allowed.files} files"
            found = Excess("disk", seen.files, allowed.files, public, details)
        else:
            found = _sized("disk", public, f"{path} holds", seen.disk, allowed.disk or 0)
        if process.kind is not Kind.DRIVER:
            return found
        hint = f"take out what is not needed there, then `llmosctl driver restart {process.program}`"
        return replace(found, details=f"{found.details}; {hint}", lasting=True)

    def _report(self, process: Process, excess: Excess) -> None:
        log.warning("process.limit", name=process.name, limit=excess.limit, used=excess.used, allowed=excess.allowed)
        process.usage.burnt = 0.0
        self._over(process, excess)

    def _device(self, process: Process) -> int:
        path = self._directory(process)
        with suppress(OSError):
            return path.stat().st_dev if path is not None else -1
        return -1


def _sized(limit: str, public: str, words: str, used: int, allowed: int) -> Excess:
    details = f"{words} {used / 1e6:.0f} MB, and may have {allowed / 1e6:.0f} MB"
    return Excess(limit, round(used / 1e6, 1), round(allowed / 1e6, 1), public, details)
