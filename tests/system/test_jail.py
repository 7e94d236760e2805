"""What a jail lets through, how it begins and how it ends, with real jails around real programs."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

import llmos.drivers
import llmos.ipc
import llmos.userland
from llmos.kernel.jail import (
    ALL_LAYERS,
    Jailed,
    Layer,
    Policy,
    Started,
    Tier,
    probe,
    spawn,
    view,
)

WHOLE = ALL_LAYERS
UNMOUNTED = ALL_LAYERS - {Layer.MOUNTS}
TIMEOUT_S = 20

pytestmark = pytest.mark.skipif(probe().tier is not Tier.A, reason="this machine cannot build a whole jail")

Program = Callable[[str], Path]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Writes a module called `program`; returns the directory to import it from."""

    def write(text: str) -> Path:
        directory = tmp_path.resolve() / "code"
        directory.mkdir(exist_ok=True)
        (directory / "program.py").write_text(textwrap.dedent(text))
        return directory

    return write


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A directory for a jail to write to."""
    directory = tmp_path.resolve() / "state"
    directory.mkdir()
    return directory


def output(policy: Policy, *args: str, layers: frozenset[Layer] = WHOLE) -> str:
    """Run `program` to its end, which must be a good one, and return what it printed."""
    jailed = spawn(policy, "program", args, layers=layers, stdout=subprocess.PIPE)
    assert jailed.stdout is not None
    with jailed.stdout as out:
        text = out.read().decode()
    assert jailed.wait(TIMEOUT_S) == 0, text
    return text


def test_the_reported_pid_is_the_one_a_socket_peer_sees(program: Program, tmp_path: Path) -> None:
    """A jailed process connects through a read-only directory, and SO_PEERCRED outside shows the pid of `started`."""
    code = program("""
        import socket, sys
        client = socket.socket(socket.AF_UNIX)
        client.connect(sys.argv[1])
        client.recv(1)
    """)
    sockets = tmp_path.resolve() / "sockets"
    sockets.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(sockets / "gate"))
        server.listen()
        server.settimeout(TIMEOUT_S)
        jailed = spawn(Policy(read=(sockets,), path=(code,)), "program", [str(sockets / "gate")])
        peer, _ = server.accept()
        with peer:
            pid, uid, _ = struct.unpack("@iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        assert jailed.started(TIMEOUT_S).pid == pid == jailed.pid
        assert uid == os.geteuid()
        assert jailed.wait(TIMEOUT_S) == 0


def test_the_libraries_of_the_system_work_inside(program: Program, state: Path) -> None:
    """ZeroMQ with its threads, NumPy, SQLite in WAL mode, ONNX Runtime, GenAI, pools and asyncio run in the whole jail."""
    code = program("""
        import asyncio, concurrent.futures, sqlite3, tempfile
        import numpy as np, onnx, onnxruntime, onnxruntime_genai, tokenizers, llguidance, zmq
        from onnx import helper, numpy_helper

        context = zmq.Context()
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        router.bind("ipc://router")
        dealer.connect("ipc://router")
        dealer.send(b"hello")
        assert router.recv_multipart()[1] == b"hello"
        context.destroy(linger=0)

        database = sqlite3.connect("state.db")
        assert database.execute("pragma journal_mode=wal").fetchone() == ("wal",)
        with database:
            database.execute("create virtual table words using fts5(word)")
        database.close()

        weights = numpy_helper.from_array(np.eye(256, dtype=np.float32), "w")
        x, y = (helper.make_tensor_value_info(name, 1, [None, 256]) for name in "xy")
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weights])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, "model.onnx")
        session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
        ones = np.ones((64, 256), np.float32)
        assert (session.run(None, {"x": ones})[0] == ones).all()

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(abs, range(100))) == 4950
        asyncio.run(asyncio.sleep(0.01))
        tempfile.NamedTemporaryFile().write(b"scratch")
        print("all work")
    """)
    assert output(Policy(path=(code,), write=(state,))) == "all work\n"


def test_programs_run_where_the_policy_allows_them(program: Program, state: Path) -> None:
    """With exec and fork allowed, subprocesses run in the same jail: they write where it may and nowhere else."""
    code = program("""
        import subprocess, sys
        text = "from pathlib import Path; Path('made').touch(); print(Path('/etc/passwd').exists())"
        print(subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout, end="")
    """)
    policy = Policy(path=(code,), write=(state,), allow_exec=True, allow_fork=True)
    assert output(policy) == "False\n"
    assert (state / "made").exists()


@pytest.mark.parametrize("layers", [WHOLE, UNMOUNTED])
def test_the_environment_is_built_from_nothing(
    program: Program, state: Path, layers: frozenset[Layer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the fixed variables and the policy's get in, and telemetry is off whatever the policy says."""
    monkeypatch.setenv("SECRET", "key")
    monkeypatch.delenv("TZ", raising=False)
    code = program("import json, os; print(json.dumps(dict(os.environ)))")
    policy = Policy(path=(code,), write=(state,), env={"MINE": "1", "ORT_DISABLE_TELEMETRY": "0"}, tier=Tier.B)
    inside = json.loads(output(policy, layers=layers))
    inside.pop("PWD", None)  # bubblewrap sets it
    assert inside == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(state),
        "MINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }


@pytest.mark.parametrize("layers", [WHOLE, UNMOUNTED])
def test_passed_descriptors_keep_their_numbers_and_others_are_closed(
    program: Program, layers: frozenset[Layer]
) -> None:
    """`pass_fds` arrive under their own numbers; besides the standard three nothing else is open."""
    code = program("""
        import os, sys
        os.write(int(sys.argv[1]), b"through")
        print(sorted(int(fd) for fd in os.listdir("/proc/self/fd")))
    """)
    reader, writer = os.pipe()
    policy = Policy(path=(code,), tier=Tier.B)
    jailed = spawn(policy, "program", [str(writer)], layers=layers, pass_fds=(writer,), stdout=subprocess.PIPE)
    os.close(writer)
    assert jailed.stdout is not None
    with jailed.stdout as out, os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"through"
        still_open = json.loads(out.read())
    assert jailed.wait(TIMEOUT_S) == 0
    listing = 1  # the descriptor that listdir itself uses
    assert len(still_open) == len({0, 1, 2, writer}) + listing
    assert {0, 1, 2, writer} <= set(still_open)


def test_only_the_named_parts_of_the_kernel_are_visible(program: Program) -> None:
    """A policy that names `core` sees llmos.kernel.core and nothing else of the kernel."""
    code = program("""
        import llmos.kernel, llmos.kernel.core, os
        print(sorted(name for name in os.listdir(os.path.dirname(llmos.kernel.__file__)) if name != "__pycache__"))
    """)
    assert output(Policy(path=(code,), kernel_modules=("core",))) == "['__init__.py', 'core']\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment in which llmos lies as a wheel would put it."""
    top = tmp_path_factory.mktemp("installed").resolve()
    venv.create(top / "venv", symlinks=True)
    packages = next((top / "venv" / "lib").glob("python3*/site-packages"))
    for package in (llmos.ipc, llmos.drivers, llmos.userland):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, packages / "llmos" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(view.KERNEL, packages / "llmos" / "kernel", ignore=shutil.ignore_patterns("__pycache__"))
    seccomp_mode = "open('/proc/self/status').read().split('Seccomp:')[1].split()[0]"
    (packages / "note.pth").write_text(f"import sys; print(sys.argv[0], {seccomp_mode})\n")
    (packages / "program.py").write_text("import llmos.ipc, llmos.drivers, llmos.userland\nimport llmos.kernel.jail\n")
    return top / "venv" / "bin" / "python"


def test_a_wheel_install_hides_the_kernel_and_jails_startup_code(installed: Path) -> None:
    """In site-packages too, all of llmos but the kernel imports, and `.pth` files run only in the closed jail."""
    command = [str(installed), "-I", "-m", "llmos.kernel.jail", "run", "--", "-m", "program"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "No module named 'llmos.kernel.jail'" in ended.stderr
    filtered, free = "2", "0"
    modes = {line.split()[1] for line in ended.stdout.splitlines() if line.startswith("-c")}
    assert modes == {filtered}
    assert f"-m {free}" in ended.stdout, "outside, the file runs too"


def closed(fd: int, within: float = TIMEOUT_S) -> bool:
    """Whether every writer of a pipe is gone within so many seconds. Consumes what is in it."""
    while select.select([fd], [], [], within)[0]:
        if not os.read(fd, 4096):
            return True
    return False


FAMILY = """
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
    os.write(int(sys.argv[1]), b"x")
    time.sleep(600)
"""


def start_family(code: Path, layers: frozenset[Layer]) -> tuple[Jailed, int]:
    """A jail with two processes that hold the other end of the returned pipe."""
    reader, writer = os.pipe()
    policy = Policy(path=(code,), allow_fork=True, tier=Tier.B)
    jailed = spawn(policy, "program", [str(writer)], layers=layers, pass_fds=(writer,))
    os.close(writer)
    jailed.started(TIMEOUT_S)
    while len(os.read(reader, 1)) == 1 and not select.select([reader], [], [], TIMEOUT_S)[0]:
        pass
    return jailed, reader


def test_kill_leaves_nobody(program: Program) -> None:
    """When `wait` returns after `kill`, every process of the jail is gone, a daemonised child too."""
    jailed, reader = start_family(program(FAMILY), WHOLE)
    jailed.kill()
    assert jailed.wait(TIMEOUT_S) == -signal.SIGKILL
    assert closed(reader, within=0)
    os.close(reader)


def test_a_monitor_that_is_killed_while_it_builds_leaves_nobody(program: Program) -> None:
    """At whatever moment: nobody is left who could still write to the jails' output."""
    policy = Policy(path=(program("import time; time.sleep(60)"),))
    read, write = os.pipe()
    for number in range(100):
        jailed = spawn(policy, "program", stdout=write, stderr=subprocess.DEVNULL)
        time.sleep(0.00008 * number)
        os.kill(jailed._process.pid, signal.SIGKILL)
        jailed.wait(TIMEOUT_S)
        assert jailed.wait(0) == -signal.SIGKILL
    os.close(write)
    with os.fdopen(read, "rb") as output:
        assert select.select([output], [], [], TIMEOUT_S)[0], "somebody is left"
        assert output.read() == b""


def test_the_end_of_the_module_ends_the_jail(program: Program) -> None:
    """A child that the module leaves behind does not outlive it."""
    jailed, reader = start_family(program(FAMILY), WHOLE)
    jailed.terminate()
    assert jailed.wait(TIMEOUT_S) == -signal.SIGTERM
    assert closed(reader)
    os.close(reader)


@pytest.mark.parametrize("layers", [WHOLE, UNMOUNTED])
def test_a_jail_dies_with_its_kernel(program: Program, layers: frozenset[Layer]) -> None:
    """kill -9 of the process that spawned it ends the jail."""
    code = program("""
        import os, sys, time
        os.write(int(sys.argv[1]), b"x")
        time.sleep(600)
    """)
    outer = f"""if True:
        import sys, time
        from pathlib import Path
        from llmos.kernel.jail import Layer, Policy, Tier, spawn
        layers = frozenset(map(Layer, sys.argv[2:]))
        policy = Policy(path=(Path({str(code)!r}),), tier=Tier.B)
        jailed = spawn(policy, "program", sys.argv[1:2], layers=layers, pass_fds=(int(sys.argv[1]),))
        time.sleep(600)
    """
    reader, writer = os.pipe()
    kernel = subprocess.Popen([sys.executable, "-c", outer, str(writer), *layers], pass_fds=(writer,))
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        try:
            assert pipe.read(1) == b"x"
        finally:
            kernel.kill()
            kernel.wait()
        assert closed(pipe.fileno())


def test_a_forbidden_call_ends_the_process_with_sigsys(program: Program) -> None:
    """A call that only an attack makes kills at once, and the exit status says so."""
    code = program("import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)")
    jailed = spawn(Policy(path=(code,)), "program")
    assert jailed.wait(TIMEOUT_S) == -signal.SIGSYS


def test_started_times_out_while_the_outcome_is_open() -> None:
    """`started` raises TimeoutError as long as nothing is reported, and returns the sender's pid once it is."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    silent = subprocess.Popen(["sleep", "600"], start_new_session=True)
    jailed = Jailed(silent, ours, mounts=False, share_pid=False)
    with theirs:
        for timeout in (0, 0.001):
            with pytest.raises(TimeoutError):
                jailed.started(timeout)
        assert select.select([jailed], [], [], 0)[0] == []
        theirs.send(b"closed 7")
    assert select.select([jailed], [], [], TIMEOUT_S)[0] == [jailed]
    assert jailed.started() == jailed.started() == Started(pid=os.getpid(), landlock_abi=7)
    jailed.kill()
    assert jailed.wait(TIMEOUT_S) == -signal.SIGKILL


def cli(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m llmos.kernel.jail`."""
    env = os.environ if path is None else os.environ | {"PATH": path}
    command = [sys.executable, "-m", "llmos.kernel.jail", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


def test_cli_run_passes_output_and_status_through(program: Program, state: Path) -> None:
    """`run` gives the module's output and exit status, with the grants of the command line."""
    code = program("""
        import pathlib, sys
        pathlib.Path("made").write_text(sys.argv[1])
        print("out")
        print("err", file=sys.stderr)
        sys.exit(3)
    """)
    ended = cli("run", "--write", str(state), "--path", str(code), "--", "-m", "program", "--flag")
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "out\n", "err\n")
    assert (state / "made").read_text() == "--flag"


def test_cli_run_ends_what_takes_too_long(program: Program) -> None:
    """`run --timeout` ends the module and says so with 124."""
    code = program("import time; time.sleep(600)")
    ended = cli("run", "--timeout", "0.5", "--path", str(code), "--", "-m", "program")
    assert ended.returncode == 124
    assert "did not end within 0.5 s" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("run", "--read", "/does/not/exist", "--", "-m", "program"), 125, "/does/not/exist does not exist"),
        (("run", "--", "program"), 2, "-- -m MODULE ARGS"),
    ],
)
def test_cli_run_refuses_what_makes_no_sense(arguments: tuple[str, ...], status: int, message: str) -> None:
    """A wrong path or command line is named, with an exit status of its own."""
    ended = cli(*arguments)
    assert ended.returncode == status
    assert message in ended.stderr


def test_a_machine_without_bubblewrap_is_tier_b_and_says_what_to_install() -> None:
    """Without bwrap the probe finds tier B and the hint; a run that requires tier A is refused, one that does not runs."""
    found = json.loads(cli("probe", "-o", "json", path="/nowhere").stdout)
    assert (found["tier"], found["layers"]) == ("B", ["landlock", "seccomp"])
    assert "apt-get install bubblewrap" in found["findings"][0]["hint"]
    refused = cli("run", "--", "-m", "__future__", path="/nowhere")
    assert refused.returncode == 125
    assert "apt-get install bubblewrap" in refused.stderr
    assert cli("run", "--tier", "B", "--", "-m", "__future__", path="/nowhere").returncode == 0


def test_probe_as_table_names_every_layer() -> None:
    """The table gives the tier and a line for each layer."""
    lines = cli("probe").stdout.splitlines()
    assert lines[0] == "tier A"
    assert [line.split()[0] for line in lines[1:]] == ["mounts", "landlock", "seccomp"]
