"""Call chains of samples → numbers of distinct chains."""

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats import Sink
from tracekit.formats._perf_index import Starts, Words
from tracekit.formats._perf_sample import CALLCHAIN, SampleLayout, locate
from tracekit.formats._perf_window import Samples

NONE = 0xFFFFFFFF
MAX_REMEMBERED = 1 << 19
"""Distinct chains remembered at a time (some 100 MB); after that many, one seen before may get a second number."""


def _mix(values: Words) -> Words:
    """Spread the bits of addresses, which differ in few of them (murmur3's finaliser)."""
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    return values ^ (values >> np.uint64(33))


# of splitmix64: numpy.random alone takes 12 ms to import
_SEEDS = _mix(np.arange(1, (2 << 16) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).reshape(2, -1) | np.uint64(
    1
)


class CallchainIds:
    """Numbers distinct call chains in the order of the file and writes each to ``callchains`` once."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._ids: dict[tuple[int, int, int], int] = {}
        self._count = 0

    def ids(self, words: Words, samples: Samples, which: np.ndarray, layouts: list[SampleLayout]) -> np.ndarray | None:
        """uint32[n_samples] numbers of the chains of ``samples``, NONE without; None if no event has any.

        Only those at ``which`` are numbered, in the order of the file.
        """
        with_chain = [number for number, layout in enumerate(layouts) if layout.sample_type & CALLCHAIN]
        if not with_chain:
            return None
        ids = np.full(len(samples.starts), NONE, np.uint32)
        which = np.sort(which)
        for layout in _distinct(layouts, with_chain):
            numbers = [number for number in with_chain if layouts[number] == layout]
            mine = which[np.isin(samples.event[which], numbers)]
            found = locate(words, samples.starts[mine], samples.ends[mine], layout)
            assert found.chain is not None
            assert found.chain_count is not None
            ids[mine] = self.number(words, found.chain, found.chain_count)
        return ids

    def number(self, words: Words, chain: Starts, count: Starts) -> np.ndarray:
        """uint32[n] numbers of the chains ``words[chain[i]:chain[i] + count[i]]``, NONE where that is empty."""
        ids = np.full(len(chain), NONE, np.uint32)
        filled = np.flatnonzero(count > 0)
        if len(filled) == 0:
            return ids
        chain, count = chain[filled], count[filled]
        offsets = np.zeros(len(chain) + 1, np.int64)
        np.cumsum(count, out=offsets[1:])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], count)
        ips = words[np.repeat(chain, count) + within]
        first, second = (np.add.reduceat(_mix(ips) * seeds[within], offsets[:-1]) for seeds in _SEEDS)
        keys = np.stack((first, second, count.astype(np.uint64)), axis=1)
        distinct, seen, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        by_place = np.argsort(seen)
        numbers = np.empty(len(distinct), np.uint32)
        fresh = []
        if len(self._ids) > MAX_REMEMBERED:
            self._ids.clear()
        for place, key in zip(by_place.tolist(), distinct[by_place].tolist(), strict=True):
            number = self._ids.setdefault(tuple(key), self._count)
            if number == self._count:
                self._count += 1
                fresh.append(int(seen[place]))
            numbers[place] = number
        self._write(ips, offsets, np.array(fresh, np.int64))
        ids[filled] = numbers[inverse.reshape(-1)]
        return ids

    def _write(self, ips: Words, offsets: Starts, fresh: np.ndarray) -> None:
        if len(fresh) == 0:
            return
        lengths = offsets[fresh + 1] - offsets[fresh]
        ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        index = np.repeat(offsets[fresh] - ends[:-1], lengths) + np.arange(ends[-1])
        first = self._count - len(fresh)
        ids = np.arange(first, self._count, dtype=np.uint32)
        batch = pa.RecordBatch.from_arrays(
            [_columns.numbers(ids), _columns.lists(ips[index], ends)], ["callchain_id", "ips"]
        )
        self.sink.append("callchains", batch)


def _distinct(layouts: list[SampleLayout], numbers: list[int]) -> list[SampleLayout]:
    found: list[SampleLayout] = []
    for number in numbers:
        if layouts[number] not in found:
            found.append(layouts[number])
    return found
