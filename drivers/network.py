"""A driver's way out: connections through the egress broker, which asks the kernel and dials.

What comes back is a socket to the broker that carries the connection's bytes, so everything that is written for a connected socket
works on it; TLS is made here, in the driver, from end to end. The driver host puts `Network.create_connection` in the place of
`socket.create_connection`, so that `http.client`, `imaplib`, `smtplib`, `ftplib`, `poplib` and whatever else calls it need no change.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmos.ipc import egress, wire
from llmos.ipc.errors import Code, OpError

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

BROKER_S = 10.0
"""Seconds to look for a broker that is being started again."""
_PAUSE_S = 0.05


class ConnectError(OpError, OSError):
    """No connection: an `OpError` for the op that wanted it, an `OSError` for a library that expects one."""

    def __init__(self, code: Code | str, detail: str, hint: str | None = None) -> None:
        super().__init__(code, detail, hint)
        self.errno, self.strerror = errno.ECONNREFUSED, detail


class _Forbidden(ConnectError, PermissionError):
    def __init__(self, code: Code | str, detail: str, hint: str | None = None) -> None:
        super().__init__(code, detail, hint)
        self.errno = errno.EACCES


class _Late(ConnectError, TimeoutError):
    def __init__(self, code: Code | str, detail: str, hint: str | None = None) -> None:
        super().__init__(code, detail, hint)
        self.errno = errno.ETIMEDOUT


_AS_OSERROR: dict[Code, type[ConnectError]] = {Code.DENIED: _Forbidden, Code.REVOKED: _Forbidden, Code.TIMEOUT: _Late}


def _error(code: Code, detail: str, hint: str | None = None) -> ConnectError:
    return _AS_OSERROR.get(code, ConnectError)(code, detail, hint)


class Connection(socket.socket):
    """A stream through the broker. It says whom it is connected to, and takes options of TCP for set: the broker sets them."""

    peer: tuple[str, int] = ("", 0)

    def getpeername(self) -> tuple[str, int]:
        """Address and port that the broker connected to."""
        return self.peer

    def setsockopt(self, level: int, *rest: Any) -> None:
        if level not in (socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6):
            super().setsockopt(level, *rest)


class Network:
    """What one driver may reach.

    Args:
        driver: its name, for hints.
        broker: the broker's socket; None when nothing is granted.
    """

    def __init__(self, driver: str = "", broker: Path | None = None) -> None:
        self._driver = driver
        self._broker = broker

    def connect(
        self, host: str, port: int, *, tls: bool | ssl.SSLContext = False, timeout: float | None = None
    ) -> socket.socket:
        """See `DriverEnv.connect`."""
        sock = self._connect(host, port, timeout)
        if tls is False:
            return sock
        import ssl  # takes a moment, and not every driver needs it

        context = ssl.create_default_context() if tls is True else tls
        try:
            return context.wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise

    def create_connection(
        self,
        address: tuple[Any, Any],
        timeout: Any = ...,
        source_address: Any = None,  # noqa: ARG002  (from which address is the broker's business)
        *,
        all_errors: bool = False,  # noqa: ARG002
    ) -> socket.socket:
        """In the place of `socket.create_connection`."""
        host, port = address[:2]
        given = timeout if timeout is None or isinstance(timeout, (int, float)) else socket.getdefaulttimeout()
        return self._connect(host, int(port), given)

    def _connect(self, host: str, port: int, timeout: float | None) -> Connection:
        try:
            request = egress.request(host, port)
        except OpError as error:
            raise _error(error.code, error.detail, error.hint) from None
        if self._broker is None:
            wanted = f"net.connect(host={egress.normal_host(host)}, port={port})"
            hint = f"llmosctl perm grant {self._driver} '{wanted}'" if self._driver else None
            raise _error(Code.DENIED, f"missing the capability {wanted}", hint)
        until = time.monotonic() + (BROKER_S if timeout is None else min(timeout, BROKER_S))
        while True:
            sock = Connection(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout)
                sock.connect(str(self._broker))
                sock.sendall(request)
                sock.peer = (_answer(sock), port)
            except (
                FileNotFoundError,
                ConnectionError,
                BlockingIOError,
            ) as error:  # it starts again, or many ask at once
                sock.close()
                if time.monotonic() >= until:
                    detail = f"the egress broker does not answer: {error.strerror}"
                    raise _error(Code.UNAVAILABLE, detail, "see `llmosctl ps`") from None
                time.sleep(_PAUSE_S)
            except TimeoutError as error:
                sock.close()
                raise error if isinstance(error, OpError) else _error(Code.TIMEOUT, f"{host} did not answer") from None
            except BaseException:
                sock.close()
                raise
            else:
                return sock


def _answer(sock: socket.socket) -> str:
    """The address that was connected to. Reads not a byte of what follows. Raises `ConnectError`, `ConnectionError`."""
    size = int.from_bytes(_exactly(sock, egress.LENGTH), "big")
    try:
        message = wire.decode_map(_exactly(sock, size))
    except wire.Malformed as error:
        raise _error(Code.INTERNAL, f"the egress broker's answer is malformed: {error}") from None
    if "address" not in message:
        refused = OpError.from_wire(message)
        raise _error(refused.code, refused.detail, refused.hint)
    with suppress(ValueError):
        return ipaddress.ip_address(str(message["address"])).compressed
    return ""


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        block = sock.recv(size - len(data))
        if not block:
            raise ConnectionResetError(errno.ECONNRESET, "it closed before it had answered")
        data += block
    return data
