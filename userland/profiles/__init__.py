"""Profiles: named sets of capabilities, as files.

    [profile]
    name = "reader"
    summary = "Reads your files, and nothing else"
    allow = ["filesystem.read"]

Some come with the system, in this directory. Those in the user's own `profiles` directory (`user_dir`) stand in place of one with
the same name. A profile gives nothing by itself: `llmosctl spawn --profile` and `perm grant --profile` hand on what it lists,
and the kernel refuses what the person does not hold.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from llmos.ipc import paths
from llmos.ipc.errors import Code, OpError

MAX_FILE = 64 * 1024
"""Bytes of a profile's file."""

_SHIPPED = Path(__file__).parent


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands under `[profile]`."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    summary: Annotated[str, Meta(min_length=1, max_length=300)]
    allow: Annotated[list[Annotated[str, Meta(min_length=1, max_length=400)]], Meta(max_length=64)]
    """Capabilities, in their text form."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    profile: Profile


@dataclass(frozen=True)
class Found:
    """A profile's file: what it says, or what is wrong with it."""

    name: str
    path: Path
    own: bool
    """Whether it is the user's, not the system's."""
    profile: Profile | None
    problem: str = ""


def user_dir() -> Path:
    """Where the user's own are."""
    return paths.config_dir() / "profiles"


def every() -> list[Found]:
    """By name. A file that is no profile is among them with its problem, and hides the system's of that name."""
    found: dict[str, Found] = {}
    for directory, own in ((_SHIPPED, False), (user_dir(), True)):
        for path in sorted(directory.glob("*.toml")):
            try:
                found[path.stem] = Found(path.stem, path, own, _load(path))
            except OpError as error:
                found[path.stem] = Found(path.stem, path, own, None, error.detail)
    return [found[name] for name in sorted(found)]


def get(name: str) -> Profile:
    """Raises `OpError`: `NOT_FOUND`, or `INVALID_ARGUMENT` for a file that is no profile."""
    known = every()
    for one in known:
        if one.name == name:
            if one.profile is None:
                raise OpError(Code.INVALID_ARGUMENT, one.problem, f"correct it, or remove it: {one.path}")
            return one.profile
    names = ", ".join(one.name for one in known)
    raise OpError(
        Code.NOT_FOUND, f"no profile is called {name!r}", f"there are: {names}; your own go into {user_dir()}"
    )


def _load(path: Path) -> Profile:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            raise OpError(Code.INVALID_ARGUMENT, f"{path}: larger than {MAX_FILE} bytes")
        made = msgspec.convert(tomllib.loads(raw.decode()), _File, strict=True).profile
    except OSError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise OpError(Code.INVALID_ARGUMENT, f"{path}: {error}") from None
    if made.name != path.stem:
        raise OpError(Code.INVALID_ARGUMENT, f"{path}: its name is {made.name!r}, the file's is {path.stem!r}")
    return made
