"""Tokens per second through `llm.generate`, from a client process, against a bare onnxruntime-genai loop on the same folder.

Greedy, the same prompt, the same number of tokens, each decided on by a run of the model (no drafts); the two alternate in one
run. Counted from the first piece of text to the last, as a user would: through core, kernel, gate and client.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from llmos.ipc import paths
from llmos.ipc.connection import Connection
from tests.bench.figures import report
from tests.bench.live import booted

PROMPT = "Here is a long story about a lighthouse keeper and the sea. Once upon a time"
TOKENS, ROUNDS = 200, 7


def through(client: Connection) -> float:
    """Tokens per second of one generation, and it must have been of the length asked for."""
    request = {"prompt": PROMPT, "max_tokens": TOKENS, "stop": [], "speculate": False}
    stream = client.stream("llm.generate", request, timeout=120)
    next(stream)
    started = time.perf_counter()
    result = stream.finish()
    seconds = time.perf_counter() - started
    return float((result["usage"]["completion"] - 1) / seconds)


def main() -> None:
    """Print and keep the figures."""
    with booted(models=True) as client:
        name = client.call("sys.status")["model"]["name"]
        command = [sys.executable, "-m", "tests.bench.bare", str(paths.models_dir() / name), PROMPT]
        bare = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert bare.stdin is not None
        assert bare.stdout is not None
        ours: list[float] = []
        theirs: list[float] = []
        for round_ in range(ROUNDS + 1):
            bare.stdin.write(f"{TOKENS}\n")
            theirs.append(float(bare.stdout.readline()))
            ours.append(through(client))
            if round_ == 0:  # warm-up
                ours.clear()
                theirs.clear()
        bare.stdin.close()
        bare.wait()
        bare.stdout.close()
    report(
        "passthrough",
        {
            "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
            "tokens_per_s": statistics.median(ours),
            "bare_tokens_per_s": statistics.median(theirs),
            "rounds": ROUNDS,
            "tokens": TOKENS,
        },
        model=name,
    )


if __name__ == "__main__":
    main()
