"""What the header of a perf.data file says, or has said by now, of the events in it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tracekit.formats._perf_events import PerfEvent, perf_events
from tracekit.formats._perf_header import PerfHeader
from tracekit.formats._perf_ids import EventIds
from tracekit.formats._perf_sample import READ


class Known:
    """The header, the events of its attributes, and how to tell whose a record is."""

    def __init__(self, header: PerfHeader, globs: Sequence[str]) -> None:
        self._globs = globs
        self.events: list[PerfEvent] = []
        self.learn(header)

    def learn(self, header: PerfHeader) -> None:
        """Take in what the header says by now."""
        self.header = header
        self.events = perf_events(header, self.events)
        self.wanted = np.array([event.wanted(self._globs) for event in self.events])
        reads = np.array([bool(event.layout.sample_type & READ) for event in self.events])
        self.reads: np.ndarray | None = reads if reads.any() else None
        """Whose samples read counters, of others too: all of them are followed if any is wanted."""
        self.ids = EventIds(header.attrs, self.wanted | (reads & (self.wanted & reads).any()))
        self._owners = Counter(event.table for event in self.events)

    def alone(self, event: PerfEvent) -> bool:
        """Whether no other event has the same table."""
        return self._owners[event.table] == 1
