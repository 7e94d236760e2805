"""The driver as its host runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.drivers.sdk import Code, OpError
from llmos.drivers.testing import Running, running

MANIFEST = Path(__file__).parents[1] / "src" / "llmos_weather_station" / "manifest.toml"
LOG = "time,temperature,rain_mm\n2026-11-24T12:00,9.5,0\n2026-11-25T12:00,7,1.2\nbroken\n2026-11-26T12:00,-1,0\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the station has written."""
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


@pytest.fixture
def station(tmp_path: Path, log: Path) -> Iterator[Running]:
    """The driver, with the file granted."""
    with running(MANIFEST, tmp_path, roots=[log]) as made:
        yield made


def test_readings_page_while_more_come(station: Running, log: Path) -> None:
    """A line that is not one is left out; a new reading does not shift a page."""
    first = station.call("readings", k=2)
    assert [item["title"] for item in first["items"]] == ["-1.0 °C, 0 mm of rain", "7.0 °C, 1.2 mm of rain"]
    log.write_text(f"{LOG}2026-11-27T12:00,3,0\n")
    rest = station.call("readings", k=2, cursor=first["next"])
    assert ([item["ts"] for item in rest["items"]], rest["next"]) == (["2026-11-24T12:00"], "")


def test_a_note_and_back(station: Running) -> None:
    """Undone twice does no harm; changed since is a conflict."""
    args = {"time": "2026-11-25T12:00", "text": "hail"}
    assert station.call("preview", op="note", args=args)["preview"].endswith("none becomes hail")
    token = station.call("note", **args)["undo"]
    assert station.call("readings", day="2026-11-25")["items"][0]["text"] == "hail"
    station.call("undo", token=token)
    station.call("undo", token=token)
    assert station.call("readings", day="2026-11-25")["items"][0]["text"] == ""
    token = station.call("note", **args)["undo"]
    station.call("note", time=args["time"], text="more hail")
    with pytest.raises(OpError) as caught:
        station.call("undo", token=token)
    assert caught.value.code is Code.CONFLICT


def test_what_is_not_granted(tmp_path: Path, station: Running) -> None:
    """It starts without its file and says so; a narrowed capability shows what it covers."""
    with running(MANIFEST, tmp_path) as bare:
        with pytest.raises(OpError, match="not granted"):
            bare.call("readings")
        assert bare.status == "the station's file is not granted"
    shown = station.call("readings", {"reading": ["2026-11-24T12:00"]})
    assert [item["ts"] for item in shown["items"]] == ["2026-11-24T12:00"]


def test_fahrenheit(tmp_path: Path, log: Path) -> None:
    """The setting is heeded."""
    with running(MANIFEST, tmp_path, roots=[log], settings={"unit": "F"}) as made:
        assert made.call("readings", k=1)["items"][0]["title"].startswith("30.2 °F")
