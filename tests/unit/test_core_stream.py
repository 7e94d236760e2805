"""What is held back of a growing text, and where it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.core.stream import TextStream


def test_half_a_character_is_held_back() -> None:
    """A character whose bytes come in several tokens appears whole, with the last of them."""
    stream, shown = TextStream(), []
    for byte in "aé🦊".encode():
        stream.push(bytes([byte]))
        shown.append(stream.take())
    assert shown == ["a", "", "é", "", "", "", "🦊"]


def test_an_incomplete_character_becomes_a_replacement_at_the_end() -> None:
    """Bytes that never become a character are shown as U+FFFD once no more can come, and not before."""
    stream = TextStream()
    stream.push("🦊".encode()[:2])
    assert stream.take() == ""
    stream.finish()
    assert stream.take() == "\ufffd"


def test_a_possible_stop_is_held_back_until_it_is_none() -> None:
    """The beginning of a stop string is not shown; when the text goes on otherwise, it is."""
    stream = TextStream(["<end>"])
    stream.push(b"ab<e")
    assert stream.take() == "ab"
    stream.push(b"x<en")
    assert stream.take() == "<ex"
    stream.finish()
    assert stream.take() == "<en"


def test_the_text_ends_before_the_first_stop() -> None:
    """Of several stop strings the one that begins first ends the text, in the middle of a token, and is no part of it."""
    stream = TextStream(["two", "one"])
    stream.push(b"zero one two")
    assert stream.stopped
    stream.push(b" three")
    stream.finish()
    assert stream.take() == "zero "


def test_a_stop_across_tokens_and_bytes_is_found() -> None:
    """A stop string of many-byte characters is found when its bytes come one by one."""
    stream = TextStream(["終わり"])
    for byte in "話は終終わりx".encode():
        stream.push(bytes([byte]))
    assert (stream.take(), stream.stopped) == ("話は終", True)


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.data())
def test_cutting_never_changes_the_text(text: str, stops: list[str], data: st.DataObject) -> None:
    """However the bytes are cut into tokens, the parts shown add up to the text before its first stop string, and
    nothing that was shown is ever taken back."""
    raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    stream, shown = TextStream(stops), ""
    at = 0
    while at < len(raw):
        size = data.draw(st.integers(1, 5))
        stream.push(raw[at : at + size])
        at += size
        shown += stream.take()
    stream.finish()
    shown += stream.take()
    whole = raw.decode()
    # The first stop to be complete ends the text; what comes later cannot.
    first = next((end for end in range(len(whole) + 1) if any(whole[:end].endswith(stop) for stop in stops)), None)
    if first is None:
        assert shown == whole
    else:
        assert stream.stopped
        assert whole.startswith(shown)
        assert len(shown) <= first
        assert not any(stop in shown for stop in stops)
