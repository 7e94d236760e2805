"""A Hugging Face hub of a test's own: its API, its redirects to a storage, and ways to misbehave."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STORED = (".onnx", ".data", ".gguf")
"""What the hub keeps in its storage, with SHA-256s; the rest are git blobs."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has heard enough is no error of the server's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class FakeHub:
    """Serves `files` (by path) of the one repository `repository`. `asked` holds (path, Range, Authorization) in order.

    Attributes:
        entries: overrides what the list of files says of a path.
        served: overrides what is sent for a path.
        failing: address → status, extra headers, and how often; an address is a path without its query.
        cut: the connection is closed after that many bytes of a body out of the storage, as long as `cuts` lasts.
        endless: paths whose body never ends.
        token: the only one that is let in; None for everybody.
        page: files of one page of the list.
        storage: the origin of the storage; the hub's own unless said otherwise.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    repository: str = "owner/tiny"
    license: str = "mit"
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    failing: dict[str, tuple[int, dict[str, str], int]] = field(default_factory=dict)
    cut: int = 0
    cuts: int = 0
    endless: set[str] = field(default_factory=set)
    token: str | None = None
    page: int = 1000
    storage: str = ""
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        """Until the block ends."""
        server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def entry(self, path: str) -> dict[str, Any]:
        """What the list says of a file."""
        content = self.files[path]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        said: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if path.endswith(STORED):
            said["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return said | self.entries.get(path, {})

    def ranges(self, path: str) -> list[str | None]:
        """The Range of each request for a file's bytes."""
        return [asked for address, asked, _ in self.asked if address in (f"/storage/{path}", self.place(path))]

    def place(self, path: str) -> str:
        return f"/{self.repository}/resolve/{COMMIT}/{path}"

    def _answer(self, address: str, query: dict[str, list[str]]) -> tuple[dict[str, str], Any] | None:
        """Extra headers, and bytes or what becomes JSON."""
        api = f"/api/models/{self.repository}"
        if address in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            return {}, {"sha": COMMIT, "cardData": {"license": self.license}}
        if address == f"{api}/tree/{COMMIT}":
            first = int(query.get("cursor", ["0"])[0])
            folders = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "cpu"}]
            listed = [*folders, *(self.entry(path) for path in self.files)]
            more = first + self.page < len(listed)
            link = {"Link": f'<{self.url}{address}?cursor={first + self.page}>; rel="next"'} if more else {}
            return link, listed[first : first + self.page]
        for prefix in (f"/{self.repository}/resolve/{COMMIT}/", "/storage/"):
            path = address.removeprefix(prefix)
            if path != address and path in self.files:
                return {}, self.served.get(path, self.files[path])
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        said = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                address, token = unquote(parts.path), self.headers.get("Authorization")
                said.asked.append((address, self.headers.get("Range"), token))
                status, headers, times = said.failing.get(address, (0, {}, 0))
                if times:
                    said.failing[address] = (status, headers, times - 1)
                    self._send(status, b"no", headers)
                elif said.token is not None and token != f"Bearer {said.token}" and not address.startswith("/storage/"):
                    self._send(401, b"no", {"X-Error-Code": "GatedRepo"})
                elif (found := said._answer(address, parse_qs(parts.query))) is None:
                    self._send(404, b"no", {})
                elif not isinstance(found[1], bytes):
                    self._send(200, json.dumps(found[1]).encode(), found[0])
                elif address.endswith(STORED) and not address.startswith("/storage/"):
                    path = address.removeprefix(said.place(""))
                    self._send(302, b"", {"Location": f"{said.storage}/storage/{path}?signature=s"})
                else:
                    self._file(address, found[1])

            def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _file(self, address: str, body: bytes) -> None:
                if any(address.endswith(f"/{path}") for path in said.endless):
                    with suppress(ConnectionError):
                        self.send_response(200)
                        self.end_headers()
                        while True:
                            self.wfile.write(b"x" * 100_000)
                first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
                if first >= len(body) > 0:
                    self.send_error(416)
                    return
                self.send_response(206 if first else 200)
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
                self.send_header("Content-Length", str(len(body) - first))
                self.end_headers()
                if said.cuts > 0 and address.startswith("/storage/"):
                    said.cuts -= 1
                    self.close_connection = True
                    body = body[: first + said.cut]
                self.wfile.write(body[first:])

            def log_message(self, *args: object) -> None:
                """Not to standard error."""

        return Handler
