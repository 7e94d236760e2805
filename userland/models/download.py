"""Fetches one file whose size and digest are known, continuing where an earlier attempt stopped."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO, Literal

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError
from llmos.userland.models.index import Network, reason, without_secrets

ATTEMPTS = 5
"""Tries in a row that bring it next to nothing further (less than `STALLED_BYTES`) before giving up."""

LONGEST_WAIT_S = 60.0
"""Seconds that a server may have us wait before the next try."""
STALLED_S, STALLED_BYTES = 60.0, 64 << 10
"""A connection that brings fewer bytes than this in so many seconds has stalled."""

_PIECE = 1 << 18
_AGAIN = "run it again: it continues where it stopped"

Report = Callable[[int], None]
"""Called with the bytes there are so far."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a file has to hash to, in hexadecimal: its SHA-256, or its id as a git blob.

    A blob's id is the SHA-1 of `blob SIZE`, a NUL, and the content. It tells a damaged file from a whole one; against somebody who makes
    two files with one id it is as weak as SHA-1. Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects.
    """

    kind: Literal["sha256", "git"]
    value: str

    def matches(self, path: Path) -> bool:
        """Raises `OSError`."""
        if self.kind == "sha256":
            return digest(path) == self.value
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                found.update(piece)
        return found.hexdigest() == self.value


def fetch(
    url: str,
    target: Path,
    size: int,
    checksum: Checksum,
    network: Network,
    report: Report,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Bring `url` to `target`, which appears only when it has exactly `size` bytes and this checksum.

    What has arrived lies in `target` + `.part`, and is kept when the network fails and thrown away when the digest is wrong.
    Never more than `size` + 1 bytes are written, whatever the server sends. Blocks for as long as bytes arrive.

    Raises:
        ModelError: UNAVAILABLE (network, disk full, wrong content), NOT_FOUND (the server has it no more), BUSY (another
            process is fetching it).
    """
    partial = target.with_name(target.name + ".part")
    try:
        with partial.open("ab") as stream:
            _lock(stream, target.name)
            resumed = stream.tell() > 0
            _receive(url, stream, size, network, report, sleep)
            if not checksum.matches(partial) and resumed:
                stream.truncate(0)  # the earlier piece may have been of another file
                _receive(url, stream, size, network, report, sleep)
            if not checksum.matches(partial):
                partial.unlink()
                raise ModelError(
                    Code.UNAVAILABLE,
                    f"{without_secrets(url)} is not the file it should be: its checksum is wrong, nothing was kept",
                    f"{network.called} or a proxy on the way serves something else; try again, or another one",
                )
            partial.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelError(
                Code.UNAVAILABLE, f"the disk is full ({partial.parent})", f"make room, then {_AGAIN}"
            ) from error
        raise


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _lock(stream: BinaryIO, name: str) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ModelError(Code.BUSY, f"another process is fetching {name}", "wait for it to end") from error


def _receive(
    url: str, stream: BinaryIO, size: int, network: Network, report: Report, sleep: Callable[[float], None]
) -> None:
    """Append to `stream` until it holds `size` bytes."""
    idle, furthest = 0, stream.seek(0, 2)
    while (have := stream.seek(0, 2)) < size:
        trouble, wait = _receive_once(url, stream, have, size, network, report)
        reached = stream.seek(0, 2)
        idle = 0 if reached - furthest >= STALLED_BYTES else idle + 1
        furthest = max(furthest, reached)
        if idle == ATTEMPTS:
            raise ModelError(
                Code.UNAVAILABLE,
                f"{without_secrets(url)} stopped at {reached / 1e6:.1f} of {size / 1e6:.1f} MB: {trouble}",
                f"check the network, then {_AGAIN}",
            )
        if reached < size:
            sleep(max(min(2.0**idle, 8.0) / 2, wait))
    if have > size:
        stream.truncate(0)
        raise ModelError(
            Code.UNAVAILABLE, f"{without_secrets(url)} is longer than it should be: nothing was kept", _AGAIN
        )


def _receive_once(
    url: str, stream: BinaryIO, have: int, size: int, network: Network, report: Report
) -> tuple[str, float]:
    """Append what one request brings; why it ended, and how many seconds the server wants us to wait."""
    # A compressed transfer would make byte positions meaningless.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = network.open(url, headers)
    except urllib.error.HTTPError as error:
        return _refused(url, stream, network, error)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: it redirects to something that is no address
        return reason(error), 0.0
    with response:
        if have and not _continues(response, have):
            stream.truncate(0)
            have = 0
        report(have)
        said = response.headers.get("Content-Length", "")
        end = have + int(said) if said.isascii() and said.isdigit() and len(said) < 19 else None
        since, mark = time.monotonic(), have
        while have <= size and have != end:  # a server that does not close would otherwise be waited for at the end
            try:
                piece = response.read1(min(_PIECE, size + 1 - have))
            except (OSError, HTTPException, ValueError) as error:
                return reason(error), 0.0
            if not piece:
                break
            stream.write(piece)
            have += len(piece)
            report(min(have, size))
            if (now := time.monotonic()) - since > STALLED_S:
                if have - mark < STALLED_BYTES:
                    return f"fewer than {STALLED_BYTES >> 10} KiB arrived in {STALLED_S:.0f} s", 0.0
                since, mark = now, have
    return "the connection ended early", 0.0


def _continues(response: HTTPResponse, have: int) -> bool:
    """Whether the server sends the rest and not, for want of ranges, the whole. Source: RFC 9110, section 14.4."""
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _refused(url: str, stream: BinaryIO, network: Network, error: urllib.error.HTTPError) -> tuple[str, float]:
    """Why the server said no, and how long to wait. Raises `ModelError` for an answer that asking again does not change."""
    error.close()
    said = f"{error.code} {error.reason}"
    final = network.refusal(url, error)
    if final is not None:
        raise final from error
    if error.code == 416:
        stream.truncate(0)  # the file there is shorter than what we hold: begin anew
    return said, wanted_wait(error)


def wanted_wait(error: urllib.error.HTTPError) -> float:
    """Seconds until a server wants to be asked again, as `Retry-After` says; 0 if it does not, at most `LONGEST_WAIT_S`."""
    said = error.headers.get("Retry-After", "")
    return min(float(said), LONGEST_WAIT_S) if said.isascii() and said.isdigit() and len(said) < 7 else 0.0
