"""`metrics`: what the models and processes do and have done, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import typer

from llmos.userland.cli import process, session

Sample = tuple[Mapping[str, str], float]


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: llmosctl metrics > /var/lib/node_exporter/llmos.prom")(metrics)


def metrics(
    processes: Annotated[bool, typer.Option(help="Those of every process too, by its name.")] = True,
) -> None:
    """Print what the system does in the text format of Prometheus, once."""
    with session.connect() as client:
        status = client.call("sys.status", timeout=5)
        stats = client.call("llm.stats", timeout=5)
        rows = process.processes(client) if processes else []
    print("\n".join(exposition(status, stats, rows)))


def exposition(status: Mapping[str, Any], stats: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of the text format.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (0.0.4): base units, `_total` for what only grows until the
    kernel starts again.
    """
    for name, kind, about, samples in _families(status, stats, list(rows)):
        full = f"llmos_{name}"
        yield f"# HELP {full} {about}"
        yield f"# TYPE {full} {kind}"
        for labels, value in samples:
            inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            yield f"{full}{{{inside}}} {value:.15g}" if inside else f"{full} {value:.15g}"


def _families(
    status: Mapping[str, Any], stats: Mapping[str, Any], rows: list[Mapping[str, Any]]
) -> Iterator[tuple[str, str, str, list[Sample]]]:
    """Name, type, help, and samples of each metric."""

    def one(value: float) -> list[Sample]:
        return [({}, value)]

    def each(key: str, values: Mapping[str, float]) -> list[Sample]:
        return [({key: name}, value) for name, value in values.items()]

    states = ("new", "prefill", "decode", "parked")
    jobs: list[Sample] = [
        ({"class": row["class"], "state": state}, row[state]) for row in stats["jobs"] for state in states
    ]
    models: list[Sample] = [
        (
            {"model": row["name"], "kind": row["kind"], "engine": row["engine"], "provider": row["provider"]},
            float(row["state"] == "ready"),
        )
        for row in stats["models"]
    ]
    kv = {name: stats["kv"][name] for name in ("rows", "cache", "spilled")}
    yield "up_seconds", "gauge", "Seconds since the kernel started.", one(status["uptime_s"])
    yield "jobs", "gauge", "Inferences that are here, by class and state.", jobs
    yield "jobs_running", "gauge", "Inferences in the turn under way.", one(stats["running"])
    yield "jobs_ended_total", "counter", "Inferences that ended, by finish or error.", each("how", stats["ended"])
    yield "contexts", "gauge", "Open contexts.", one(stats["contexts"])
    yield (
        "tokens_total",
        "counter",
        "Tokens; cached ones were found, forced ones are among decode.",
        each("kind", stats["tokens"]),
    )
    yield "tokens_per_second", "gauge", "Tokens per second of the last seconds.", each("kind", stats["tokens_s"])
    yield "turns_total", "counter", "Turns of the scheduler.", one(stats["turns"])
    yield "decode_steps_total", "counter", "Decode steps.", one(stats["steps"])
    yield "decode_rows_total", "counter", "Rows over all decode steps.", one(stats["rows"])
    busy = {"prefill": stats["prefill_s"], "decode": stats["decode_s"]}
    yield "model_busy_seconds_total", "counter", "Seconds that models computed.", each("kind", busy)
    yield "kv_bytes", "gauge", "Bytes of KV; spilled ones are on disk, the others in memory.", each("where", kv)
    yield "kv_reserved_bytes", "gauge", "Bytes of KV that are promised to jobs.", one(stats["kv"]["reserved"])
    yield "kv_limit_bytes", "gauge", "Bytes of KV there may be in memory.", one(stats["kv"]["limit"])
    yield "cache_hit_ratio", "gauge", "Part of all prompt tokens that was found in the cache.", one(stats["hit_rate"])
    yield "weights_bytes", "gauge", "Bytes of the weights of loaded models.", one(stats["weights"]["used"])
    yield "weights_limit_bytes", "gauge", "Bytes of weights there may be in memory.", one(stats["weights"]["limit"])
    yield "model_ready", "gauge", "Whether a model is loaded.", models
    memory: list[Sample] = [({"name": row["name"], "kind": row["kind"]}, process.memory(row) * 1e6) for row in rows]
    cpu: list[Sample] = [({"name": row["name"], "kind": row["kind"]}, row["cpu_s"]) for row in rows]
    if rows:
        yield "process_memory_bytes", "gauge", "Memory of a process and all in its jail.", memory
        yield "process_cpu_seconds_total", "counter", "Seconds of processor.", cpu


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
