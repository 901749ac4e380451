"""The samples of a window, and the order in which they go out."""

from typing import NamedTuple

import numpy as np

from tracekit.formats._comm import Codes
from tracekit.formats._event_rows import Places
from tracekit.formats._perf_ids import EventIds
from tracekit.formats._perf_index import Starts, Words
from tracekit.formats._perf_rest import Kept

_LOW = np.uint64(0xFFFFFFFF)


class Samples(NamedTuple):
    """Samples of a window, in the order of the file; one entry for each."""

    starts: Starts  # words
    ends: Starts
    event: np.ndarray  # place in the list of attributes
    time_ns: Places
    seq: Places  # offset in the file

    def pick(self, which: np.ndarray) -> "Samples":
        """Some of them, by mask."""
        return self if which.all() else Samples(*(column[which] for column in self))


class Ordered(NamedTuple):
    """Samples by event; those of an event by (time, cpu, place in the file)."""

    words: Words
    starts: Starts
    seq: Places
    comm: Codes  # int32[n]; −1: unknown
    chain: np.ndarray | None  # uint32[n] numbers of call chains; None: no event has any
    reading: dict[str, Kept] = {}  # noqa: RUF012 - never changed. Columns of what the samples read

    def pick(self, rows: slice | np.ndarray) -> "Ordered":
        """Some of them."""
        chain = None if self.chain is None else self.chain[rows]
        reading = {name: kept.pick(rows) for name, kept in self.reading.items()}
        return Ordered(self.words, self.starts[rows], self.seq[rows], self.comm[rows], chain, reading)

    @property
    def ends(self) -> Starts:
        """Where the records end, in words."""
        return self.starts + (self.words[self.starts] >> np.uint64(51)).astype(np.int64)


def by_event(words: Words, samples: Samples, order: Places, ids: EventIds) -> tuple[Places, list[int]]:
    """``order`` by time → order by event, of an event by (time, cpu, place in the file); and where each event begins.

    Sorted all at once: of 75 events in windows of 24 MB that takes half the time of sorting each.
    """
    time_ns = samples.time_ns.take(order)
    same = time_ns[1:] == time_ns[:-1]
    if same.any():
        ties = np.flatnonzero(np.concatenate(([False], same)) | np.concatenate((same, [False])))
        tied = order[ties]
        cpu = ids.sample_word(words, samples.starts[tied], samples.event[tied], "cpu") & _LOW
        order[ties] = tied[np.lexsort((cpu, time_ns[ties]))]
    event = samples.event.take(order)
    edges = np.concatenate(([0], np.cumsum(np.bincount(event, minlength=len(ids.layouts)))))
    return order.take(np.argsort(event, kind="stable")), edges.tolist()


def tids(words: Words, samples: Samples, ids: EventIds) -> np.ndarray:
    """int32[n] thread of each sample; −1: not recorded."""
    word = ids.sample_word(words, samples.starts, samples.event, "tid", np.uint64(0xFFFFFFFFFFFFFFFF))
    return word.view(np.int32)[1::2]
