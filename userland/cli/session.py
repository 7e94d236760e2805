"""A command's connection to the system."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmos.ipc.errors import Code, OpError
from llmos.userland.cli import failure
from llmos.userland.sdk import Client

if TYPE_CHECKING:
    from llmos.userland.sdk import Stream


@contextlib.contextmanager
def connect() -> Iterator[Client]:
    """Raises `Unreachable` on the first call when no system runs."""
    with Client(name="llmosctl") as client:
        yield client


def ask_kernel(op: str, args: dict[str, Any] | None = None, *, timeout: float | None = None) -> dict[str, Any]:
    """One call on a connection of its own. Ctrl-C cancels it."""
    with connect() as client, cancelling(client, client.stream(op, args or {}, timeout=timeout)) as stream:
        return stream.finish()


@contextlib.contextmanager
def model_may_be_meant(client: Client) -> Iterator[None]:
    """Around an agent's run: its `UNAVAILABLE` becomes `ModelUnavailable` where there is no model."""
    try:
        yield
    except OpError as error:
        if error.code is Code.UNAVAILABLE and _lacks_model(client):
            raise failure.ModelUnavailable(error.code, error.detail, error.hint) from None
        raise


def _lacks_model(client: Client) -> bool:
    try:
        return client.call("sys.status", timeout=5)["model"]["state"] in ("none", "failed")
    except OpError:
        return False


@contextlib.contextmanager
def cancelling(client: Client, stream: Stream) -> Iterator[Stream]:
    """Around the reading of an answer: Ctrl-C cancels the call, and the cancel is on its way before this ends."""
    try:
        yield stream
    except KeyboardInterrupt:
        stream.cancel()
        with contextlib.suppress(OpError):
            client.call("sys.ping", timeout=1)
        raise
