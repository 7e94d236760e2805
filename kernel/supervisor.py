"""Starts processes in their jails, notices when they end, and starts again those that should come back."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog

from llmos.ipc.errors import OpError
from llmos.kernel import exits, params
from llmos.kernel.jail import Jailed, JailError, Report
from llmos.kernel.loop import Loop, Timer
from llmos.kernel.process import Kind, Process, State, now
from llmos.kernel.spares import Command, Spares, Start, give, start
from llmos.kernel.sweep import Sweeper

log = structlog.get_logger()


class Supervisor:
    """Owns every child of the kernel.

    Args:
        prefix: what comes before the command of a process of a kind, so that it runs in a control group; empty for none.
        ended: called when a process has ended, after its resources are gone and before a restart is planned.
        command: makes the `Command` of a process. Raises `OpError` when it cannot be started now.
    """

    def __init__(
        self,
        loop: Loop,
        report: Report,
        command: Callable[[Process], Command],
        ended: Callable[[Process, str], None],
        prefix: Callable[[Kind], Sequence[str]] = lambda _: (),
    ) -> None:
        self._loop = loop
        self._report = report
        self._command = command
        self._sweeper = Sweeper(loop)
        self._spares = {
            kind: Spares(
                partial(start, layers=report.layers, prefix=prefix(kind)),
                loop,
                self._sweeper.sweep,
                most=most,
                pause=pause,
                fill=kind is Kind.AGENT,
            )
            for kind, most, pause in (
                (Kind.AGENT, params.SPARES, params.SPARE_S),
                (Kind.DRIVER, params.DRIVER_SPARES, params.DRIVER_SPARE_S),
            )
        }
        self._ended = ended
        self._prefix = prefix
        self._children: dict[Process, Jailed] = {}
        self._deadlines: dict[Process, Timer] = {}
        self._starting: set[Process] = set()
        """Agents that have not said hello yet."""
        self._in_line: deque[Process] = deque()
        """Agents that wait for one of them to have done so."""
        self._retired: set[Process] = set()
        """Those that are not to come back."""
        self._hopeless: set[Process] = set()
        """Those that a restart would not help, once they have ended."""
        self._stopping = False
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._signals = read
        self.on_signal: Callable[[int], None] = lambda _: None
        loop.watch(read, self._signalled)

    def start(self, process: Process) -> None:
        """Start it, or start it again. A start that fails at once counts as a crash; a jail that cannot be had fails it for good."""
        if self._stopping:
            process.state = State.ENDED
            return
        if process.kind is Kind.AGENT and len(self._starting) >= params.MAX_STARTING:
            self._in_line.append(process)
            return
        if process.kind is Kind.AGENT:
            self._starting.add(process)
        process.state, process.status, process.trouble, process.details = State.STARTING, "", "", ""
        process.started, process.born = now(), self._loop.clock()
        process.fresh_token()
        command = None
        try:
            command = self._command(process)
            spare = self._spares[process.kind].take(command) if process.kind in self._spares else None
            made = spare or start(command, self._report.layers, self._prefix(process.kind))
        except OSError as error:  # no memory, no process to be had: it may pass
            self._plan_restart(process, str(error))
            return
        except (JailError, OpError) as error:
            hint = getattr(error, "hint", "") or ""
            self._give_up(process, f"{error}" + (f" ({hint})" if hint and hint not in str(error) else ""))
            return
        finally:
            for fd in command.pass_fds if command is not None else ():
                os.close(fd)
        jailed = made.jailed
        process.jailed, process.own, process.from_spare = jailed, made.own, spare is not None
        self._children[process] = jailed
        if jailed.pid is None:
            self._loop.watch(jailed, lambda: self._started(process, jailed))
        else:
            process.os_pid = jailed.pid
        self._order(process, made, command.orders)
        if jailed.stderr is not None:
            self._loop.watch(jailed.stderr, lambda: self._drain(process, jailed))
        self._expect(process, params.LOAD_S if process.kind is Kind.CORE else params.HELLO_S, "it did not say hello")

    def _order(self, process: Process, made: Start, orders: bytes) -> None:
        try:
            give(made.jailed, orders)
        except OSError as error:
            process.trouble = f"it could not be told what to do: {error}"
            made.jailed.kill()

    def expect(self, command: Command) -> None:
        """An agent like this is going to be wanted soon."""
        self._spares[Kind.AGENT].expect(command)

    def sweep(self, folder: Path) -> None:
        """Delete what is in a folder of agents' own directories: those of agents that a kernel before this one had."""
        with contextlib.suppress(FileNotFoundError):
            for left in folder.iterdir():
                self._sweeper.sweep(left)

    def ready(self, process: Process) -> None:
        """It serves now; one that has been told to end cannot talk itself out of it."""
        if process.state is State.STARTING:
            process.state = State.READY
            self._settle(process)

    def greeted(self, process: Process) -> None:
        """It said hello; now it has a while to get ready."""
        self._next_in_line(process)
        if process.state is State.STARTING:
            self._expect(process, params.READY_S, "it did not get ready")

    def _next_in_line(self, process: Process) -> None:
        """An agent has started, or will not."""
        self._starting.discard(process)
        while self._in_line and len(self._starting) < params.MAX_STARTING:
            self.start(self._in_line.popleft())

    def lost(self, process: Process) -> None:
        """Its connection is gone though it lives: it has to say hello again, or start again."""
        if process.state is State.READY and process in self._children:
            process.state = State.STARTING
            self._expect(process, params.HELLO_S, "it lost its connection and did not come back")

    def stop(self, process: Process, *, force: bool = False) -> None:
        """End it: SIGTERM, and SIGKILL if that does not help. One that is down and should run is started."""
        jailed = self._children.get(process)
        if jailed is None:
            self._settle(process)
            if process in self._in_line:
                self._in_line.remove(process)
                process.state = State.ENDED
                self._ended(process, "it was ended before it started")
            elif process.kind is Kind.AGENT or self._stopping or process in self._retired:
                process.state = State.ENDED
            else:
                self.restart(process)
            return
        process.state = State.STOPPING
        if force:
            jailed.kill()
        else:
            jailed.terminate()
            self._settle(process)
            self._deadlines[process] = self._loop.later(params.TERM_S, jailed.kill)

    def put_down(self, process: Process, reason: str, details: str = "", *, for_good: bool = False) -> None:
        """Kill it at once, for this reason, in words that everybody may hear; `details` are for `status`.

        It is started again, unless `for_good`. The first reason counts.
        """
        if process.jailed is not None and process.state is not State.STOPPING and not process.trouble:
            process.trouble, process.details = reason, details or reason
            if for_good:
                self._hopeless.add(process)
            process.jailed.kill()

    def retire(self, process: Process) -> None:
        """End it for good: its program is not installed any more."""
        self._retired.add(process)
        self._spares[Kind.DRIVER].forget(process.program)
        self.stop(process)

    def restart(self, process: Process, *, soon: float = 0.0) -> None:
        """End it and start it again, after `soon` seconds in which another call of this counts for nothing."""
        process.failures = 0
        self._settle(process)
        process.state = State.STOPPING  # from now on calls wait for the next one
        jailed = self._children.get(process)
        self._deadlines[process] = self._loop.later(
            soon, jailed.kill if jailed is not None else lambda: self.start(process)
        )

    def stop_all(self, kind: Kind) -> None:
        """End all of a kind; no restarts, of any kind, from now on."""
        self._stopping = True
        for process in [one for one in self._children if one.kind is kind]:
            self.stop(process)

    def close(self) -> None:
        """Kill what is left and reap it."""
        self._stopping = True
        for process, jailed in list(self._children.items()):
            process.state = State.STOPPING
            jailed.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                jailed.wait(params.TERM_S)
            self._reap(process, jailed)
        for spares in self._spares.values():
            spares.close()
        self._sweeper.close()
        signal.set_wakeup_fd(-1)
        self._loop.unwatch(self._signals)
        os.close(self._signals)

    def ending(self, name: str) -> bool:
        """Whether a process of that name is on its way out for good."""
        return any(process.name == name and process in self._retired for process in self._children)

    def children(self, *kinds: Kind) -> int:
        """How many are alive, of these kinds."""
        return sum(process.kind in kinds for process in self._children)

    # -- what happens ----------------------------------------------------------------------------------------------

    def _signalled(self) -> None:
        numbers = set(os.read(self._signals, 4096))
        for process, jailed in list(self._children.items()):
            if jailed.poll() is not None:
                self._reap(process, jailed)
        for spares in self._spares.values():
            spares.reap()
        for number in numbers - {signal.SIGCHLD}:
            self.on_signal(number)

    def _started(self, process: Process, jailed: Jailed) -> None:
        self._loop.unwatch(jailed)
        try:
            process.os_pid = jailed.started(timeout=0).pid
        except (JailError, TimeoutError) as error:
            process.trouble = str(error)
            jailed.kill()

    def _drain(self, process: Process, jailed: Jailed) -> None:
        if jailed.stderr is None:
            return
        try:
            block = os.read(jailed.stderr.fileno(), 65536)
        except BlockingIOError:
            return
        if block:
            process.log.feed(block)
        else:
            self._close_log(jailed)

    def _close_log(self, jailed: Jailed) -> None:
        if jailed.stderr is not None and not jailed.stderr.closed:
            self._loop.unwatch(jailed.stderr)
            jailed.stderr.close()

    def _reap(self, process: Process, jailed: Jailed) -> None:
        del self._children[process]
        with contextlib.suppress(KeyError, ValueError):  # its outcome was never read
            self._loop.unwatch(jailed)
        with contextlib.suppress(ValueError, OSError):  # what it wrote last may say why it ended
            self._drain(process, jailed)
        self._close_log(jailed)
        status = jailed.wait(0)
        was = process.state
        reason, details = _why(process, jailed, status, asked=was is State.STOPPING)
        process.details = details
        process.log.add(f"llmos: {process.name} ended: {details}")
        process.jailed, process.os_pid, process.token = None, 0, ""
        self._settle(process)
        log.info("process.ended", pid=process.pid, name=process.name, reason=reason, state=was.value)
        log.debug("process.stderr", pid=process.pid, lines=list(process.log.lines)[-20:])
        if process.own is not None:
            self._sweeper.sweep(process.own)
            process.own = None
        if process.from_spare and process in self._starting and not process.trouble and was is State.STARTING:
            self._starting.discard(process)
            self.start(process)  # it was dead before it was anybody's
            return
        process.state = State.ENDED
        self._ended(process, reason)
        self._next_in_line(process)
        if process.kind is Kind.AGENT or self._stopping or process in self._retired:
            self._retired.discard(process)
            self._hopeless.discard(process)
            return
        if process in self._hopeless:
            self._hopeless.discard(process)
            self._give_up(process, reason, details)
            return
        self._plan_restart(process, reason, details, asked=was is State.STOPPING)

    def _plan_restart(self, process: Process, reason: str, details: str = "", *, asked: bool = False) -> None:
        """Start it again after a while that grows with its crashes in a row; an end that was `asked` for is none."""
        details = details or reason
        if process.kind is Kind.AGENT:
            self._give_up(process, reason)
            return
        lived = self._loop.clock() - process.born
        process.failures = 0 if asked else 1 if lived > params.CALM_S else process.failures + 1
        if process.failures > len(params.RESTART_S):
            often = f"it ended {process.failures} times in a row; the last time: "
            again = (
                f"; try again with `llmosctl driver restart {process.program}`" if process.kind is Kind.DRIVER else ""
            )
            self._give_up(process, often + reason, often + details + again)
            return
        process.state, process.status = State.WAITING, details
        process.restarts += 1
        pause = params.RESTART_S[max(0, process.failures - 1)] * random.uniform(0.8, 1.2)  # noqa: S311  (jitter, not a secret)
        self._deadlines[process] = self._loop.later(pause, lambda: self.start(process))

    def _give_up(self, process: Process, reason: str, details: str = "") -> None:
        process.state, process.status = State.FAILED, details or reason
        self._spares[Kind.DRIVER].forget(process.program)
        process.log.add(f"llmos: {process.name} is left down: {process.status}")
        log.error("process.failed", pid=process.pid, name=process.name, reason=reason)
        self._ended(process, reason)
        self._next_in_line(process)

    def _expect(self, process: Process, seconds: float, otherwise: str) -> None:
        self._settle(process)

        def late() -> None:
            process.trouble = f"{otherwise} within {seconds:.0f} s"
            if process.jailed is not None:
                process.jailed.kill()

        self._deadlines[process] = self._loop.later(seconds, late)

    def _settle(self, process: Process) -> None:
        timer = self._deadlines.pop(process, None)
        if timer is not None:
            timer.cancel()


def _why(process: Process, jailed: Jailed, status: int, *, asked: bool) -> tuple[str, str]:
    """Why it ended, in words for everybody, and in words for those who may see what it does."""
    if process.trouble:
        details = process.details or process.trouble
        said = exits.last_words(process.log.lines) if jailed.pid is None else ""  # bubblewrap's, or the inner half's
        return process.trouble, f"{details} ({said})" if said else details
    if asked:
        reason = (
            "killed: it did not end by itself when asked to"
            if status == -signal.SIGKILL
            else "exit: it was asked to end"
        )
        return reason, reason
    return exits.cause(status), exits.explain(status, process.log.lines)
