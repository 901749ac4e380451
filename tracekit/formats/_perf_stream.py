"""perf records in windows of bounded size, from one source or from several that are merged by time.

Two buffers take turns: while threads decode one window, the next is read into the other.
"""

from typing import NamedTuple

import numpy as np

from tracekit.formats._perf_feed import Feed, UnpackedFeed
from tracekit.formats._perf_index import Starts, Words

WINDOW_BYTES = 16 << 20
PAD_BYTES = 1 << 17  # a record has at most 64 KiB: gathers may look that far beyond the last one
SOURCE_SHIFT = 48  # of the number of the source in the place of a record
_MAX_RUNS = 1 << 12

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Source:
    """One stream of records."""

    def __init__(self, feed: Feed, number: int) -> None:
        self.feed = feed
        self.number = number
        self.place = feed.place  # of the next byte to read: in the file, or beyond it where that is compressed
        self.tail: Bytes = np.empty(0, np.uint8)  # read, belongs to no whole record yet
        self.window_bytes = WINDOW_BYTES
        self.last_ns = -1  # time of the latest record seen
        self.done = False
        self.unpacks = False  # compressed records are unpacked on the way

    def room(self, share: int) -> int:
        """How many bytes to read next, out of a window's ``share``."""
        share = min(share, self.window_bytes)
        self.window_bytes = min(4 * self.window_bytes, WINDOW_BYTES)
        return max(share - len(self.tail), share // 4, 64)

    def more(self, size: int) -> bytes:
        """The next bytes, taken out of the stream; fewer at its end."""
        room = bytearray(size)
        count = self.feed.readinto(memoryview(room))
        self.place += count
        return bytes(room[:count])

    def unpack(self, order: str) -> None:
        """From the tail on, records are compressed: once, for perf compresses nothing twice."""
        self.unpacks = True
        self.feed = UnpackedFeed(self.feed, self.tail.tobytes(), order)
        self.place -= len(self.tail)
        self.tail = np.empty(0, np.uint8)


class Segment(NamedTuple):
    """What of one source a window holds."""

    source: Source
    first: int  # word
    end: int  # words filled
    filled: int  # bytes filled
    base: int  # what to add to 8 * word to get the place in the source


class Cut(NamedTuple):
    """How far a segment was taken in."""

    stop: int  # the first word that belongs to no whole record
    skip_bytes: int = 0  # payload after ``stop`` that is no record
    unpack: str = ""  # byte order, if the records from ``stop`` on are compressed


class Window(NamedTuple):
    """Part of the records in memory: first what the last window carried over, then the segments."""

    words: Words
    kept: int  # words carried over
    segments: list[Segment]
    last: bool  # the sources are read to their ends


class RecordStream:
    """Reads sources window by window; the caller says what of a window is still needed with the next."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources
        self._buffers = [np.empty(0, np.uint8), np.empty(0, np.uint8)]
        self._segments: list[Segment] = []

    def next(self, starts: Starts, ends: Starts, cuts: list[Cut]) -> Window | None:
        """The next window, or None at the end of all sources.

        Records ``starts`` to ``ends`` (words, rising) of the current window are copied to its start, without gaps.
        ``cuts`` says how far each segment was taken in.
        """
        old = self._buffers[0]
        for segment, cut in zip(self._segments, cuts, strict=True):
            _leave(segment, cut, old)
        alive = [source for source in self.sources if not source.done]
        if not alive and len(starts) == 0:
            return None
        middle = sorted(source.last_ns for source in alive)[len(alive) // 2] if alive else 0
        chosen = [source for source in alive if source.last_ns <= middle]
        fresh = [source.room(WINDOW_BYTES // len(chosen)) for source in chosen]
        kept = 8 * int((ends - starts).sum())
        new = self._room(kept + sum(len(source.tail) for source in chosen) + sum(fresh) + 8 * len(chosen) + PAD_BYTES)
        _copy_runs(old, new, starts, ends)
        self._segments = []
        filled = kept
        for source, size in zip(chosen, fresh, strict=True):
            segment = self._fill(source, new, filled, size)
            self._segments.append(segment)
            filled = (segment.filled + 7) // 8 * 8
        for source in alive:
            if source not in chosen:
                source.tail = source.tail.copy()
        self._buffers = [new, old]
        last = all(source.done for source in self.sources)
        return Window(new.view(np.uint64), kept // 8, self._segments, last)

    def _fill(self, source: Source, new: Bytes, begin: int, size: int) -> Segment:
        tail = source.tail
        new[begin : begin + len(tail)] = tail
        base = source.place - len(tail) - begin
        begin += len(tail)
        count = self._read(source, new[begin : begin + size])
        if count < size:
            source.done = True
        source.place += count
        first = (begin - len(tail)) // 8
        return Segment(source, first, (begin + count) // 8, begin + count, base)

    def _room(self, size: int) -> Bytes:
        spare = self._buffers[1]
        if len(spare) >= size:
            return spare
        return np.zeros((size + (1 << 20) - 1) >> 20 << 20, np.uint8)

    def _read(self, source: Source, into: Bytes) -> int:
        return source.feed.readinto(into.data)


def _leave(segment: Segment, cut: Cut, old: Bytes) -> None:
    """Note what of ``segment`` its source still needs, and whether more can come of it."""
    source = segment.source
    begin = 8 * cut.stop + cut.skip_bytes
    source.tail = old[min(begin, segment.filled) : segment.filled]
    if begin > segment.filled:
        source.place += source.feed.skip(begin - segment.filled)
    if cut.unpack:
        source.unpack(cut.unpack)
        source.done = False
    elif source.done and cut.skip_bytes and len(source.tail) >= 8:
        source.done = False  # beyond the payload there are records
    elif source.done:
        source.tail = source.tail[:0]


def _copy_runs(old: Bytes, new: Bytes, starts: Starts, ends: Starts) -> None:
    """Copy records end to end; those that lie end to end already in one piece."""
    if len(starts) == 0:
        return
    breaks = np.flatnonzero(starts[1:] != ends[:-1])
    at = 0
    if len(breaks) > _MAX_RUNS:
        words = old.view(np.uint64)
        lengths = ends - starts
        offsets = np.cumsum(lengths) - lengths
        index = np.arange(int(lengths.sum())) + np.repeat(starts - offsets, lengths)
        new.view(np.uint64)[: len(index)] = words[index]
        return
    first = np.concatenate(([0], breaks + 1))
    final = np.concatenate((breaks, [len(starts) - 1]))
    for begin, end in zip(starts[first].tolist(), ends[final].tolist(), strict=True):
        new[at : at + 8 * (end - begin)] = old[8 * begin : 8 * end]
        at += 8 * (end - begin)
