"""What a program costs that `code.run` runs, against plain Python; and what hostile ones cost everybody else.

`run_ms` is from the call to the answer of a program that prints a word, two looks at its project and its jail included; `python_ms` the
same program by `python -I -c`, in turns. `ping_*` is a call of somebody else's while two programs run, each the worst for the kernel in one
way: one writes byte by byte, one fills its project with files.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from llmos.ipc.connection import Connection
from llmos.ipc.errors import OpError
from tests.bench.figures import percentile, report
from tests.bench.live import booted

ROUNDS, PINGS = 40, 2000
HELLO = "print('hello')"
BYTES = "import os\nwhile True: os.write(1, b'x')"
FILES = "n = 0\nwhile True:\n    n += 1\n    open(str(n % 1900), 'w').write('x' * 1000)"


def main() -> None:
    """Print and keep the figures."""
    runs: list[float] = []
    plain: list[float] = []
    with booted(models=False) as user:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            user.stream("code.run", {"project": "p", "source": HELLO}).finish()
            runs.append((time.perf_counter() - started) * 1000)
            started = time.perf_counter()
            subprocess.run([sys.executable, "-I", "-c", HELLO], check=True, stdout=subprocess.DEVNULL)
            plain.append((time.perf_counter() - started) * 1000)
        calm = _pings(user)
        with _hostile(user):
            loaded = _pings(user)
    report(
        "code",
        {
            "run_ms_p50": percentile(runs, 0.5),
            "run_ms_p95": percentile(runs, 0.95),
            "python_ms_p50": percentile(plain, 0.5),
            "run_ratio": percentile(runs, 0.5) / percentile(plain, 0.5),
            "ping_us_p50": percentile(calm, 0.5),
            "ping_us_p99": percentile(calm, 0.99),
            "ping_hostile_us_p50": percentile(loaded, 0.5),
            "ping_hostile_us_p99": percentile(loaded, 0.99),
            "rounds": ROUNDS,
        },
    )


def _pings(user: Connection) -> list[float]:
    took = []
    for _ in range(PINGS):
        started = time.perf_counter()
        user.call("sys.ping")
        took.append((time.perf_counter() - started) * 1e6)
    return took


@contextmanager
def _hostile(user: Connection) -> Iterator[None]:
    """Both kinds, started again whenever a limit has ended them."""
    stop = threading.Event()

    def again(project: str, source: str) -> None:
        while not stop.is_set():
            try:
                user.stream("code.run", {"project": project, "source": source, "seconds": 5}).finish()
            except OpError:
                time.sleep(0.01)

    threads = [threading.Thread(target=again, args=one) for one in (("bytes", BYTES), ("files", FILES))]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
