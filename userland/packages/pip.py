"""pip, in a jail with the network: it sees a wheel that it was given, its own directory, and the indexes that pip is configured with.

It unpacks wheels and starts no program, so that nothing of a package runs. The settings are read out here as pip would read them,
and handed over as environment variables: its files, and whatever lies beside them in the user's home, stay outside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from llmos.ipc.errors import Code, OpError
from llmos.userland.packages import jailed, tree
from llmos.userland.visible import cut, visible

if TYPE_CHECKING:
    from llmos.userland.models.index import Settings

Report = Callable[[str, int, int], None]
"""What is being done, how many bytes of it are done, and how many there are (0: unknown)."""

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_UNREACHABLE = (
    "connection broken",
    "Could not fetch URL",
    "NewConnectionError",
    "name resolution",
    "timed out",
    "ProxyError",
)
_UNITS = {"kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000, "bytes": 1}


def install(requirement: str, wheel: Path | None, place: Path, scratch: Path, report: Report) -> None:
    """Unpack a wheel, from the index or `wheel`, with what it needs, into `place`, whose parent may be written.

    Raises `OpError`: `UNAVAILABLE` (pip could not), `TOO_LARGE`, `TIMEOUT`.
    """
    constraints = scratch / "constraints.txt"
    constraints.write_text(
        "".join(f"{dist}=={metadata.version(dist)}\n" for dist in tree.HOST.values() if dist != "llmos")
    )
    args = [
        "install",
        "--only-binary",
        ":all:",
        "--no-compile",
        "--progress-bar",
        "off",
        "--constraint",
        str(constraints),
    ]
    args += ["--target", str(place), "--", str(wheel) if wheel is not None else requirement]
    settings = _configured()
    read = (*settings.read, *([wheel] if wheel is not None else []))
    job = jailed.Job("pip", args, (scratch, place.parent), read, env=_environment(settings, scratch), network=True)
    done = jailed.run(job, _Progress(report))
    if done.status:
        raise _failed(requirement, done)


def newest(name: str, scratch: Path) -> str:
    """The newest version on the index. Raises `OpError`: `NOT_FOUND`, `UNAVAILABLE` (it cannot be asked)."""
    settings = _configured()
    args = ["index", "versions", "--only-binary", ":all:", "--", name]
    done = jailed.run(
        jailed.Job("pip", args, (scratch,), settings.read, env=_environment(settings, scratch), network=True)
    )
    found = next((match[1] for line in done.lines if (match := re.fullmatch(r"[A-Za-z0-9._-]+ \((\S+)\)", line))), None)
    if found is not None:
        return found
    raise _failed(name, done)


def _failed(requirement: str, done: jailed.Outcome) -> OpError:
    if any(sign in line for line in done.lines for sign in _UNREACHABLE):
        hint = "check the network, or point pip at a mirror or a folder of wheels (PIP_INDEX_URL, PIP_FIND_LINKS)"
        return OpError(Code.UNAVAILABLE, f"{requirement}: the package index cannot be reached", hint)
    if any("No module named pip" in line for line in done.lines):
        return OpError(Code.UNAVAILABLE, "pip is not installed beside llmos", "python -m ensurepip, in its environment")
    missing = "No matching distribution found" in done.reason
    said = cut(visible(done.reason), 300)
    hint = "it has to be there as a wheel, for this Python" if missing else "is it a wheel, for this Python?"
    if missing and Path(requirement).is_dir():
        hint = f"for the directory of that name: ./{requirement}"
    return OpError(Code.NOT_FOUND if missing else Code.UNAVAILABLE, f"{visible(requirement)}: pip: {said}", hint)


@dataclass(frozen=True)
class _Handed:
    """pip's settings as variables, and the files and folders that they name."""

    variables: Mapping[str, str]
    read: tuple[Path, ...]


def _configured() -> _Handed:
    """Raises `OpError(INVALID_ARGUMENT)` for a setting of pip's that cannot be read."""
    from llmos.userland.models.index import read_settings  # HTTP and TLS: most commands need neither

    return _handed(read_settings())


def _handed(settings: Settings) -> _Handed:
    """Folders by their real names, which are those that a jail shows; what does not exist is left out."""
    read: list[Path] = []

    def seen(place: str) -> str:
        parts = urlsplit(place)
        if parts.scheme not in ("", "file"):
            return place
        path = Path(unquote(parts.path)).expanduser().absolute().resolve()
        if not path.exists():
            return ""
        read.append(_whole_index(path))
        return path.as_uri()

    indexes = [found for index in settings.indexes if (found := seen(index))]
    links = [found for link in settings.find_links if (found := seen(link))]
    variables = {"PIP_NO_INDEX": "1"} if not indexes else {"PIP_INDEX_URL": indexes[0]}
    if indexes[1:]:
        variables["PIP_EXTRA_INDEX_URL"] = " ".join(indexes[1:])
    if links:
        variables["PIP_FIND_LINKS"] = " ".join(links)
    if settings.cert and Path(settings.cert).exists():
        read.append(Path(settings.cert).resolve())
        variables["PIP_CERT"] = str(Path(settings.cert).resolve())
    if settings.trusted_hosts:
        variables["PIP_TRUSTED_HOST"] = " ".join(sorted(settings.trusted_hosts))
    if settings.proxy:
        variables["PIP_PROXY"] = settings.proxy
    return _Handed({**variables, "PIP_TIMEOUT": f"{settings.timeout:g}"}, tuple(dict.fromkeys(read)))


def _whole_index(path: Path) -> Path:
    """A local index's pages are called `simple`, and its files lie beside them."""
    beside = path.name == "simple" and not Path.home().is_relative_to(path.parent)
    return path.parent if beside else path


def _environment(settings: _Handed, scratch: Path) -> dict[str, str]:
    proxies = {name: value for name, value in os.environ.items() if name.upper() in _PROXIES}
    fixed = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INPUT": "1",
        "PIP_RETRIES": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "TMPDIR": str(scratch),
    }
    return {**proxies, **settings.variables, **fixed}


class _Progress:
    """What pip says, for people."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __call__(self, line: str) -> None:
        words = visible(line).split()
        if words[:1] == ["Collecting"] and len(words) > 1:
            self._report(f"collecting {cut(words[1], 80)}", 0, 0)
        elif words[:1] == ["Downloading"] and len(words) > 1:
            size = re.search(r"\((\d+(?:\.\d+)?) (kB|MB|GB|bytes)\)", line)
            name = cut(words[1].rpartition("/")[2], 80)
            self._report(f"downloading {name}", 0, int(float(size[1]) * _UNITS[size[2]]) if size else 0)
        elif words[:2] == ["Installing", "collected"]:
            self._report("unpacking", 0, 0)
