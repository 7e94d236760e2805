"""Packages from somebody who means harm: none of their code runs outside of a jail, and nothing lands outside of their directory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc import paths
from llmos.ipc.errors import Code, OpError
from llmos.userland import packages
from llmos.userland.packages import jailed, tree
from tests.system import wheels

pytestmark = pytest.mark.usefixtures("offline")


def below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def sdist(folder: Path, name: str, marker: Path) -> Path:
    """One whose `setup.py` leaves a mark."""
    source = folder / f"src-{name}"
    source.mkdir(parents=True)
    (source / "setup.py").write_text(
        f"open({str(marker)!r}, 'w')\nfrom setuptools import setup\nsetup(name={name!r}, version='1')\n"
    )
    (source / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    path = folder / f"{name}-1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(source, f"{name}-1")
    return path


def test_nothing_of_a_wheel_runs_while_it_is_installed(tmp_path: Path) -> None:
    """Neither a `.pth`, nor a module called like one that Python loads by itself, nor what an entry point names."""
    marker = tmp_path / "ran"
    mark = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
    files = wheels.driver_files("evil") | {
        "evil.pth": mark,
        "sitecustomize.py": mark,
        "usercustomize.py": mark,
        "evil_package/__init__.py": mark,
        "evil-1.data/scripts/evil": "#!python\n" + mark,
    }
    made = packages.install(str(wheels.make(tmp_path, "evil", files=files)))
    assert made.programs == ("evil",)
    assert packages.installed() == [made]
    assert packages.find("evil").name == "evil"
    assert not marker.exists()


def test_no_source_is_built_for_a_name(tmp_path: Path, offline: Path) -> None:
    """Not the one that was asked for, not a dependency by name, and not one by address, which pip's `--only-binary` lets through."""
    marker = tmp_path / "ran"
    by_address = sdist(offline, "evil-dep", marker)
    wheels.make(offline, "slier", requires=[f"evil-dep @ {by_address.as_uri()}"])
    wheels.refused("evil-dep", Code.NOT_FOUND)
    wheels.refused("slier", Code.UNAVAILABLE)
    wheels.refused(by_address)
    assert not marker.exists()


SETUP = """
import os, socket, sys
from pathlib import Path
from setuptools import setup

HOME, PORT, SOCKET = Path({home!r}), {port}, {socket!r}
done = []

def attempt(what, action):
    try:
        if action() is not False:
            done.append(what)
    except BaseException:
        pass

def connect(family, address):
    with socket.socket(family) as one:
        one.connect(address)

attempt("read", lambda: (HOME / "secret").read_text())
attempt("write", lambda: (HOME / "secret").open("r+"))
attempt("packages", lambda: Path({lock!r}).open("r+"))
attempt("source", lambda: (Path({source!r}) / "pyproject.toml").open("r+"))
attempt("environment", lambda: "SECRET" in os.environ)
attempt("tcp", lambda: connect(socket.AF_INET, ("127.0.0.1", PORT)))
attempt("unix", lambda: connect(socket.AF_UNIX, SOCKET))
attempt("program", lambda: os.posix_spawn("/bin/true", ["true"], {{}}) and None)
attempt("link", lambda: (Path("stolen_by_link")).read_text())
Path("dir_package/done.txt").write_text(" ".join(done))
setup(
    name="dir", version="1", packages=["dir_package"], package_data={{"": ["*.toml", "*.txt"]}},
    entry_points={{"llmos.drivers": ["dir = dir_package"]}},
)
"""


@pytest.fixture
def listener() -> Iterator[int]:
    """A port of this machine that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_directory_is_built_where_its_code_reaches_nothing(tmp_path: Path, listener: int) -> None:
    """What `setup.py` does succeeds outside of the jail, and none of it inside."""
    source, home = tmp_path / "source", tmp_path / "home"
    address = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        for path, content in wheels.driver_files("dir").items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_text(str(content))
        places = {
            "home": str(home),
            "lock": str(paths.packages_dir() / ".lock"),
            "source": str(source),
            "socket": address,
            "port": listener,
        }
        (source / "setup.py").write_text(SETUP.format(**places))
        (source / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        )
        (source / "stolen_by_link").symlink_to(home / "secret")
        before = below(tmp_path)
        made = packages.install(str(source))
        assert below(tmp_path) == before
    assert (made.directory / "dir_package" / "done.txt").read_text() == ""
    with socket.socket(socket.AF_UNIX) as server:
        Path(address).unlink()
        server.bind(address)
        server.listen()
        subprocess.run([sys.executable, "setup.py", "--version"], cwd=source, check=True, capture_output=True)
    outside = (source / "dir_package" / "done.txt").read_text()
    assert outside == "read write packages source environment tcp unix program link"


def test_what_lands_outside_of_the_directory(tmp_path: Path, llmos_home: Path) -> None:
    """Nothing: not by the names in an archive, not by its links, not by its records."""
    before = below(tmp_path)
    files = wheels.driver_files("out")
    folder = tmp_path / "made"
    for number, path in enumerate(("../../escaped", "out-1.data/scripts/../../../../escaped")):
        wheels.refused(wheels.make(folder / str(number), "out", files=files | {path: "x"}), Code.UNAVAILABLE)
    linked = wheels.make(
        folder / "l", "out", files=files, links={"out_package/link": str(tmp_path / "home" / "secret")}
    )
    made = packages.install(str(linked))
    assert not any(path.is_symlink() for path in made.directory.rglob("*"))
    assert {path for path in below(tmp_path) - before if not path.startswith("made")} == set()
    assert {path.name for path in paths.packages_dir().iterdir()} == {".lock", "out"}


@pytest.mark.parametrize(
    "what",
    [
        "../../x",
        "-r/etc/passwd",
        "--index-url=http://127.0.0.1/",
        "git+https://example.com/x",
        "x @ file:///x",
        "a b",
        "x;",
        "",
        ".",
    ],
)
def test_what_is_no_name_is_refused(what: str) -> None:
    """An option, an address or a path never reaches pip as a name."""
    with pytest.raises(OpError) as caught:
        packages.install(what)
    assert caught.value.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)


def unsound(root: Path, name: str, **how: Any) -> str:
    """Why what such a wheel unpacks to is refused."""
    root = Path(tempfile.mkdtemp(dir=root))
    with pytest.raises(OpError) as caught:
        tree.examine(wheels.unpacked(wheels.make(root, name, **how), root / "p"), name)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.detail


def test_names_in_a_wheel(tmp_path: Path) -> None:
    """A distribution or a driver that is called like a path, or unlike its file or manifest, is refused."""
    assert "called x" in unsound(tmp_path, "x", called="../../x")
    assert "called x" in unsound(tmp_path, "x", called="y")
    assert "cannot name" in unsound(tmp_path, "x", drivers={"../x": "x_package"})
    assert "its manifest x" in unsound(tmp_path, "x", drivers={"y": "x_package"})
    assert "there is no" in unsound(tmp_path, "x", drivers={"x": "nothing"})
    assert "no driver and no agent" in unsound(tmp_path, "x", drivers={})


def test_nobody_takes_anothers_name(tmp_path: Path, offline: Path) -> None:
    """Grants and stored data belong to a name: no package can have another's, nor the system's, through a dependency neither."""
    wheels.unpacked(wheels.make(tmp_path / "1", "mine"), paths.packages_dir() / "mine")
    wheels.make(offline, "aaa", files=wheels.driver_files("mine"), drivers={"mine": "mine_package"})
    taken = wheels.refused(wheels.make(tmp_path / "2", "bbb", requires=["aaa"]), Code.CONFLICT)
    assert "mine has mine already" in taken
    files = wheels.driver_files("filesystem")
    own = wheels.refused(wheels.make(tmp_path / "3", "filesystem", files=files), Code.CONFLICT)
    assert "the system has filesystem" in own


def test_a_package_does_not_shadow_what_runs_it(tmp_path: Path, offline: Path) -> None:
    """`llmos` and Python's own modules are refused, wherever they hide; libraries of the driver host stay the system's."""
    wheels.make(offline, "llmos", files={"llmos/__init__.py": ""}, drivers={})
    assert "llmos" in wheels.refused(wheels.make(tmp_path, "x", requires=["llmos"]))
    assert "`json`" in unsound(tmp_path, "x", files=wheels.driver_files("x") | {"json.py": ""})
    files = wheels.driver_files("x") | {"zmq/__init__.py": "", "msgspec.py": "", "zmq_of_mine.py": ""}
    made = tree.examine(wheels.unpacked(wheels.make(tmp_path / "2", "x", files=files), tmp_path / "p"), "x").directory
    assert {path.name for path in made.iterdir()} & {"zmq", "msgspec.py", "zmq_of_mine.py"} == {"zmq_of_mine.py"}


def test_the_host_is_made_of_what_is_listed() -> None:
    """What a driver's process has loaded before its driver cannot be replaced by a package, but for what only prints."""
    code = (
        "import sys; before = set(sys.modules); import llmos.drivers.host\n"
        "own = {n.partition('.')[0] for n in set(sys.modules) - before}\n"
        "print(*(n for n in own if 'site-packages' in (getattr(sys.modules.get(n), '__file__', '') or '')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    printing = {"rich", "pygments", "typing_extensions", "platformdirs"}
    assert {name for name in loaded if not name.startswith("_")} - printing <= set(tree.HOST)


def test_a_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the size of one file, and of all together."""
    monkeypatch.setattr(jailed, "MAX_FILE", 8 << 20)
    large = wheels.make(tmp_path / "1", "bomb", files=wheels.driver_files("bomb") | {"zeros": bytes(16 << 20)})
    assert "too large" in wheels.refused(large, Code.UNAVAILABLE)
    monkeypatch.setattr(jailed, "MAX_BYTES", 12 << 20)
    several = wheels.driver_files("bomb") | {f"zeros{n}": bytes(6 << 20) for n in range(4)}
    wheels.refused(wheels.make(tmp_path / "2", "bomb", files=several), Code.TOO_LARGE)


def test_who_writes_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only found out afterwards: the disk is full by then."""
    monkeypatch.setattr(jailed, "MAX_BYTES", 4 << 20)
    code, place = tmp_path / "code", tmp_path / "place"
    code.mkdir()
    place.mkdir()
    (code / "flood.py").write_text(
        "import time\nfor n in range(10**9):\n  open(f'{n:09}', 'wb').write(bytes(1 << 20))\n  time.sleep(0.05)\n"
    )
    with pytest.raises(OpError, match="unpacks to more than"):
        jailed.run(jailed.Job("flood", (), (place,), path=(code,)))
    assert jailed.usage([place])[0] < 64 << 20


def test_what_no_honest_wheel_leaves_behind(tmp_path: Path) -> None:
    """Should it have got past pip: links, pipes, setuid files, metadata too large to look at, and a forged origin."""

    def points(folder: Path, size: int) -> int:
        folder.mkdir()
        return (folder / "entry_points.txt").write_bytes(b"\n" * size)

    def found(change: Callable[[Path], object]) -> str:
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        change(wheels.unpacked(wheels.make(root, "x"), root / "p"))
        with pytest.raises(OpError) as caught:
            tree.examine(root / "p", "x")
        return caught.value.detail

    assert "plain file" in found(lambda root: (root / "x_package" / "link").symlink_to("/etc"))
    assert "plain file" in found(lambda root: os.mkfifo(root / "x_package" / "pipe"))
    assert "plain file" in found(lambda root: (root / "x_package" / "driver.py").chmod(0o4755))
    assert "1 MiB" in found(lambda root: (root / "x-1.dist-info" / "METADATA").write_bytes(bytes(2 << 20)))
    assert "1 MiB" in found(lambda root: points(root / "Y.EGG-INFO", 2 << 20))
    assert "entry points" in found(lambda root: [points(root / f"y{n}.egg-info", 9 << 10) for n in range(20)])
    assert "llmos-origin" in found(lambda root: (root / tree.ORIGIN).write_text('{"source": "index"}'))


def test_a_package_holds_what_was_looked_at_and_not_hundreds(tmp_path: Path) -> None:
    """A directory called `.egg` would have more entry points than the one it was examined in; and each driver is a process."""
    hidden = wheels.driver_files("evil") | {"EGG-INFO/entry_points.txt": "[llmos.drivers]\nhidden = evil_package\n"}
    egg = wheels.make(tmp_path / "1", "evil.egg", files=hidden, drivers={"evil": "evil_package"})
    assert ".egg" in wheels.refused(egg)
    many = wheels.make(tmp_path / "2", "evil", drivers={f"evil{n}": "evil_package" for n in range(17)})
    assert "may hold 16" in wheels.refused(many)
