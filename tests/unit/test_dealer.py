"""The socket under a connection."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DROPPED = """
import gc, pathlib, sys, zmq
from llmos.ipc.dealer import Dealer

gate = zmq.Context.instance().socket(zmq.ROUTER)
gate.bind(f"ipc://{sys.argv[1]}")
for _ in range(5):
    dealer = Dealer(pathlib.Path(sys.argv[1]), print, print)
    dealer.open()
    dealer.itself = dealer  # as a connection, whose methods its dealer calls
    del dealer
    gc.collect()
gate.close()
print("collected")
"""


def test_one_that_nobody_closed_is_collected(tmp_path: Path) -> None:
    """Without waiting for its own sockets, whoever's thread the collector runs in."""
    command = [sys.executable, "-c", DROPPED, str(tmp_path / "g")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "collected\n", done.stderr
