"""A person's program that can be killed at any moment: reads, listens, waits for agents. Nothing it does has to last.

`python -m tests.system.kill_client SOCKET PAUSE SEED`: rests while the file PAUSE exists.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from llmos.ipc.connection import Connection
from llmos.ipc.errors import OpError

AGENT: dict[str, Any] = {
    "program": "scripted",
    "args": {"script": [{"op": "post.book"}, {"sleep": 0.2}]},
    "allow": ["post.read"],
    "wait": True,
}
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("filesystem.list", {}),
    ("browser_history.sources", {}),
    ("post.inbox", {}),
    ("proc.list", {}),
    ("proc.spawn", AGENT),
    ("bus.subscribe", {"topic": "proc.*"}),
    ("fn.register", {"name": "mine", "summary": "Lent by somebody who may die"}),
)


def main() -> None:
    """Until it is killed, or nobody reads what it says any more."""
    chosen = random.Random(int(sys.argv[3]))
    with Connection(Path(sys.argv[1]), client="victim") as connection:
        while True:
            time.sleep(0.02)
            if Path(sys.argv[2]).exists():
                continue
            op, args = chosen.choice(CALLS)
            try:
                connection.call(op, args, timeout=10)
            except OpError:
                time.sleep(0.05)


if __name__ == "__main__":
    main()
