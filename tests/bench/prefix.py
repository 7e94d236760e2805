"""What it saves that text read before is not read again, through the whole system.

The second turn of a conversation with a history of 1,500 tokens, against the same history never seen; and how much of eight agents'
prompts is read when all begin with the same 1,000 tokens and come at once. `python -m tests.bench.prefix [MODEL]`.
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

from llmos.ipc.connection import Connection
from tests.bench import core_work
from tests.bench.figures import report
from tests.bench.live import booted, connect

HISTORY, SYSTEM, AGENTS, ROUNDS = 1500, 1000, 8, 3


def words(tokens: int) -> str:
    """About that many tokens of prose."""
    return " ".join(core_work.TEXT.read_text(encoding="utf-8").split(" ")[: int(tokens * 0.72)])


def first_text(client: Connection, **args: Any) -> tuple[float, dict[str, Any]]:
    """Seconds to the first piece of the answer, and the reply."""
    started = time.perf_counter()
    stream = client.stream("llm.generate", {"max_tokens": 8, **args}, timeout=300)
    next(stream)
    return time.perf_counter() - started, stream.finish()


def second_turn(client: Connection, history: str) -> tuple[float, float, int]:
    """Seconds to first text of the first turn, which reads the history, and of the second; tokens of that prompt."""
    context = client.call("llm.open", {})["context"]
    ask = [{"role": "system", "content": history}, {"role": "user", "content": "Who is telling this?"}]
    cold, _ = first_text(client, context=context, messages=ask)
    warm, reply = first_text(client, context=context, messages=[{"role": "user", "content": "And where was that?"}])
    client.call("llm.close", {"context": context})
    return cold, warm, reply["usage"]["prompt"]


def shared(connections: list[Connection], system: str) -> tuple[int, int]:
    """Tokens read for all agents together, and of one agent's prompt."""
    replies: list[dict[str, Any]] = []

    def ask(number: int) -> None:
        said = [{"role": "system", "content": system}, {"role": "user", "content": f"Agent {number}, say your number."}]
        replies.append(
            connections[number].call(
                "llm.generate", {"messages": said, "max_tokens": 8, "job_class": "background"}, timeout=300
            )
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(connections))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    usages = [reply["usage"] for reply in replies]
    return sum(usage["prompt"] - usage["cached"] for usage in usages), max(usage["prompt"] for usage in usages)


def main() -> None:
    """Print and keep the figures."""
    name = core_work.chosen()
    told: dict[str, Any] = {}
    with booted(models=True, model=name, told=told) as client:
        connections = [connect(told["runtime"]) for _ in range(AGENTS)]
        try:
            turns = [second_turn(client, f"Notes, part {number}.\n{words(HISTORY)}") for number in range(ROUNDS)]
            agents = [
                shared(connections, f"You are one of {number + 8} agents.\n{words(SYSTEM)}") for number in range(ROUNDS)
            ]
        finally:
            for connection in connections:
                connection.close()
    figures: dict[str, float | int | str] = {
        "ttft_speedup": statistics.median(cold / warm for cold, warm, _ in turns),
        "shared_prefill_ratio": statistics.median(read / one for read, one in agents),
        "cold_s": statistics.median(cold for cold, _, _ in turns),
        "warm_s": statistics.median(warm for _, warm, _ in turns),
        "history_tokens": turns[0][2],
        "agents": AGENTS,
        "agent_prompt_tokens": agents[0][1],
    }
    report("prefix", figures, model=name)


if __name__ == "__main__":
    main()
