"""Typed access to a GGUF's metadata; every failure names the key."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llmos.userland.models.errors import ImportRejected
from llmos.userland.models.gguf_file import MetadataValue


class Metadata:
    """Typed access to the metadata of one file; every failure names the key. Raises `ImportRejected`."""

    def __init__(self, values: Mapping[str, MetadataValue]) -> None:
        self._values = values

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self._values.get(key, default)
        if value is None:
            raise ImportRejected(f"metadata key {key!r} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ImportRejected(f"metadata key {key!r}: {shown(value)} is not an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self._values.get(key, default)
        if value is None:
            raise ImportRejected(f"metadata key {key!r} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ImportRejected(f"metadata key {key!r}: {shown(value)} is not a number from {low} to {high}")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if value is None:
            raise ImportRejected(f"metadata key {key!r} is missing")
        if not isinstance(value, str):
            raise ImportRejected(f"metadata key {key!r}: {shown(value)} is not text")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise ImportRejected(f"metadata key {key!r}: {shown(value)} is not true or false")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._list(key)
        if not all(isinstance(item, str) for item in value):
            raise ImportRejected(f"metadata key {key!r} is not an array of strings")
        return value  # type: ignore[return-value]  # checked above

    def integers(self, key: str) -> list[int]:
        value = self._list(key)
        if not all(isinstance(item, int) for item in value):
            raise ImportRejected(f"metadata key {key!r} is not an array of integers")
        return value  # type: ignore[return-value]

    def numbers(self, key: str) -> list[float]:
        value = self._list(key)
        if not all(isinstance(item, int | float) and math.isfinite(item) for item in value):
            raise ImportRejected(f"metadata key {key!r} is not an array of finite numbers")
        return value  # type: ignore[return-value]

    def is_list(self, key: str) -> bool:
        return isinstance(self._values.get(key), list)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _list(self, key: str) -> list[object]:
        value = self._values.get(key)
        if value is None:
            raise ImportRejected(f"metadata key {key!r} is missing")
        if not isinstance(value, list):
            raise ImportRejected(f"metadata key {key!r}: {shown(value)} is not an array")
        return list(value)


def shown(value: object) -> str:
    """A value of the file as it may stand in a message: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
