"""Samples of an event are put by over several windows, as columns, until there are many.

A batch of columns costs half a millisecond, however few rows it has: of 12 million samples of 75 events in windows of
24 MB, 2,700 batches; put by, 250. Measured on 1.1 GB: a fifth of all CPU.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from tracekit.formats._event_rows import joined as columns_of
from tracekit.formats._perf_events import PerfEvent

BATCH_BYTES = 12 << 20
BUDGET_BYTES = 64 << 20
"""Of all that is put by; beyond that the largest go out."""


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


class _Pile:
    """What was put by of one event; to be touched under its lock only."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.parts: list[Part] = []
        self.nbytes = 0

    def take(self, *, keep_last: bool) -> list[Part]:
        kept = self.parts[-1:] if keep_last and len(self.parts) > 1 else []
        taken = self.parts[: len(self.parts) - len(kept)]
        self.parts = kept
        self.nbytes = sum(part.nbytes for part in kept)
        return taken


class Backlog:
    """What was put by of all events; ``write`` gets what goes out, of an event one call at a time."""

    def __init__(self, write: Callable[[PerfEvent, list[Part]], None]) -> None:
        self.write = write
        self._piles: dict[PerfEvent, _Pile] = {}

    def put(self, event: PerfEvent, part: Part) -> None:
        """Put ``part`` by; from any thread."""
        pile = self._piles.setdefault(event, _Pile())
        with pile.lock:
            pile.parts.append(part)
            pile.nbytes += part.nbytes
            if pile.nbytes >= BATCH_BYTES:
                self._write(event, pile, keep_last=True)

    def _write(self, event: PerfEvent, pile: _Pile, *, keep_last: bool) -> None:
        """All parts but the last, if it is to be kept: rows that come late are seldom more than one part late."""
        parts = pile.take(keep_last=keep_last)
        if parts:
            self.write(event, parts)

    def _take(self, event: PerfEvent, *, keep_last: bool) -> None:
        pile = self._piles[event]
        with pile.lock:
            self._write(event, pile, keep_last=keep_last)

    def excess(self) -> list[Callable[[], None]]:
        """What is to be done, in any order, to stay within the memory."""
        total = sum(pile.nbytes for pile in self._piles.values())
        found: list[Callable[[], None]] = []
        if total <= BUDGET_BYTES:
            return found
        for event, pile in sorted(self._piles.items(), key=lambda item: -item[1].nbytes):
            found.append(partial(self._take, event, keep_last=True))
            total -= pile.nbytes
            if total <= BUDGET_BYTES // 2:
                break
        return found

    def rest(self) -> list[Callable[[], None]]:
        """What is to be done at the end, in any order; the largest first."""
        piles = sorted(self._piles.items(), key=lambda item: -item[1].nbytes)
        return [partial(self._take, event, keep_last=False) for event, _ in piles]
