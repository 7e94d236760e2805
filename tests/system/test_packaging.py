"""What is installed is what is in the tree, and each part imports without those it must not need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("ipc", "kernel", "drivers", "userland")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tree, so that nothing is left in it."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return next((source / "dist").glob("*.whl"))


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    """Every module and data file of the four parts, and no module that is not there any more."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("llmos/")}
    wanted = {
        f"llmos/{path.relative_to(ROOT)}"
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.suffix in (".py", ".toml", ".md", ".json", ".sql", ".typed") and "__pycache__" not in path.parts
    }
    assert packed == wanted


def test_the_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    """Installed without the tree: `llmosctl --help`, and manifests are found."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(tmp_path),
            str(wheel),
        ],
        check=True,
        timeout=100,
    )
    # -I keeps the tree away; the installed wheel goes before the editable install
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
        "import llmos.ipc; assert llmos.ipc.__file__.startswith(sys.argv[1]), llmos.ipc.__file__\n"
        "from pathlib import Path\nfrom llmos.kernel.programs import Programs\n"
        "programs = Programs(Path('none')); assert {'browser_history', 'filesystem'} <= set(programs.drivers), programs.broken\n"
        "assert 'assistant' in programs.agents, programs.broken\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize(
    "module",
    ["llmos.drivers.host", "llmos.drivers.sdk", "llmos.userland.sdk", "llmos.userland.agent", "llmos.ipc.connection"],
)
def test_nothing_outside_needs_the_kernel(module: str) -> None:
    """With the kernel hidden, the SDK, a driver's host and an agent's host still import."""
    code = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'llmos.kernel' or name.startswith('llmos.kernel.'): raise ImportError(name)\n"
        f"sys.meta_path.insert(0, Hidden()); import {module}; assert 'onnxruntime' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_kernel_holds_no_model_code_and_no_socket_library() -> None:
    """Its address space has neither ONNX Runtime nor libzmq nor a driver."""
    code = (
        "import sys, llmos.kernel.main, llmos.kernel.kernel\n"
        "bad = [m for m in sys.modules if m.partition('.')[0] in ('onnxruntime', 'onnxruntime_genai', 'tokenizers', 'numpy', 'zmq')\n"
        "       or m.startswith(('llmos.drivers', 'llmos.userland'))]\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("llmos.kernel.core", ["--fd", "x"]), ("llmos.userland.cli.providers", [])],
    ids=["core", "providers"],
)
def test_telemetry_is_off_before_the_runtime_is_imported(module: str, arguments: list[str]) -> None:
    """`ORT_DISABLE_TELEMETRY=1` stands in the process before ONNX Runtime is looked for, whatever the parent's environment said."""
    code = (
        "import os, runpy, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('onnxruntime'): assert os.environ.get('ORT_DISABLE_TELEMETRY') == '1', name\n"
        "sys.meta_path.insert(0, Watch())\n"
        "module, *sys.argv[1:] = sys.argv[1:]\n"
        "try: runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert end.code in (None, 0, 2), end.code\n"
        "assert os.environ.get('ORT_DISABLE_TELEMETRY') == '1'\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run(
        [sys.executable, "-c", code, module, *arguments],
        env=environment,
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )


def test_only_those_processes_load_the_runtime() -> None:
    """No other module imports ONNX Runtime, so no other process can send its telemetry."""
    importing = {
        str(path.relative_to(ROOT))
        for part in PARTS
        for path in (ROOT / part).rglob("*.py")
        if re.search(r"^\s*(import|from) onnxruntime", path.read_text(), re.MULTILINE)
    }
    assert importing
    assert all(name.startswith("kernel/core/") or name == "userland/cli/providers.py" for name in importing), importing
