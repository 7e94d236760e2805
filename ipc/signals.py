"""SIGTERM, noticed at once whatever the main thread is doing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def on_terminate(action: Callable[[], None]) -> None:
    """Runs `action` in a thread of its own at the first SIGTERM. Call once, from the main thread.

    A Python handler runs in the main thread, between two bytecodes: one that waits inside a C call may hear of the signal
    too late, and an exception raised there leaves what it was doing half done. A descriptor is woken at once.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)

    def listen() -> None:
        while signal.SIGTERM not in os.read(read, 64):
            pass
        action()

    threading.Thread(target=listen, name="sigterm", daemon=True).start()
