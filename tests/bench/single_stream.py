"""Prefill and decode of one stream against llama.cpp, on the same GGUF with as many threads: tokens per second, ours / llama.cpp.

`python -m tests.bench.single_stream [--size 135m 0b5 1b5] [--rounds 5]`; see README.md beside this file.

llama.cpp is measured by its own `llama-bench`, we by the core's engine in a process of its own (`core_speed`): 512 tokens read into
an empty context, and 64 tokens decoded one by one behind 256. Neither side samples. Both alternate, one measurement each, after a
warm-up. llama.cpp is measured twice each time, with threads that spin and threads that sleep while they wait for each other, and
compared with the better: beside other busy processes spinning ones stand still. `prefill_SIZE` and `decode_SIZE` are the medians
over rounds of the ratio: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmos.ipc import paths
from llmos.kernel.core import runtime
from tests.bench.figures import report
from tests.bench.reference import GGUFS, NAME, Missing, environment, installed, program

PROMPT, DEPTH, TOKENS, ROUNDS = 512, 256, 64, 5
BENCH_S = 600

Speed = Callable[[str], float]
"""What is to be measured, `prefill` or `decode`, to tokens per second."""


@contextmanager
def core(folder: Path) -> Iterator[Speed]:
    """Our engine, loaded and waiting in between."""
    lines = {"prefill": f"prefill {PROMPT}\n", "decode": f"decode {DEPTH} {TOKENS}\n"}
    command = [sys.executable, "-m", "tests.bench.core_speed", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        said = child.stdout

        def measure(what: str) -> float:
            assert child.stdin is not None
            child.stdin.write(lines[what])
            return float(said.readline())

        said.readline()
        try:
            yield measure
        finally:
            child.stdin.close()


def bench(gguf: Path, what: str, *, spin: bool) -> float:
    """llama.cpp's tokens per second; loads the model, warms up and measures once."""
    test = {"prefill": ["-p", str(PROMPT), "-n", "0"], "decode": ["-p", "0", "-n", str(TOKENS), "-d", str(DEPTH)]}
    threads = str(runtime.threads())
    command = [str(program("llama-bench")), "-m", str(gguf), "-t", threads, "-r", "1", "-o", "json", *test[what]]
    done = subprocess.run(command, env=environment(spin=spin), capture_output=True, timeout=BENCH_S, check=True)
    (row,) = json.loads(done.stdout)
    return float(row["avg_ts"])


def compare(size: str, rounds: int) -> dict[str, float]:
    """The figures of one model, by name. Raises `Missing`."""
    gguf = GGUFS[size]
    folder = paths.models_dir() / installed(gguf)
    result: dict[str, float] = {}
    with core(folder) as ours:
        for what in ("prefill", "decode"):
            ours(what)  # warm-up; llama-bench does its own
            mine: list[float] = []
            theirs: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(rounds):
                mine.append(ours(what))
                for spin, kept in theirs.items():
                    kept.append(bench(gguf, what, spin=spin))
                print(
                    f"{size} {what}: {mine[-1]:.1f} against {theirs[True][-1]:.1f} spinning, "
                    f"{theirs[False][-1]:.1f} sleeping (tokens/s)",
                    flush=True,
                )
            best = max(theirs.values(), key=statistics.median)
            result[f"{what}_{size}"] = statistics.median(a / b for a, b in zip(mine, best, strict=True))
            result[f"{what}_{size}_tokens_per_s"] = statistics.median(mine)
            result[f"{what}_{size}_llama_cpp_spinning"] = statistics.median(theirs[True])
            result[f"{what}_{size}_llama_cpp_sleeping"] = statistics.median(theirs[False])
    return result


def missing() -> str:
    """Why this benchmark cannot run here, empty when it can with one model at least."""
    troubles = []
    try:
        program("llama-bench")
    except Missing as error:
        return str(error)
    for gguf in GGUFS.values():
        try:
            installed(gguf)
        except Missing as error:
            troubles.append(str(error))
        else:
            return ""
    return "; ".join(troubles)


def main(arguments: Sequence[str] = ()) -> int:
    """Print and keep the figures. Status 1 when nothing could be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--size", choices=list(GGUFS), nargs="+", default=list(GGUFS), help="default: all that are there"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    options = parser.parse_args(arguments)
    figures: dict[str, float | int | str] = {}
    measured = []
    for size in options.size:
        try:
            figures |= compare(size, options.rounds)
        except Missing as error:
            print(f"{size} is left out: {error}", file=sys.stderr)
        else:
            measured.append(size)
    if not measured:
        return 1
    facts = {"rounds": options.rounds, "threads": runtime.threads(), "reference": NAME}
    report("single_stream", figures | facts, model=" ".join(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
