"""What a call costs on its way through gate and kernel, against a bare ROUTER/DEALER echo.

Rounds of both alternate in one run, so that the machine's moods meet both. `ratio` is a call answered by the kernel (client,
gate, kernel, gate, client: authenticated, decoded with limits, checked); `served_ratio` one that another process answers, which
passes gate and kernel twice each way.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

import zmq

from llmos.ipc import wire
from llmos.ipc.connection import Connection
from tests.bench.figures import percentile, report
from tests.bench.live import booted

ROUNDS, CALLS = 10, 300


def _echo(address: str) -> None:
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(address)
    while True:
        frames = socket.recv_multipart()
        socket.send_multipart(frames)
        if frames[-1] == b"end":
            time.sleep(0.2)
            return


def _serve(address: Path, token: str) -> None:
    with Connection(address, token) as connection:
        connection.call("fn.register", {"name": "echo", "summary": "Gives back what it gets"})
        while (call := connection.next_call()) is not None:
            call.reply(call.args)


def _timed(action: object, into: list[float]) -> None:
    for _ in range(CALLS):
        started = time.perf_counter()
        action()  # type: ignore[operator]
        into.append((time.perf_counter() - started) * 1e6)


def main() -> None:
    """Print and keep the figures."""
    with tempfile.TemporaryDirectory() as directory, booted(models=False) as client:
        address = f"ipc://{Path(directory) / 'echo'}"
        server = multiprocessing.get_context("spawn").Process(target=_echo, args=(address,))
        server.start()
        app = multiprocessing.get_context("spawn").Process(target=_serve, args=(client.path, client.token))
        app.start()
        while not any(row["op"] == "app.echo" for row in client.call("sys.ops")["ops"]):
            time.sleep(0.05)
        dealer = zmq.Context().socket(zmq.DEALER)
        dealer.connect(address)
        body = wire.encode({})

        def bare() -> None:
            dealer.send_multipart([b"llmos/1", b"header", body])
            dealer.recv_multipart()

        echo: list[float] = []
        kernel: list[float] = []
        served: list[float] = []
        bare()
        for _ in range(ROUNDS):
            _timed(bare, echo)
            _timed(lambda: client.call("sys.ping"), kernel)
            _timed(lambda: client.call("app.echo"), served)
        dealer.send(b"end")
        server.join()
        app.terminate()
        app.join()
        dealer.context.destroy(linger=0)
    base = percentile(echo, 0.5)
    report(
        "call_rtt",
        {
            "ratio": percentile(kernel, 0.5) / base,
            "p50_us": percentile(kernel, 0.5),
            "p99_us": percentile(kernel, 0.99),
            "served_ratio": percentile(served, 0.5) / base,
            "served_p50_us": percentile(served, 0.5),
            "echo_p50_us": base,
            "echo_p99_us": percentile(echo, 0.99),
        },
    )


if __name__ == "__main__":
    main()
