"""Manifests are a stranger's, and the kernel reads them in its one loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import MAX_MANIFEST, load_driver

HOSTILE = {
    "a key of many parts": ".".join(["a"] * 60_000) + " = 1",
    "a table of many parts": "[" + ".".join(["a"] * 60_000) + "]",
    "a long number": "a = " + "9" * 100_000,
    "nested arrays": "a = " + "[" * 60_000,
    "a nested table": "a = " + "{a=" * 20_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_made_to_break_its_reader_is_refused(tmp_path: Path, text: str) -> None:
    """As what it is, whatever it makes the TOML parser raise; a key of many parts before the parser spends a minute on it."""
    place = tmp_path / "manifest.toml"
    place.write_text(text)
    assert len(text) < MAX_MANIFEST
    with pytest.raises(OpError) as caught:
        load_driver(place)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "unknown field" not in caught.value.detail, "it was read to its end"
