"""The core's life, and which models it holds: one process, several models, loaded one after the other.

What runs on them is `inference.py`'s; how they share memory is `models.py`'s. When the core dies, all that it held is loaded again, the
default first. A model that cannot be loaded, or whose loading kills the core twice, is left out, and the others are not touched.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgpack
import structlog

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from llmos.kernel.calls import Call
from llmos.kernel.journal import Journal
from llmos.kernel.link import Link
from llmos.kernel.loop import Loop, Timer
from llmos.kernel.models import Kind, Memory, Model, Models, State, free_disk, machine_memory
from llmos.kernel.process import Kind as ProcessKind
from llmos.kernel.process import Process, ProcessTable
from llmos.kernel.process import State as ProcessState
from llmos.kernel.supervisor import Supervisor

log = structlog.get_logger()

Message = dict[str, Any]

_FROM_OUTSIDE = ("killed by SIGKILL", "exit: it was asked", "killed: it did not end")
"""How reasons begin for which the model that was being loaded is hardly to blame; if it is, memory is short, and it comes again."""


class Work(Protocol):
    """What runs on the models."""

    def divide(self, kv_bytes: int) -> None:
        """How much memory there is for KV; said once, before anything runs."""

    def heard(self, message: Message) -> None:
        """The core says something that is no model's. Raises `KeyError`, `TypeError`, `ValueError` for nonsense."""

    def model_ready(self, model: Model) -> None:
        """What waited for it can go."""

    def model_gone(self, model: Model, error: OpError) -> None:
        """What wanted it ends with this."""

    def core_gone(self, reason: str) -> None:
        """What the core was doing has ended."""

    def idle(self, model: Model) -> bool:
        """Whether nothing runs on it, waits for it, or is kept in it."""

    def silent_s(self) -> float:
        """Seconds for which the core has had work and said nothing."""


@dataclass
class _Waiter:
    """A call that waits for a model to be loaded."""

    call: Call
    model: Model
    unloaded: list[str]


class Engine:
    """One core at a time, which holds the models that are wanted.

    Args:
        scratch: the core's own directory, for what it spills.
        changed: told of every change of a model's state.
    """

    def __init__(
        self,
        loop: Loop,
        models: Models,
        processes: ProcessTable,
        supervisor: Supervisor,
        journal: Journal,
        scratch: Path,
        changed: Callable[[Model, str], None],
    ) -> None:
        self._loop = loop
        self._models = models
        self._processes = processes
        self._supervisor = supervisor
        self._journal = journal
        self._scratch = scratch
        self._changed = changed
        self.work: Work
        """Set once, before anything starts."""
        self._process: Process | None = None
        self._due: Timer | None = None
        self._link: Link | None = None
        self._load_since = 0.0
        self._waiters: list[_Waiter] = []
        self._unloads: list[tuple[str, Call]] = []
        self._died = ""
        """Why there is no core, once it has been given up."""

    # -- boot ------------------------------------------------------------------------------------------------------

    def choose(self, name: str | None) -> None:
        """The default of this run: the one named, else the one last chosen, else any. Divides the memory.

        Loaded after the drivers have started, so that it does not hold them up. Raises `OpError`: `NOT_FOUND`, and `INVALID_ARGUMENT` for
        a size in the environment that is none.
        """
        remembered = self._journal.get("model")
        if name is None and remembered is not None and self._models.choose(remembered) is not None:
            name = remembered  # one that has been removed since is no reason not to boot
        if name is not None:
            self._models.installed(name)
        self._models.default = self._models.choose(name)
        wanted = [self._models.default, self._models.choose(None, Kind.EMBEDDING)]
        first = [self._models.installed(one) for one in wanted if one is not None]
        self._models.memory = Memory.plan(
            machine_memory(), sum(model.weights for model in first), free_disk(self._scratch.parent), os.environ
        )
        self.work.divide(self._models.memory.kv)
        log.info("models.memory", **vars(self._models.memory))
        for model in first:
            try:
                self._want(model)
            except OpError as error:
                self._put(model, State.FAILED, str(error))
                self._models.want(model)
        if first:
            self._due = self._loop.later(params.CORE_START_S, self._start)

    def drivers_ready(self) -> None:
        """There is nothing more to wait for."""
        if self._due is not None:
            self._start()

    # -- what is asked for -----------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """Of the default model: `none`, `unloaded`, `starting`, `loading`, `ready` or `failed`."""
        if self._models.default is None:
            return "none"
        model = self._models.get(self._models.default)
        if model is None:
            return "unloaded"
        if model.state is State.WAITING:
            return "failed" if self._died else "starting"
        return "unloaded" if model.state is State.UNLOADING else model.state.value

    @property
    def problem(self) -> str:
        """Why the default model is not there."""
        model = self._models.get(self._models.default or "")
        return self._died or (model.problem if model is not None else "")

    def need(self, name: str | None, kind: Kind = Kind.GENERATOR) -> Model:
        """The model of a request: the one named, or the default of its kind, which is loaded if it is not.

        Raises `OpError`: `UNAVAILABLE` for one that is not loaded or cannot be, `NOT_FOUND` for one that is not installed.
        """
        default = self._models.default if kind is Kind.GENERATOR else self._embedder()
        chosen = name or default
        if chosen is None:
            missing = "no model" if kind is Kind.GENERATOR else "no embedding model"
            pull = "smollm2-135m" if kind is Kind.GENERATOR else "minilm"
            raise OpError(Code.UNAVAILABLE, f"{missing} is installed", f"llmosctl model pull {pull}")
        model = self._models.get(chosen)
        if model is None or model.state is State.UNLOADING:
            model = self._models.installed(chosen)
            if chosen != default:
                raise OpError(Code.UNAVAILABLE, f"{chosen} is not loaded", f"llmosctl model load {chosen}")
            self._want(model)
            self._start()
        if self._died or model.state is State.FAILED:
            detail = f"{model.name} cannot be loaded: {self._died or model.problem}"
            raise OpError(Code.UNAVAILABLE, detail, "see `llmosctl logs core`, or load another model")
        if model.kind is not kind:
            raise OpError(Code.INVALID_ARGUMENT, f"{model.name} is no {kind.value} model", "see `llmosctl model ls`")
        model.used = self._loop.clock()
        return model

    def load(self, name: str, call: Call) -> None:
        """Load a model beside the others; `call` is answered when it is there, or cannot be.

        Those that have to go for it, least recently used and idle, are named in the answer. Where there is no default that works, it
        becomes that. Raises `OpError`: `NOT_FOUND`, `TOO_LARGE`, `BUSY`.
        """
        model, gone = self._models.get(name), []
        if model is not None and model.state is State.READY and not self._died:
            model.used = self._loop.clock()
            call.reply(self._loaded(model, []))
            return
        if model is None or model.state in (State.FAILED, State.UNLOADING) or self._died:
            model = self._models.installed(name)
            gone = self._want(model)
        self._waiters.append(_Waiter(call, model, gone))
        self._start()

    def unload(self, name: str, call: Call) -> None:
        """Give a model's memory back: what runs on it ends; `call` is answered when that is done. Raises `OpError(NOT_FOUND)`."""
        model = self._models.get(name)
        if model is None or model.state is State.UNLOADING:
            raise OpError(Code.NOT_FOUND, f"no model {name!r} is loaded", "see `llmosctl model ls`")
        held = self._link is not None and model.state in (State.LOADING, State.READY)
        if held:
            self._unloads.append((name, call))
        self._let_go(model, OpError(Code.CANCELLED, f"the model {name} was unloaded", f"llmosctl model load {name}"))
        if not held:
            call.reply({"model": name})

    def default(self, name: str | None) -> str | None:
        """The model of requests that name none, now and after restarts, having made it `name` if that is given; another if it is gone.

        Raises `OpError`: `NOT_FOUND`, `INVALID_ARGUMENT`.
        """
        if name is not None:
            if self._models.installed(name).kind is not Kind.GENERATOR:
                raise OpError(Code.INVALID_ARGUMENT, f"{name} generates no text", "see `llmosctl model ls`")
            self._journal.set("model", name)
            self._models.default = name
        return self._models.choose(self._models.default) or self._models.choose(None)

    def _embedder(self) -> str | None:
        loaded = next((one.name for one in self._models if one.kind is Kind.EMBEDDING), None)
        return loaded or self._models.choose(None, Kind.EMBEDDING)

    def _want(self, model: Model) -> list[str]:
        """It is to be loaded next. → those that go for it. Raises `OpError`: `TOO_LARGE`, `BUSY`."""
        going = self._models.room_for(model, self.work.idle)
        for one in going:
            log.info("model.evicted", model=one.name, by=model.name)
            self._let_go(one, OpError(Code.CANCELLED, f"{one.name} made room for {model.name}"))
        model.used = self._loop.clock()
        self._models.want(model)
        self._put(model, State.WAITING)
        return [one.name for one in going]

    def _let_go(self, model: Model, error: OpError) -> None:
        """Not wanted any more. The core frees it before it is told to load anything else."""
        held = self._link is not None and model.state in (State.LOADING, State.READY)
        self.work.model_gone(model, error)
        self._answer(model, error)
        if held:
            self.post({"op": "unload", "model": model.name})
        self._models.drop(model)
        self._put(model, State.UNLOADING)

    # -- the core --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """See to it that there is a core, and that it loads what is wanted."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._process is None:
            self._process = self._processes.add(ProcessKind.CORE, "core")
            self._supervisor.start(self._process)
        elif self._process.state is ProcessState.FAILED:
            self._died = ""
            self._supervisor.restart(self._process)
        else:
            self._load_next()

    def folders(self) -> list[Path]:
        """What the core's jail must show it: the store, and what links in it lead to."""
        if not self._models.store.is_dir():
            return []
        inside = self._models.store.resolve()
        found = {inside}
        for path in inside.iterdir():
            target = path.resolve()
            if target.is_dir() and not target.is_relative_to(inside):
                found.add(target)
        return sorted(found)

    def attach(self) -> int:
        """A new core is about to start: the descriptor for it; ours is watched from now on."""
        ours, theirs = socket.socketpair()
        self._link, self._died = Link(self._loop, ours, self._from_core), ""
        memory = self._models.memory
        limits = {"kv_bytes": memory.kv, "spill_bytes": memory.spill, "spill_dir": str(self._scratch)}
        self.post({"op": "limits", **limits})
        self._load_next()
        return theirs.detach()

    def detach(self, process: Process, reason: str) -> None:
        """The core has ended: what it was doing has failed, what it held is loaded again."""
        if self._link is not None:
            self._link.close()
            self._link = None
        for name, call in self._unloads:
            call.reply({"model": name})
        self._unloads.clear()
        most = params.LOAD_KILLS if reason.startswith(_FROM_OUTSIDE) else params.LOAD_CRASHES
        for model in self._models:
            model.crashes += model.state is State.LOADING
            if model.state is State.LOADING and model.crashes >= most:
                self._failed(model, f"the core ended while it was loaded ({reason})")
            elif model.state in (State.READY, State.LOADING):
                self._put(model, State.WAITING)
        self.work.core_gone(reason)
        if process.state is ProcessState.FAILED:
            self._died = f"the core is left down: {reason}"
            for model in self._models:
                if model.state is State.WAITING:
                    self._tell(model, OpError(Code.UNAVAILABLE, f"{model.name} cannot be loaded: {self._died}"))
                    self._changed(model, "failed")

    def stuck(self) -> str:
        """How it was noticed that the core is; empty when it is not."""
        loading = any(model.state is State.LOADING for model in self._models)
        if loading and self._loop.clock() - self._load_since > params.LOAD_S:
            return f"it did not load a model within {params.LOAD_S:g} s"
        if not loading and self.work.silent_s() > params.CORE_SILENT_S:
            return f"it worked on something and said nothing for {params.CORE_SILENT_S:g} s"
        return ""

    def shutdown(self) -> None:
        """Ask the core to end."""
        self.post({"op": "shutdown"})

    def post(self, message: Message) -> None:
        """Say something to the core; lost when there is none."""
        if self._link is not None:
            self._link.post(msgpack.packb(message))

    def _load_next(self) -> None:
        """One at a time, the default first, so that whoever kills the core by being loaded is known."""
        if self._link is None or any(model.state is State.LOADING for model in self._models):
            return
        model = next((one for one in self._models if one.state is State.WAITING), None)
        if model is None:
            self._loop.later(0, self._settled)
            return
        self._load_since = self._loop.clock()
        provider = os.environ.get("LLMOS_PROVIDER", "cpu")
        told = {"model": model.name, "folder": str(model.folder), "provider": provider, "kind": model.kind.value}
        self.post({"op": "load", **told})
        self._put(model, State.LOADING)

    def _settled(self) -> None:
        """It has done what it was started for, or cannot: it is up, and can do more."""
        if self._process is not None and self._link is not None:
            self._supervisor.ready(self._process)

    # -- what the core says ----------------------------------------------------------------------------------------

    def _from_core(self, frame: bytes) -> None:
        try:
            self._handle(msgpack.unpackb(frame, max_ext_len=0))
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            OpError,
            msgpack.UnpackException,
        ) as error:  # a model file may have taken it over
            log.error("core.nonsense", err=type(error).__name__)
            if self._link is not None:
                self._link.close()
                self._link = None
            if self._process is not None:  # it need not end by itself; another is started
                self._supervisor.put_down(self._process, "it said what no core says")

    def _handle(self, message: Message) -> None:
        op = message["op"]
        if op == "ready":
            self._ready(message)
        elif op == "unloaded":
            for entry in [entry for entry in self._unloads if entry[0] == message["model"]][:1]:
                self._unloads.remove(entry)
                entry[1].reply({"model": entry[0]})
        elif op == "error" and message.get("about") == "load":
            model = self._models.get(message["model"])
            if model is not None and model.state is State.LOADING:
                self._failed(model, str(OpError.from_wire(message)))
                self._after_load()
        else:
            self.work.heard(message)

    def _ready(self, message: Message) -> None:
        model = self._models.get(message["model"])
        if model is None or model.state is not State.LOADING:
            return  # it was unloaded meanwhile
        model.info = {**message["info"], "load_ms": message["load_ms"]}
        model.crashes, model.used = 0, self._loop.clock()
        log.info("model.ready", model=model.name, dur_ms=message["load_ms"], warnings=message.get("warnings"))
        self._put(model, State.READY)
        self.work.model_ready(model)
        self._answer(model, None)
        self._after_load()

    def _after_load(self) -> None:
        self._settled()
        self._load_next()

    def _failed(self, model: Model, problem: str) -> None:
        """It is left out until somebody loads it again."""
        self._put(model, State.FAILED, problem)
        log.error("model.failed", model=model.name, err=problem)
        detail = f"{model.name} cannot be loaded: {problem}"
        self._tell(model, OpError(Code.UNAVAILABLE, detail, "see `llmosctl logs core`, or load another model"))

    def _tell(self, model: Model, error: OpError) -> None:
        """Whoever waits for it waits in vain."""
        self.work.model_gone(model, error)
        self._answer(model, error)

    def _answer(self, model: Model, error: OpError | None) -> None:
        waiting = [waiter for waiter in self._waiters if waiter.model is model]
        self._waiters = [waiter for waiter in self._waiters if waiter.model is not model]
        for waiter in waiting:
            if error is not None:
                waiter.call.fail(error)
            else:
                if self.state in ("none", "failed") and model.kind is Kind.GENERATOR:
                    self.default(model.name)
                waiter.call.reply(self._loaded(model, waiter.unloaded))

    @staticmethod
    def _loaded(model: Model, unloaded: list[str]) -> Message:
        return {"model": {**model.info, "name": model.name}, "unloaded": unloaded}

    def _put(self, model: Model, state: State, problem: str = "") -> None:
        model.state, model.problem = state, problem
        if state is not State.READY:
            model.info = {}
        told = {State.WAITING: "starting", State.UNLOADING: "unloaded"}.get(state, state.value)
        self._changed(model, told)
