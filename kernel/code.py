"""Running programs: a jail for each, its output on the way to its caller, its limits, and what it left behind.

A program starts when its project has been looked through, and its answer goes out when that has been done again, so that it can say what
became of each file. In between the loop watches its pipes and its end, and looks at what it uses. What ends the call ends the program, and
what ends the program ends all that it started: the process namespace it is alone in goes with it.

There is no network: whoever has `Policy.network` reaches everything that the machine does, and a way to the egress broker, which asks for
single hosts, would be one to the bus.
"""

from __future__ import annotations

import marshal
import os
import signal
import subprocess
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import RunCode
from llmos.kernel import code_files, params
from llmos.kernel.authority import Authority
from llmos.kernel.calls import Call
from llmos.kernel.capability import USER
from llmos.kernel.code_projects import Project, Projects
from llmos.kernel.code_run import Output, Run, policy, sealed
from llmos.kernel.code_usage import Usage, look
from llmos.kernel.flow import Decision, Request, Verdict
from llmos.kernel.jail import JailError, Layer, Report, spawn
from llmos.kernel.journal import Journal
from llmos.kernel.labels import Label, Source
from llmos.kernel.loop import Loop
from llmos.kernel.process import Kind, Process, ProcessTable, State, now
from llmos.kernel.sweep import Sweeper

log = structlog.get_logger()

_T = TypeVar("_T")


class CodeRuns:
    """All programs that run, and the projects they run in.

    Args:
        root: the directory of the projects.
    """

    def __init__(
        self,
        loop: Loop,
        root: Path,
        journal: Journal,
        authority: Authority,
        processes: ProcessTable,
        report: Report,
    ) -> None:
        self._loop = loop
        self._authority = authority
        self._processes = processes
        self._report = report
        self._runs: dict[int, Run] = {}
        self._sweeper = Sweeper(loop)
        self.projects = Projects(root, journal)
        self.sweep()

    # -- what it is asked ------------------------------------------------------------------------------------------

    def run(self, call: Call, args: RunCode, parent: int) -> None:
        """Answer `call` when the program has ended. Raises `OpError`."""
        if (args.source is None) == (args.file is None):
            raise OpError(Code.INVALID_ARGUMENT, "code.run: give either source or file")
        if args.processes and Layer.MOUNTS not in self._report.layers:
            raise OpError(
                Code.UNAVAILABLE, "code.run: processes can be held together in tier A only", "llmosctl doctor"
            )
        if args.file is not None:
            self.projects.get(args.project)
        self.refuse_running(args.project)
        mine = sum(run.call.holder == call.holder for run in self._runs.values())
        if not params.share(params.CODE_RUNS, mine, len(self._runs) - mine):
            detail = f"{len(self._runs)} programs run, {mine} of them yours"
            raise OpError(Code.BUSY, detail, "wait for one to end, or end one with `llmosctl kill`")
        project = self.enter(call, args.project)
        directory = self.projects.open(args.project)
        try:
            if args.file is not None:
                code_files.read(directory, args.file, 0, 1)
            told = {"project": args.project}
            process = self._processes.add(Kind.CODE, "code", parent=parent, args=told)
        except OpError:
            os.close(directory)
            raise
        process.status = f"in {args.project}, for {call.holder}"
        process.started = now()
        run = self._runs[process.pid] = Run(call, args, project, process, directory, self._loop.clock())
        call.on_end = lambda: self._end(run, "its caller did not want it any more")
        self._slowly(code_files.scan(directory), lambda found: self._start(run, found), lambda e: self._fail(run, e))

    def refuse_running(self, project: str) -> None:
        """Raises `OpError(BUSY)` while a program runs in it: what it does to the directory is not to meet what we do."""
        if self.running(project):
            raise OpError(Code.BUSY, f"a program runs in the project {project}", "see `llmosctl ps`")

    def running(self, project: str) -> bool:
        return any(run.args.project == project for run in self._runs.values())

    def judge(self, request: Request, decision: Decision) -> Decision:
        """What the sink rule said of a run, with what it cannot know: who may have written the file that is to run."""
        project = str(request.args.get("project", ""))
        if request.holder == USER or request.args.get("file") is None or self.projects.label(project).trusted:
            return decision
        return decision.at_least(Verdict.ASK, "file: a stranger may have written what is in the project")

    def enter(self, call: Call, project: str) -> Project:
        """What a call brings is about to go into a project. Raises `OpError` `BUSY`, `UNAVAILABLE`."""
        source = self._authority.labels.source(call.holder, call.op, call.label, call.id)
        return self.projects.enter(project, call.label, source.taints)

    def look(self, call: Call, project: str, then: Callable[[int, code_files.Listing], None]) -> None:
        """Hand `then` the project's directory and what is in it, unless `call` has ended by then. Raises `OpError`."""
        directory = self.projects.open(project)

        def found(listing: code_files.Listing) -> None:
            try:
                if not call.done:
                    then(directory, listing)
            except OpError as error:
                call.fail(error, *self.told_by(project, call))
            finally:
                os.close(directory)

        def failed(error: OpError) -> None:
            os.close(directory)
            call.fail(error)

        self._slowly(code_files.scan(directory), found, failed)

    def told_by(self, project: str, call: Call) -> tuple[Label, Source]:
        """The label of what comes out of a project, and where it came from."""
        label = self.projects.label(project)
        return label, Source(f"code {project}", call.op, call.id, self.projects.taints(project))

    def kill(self, process: Process) -> None:
        """The user's word."""
        self._end(self._runs[process.pid], "it was killed")

    def sweep(self) -> None:
        """Delete what was thrown away."""
        for thrown in self.projects.thrown():
            self._sweeper.sweep(thrown)

    def stop_all(self) -> None:
        for run in list(self._runs.values()):
            self._end(run, "the system is going down")

    def close(self) -> None:
        """Kill what is left and reap it."""
        for run in self._runs.values():
            if run.jailed is not None:
                run.jailed.kill()
                with suppress(subprocess.TimeoutExpired):
                    run.jailed.wait(params.TERM_S)
        self._sweeper.close()
        self.projects.close()

    # -- a program's life ------------------------------------------------------------------------------------------

    def _start(self, run: Run, found: code_files.Listing) -> None:
        run.before = found
        full = found.over or self.projects.room()
        if run.why:  # it was ended before it began
            self._fail(run, OpError(Code.CANCELLED, f"code.run: {run.why}"))
        elif full:
            self._fail(run, OpError(Code.TOO_LARGE, full, f"llmosctl code rm {run.args.project} PATH"))
        else:
            try:
                self._spawn(run)
            except (JailError, OSError) as error:
                if run.jailed is not None:
                    run.jailed.kill()
                    with suppress(subprocess.TimeoutExpired):
                        run.jailed.wait(params.TERM_S)
                self._fail(run, _unavailable(error))

    def _spawn(self, run: Run) -> None:
        """Raises `JailError`, `OSError`."""
        args = run.args
        told = marshal.dumps({"source": args.source, "file": args.file, "args": args.args})
        run.report, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with (
            os.fdopen(theirs, "wb") as reports,
            sealed(told) as program,
            sealed(args.stdin.encode(errors="replace")) as stdin,
        ):
            run.jailed = jailed = spawn(
                policy(args, self.projects.path(args.project), self._report.tier),
                "llmos.kernel.code_inner",
                (str(program.fileno()), str(reports.fileno())),
                layers=self._report.layers,
                pass_fds=(program.fileno(), reports.fileno()),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        run.process.jailed = jailed
        for name, pipe in (("stdout", jailed.stdout), ("stderr", jailed.stderr)):
            if pipe is not None:
                run.outputs.append(Output(name, pipe, args.output_bytes))
        run.monitor = os.pidfd_open(jailed.monitor)
        self._watch(run)
        self._loop.watch(run.monitor, lambda: self._ended(run))
        self._loop.watch(jailed, lambda: self._closed(run))
        run.closing = True
        late = f"it did not start within {params.CODE_START_S:g} s"
        run.end_by(self._loop.later(params.CODE_START_S, lambda: self._end(run, late)))

    def _closed(self, run: Run) -> None:
        """The jail is closed, or could not be. Its time begins."""
        if run.jailed is None or not run.closing:
            return
        self._stop_waiting(run)
        try:
            run.process.os_pid = run.jailed.started(timeout=0).pid
        except (JailError, TimeoutError) as error:
            run.call.fail(_unavailable(error))
            return
        if run.jailed.init is not None:
            with suppress(OSError):  # it has ended already, and all with it
                run.init = os.pidfd_open(run.jailed.init)
        run.process.state = State.READY
        run.started = run.process.born = self._loop.clock()
        late = f"it took longer than {run.args.seconds:g} s"
        run.end_by(self._loop.later(run.args.seconds, lambda: self._end(run, late)))
        self._look_at(run)

    def _stop_waiting(self, run: Run) -> None:
        """For the jail to be closed."""
        if run.closing and run.jailed is not None:
            run.closing = False
            self._loop.unwatch(run.jailed)

    def _look_at(self, run: Run) -> None:
        """What it uses; from time to time."""
        if run.over or run.why or run.jailed is None:
            return
        began = self._loop.clock()
        used = look(run.jailed.monitor, os.fstat(run.directory).st_dev, run.used)
        self._slowly(used, lambda told: self._judge(run, told, began), lambda error: self._end(run, error.detail))

    def _judge(self, run: Run, used: Usage, began: float) -> None:
        """Whether it may go on like this; the more of it there is, the longer until the next look."""
        if run.over or run.why:
            return
        run.used = used
        full = self.projects.room()
        if run.used.now_mb > run.args.memory_mb:
            self._end(run, f"it needed more than {run.args.memory_mb} MB")
        elif run.used.held_bytes > params.CODE_BYTES:
            self._end(run, f"it held more than {params.CODE_BYTES >> 20} MiB in files that it had deleted")
        elif full:
            self._end(run, full)
        elif not run.looking:
            run.looking = True
            scan = code_files.scan(run.directory)
            self._slowly(scan, lambda found: self._looked(run, found), lambda error: self._end(run, error.detail))
        pause = min(max(params.CODE_WATCH_S, 10 * (self._loop.clock() - began)), params.CODE_WATCH_MOST_S)
        run.watch = self._loop.later(pause, lambda: self._look_at(run))

    def _looked(self, run: Run, found: code_files.Listing) -> None:
        run.looking = False
        if found.over:
            self._end(run, found.over)

    def _end(self, run: Run, why: str) -> None:
        """For this reason, unless there was another before, or it has ended by itself."""
        if run.over:
            return
        run.why = run.why or why
        if run.jailed is not None:
            self._stop_waiting(run)
            run.jailed.kill()

    # -- its output ------------------------------------------------------------------------------------------------

    def _watch(self, run: Run) -> None:
        """Take what comes from now on; from a program whose reader is slow, once that has taken what there was."""
        if run.call.is_behind():
            run.call.on_drained = partial(self._watch, run)
            return
        for output in run.outputs:
            if not output.watched and not output.ended:
                output.watched = True
                self._loop.watch(output.pipe, partial(self._readable, run, output))

    def _unwatch(self, output: Output) -> None:
        if output.watched:
            output.watched = False
            self._loop.unwatch(output.pipe)

    def _readable(self, run: Run, output: Output) -> None:
        """Take a block, and then nothing for a moment: one that writes byte by byte must not keep the loop busy."""
        self._read(run, output)
        self._unwatch(output)
        self._loop.later(params.CODE_PAUSE_S, partial(self._watch, run))

    def _read(self, run: Run, output: Output) -> bool:
        """Whether there was something, or its end."""
        try:
            text = output.take()
        except BlockingIOError:
            return False
        if text:
            label, source = self.told_by(run.args.project, run.call)
            run.call.chunk({"stream": output.name, "text": text}, label, source)
        if output.over:
            self._end(run, f"it wrote more than {run.args.output_bytes:,} bytes to {output.name}")
        return True

    # -- its end ---------------------------------------------------------------------------------------------------

    def _ended(self, run: Run) -> None:
        """Nothing of it is to be left before anything is said."""
        if run.jailed is None or run.jailed.poll() is None:
            return
        self._closed(run)
        self._loop.unwatch(run.monitor)
        if run.init < 0:
            self._gone(run)
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(run.init, signal.SIGKILL)
        self._loop.watch(run.init, lambda: self._all_gone(run))

    def _all_gone(self, run: Run) -> None:
        self._loop.unwatch(run.init)
        self._gone(run)

    def _gone(self, run: Run) -> None:
        seconds = self._loop.clock() - run.started
        run.end_by(None)
        for output in run.outputs:
            self._unwatch(output)
            while not output.ended and self._read(run, output):
                pass  # one may stay open without a process, in flight in a socket that is in flight itself
        run.over = True
        run.take_report()
        if run.call.done:
            self._forget(run)
            return
        self._slowly(
            code_files.scan(run.directory),
            lambda found: self._answer(run, found, seconds),
            lambda error: self._fail(run, error),
        )

    def _answer(self, run: Run, found: code_files.Listing, seconds: float) -> None:
        answer = run.answer(found, seconds)
        run.call.reply(answer, *self.told_by(run.args.project, run.call))
        log.info("code.done", pid=run.process.pid, status=answer["exit"], dur_ms=round(seconds * 1000))
        self._forget(run)

    def _fail(self, run: Run, error: OpError) -> None:
        run.call.fail(error, *self.told_by(run.args.project, run.call))
        self._forget(run)

    def _forget(self, run: Run) -> None:
        run.over = True
        self.projects.touch(run.args.project)
        run.close()
        self._processes.remove(run.process)
        self._runs.pop(run.process.pid, None)

    # -- slowly ----------------------------------------------------------------------------------------------------

    def _slowly(
        self, steps: Generator[None, None, _T], done: Callable[[_T], None], failed: Callable[[OpError], object]
    ) -> None:
        """Take its steps one by one between everything else, then hand on what it returns; the first at once."""

        def step() -> None:
            try:
                next(steps)
            except StopIteration as end:
                done(end.value)
            except OSError as error:
                failed(OpError(Code.UNAVAILABLE, f"the project: {error.strerror}"))
            else:
                self._loop.later(0, step)

        step()


def _unavailable(error: Exception) -> OpError:
    return OpError(Code.UNAVAILABLE, f"code.run: {error}", getattr(error, "hint", "") or None)
