"""Agents at work on one model, while somebody asks it something now and then: llmos against llama.cpp's HTTP server.

`python -m tests.bench.agent_workload [--gguf FILE] [--agents 1 4 16] [--rounds 3] [--quick]`; see README.md beside this file.

N agents start at once. Each takes four steps of ReAct: it sends the conversation so far (a prefix of 1,000 tokens that all agents
share, its task, its own calls and what the tools said), gets a tool call under a JSON Schema (llama-server: the same language as a
grammar), and appends what the tool returns. A person asks a short question every few seconds and gets 8 tokens; llmos is told that
this one is interactive and the agents are in the background, llama-server has no such word. Same GGUF, same threads, greedy; both
sides alternate, each run with a prefix that nobody has seen before.

A *wait* is the time from sending a request to its first piece of text. Ratios are llmos / llama-server, the median over rounds:
below 1, llmos is better. Tokens are what each side says it produced: `tokens_ratio` must be near 1, or the two did not do the same.

llama-server has a slot for each agent and one for the probe, each with a KV cache of its own, and every caller names its slot: so nobody
queues and every conversation stays cached. It reads at most 512 prompt tokens between two decoding steps (its default, 2,048, makes all
others wait four times as long). Its threads spin while they wait for each other: with nothing else on the machine it is done a tenth sooner
than with threads that sleep (4 agents, 0.5B: 34.8 s against 39.2); beside other work choose those, or it stands still.
Measured with 4 agents, in seconds of processor time, where waiting for other programs does not count: the 135M 40, with its
default batch 40, with what it chooses when it is told nothing (4 slots that share one KV buffer) 60; the 0.5B 69, with slots of
its own choice 69, with one KV buffer 79. With 16 agents the 135M takes 151, and 153 with 4 slots, behind which everybody waits
three times as long. `--tune` shows more; put first in `settings` what does best on the machine at hand.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from llmos.ipc.connection import Connection
from llmos.kernel.core import runtime
from tests.bench import agent_task
from tests.bench.answer import Answer
from tests.bench.figures import percentile, report
from tests.bench.live import booted
from tests.bench.llama_server import Server, Setting, running
from tests.bench.reference import GGUFS, NAME, Missing, installed, program

AGENTS, STEPS, ROUNDS = (1, 4, 16), 4, 3
PERIOD_S = 3.0
"""Seconds between two probes; the next one waits for the answer to the one before."""
CALL_TOKENS, PROBE_TOKENS = 120, 8
SLOT_TOKENS = 2560
"""The longest conversation, rounded up: 1,000 of the prefix, and 250 for each step."""
ANSWER_S = 1800.0
"""Seconds a request may take; the longest deadline that a call may have."""

Messages = Sequence[Mapping[str, str]]
Ask = Callable[[Messages, bool, int], Answer]
"""Messages, whether the answer is to be a tool call, and the most tokens to produce."""


class Side(Protocol):
    """What can be asked."""

    name: str

    def caller(self, number: int, *, urgent: bool) -> AbstractContextManager[Ask]:
        """For one thread: agent `number`, or the probe."""


class Llmos:
    """A booted system; every caller is a connection of its own."""

    name = "llmos"

    def __init__(self, bus: Connection) -> None:
        self._bus = bus

    @contextmanager
    def caller(self, number: int, *, urgent: bool) -> Iterator[Ask]:
        job_class = "interactive" if urgent else "background"

        def ask(messages: Messages, call: bool, tokens: int) -> Answer:
            request = {"messages": list(messages), "max_tokens": tokens, "job_class": job_class}
            if call:
                request["schema"] = agent_task.CALL
            started = time.perf_counter()
            stream = connection.stream("llm.generate", request, timeout=ANSWER_S)
            first = 0.0
            for chunk in stream:
                if chunk["text"]:
                    first = first or time.perf_counter() - started
            total = time.perf_counter() - started
            usage = stream.result["usage"]
            counts = usage["completion"], usage["prompt"], usage["cached"]
            return Answer(stream.result["text"], first or total, total, *counts)

        with Connection(self._bus.path, self._bus.token) as connection:
            connection.call("sys.ping")  # connects now and not within the first wait
            yield ask


class LlamaServer:
    """A running llama-server."""

    name = "llama-server"

    def __init__(self, server: Server, *, pinned: bool) -> None:
        self._server = server
        self._pinned = pinned

    @contextmanager
    def caller(self, number: int, *, urgent: bool) -> Iterator[Ask]:
        slot = number if self._pinned else -1

        def ask(messages: Messages, call: bool, tokens: int) -> Answer:
            grammar = agent_task.GRAMMAR if call else ""
            return self._server.chat(messages, max_tokens=tokens, grammar=grammar, slot=slot)

        yield ask


@dataclass
class Run:
    """One side's answers in one run, and how long all agents took, in seconds."""

    makespan: float = 0.0
    steps: list[Answer] = field(default_factory=list)
    probes: list[Answer] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Seconds and tokens of this run; `prefill` are prompt tokens that were not cached."""
        waits = [answer.first for answer in self.steps]
        return {
            "makespan": self.makespan,
            "mean_wait": statistics.mean(waits),
            "p90_wait": percentile(waits, 0.9),
            "probe": statistics.mean(answer.total for answer in self.probes),
            "probe_first": statistics.mean(answer.first for answer in self.probes),
            "tokens": sum(answer.completion for answer in self.steps),
            "prefill": sum(answer.prompt - answer.cached for answer in self.steps),
        }


def work(side: Side, agents: int, steps: int, nonce: str, period: float = PERIOD_S) -> Run:
    """Run the workload once. Raises what any caller raises, after all have ended."""
    run, done = Run(), threading.Event()
    with ExitStack() as stack, ThreadPoolExecutor(agents + 1) as pool:
        asks = [stack.enter_context(side.caller(number, urgent=number == agents)) for number in range(agents + 1)]
        began = time.perf_counter()
        prober = pool.submit(_probe, asks[agents], period, done)
        workers = [pool.submit(_agent, asks[number], number, steps, nonce) for number in range(agents)]
        try:
            for worker in workers:
                run.steps += worker.result()
            run.makespan = time.perf_counter() - began
        finally:
            done.set()
        run.probes = prober.result()
    return run


def _agent(ask: Ask, number: int, steps: int, nonce: str) -> list[Answer]:
    messages = [
        {"role": "system", "content": agent_task.prefix(nonce)},
        {"role": "user", "content": agent_task.task(number)},
    ]
    answers = []
    for step in range(steps):
        answers.append(ask(messages, True, CALL_TOKENS))
        if not agent_task.is_call(answers[-1].text):
            raise RuntimeError(f"agent {number}, step {step}: not a call: {answers[-1].text!r}")
        messages += [
            {"role": "assistant", "content": answers[-1].text},
            {"role": "user", "content": agent_task.observation(number, step)},
        ]
    return answers


def _probe(ask: Ask, period: float, done: threading.Event) -> list[Answer]:
    """One question each `period` seconds, the first after half of that, and one at least."""
    answers: list[Answer] = []
    due = time.perf_counter() + period / 2
    for question in itertools.cycle(agent_task.PROBES):
        if done.wait(max(0.0, due - time.perf_counter())) and answers:
            break
        due = time.perf_counter() + period
        answers.append(ask([{"role": "user", "content": question}], False, PROBE_TOKENS))
    return answers


def compare(gguf: Path, model: str, agents: int, steps: int, rounds: int) -> dict[str, float]:
    """Both sides' medians for one number of agents, by name, and the ratios."""
    setting = settings(agents)[0]
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    with booted(models=True) as bus, running(gguf, setting, runtime.threads()) as server:
        bus.call("llm.load", {"model": model}, timeout=300)
        sides = ((Llmos(bus), ours), (LlamaServer(server, pinned=setting.pinned), theirs))
        for round_ in range(rounds):
            for side, kept in sides:
                nonce = f"{agents}.{round_}.{time.time_ns():x}"
                kept.append(work(side, agents, steps, nonce).figures())
                line = f"N={agents} round {round_ + 1}/{rounds} {side.name:<12} {shown(kept[-1])}"
                print(line, flush=True)
    result: dict[str, float] = {}
    for key in ours[0]:
        result[f"{key}_ratio"] = statistics.median(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))
        result[f"{key}_llmos"] = statistics.median(one[key] for one in ours)
        result[f"{key}_llama_server"] = statistics.median(one[key] for one in theirs)
    return result


def settings(agents: int) -> list[Setting]:
    """For llama-server: first the one that is compared with, then others that `--tune` shows beside it."""
    own = Setting(agents + 1, SLOT_TOKENS, pinned=True, spin=True, extra=("--batch-size", "512"))
    automatic = Setting(4, SLOT_TOKENS, unified=True)  # what the server chooses when it is told nothing
    others = [replace(own, spin=False), replace(own, extra=()), replace(own, pinned=False)]
    others += [replace(own, unified=True, pinned=False), automatic]
    if agents > 8:  # fewer slots than agents: the prefix is read less often, conversations leave their slots
        others += [Setting(8, SLOT_TOKENS), replace(automatic, slots=8)]
    return [own, *others]


def tune(gguf: Path, agents: int, steps: int) -> None:
    """Print how llama-server does in each of `settings`, in one run each."""
    for setting in settings(agents):
        with running(gguf, setting, runtime.threads()) as server:
            run = work(LlamaServer(server, pinned=setting.pinned), agents, steps, f"{time.time_ns():x}")
        print(f"N={agents} {setting}\n    {shown(run.figures())}", flush=True)


def shown(figures: Mapping[str, float]) -> str:
    """On one line."""
    return "  ".join(f"{key} {value:.2f}" for key, value in figures.items())


def table(figures: Mapping[int, Mapping[str, float]]) -> str:
    """A line for each number of agents: the ratios, and in brackets both sides' medians."""
    names = ("makespan", "mean_wait", "p90_wait", "probe", "probe_first", "tokens", "prefill")
    lines = ["   N " + "".join(f"{name:>26}" for name in names)]
    for agents, row in figures.items():
        cells = (
            f"{row[f'{name}_ratio']:.2f} ({row[f'{name}_llmos']:.6g} : {row[f'{name}_llama_server']:.6g})"
            for name in names
        )
        lines.append(f"{agents:>4} " + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def missing(gguf: Path = GGUFS["0b5"]) -> str:
    """Why this benchmark cannot run here, empty when it can."""
    try:
        program("llama-server")
        installed(gguf)
    except Missing as error:
        return str(error)
    return ""


def main(arguments: Sequence[str] = ()) -> int:
    """Print and keep the figures. Status 1 when something is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gguf", type=Path, default=GGUFS["0b5"], help="default: the 0.5B of the evaluation models")
    parser.add_argument("--model", help="of the store (default: the one imported from the GGUF)")
    parser.add_argument("--agents", type=int, nargs="+", default=list(AGENTS), help=f"default {AGENTS}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each agent, default {STEPS}")
    parser.add_argument("--quick", action="store_true", help="to see that it works: one and two agents, one round")
    parser.add_argument("--tune", action="store_true", help="only llama-server, in several settings")
    options = parser.parse_args(arguments)
    if options.quick:
        options.agents, options.rounds = [1, 2], 1
    try:
        model = options.model or installed(options.gguf)
        program("llama-server")
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.tune:
        for agents in options.agents:
            tune(options.gguf, agents, options.steps)
        return 0
    figures: dict[int, dict[str, float]] = {}
    for agents in options.agents:
        figures[agents] = compare(options.gguf, model, agents, options.steps, options.rounds)
    print(table(figures))
    flat: dict[str, float | int | str] = {
        f"n{agents}_{key}": value for agents, row in figures.items() for key, value in row.items()
    }
    report("agent_workload", flat | {"rounds": options.rounds, "reference": NAME}, model=model)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
