"""A new driver package, whole: it builds, its test passes, and `driver check` finds nothing to say."""

from __future__ import annotations

import re
from pathlib import Path

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import KERNEL_OPS
from llmos.ipc.protocol import SYSCALLS

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_TAKEN = {op.partition(".")[0] for op in SYSCALLS} | {
    "app",
    "fs",
    "user",
    "kernel",
    "gate",
    "core",
    "llmos",
    *KERNEL_OPS,
}

_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=80"]
build-backend = "setuptools.build_meta"

[project]
name = "llmos-{dashed}"
version = "0.1.0"
description = "{title} for llmos"
readme = "README.md"
license = "MIT"
requires-python = ">=3.11"
dependencies = []  # what it imports besides llmos, which is there already

[project.entry-points."llmos.drivers"]
{name} = "{package}"

[tool.setuptools.packages.find]
where = ["src"]

[tool.setuptools.package-data]
"*" = ["*.toml"]

[tool.pytest.ini_options]
pythonpath = ["src"]
""",
    "src/{package}/__init__.py": "",
    "src/{package}/manifest.toml": """\
name = "{name}"
version = "0.1.0"
summary = "The notes in your folder {folder}"
entry = "{package}.driver:{title}"
tags = ["{name}"]

[permissions]
read = ["~/{folder}"]

[ops.notes]
effect = "read"
summary = "The lines of the notes, the newest file first"
utterances = ["what do my {words} notes say", "show me the {words} notes", "what did I write down about {words}"]
timeout_s = 5
idempotent = true
[ops.notes.args.query]
type = "string"
default = ""
max_length = 200
role = "query"
description = "Only lines with this in them"
[ops.notes.args.k]
type = "integer"
default = 10
minimum = 1
maximum = 100
role = "count"
description = "How many lines"
[ops.notes.args.cursor]
type = "string"
default = ""
max_length = 20
role = "cursor"
description = "Where an earlier answer's `next` goes on"
""",
    "src/{package}/driver.py": '''\
"""The notes in the folders that were granted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from llmos.drivers.sdk import Call, Code, Driver, DriverEnv, OpError, op


class {title}(Driver):
    def setup(self, env: DriverEnv) -> None:
        self.env = env

    def status(self) -> str:
        return "ready" if self.env.roots else "no folder is granted"

    @op
    def notes(self, call: Call, *, query: str = "", k: int = 10, cursor: str = "") -> dict[str, Any]:
        if not self.env.roots:
            raise OpError(Code.UNAVAILABLE, "no folder is granted", "llmosctl perm grant --requested {name}")
        if cursor and not cursor.isdecimal():
            raise OpError(Code.INVALID_ARGUMENT, "argument cursor: not one of an earlier answer")
        start = int(cursor or 0)
        items = list(islice(self._lines(call, query), start, start + k + 1))
        return {{"items": items[:k], "next": str(start + k) if len(items) > k else ""}}

    def _lines(self, call: Call, query: str) -> Iterator[dict[str, Any]]:
        for file in sorted(self._files(), key=lambda file: -file.stat().st_mtime):
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
                call.check()
                if line and query.casefold() in line.casefold():
                    yield {{"uid": f"{{file.name}}:{{number}}", "text": line[:1000], "path": str(file)}}

    def _files(self) -> Iterator[Path]:
        for root in self.env.roots:
            yield from root.glob("*.txt")
''',
    "tests/test_{name}.py": '''\
"""The driver as its host runs it: its ops by name, their arguments and results checked against the manifest."""

from collections.abc import Iterator
from pathlib import Path

import {package}
import pytest
from llmos.drivers.sdk import OpError
from llmos.drivers.testing import Running, running

MANIFEST = Path({package}.__file__).with_name("manifest.toml")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Running]:
    folder = tmp_path / "{folder}"
    folder.mkdir()
    (folder / "a.txt").write_text("first\\nsecond\\nthird\\n")
    with running(MANIFEST, tmp_path, roots=[folder]) as made:
        yield made


def test_notes_page(driver: Running) -> None:
    first = driver.call("notes", k=2)
    assert [item["text"] for item in first["items"]] == ["first", "second"]
    rest = driver.call("notes", k=2, cursor=first["next"])
    assert ([item["text"] for item in rest["items"]], rest["next"]) == (["third"], "")


def test_query_narrows(driver: Running) -> None:
    assert [item["text"] for item in driver.call("notes", query="SEC")["items"]] == ["second"]


def test_arguments_are_checked(driver: Running) -> None:
    with pytest.raises(OpError, match="argument k"):
        driver.call("notes", k=0)
    with pytest.raises(OpError, match="argument cursor"):
        driver.call("notes", cursor="x")


def test_it_starts_with_nothing_granted(tmp_path: Path) -> None:
    with running(MANIFEST, tmp_path) as made:
        assert made.status == "no folder is granted"
        with pytest.raises(OpError, match="no folder"):
            made.call("notes")
''',
    "README.md": """\
# llmos-{dashed}

A driver for llmos: the notes in a folder.

- **Reads** the text files in `~/{folder}`, once you have granted it; nothing else, and no network.
- **Ops**: `notes` lists their lines, the newest file first; `query` narrows, `k` and `cursor` page.
- **Limits**: only `*.txt`, only the folder itself, a thousand characters of a line.

```
llmosctl driver check .
llmosctl driver install .
llmosctl call {name}.notes k=3
```
""",
}


def write(name: str, root: Path | None = None) -> tuple[Path, list[Path]]:
    """The directory and the files in it. Raises `OpError`: `INVALID_ARGUMENT` (the name), `CONFLICT` (something is there)."""
    if not _NAME.fullmatch(name) or name in _TAKEN:
        why = (
            "it means something already"
            if name in _TAKEN
            else "lowercase letters, digits and `_`, beginning with a letter"
        )
        raise OpError(Code.INVALID_ARGUMENT, f"{name[:80]!r} cannot name a driver", why)
    dashed = name.replace("_", "-")
    root = (root or Path(f"llmos-{dashed}")).expanduser()
    if root.exists() and any(root.iterdir()):
        raise OpError(Code.CONFLICT, f"{root} is not empty", "name another directory")
    title = "".join(part.capitalize() for part in name.split("_"))
    words = {
        "name": name,
        "dashed": dashed,
        "package": f"llmos_{name}",
        "title": title,
        "folder": title,
        "words": name.replace("_", " "),
    }
    made = []
    for path, content in _FILES.items():
        file = root / path.format(**words)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content.format(**words) if content else "")
        made.append(file)
    return root, made
