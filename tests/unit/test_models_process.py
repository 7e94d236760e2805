"""The importer as a process: what it says, and what it leaves when it is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError
from llmos.userland.models.importer import import_gguf
from llmos.userland.models.process import import_in_process
from tests.unit.tiny_gguf import TinyModel

HALFWAY = """
import signal, sys
from llmos.userland.models import command

def say(line):
    if line.get("what", "").startswith("blk.1"):
        print("halfway", flush=True)
        signal.pause()

command._EVERY, command._say = 0, say
command.main(["import", sys.argv[1], sys.argv[2], "--name", "tiny"])
"""
"""The importer, which stops in the middle of the second layer until it is ended."""


def nothing(what: str, done: int, total: int) -> None:
    pass


def halfway(file: Path, folder: Path) -> subprocess.Popen[bytes]:
    """An importer that has written half a model and waits."""
    process = subprocess.Popen([sys.executable, "-c", HALFWAY, file, folder], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"halfway\n"
    process.stdout.close()
    return process


def test_import_in_a_process(tmp_path: Path) -> None:
    """The importer runs as a process of its own, reports progress to its end, and says where the model is."""
    file, seen = TinyModel().write(tmp_path / "tiny.gguf"), list[tuple[int, int]]()
    said = import_in_process(file, tmp_path / "made", "tiny", lambda what, done, total: seen.append((done, total)))
    assert Path(said["folder"]) == tmp_path / "made" / "tiny"
    assert (tmp_path / "made" / "tiny" / "llmos.json").is_file()
    assert said["peak_rss"] > 1 << 20
    assert seen[-1][0] == seen[-1][1] > 0


def test_refusal_crosses_the_process(tmp_path: Path) -> None:
    """A refused file raises what the importer raised: its code, the tensor's name, the hint."""
    file = TinyModel().write(tmp_path / "tiny.gguf")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ModelError, match="tensor ") as caught:
        import_in_process(file, tmp_path / "made", "tiny", nothing)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("script", "status"), [("raise SystemExit(3)", 3), ("print('[1]'); print('not json')", 0), ("print('{}')", 0)]
)
def test_importer_without_a_word_is_an_error(script: str, status: int, tmp_path: Path) -> None:
    """An importer that ends without a result, whatever its status and its noise, is reported and not believed."""

    def start(command: Sequence[str], file: Path, folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)

    with pytest.raises(ModelError, match=f"status {status}") as caught:
        import_in_process(tmp_path / "tiny.gguf", tmp_path / "made", "tiny", nothing, start)
    assert caught.value.code is Code.PEER_DIED


def test_starter_learns_what_to_open(tmp_path: Path) -> None:
    """A jail is told the one file to show and the one folder to let be written, both absolute, as the command has them."""
    told: list[tuple[Sequence[str], Path, Path]] = []

    def start(command: Sequence[str], file: Path, folder: Path) -> subprocess.Popen[bytes]:
        told.append((command, file, folder))
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    import_in_process(TinyModel().write(tmp_path / "tiny.gguf"), tmp_path / "made", "tiny", nothing, start)
    command, file, folder = told[0]
    assert (file, folder) == (tmp_path / "tiny.gguf", tmp_path / "made")
    assert str(file) in command
    assert str(folder) in command


def test_terminated_import_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM in the middle of an import removes what was built so far."""
    process = halfway(TinyModel().write(tmp_path / "tiny.gguf"), tmp_path / "made")
    assert list((tmp_path / "made").iterdir())
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert not list((tmp_path / "made").iterdir())


def test_next_import_clears_after_a_killed_one(tmp_path: Path) -> None:
    """What an importer killed with SIGKILL left is removed by the next one; what a living one builds is not touched."""
    file, folder = TinyModel().write(tmp_path / "tiny.gguf"), tmp_path / "made"
    killed = halfway(file, folder)
    killed.kill()
    killed.wait(10)
    left = set(folder.iterdir())
    assert left
    living = halfway(file, folder)
    try:
        assert not left & set(folder.iterdir())
        import_gguf(file, folder, "other", lambda done, total, what: None)
        hidden = [made for made in folder.iterdir() if made.name.startswith(".")]
        assert len(hidden) == 1
        assert (hidden[0] / "tiny" / "model.onnx.data").is_file()
    finally:
        living.terminate()
        living.wait(10)
    assert [made.name for made in folder.iterdir()] == ["other"]


def test_command_reports_errors_as_json(tmp_path: Path) -> None:
    """The command's last line is the error, its status 1."""
    command = [sys.executable, "-m", "llmos.userland.models", "import", str(tmp_path / "none.gguf"), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, check=False)
    assert ended.returncode == 1
    assert json.loads(ended.stdout.splitlines()[-1])["error"]["code"] == "NOT_FOUND"
    assert ended.stderr == b""


def test_full_disk_is_explained(tmp_path: Path) -> None:
    """A disk that fills up is reported as such, and what was written is removed."""
    script = (
        "import errno, sys\n"
        "from llmos.userland.models import command, weights\n"
        "def full(self, region, position, values):\n"
        "    raise OSError(errno.ENOSPC, 'No space left on device', 'model.onnx.data')\n"
        "weights.WeightsFile.write = full\n"
        "sys.exit(command.main(sys.argv[1:]))\n"
    )
    file = TinyModel().write(tmp_path / "tiny.gguf")
    command = [sys.executable, "-c", script, "import", str(file), str(tmp_path / "made")]
    ended = subprocess.run(command, capture_output=True, check=False)
    error = json.loads(ended.stdout.splitlines()[-1])["error"]
    assert (error["code"], "disk is full" in error["detail"]) == ("UNAVAILABLE", True)
    assert not list((tmp_path / "made").iterdir())
