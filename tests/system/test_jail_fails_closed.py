"""A jail that cannot be closed as it was asked for runs nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos.kernel.jail import ALL_LAYERS, JailError, Layer, Policy, Tier, enter, probe, process, spawn, view

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
        directory.mkdir()
        (directory / "program.py").write_text(text)
        return directory

    return write


def test_nothing_runs_when_the_jail_cannot_be_closed(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a layer fails inside, `started` says which, and the module never begins."""
    code = program("print('ran')")
    rules = view.landlock
    monkeypatch.setattr(view, "landlock", lambda policy, *, mounts: [*rules(policy, mounts=mounts), ("/gone", "read")])
    jailed = spawn(Policy(path=(code,)), "program", stdout=subprocess.PIPE)
    with pytest.raises(JailError, match=r"could not be closed: .*No such file"):
        jailed.started(TIMEOUT_S)
    assert jailed.stdout is not None
    with jailed.stdout as out:
        assert out.read() == b""
    assert jailed.wait(TIMEOUT_S) == 125


@pytest.mark.parametrize("abi", [0, 1, 5])
def test_an_older_landlock_is_no_tier_a(program: Program, abi: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below ABI 6 a jail of tier A is not closed and runs nothing; one of tier B is, from ABI 1 on, with what there is."""
    source = Path(str(enter.__file__)).read_text()
    assert source.count("return max(abi, 0)") == 1
    older = compile(source.replace("return max(abi, 0)", f"return {abi}"), "enter.py", "exec")
    monkeypatch.setattr(process, "_inner_half", lambda: older)
    code = program("print('ran')")
    for tier in (Tier.A, Tier.B):
        jailed = spawn(Policy(path=(code,), tier=tier), "program", stdout=subprocess.PIPE)
        if tier is Tier.B and abi >= 1:
            assert jailed.started(TIMEOUT_S).landlock_abi == abi
        else:
            with pytest.raises(JailError, match=rf"Landlock ABI \d is required, this Linux has {abi or 'none'}"):
                jailed.started(TIMEOUT_S)
        assert jailed.stdout is not None
        with jailed.stdout as out:
            assert out.read() == (b"ran\n" if tier is Tier.B and abi >= 1 else b"")
        jailed.wait(TIMEOUT_S)


@pytest.mark.parametrize("layers", [WHOLE, UNMOUNTED])
def test_a_grant_that_turns_into_a_link_meanwhile_is_not_followed(
    program: Program, tmp_path: Path, layers: frozenset[Layer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bubblewrap opens by name is compared with what was checked: a link put there in between shows nothing."""
    code = program("import os; print(os.listdir(os.environ['GRANTED']))")
    granted, secret = tmp_path.resolve() / "granted", tmp_path.resolve() / "secret"
    granted.mkdir()
    (secret / "name").mkdir(parents=True)
    environment = process._environment  # what is called last before bubblewrap starts

    def swap(policy: Policy, home: str) -> dict[str, str]:
        granted.rmdir()
        granted.symlink_to(secret)
        return environment(policy, home)

    monkeypatch.setattr(process, "_environment", swap)
    policy = Policy(read=(granted,), path=(code,), env={"GRANTED": str(granted)}, tier=Tier.B)
    jailed = spawn(policy, "program", layers=layers, stdout=subprocess.PIPE)
    with pytest.raises(JailError, match="changed while the jail was being built"):
        jailed.started(TIMEOUT_S)
    assert jailed.stdout is not None
    with jailed.stdout as out:
        assert out.read() == b""
    jailed.wait(TIMEOUT_S)
