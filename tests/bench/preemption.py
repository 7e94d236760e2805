"""How long a person waits for the first word while eight agents generate in the background.

Against the same question on an idle system; and, beside it, when her question is one more background job, as it would be without
preemption. `python -m tests.bench.preemption [MODEL]`.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from typing import Any

from llmos.ipc.connection import Connection
from llmos.ipc.errors import OpError
from tests.bench import core_work
from tests.bench.figures import percentile, report
from tests.bench.live import booted, connect
from tests.bench.prefix import first_text, words

AGENTS, ROUNDS, PROMPT, SLICE = 8, 8, 256, 128
_numbers = itertools.count()


def ask(client: Connection, job_class: str) -> float:
    """Seconds to the first word of an answer to a prompt that was never seen."""
    return first_text(client, prompt=f"Question {next(_numbers)}. {words(PROMPT)}", job_class=job_class)[0]


def generate(client: Connection, number: int, ended: threading.Event) -> None:
    """An agent: one long text after the other, each from a prompt of its own."""
    for turn in itertools.count():
        if ended.is_set():
            return
        prompt = f"Agent {number}, text {turn}. {words(200)}"
        try:
            stream = client.stream(
                "llm.generate", {"prompt": prompt, "max_tokens": 200, "job_class": "background"}, timeout=300
            )
            for _ in stream:
                if ended.is_set():
                    stream.cancel()
        except OpError:
            return


def main() -> None:
    """Print and keep the figures."""
    name = core_work.chosen()
    told: dict[str, Any] = {}
    with booted(models=True, model=name, told=told) as client:
        ask(client, "interactive")
        idle = [ask(client, "interactive") for _ in range(ROUNDS)]
        connections, ended = [connect(told["runtime"]) for _ in range(AGENTS)], threading.Event()
        agents = [
            threading.Thread(target=generate, args=(each, number, ended)) for number, each in enumerate(connections)
        ]
        for agent in agents:
            agent.start()
        time.sleep(20)
        loaded, without = [], []
        for _ in range(ROUNDS):
            loaded.append(ask(client, "interactive"))
            time.sleep(1)
            without.append(ask(client, "background"))
            time.sleep(1)
        stats = client.call("llm.stats", {})
        slice_s = SLICE * stats["prefill_s"] / stats["tokens"]["prefill"]
        ended.set()
        for agent in agents:
            agent.join()
        for connection in connections:
            connection.close()
    base = statistics.median(idle)
    figures: dict[str, float | int | str] = {
        "ttft_ratio": statistics.median(loaded) / base,
        "ttft_ratio_without": statistics.median(without) / base,
        "ttft_ratio_less_a_slice": (statistics.median(loaded) - slice_s) / base,
        "idle_s": base,
        "loaded_s": statistics.median(loaded),
        "loaded_p90_s": percentile(loaded, 0.9),
        "without_s": statistics.median(without),
        "slice_s": slice_s,
        "agents": AGENTS,
    }
    report("preemption", figures, model=name)


if __name__ == "__main__":
    main()
