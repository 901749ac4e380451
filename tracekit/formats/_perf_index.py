"""Where the records of a window of perf.data start.

Two ways that give the same: ``hop`` goes from header to header in Python; ``link`` finds, with NumPy, all words
that look like the header of a sample, and follows the true chain over runs of them where each ends at the start of
the next. Python only runs where such a run breaks (a record of another type, or a word in a payload that looks like
a header), so no false start can come in: ``link`` is exact by construction. Measured 4.3 GB/s against 0.8.

All positions are in 8-byte words, as perf.data records start at multiples of 8.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SAMPLE = 9
FINISHED_ROUND = 68
AUXTRACE = 71
TRACING_DATA = 66
COMPRESSED2 = 83
COMPRESSED = frozenset({81, COMPRESSED2})

CHUNK_WORDS = 1 << 18  # stays in the second-level cache

Words = np.ndarray[tuple[int], np.dtype[np.uint64]]
Starts = np.ndarray[tuple[int], np.dtype[np.int64]]


class SamplePattern(NamedTuple):
    """What the header word and the id of a sample look like in this file."""

    min_words: int  # header included
    id_word: int  # where the sample's id is, in words from the start; 0: nowhere
    min_id: int
    max_id: int


class Found(NamedTuple):
    """Whole records, in the order of the file."""

    starts: Starts
    ends: Starts
    kind: np.ndarray[tuple[int], np.dtype[np.uint32]]

    def pick(self, which: slice | np.ndarray) -> "Found":
        """Some of them."""
        return Found(self.starts[which], self.ends[which], self.kind[which])


NONE_FOUND = Found(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint32))


def joined(pieces: Sequence[Found]) -> Found:
    """All in one; the only one that holds any is not copied."""
    some = [piece for piece in pieces if len(piece.starts)]
    if len(some) == 1:
        return some[0]
    starts, ends, kind = zip(NONE_FOUND, *some, strict=True)
    return Found(np.concatenate(starts), np.concatenate(ends), np.concatenate(kind))


class Chain(NamedTuple):
    """The whole records in a window."""

    found: Found
    stop: int  # the first word that belongs to no whole record
    skip_bytes: int  # payload after ``stop`` that is no record (AUXTRACE)
    problem: str | None  # why the chain cannot go on at ``stop``; None: the window ends there

    @property
    def starts(self) -> Starts:
        """Of the records."""
        return self.found.starts


def hop(words: Words, first: int, end: int) -> Chain:
    """Follow the chain from ``first`` to ``end`` record by record: the fallback and the oracle of ``link``."""
    starts = []
    position = first
    problem: str | None = None
    skip = 0
    while position < end:
        size, problem, skip = _step(words, position, end)
        if size == 0:
            break
        starts.append(position)
        position += size
        if skip:
            break
    return Chain(_found(words, starts), position, skip, problem)


def _found(words: Words, starts: list[int]) -> Found:
    """Records that lie where Python found them."""
    at = np.array(starts, np.int64)
    heads = words[at]
    return Found(at, at + (heads >> np.uint64(51)).astype(np.int64), heads.astype(np.uint32))


def _step(words: Words, position: int, end: int) -> tuple[int, str | None, int]:
    """Words of the record at ``position`` (0: not whole, or damaged), what is wrong, payload bytes that follow."""
    head = int(words[position])
    kind, size = head & 0xFFFFFFFF, head >> 48
    if kind in COMPRESSED:
        return 0, f"record type {kind} is compressed data", 0
    if size < 8 or size % 8:
        return 0, f"record of type {kind} says it has {size} bytes", 0
    if position + size // 8 > end:
        return 0, None, 0
    payload = 0
    if kind == AUXTRACE and size >= 16:
        payload = int(words[position + 1])
    elif kind == TRACING_DATA and size >= 16:
        payload = int(words[position + 1]) & 0xFFFFFFFF
    return size // 8, None, payload


def link(words: Words, first: int, end: int, pattern: SamplePattern) -> Chain:
    """Follow the chain from ``first`` to ``end``; the same result as ``hop``.

    ``words`` must reach at least ``pattern.id_word`` beyond ``end``.
    """
    likely = _candidates(words, first, end, pattern)
    breaks = np.flatnonzero(likely.ends[:-1] != likely.starts[1:])
    breaks = np.append(breaks, len(likely.starts) - 1)
    pieces: list[Found] = []
    hops: list[int] = []
    position = first
    problem: str | None = None
    skip = 0
    while position < end:
        here = int(likely.starts.searchsorted(position))
        if here < len(likely.starts) and likely.starts[here] == position:
            last = int(breaks[breaks.searchsorted(here)])
            if hops:
                pieces.append(_found(words, hops))
                hops = []
            pieces.append(likely.pick(slice(here, last + 1)))
            position = int(likely.ends[last])
            continue
        size, problem, skip = _step(words, position, end)
        if size == 0:
            break
        hops.append(position)
        position += size
        if skip:
            break
    pieces.append(_found(words, hops))
    return Chain(joined(pieces), position, skip, problem)


def _candidates(words: Words, first: int, end: int, pattern: SamplePattern) -> Found:
    """What looks like a whole sample or a finished round."""
    pieces = []
    for begin in range(first, end, CHUNK_WORDS):
        # a copy of the low halves: to compare every other one where they stand takes 1.6 times as long in all
        low = words[begin : min(begin + CHUNK_WORDS, end)].astype(np.uint32)
        found = np.flatnonzero((low == SAMPLE) | (low == FINISHED_ROUND))
        kind = low.take(found)
        found += begin
        size = (words.take(found) >> np.uint64(48)).view(np.int64)
        sample = kind == SAMPLE
        plausible = (size & 7 == 0) & np.where(sample, size >= 8 * pattern.min_words, size == 8)
        if pattern.id_word:
            ids = words[pattern.id_word :].take(found)
            plausible &= ~sample | (ids - np.uint64(pattern.min_id) <= np.uint64(pattern.max_id - pattern.min_id))
        following = found + (size >> 3)
        plausible &= following <= end
        piece = Found(found, following, kind)
        pieces.append(piece if plausible.all() else piece.pick(plausible))
    return joined(pieces)
