"""Reads the CSV file that a weather station writes, and keeps the user's notes on its readings in a file of the driver's own."""

from __future__ import annotations

import csv
import json
import secrets
import threading
from dataclasses import dataclass
from typing import Any

from llmos.drivers.sdk import Call, Code, Driver, DriverEnv, OpError, op, previews

MAX_LINE = 200
MAX_CHANGES = 1000
"""That can be undone."""


@dataclass(frozen=True)
class Kept:
    """What is stored."""

    notes: dict[str, str]
    """A reading's time → the note on it."""
    changes: dict[str, dict[str, str]]
    """What takes each change back."""


class WeatherStation(Driver):
    """`time,temperature,rain_mm`, a line for each reading, oldest first."""

    def setup(self, env: DriverEnv) -> None:
        self.env = env
        self._file = env.state / "notes.json"
        self._lock = threading.Lock()  # ops run in several threads

    def status(self) -> str:
        return f"{len(self._readings()):,} readings" if self.env.roots else "the station's file is not granted"

    @op
    def readings(self, call: Call, *, day: str = "", k: int = 10, cursor: str = "") -> dict[str, Any]:
        """The cursor is the time of the last reading that was given: readings that are added meanwhile do not shift it."""
        notes = self._kept().notes
        found = [row for row in reversed(self._readings()) if row["time"].startswith(day)]
        if cursor:
            found = [row for row in found if row["time"] < cursor]
        allowed = call.scope.get("reading")
        items = [self._item(row, notes) for row in found if allowed is None or row["time"] in allowed]
        return {"items": items[:k], "next": items[k - 1]["ts"] if len(items) > k else ""}

    @op
    def note(self, call: Call, *, time: str, text: str) -> dict[str, Any]:
        self._must_exist(time)
        token = secrets.token_hex(8)
        with self._lock:
            kept = self._kept()
            change = {"time": time, "before": kept.notes.get(time, ""), "after": text}
            self._save(Kept({**kept.notes, time: text}, {**kept.changes, token: change}))
        return {"undo": token}

    @previews("note")
    def _preview_note(self, call: Call, *, time: str, text: str) -> str:
        self._must_exist(time)
        return f"the note on {time}: {self._kept().notes.get(time, '') or 'none'} becomes {text or 'none'}"

    @op
    def undo(self, call: Call, *, token: str) -> dict[str, Any]:
        with self._lock:
            kept = self._kept()
            change = kept.changes.get(token)
            if change is None:
                raise OpError(Code.NOT_FOUND, "argument token: no such change, or one of long ago")
            now = kept.notes.get(change["time"], "")
            if now not in (change["before"], change["after"]):
                raise OpError(Code.CONFLICT, f"the note on {change['time']} has been changed since")
            self._save(Kept({**kept.notes, change["time"]: change["before"]}, kept.changes))
        return {}

    def _item(self, row: dict[str, str], notes: dict[str, str]) -> dict[str, Any]:
        degrees = float(row["temperature"])
        shown = f"{degrees:.1f} °C" if self.env.settings["unit"] == "C" else f"{degrees * 9 / 5 + 32:.1f} °F"
        title = f"{shown}, {row['rain_mm']} mm of rain"
        return {"uid": row["time"], "ts": row["time"], "title": title, "text": notes.get(row["time"], "")}

    def _readings(self) -> list[dict[str, str]]:
        if not self.env.roots:
            hint = "llmosctl perm grant --requested weather_station"
            raise OpError(Code.UNAVAILABLE, "the station's file is not granted", hint)
        with self.env.roots[0].open(newline="", errors="replace") as stream:
            rows = csv.DictReader(line[:MAX_LINE] for line in stream)
            return [row for row in rows if _is_reading(row)]

    def _must_exist(self, time: str) -> None:
        if not any(row["time"] == time for row in self._readings()):
            raise OpError(Code.NOT_FOUND, f"argument time: no reading at {time}", "see weather_station.readings")

    def _kept(self) -> Kept:
        return Kept(**json.loads(self._file.read_text())) if self._file.exists() else Kept({}, {})

    def _save(self, kept: Kept) -> None:
        """Whole or not at all: the driver may be killed at any moment. So is a change, with what takes it back."""
        notes = {time: text for time, text in kept.notes.items() if text}
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"notes": notes, "changes": dict(list(kept.changes.items())[-MAX_CHANGES:])}))
        new.replace(self._file)


def _is_reading(row: dict[str, str]) -> bool:
    """One broken line does not stop the others."""
    try:
        float(row["temperature"])
    except (KeyError, TypeError, ValueError):
        return False
    return bool(row.get("time")) and row.get("rain_mm") is not None
