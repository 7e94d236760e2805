"""What a process is told that may have been started before anybody knew what it is to be."""

from __future__ import annotations

import importlib
import os
import sys

import msgspec

TOLD = "LLMOS_CONFIG"
"""Environment variable that says what a process is, once it is known."""


def follow() -> None:
    """Import the modules that are the arguments; then, unless it is known, wait for the rest of the environment.

    That comes as a JSON object on standard input, to its end. Nothing at all means that nobody wants the process.
    """
    for module in sys.argv[1:]:
        importlib.import_module(module)
    if TOLD not in os.environ:
        os.environ.update(msgspec.json.decode(sys.stdin.buffer.read() or b"{}", type=dict[str, str]))
