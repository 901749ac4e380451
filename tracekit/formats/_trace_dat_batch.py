"""Events of a window, and what is taken out of them while they are in the cache."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tracekit import _columns
from tracekit._columns import Bytes
from tracekit.formats._event_rows import NO_RAWS, Places, Raws, Rows
from tracekit.formats._event_rows import joined as joined_columns
from tracekit.formats._ring_buffer import Lengths, sizes

_MOST_PADDING = 4
"""Whole events are copied in rows as wide as the longest, unless that makes so many times their bytes."""
NO_CHAIN = 0xFFFFFFFF


class Arena(NamedTuple):
    """The pages of a window."""

    data: Bytes  # behind the pages come zeros, so that rows may be copied in their full width wherever they stand
    words: np.ndarray[tuple[int], np.dtype[np.uint32]]  # the same in the byte order of the trace
    page_words: int  # of four bytes each
    cpu: np.ndarray[tuple[int], np.dtype[np.int32]]  # of each page
    shift: Places  # of each page: from the place of its bytes here to their position in the source


class Events(NamedTuple):
    """Events in order of time; parallel arrays."""

    arena: Arena
    place: Places  # of each event's data, in words
    length: Lengths
    time_ns: Places
    chain: np.ndarray | None  # uint32, NO_CHAIN: none; None: none has any

    def pick(self, which: np.ndarray | slice) -> "Events":
        """Those at the places ``which``."""
        chain = None if self.chain is None else self.chain[which]
        return Events(self.arena, self.place[which], self.length[which], self.time_ns[which], chain)

    @property
    def size(self) -> Places:
        """Bytes of each."""
        return sizes(self.arena.words, self.place, self.length)

    def sources(self) -> tuple[np.ndarray, Places]:
        """int32[n] CPU and int64[n] position in the source of each; that its page says it is less to keep and sort."""
        page = self.place // self.arena.page_words
        seq = self.place << 2
        seq += self.arena.shift.take(page)
        return self.arena.cpu.take(page), seq

    def rows(self, row_bytes: int) -> Rows:
        """At least the first ``row_bytes`` of each event."""
        return Rows(gather(self.arena.data, self.place, row_bytes), 0)

    def raws(self) -> Raws:
        """Copies of the whole of each event."""
        size = self.size
        longest = int(size.max())
        if longest * len(size) > _MOST_PADDING * int(size.sum()):
            begin = self.place << 2
            flat, offsets = _columns.pick(self.arena.data, begin, begin + size)
            return Raws(flat, offsets[:-1], size)
        matrix = gather(self.arena.data, self.place, longest)
        return Raws(matrix.reshape(-1), np.arange(len(matrix), dtype=np.int64) * matrix.shape[1], size)


class Part(NamedTuple):
    """Columns of some events of one kind, in order of time."""

    common: list[np.ndarray]  # time_ns int64[n]; cpu, tid int32[n]; seq int64[n]
    fields: list[np.ndarray]  # see EventRows.extract
    chain: np.ndarray | None  # uint32[n]
    raws: Raws  # the events themselves, if there is more to be taken out of them

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(column.nbytes for column in (*self.common, *self.fields, *self.raws))


def joined(parts: Sequence[Part]) -> Part:
    """All ``parts`` in one."""
    if len(parts) == 1:
        return parts[0]
    common, fields = joined_columns([part.common for part in parts]), joined_columns([part.fields for part in parts])
    chain = joined_chains([(len(part.common[0]), part.chain) for part in parts])
    return Part(common, fields, chain, _joined_raws([part.raws for part in parts]))


def _joined_raws(parts: Sequence[Raws]) -> Raws:
    if parts[0] is NO_RAWS:
        return NO_RAWS
    ends = np.cumsum([len(part.data) for part in parts]).tolist()
    at = [part.at + (end - len(part.data)) for part, end in zip(parts, ends, strict=True)]
    data, size = np.concatenate([part.data for part in parts]), np.concatenate([part.size for part in parts])
    return Raws(data, np.concatenate(at), size)


def joined_chains(parts: Sequence[tuple[int, np.ndarray | None]]) -> np.ndarray | None:
    """Columns ``chain`` of so many events each, end to end."""
    if all(chain is None for _, chain in parts):
        return None
    return np.concatenate([no_chains(count) if chain is None else chain for count, chain in parts])


def no_chains(count: int) -> np.ndarray:
    """A column that says of no event that it has a call chain."""
    return np.full(count, NO_CHAIN, np.uint32)


def gather(data: Bytes, place: Places, row_bytes: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """uint8[n, width]: copies of the first bytes of each event, one memcpy each."""
    width = (row_bytes + 3) & ~3
    view: np.ndarray = np.ndarray(((len(data) - width) // 4 + 1,), np.dtype((np.void, width)), data.data, 0, (4,))
    # not take(): that first copies the view whole, each event many times over
    rows: np.ndarray = view[place].view(np.uint8)
    return rows.reshape(len(place), width)
