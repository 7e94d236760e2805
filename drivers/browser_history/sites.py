"""Which hosts a person means by the name of a site: `bbc.co.uk`, `bbc`, `the guardian`, `Hacker News`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

_SHORT = 3
"""Letters of the shortest name or initials that may match a part of a host."""


def hosts_of(site: str, hosts: Sequence[str], titled: Callable[[str], Iterable[str]]) -> list[str]:
    """Those of `hosts` that the name means, by the strictest reading that fits any.

    An address is the host and its subdomains. A name is a label of the host; the end of its pages' titles, which `titled`
    answers; the beginning of a label; one of the name's words as a label; its initials at the beginning of one.
    """
    name = site.strip().lower()
    if "." in name and " " not in name:
        parts = urlsplit(name if "//" in name else f"//{name}")
        host = (parts.hostname or name).removeprefix("www.").removeprefix("*.")
        return [known for known in hosts if within(known, host) or within(known, f"*.{host}")]
    words = [word for word in re.findall(r"[^\W_]+", name) if word != "the"]
    joined = "".join(words)
    if not joined:
        return []
    initials = "".join(word[0] for word in words)
    known_titled = set(titled(site.strip()))
    readings: tuple[Callable[[str], bool], ...] = (
        lambda host: joined in _labels(host),
        lambda host: host in known_titled,
        lambda host: len(joined) >= _SHORT and any(label.startswith(joined) for label in _labels(host)),
        lambda host: any(word in _labels(host) for word in words if len(word) >= _SHORT),
        lambda host: len(initials) >= _SHORT and any(label.startswith(initials) for label in _labels(host)),
    )
    for reads in readings:
        if found := [host for host in hosts if reads(host)]:
            return found
    return []


def within(host: str, bound: str) -> bool:
    """Does a bound of a capability or of a setting cover the host? `*.example.com` covers subdomains, `*` all."""
    if bound.startswith("*."):
        return host.endswith(bound[1:])
    return bound == "*" or host == bound.removeprefix("www.")


def _labels(host: str) -> list[str]:
    """The labels of a host but the last, bare of hyphens and a leading `the`; `co` of `co.uk` and the like is none."""
    labels = host.partition(":")[0].split(".")[:-1]
    bare = [label.replace("-", "") for label in labels if label not in {"co", "com", "org", "ac", "gov", "www"}]
    return [label.removeprefix("the") or label for label in bare]
