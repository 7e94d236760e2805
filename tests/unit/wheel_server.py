"""A package index of a test's own: a web server that misbehaves on request, and wheels made on the spot."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from llmos.userland.models.catalog import Part


@dataclass
class WheelServer:
    """Serves `files` by path. `url` is its address; `asked` holds (path, Range header) of every request in order.

    `cut` closes the connection after that many bytes of a body, as long as `cuts` lasts; `ranges` says whether Range is
    honoured; `failing` maps a path to the status it gets, `moved` one to the address it redirects to.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut: int = 0
    cuts: int = 0
    ranges: bool = True
    failing: dict[str, int] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    content_types: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[WheelServer]:
        """Until the block ends."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = False
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        said = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                said.asked.append((path, self.headers.get("Range")))
                said.authorizations.append(self.headers.get("Authorization"))
                if path in said.moved:
                    self.send_response(302)
                    self.send_header("Location", said.moved[path])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                status, body = said.failing.get(path, 200), said.files.get(path)
                if status != 200 or body is None:
                    self.send_error(status if status != 200 else 404)
                    return
                first = 0
                if said.ranges and (asked := self.headers.get("Range")):
                    first = int(asked.removeprefix("bytes=").partition("-")[0])
                if first >= len(body) > 0:
                    self.send_error(416)
                    return
                self.send_response(206 if first else 200)
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
                self.send_header("Content-Type", said.content_types.get(path, "text/html"))
                self.send_header("Content-Length", str(len(body) - first))
                self.end_headers()
                if said.cuts > 0 and path.endswith(".whl"):
                    said.cuts -= 1
                    self.wfile.write(body[first : first + said.cut])
                    self.close_connection = True
                    return
                self.wfile.write(body[first:])

            def log_message(self, *args: object) -> None:
                """Not to standard error."""

        return Handler


def make_part(folder: Path, member: str, content: bytes, becomes: str, package: str = "tiny-model") -> Part:
    """A wheel in `folder` with one member, and the catalogue's words for it."""
    module = package.replace("-", "_")
    name = f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('never run')")
    wheel = (folder / name).read_bytes()
    return Part(
        package=package,
        version="1.0",
        wheel=name,
        wheel_bytes=len(wheel),
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        member=member,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        becomes=becomes,
    )
