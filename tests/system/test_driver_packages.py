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


def wheel(root: Path, version: str = "1") -> Path:
    """A package with a driver, built as its author would."""
    source = root / f"source-{version}"
    package = source / "weather_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "manifest.toml").write_text(MANIFEST.format(version=version))
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


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="installs into its own virtual environment only")
def test_a_package_comes_and_goes_while_the_system_runs(running: System, tmp_path: Path) -> None:
    """Its requests are shown in plain words; nothing is granted that was not agreed to; a newer one takes its place."""
    (running.home / "Weather").mkdir()
    first, second = wheel(tmp_path), wheel(tmp_path, "2")
    user = running.connect()
    try:
        said = llmosctl(running, "driver", "add", str(first), "-y")
        assert "weather may see the files in" in said
        assert running.until(lambda: user.call("weather.now")) == {"weather": "fair"}
        assert {row["cap"] for row in user.call("perm.list", {"holder": "weather"})["caps"]} == {
            "bus.publish(topic=weather.changed)",
            f"fs.read(path={running.home}/Weather)",
            "llm.embed",
        }
        llmosctl(running, "driver", "add", str(second), "-y")
        assert user.call("driver.show", {"name": "weather"})["version"] == "2"
        assert running.until(lambda: user.call("weather.now")) == {"weather": "fair"}
        llmosctl(running, "driver", "rm", "weather", "-y")
    finally:
        subprocess.run(
            [sys.executable, "-m", "pip", "uninstall", "-q", "-y", "llmos-test-weather"],
            check=False,
            capture_output=True,
        )
    with pytest.raises(OpError) as caught:
        user.call("weather.now")
    assert caught.value.code is Code.UNKNOWN_OP
    assert "weather" not in [row["name"] for row in user.call("proc.list")["processes"]]


def test_what_comes_with_the_system_is_not_removed(shared: System) -> None:
    """It says how to take its rights instead; a name that is nobody's is not found."""
    assert "comes with the system" in llmosctl(shared, "driver", "rm", "filesystem", "-y", status=8)
    llmosctl(shared, "driver", "rm", "nothing", "-y", status=3)


def test_a_package_that_is_none_is_said_to_be(shared: System, tmp_path: Path) -> None:
    """With pip's own last word."""
    broken = tmp_path / "broken-1-py3-none-any.whl"
    broken.write_bytes(b"not a wheel")
    assert "pip install" in llmosctl(shared, "driver", "add", str(broken), status=1)
