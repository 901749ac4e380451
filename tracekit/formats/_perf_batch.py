"""Columns of samples of one event, of a window or of many."""

from typing import NamedTuple

import numpy as np

from tracekit.formats._event_rows import joined as columns_of


class Part(NamedTuple):
    """Some samples of one event from one window, in order of time."""

    common: list[np.ndarray]  # time_ns int64[n]; cpu, pid, tid int32[n], −1: not recorded
    fields: list[np.ndarray]  # see EventRows.extract
    seq: np.ndarray  # int64[n]
    comm: np.ndarray  # int32[n], place in the names
    chain: np.ndarray | None  # uint32[n]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(column.nbytes for column in (*self.common, *self.fields)) + 16 * len(self.seq)

    def pick(self, rows: np.ndarray) -> "Part":
        """Some of them, or another order."""
        chain = None if self.chain is None else self.chain[rows]
        common, fields = ([column[rows] for column in columns] for columns in (self.common, self.fields))
        return Part(common, fields, self.seq[rows], self.comm[rows], chain)


def joined(parts: list[Part]) -> Part:
    """All in one."""
    if len(parts) == 1:
        return parts[0]
    common, fields = columns_of([part.common for part in parts]), columns_of([part.fields for part in parts])
    seq, comm = np.concatenate([part.seq for part in parts]), np.concatenate([part.comm for part in parts])
    chains = [part.chain for part in parts if part.chain is not None]
    return Part(common, fields, seq, comm, np.concatenate(chains) if chains else None)
