"""Fetches one file whose size and digest are known, continuing where an earlier attempt stopped."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import time
import urllib.error
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError
from llmos.userland.models.index import Network, reason, without_secrets

ATTEMPTS = 5
"""Tries in a row that bring it no further before giving up."""

_PIECE = 1 << 18
_AGAIN = "run it again: it continues where it stopped"

Report = Callable[[int], None]
"""Called with the bytes there are so far."""


def fetch(
    url: str,
    target: Path,
    size: int,
    sha256: str,
    network: Network,
    report: Report,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Bring `url` to `target`, which appears only when it has exactly `size` bytes and this digest.

    What has arrived lies in `target` + `.part`, and is kept when the network fails and thrown away when the digest is wrong.
    Blocks for as long as bytes arrive.

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
            if digest(partial) != sha256 and resumed:
                stream.truncate(0)  # the earlier piece may have been of another file
                _receive(url, stream, size, network, report, sleep)
            if digest(partial) != sha256:
                partial.unlink()
                raise ModelError(
                    Code.UNAVAILABLE,
                    f"{without_secrets(url)} is not the file it should be: its SHA-256 is wrong, nothing was kept",
                    "the index or a proxy on the way serves something else; try again, or another index",
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
        trouble = _receive_once(url, stream, have, size, network, report)
        reached = stream.seek(0, 2)
        idle = 0 if reached > furthest else idle + 1
        furthest = max(furthest, reached)
        if idle == ATTEMPTS:
            raise ModelError(
                Code.UNAVAILABLE,
                f"{without_secrets(url)} stopped at {reached / 1e6:.1f} of {size / 1e6:.1f} MB: {trouble}",
                f"check the network, then {_AGAIN}",
            )
        if reached < size:
            sleep(min(2.0**idle, 8.0) / 2)
    if have > size:
        stream.truncate(0)
        raise ModelError(
            Code.UNAVAILABLE, f"{without_secrets(url)} is longer than it should be: nothing was kept", _AGAIN
        )


def _receive_once(url: str, stream: BinaryIO, have: int, size: int, network: Network, report: Report) -> str:
    """Append what one request brings; why it ended."""
    # A compressed transfer would make byte positions meaningless.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = network.open(url, headers)
    except urllib.error.HTTPError as error:
        return _refused(url, stream, error)
    except (OSError, HTTPException) as error:
        return reason(error)
    with response:
        if have and not _continues(response, have):
            stream.truncate(0)
            have = 0
        report(have)
        while have <= size:
            try:
                piece = response.read(_PIECE)
            except (OSError, HTTPException) as error:
                return reason(error)
            if not piece:
                break
            stream.write(piece)
            have += len(piece)
            report(min(have, size))
    return "the connection ended early"


def _continues(response: HTTPResponse, have: int) -> bool:
    """Whether the server sends the rest and not, for want of ranges, the whole. Source: RFC 9110, section 14.4."""
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _refused(url: str, stream: BinaryIO, error: urllib.error.HTTPError) -> str:
    """Why the server said no. Raises `ModelError` for an answer that asking again does not change."""
    error.close()
    said = f"{error.code} {error.reason}"
    if error.code in (404, 410):
        raise ModelError(
            Code.NOT_FOUND, f"{without_secrets(url)}: {said}", "the package index no longer has this file"
        ) from error
    if error.code in (401, 403, 407):
        raise ModelError(
            Code.UNAVAILABLE, f"{without_secrets(url)}: {said}", "check pip's credentials and proxy"
        ) from error
    if error.code == 416:
        stream.truncate(0)  # the file there is shorter than what we hold: begin anew
    return said
