"""The kernel's side of the model: jobs and turns. Which processes' inferences run on the core now, and what becomes of their tokens.

A job is posted to the core at once and is admitted with its size; the scheduler then says what each turn does, the core obeys, and `ran`
tells what it did. One turn runs at a time, with one model. `engine.py` has the core and its models, `contexts.py` the contexts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any, Literal, Protocol

import structlog

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Append, Embed, Extract, Generate, JobClass
from llmos.kernel import params, requests
from llmos.kernel.authority import Authority
from llmos.kernel.calls import Call
from llmos.kernel.capability import used_up
from llmos.kernel.contexts import Context, Contexts, namespace
from llmos.kernel.inference_call import Inference, Reveal, bytes_of, count_of, seconds_of, spent_of
from llmos.kernel.jobs import Job, State, Turn
from llmos.kernel.labels import Label, Source
from llmos.kernel.loop import Loop
from llmos.kernel.models import Kind, Model, Models
from llmos.kernel.models import State as ModelState
from llmos.kernel.purse import Left, affordable
from llmos.kernel.scheduler import Limits, Scheduler
from llmos.kernel.statistics import Statistics

log = structlog.get_logger()

Message = dict[str, Any]


class Core(Protocol):
    """What holds the models."""

    def post(self, message: Message) -> None:
        """Say something to the core; lost when there is none."""

    def need(self, name: str | None, kind: Kind = Kind.GENERATOR) -> Model:
        """The model of a request. Raises `OpError`."""


class Inferences:
    """All jobs, the turn under way, and the contexts.

    Args:
        core: to whom turns are posted, and who knows the models.
    """

    def __init__(self, loop: Loop, core: Core, models: Models, authority: Authority) -> None:
        self._loop = loop
        self._core = core
        self._models = models
        self._authority = authority
        self._scheduler = Scheduler(loop.clock)
        self._jobs: dict[int, Inference] = {}
        self._ids = itertools.count(1)
        self._turn: Turn | None = None
        self._members: dict[int, Inference] = {}
        """Those of the turn under way: one that was cancelled meanwhile pays for it too."""
        self._yielding = False
        self._heard = 0.0
        """When the core said something last, or was given something to do."""
        self.contexts = Contexts()
        self.statistics = Statistics(loop.clock)

    def divide(self, kv_bytes: int) -> None:
        """How much memory there is for KV; before the first job."""
        self._scheduler = Scheduler(self._loop.clock, Limits(kv_bytes=kv_bytes))

    def set_budget(self, principal: str, tokens: int | None, per_s: float = 3600.0) -> None:
        """In no `per_s` seconds may more than `tokens` be computed for it, whatever its capabilities; None lifts that."""
        self._scheduler.set_budget(principal, tokens, per_s)

    # -- syscalls --------------------------------------------------------------------------------------------------

    def generate(self, call: Call, args: Generate, principal: str) -> None:
        """Queue an inference; `call` is answered when it is done."""
        request = requests.generation(args)
        context = None if args.context is None else self._context(call, args.context, principal, args.model)
        model = self._core.need(args.model if context is None else context.model)
        self._submit(call, request, principal, model, args.job_class, call.label, context=context)

    def append(self, call: Call, args: Append, principal: str) -> None:
        """Have a context read more; `call` is answered when it has."""
        request = requests.appending(args)
        context = self._context(call, args.context, principal, None)
        model = self._core.need(context.model)
        self._submit(call, request, principal, model, args.job_class, call.label, context=context)

    def extract(
        self, call: Call, args: Extract, principal: str, texts: list[str], label: Label, reveal: Reveal
    ) -> None:
        """Queue a question about texts that the caller does not read; what `reveal` lets through of the answer is the reply."""
        request = requests.extraction(args, texts)
        self._submit(call, request, principal, self._core.need(None), args.job_class, label, reveal=reveal)

    def embed(self, call: Call, args: Embed, principal: str) -> None:
        """Queue an embedding; `call` is answered when it is done."""
        model = self._core.need(None, Kind.EMBEDDING)
        self._submit(call, requests.embedding(args), principal, model, "interactive", call.label, kind="embed")

    def open(self, principal: str, conn: int, model: str | None) -> int:
        """A new context; with `conn`, until that connection ends."""
        wanted = self._core.need(model)
        context = self.contexts.open(principal, wanted.name, conn)
        self._open(context)
        return context.number

    def fork(self, number: int, principal: str, conn: int) -> int:
        """A context that has all that another of the caller's has. Raises `OpError`: `NOT_FOUND`, `CONFLICT`, `BUSY`."""
        source = self.contexts.get(number, principal)
        _refuse_busy(source)
        made = self.contexts.fork(source, conn)
        if source.opened:
            made.opened = True
            self._core.post({"op": "fork", "context": made.number, "source": source.number})
        else:  # nothing can have been put in yet
            self._open(made)
        return made.number

    def close(self, number: int, principal: str) -> None:
        """Raises `OpError(NOT_FOUND)` for another's."""
        self._close(self.contexts.owned(number, principal))

    def drop(self, principal: str) -> None:
        """A process has ended: so do its contexts."""
        for context in self.contexts.of_owner(principal):
            self._close(context)

    def connection_gone(self, conn: int) -> None:
        """A program from outside has gone: so do its contexts."""
        for context in self.contexts.of_connection(conn) if conn else ():
            self._close(context)

    def describe(self) -> dict[str, Any]:
        """What `llm.stats` tells."""
        counts, memory = self._scheduler.counts(), self._models.memory
        held = Counter(one.job.model for one in self._jobs.values())
        kept = {one.name: len(self.contexts.of_model(one.name)) for one in self._models}
        reserved = self._scheduler.kv_reserved()
        return {
            "jobs": [{"class": kind.name.lower(), **vars(counts[kind])} for kind in JobClass],
            "running": len(self._members),
            "contexts": len(self.contexts),
            "kv": {**self.statistics.kv, "reserved": reserved, "limit": memory.kv, "spill_limit": memory.spill},
            "weights": {"used": self._models.weights, "limit": memory.weights},
            "models": [
                {
                    **one.describe(),
                    "default": one.name == self._models.default,
                    "jobs": held[one.name],
                    "contexts": kept[one.name],
                }
                for one in self._models
            ],
            **self.statistics.describe(),
        }

    # -- contexts --------------------------------------------------------------------------------------------------

    def _context(self, call: Call, number: int, principal: str, model: str | None) -> Context:
        context = self.contexts.get(number, principal)
        if model is not None and model != context.model:
            detail = f"{call.op}: context {number} is of the model {context.model}, not of {model}"
            raise OpError(Code.INVALID_ARGUMENT, detail, "leave the model out, or open another context")
        _refuse_busy(context)
        return context

    def _open(self, context: Context) -> None:
        """Tell the core of it, once its model is there."""
        model = self._models.get(context.model)
        if not context.opened and model is not None and model.state is ModelState.READY:
            context.opened = True
            self._core.post({"op": "open", "context": context.number, "model": context.model})

    def _close(self, context: Context) -> None:
        inference = self._jobs.get(context.job)
        if inference is not None:
            error = OpError(Code.CANCELLED, f"{inference.call.op}: the context {context.number} was closed")
            self._fail(inference, error)
        self.contexts.close(context)
        if context.opened:
            self._core.post({"op": "close", "context": context.number})

    # -- jobs ------------------------------------------------------------------------------------------------------

    def _submit(
        self,
        call: Call,
        request: Message,
        principal: str,
        model: Model,
        job_class: str,
        label: Label,
        *,
        context: Context | None = None,
        reveal: Reveal | None = None,
        kind: Literal["generate", "embed"] = "generate",
    ) -> None:
        deadline = self._loop.clock() + call.wait_s if call.wait_s else None
        job = Job(
            next(self._ids), principal, JobClass[job_class.upper()], model=model.name, deadline=deadline, kind=kind
        )
        self._scheduler.submit(job)
        inference = Inference(call, job, {**request, "job": job.id, "model": model.name}, label, context, reveal)
        if context is not None:
            context.label = context.label | label
            context.job = job.id
            inference.request["context"] = context.number
        if kind == "generate":
            purse, budget = self._authority.tokens_left(call.cap), self._scheduler.budget_left(principal)
            limits = [purse[1] if purse is not None else None, budget]
            if any(left is not None and left < requests.most_tokens(request) for left in limits):
                inference.request = requests.to_the_token(inference.request)
        inference.request["label"] = namespace(inference.delivered)
        self._jobs[job.id] = inference
        call.on_end = lambda: self._gone(inference)
        if model.state is ModelState.READY:
            self._post(inference)

    def _post(self, inference: Inference) -> None:
        """The core reads it at once, even during a turn, and says how large it is; only some of a principal's at a time."""
        principal = inference.job.principal
        unread = sum(
            one.posted and one.job.unread is None for one in self._jobs.values() if one.job.principal == principal
        )
        if not inference.posted and unread < params.ADMISSIONS:
            self._begins()
            inference.posted = True
            self._core.post(inference.request)

    def _post_next(self, principal: str) -> None:
        """One of its jobs has been admitted, or has ended."""
        for inference in list(self._jobs.values()):
            model = self._models.get(inference.job.model)
            if inference.job.principal == principal and model is not None and model.state is ModelState.READY:
                self._post(inference)

    def _gone(self, inference: Inference) -> None:
        """Its call has ended, for whatever reason; the core need not go on."""
        if self._jobs.get(inference.job.id) is inference:
            self._end(inference, "cancelled")
            self._dispatch()

    def _fail(self, inference: Inference, error: OpError) -> None:
        """It ends here, with this error; what it has streamed stays."""
        if self._jobs.get(inference.job.id) is inference:
            self._end(inference, "failed", error.code)
            self._tell(inference, error)

    def _tell(self, inference: Inference, error: OpError) -> None:
        """Its caller hears of an error. One who does not read what the model read is not tainted by that either."""
        if inference.reveal is not None:
            inference.call.fail(error)
        else:
            inference.call.fail(error, inference.delivered, self._source(inference))

    def _end(self, inference: Inference, finish: str, code: Code | None = None, *, core_knows: bool = False) -> None:
        """Forget a job, tell the core unless it knows, and write its line."""
        del self._jobs[inference.job.id]
        self._scheduler.remove(inference.job.id)
        if inference.context is not None:
            inference.context.job = 0
        if inference.posted and not core_knows:
            self._core.post({"op": "cancel", "job": inference.job.id})
        self.statistics.ended[code.value if code is not None else finish] += 1
        err = code.value if code is not None else None
        log.info("job.done", finish=finish, err=err, **inference.line(self._loop.clock()))
        self._post_next(inference.job.principal)

    # -- turns -----------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give the core its next turn, if it has none."""
        while self._turn is None:
            turn = self._scheduler.pick()
            for job in self._scheduler.exhausted():
                self._exhausted(self._jobs.get(job.id))
            if turn is None:
                return
            for parked in turn.park:
                self._core.post({"op": "park", "job": parked.id})
            paid = affordable(turn, self._account)
            for job, account in paid.broke:
                inference = self._jobs[job.id]
                self._refuse(inference, used_up(inference.call.holder, account))
            if not paid.grants:
                self._scheduler.abandon()
                continue
            self._begins()
            self._turn, self._yielding = turn, False
            self._members = {grant.job.id: self._jobs[grant.job.id] for grant in paid.grants}
            self._core.post(
                {
                    "op": "run",
                    "turn": turn.number,
                    "prefill": None if paid.prefill is None else [paid.prefill.job.id, paid.prefill.tokens],
                    "decode": [[grant.job.id, grant.tokens] for grant in paid.decode],
                }
            )

    def _account(self, job: Job) -> Left | None:
        return self._authority.tokens_left(self._jobs[job.id].call.cap)

    def _exhausted(self, inference: Inference | None) -> None:
        if inference is not None:
            detail = f"{inference.job.principal}: the tokens of its budget are used up for now"
            self._refuse(inference, OpError(Code.BUDGET, detail, "wait until it fills up again"))

    def _refuse(self, inference: Inference, error: OpError) -> None:
        self._authority.refused(inference.call.holder, inference.call.op, error)
        self._fail(inference, error)

    def _begins(self) -> None:
        """The core is about to get something to do."""
        if not self.silent_s():
            self._heard = self._loop.clock()

    # -- the engine's side -----------------------------------------------------------------------------------------

    def model_ready(self, model: Model) -> None:
        """What waited for it can go."""
        rows = count_of(model.info.get("rows", 0))
        self._scheduler.set_model(model.name, count_of(model.info.get("kv_bytes", 0)), rows or None)
        for context in self.contexts.of_model(model.name):
            self._open(context)
        for inference in list(self._jobs.values()):
            if inference.job.model == model.name:
                self._post(inference)

    def model_gone(self, model: Model, error: OpError) -> None:
        """What wanted it ends with this."""
        for inference in [one for one in self._jobs.values() if one.job.model == model.name]:
            self._fail(inference, error)
        told = f"the context is gone: {error.detail}"
        self.contexts.lose(self.contexts.of_model(model.name), OpError(Code.NOT_FOUND, told, "open another"))

    def core_gone(self, reason: str) -> None:
        """What the core was doing has ended; what it did not know of yet waits for the next one."""
        self._turn, self._members, self._yielding = None, {}, False
        self._scheduler.abandon()
        self.statistics.core_gone()
        lost = OpError(Code.PEER_DIED, f"the model's process ended ({reason}), and the context with it", "open another")
        self.contexts.lose([one for one in self.contexts if one.opened], lost)
        error = OpError(
            Code.PEER_DIED, f"the model's process ended ({reason})", "send it again: it comes back by itself"
        )
        for inference in [one for one in self._jobs.values() if one.posted]:
            self._fail(inference, error)

    def idle(self, model: Model) -> bool:
        """Whether nothing runs on it, waits for it, or is kept in it."""
        return not self.contexts.of_model(model.name) and all(
            one.job.model != model.name for one in self._jobs.values()
        )

    def silent_s(self) -> float:
        """Seconds since the core's last word, 0 while it has nothing to do."""
        waits = self._turn is not None or any(one.posted and one.job.unread is None for one in self._jobs.values())
        return self._loop.clock() - self._heard if waits else 0.0

    # -- what the core says ----------------------------------------------------------------------------------------

    def heard(self, message: Message) -> None:
        """Raises `KeyError`, `TypeError`, `ValueError` for nonsense."""
        self._heard = self._loop.clock()
        match message["op"]:
            case "admitted":
                self._admitted(message)
            case "chunk":
                self._chunk(message)
            case "embedded":
                inference = self._jobs.get(message["job"])
                if inference is not None:
                    inference.vectors = {"dim": count_of(message["dim"]), "vectors": bytes_of(message["vectors"])}
            case "ran":
                self._ran(message)
            case "error":
                self._error(message)

    def _admitted(self, message: Message) -> None:
        inference = self._jobs.get(message["job"])
        if inference is None:
            return
        if inference.job.id in self._members:  # of the turn under way, which is accounted for first
            inference.again = message
            return
        self._size(inference, message)
        self._post_next(inference.job.principal)
        if self._turn is not None and not self._yielding and self._scheduler.preempts(inference.job):
            self._yielding = True
            self._core.post({"op": "yield"})
        self._dispatch()

    def _size(self, inference: Inference, message: Message) -> None:
        """What the core says of its prompt; once more, when its conversation was paged."""
        inference.prompt, inference.known = count_of(message["prompt_tokens"]), count_of(message["cached_tokens"])
        inference.cached = 0
        unread = max(0, inference.prompt - inference.known)
        try:
            self._scheduler.admitted(inference.job.id, unread, count_of(message["max_tokens"]), inference.known)
        except OpError as error:
            self._fail(inference, error)

    def _chunk(self, message: Message) -> None:
        inference = self._jobs.get(message["job"])
        if inference is None:
            return
        chunk = inference.said(message["text"], message["tokens"])
        if inference.first_text is None:
            inference.first_text = self._loop.clock()
        if inference.reveal is None:
            inference.call.chunk(chunk, inference.delivered, self._source(inference))

    def _ran(self, message: Message) -> None:
        """The turn is over: account for all of it first, then see who is done."""
        turn, members = self._turn, self._members
        if turn is None or message["turn"] != turn.number:
            raise ValueError("a turn that was not asked for")
        rows = [spent_of(row) for row in message["jobs"]]
        if len({spent.job for spent, _ in rows}) < len(rows):
            raise ValueError("a job twice in one turn")
        prefill_s, decode_s = seconds_of(message["prefill_s"]), seconds_of(message["decode_s"])
        steps = count_of(message["steps"])
        self.statistics.turn(message)
        self._turn, self._members, self._yielding = None, {}, False
        told = [members[spent.job].beyond(spent) for spent, _ in rows if spent.job in members]
        self._scheduler.account(turn, told, prefill_s, steps, decode_s)
        for spent, finish in rows:
            inference = members.get(spent.job)
            if inference is not None:
                inference.took(spent, prefill_s, decode_s)
                self.statistics.read(spent.prefill, spent.cached)
                self.statistics.made(spent.decode, spent.forced)
                wanted = self._charged(inference, spent.prefill + spent.decode)
                if wanted and spent.state is State.DONE:
                    self._done(inference, finish)
                elif wanted and inference.again is not None:
                    again, inference.again = inference.again, None
                    self._size(inference, again)
        self._dispatch()

    def _charged(self, inference: Inference, tokens: int) -> bool:
        """Whether its quota has paid for what it used, and it is still wanted; it has ended otherwise."""
        wanted = self._jobs.get(inference.job.id) is inference
        try:
            self._authority.charge(inference.call.cap, tokens=tokens)
        except OpError as error:
            if wanted:
                self._refuse(inference, error)
            return False
        return wanted

    def _done(self, inference: Inference, finish: str) -> None:
        unasked = {"failed": Code.INTERNAL, "cancelled": Code.CANCELLED}.get(finish)
        self._end(inference, finish, unasked, core_knows=True)
        if unasked is not None:  # the error that explains it did not come
            self._tell(inference, OpError(unasked, f"{inference.call.op}: the model's process did not go on with it"))
            return
        if inference.reveal is not None:
            try:
                answer, label = inference.reveal("".join(inference.text))
            except OpError as error:
                inference.call.fail(error)
            else:
                inference.call.reply(answer, label, self._source(inference))
            return
        answer = inference.answer(finish, self._loop.clock())
        inference.call.reply(answer, inference.delivered, self._source(inference))

    def _source(self, inference: Inference) -> Source:
        call = inference.call
        return self._authority.labels.source(call.holder, call.op, inference.delivered, call.id)

    def _error(self, message: Message) -> None:
        """A job that cannot be taken, or has failed in its turn, whose `ran` is still to come; or a context that is no more."""
        error = OpError.from_wire(message)
        inference = self._jobs.get(message.get("job") or 0)
        context = self.contexts.known(message.get("context") or 0)
        if inference is not None:
            self._end(inference, "failed", error.code, core_knows=True)
            self._tell(inference, error)
        elif message.get("about") in ("open", "fork") and context is not None:
            self.contexts.lose([context], error)
        else:
            log.warning("core.error", about=str(message.get("about"))[:20], err=error.code.value)
        self._dispatch()


def _refuse_busy(context: Context) -> None:
    if context.job:
        detail = f"context {context.number} is in use by another call of yours"
        raise OpError(Code.CONFLICT, detail, "wait for it, cancel it, or fork the context before")
