"""Jails on macOS and Windows: the profile and the plan that a policy becomes, and how a Seatbelt jail is started."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

import pytest

from llmos.kernel.jail import JailError, Limits, Policy, Tier, seatbelt, spawn, view, windows
from llmos.kernel.jail.windows import Access

HOSTILE = [
    'a"b',
    "a) (allow default",
    "a\n(allow default)\n",
    "a\\",
    'a\\" (allow network*) ;',
    "a'b",
    '(param "WRITE_0")',
    "a=b",
    "é\u2028",
]
TIMEOUT_S = 20


def profile(policy: Policy, scratch: Path = Path("/private/tmp/own")) -> tuple[str, dict[str, str]]:
    """The text of a profile, and its parameters."""
    words = seatbelt.command(policy, scratch, ["python"])
    assert words[:2] == ["/usr/bin/sandbox-exec", "-p"]
    assert words[-1] == "python"
    assert words[3:-1:2] == ["-D"] * ((len(words) - 4) // 2)
    return words[2], dict(word.split("=", 1) for word in words[4:-1:2])


def rules(text: str) -> list[list[object]]:
    """The expressions of a profile. Fails on anything but words, strings without escapes, and balanced parentheses."""
    stack: list[list[object]] = [[]]
    tokens = re.findall(r'\(|\)|"[^"\\\n]*"|[a-z0-9*_-]+|[A-Z_]+|\S', text)
    for token in tokens:
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            assert re.fullmatch(r'"[^"\\\n]*"|[a-z0-9*_-]+|[A-Z_-]+', token), token
            stack[-1].append(token)
    (top,) = stack
    return [rule for rule in top if isinstance(rule, list)]


def allowed(text: str, operation: str) -> list[object]:
    """All filters of the rules that allow an operation."""
    return [each for rule in rules(text) if rule[:2] == ["allow", operation] for each in rule[2:]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path.resolve()


def test_seatbelt_denies_by_default_and_names_what_it_allows() -> None:
    """The first rule denies everything, and no rule that allows is without a filter, but for children and their semaphores."""
    text, _ = profile(Policy(allow_fork=True, allow_exec=True))
    parsed = rules(text)
    assert parsed[:2] == [["version", "1"], ["deny", "default"]]
    unfiltered = [rule for rule in parsed if rule[0] == "allow" and len(rule) == 2]
    assert unfiltered == [["allow", "process-fork"], ["allow", "ipc-posix-sem"]]


@pytest.mark.parametrize("name", HOSTILE)
def test_seatbelt_reads_no_path_as_a_rule(name: str, place: Path) -> None:
    """Whatever a path is made of, the text of the profile is the same, and the path arrives as it is."""
    plain, hostile = place / "plain", place / name
    for path in (plain, hostile):
        path.mkdir(parents=True)
    texts = []
    for path in (plain, hostile):
        text, parameters = profile(Policy(read=(path,), write=(path,), path=(path,)))
        assert parameters["READ_0"] == parameters["WRITE_1"] == str(path)
        texts.append(text)
    assert texts[0] == texts[1]


def test_seatbelt_takes_no_path_that_ends_early() -> None:
    """A NUL would cut the command line short."""
    with pytest.raises(JailError, match="cannot be named"):
        seatbelt.command(Policy(read=(Path("/a\0b"),)), Path("/tmp"), ["python"])


def test_seatbelt_follows_the_policy(place: Path) -> None:
    """What may be read is not written, what may be written is also read, and the own temporary directory is."""
    text, parameters = profile(Policy(read=(place / "r",), write=(place / "w",)), place / "tmp")
    write = ["subpath", ["param", '"WRITE_0"']], ["subpath", ["param", '"WRITE_1"']]
    assert (parameters["WRITE_0"], parameters["WRITE_1"]) == (str(place / "tmp"), str(place / "w"))
    assert allowed(text, "file-write*") == [*write]
    for place_ in (*write, ["subpath", ["param", '"READ_0"']]):
        assert place_ in allowed(text, "file-read*")
    assert not {"file*", "network*", "default"} & {str(rule[1]) for rule in rules(text) if rule[0] == "allow"}


def test_seatbelt_never_lets_code_be_written(place: Path) -> None:
    """The interpreter and llmos are denied after all that is allowed, and the last rule wins."""
    text, parameters = profile(Policy(write=(place,)))
    last = [rule for rule in rules(text) if rule[:2] == ["deny", "file-write*"]]
    assert rules(text)[-len(last) :] == last
    denied = {parameters[str(rule[2][1][1]).strip('"')] for rule in last}  # type: ignore[index]
    assert {str(path) for path in (*view.interpreter(), *view.packages())} <= denied


def test_seatbelt_lets_only_unix_sockets_connect(place: Path) -> None:
    """There is no rule for an address of the network, and one for each end of a unix socket in a grant."""
    text, _ = profile(Policy(read=(place,)))
    for operation in ("network-outbound", "network-bind", "network-inbound"):
        assert allowed(text, operation)
        assert all("unix-socket" in str(each) for each in allowed(text, operation))
    assert "(remote ip" not in text
    assert "AF_INET" not in text
    open_, _ = profile(Policy(read=(place,), network=True))
    assert ["remote", "ip", '"*:*"'] in allowed(open_, "network-outbound")
    assert "ip" not in str(allowed(open_, "network-bind"))


def test_seatbelt_shows_the_named_parts_of_the_kernel() -> None:
    """A policy that names `core` may list the kernel's directory and read that part of it."""
    _, parameters = profile(Policy(kernel_modules=("core",)))
    assert parameters["KERNEL_0"] == str(view.KERNEL)
    assert {str(view.KERNEL / "core"), str(view.KERNEL / "__init__.py")} == {
        path for name, path in parameters.items() if name.startswith("PART")
    }


def test_seatbelt_starts_nothing_that_the_policy_does_not_allow() -> None:
    """Without exec and fork only the interpreter itself is run, by sandbox-exec; with them the system's programs are."""
    closed, parameters = profile(Policy())
    run = allowed(closed, "process-exec")
    assert all(str(each[1][1]).strip('"') in parameters for each in run)  # type: ignore[index]
    assert all(parameters[name] in map(str, seatbelt.executables()) for name in parameters if name.startswith("EXEC"))
    assert "process-fork" not in closed
    opened, _ = profile(Policy(allow_exec=True, allow_fork=True))
    assert ["subpath", '"/usr/bin"'] in allowed(opened, "process-exec")
    assert "process-fork" in opened


def test_seatbelt_reaches_one_service_of_the_system() -> None:
    """The one that says who the user is."""
    text, _ = profile(Policy())
    assert allowed(text, "mach-lookup") == [["global-name", '"com.apple.system.opendirectoryd.libinfo"']]
    assert not allowed(text, "mach-register")


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Mac whose sandbox-exec confines nothing: it writes down the profile and runs the program."""
    double = tmp_path / "sandbox-exec"
    double.write_text(
        f'#!/bin/sh\nprintf %s "$2" > {tmp_path}/profile; shift 2\nwhile [ "$1" = -D ]; do shift 2; done\nexec "$@"\n'
    )
    double.chmod(0o700)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(seatbelt, "SANDBOX_EXEC", str(double))
    return tmp_path.resolve()


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        code = tmp_path.resolve() / "code"
        code.mkdir()
        (code / "program.py").write_text(text)
        return code

    return write


def test_seatbelt_jail_starts_reports_and_ends(mac: Path, program: Callable[[str], Path]) -> None:
    """The module runs with a bare environment, limits and a temporary directory that goes with it; `started` knows its pid."""
    code = program(
        "import json, os, resource, sys, tempfile; "
        "print(json.dumps([os.getpid(), sys.argv[1:], dict(os.environ), tempfile.gettempdir(), "
        "resource.getrlimit(resource.RLIMIT_NOFILE)[0]]))"
    )
    policy = Policy(path=(code,), tier=Tier.B, limits=Limits(open_files=77))
    jailed = spawn(policy, "program", ["--flag", 'a "b'], stdout=subprocess.PIPE)
    pid = jailed.started(TIMEOUT_S).pid
    assert jailed.stdout is not None
    with jailed.stdout as out:
        told = json.loads(out.read())
    assert jailed.wait(TIMEOUT_S) == 0
    environment = told[2]
    assert set(environment) - {"TZ", "PWD", "LC_CTYPE"} == {"PATH", "LANG", "HOME", "ORT_DISABLE_TELEMETRY", "TMPDIR"}
    assert (told[0], told[1], told[3], told[4]) == (pid, ["--flag", 'a "b'], environment["TMPDIR"], 77)
    assert not Path(environment["TMPDIR"]).exists()
    assert (mac / "profile").read_text().startswith("(version 1)\n(deny default)\n")


def test_seatbelt_jail_that_is_not_closed_runs_nothing(mac: Path, program: Callable[[str], Path]) -> None:
    """What sandbox-exec refuses is a JailError, and `kill` ends what runs."""
    code = program("import time; time.sleep(600)")
    double = Path(seatbelt.SANDBOX_EXEC)
    jailed = spawn(Policy(path=(code,), tier=Tier.B), "program")
    jailed.started(TIMEOUT_S)
    jailed.kill()
    assert jailed.wait(TIMEOUT_S) == -signal.SIGKILL
    double.write_text("#!/bin/sh\nexit 65\n")
    jailed = spawn(Policy(path=(code,), tier=Tier.B), "program")
    with pytest.raises(JailError, match="could not be built"):
        jailed.started(TIMEOUT_S)
    assert jailed.wait(TIMEOUT_S) == 65


def test_seatbelt_is_not_enough_for_tier_a(mac: Path) -> None:
    """A policy that requires the whole jail is refused."""
    with pytest.raises(JailError, match="makes it only B"):
        spawn(Policy(), "__future__")


def test_a_system_without_jails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows nothing runs outside of a jail instead."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(JailError, match="no jails on win32 yet") as caught:
        spawn(Policy(tier=Tier.C), "__future__")
    assert "WSL" in caught.value.hint


@pytest.mark.parametrize(("platform", "name"), [("darwin", "seatbelt"), ("win32", "jail")])
def test_probe_elsewhere_needs_nothing_of_linux(platform: str, name: str) -> None:
    """The package imports and the probe answers, tier C where there is nothing, without loading what only Linux has."""
    code = f"""if True:
        import subprocess, tempfile, socket, platform, importlib.util, argparse, json, ctypes, asyncio, sys
        sys.platform = {platform!r}
        from llmos.kernel.jail import probe, __main__
        report = probe()
        assert "llmos.kernel.jail.enter" not in sys.modules
        print(report.tier, *[finding.layer for finding in report.findings], report.findings[0].hint)
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == f"C {name} use Linux; on Windows, WSL 2\n", ended.stderr


# Windows

SCRATCH = PureWindowsPath("C:/Users/u/AppData/Local/llmos/tmp/7")


def planned(policy: Policy, name: str = "mail", program: tuple[str, ...] = ("python.exe", "-I")) -> windows.Plan:
    return windows.plan(policy, program, scratch=SCRATCH, name=name)


def test_windows_plan_has_no_network_and_no_descendants() -> None:
    """No capability leads to a network; without fork the job holds one process and Windows starts no other."""
    plan = planned(Policy(limits=Limits(address_space=1 << 30, cpu_seconds=2)))
    assert not [name for name in plan.capabilities if "internet" in name.lower() or "network" in name.lower()]
    assert plan.less_privileged
    assert (plan.job.active_processes, plan.job.process_memory, plan.job.process_user_time_100ns) == (
        1,
        1 << 30,
        20_000_000,
    )
    assert plan.job.kill_on_job_close
    assert "CHILD_PROCESS_RESTRICTED" in plan.mitigations
    assert "internetClient" in planned(Policy(network=True)).capabilities
    forking = planned(Policy(allow_fork=True, limits=Limits(processes=9)))
    assert forking.job.active_processes == 9
    assert "CHILD_PROCESS_RESTRICTED" not in forking.mitigations


def test_windows_plan_grants_what_the_policy_names(place: Path) -> None:
    """Reading, changing and running each get their entry, a path named twice the wider one; the code is never writable."""
    plan = planned(Policy(read=(place / "r", place / "w"), write=(place / "w",), path=(place / "p",)))
    grants = {grant.path: grant.access for grant in plan.grants}
    assert grants[place / "r"] is Access.READ
    assert grants[place / "w"] is grants[SCRATCH] is Access.CHANGE
    assert grants[place / "p"] is grants[view.interpreter()[0]] is Access.RUN
    with pytest.raises(JailError, match="may not be writable"):
        planned(Policy(write=(view.KERNEL.parent,)))


@pytest.mark.parametrize("name", HOSTILE)
def test_windows_plan_hands_names_over_as_they_are(name: str, place: Path) -> None:
    """Paths and arguments stay values; a container's name is made of harmless letters, and is another for each."""
    plan = planned(Policy(read=(place / name,)), name, ("python.exe", name))
    assert place / name in [grant.path for grant in plan.grants]
    assert plan.command_line == subprocess.list2cmdline(["python.exe", name])
    assert re.fullmatch(r"llmos\.[A-Za-z0-9-]{0,41}\.[0-9a-f]{16}", plan.moniker)
    assert plan.moniker != planned(Policy(), "other").moniker


def test_windows_plan_builds_the_environment_from_nothing() -> None:
    """Only what is fixed and the policy's gets in; no spelling of a name turns telemetry on."""
    plan = planned(Policy(env={"MINE": "1", "ort_disable_telemetry": "0", "Path": "C:\\evil"}))
    assert set(plan.environment) == {
        "SystemRoot",
        "PATH",
        "USERPROFILE",
        "TEMP",
        "TMP",
        "MINE",
        "ORT_DISABLE_TELEMETRY",
        "PYTHONDONTWRITEBYTECODE",
    }
    assert plan.environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert plan.environment["PATH"] == "C:\\Windows\\System32"
    for env in ({"": "x"}, {"A=B": "x"}, {"A": "x\0y"}):
        with pytest.raises(JailError):
            planned(Policy(env=env))


def test_the_linux_path_is_the_one_taken_here() -> None:
    """On Linux nothing of another system is loaded when a jail is started."""
    code = "import llmos.kernel.jail as jail, sys; jail.probe(); print('llmos.kernel.jail.elsewhere' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "False\n"
