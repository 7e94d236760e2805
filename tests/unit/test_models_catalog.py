"""The catalogue, and which of its models suits a machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.userland.models import catalog, room
from llmos.userland.models.catalog import Entry, HubSource, estimated_ram
from llmos.userland.models.errors import checked_name
from llmos.userland.models.recommend import Machine, fits, quick, recommended, this_machine
from llmos.userland.models.reference import parse_reference

GB = 10**9
ENTRIES = catalog.entries()
HUB = [(entry, entry.hub) for entry in ENTRIES.values() if entry.hub is not None]


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
def test_entries_say_what_one_has_to_know(entry: Entry) -> None:
    """Each has a name that can be installed, one source, sizes, and a licence; memory is more than the weights."""
    assert checked_name(entry.name) == entry.name
    assert (entry.hub is None) == bool(entry.parts)
    assert min(entry.download, entry.parameters, entry.disk) > 0
    assert entry.ram > entry.disk
    assert entry.title
    assert entry.about
    assert entry.license


@pytest.mark.parametrize(("entry", "source"), HUB, ids=lambda value: getattr(value, "name", ""))
def test_sources_at_the_hub_are_references(entry: Entry, source: HubSource) -> None:
    """Each parses as what a user would type; pins have the form of pins; a GGUF says what it takes to import it."""
    assert parse_reference(str(source.reference)) == source.reference
    assert source.sha256 is None or len(bytes.fromhex(source.sha256)) == 32
    assert source.revision == "" or len(bytes.fromhex(source.revision)) == 20
    assert bool(entry.architecture) == source.reference.is_gguf
    assert entry.context


def test_licences_that_ask_for_something_say_so() -> None:
    """What has no SPDX name has terms, and only that."""
    assert {entry.license for entry in ENTRIES.values() if not entry.terms} == {"Apache-2.0", "MIT"}
    assert {entry.name for entry in ENTRIES.values() if entry.terms} >= {"qwen2.5-3b", "gemma-3-1b", "llama-3.2-1b"}


def test_memory_is_estimated_from_weights_and_context() -> None:
    """28 layers of two heads of 128: 4,096 tokens of keys and values in 32 bits are 235 MB."""
    assert estimated_ram(1_850_000_000, 28, 2, 128) == 1_850_000_000 + 4096 * 57_344 + 200_000_000


def entry(name: str, ram: int, parameters: int = 1, kind: str = "generator", terms: str = "") -> Entry:
    return Entry(name, name, "", kind, "MIT", parameters, ram, ram, terms=terms)


def test_the_most_capable_that_fits_is_recommended() -> None:
    """The last in the catalogue's order within half of the memory; no embedding model, nothing with terms, nothing slow."""
    entries = [
        entry("small", GB),
        entry("better", 2 * GB),
        entry("embeds", GB, kind="embedding"),
        entry("terms", GB, terms="for research"),
        entry("slow", GB, parameters=3 * GB),
        entry("large", 4 * GB),
    ]
    assert recommended(entries, Machine(4 * GB, 2)) == entries[1]
    assert recommended(entries, Machine(4 * GB - 1, 2)) == entries[0]
    assert recommended(entries, Machine(4 * GB, 3)) == entries[4]
    assert recommended(entries, Machine(8 * GB, 2)) == entries[5]
    assert recommended(entries, Machine(2 * GB - 1, 8)) is None


@given(st.integers(0, 64 * GB), st.integers(1, 64))
def test_more_of_a_machine_never_gets_less(memory: int, cores: int) -> None:
    """What is recommended fits and is quick; with more memory and more processors it is the same or stands later."""
    order = list(ENTRIES.values())
    found = recommended(order, Machine(memory, cores))
    more = recommended(order, Machine(memory + GB, cores + 1))
    if found is not None:
        assert fits(found, Machine(memory, cores))
        assert quick(found, Machine(memory, cores))
        assert more is not None
        assert order.index(more) >= order.index(found)


def test_memory_of_this_machine(tmp_path: Path) -> None:
    """What Linux calls available, and less where a control group leaves less; without either, all there is."""
    groups = tmp_path / "groups"
    groups.mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4000 kB\n")
    assert this_machine(tmp_path, groups).memory == 4_096_000
    for limit, left in (("max", 4_096_000), ("1000000", 400_000), ("9000000000", 4_096_000), ("500000", 0)):
        (groups / "memory.max").write_text(f"{limit}\n")
        (groups / "memory.current").write_text("600000\n")
        assert this_machine(tmp_path, groups).memory == left
    assert this_machine(tmp_path / "none", tmp_path / "none").memory > 4_096_000
    assert this_machine().cores >= 1


def test_old_pieces_of_downloads_are_swept(llmos_home: Path) -> None:
    """What nobody goes on with for two weeks is removed by the next pull; the rest is kept."""
    for name, days in (("old", 15), ("new", 13)):
        file = room.downloads() / name
        file.write_bytes(b"x")
        os.utime(file, (0, time.time() - days * 86400))
    assert [file.name for file in room.downloads().iterdir()] == ["new"]
