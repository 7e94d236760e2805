"""What programs have been touched by: a stranger's words reach nobody through a project without their label, and run nothing unasked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.authority_world import World
from tests.system.conftest import System
from tests.system.test_authority import User

CODE = ["post.read", "code.exec(project=p)", "code.read(project=p)"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A system with a driver for letters, and an agent that runs what it is told."""
    made = World(System(tmp_path_factory.mktemp("s")))
    made.boot()
    yield made
    made.system.stop()


@pytest.fixture
def project(world: World) -> Iterator[World]:
    """The same without a project at the end."""
    yield world
    for row in world.user.call("code.ls")["projects"]:
        world.user.call("code.rm", {"project": row["project"]})
    assert world.is_well()


NAME = 'import json; told["name"] = json.loads(os.environ["LLMOS_CONFIG"])["name"]'


def why(world: World, name: str) -> list[tuple[str, str]]:
    """Who sent what through which op, from an agent back to the source."""
    return [(one["sender"], one["via"]) for one in world.user.call("label.why", {"id": name})["chain"]]


def label(world: World) -> str:
    """Of the project."""
    (row,) = world.user.call("code.ls")["projects"]
    return str(row["label"])


def test_an_agent_that_has_read_a_stranger_asks_before_it_runs_code(project: World) -> None:
    """Before, it needs nobody; after, each of run, write and remove is asked for with its exact arguments, and the project is tainted."""
    script = """
        told["before"] = call("code.run", {"project": "p", "source": "print(1)"})
        call("post.inbox")
        told["after"] = call("code.run", {"project": "p", "source": "print(2)"})
        told["write"] = call("code.write", {"project": "p", "path": "x", "text": "evil"})
        told["rm"] = call("code.rm", {"project": "p"})
        """
    with User(project.system, "no") as user:
        told = project.run(script, allow=CODE)
    assert told["before"]["result"]["stdout"] == "1\n"
    assert [told[step].get("error") for step in ("after", "write", "rm")] == ["DENIED"] * 3
    assert [one["op"] for one in user.seen] == ["code.run", "code.write", "code.rm"]
    assert user.seen[0]["args"] == {"project": "p", "source": "print(2)"}
    assert "had seen untrusted data" in user.seen[0]["reasons"][0]
    assert label(project) == "trusted"
    with User(project.system, "once"):
        told = project.run(script, allow=CODE)
    assert told["after"]["result"]["stdout"] == "2\n"
    assert told["rm"]["result"] == {}
    assert project.user.call("code.ls")["projects"] == []


def test_what_comes_out_of_a_tainted_project_taints(project: World) -> None:
    """An agent that has read no stranger has, once it has read a file or an output of a project where one was; kept, it has not."""
    with User(project.system, "once"):
        project.run(
            'call("post.inbox"); call("code.write", {"project": "p", "path": "x.py", "text": "print(1)"})', allow=CODE
        )
    assert label(project).startswith("untrusted")
    for touch in (
        'call("code.read", {"project": "p", "path": "x.py"})',
        'call("code.ls", {"project": "p"})',
        'call("code.run", {"project": "p", "source": "print(1)"})',
        'call("code.read", {"project": "p", "path": "nothing"})',
    ):
        told = project.run(
            f'told["was"] = trusted(); told["got"] = {touch}; told["is"] = trusted()\n' + NAME, allow=CODE
        )
        assert (told["was"], told["is"]) == (True, False), touch
        assert why(project, told["name"])[:2] == [("code p", touch.split('"')[1]), ("post", "post.inbox")]
    kept = """
        told["got"] = call("code.run", {"project": "p", "source": "print(1)"}, keep=True)
        told["is"] = trusted()
        """
    told = project.run(kept, allow=CODE)
    assert told["is"]
    assert "kept" in told["got"]["result"]


def test_a_strangers_program_asks_whoever_runs_it(project: World) -> None:
    """A file of a tainted project needs approval, also of one who has read nothing; the user runs it when she says so."""
    project.user.call("code.write", {"project": "p", "path": "mine.py", "text": "print('mine')"})
    run = 'told["got"] = call("code.run", {"project": "p", "file": "mine.py"})'
    assert project.run(run, allow=CODE)["got"]["result"]["stdout"] == "mine\n"
    with User(project.system, "once"):
        project.run('call("post.inbox"); call("code.write", {"project": "p", "path": "x", "text": ""})', allow=CODE)
    with User(project.system, "no") as user:
        told = project.run(run, allow=CODE)
    assert told["got"]["error"] == "DENIED"
    assert user.seen[0]["reasons"] == ["file: a stranger may have written what is in the project"]
    answer = project.user.stream("code.run", {"project": "p", "file": "mine.py"})
    assert answer.finish()["stdout"] == "mine\n"
    assert answer.label[0] == "u"


class Late(User):
    """Answers when the file that is asked about has become another."""

    def _answer(self) -> None:
        for event in self._events:
            evil = {"project": "p", "path": "mine.py", "text": "print('another')"}
            self._connection.call("code.write", evil)
            self._connection.call("approval.answer", {"id": event.data["id"], "answer": "once"})
            return


def test_an_approval_is_for_what_the_file_held(project: World) -> None:
    """What is written into a project while the user is asked about a file in it is not what she said yes to."""
    project.user.call("code.write", {"project": "p", "path": "mine.py", "text": "print('mine')"})
    with User(project.system, "once"):
        project.run('call("post.inbox"); call("code.write", {"project": "p", "path": "x", "text": ""})', allow=CODE)
    run = 'told["got"] = call("code.run", {"project": "p", "file": "mine.py"})'
    with Late(project.system, "once"):
        assert project.run(run, allow=CODE)["got"]["error"] == "CONFLICT"
    with User(project.system, "once"):
        assert project.run(run, allow=CODE)["got"]["result"]["stdout"] == "another\n"


def test_what_is_passed_by_reference_taints_the_project_alone(project: World) -> None:
    """An agent hands a stranger's words to a program of its own without reading them, and stays trusted; as the source they ask."""
    script = """
        told["write"] = call("code.write", {"project": "p", "path": "letter", "text": kept(".items[0].text")})
        told["run"] = call("code.run", {"project": "p", "source": "print(len(open('letter').read()))"}, keep=True)
        told["trusted"] = trusted()
        told["evil"] = call("code.run", {"project": "p", "source": kept(".items[0].text")}, keep=True)
        """
    with User(project.system, "no") as user:
        told = project.run(script, allow=CODE)
    assert (told["write"], told["run"]["label"]) == ({"result": {}, "label": []}, []), told
    assert told["trusted"], told
    assert told["evil"]["error"] == "DENIED"
    assert [one["op"] for one in user.seen] == ["code.run"]
    assert label(project).startswith("untrusted")


def test_a_capability_is_for_one_project(project: World) -> None:
    """Another project is neither run in, read, listed nor removed."""
    project.user.call("code.write", {"project": "q", "path": "x", "text": "x"})
    told = project.run(
        """
        for op, args in (
            ("code.run", {"source": "1"}), ("code.ls", {}), ("code.read", {"path": "x"}),
            ("code.write", {"path": "x", "text": ""}), ("code.rm", {}),
        ):
            told[op] = call(op, {"project": "q", **args}).get("error")
        told["all"] = call("code.ls")["result"]["projects"]
        """,
        allow=CODE,
    )
    assert told.pop("all") == []
    assert set(told.values()) == {"DENIED"}


def test_revoking_ends_what_runs(project: World) -> None:
    """The moment the capability is taken back, the program of an agent that was granted it is killed."""
    granted = [project.user.call("perm.grant", {"holder": "evil", "cap": cap}) for cap in CODE]
    script = 'call("code.run", {"project": "p", "source": "while True: pass", "seconds": 600})'
    pid = project.start(script, allow=None)
    (row,) = project.system.until(lambda: running(project))
    assert row["parent"] == pid
    for one in granted:
        project.user.call("perm.revoke", {"id": one["id"]})
    project.system.until(lambda: not running(project))


def running(world: World) -> list[dict[str, Any]]:
    return [row for row in world.processes() if row["kind"] == "code" and row["os_pid"]]
