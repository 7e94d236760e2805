"""`hf:OWNER/REPO[/PATH][@REVISION]`: what a user calls a model on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError

SCHEME = "hf:"

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_FORM = "such as hf:microsoft/Phi-4-mini-instruct-onnx, hf:OWNER/REPO/FOLDER@REVISION or hf:OWNER/REPO/FILE.gguf"


@dataclass(frozen=True, slots=True)
class Reference:
    """A folder of a repository, or one GGUF file of it, at a revision.

    Attributes:
        path: in the repository; empty for wherever the model is.
        revision: a branch, a tag or a commit; empty for the default branch.
    """

    repository: str
    path: str = ""
    revision: str = ""

    @property
    def is_gguf(self) -> bool:
        return self.path.lower().endswith(".gguf")

    @property
    def model_name(self) -> str:
        """What the model is called unless the user says otherwise: after the file, or after the repository."""
        named = self.path.rpartition("/")[2] if self.is_gguf else self.repository.rpartition("/")[2]
        stem = re.sub(r"(\.gguf|[-_.]gguf|[-_.]onnx)$", "", named.lower())
        return re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")[:64] or "model"

    def __str__(self) -> str:
        path, revision = self.path and f"/{self.path}", self.revision and f"@{self.revision}"
        return f"{SCHEME}{self.repository}{path}{revision}"


def parse_reference(text: str) -> Reference:
    """Raises `ModelError` INVALID_ARGUMENT."""
    place, _, revision = text.removeprefix(SCHEME).partition("@")
    parts = place.rstrip("/").split("/")
    sound = text.startswith(SCHEME) and len(parts) >= 2 and all(map(safe_name, parts))
    if not sound or ("@" in text and (not _REVISION.fullmatch(revision) or ".." in revision)):
        raise ModelError(Code.INVALID_ARGUMENT, f"{text[:200]!r} names nothing on the hub", _FORM)
    if _SPLIT.search(parts[-1]):
        raise ModelError(
            Code.INVALID_ARGUMENT,
            f"{parts[-1]} is one piece of a model in several files",
            "take one that is in one file",
        )
    return Reference("/".join(parts[:2]), "/".join(parts[2:]), revision)


def safe_name(name: str) -> bool:
    """Whether it can name a file or a folder anywhere, and climbs out of nothing."""
    return _PART.fullmatch(name) is not None and ".." not in name
