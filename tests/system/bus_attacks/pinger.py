"""Somebody else on the bus: pings all the time, and says on request how long the pings since the last request took."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from llmos.ipc.connection import Connection
from llmos.ipc.errors import OpError

PAUSE_S = 0.003


def main() -> None:
    """`python -m tests.system.bus_attacks.pinger SOCKET TOKEN`: a line in, a line of JSON out: microseconds, and failures."""
    taken: list[float] = []
    failed: list[str] = []
    ended = threading.Event()

    def ping() -> None:
        with Connection(Path(sys.argv[1]), sys.argv[2], "pinger") as connection:
            while not ended.is_set():
                started = time.perf_counter()
                try:
                    connection.call("sys.ping", timeout=10)
                except OpError as error:
                    failed.append(str(error))
                    time.sleep(0.1)
                taken.append(round((time.perf_counter() - started) * 1e6, 1))
                time.sleep(PAUSE_S)

    thread = threading.Thread(target=ping, daemon=True)
    thread.start()
    for _ in sys.stdin:
        count, lost = len(taken), len(failed)
        sys.stdout.write(json.dumps({"us": taken[:count], "failed": failed[:lost]}) + "\n")
        sys.stdout.flush()
        del taken[:count], failed[:lost]
    ended.set()
    thread.join(2)


if __name__ == "__main__":
    main()
