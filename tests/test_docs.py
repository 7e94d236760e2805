"""What exists is written down, and what is written down exists."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest

from llmos.ipc import protocol
from llmos.ipc.errors import Code
from llmos.ipc.manifest import KERNEL_OPS, load_driver

ROOT = Path(__file__).parents[1]
DRIVERS = sorted(path.parent for path in (ROOT / "drivers").glob("*/manifest.toml"))


def text(path: str) -> str:
    return (ROOT / path).read_text()


def test_every_kind_of_message_is_on_the_protocol_page() -> None:
    """A client can be written from it."""
    page = text("ipc/PROTOCOL.md")
    for kind in protocol.Kind:
        assert f"`{kind.value}`" in page


def test_the_cores_table_is_what_it_obeys() -> None:
    """Its ops stand at its head with what answers them, and no others."""
    source = text("kernel/core/loop.py")
    obeyed = set(re.findall(r'^            "(\w+)": ', source, re.MULTILINE))
    assert len(obeyed) > 10
    assert set(re.findall(r"^\| `(\w+)` \|", source, re.MULTILINE)) == obeyed


def test_every_error_says_whose_fault_it_is() -> None:
    """Each code stands in one of the four families."""
    families: dict[str, set[str]] = {}
    family = ""
    for line in inspect.getsource(Code).splitlines():
        if found := re.match(r"    # (\w+): ", line):
            family = found[1]
        elif found := re.match(r"    ([A-Z_]+) = ", line):
            families.setdefault(family, set()).add(found[1])
    assert set(families) == {"caller", "authority", "resource", "kernel"}
    assert set.union(*families.values()) == {code.name for code in Code}


def test_the_topics_of_the_protocol_are_those_the_kernel_publishes() -> None:
    """Every one that is listed is published somewhere, and none besides."""
    source = "".join(path.read_text() for path in (ROOT / "kernel").rglob("*.py"))
    assert set(re.findall(r'publish\(\s*"([^"]+)"', source)) == set(protocol.TOPICS)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda path: path.name)
def test_every_driver_has_a_page_that_names_its_ops_and_permissions(driver: Path) -> None:
    """What it reads, its ops, its limits."""
    manifest = load_driver(driver / "manifest.toml")
    page = (driver / "README.md").read_text()
    for verb in manifest.ops:
        assert f"`{verb}" in page, f"{driver.name}/README.md does not mention {verb}"
    for verb, op in manifest.ops.items():
        assert verb in KERNEL_OPS or len(op.utterances) >= 3, f"{driver.name}.{verb} needs example utterances"


def test_every_entry_point_has_its_manifest() -> None:
    """The kernel reads manifests where the entry points say they are."""
    points = tomllib.loads(text("pyproject.toml"))["project"]["entry-points"]
    for group, name in (("llmos.drivers", "manifest.toml"), ("llmos.agents", "agent.toml")):
        for module in points[group].values():
            assert (ROOT / module.removeprefix("llmos.").replace(".", "/") / name).is_file()


def test_the_readme_names_make_targets_that_exist() -> None:
    """And every command it gives is one."""
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)`", text("README.md"))) <= targets


def test_make_help_lists_every_target() -> None:
    """What can be made says in a line what it is."""
    makefile = text("Makefile")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(re.findall(r"^([a-z]+):.*  ## \S", makefile, re.MULTILINE)) == set(phony[1].split())


def test_the_top_level_is_the_design_cards() -> None:
    """Nothing is added beside it."""
    allowed = {
        "pyproject.toml",
        "README.md",
        "kernel",
        "drivers",
        "userland",
        "ipc",
        "tests",
        "Makefile",
        "LICENSE",
        "requirements.lock",
    }
    built = {"build", "dist", "llmos.egg-info"}
    assert {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - built == allowed
