"""Wheels made on the spot, honest ones and others."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

MANIFEST = """
name = "{name}"
version = "{version}"
summary = "A driver, for tests"
entry = "{name}_package.driver:Made"
tags = ["{name}"]
{more}
[ops.now]
effect = "read"
summary = "Which version answers, and how often one has"
"""
DRIVER = """
from llmos.drivers.sdk import Driver, op

class Made(Driver):
    def setup(self, env):
        self.env = env
        count = env.state / "starts"
        count.write_text(str(int(count.read_text() if count.exists() else 0) + 1))

    @op
    def now(self, call):
        return {{"version": "{version}", "starts": int((self.env.state / "starts").read_text()), **self.env.settings}}
"""


def driver_files(name: str, version: str = "1", more: str = "") -> dict[str, str | bytes]:
    """The package of a driver; `more` goes into its manifest."""
    return {
        f"{name}_package/__init__.py": "",
        f"{name}_package/manifest.toml": MANIFEST.format(name=name, version=version, more=more),
        f"{name}_package/driver.py": DRIVER.format(version=version),
    }


def make(
    folder: Path,
    name: str,
    version: str = "1",
    files: Mapping[str, str | bytes] | None = None,
    *,
    drivers: Mapping[str, str] | None = None,
    requires: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
    called: str = "",
) -> Path:
    """A wheel below `folder`.

    Args:
        files: by path; `driver_files` of the name by default.
        drivers: entry points; one of the wheel's name by default.
        links: symbolic links, as an archive can hold them.
        called: the name in its metadata, where it is another.
    """
    plain = name.replace("-", "_")
    files = driver_files(plain, version) if files is None else files
    about = f"{plain}-{version}.dist-info"
    points = {plain: f"{plain}_package"} if drivers is None else drivers
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    metadata = {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {called or name}\nVersion: {version}\n{needs}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[llmos.drivers]\n"
        + "".join(f"{key} = {value}\n" for key, value in points.items()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{plain}-{version}-py3-none-any.whl"
    everything = {**files, **metadata}
    record = "".join(f"{one},,\n" for one in (*everything, *(links or {}), f"{about}/RECORD"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one, content in {**everything, f"{about}/RECORD": record}.items():
            archive.writestr(one, content)
        for one, target in (links or {}).items():
            entry = zipfile.ZipInfo(one)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, target)
    return path
