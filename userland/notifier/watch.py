"""The notifier's one loop: what the kernel and the desktop say comes in by one queue, what follows from it goes out."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from llmos.userland import notifier
from llmos.userland.notifier.desktop import Clicked, Closed, Desktop, Gone, NoBus, Place, Shown
from llmos.userland.notifier.text import NO, ONCE, SHOW, of_command, of_request
from llmos.userland.sdk import Client, Code, Event, OpError, Unreachable

MOST = 8
"""Notifications on the screen at once; other requests wait behind them."""
RETRY_S = 5.0
"""Seconds without a system after which the notifier ends with it."""

_TERMINALS = (["xdg-terminal-exec"], ["x-terminal-emulator", "-e"])
_ID = re.compile(r"[A-Za-z0-9_\-]{1,60}")


def main() -> int:
    """Shows what waits until the system ends. Its exit status; 0 where there is nothing to show it on."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    address = notifier.session_bus(os.environ)
    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    try:
        if address is None:
            raise NoBus
        desktop = Desktop(address, inbox)
    except NoBus as error:
        _say(f"{notifier.NO_DESKTOP} ({error})" if str(error) else notifier.NO_DESKTOP)
        return 0
    with contextlib.closing(Client(name="notifier")) as client:
        watch = Watch(client, desktop, inbox)
        try:
            watch.run()
        except KeyboardInterrupt:
            return 130
        except NoBus:
            _say("the desktop session has ended")
        except Unreachable as error:
            _say(error.detail)
        except OpError as error:
            _say(f"error: {error.detail}")
            return 1
        finally:
            client.close()
            watch.clear()
            desktop.end()
    return 0


class Watch:
    """Which requests are on the screen, and where."""

    def __init__(self, client: Client, desktop: Desktop, inbox: queue.SimpleQueue[object]) -> None:
        self._client = client
        self._desktop = desktop
        self._inbox = inbox
        self._asked: dict[int, str] = {}
        """Ticket → request, until the service says where it is."""
        self._places: dict[Place, str] = {}
        """Of every request that is not settled; the screen may show it no more."""
        self._open: set[Place] = set()
        self._behind: deque[str] = deque()
        self._terminals: list[subprocess.Popen[bytes]] = []
        self._complained = False
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Until the system or the desktop ends. Raises `Unreachable`, `NoBus`."""
        self._session()
        while True:
            self._again()

    def _again(self) -> None:
        """The gate restarted, or the system has ended."""
        end = time.monotonic() + RETRY_S
        while True:
            try:
                return self._session()
            except OpError as error:
                if error.code not in (Code.UNAVAILABLE, Code.PEER_DIED) or time.monotonic() > end:
                    raise
                time.sleep(0.3)

    def _session(self) -> None:
        """As long as one subscription lasts."""
        self._follow()
        while True:
            match self._inbox.get():
                case Event() as event:
                    self._hear(event)
                case OpError():
                    return
                case Shown() as shown:
                    self._placed(shown)
                case Clicked() as clicked:
                    self._clicked(clicked)
                case Closed(place):
                    self._open.discard(place)
                    self._fill()
                case Gone():
                    raise NoBus

    def clear(self) -> None:
        """Takes everything off the screen: nobody listens to its buttons any more. The client is closed by then."""
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(NoBus):
            for place in self._open:
                self._desktop.close(place)
        for terminal in self._terminals:
            terminal.poll()

    def _follow(self) -> None:
        """Subscribes first, so that nothing is missed between this and the list of what waits already."""
        events = self._client.subscribe("approval.*")
        self._thread = threading.Thread(target=self._read, args=(events,), name="events")
        self._thread.start()
        self._catch_up()

    def _catch_up(self) -> None:
        """What waits goes to the screen, and what was settled meanwhile leaves it."""
        pending = [row["id"] for row in self._client.call("approval.list", timeout=5)["approvals"]]
        for settled in set(self._known()) - set(pending):
            self._settle(settled)
        for number in reversed(pending):
            self._want(number)

    def _read(self, events: Iterator[Event]) -> None:
        try:
            for event in events:
                self._inbox.put(event)
        except OpError as error:
            self._inbox.put(error)

    def _known(self) -> list[str]:
        return [*self._places.values(), *self._asked.values(), *self._behind]

    def _hear(self, event: Event) -> None:
        number = str(event.data.get("id", ""))
        if event.lost:
            self._catch_up()
        if event.topic == "approval.requested":
            self._want(number)
        elif event.topic == "approval.settled":
            self._settle(number)

    def _want(self, number: str) -> None:
        if _ID.fullmatch(number) and number not in self._known():
            self._behind.append(number)
            self._fill()

    def _fill(self) -> None:
        while self._behind and len(self._open) + len(self._asked) < MOST:
            number = self._behind.popleft()
            shown = self._look(number)
            if shown is not None and shown["state"] == "pending":
                self._asked[self._desktop.show(of_request(shown))] = number

    def _settle(self, number: str) -> None:
        if number in self._behind:
            self._behind.remove(number)
        for ticket in [ticket for ticket, one in self._asked.items() if one == number]:
            self._asked[ticket] = ""  # closed as soon as it is there
        for place in [place for place, one in self._places.items() if one == number]:
            self._take_off(place)
        self._fill()

    def _take_off(self, place: Place) -> None:
        del self._places[place]
        if place in self._open:
            self._open.discard(place)
            self._desktop.close(place)

    def _placed(self, shown: Shown) -> None:
        number = self._asked.pop(shown.ticket, None)
        if number is None:
            return
        if shown.place is None:
            if not self._complained:
                _say(f"the desktop shows no notifications: {shown.problem}")
            self._complained = True
        elif number:
            self._places[shown.place] = number
            self._open.add(shown.place)
        else:
            self._desktop.close(shown.place)
        self._fill()

    def _clicked(self, clicked: Clicked) -> None:
        number = self._places.get(clicked.place)
        if number is None:
            return  # settled meanwhile, or not of the service that shows it
        if clicked.key in (ONCE, NO):
            try:
                self._client.call("approval.answer", {"id": number, "answer": clicked.key}, timeout=5)
            except OpError as error:
                _say(f"{number}: {error.detail}")
        elif clicked.key == SHOW:
            self._show_in_full(number)

    def _show_in_full(self, number: str) -> None:
        command = [sys.executable, "-m", "llmos.userland.cli", "approve", number]
        self._terminals = [terminal for terminal in self._terminals if terminal.poll() is None]
        for terminal in _TERMINALS:
            if shutil.which(terminal[0]):
                self._terminals.append(subprocess.Popen([*terminal, *command], start_new_session=True))
                return
        shown = self._look(number)
        if shown is not None:
            self._asked[self._desktop.show(of_command(shown))] = number

    def _look(self, number: str) -> dict[str, Any] | None:
        try:
            return self._client.call("approval.show", {"id": number}, timeout=5)
        except Unreachable:
            return None
        except OpError as error:
            _say(f"{number}: {error.detail}")
            return None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
