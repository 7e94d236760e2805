"""llama.cpp's own programs, to measure against: `llama-server` and `llama-bench`, built once below `build/reference`.

`python -m tests.bench.reference`, which `make reference` runs; it compiles for minutes. The source is the llama.cpp tree inside
llama-cpp-python's source package, so that the programs are of the version that the Python reference is; the archive is pinned
by its SHA-256. The build is llama.cpp's own default for speed on this machine (Release, native instructions, OpenMP), without what a
benchmark on loopback cannot use: TLS and the page for browsers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from llmos.ipc import paths
from llmos.ipc.errors import Code
from llmos.userland.models import description
from llmos.userland.models.download import digest, fetch
from llmos.userland.models.errors import ModelError
from llmos.userland.models.index import Network, find_wheel, read_settings
from tests.bench.figures import ROOT

VERSION = "0.3.36"
ARCHIVE = f"llama_cpp_python-{VERSION}.tar.gz"
ARCHIVE_BYTES = 76_589_250
ARCHIVE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
TREE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp"
PROGRAMS = ("llama-server", "llama-bench")
TOOLS = {"cmake": "4.4.5", "ninja": "1.13.2"}
"""What builds them, in the version that is taken from the package index where the machine has none."""
OPTIONS = (
    "CMAKE_BUILD_TYPE=Release",
    "BUILD_SHARED_LIBS=OFF",
    "GGML_NATIVE=ON",
    "GGML_CCACHE=OFF",
    "LLAMA_OPENSSL=OFF",
    "LLAMA_BUILD_UI=OFF",
    "LLAMA_USE_PREBUILT_UI=OFF",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_APP=OFF",
)
JOBS = 4
"""Compilers at once at most; each takes up to 1 GB."""

PLACE = ROOT / "build" / "reference"
NAME = f"llama.cpp of llama-cpp-python {VERSION}"

CACHE = Path.home() / ".cache" / "llmos-eval"
GGUFS = {
    "135m": CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf",
    "0b5": CACHE / "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
    "1b5": CACHE / "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
}
"""What both sides run, by size."""

_HINT = "make reference"


class Missing(Exception):
    """A benchmark cannot run: what it lacks, and how to get it."""


def main() -> int:
    """Build what is not there. Status 1, and the end of the log, when that fails."""
    stamp = PLACE / "built"
    wanted = "\n".join((ARCHIVE_SHA256, *OPTIONS))
    if stamp.is_file() and stamp.read_text() == wanted and all((PLACE / "bin" / name).is_file() for name in PROGRAMS):
        return 0
    PLACE.mkdir(parents=True, exist_ok=True)
    log = PLACE / "build.log"
    try:
        archive = _archive()
        cmake, ninja = _tool("cmake"), _tool("ninja")
        print(f"compiling {' and '.join(PROGRAMS)} ({NAME}): some minutes, log in {log}", flush=True)
        with log.open("wb") as output:
            _unpack(archive, PLACE / "llama.cpp")
            for command in _commands(cmake, ninja):
                subprocess.run(["nice", *command], cwd=PLACE, check=True, stdout=output, stderr=subprocess.STDOUT)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.is_file() else ""
        print(f"{tail}\nerror: {error.cmd[:4]} ended with {error.returncode}", file=sys.stderr)
        return 1
    (PLACE / "bin").mkdir(exist_ok=True)
    for name in PROGRAMS:
        shutil.copy2(PLACE / "cmake" / "bin" / name, PLACE / "bin" / name)
    stamp.write_text(wanted)
    return 0


def program(name: str) -> Path:
    """One of `PROGRAMS`. Raises `Missing`."""
    path = PLACE / "bin" / name
    if not path.is_file():
        raise Missing(f"{path.relative_to(ROOT)} is not built: {_HINT}")
    return path


def environment(*, spin: bool) -> dict[str, str]:
    """For one of `PROGRAMS`: none of its settings come from outside, and its threads `spin` or sleep while they wait for each other.

    Spinning, OpenMP's own choice, is llama.cpp's best on a machine that does nothing else; beside other busy processes it is its ruin
    (the 135M on two cores under a load of 8: 1 token/s against 40 to 99).
    """
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "GGML_", "OMP_", "GOMP_"))
    }
    return kept if spin else kept | {"OMP_WAIT_POLICY": "passive"}


def installed(gguf: Path) -> str:
    """The model of the store that was imported from exactly this file. Raises `Missing`."""
    if not gguf.is_file():
        raise Missing(f"there is no {gguf}")
    wanted = digest(gguf)
    for folder in sorted(paths.models_dir().glob("[!.]*/")):
        if (folder / "genai_config.json").is_file() and _source(folder) == wanted:
            return folder.name
    raise Missing(f"no model in {paths.models_dir()} was imported from {gguf}: llmosctl model import {gguf}")


def _source(folder: Path) -> str:
    """SHA-256 of the file that a model was made from, empty when it does not say."""
    try:
        source = description.read(folder).get("source")
    except (OSError, ValueError):
        return ""
    return str(source.get("sha256", "")) if isinstance(source, dict) else ""


def _archive() -> Path:
    """The source package, checked: fetched from the package index that pip is configured with, or found where it is kept."""
    target = PLACE / ARCHIVE
    if target.is_file() and digest(target) == ARCHIVE_SHA256:
        return target
    network = Network(read_settings())
    found = find_wheel("llama-cpp-python", ARCHIVE, read_settings(), network)
    if found.path is None:
        fetch(found.url, target, ARCHIVE_BYTES, ARCHIVE_SHA256, network, lambda done: None)
        return target
    if digest(found.path) != ARCHIVE_SHA256:
        raise ModelError(Code.UNAVAILABLE, f"{found.path} is not the file it should be: its SHA-256 is wrong")
    return found.path


def _unpack(archive: Path, target: Path) -> None:
    """The llama.cpp tree of the archive at `target`, in place of what was there."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    strip = f"--strip-components={TREE.count('/') + 1}"
    subprocess.run(["tar", "-xzf", archive, "-C", target, strip, TREE], check=True)


def _tool(name: str) -> str:
    """A build tool of the machine, else of the virtual environment, installed there when it is missing."""
    ours = Path(sys.executable).with_name(name)
    there = shutil.which(name)
    if there is None and not ours.is_file():
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"{name}=={TOOLS[name]}"], check=True)
    return there or str(ours)


def _commands(cmake: str, ninja: str) -> list[list[str]]:
    configure = [cmake, "-S", "llama.cpp", "-B", "cmake", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    jobs = str(min(JOBS, os.cpu_count() or 1))
    return [
        [*configure, *(f"-D{option}" for option in OPTIONS)],
        [cmake, "--build", "cmake", "--parallel", jobs, "--target", *PROGRAMS],
    ]


if __name__ == "__main__":
    sys.exit(main())
