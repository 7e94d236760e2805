"""What a policy becomes: the file system of bubblewrap, the rules of Landlock, and what is refused before either."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmos.kernel.jail import ALL_LAYERS, JailError, Layer, Limits, Policy, Report, Tier, enter, process, spawn, view
from llmos.kernel.jail.policy import reachable
from llmos.kernel.jail.probe import Finding


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A canonical directory."""
    return tmp_path.resolve()


def mounts(policy: Policy) -> list[tuple[str, ...]]:
    """The options of bubblewrap, each with its arguments."""
    options: list[tuple[str, ...]] = []
    for word in view.bubblewrap(policy, privileged=False):
        options = [*options, (word,)] if word.startswith("--") else [*options[:-1], (*options[-1], word)]
    return options


def test_tiers_are_ordered() -> None:
    """A is the strongest, C the weakest, each as strong as itself."""
    assert Tier.A.at_least(Tier.C)
    assert Tier.B.at_least(Tier.B)
    assert not Tier.B.at_least(Tier.A)


@pytest.mark.parametrize(
    ("layers", "tier"),
    [
        (ALL_LAYERS, Tier.A),
        (ALL_LAYERS - {Layer.MOUNTS}, Tier.B),
        (ALL_LAYERS - {Layer.SECCOMP}, Tier.C),
        (ALL_LAYERS - {Layer.LANDLOCK}, Tier.C),
        (frozenset[Layer](), Tier.C),
    ],
)
def test_layers_make_a_tier(layers: frozenset[Layer], tier: Tier) -> None:
    """Only all layers make A; Landlock and seccomp make B; anything less is C."""
    assert reachable(layers) is tier


def test_a_jail_below_its_tier_is_refused() -> None:
    """Layers that cannot make the policy's tier raise, naming what is missing."""
    with pytest.raises(JailError, match="tier A is required; without mounts it is only B"):
        spawn(Policy(), "__future__", layers=ALL_LAYERS - {Layer.MOUNTS})


def test_a_report_below_the_minimum_says_what_would_help() -> None:
    """`require` gives the reason and hint of what is missing, and is silent when all is well."""
    missing = Finding(Layer.MOUNTS, works=False, reason="no bwrap", hint="install it")
    present = Finding(Layer.SECCOMP, works=True, reason="in force")
    report = Report(Tier.B, frozenset({Layer.SECCOMP}), (missing, present))
    report.require(Tier.B)
    with pytest.raises(JailError, match=r"reaches B \(mounts: no bwrap\)") as caught:
        report.require(Tier.A)
    assert caught.value.hint == "install it"


def test_landlock_below_the_minimum_is_refused_before_anything_is_closed() -> None:
    """An ABI that is too old raises; this process stays as it was."""
    with pytest.raises(OSError, match="Landlock ABI 99 is required"):
        enter.restrict_files([], minimum=99)
    assert Path("/etc").exists()


@pytest.mark.parametrize("field", ["read", "write", "path"])
def test_a_path_must_exist(field: str) -> None:
    """A path that is not there is named."""
    with pytest.raises(JailError, match="/not/there does not exist"):
        view.check(Policy(**{field: (Path("/not/there"),)}), mounts=True)  # type: ignore[arg-type]


def test_a_path_with_a_link_is_refused(place: Path) -> None:
    """A link would lead wherever another jail has pointed it meanwhile; the hint names its target."""
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    with pytest.raises(JailError, match="not a canonical path") as caught:
        view.check(Policy(write=(place / "link",)), mounts=True)
    assert str(place / "real") in caught.value.hint


def test_a_relative_path_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path depends on nobody's working directory."""
    monkeypatch.chdir(place)
    (place / "here").mkdir()
    with pytest.raises(JailError, match="not a canonical path"):
        view.check(Policy(read=(Path("here"),)), mounts=True)


def test_code_that_runs_outside_is_never_writable() -> None:
    """The interpreter, the packages and the kernel cannot be granted for writing, nor anything in them."""
    for path in (Path(sys.prefix).resolve(), view.KERNEL, view.KERNEL / "jail", Path("/usr/bin")):
        with pytest.raises(JailError, match="may not be writable"):
            view.check(Policy(write=(path,)), mounts=True)


def test_what_contains_such_code_is_writable_only_under_mounts() -> None:
    """bubblewrap lays the code read-only over a grant that contains it; without bubblewrap the grant is refused."""
    policy = Policy(write=(Path(sys.prefix).resolve().parent,))
    view.check(policy, mounts=True)
    with pytest.raises(JailError, match="may not be writable"):
        view.check(policy, mounts=False)


def test_the_interpreter_covers_a_grant_that_contains_it() -> None:
    """Whatever is granted, the read-only mounts of code come after it."""
    above = Path(sys.prefix).resolve().parent
    options = mounts(Policy(write=(above,)))
    granted = options.index(("--bind", str(above), str(above)))
    assert all(options.index(("--ro-bind", str(path), str(path))) > granted for path in view.interpreter())


def test_the_kernel_is_masked_when_something_visible_contains_it() -> None:
    """A grant that contains the kernel's directory gets an empty one in its place, after everything else."""
    above = view.KERNEL.parent
    options = mounts(Policy(read=(above,)))
    masked = options.index(("--tmpfs", str(view.KERNEL)))
    assert options.index(("--ro-bind", str(above), str(above))) < masked
    assert options[masked + 1] == ("--remount-ro", str(view.KERNEL))


def test_write_wins_over_read_for_the_same_path(place: Path) -> None:
    """A directory named in both is writable."""
    options = mounts(Policy(read=(place,), write=(place,)))
    assert ("--bind", str(place), str(place)) in options
    assert ("--ro-bind", str(place), str(place)) not in options


def test_everything_that_is_left_over_is_read_only() -> None:
    """The last options make the root, /dev and /proc read-only."""
    assert mounts(Policy())[-3:] == [("--remount-ro", path) for path in ("/proc", "/dev", "/")]


def test_scratch_holds_no_more_files_than_pages() -> None:
    """An empty file costs memory that the size of a directory does not count."""
    assert view.inodes(Policy(scratch=1 << 20)) == {"/tmp": 256, "/dev/shm": 256}
    assert min(view.inodes(Policy(scratch=1)).values()) > 0


def test_no_terminal_is_inside() -> None:
    """/dev holds what the Landlock rules name and nothing that a driver of Linux stands behind."""
    options = mounts(Policy())
    assert ("--tmpfs", "/dev") in options
    assert {option[1] for option in options if option[0] == "--dev-bind"} == set(view._DEVICES)


def test_sharing_process_ids_shows_no_proc() -> None:
    """Without an own process id namespace there is no /proc, since it would show everybody."""
    policy = Policy(share_pid=True)
    words = {option[0] for option in mounts(policy)}
    assert not words & {"--unshare-pid", "--proc"}
    assert not [path for path, _ in view.landlock(policy, mounts=True) if path.startswith("/proc")]


def test_landlock_follows_the_policy(place: Path) -> None:
    """Grants, code and scratch get their kinds; programs run only where exec is allowed, and never what can be written."""
    (place / "r").mkdir()
    (place / "w").mkdir()
    for allow_exec, code in ((False, "read"), (True, "run")):
        policy = Policy(read=(place / "r",), write=(place / "w",), allow_exec=allow_exec)
        rules = dict(view.landlock(policy, mounts=True))
        assert (rules[str(place / "r")], rules[str(place / "w")], rules["/tmp"]) == ("read", "write", "write")
        assert rules["/usr"] == code
        assert "/tmp" not in dict(view.landlock(policy, mounts=False))


def test_a_kernel_module_must_exist() -> None:
    """A policy that names a part the kernel does not have is a mistake."""
    with pytest.raises(JailError, match="no module 'nonsense'"):
        view.kernel_parts(Policy(kernel_modules=("nonsense",)))


def test_a_python_that_owns_the_root_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the interpreter's prefix is the whole file system, nothing could be hidden."""
    monkeypatch.setattr(sys, "base_prefix", "/")
    view.interpreter.cache_clear()
    with pytest.raises(JailError, match="its prefix is /"):
        view.interpreter()


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH"])
def test_variables_that_load_code_are_refused(name: str) -> None:
    """They would act before the jail is closed."""
    with pytest.raises(JailError, match=name):
        spawn(Policy(env={name: "x"}), "__future__")


def test_limits_become_soft_and_hard() -> None:
    """Core dumps are off, None leaves a limit out, processor time ends softly first, no limit is raised."""
    import resource

    rows = {
        limit: values for limit, *values in process._limits(Limits(open_files=None, cpu_seconds=5), shared_user=False)
    }
    assert rows[resource.RLIMIT_CORE] == [0, 0]
    assert rows[resource.RLIMIT_CPU] == [5, 6]
    assert resource.RLIMIT_NOFILE not in rows
    present = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    (high,) = [row for row in process._limits(Limits(open_files=present + 1), shared_user=False) if row[0] == 7]
    assert high[2] == present


def test_where_linux_counts_the_whole_user_the_limit_is_on_top() -> None:
    """Without a namespace or a user id of its own, a jail gets its processes besides those that the user has."""
    import resource

    (row,) = [row for row in process._limits(Limits(processes=3), shared_user=True) if row[0] == resource.RLIMIT_NPROC]
    assert row[1] > 3


def test_plain_python_is_without_llmos(place: Path) -> None:
    """Neither mount nor rule shows any of its packages; what lies inside of the interpreter's directories is covered."""
    policy = Policy(write=(place,), bare=True)
    shown = {words[1] for words in mounts(policy) if words[0] == "--ro-bind"}
    ruled = {path for path, _ in view.landlock(policy, mounts=True)}
    covered = {words[1] for words in mounts(policy) if words[0] == "--tmpfs"}
    for package in map(str, view.packages()):
        inside = any(Path(package).is_relative_to(path) for path in shown)
        assert package not in shown | ruled
        assert (package in covered) == inside
