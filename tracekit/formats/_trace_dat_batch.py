"""Events of one kind, of a window or of many, and copies of their bytes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tracekit._columns import Bytes
from tracekit.formats._event_rows import Places, Rows

_SLACK_BYTES = 1 << 16
"""Behind bytes that were put together, so that rows may be copied in their full width wherever they stand."""


class Events(NamedTuple):
    """Events in order of time; parallel arrays."""

    arena: Bytes
    at: Places  # of each event's data in the arena
    size: Places
    time_ns: Places
    cpu: np.ndarray  # int32
    seq: Places
    chain: np.ndarray | None  # uint32, NO_CHAIN: none; None: none has any
    matrix: np.ndarray | None = None  # uint8[n, width]: the arena, if it holds copies of these events, a row each

    def pick(self, which: np.ndarray | slice) -> "Events":
        """Those at the places ``which``."""
        columns = (column if column is None else column[which] for column in self[1:])
        return Events(self.arena, *columns)  # type: ignore[arg-type]

    def copied(self, width: int) -> "Events":
        """The same, with nothing but the first ``width`` bytes of each event to keep alive."""
        matrix = gather(self.arena, self.at, width)
        at = np.arange(len(matrix), dtype=np.int64) * matrix.shape[1]
        size, time_ns, cpu, seq = (column.copy() for column in (self.size, self.time_ns, self.cpu, self.seq))
        chain = None if self.chain is None else self.chain.copy()
        return Events(matrix.reshape(-1), at, size, time_ns, cpu, seq, chain, matrix)

    def rows(self, row_bytes: int) -> Rows:
        """At least the first ``row_bytes`` of each event."""
        return Rows(gather(self.arena, self.at, row_bytes) if self.matrix is None else self.matrix, 0)


def joined(parts: Sequence[Events]) -> Events:
    """All ``parts`` in one."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [len(part.arena) for part in parts])
    arena = np.concatenate([*(part.arena for part in parts), np.zeros(_SLACK_BYTES, np.uint8)])
    at = np.concatenate([part.at + start for part, start in zip(parts, starts.tolist(), strict=False)])
    size, time_ns, cpu, seq = (np.concatenate([part[column] for part in parts]) for column in range(2, 6))
    return Events(arena, at, size, time_ns, cpu, seq, joined_chains([(len(part.at), part.chain) for part in parts]))


def joined_chains(parts: Sequence[tuple[int, np.ndarray | None]]) -> np.ndarray | None:
    """Columns ``chain`` of so many events each, end to end."""
    if all(chain is None for _, chain in parts):
        return None
    return np.concatenate([no_chains(count) if chain is None else chain for count, chain in parts])


NO_CHAIN = 0xFFFFFFFF


def no_chains(count: int) -> np.ndarray:
    """A column that says of no event that it has a call chain."""
    return np.full(count, NO_CHAIN, np.uint32)


def gather(arena: Bytes, at: Places, row_bytes: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """uint8[n, width]: copies of the first bytes of each event, one memcpy each; events are aligned to four bytes."""
    width = (row_bytes + 3) & ~3
    view: np.ndarray = np.ndarray(((len(arena) - width) // 4 + 1,), np.dtype((np.void, width)), arena.data, 0, (4,))
    # not take(): that first copies the view whole, each event many times over
    rows: np.ndarray = view[at >> 2].view(np.uint8)
    return rows.reshape(len(at), width)
