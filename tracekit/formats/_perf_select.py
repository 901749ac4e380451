"""Leaves out samples that were not asked for before anything of them is decoded."""

import numpy as np

from tracekit.formats import ReadOptions
from tracekit.formats._event_rows import Places
from tracekit.formats._perf_ids import EventIds
from tracekit.formats._perf_index import Words
from tracekit.formats._perf_window import Samples

_LOW = np.uint64(0xFFFFFFFF)


class Selection:
    """The samples of some CPUs, tasks and times."""

    def __init__(self, options: ReadOptions) -> None:
        self.from_ns, self.to_ns = options.from_ns, options.to_ns
        self.cpus = None if options.cpus is None else np.array(sorted(options.cpus), np.int64)
        self.pids = None if options.pids is None else np.array(sorted(options.pids), np.int64)

    def pick(self, words: Words, samples: Samples, ids: EventIds) -> Samples:
        """Those of ``samples`` that are wanted; what has no CPU or task is of none."""
        if self.from_ns is not None:
            samples = samples.pick(samples.time_ns >= self.from_ns)
        if self.to_ns is not None:
            samples = samples.pick(samples.time_ns <= self.to_ns)
        if self.cpus is not None:
            cpu = ids.sample_word(words, samples.starts, samples.event, "cpu", _LOW)
            samples = samples.pick(np.isin((cpu & _LOW).astype(np.int64), self.cpus))
        if self.pids is not None:
            both = ids.sample_word(words, samples.starts, samples.event, "tid", _LOW << np.uint64(32) | _LOW)
            pid, tid = (both & _LOW).astype(np.int64), (both >> np.uint64(32)).astype(np.int64)
            samples = samples.pick(np.isin(pid, self.pids) | np.isin(tid, self.pids))
        return samples

    def places(self, words: Words, samples: Samples, ids: EventIds) -> Places:
        """Which of ``samples`` are wanted."""
        return self.pick(words, samples._replace(seq=np.arange(len(samples.seq))), ids).seq
