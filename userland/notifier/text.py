"""What a notification says: who wants which op, and where it would land. Nothing else of a request gets onto the desktop."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmos.userland.visible import cut, exact, visible

MAX_ARGUMENTS = 200
"""Characters of the control arguments."""
MAX_NAME = 60

ONCE, NO, SHOW = "once", "no", "default"
"""Keys of the buttons; `default` is also a click on the notification itself."""


@dataclass(frozen=True)
class Text:
    """One notification. `summary` is plain text, `body` may hold markup, and neither holds a stranger's."""

    summary: str
    body: str
    buttons: tuple[tuple[str, str], ...]
    """Key and what stands on it."""


def of_request(shown: Mapping[str, Any]) -> Text:
    """From `approval.show`. What did not fit cannot be approved by a click: then there is only `Show`."""
    said = ", ".join(f"{visible(str(given['path']))} = {exact(given['value'])}" for given in shown["provenance"])
    whole = len(said) <= MAX_ARGUMENTS and _all_told(shown) and (bool(said) or not shown["args"])
    tops = {str(given["path"]).partition("[")[0].partition(".")[0].partition(":")[0] for given in shown["provenance"]}
    rest = len(set(shown["args"]) - tops)
    more = f"{rest} more argument{'s' if rest > 1 else ''}: see Show" if rest else ""
    body = "\n".join(filter(None, (cut(said, MAX_ARGUMENTS), more)))
    once = ((ONCE, "Approve once"),) if whole else ()
    summary = f"{_name(shown['holder'])} asks: {_name(shown['op'])}"
    return Text(html.escape(summary), html.escape(body), (*once, (NO, "Deny"), (SHOW, "Show")))


def of_command(shown: Mapping[str, Any]) -> Text:
    """Where no terminal could be opened: what to type."""
    command = f"llmosctl approve {_name(shown['id'])}"
    return Text(html.escape(f"{_name(shown['holder'])} asks: {_name(shown['op'])}"), html.escape(command), ())


def _all_told(shown: Mapping[str, Any]) -> bool:
    return len(shown["provenance"]) >= int(shown["provenance_of"])


def _name(value: object) -> str:
    return cut(visible(str(value)), MAX_NAME)
