"""The core's entry: one inherited file descriptor, the pipe to the kernel."""

from __future__ import annotations

import os
import signal
import socket
import sys

from llmos.ipc.pipe import PeerGone, Pipe


def main(arguments: list[str]) -> int:
    """Serve on the pipe `--fd N` until the kernel says so or is gone; returns the exit status."""
    # Before anything can import the runtime: its wheels send telemetry unless they are told not to.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # A ^C at the terminal reaches every process of it; the kernel decides when the core ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    from llmos.kernel.core.loop import Loop

    if len(arguments) != 2 or arguments[0] != "--fd" or not arguments[1].isdecimal():
        sys.stderr.write("usage: python -m llmos.kernel.core --fd N (started by the kernel, on a socket it inherits)\n")
        return 2
    pipe = Pipe(socket.socket(fileno=int(arguments[1])))
    try:
        Loop(pipe).serve()
    except PeerGone:
        return 1
    return 0
