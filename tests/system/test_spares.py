"""Jails that wait for an agent: quick to use, used once, and with nothing in them that was another's."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from tests.system.authority_world import World
from tests.system.conftest import System

WHO = """
told["pid"], told["own"] = os.getppid(), os.getcwd()
told["left"] = os.listdir()
told["seen"] = [name for name in os.environ if name.startswith("EVIL")]
os.environ["EVIL"] = "yes"
open("note", "w").write("private")
"""


@pytest.fixture
def world(system: System) -> World:
    """Booted, without a model."""
    world = World(system)
    world.boot()
    return world


def spares(world: World) -> list[Path]:
    """Directories of agents that there are; without an agent, those of spares."""
    folder = world.home("agents")
    return list(folder.iterdir()) if folder.exists() else []


def waiting(world: World) -> dict[str, int]:
    """Spares that wait: directory → the operating system's pid, by their working directories."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            cwd, command = str((path / "cwd").readlink()), (path / "cmdline").read_bytes()
        except OSError:
            continue
        if cwd.startswith(str(world.home("agents"))) and b"llmos.userland.agent" in command:
            found[Path(cwd).name] = int(path.name)
    return found


def test_each_agent_has_a_process_and_a_directory_that_nobody_had_before(world: World) -> None:
    """Also when both had been made before it was spawned: what one leaves, the next does not find."""
    told = []
    for _ in range(4):
        world.system.until(lambda: len(spares(world)) >= 1)
        told.append(world.run(WHO, []))
    assert len({one["own"] for one in told}) == 4
    assert all(one["left"] == [] and one["seen"] == [] for one in told)
    world.system.until(lambda: len(spares(world)) <= params.SPARES and not any(map(os.listdir, spares(world))))


def hosts(world: World, driver: str) -> list[int]:
    """Processes that are, or wait to be, this driver, by their working directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            mine = str((path / "cwd").readlink()) == str(world.home("drivers") / driver)
            found += [int(path.name)] if mine and b"llmos.drivers.host" in (path / "cmdline").read_bytes() else []
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees into a jail's process")
def test_a_spare_knows_no_secret_and_one_that_is_killed_is_replaced(world: World) -> None:
    """It holds no token before it is somebody; without it the next agent starts all the same."""
    world.run("told['here'] = True", [])
    found = world.system.until(lambda: waiting(world))
    for pid in found.values():
        assert b"LLMOS_TOKEN" not in Path(f"/proc/{pid}/environ").read_bytes()
        os.kill(pid, signal.SIGKILL)
    assert world.run("told['here'] = True", [])["here"]
    world.system.until(lambda: waiting(world) and not waiting(world).keys() & found.keys())
    assert world.is_well()


def test_an_agent_sees_what_it_was_handed_though_spares_do_not(world: World) -> None:
    """A jail made beforehand serves only those who are to see the same."""
    folder = world.system.home / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("here")
    look = f"told['read'] = open({str(folder / 'a.txt')!r}).read() if os.path.exists({str(folder)!r}) else ''"
    for allow, expected in (([], ""), ([f"fs.read(path={folder})"], "here"), ([], "")):
        world.system.until(lambda: spares(world))
        assert world.run(look, allow)["read"] == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees into a jail's process")
def test_an_agent_sees_the_directory_that_has_the_name_now(world: World) -> None:
    """A spare that was made when another one had it is not used: what was moved away is out of reach."""
    folder = world.system.home / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("before")
    look = f"told['own'], told['read'] = os.getcwd(), open({str(folder / 'a.txt')!r}).read()"
    allow = [f"fs.read(path={folder})"]
    first = world.run(look, allow)
    assert first["read"] == "before"

    def made() -> bool:
        others = [pid for own, pid in waiting(world).items() if own != Path(first["own"]).name]
        return any(Path(f"/proc/{pid}/root{folder}/a.txt").exists() for pid in others)

    world.system.until(made)
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    (folder / "a.txt").write_text("now")
    assert world.run(look, allow)["read"] == "now"
    assert world.is_well()


def test_a_tree_too_deep_to_delete_by_recursion_is_deleted(world: World) -> None:
    """By a process of its own: what an agent leaves costs the kernel nothing."""
    deep = """
    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")
    """
    pid = world.start(deep + "time.sleep(60)\n", [])
    own = world.system.until(lambda: next((own for own in spares(world) if (own / "d/d/d").exists()), None))
    world.ends(pid)
    world.system.until(lambda: not own.exists(), 60)
    assert world.is_well()


def test_what_a_killed_kernel_left_of_its_agents_is_deleted_at_the_next_boot(world: World) -> None:
    """Their directories go; nobody is alive whose they are."""
    world.start("open('note', 'w').write('x'); time.sleep(60)", [])
    left = world.system.until(lambda: [own for own in spares(world) if any(own.iterdir())])
    world.system.stop(kill=True)
    world.boot()
    world.system.until(lambda: not any(own.exists() for own in left))


def test_a_token_of_a_process_serves_that_process_alone(world: World) -> None:
    """Another process that got hold of an agent's token is refused."""
    world.start("open('token', 'w').write(os.environ['LLMOS_TOKEN']); time.sleep(60)", [])
    token = world.system.until(lambda: next((one.read_text() for one in world.home("agents").glob("*/token")), ""))
    with pytest.raises(OpError) as caught:
        world.system.connect(token).call("sys.ping")
    assert caught.value.code is Code.DENIED
    assert "another process" in caught.value.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees into a jail's process")
def test_a_driver_that_dies_is_back_from_a_spare_and_sees_what_is_granted_now(world: World) -> None:
    """Also after a grant, whose jail the spare from before does not show; one that is disabled keeps none."""
    folder = world.system.home / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("a")

    def spare() -> int:
        """Of the filesystem driver: the process with its host that is not the one on the table."""
        own = world.system.process_named("filesystem")["os_pid"]
        return next((pid for pid in hosts(world, "filesystem") if pid != own), 0)

    first = world.system.until(spare)
    world.user.call("perm.grant", {"holder": "filesystem", "cap": f"fs.read(path={folder})"})
    assert world.user.call("filesystem.list", {"path": str(folder)})["items"]
    second = world.system.until(lambda: (found := spare()) != first and found)
    os.kill(world.system.process_named("filesystem")["os_pid"], signal.SIGKILL)
    world.system.until(lambda: world.system.process_named("filesystem")["os_pid"] == second)
    assert world.user.call("filesystem.list", {"path": str(folder)})["items"]
    world.user.call("driver.disable", {"name": "filesystem"})
    world.system.until(lambda: not hosts(world, "filesystem"))
