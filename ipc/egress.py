"""How a driver asks the egress broker for a connection: a frame each way on a unix socket, and then the connection's own bytes.

A frame is a 2-byte big-endian length and that many bytes of msgpack. The request is `{host, port}`, the answer `{address}`, the
address that was connected to, or an error as on the bus. Whoever asks is known by the socket's credentials.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError

MAX_REQUEST = 512
"""Bytes of a request."""
MAX_HOST = 253
"""Characters of a host's name. Source: RFC 1035."""
LENGTH = 2
"""Bytes of a frame's length."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def frame(message: dict[str, Any]) -> bytes:
    """A message with its length in front."""
    data = wire.encode(message)
    return len(data).to_bytes(LENGTH, "big") + data


def request(host: str, port: int) -> bytes:
    """Raises `OpError(INVALID_ARGUMENT)`."""
    return frame({"host": normal_host(host), "port": normal_port(port)})


def parse_request(data: bytes) -> tuple[str, int]:
    """Host and port of what a stranger sent, in their one normal form. Raises `OpError(INVALID_ARGUMENT)`."""
    try:
        message = wire.decode_map(data, MAX_REQUEST)
    except wire.Malformed as error:
        raise OpError(Code.INVALID_ARGUMENT, f"malformed: {error}") from None
    return normal_host(message.get("host")), normal_port(message.get("port"))


def normal_host(host: object) -> str:
    """A name in lower case, or an IPv6 address in its shortest form; a name beyond ASCII as it is looked up (`xn--…`).

    Raises `OpError(INVALID_ARGUMENT)` for anything else: another parser might see another host in it.
    """
    if not isinstance(host, str) or not 0 < len(host) <= MAX_HOST:
        raise OpError(Code.INVALID_ARGUMENT, "host must be a name of 1 to 253 characters, or an address")
    try:
        if ":" in host:
            address = ipaddress.IPv6Address(host)
            if address.scope_id is None:
                return address.compressed
        else:
            name = (host if host.isascii() else host.encode("idna").decode("ascii")).lower().removesuffix(".")
            if len(name) <= MAX_HOST and _HOST.fullmatch(name):
                return name
    except ValueError:
        pass
    raise OpError(Code.INVALID_ARGUMENT, f"{host!r} is not a host", "give the bare name, e.g. example.com")


def normal_port(port: object) -> int:
    """Raises `OpError(INVALID_ARGUMENT)`."""
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 1 << 16:
        raise OpError(Code.INVALID_ARGUMENT, "port must be a number from 1 to 65535")
    return port
