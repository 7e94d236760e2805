"""The desktop's notification service, over D-Bus. What it says arrives in the same queue as everything else."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass

from jeepney import DBusAddress, HeaderFields, MatchRule, Message, MessageType, message_bus, new_method_call
from jeepney.io.threading import DBusConnection, ReceiveStopped, open_dbus_connection

from llmos.userland.notifier.text import Text

SERVICE = "org.freedesktop.Notifications"
_ADDRESS = DBusAddress("/org/freedesktop/Notifications", bus_name=SERVICE, interface=SERVICE)
_NORMAL = 1


class NoBus(Exception):
    """There is no session bus to talk to, or it has gone."""


@dataclass(frozen=True)
class Place:
    """A notification on the screen: of which service, and its number there."""

    service: str
    """Its unique name on the bus, which the bus vouches for."""
    number: int


@dataclass(frozen=True)
class Shown:
    """The notification that was asked for with `ticket` is at `place`; None when the service refused."""

    ticket: int
    place: Place | None
    problem: str = ""


@dataclass(frozen=True)
class Clicked:
    """A button was pressed."""

    place: Place
    key: str


@dataclass(frozen=True)
class Closed:
    """It is not on the screen any more."""

    place: Place


@dataclass(frozen=True)
class Gone:
    """The bus has closed the connection."""


class Desktop:
    """A connection to the session bus.

    Args:
        address: of the bus.
        inbox: where `Shown`, `Clicked`, `Closed` and `Gone` are put.

    Raises `NoBus`.
    """

    def __init__(self, address: str, inbox: queue.SimpleQueue[object]) -> None:
        self._inbox = inbox
        try:
            self._connection: DBusConnection = open_dbus_connection(address)
        except Exception as error:  # noqa: BLE001  (jeepney tells a bad address, a refusal and a dead bus in six ways)
            raise NoBus(str(error)) from None
        for member in ("ActionInvoked", "NotificationClosed"):
            rule = MatchRule(type="signal", sender=SERVICE, interface=SERVICE, member=member)
            self._send(message_bus.AddMatch(rule))
        self._reader = threading.Thread(target=self._read, name="desktop")
        self._reader.start()

    def show(self, text: Text) -> int:
        """Put it on the screen until it is answered. → the ticket of the `Shown` to come."""
        buttons = [part for button in text.buttons for part in button]
        body = ("llmos", 0, "", text.summary, text.body, buttons, {"urgency": ("y", _NORMAL)}, 0)
        return self._send(new_method_call(_ADDRESS, "Notify", "susssasa{sv}i", body))

    def close(self, place: Place) -> None:
        """Take it off the screen."""
        address = DBusAddress(_ADDRESS.object_path, bus_name=place.service, interface=SERVICE)
        self._send(new_method_call(address, "CloseNotification", "u", (place.number,)))

    def end(self) -> None:
        """Let go of the bus."""
        self._connection.interrupt()
        self._reader.join()
        self._connection.close()

    def _send(self, message: Message) -> int:
        serial: int = next(self._connection.outgoing_serial)
        try:
            self._connection.send(message, serial=serial)
        except OSError as error:
            raise NoBus(str(error)) from None
        return serial

    def _read(self) -> None:
        try:
            while True:
                self._take(self._connection.receive())
        except ReceiveStopped:
            return
        except Exception:  # noqa: BLE001  (the bus has gone, or said what nobody understands: both are its end)
            self._inbox.put(Gone())

    def _take(self, message: Message) -> None:
        fields, kind = message.header.fields, message.header.message_type
        service = str(fields.get(HeaderFields.sender, ""))
        if kind is MessageType.method_return and message.body and isinstance(message.body[0], int):
            self._inbox.put(Shown(int(fields[HeaderFields.reply_serial]), Place(service, message.body[0])))
        elif kind is MessageType.error:
            problem = str(message.body[0] if message.body else fields.get(HeaderFields.error_name))
            self._inbox.put(Shown(int(fields[HeaderFields.reply_serial]), None, problem))
        elif kind is MessageType.signal and fields.get(HeaderFields.interface) == SERVICE:
            member, body = fields.get(HeaderFields.member), message.body
            if member == "ActionInvoked" and fields.get(HeaderFields.signature) == "us":
                self._inbox.put(Clicked(Place(service, body[0]), body[1]))
            elif member == "NotificationClosed" and fields.get(HeaderFields.signature) == "uu":
                self._inbox.put(Closed(Place(service, body[0])))
