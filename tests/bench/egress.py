"""What the egress broker costs a driver, against a connection that goes straight: making it, a small message there and back, bulk.

The driver measures from inside its jail; the same code runs here without one. Both talk to the same echo server on this machine.
"""

from __future__ import annotations

import os
import socket
import tempfile
import textwrap
import types
from pathlib import Path
from typing import Any

from tests.bench.figures import report
from tests.bench.live import booted
from tests.system.egress_stage import Echo, package

MEASURE = """
import socket, statistics, threading, time
connects, turns, size = [], [], 64 << 20
for _ in range(100):
    began = time.perf_counter()
    env.connect("localhost", {port}).close()
    connects.append(time.perf_counter() - began)
    time.sleep(0.06)
sock = env.connect("localhost", {port})
for _ in range(2000):
    began = time.perf_counter()
    sock.sendall(bytes(100))
    sock.recv(1000)
    turns.append(time.perf_counter() - began)
def send():
    for _ in range(size >> 16):
        sock.sendall(bytes(1 << 16))
    sock.shutdown(socket.SHUT_WR)
sender = threading.Thread(target=send)
began = time.perf_counter()
sender.start()
while sock.recv(1 << 18):
    pass
seconds = time.perf_counter() - began
sender.join()
sock.close()
out.update(
    connect_ms_p50=statistics.median(connects) * 1e3,
    connect_ms_max=max(connects) * 1e3,
    turn_us_p50=statistics.median(turns) * 1e6,
    both_ways_mb_s=2 * size / 1e6 / seconds,
)
"""


def main() -> None:
    """Print and keep the figures."""
    straight: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, Echo() as echo:
        code = textwrap.dedent(MEASURE.format(port=echo.port))
        direct = types.SimpleNamespace(connect=lambda host, port: socket.create_connection((host, port)))
        exec(code, {"env": direct, "out": straight})
        package(Path(directory), "fetcher")
        os.environ["PYTHONPATH"] = directory
        with booted(models=False) as user:
            user.call("perm.grant", {"holder": "fetcher", "cap": "net.connect(host=localhost, private=yes)"})
            carried = user.call("fetcher.do", {"code": code}, timeout=60)
            rows = user.call("proc.list")["processes"]
        rss = next(row["rss_mb"] for row in rows if row["name"] == "egress")
    figures = {**carried, **{f"straight_{name}": value for name, value in straight.items()}, "broker_rss_mb": rss}
    report("egress", figures)


if __name__ == "__main__":
    main()
