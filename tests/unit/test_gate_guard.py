"""Whom a gate ends when its memory is full: in a process of its own, for the guard looks at every socket there is."""

import json
import subprocess
import sys

PROGRAM = """
import json, select, socket, time
from llmos.kernel import params
from llmos.kernel.gate_guard import Guard

params.GATE_HEAP = params.GATE_PER_PEER = 0
pipe, kernel = socket.socketpair()
senders = {}
kept = []
for name, size in (("much", 100_000), ("little", 100)):
    senders[name], receiver = socket.socketpair()
    senders[name].sendall(bytes(size))
    kept.append(receiver)


def ended(sender):
    look = select.poll()
    look.register(sender, select.POLLIN | select.POLLHUP)
    return bool(look.poll(0))


guard, seen = Guard(pipe.fileno()), []
for _ in range(8):
    guard.watch(time.monotonic(), [])
    seen.append([name for name, sender in senders.items() if ended(sender)])
print(json.dumps(seen))
"""


def test_who_sends_much_goes_before_somebody_whose_message_just_came() -> None:
    """A message that waits for its turn is not taken for the beginning of one that never ends, unless nothing else helps."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    seen = json.loads(done.stdout)
    assert seen[0] == ["much"]
    assert seen[2] == ["much"]
    assert seen[-1] == ["much", "little"]
