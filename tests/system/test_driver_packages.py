"""Packages of drivers: what is installed is shown, starts in a jail, and ends when it is removed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmos.ipc.errors import Code, OpError
from tests.system.conftest import System

LLMOSCTL = [sys.executable, "-m", "llmos.userland.cli"]
MANIFEST = """
name = "weather"
version = "{version}"
summary = "The weather, for tests"
entry = "weather_package.driver:Weather"
tags = ["weather"]

[topics."weather.changed"]

[permissions]
read = ["~/Weather"]
calls = ["llm.embed"]

[ops.now]
effect = "read"
summary = "What it is like outside"
"""
DRIVER = """
from llmos.drivers.sdk import Driver, op

class Weather(Driver):
    @op
    def now(self, call):
        self.env.publish("weather.changed", {})
        return {"weather": "fair"}

    def setup(self, env):
        self.env = env
"""


def wheel(root: Path, version: str = "1", manifest: str = MANIFEST) -> Path:
    """A package with a driver, built as its author would."""
    source = root / f"source-{version}"
    package = source / "weather_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "manifest.toml").write_text(manifest.format(version=version))
    (package / "driver.py").write_text(DRIVER)
    (source / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "llmos-test-weather"\nversion = "{version}"\n'
        '[project.entry-points."llmos.drivers"]\nweather = "weather_package"\n'
        '[tool.setuptools]\npackages = ["weather_package"]\n[tool.setuptools.package-data]\n"*" = ["*.toml"]\n'
    )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(root), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return next(root.glob(f"*-{version}-*.whl"))


def llmosctl(system: System, *words: str, status: int = 0) -> str:
    done = subprocess.run([*LLMOSCTL, *words], env=system.environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_a_package_comes_and_goes_while_the_system_runs(running: System, tmp_path: Path) -> None:
    """Its requests are shown in plain words; nothing is granted that was not agreed to; a newer one takes its place."""
    (running.home / "Weather").mkdir()
    first, second = wheel(tmp_path), wheel(tmp_path, "2")
    user = running.connect()
    said = llmosctl(running, "driver", "install", str(first), "-y")
    assert "weather may see the files in" in said
    assert running.until(lambda: user.call("weather.now")) == {"weather": "fair"}
    assert {row["cap"] for row in user.call("perm.list", {"holder": "weather"})["caps"]} == {
        "bus.publish(topic=weather.changed)",
        f"fs.read(path={running.home}/Weather)",
        "llm.embed",
    }
    llmosctl(running, "driver", "install", str(second), "-y")
    assert user.call("driver.show", {"name": "weather"})["version"] == "2"
    assert running.until(lambda: user.call("weather.now")) == {"weather": "fair"}
    llmosctl(running, "driver", "uninstall", "weather", "-y")
    assert user.call("perm.list", {"holder": "weather"})["caps"] == []
    with pytest.raises(OpError) as caught:
        user.call("weather.now")
    assert caught.value.code is Code.UNKNOWN_OP
    assert "weather" not in [row["name"] for row in user.call("proc.list")["processes"]]


def test_a_package_cannot_say_that_it_comes_with_the_system(running: System, tmp_path: Path) -> None:
    """Its entry point may be called what it likes: its answers are untrusted, and code in a `.pth` of it never runs."""
    evil = wheel(
        tmp_path,
        "3",
        MANIFEST.replace("weather_package.driver", "llmos.weather").replace("tags", "integrity = 'trusted'\ntags"),
    )
    llmosctl(running, "driver", "install", str(evil), "-y")
    rows = running.connect().call("proc.list")["processes"]
    assert next(row["label"] for row in rows if row["name"] == "weather") == "untrusted {weather}"
    marker = tmp_path / "ran"
    place = next((Path(running.environment["LLMOS_HOME"]) / "packages").glob("[!.]*"))
    (place / "evil.pth").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    running.connect().call("driver.scan")
    llmosctl(running, "driver", "ls")
    assert not marker.exists()


def test_what_comes_with_the_system_is_not_removed(shared: System) -> None:
    """Nor what is nobody's."""
    for name in ("filesystem", "nothing"):
        assert "no installed package" in llmosctl(shared, "driver", "uninstall", name, "-y", status=3)


def test_a_package_that_is_none_is_said_to_be(shared: System, tmp_path: Path) -> None:
    """With pip's own last word."""
    broken = tmp_path / "broken-1-py3-none-any.whl"
    broken.write_bytes(b"not a wheel")
    assert "pip:" in llmosctl(shared, "driver", "install", str(broken), status=1)
