"""What a change would do, in words or as a unified diff, for whoever has to approve it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from llmos.drivers.filesystem.atomic import Content
from llmos.drivers.filesystem.tree import Extent

MAX_MATCHED = 250_000
"""Old lines times new lines between which what is equal is looked for; beyond that all of them count as different."""
MAX_LISTED = 200
"""Files of a folder that are named."""
_CONTEXT = 3
_Opcode = tuple[str, int, int, int, int]


def is_text(data: bytes) -> bool:
    """Whether it is UTF-8 without a NUL byte."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def describe_write(path: str, old: Content | None, new: bytes) -> str:
    """A unified diff from what is there to what would be; sizes where either is no text."""
    path = _on_one_line(path)
    if old is not None and not (is_text(old.data) and is_text(new)):
        return f"{path}: binary, {len(old.data):,} bytes, becomes {len(new):,} bytes of text"
    before = old.data.decode() if old else ""
    if old is not None and old.data == new:
        return f"{path}: no change"
    if not new:
        return f"{path}: a new, empty file" if old is None else _joined(path, path, before, "")
    return _joined("/dev/null" if old is None else path, path, before, new.decode())


def describe_trash(path: str, extent: Extent) -> str:
    """What would go, by name and size."""
    path = _on_one_line(path)
    total = sum(size for _, size in extent.names)
    if len(extent.names) == 1 and not extent.names[0][0].endswith("/"):
        return f"{path}: moved to the trash, {total:,} bytes"
    files = [one for one in extent.names if not one[0].endswith("/")]
    lines = [f"{path}/: moved to the trash with all that is in it: {len(files):,} files, {total:,} bytes"]
    lines += [f"  {_on_one_line(name)}  {size:,} bytes" for name, size in files[:MAX_LISTED]]
    if len(files) > MAX_LISTED:
        lines.append(f"  … and {len(files) - MAX_LISTED:,} more files")
    return "\n".join(lines)


def _on_one_line(path: str) -> str:
    """A name may hold line feeds, and must not look like lines of the preview."""
    shown = path.encode(errors="backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode-escape").decode() for char in shown)


def _joined(old_path: str, new_path: str, before: str, after: str) -> str:
    return "\n".join((f"--- {old_path}", f"+++ {new_path}", *_hunks(_lines(before), _lines(after))))


def _lines(text: str) -> list[str]:
    """With their ends, which are `\\n` alone."""
    lines = text.split("\n")
    last = lines.pop()
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def _hunks(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """Source: the unified format of diff(1), GNU diffutils manual, "Detailed Description of Unified Format"."""
    for group in _groups(old, new):
        (_, start, _, new_start, _), (_, _, end, _, new_end) = group[0], group[-1]
        yield f"@@ -{_range(start, end)} +{_range(new_start, new_end)} @@"
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                yield from _marked(" ", old[i1:i2])
            else:
                yield from _marked("-", old[i1:i2])
                yield from _marked("+", new[j1:j2])


def _groups(old: Sequence[str], new: Sequence[str]) -> Iterator[list[_Opcode]]:
    """Opcodes as difflib's, in groups with their context."""
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    first, old_end, new_end = max(0, head - _CONTEXT), len(old) - tail, len(new) - tail
    after = min(tail, _CONTEXT)
    if (old_end - head) * (new_end - head) <= MAX_MATCHED:
        matcher = SequenceMatcher(None, old[first : old_end + after], new[first : new_end + after], autojunk=False)
        for group in matcher.get_grouped_opcodes(_CONTEXT):
            yield [(tag, i1 + first, i2 + first, j1 + first, j2 + first) for tag, i1, i2, j1, j2 in group]
        return
    group = [("equal", first, head, first, head)] if first < head else []
    group.append(("replace", head, old_end, head, new_end))
    if after:
        group.append(("equal", old_end, old_end + after, new_end, new_end + after))
    yield group


def _range(start: int, end: int) -> str:
    length = end - start
    if length == 1:
        return str(start + 1)
    return f"{start + 1 if length else start},{length}"


def _marked(mark: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield mark + line.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"
