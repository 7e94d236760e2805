"""What kind of file a name tells, and text out of the formats that are text already.

Office documents and PDF have no reader here yet: such a file is found by its name and says so (`kind` `unsupported`).
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import PurePath
from typing import Literal

Kind = Literal[
    "text",
    "code",
    "data",
    "html",
    "document",
    "spreadsheet",
    "presentation",
    "image",
    "audio",
    "video",
    "archive",
    "other",
]

_ENDINGS: dict[Kind, str] = {
    "text": "txt text md markdown mdx rst adoc org tex log srt vtt eml ics vcf nfo me 1st",
    "code": "py pyi js mjs ts tsx jsx c h cc cpp hpp cs java kt go rs rb php pl pm lua sh bash zsh fish ps1 bat sql r jl m swift "
    "scala clj hs ml ex exs erl el vim css scss less vue svelte proto cmake mk gradle dockerfile",
    "data": "csv tsv json jsonl ndjson yaml yml toml ini cfg conf env xml properties",
    "html": "html htm xhtml",
    "document": "pdf doc docx docm odt ott rtf pages epub mobi azw3 djvu ps wpd",
    "spreadsheet": "xls xlsx xlsm xlsb ods numbers",
    "presentation": "ppt pptx pptm odp key",
    "image": "jpg jpeg png gif bmp tif tiff webp heic heif avif svg raw cr2 nef arw psd xcf ico",
    "audio": "mp3 m4a aac flac ogg oga opus wav wma aiff mid midi",
    "video": "mp4 m4v mkv mov avi webm wmv flv mpg mpeg 3gp ogv",
    "archive": "zip tar gz tgz bz2 xz zst 7z rar jar deb rpm iso dmg",
}
BY_ENDING: dict[str, Kind] = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings.split()}
READABLE = frozenset(("text", "code", "data", "html"))
_NAMES: dict[str, Kind] = {
    "readme": "text",
    "license": "text",
    "copying": "text",
    "makefile": "code",
    "dockerfile": "code",
    "todo": "text",
}

MAX_TEXT_FILE = 64 * 1024 * 1024
"""Bytes of a text file that is read at all."""
MAX_HTML_FILE = 4 * 1024 * 1024
"""Bytes of an HTML file, which is taken apart as a whole."""
_BLOCK = 64 * 1024
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class UnsupportedError(ValueError):
    """A file without text that this driver can read. The message says why."""


def kind_of(name: str) -> Kind:
    """By the name alone; `other` for an unknown ending."""
    path = PurePath(name.lower())
    return BY_ENDING.get(path.suffix.removeprefix(".")) or _NAMES.get(path.stem, "other")


def read_text(descriptor: int, name: str) -> Iterator[str]:
    """The text of an open file, in pieces, from its start. Raises `UnsupportedError` before the first piece, `OSError`."""
    kind = kind_of(name)
    if kind not in READABLE and kind != "other":
        raise UnsupportedError(f"text cannot be taken out of {kind} files of this format yet")
    size = os.fstat(descriptor).st_size
    limit = MAX_HTML_FILE if kind == "html" else MAX_TEXT_FILE
    if size > limit:
        raise UnsupportedError(f"{size:,} bytes; text files are read up to {limit:,}")
    first = os.read(descriptor, _BLOCK)
    encoding = next((name for mark, name in _BOMS if first.startswith(mark)), "")
    if not encoding:
        if b"\0" in first:
            raise UnsupportedError("a binary file")
        encoding = "utf-8" if _is_utf8(first) else "cp1252"
    pieces = _decoded(descriptor, first, encoding)
    return iter((_html_text("".join(pieces)),)) if kind == "html" else pieces


def _is_utf8(block: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(block, final=len(block) < _BLOCK)  # a block may cut a character
    except UnicodeDecodeError:
        return False
    return True


def _decoded(descriptor: int, block: bytes, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    total = 0
    while block and total <= MAX_TEXT_FILE:  # a file that grows while it is read ends, too
        total += len(block)
        yield decoder.decode(block)
        block = os.read(descriptor, _BLOCK)
    yield decoder.decode(b"", final=True)


class _Text(HTMLParser):
    """The text that a page shows, a line for each block."""

    _HIDDEN = frozenset(("script", "style", "template", "noscript", "svg"))
    _INLINE = frozenset(
        "a abbr b bdi bdo cite code data dfn em i kbd mark q s samp small span strong sub sup time u var wbr font".split()
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002  (the base's signature)
        if tag in self._HIDDEN:
            self._hidden += 1
        elif tag not in self._INLINE:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        elif tag not in self._INLINE:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _html_text(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).splitlines())
    return "\n".join(line for line in lines if line)
