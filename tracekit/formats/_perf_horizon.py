"""Up to which time all records of a perf trace have come.

Records are in order of time only within a CPU. When perf writes FINISHED_ROUND for the second time after a record,
nothing older than that record can come any more (tools/perf/util/session.c, ordered-events.c). Where each CPU has a
stream of its own (perf record --threads), it is what all streams have passed.
"""

from itertools import pairwise

import numpy as np

from tracekit.formats._event_rows import Places
from tracekit.formats._perf_sideband import Records
from tracekit.formats._perf_stream import SOURCE_SHIFT, Source
from tracekit.formats._perf_window import Samples

LAST = np.iinfo(np.int64).max


class Horizon:
    """Moves on with each window."""

    def __init__(self) -> None:
        self.time_ns = -1
        self._next_flush = 0  # perf's ordered_events.next_flush
        self._max_time = 0

    def follow_rounds(self, samples: Samples, records: Records, rounds: Places, fresh: int) -> None:
        """Move on as perf does at each of ``rounds``; places in the file, as ``fresh``, from where on it is new."""
        edges = np.concatenate(([fresh], rounds[-2:], [LAST]))
        peaks = []
        for begin, end in pairwise(edges.tolist()):
            peak = self._max_time
            for rows in (samples, records):
                low, high = np.searchsorted(rows.seq, (begin, end))
                peak = max(peak, int(rows.time_ns[low:high].max(initial=0)))
            self._max_time = peak
            peaks.append(peak)
        if len(rounds) == 1:
            self.time_ns = max(self.time_ns, self._next_flush)
        elif len(rounds) > 1:
            self.time_ns = max(self.time_ns, peaks[0])
        if len(rounds):
            self._next_flush = peaks[-2]

    def follow_sources(self, samples: Samples, records: Records, sources: list[Source]) -> None:
        """Move on to where all of ``sources`` have come."""
        latest = np.full(len(sources), -1, np.int64)
        for rows in (samples, records):
            np.maximum.at(latest, rows.seq >> SOURCE_SHIFT, rows.time_ns)
        for source, time_ns in zip(sources, latest.tolist(), strict=True):
            source.last_ns = max(source.last_ns, time_ns)
        self.time_ns = min((source.last_ns for source in sources if not source.done), default=LAST)
