"""llama.cpp's HTTP server as a benchmark meets it: a process of its own on loopback, spoken to in server-sent events.

Its flags are those under which it did best in the agent workload (see `agent_workload`); what is not named has its default: continuous
batching, flash attention where it helps, reuse of the longest common prefix of a slot, and a cache of prompts in memory (8 GiB).

Source: `tools/server/README.md` of the version built; https://html.spec.whatwg.org/multipage/server-sent-events.html for the stream.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.answer import Answer
from tests.bench.reference import environment, program

START_S = 120.0
"""Seconds it may take to load a model."""
ANSWER_S = 1800.0
"""Seconds without a byte of an answer: with many agents before it, a request waits for minutes."""
STOP_S = 15.0

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Setting:
    """How a server is to run.

    Attributes:
        slots: sequences that it decodes at once.
        tokens: the longest of them, prompt and answer together.
        unified: one KV buffer that all slots share, in place of one for each.
        spin: whether its threads spin while they wait for each other, or sleep.
        pinned: whether each caller names its slot, so that nobody takes another's conversation out of it.
        extra: more of its command line.
    """

    slots: int
    tokens: int
    unified: bool = False
    spin: bool = False
    pinned: bool = False
    extra: tuple[str, ...] = ()


class Server:
    """A running server. Any number of threads may ask at once; each request has a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        grammar: str = "",
        slot: int = -1,
    ) -> Answer:
        """One greedy chat completion, bound by `grammar` in GBNF. `slot` -1 leaves the choice to the server.

        Raises `RuntimeError` for an answer that is none.
        """
        body: dict[str, Any] = {
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_prompt": True,
            "id_slot": slot,
        }
        if grammar:
            body["grammar"] = grammar
        connection = http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_S)
        try:
            started = time.perf_counter()
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(body), headers={"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"llama-server: {response.status} {response.read(2000)!r}")
            return read_answer(iter(response.readline, b""), started)
        finally:
            connection.close()

    def healthy(self) -> bool:
        """Whether it has loaded its model."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def read_answer(lines: Iterator[bytes], started: float) -> Answer:
    """The stream of a chat completion; times count from `started` on `time.perf_counter`. Raises `RuntimeError`."""
    text: list[str] = []
    first = 0.0
    usage: dict[str, Any] | None = None
    for line in lines:
        if not line.startswith(b"data: "):
            if line.startswith(b"error: "):
                raise RuntimeError(f"llama-server: {line!r}")
            continue
        data = line[len(b"data: ") :].strip()
        if data == b"[DONE]":
            break
        event = json.loads(data)
        if "error" in event:
            raise RuntimeError(f"llama-server: {event['error']}")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            piece = choice["delta"].get("content")
            if piece:
                first = first or time.perf_counter() - started
                text.append(piece)
    total = time.perf_counter() - started
    if usage is None:
        raise RuntimeError("llama-server: the stream ended before the answer did")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Answer("".join(text), first or total, total, usage["completion_tokens"], usage["prompt_tokens"], cached)


@contextmanager
def running(gguf: Path, setting: Setting, threads: int) -> Iterator[Server]:
    """A server that has loaded its model, ended afterwards.

    Raises:
        Missing: it is not built.
        RuntimeError: it does not start; with the end of its log.
    """
    with socket.create_server((HOST, 0)) as free:
        port = int(free.getsockname()[1])
    command = [str(program("llama-server")), "--model", str(gguf), "--host", HOST, "--port", str(port)]
    command += ["--threads", str(threads), "--parallel", str(setting.slots)]
    command += ["--ctx-size", str(setting.slots * setting.tokens)]
    command += ["--kv-unified" if setting.unified else "--no-kv-unified", "--no-webui", "--offline", *setting.extra]
    inherited = environment(spin=setting.spin)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=inherited, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            server = Server(port)
            end = time.monotonic() + START_S
            while not server.healthy():
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    tail = log.read().decode(errors="replace")[-3000:]
                    raise RuntimeError(f"llama-server does not start: {' '.join(command)}\n{tail}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
