"""The stage of the egress tests: servers on this machine, and a driver that fetches from them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

MANIFEST = """
name = "{name}"
version = "1"
summary = "Fetches pages, for tests"
entry = "{name}.driver:Fetcher"

[permissions]
hosts = ["localhost", "imap.example.com:993"]

[ops.get]
effect = "read"
summary = "A page, by the standard library"
[ops.get.args.port]
type = "integer"
required = true
[ops.get.args.host]
type = "string"
default = "localhost"

[ops.do]
effect = "read"
summary = "Runs code"
timeout_s = 60
[ops.do.args.code]
type = "string"
required = true
"""
DRIVER = '''
"""A driver of somebody else's."""
import http.client

from llmos.drivers.sdk import Driver, op


class Fetcher(Driver):
    def setup(self, env):
        self.env, self.kept = env, []

    @op
    def get(self, call, *, port: int, host: str = "localhost"):
        connection = http.client.HTTPConnection(host, port, timeout=20)
        connection.request("GET", "/page")
        answer = connection.getresponse()
        return {"status": answer.status, "text": answer.read().decode()}

    @op
    def do(self, call, *, code: str):
        out = {}
        exec(code, {"self": self, "env": self.env, "out": out})
        return out
'''


class Page(BaseHTTPRequestHandler):
    """Says hello on every path."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Echo:
    """A TCP server that sends back what it gets, and `over` at its end."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._tls = tls
        self.port: int = self._listener.getsockname()[1]
        self.open = 0
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        self._socks.append(sock)
        self.open += 1
        with sock, contextlib.suppress(OSError):
            served = self._tls.wrap_socket(sock, server_side=True) if self._tls is not None else sock
            with served:
                while block := served.recv(65536):
                    served.sendall(block)
                served.sendall(b"over")
        self.open -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


def package(packages: Path, name: str) -> None:
    """A driver of this name, as if it had been installed."""
    for place in (packages / name, packages / f"{name}-1.dist-info"):
        place.mkdir(parents=True)
    (packages / name / "__init__.py").touch()
    (packages / name / "manifest.toml").write_text(MANIFEST.format(name=name))
    (packages / name / "driver.py").write_text(DRIVER)
    info = packages / f"{name}-1.dist-info"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[llmos.drivers]\n{name} = {name}\n")
