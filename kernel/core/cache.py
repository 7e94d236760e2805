"""What the engine has read before: a radix tree of tokens with their keys and values, one for each label.

A text that begins as an earlier one did takes the keys and values of that beginning instead of computing them. Trees of
different labels know nothing of each other: who may not see a text may not learn from the speed of an answer that it was read.

When memory is short, the end of a text goes that is cheapest to have again for the room it takes, among those not used lately
(GreedyDual-Size): a node's worth is what reading it again would take, per byte, above a floor that rises with every eviction. It goes
to a file without a name if coming back from there is quicker than reading it again, which at these speeds it always is from
some dozens of tokens on; and is forgotten otherwise.

Source: Zheng et al. 2024, SGLang (RadixAttention); Cao and Irani 1997, Cost-Aware WWW Proxy Caching Algorithms.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence

import numpy as np

from llmos.kernel.core import limits
from llmos.kernel.core.engine import KV
from llmos.kernel.core.spill import Spill, Spilled, SpillFull


class Node:
    """Some tokens after those of its parent, with their keys and values: in memory, in a file, or (at a root) none."""

    def __init__(self, parent: Node | None, tokens: list[int], kv: KV | Spilled | None) -> None:
        self.parent = parent
        self.tokens = tokens
        self.kv = kv
        self.children: dict[int, Node] = {}
        self.worth = 0.0


class PrefixCache:
    """The trees of one model.

    Args:
        kv_bytes: of one token.
        spill: where to put what memory has no room for; None for nowhere.
    """

    def __init__(self, kv_bytes: int, spill: Spill | None = None) -> None:
        self.kv_bytes = kv_bytes
        self.read_s = limits.READ_S
        """Seconds that reading one token takes; kept up to date by who measures it."""
        self.bytes = self.spilled = 0
        self._spill = spill
        self._roots: dict[str, Node] = {}
        self._floor = 0.0

    def match(self, label: str, tokens: Sequence[int]) -> int:
        """How many tokens of a text's beginning are known."""
        return sum(count for _, count in self._path(label, tokens))

    def read(self, label: str, tokens: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, KV]]:
        """The keys and values of `tokens[start:stop]`, all of them known, as (count, array) in order.

        What is in a file is read from there, and in memory again. Raises `OSError` when the file fails: it is forgotten then,
        with all that comes after it.
        """
        at = 0
        for node, count in list(self._path(label, tokens[:stop])):
            if at + count > start:
                kv = self._resident(node)
                self._touch(node, at + count)
                first = max(start - at, 0)
                yield count - first, kv[:, :, first:count]
            at += count

    def insert(self, label: str, tokens: Sequence[int], row: KV) -> None:
        """Remember a text's keys and values, of which `row` holds all; only what is not known yet is copied.

        Raises `OSError` where there is no memory for it, or the file fails in which it lies in part.
        """
        node, at = self._roots.setdefault(label, Node(None, [], None)), 0
        for found, count in list(self._path(label, tokens)):
            at += count
            if at < len(tokens):
                node = found if count == len(found.tokens) else self._split(found, count)
        if at < len(tokens):
            fresh = list(tokens[at:])
            kv = _own(row[:, :, at : len(tokens)])
            child = node.children[fresh[0]] = Node(node, fresh, kv)
            self.bytes += kv.nbytes
            self._touch(child, len(tokens))

    def adopt(self, source: str, target: str, tokens: Sequence[int]) -> None:
        """Make what is known of a text under one label known under another; the caller vouches that it may be. Raises `OSError`."""
        known = self.match(source, tokens)
        if known > self.match(target, tokens):
            parts = [kv for _, kv in self.read(source, tokens, 0, known)]
            self.insert(target, tokens[:known], np.concatenate(parts, axis=2))

    def shrink(self, room: int) -> None:
        """Let things go until at most `room` bytes are held in memory."""
        while self.bytes > max(room, 0):
            leaves = [node for node in self._nodes() if _in_memory(node) and not any(map(_in_memory, _below(node)))]
            for node in sorted(leaves, key=lambda node: node.worth):
                if self.bytes <= max(room, 0):
                    break
                self._floor = max(self._floor, node.worth)
                self._evict(node)
        self._roots = {label: root for label, root in self._roots.items() if root.children}

    def clear(self) -> None:
        """Forget all that was read."""
        for node in list(self._nodes()):
            self._release(node)
        self._roots.clear()

    def _path(self, label: str, tokens: Sequence[int]) -> Iterator[tuple[Node, int]]:
        """The nodes that a text goes along, with how many tokens of each it shares; the last may be shared in part."""
        node, at = self._roots.get(label), 0
        while node is not None and at < len(tokens):
            node = node.children.get(tokens[at])
            if node is not None:
                count = shared_length(node.tokens, tokens[at : at + len(node.tokens)])
                yield node, count
                if count < len(node.tokens):
                    return
                at += count

    def _split(self, node: Node, count: int) -> Node:
        """Cut a node in two; the first, of `count` tokens, is returned."""
        kv = self._resident(node)
        parent = node.parent
        assert parent is not None  # noqa: S101 -- a root has no tokens
        upper, lower = Node(parent, node.tokens[:count], _own(kv[:, :, :count])), _own(kv[:, :, count:])
        upper.worth = node.worth
        parent.children[upper.tokens[0]] = upper
        node.tokens, node.kv, node.parent = node.tokens[count:], lower, upper
        upper.children[node.tokens[0]] = node
        return upper

    def _resident(self, node: Node) -> KV:
        """Its array, from its file if need be."""
        if isinstance(node.kv, Spilled):
            try:
                kv = _own(node.kv.read())
            except (OSError, MemoryError) as error:
                self._forget(node)
                raise OSError("what was put into a file does not come back") from error
            self._release(node)
            node.kv = kv
            self.bytes += kv.nbytes
        assert isinstance(node.kv, np.ndarray)  # noqa: S101 -- only a root has none
        return node.kv

    def _touch(self, node: Node, depth: int) -> None:
        """It was of use just now; reading it again would cost more the further back it looks."""
        cost = self.read_s * (1 + depth / limits.READ_DOUBLES)
        if self._spill is not None:
            cost = min(cost, self._spill.read_s * self.kv_bytes)
        node.worth = self._floor + cost / self.kv_bytes

    def _evict(self, node: Node) -> None:
        if self._spill is not None and self._spill.pays(len(node.tokens), self.read_s, self.kv_bytes):
            assert isinstance(node.kv, np.ndarray)  # noqa: S101 -- it was chosen for being in memory
            try:
                spilled = self._spill.write(node.kv, self._drop_spilled)
            except (OSError, SpillFull):
                self._forget(node)
                return
            self.bytes -= node.kv.nbytes
            self.spilled += spilled.nbytes
            node.kv = spilled
        else:
            self._forget(node)

    def _drop_spilled(self) -> bool:
        """Forget the least worthy of what lies in files; whether there was any."""
        ends = [node for node in self._nodes() if isinstance(node.kv, Spilled) and not node.children]
        if not ends:
            return False
        self._forget(min(ends, key=lambda node: node.worth))
        return True

    def _forget(self, node: Node) -> None:
        """Take it out of its tree, with all that comes after it."""
        for each in [node, *_below(node)]:
            self._release(each)
        parent = node.parent
        if parent is not None:
            parent.children.pop(node.tokens[0], None)

    def _release(self, node: Node) -> None:
        if isinstance(node.kv, Spilled):
            self.spilled -= node.kv.nbytes
            node.kv.close()
        elif node.kv is not None:
            self.bytes -= node.kv.nbytes
        node.kv = None

    def _nodes(self) -> Iterator[Node]:
        for root in self._roots.values():
            yield from _below(root)


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(at for at in range(length) if one[at] != other[at])


def _below(node: Node) -> Iterator[Node]:
    waiting = list(node.children.values())
    while waiting:
        found = waiting.pop()
        waiting += found.children.values()
        yield found


def _in_memory(node: Node) -> bool:
    return isinstance(node.kv, np.ndarray)


def _own(kv: KV) -> KV:
    """A copy in memory of its own, which goes back to the operating system as soon as nobody holds it."""
    space = mmap.mmap(-1, max(kv.nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    copy: KV = np.frombuffer(space, np.float32, kv.size).reshape(kv.shape)
    copy[...] = kv
    return copy
