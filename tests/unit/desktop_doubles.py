"""A desktop for tests: a real message bus, and on it a notification service that shows to nobody and presses what it is told to."""

from __future__ import annotations

import contextlib
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from jeepney import DBusAddress, HeaderFields, MessageType, message_bus, new_method_return, new_signal
from jeepney.io.threading import DBusConnection, ReceiveStopped, open_dbus_connection

SERVICE = "org.freedesktop.Notifications"
OBJECT = DBusAddress("/org/freedesktop/Notifications", interface=SERVICE)


@contextlib.contextmanager
def session_bus() -> Iterator[str]:
    """The address of a bus; the test is skipped where there is no dbus-daemon."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed")
    command = ["dbus-daemon", "--session", "--nofork", "--print-address=1", "--address=unix:dir=/tmp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        try:
            yield daemon.stdout.readline().strip()
        finally:
            daemon.terminate()


class Screen:
    """A notification service: keeps what it is told to show, and presses buttons."""

    def __init__(self, address: str) -> None:
        self.connection: DBusConnection = open_dbus_connection(address)
        self.shown: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.closed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._count = 0
        self.connection.send(message_bus.RequestName(SERVICE))
        self._thread = threading.Thread(target=self._serve, name="screen")
        self._thread.start()

    def signal(self, member: str, signature: str, *body: Any) -> None:
        self.connection.send(new_signal(OBJECT, member, signature, body))

    def next(self) -> tuple[int, Any]:
        """Number and arguments of the next `Notify`."""
        return self.shown.get(timeout=10)

    def end(self) -> None:
        self.connection.interrupt()
        self._thread.join()
        self.connection.close()

    def _serve(self) -> None:
        try:
            while True:
                self._answer(self.connection.receive())
        except ReceiveStopped:
            return

    def _answer(self, message: Any) -> None:
        if message.header.message_type is not MessageType.method_call:
            return
        member = message.header.fields[HeaderFields.member]
        if member == "Notify":
            self._count += 1
            self.connection.send(new_method_return(message, "u", (self._count,)))
            self.shown.put((self._count, message.body))
        elif member == "CloseNotification":
            self.connection.send(new_method_return(message))
            self.signal("NotificationClosed", "uu", message.body[0], 3)
            self.closed.put(message.body[0])
