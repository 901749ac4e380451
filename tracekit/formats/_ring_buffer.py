"""Pages of the kernel's ring buffer → where their events are, and when.

All pages of a batch are walked in lockstep: one step of the loop takes the next event of every page, so Python's cost
is shared by thousands of pages (1,820 MB/s against 191 MB/s event by event, PEERS.md 3).

Source: kernel/trace/ring_buffer.c rb_event_length(), rb_update_read_stamp(), rb_fix_abs_ts();
include/linux/ring_buffer.h enum ring_buffer_type; libtraceevent kbuffer-parse.c; MODEL.md F.6.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tracekit._columns import Bytes

MAX_DATA, PADDING, TIME_EXTEND, TIME_STAMP = 28, 29, 30, 31

_COMMIT_MASK = (1 << 27) - 1
_MISSED = 1 << 31
_MISSED_STORED = 1 << 30
_DELTA_BITS = 27
_STAMP_TOP = np.uint64(0x1F << 59)
_STAMP_PAGES = 512
"""Of so many pages at a time times are added up: what that takes then stays in the second level cache."""
_ODD = 1 << 40
"""How far it is to the next event where the next word knows: beyond any page."""
_LEAST_BYTES = 8  # an event begins with type, flags, preempt_count, pid

Int64s = np.ndarray[tuple[int], np.dtype[np.int64]]
UInt64s = np.ndarray[tuple[int], np.dtype[np.uint64]]
Lengths = np.ndarray[tuple[int], np.dtype[np.uint8]]
"""Words of an event's data, what it was rounded up to included; 0: the word before it says, see ``sizes``."""


class PageLayout(NamedTuple):
    """How pages of a buffer look: u64 time stamp, long commit, data."""

    page_bytes: int  # of a sub-buffer: a multiple of 256
    long_bytes: int  # of the kernel
    big_endian: bool

    @property
    def head_bytes(self) -> int:
        """Bytes before the first event."""
        return 8 + self.long_bytes

    def dtype(self, code: str) -> np.dtype:
        """A NumPy type in the byte order of the pages."""
        return np.dtype((">" if self.big_endian else "<") + code)


class PageEvents(NamedTuple):
    """Events of many pages: page by page, in the order of each page."""

    place: Int64s  # of the event's data (common_type, …), in words of four bytes from the start of the data given
    length: Lengths
    stamp: UInt64s  # raw
    counts: Int64s  # per page: how many of the events are its
    missed: Int64s  # per page: events lost before it; 0: none, −1: unknown number
    first_stamp: UInt64s  # per page: what stands in its head
    problems: dict[str, int]

    @property
    def page(self) -> Int64s:
        """int64[n] page of each event."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


class _Heads(NamedTuple):
    """int64 per page, in words of four bytes from the start of the data given."""

    first: Int64s
    end: Int64s
    missed: Int64s
    stamp: UInt64s
    damaged: int


def decode_pages(data: Bytes, layout: PageLayout) -> PageEvents:
    """Find the events of ``data``, a whole number of pages; it must be contiguous and aligned to eight bytes."""
    words = data.view(layout.dtype("u4"))
    heads = _heads(data, layout)
    place, counts, broken = _walk(words, heads, layout)
    kind, stamp = _kinds_and_stamps(words, place, counts, heads.stamp, layout)
    if len(kind) and kind.max() > MAX_DATA:
        place, kind, stamp, counts = _without(np.flatnonzero(kind > MAX_DATA), place, kind, stamp, counts)
    place += 1
    problems = {"damaged_page": heads.damaged, "event_beyond_page": broken}
    if len(kind) and kind.min() < _LEAST_BYTES // 4:
        place[kind == 0] += 1  # the word of their length
        short = np.flatnonzero(sizes(words, place, kind) < _LEAST_BYTES)
        problems["event_too_short"] = len(short)
        place, kind, stamp, counts = _without(short, place, kind, stamp, counts)
    said = {kind: number for kind, number in problems.items() if number}
    return PageEvents(place, kind, stamp, counts, heads.missed, heads.stamp, said)


def sizes(words: np.ndarray, place: Int64s, length: Lengths) -> Int64s:
    """int64[n] bytes of the data of events at ``place`` in the ``words`` of their pages."""
    size = length.astype(np.int64)
    size <<= 2
    stored = np.flatnonzero(length == 0)
    size[stored] = words.take(place[stored] - 1).astype(np.int64) - 4
    return size


def _kinds_and_stamps(
    words: np.ndarray, place: Int64s, counts: Int64s, base: UInt64s, layout: PageLayout
) -> tuple[np.ndarray, UInt64s]:
    """uint8[n] type_len and uint64[n] time of each event, some pages at a time."""
    kind, stamp = np.empty(len(place), np.uint8), np.empty(len(place), np.uint64)
    ends = np.cumsum(counts)
    for first in range(0, len(counts), _STAMP_PAGES):
        pages = slice(first, first + _STAMP_PAGES)
        some = slice(int(ends[first] - counts[first]), int(ends[pages][-1]))
        kind[some], delta = _split(words.take(place[some]), layout)
        stamp[some] = _stamps(words, place[some], counts[pages], kind[some], delta, base[pages])
    return kind, stamp


def _without(
    rows: Int64s, place: Int64s, kind: Lengths, stamp: UInt64s, counts: Int64s
) -> tuple[Int64s, Lengths, UInt64s, Int64s]:
    """The events that are not at ``rows``, and how many of them each page has."""
    if len(rows) == 0:
        return place, kind, stamp, counts
    pages = np.searchsorted(np.cumsum(counts), rows, "right")
    kept = np.ones(len(place), bool)
    kept[rows] = False
    which = np.flatnonzero(kept)  # takes at 1 ns each, a mask 4
    return place.take(which), kind.take(which), stamp.take(which), counts - np.bincount(pages, minlength=len(counts))


def _heads(data: Bytes, layout: PageLayout) -> _Heads:
    rows = data.reshape(-1, layout.page_bytes)
    stamp = np.ascontiguousarray(rows[:, :8]).view(layout.dtype("u8")).reshape(-1).astype(np.uint64)
    commit = np.ascontiguousarray(rows[:, 8 : layout.head_bytes]).view(layout.dtype(f"u{layout.long_bytes}"))
    commit = commit.reshape(-1).astype(np.uint64).view(np.int64)
    used = commit & _COMMIT_MASK
    room = layout.page_bytes - layout.head_bytes
    bad = used > room
    used = np.where(bad, 0, used)
    missed = np.where(commit & _MISSED, -1, 0)
    stored = np.flatnonzero((commit & (_MISSED | _MISSED_STORED)) == _MISSED | _MISSED_STORED)
    stored = stored[~bad[stored] & (used[stored] + layout.long_bytes <= room)]
    if len(stored):
        place = layout.head_bytes + used[stored]
        parts = rows[stored[:, None], place[:, None] + np.arange(layout.long_bytes)]
        count = np.ascontiguousarray(parts).view(layout.dtype(f"u{layout.long_bytes}")).reshape(-1)
        missed[stored] = np.minimum(count.astype(np.uint64), np.uint64(1 << 62)).astype(np.int64)
    first = np.arange(len(rows), dtype=np.int64) * (layout.page_bytes // 4) + layout.head_bytes // 4
    return _Heads(first, first + used // 4, missed, stamp, int(np.count_nonzero(bad)))


def _split(head: np.ndarray, layout: PageLayout) -> tuple[np.ndarray, np.ndarray]:
    """type_len and time_delta of uint32[n]; the bit-fields change ends with the byte order."""
    if layout.big_endian:
        return head >> _DELTA_BITS, head & ((1 << _DELTA_BITS) - 1)
    return head & 31, head >> 5


def _walk(words: np.ndarray, heads: _Heads, layout: PageLayout) -> tuple[Int64s, Int64s, int]:
    """int64[n] places of all events, padding and stamps too; how many each page has; how many pages are damaged."""
    advance = np.full(32, _ODD, np.int64)  # in words
    advance[1 : MAX_DATA + 1] = np.arange(2, MAX_DATA + 2)
    advance[[TIME_EXTEND, TIME_STAMP]] = 2
    alive = np.flatnonzero(heads.first < heads.end)
    place, end = heads.first[alive], heads.end[alive]
    steps: list[tuple[Int64s, Int64s]] = []
    broken: list[Int64s] = []
    while len(alive):  # each call here costs a microsecond for each event of the longest page: there are few
        head = words.take(place)
        following = advance.take(head >> _DELTA_BITS if layout.big_endian else head & 31)
        following += place
        steps.append((place, alive))
        more = following < end
        if np.count_nonzero(more) == len(more):  # a third of the time of all()
            place = following
            continue
        beyond = following > end
        if beyond.any():
            odd = np.flatnonzero(following >= _ODD)
            following[odd] = place[odd] + _odd_step(words, place[odd], end[odd], *_split(head[odd], layout))
            more, beyond = following < end, following > end
            broken.append(alive[beyond])
        place, end, alive = following[more], end[more], alive[more]
    return _by_page(steps, heads, np.concatenate(broken) if broken else np.empty(0, np.int64), words, layout)


def _odd_step(words: np.ndarray, place: Int64s, end: Int64s, kind: Int64s, delta: Int64s) -> Int64s:
    """Words to the next event where these do not follow from type_len; beyond the page if it is damaged or ends."""
    length = words.take(np.minimum(place + 1, len(words) - 1)).astype(np.int64)
    wrong = (place + 1 >= end) | ((kind == 0) & (length < 4)) | ((kind == PADDING) & (delta == 0))
    return np.where(wrong, end + 1 - place, 1 + (length + 3) // 4)


def _by_page(
    steps: list[tuple[Int64s, Int64s]], heads: _Heads, broken: Int64s, words: np.ndarray, layout: PageLayout
) -> tuple[Int64s, Int64s, int]:
    """From step by step to page by page, without the last event of the pages ``broken``: it goes beyond its page."""
    counts = np.zeros(len(heads.first), np.int64)
    for length, (alive, following) in enumerate(pairwise([*(alive for _, alive in steps), counts[:0]]), 1):
        if following is not alive:  # pages end here
            counts[alive] = length
    begin = np.cumsum(counts) - counts
    places = np.empty(int(counts.sum()), np.int64)
    latest, into = None, begin
    for number, (place, alive) in enumerate(steps):
        if alive is not latest:
            latest, into = alive, begin.take(alive) + number
        places[into] = place
        into += 1
    if len(broken) == 0:
        return places, counts, 0
    last = begin[broken] + counts[broken] - 1
    kind, delta = _split(words.take(places[last]), layout)
    # padding that fills the page is its regular end
    damaged = int(np.count_nonzero((kind != PADDING) | (delta != 0)))
    counts[broken] -= 1
    return np.delete(places, last), counts, damaged


def _stamps(  # noqa: PLR0913, PLR0917 - the columns of the events
    words: np.ndarray, place: Int64s, counts: Int64s, kind: np.ndarray, delta: np.ndarray, base: UInt64s
) -> UInt64s:
    """uint64[n] time of each event: the page's, and all deltas up to it. Sums wrap around as the kernel's do."""
    step = delta.astype(np.uint64)
    wide = np.flatnonzero(kind >= TIME_EXTEND)
    absolute, stamped = wide, step[:0]
    if len(wide):
        step[wide] |= words.take(place[wide] + 1).astype(np.uint64) << np.uint64(_DELTA_BITS)
        absolute = wide[kind[wide] == TIME_STAMP]
        stamped = step[absolute]
        step[absolute] = 0
    total = np.cumsum(step, dtype=np.uint64)
    if len(place) == 0:
        return total
    before = np.concatenate((np.zeros(1, np.uint64), total))[np.cumsum(counts) - counts]
    stamp: UInt64s = np.repeat(base - before, counts)
    stamp += total
    if len(absolute):
        ends = np.cumsum(counts)
        page = np.searchsorted(ends, absolute, "right")
        _set_absolute(stamp, total, absolute, ends[page], _whole(stamped, base[page]))
    return stamp


def _whole(stamp: UInt64s, base: UInt64s) -> UInt64s:
    """An absolute stamp has 59 bits; the upper five are the page's, or one more if that would lead back in time."""
    top = base & _STAMP_TOP
    whole = (stamp & ~_STAMP_TOP) | top
    return np.where((top != 0) & (whole < base), whole + np.uint64(1 << 59), whole)


def _set_absolute(stamp: UInt64s, total: UInt64s, absolute: Int64s, page_end: Int64s, value: UInt64s) -> None:
    """From each absolute stamp to the next, or to the end of its page, count from there."""
    length = np.minimum(np.append(absolute[1:], len(stamp)), page_end) - absolute
    after = np.repeat(absolute - (np.cumsum(length) - length), length)
    after += np.arange(len(after))
    stamp[after] = np.repeat(value - total[absolute], length) + total[after]
