"""perf.data, window by window: records → rows of tables.

One thread reads, finds the records, follows the rounds and the task names. What may be written is split by event, and
each event's rows are decoded and encoded by whichever thread is free.

Order: records are in order of time only within a CPU. When perf writes FINISHED_ROUND for the second time after a
record, nothing older than that record can come any more (tools/perf/util/session.c, ordered-events.c): rows up to that
time go out, the others wait for the next window.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tracekit.errors import TraceFormatError
from tracekit.formats import ReadOptions, Sink, TraceMetadata, Truncation
from tracekit.formats import _perf_sideband as sideband
from tracekit.formats._comm import CommHistory
from tracekit.formats._perf_callchain import CallchainIds
from tracekit.formats._perf_decode import Decoder, Samples, Window
from tracekit.formats._perf_events import PerfEvent, perf_events
from tracekit.formats._perf_header import PerfHeader, Section, read_header, unreadable
from tracekit.formats._perf_ids import UNKNOWN, EventIds
from tracekit.formats._perf_index import COMPRESSED, FINISHED_ROUND, SAMPLE, Starts, Words, link
from tracekit.formats._perf_stream import RecordStream

CARRY_BYTES = 32 << 20  # beyond that, rows go out before their round is over
LAST = np.iinfo(np.int64).max

KERNEL_TYPES = frozenset(range(1, 23))
TOOL_TYPES = frozenset(range(64, 84))
"""Types of PERF_RECORD_* and of perf's own records that are known and hold nothing for the tables, or are read."""


def read(path: Path, sink: Sink, options: ReadOptions) -> TraceMetadata:
    """Read the file at ``path``; see tracekit.formats.Reader."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(path, error) from error
    with file:
        before = os.fstat(file.fileno())
        size = before.st_size if options.size_bytes is None else options.size_bytes
        header = read_header(path, file, size)
        walk = _Walk(header, sink, options)
        walk.run(file)
        after = os.fstat(file.fileno())
    if after.st_size <= size and after.st_mtime_ns != before.st_mtime_ns:
        raise TraceFormatError(path, None, "was written to while it was read; ingest a copy")
    return walk.metadata()


class _Walk:
    """One pass over the records of one file."""

    def __init__(self, header: PerfHeader, sink: Sink, options: ReadOptions) -> None:
        self.header = header
        self.sink = sink
        self.options = options
        self.anomalies: dict[str, int] = dict(header.problems)
        self._lock = threading.Lock()
        self.events = perf_events(header, self.count)
        wanted = np.array([event.wanted(options.events) for event in self.events])
        self.ids = EventIds(header.attrs, wanted)
        self.decoder = Decoder(sink, self.count)
        self.comms = CommHistory()
        self.losses = sideband.Losses()
        self.chains = CallchainIds(sink)
        self.truncated: Truncation | None = None
        self._next_flush = 0  # perf's ordered_events.next_flush
        self._max_time = 0
        self.horizon = -1
        self._carry_starts: Starts = np.empty(0, np.int64)
        self._carry_seq: Starts = np.empty(0, np.int64)

    def count(self, kind: str, number: int = 1) -> None:
        """Count an anomaly; from any thread."""
        with self._lock:
            self.anomalies[kind] = self.anomalies.get(kind, 0) + number

    def run(self, file: BinaryIO) -> None:
        """All windows, in turn."""
        header = self.header
        available = min(header.data.size, header.file_bytes - header.data.offset)
        stream = RecordStream(header.path, file, Section(header.data.offset, available))
        jobs = max(self.options.jobs, 1)
        with ThreadPoolExecutor(jobs) as pool:
            pending: list[Future[None]] = []
            try:
                self._windows(stream, pool if jobs > 1 else None, pending)
            finally:
                for future in pending:
                    future.cancel()
        self._note_cut(stream.end, header.data.offset + header.data.size)

    def _note_cut(self, end: int, declared_end: int) -> None:
        """State what a file that ends too early, at ``end``, lacks."""
        if end < declared_end:
            place = end if self.truncated is None else self.truncated.offset
            reason = f"the file ends at {end:#x}, its data should end at {declared_end:#x}"
            self.truncated = Truncation(place, declared_end - place, reason)
        elif self.truncated is None and not self.header.data_complete:
            self.truncated = Truncation(end, 0, "the recorder was killed before it wrote the event formats")
        elif self.truncated is None and "features_missing" in self.anomalies:
            self.truncated = Truncation(end, 0, "the file ends before its feature sections do")

    def _windows(self, stream: RecordStream, pool: ThreadPoolExecutor | None, pending: list[Future[None]]) -> None:
        carry = stop = skip = 0
        start = stream.position
        problem = None
        place = start  # in the file, of what was not taken in yet
        while problem is None and (window := stream.next(carry, stop, skip)) is not None:
            chain = link(window.words, window.first, window.end, self.ids.pattern)
            stop, skip, problem = chain.stop, chain.skip_bytes, chain.problem
            place = window.base + 8 * stop
            if problem is not None:
                self._damaged(window.words, stop, place, stream.end, problem)
            last = problem is not None or stream.is_last(stop, skip) or place + skip >= stream.end
            seq = np.concatenate((self._carry_seq, window.base + 8 * chain.starts))
            starts = np.concatenate((self._carry_starts, chain.starts))
            tasks = self._window(window.words, starts, seq, len(self._carry_seq), last=last)
            carry = int(self._carry_starts[0]) if len(self._carry_starts) else stop
            self._carry_starts = self._carry_starts - carry
            _finish(pending)
            self.sink.settle()
            if pool is None:
                for task in tasks:
                    task()
            else:
                pending[:] = [pool.submit(task) for task in tasks]
            if self.options.progress is not None:
                self.options.progress(stream.position - start, stream.end - start)
        _finish(pending)
        if problem is None and place + skip != stream.end:
            reason = "the last record is cut"
            if skip:
                reason = f"a record is followed by {skip} bytes, which go beyond the end"
            self.truncated = Truncation(place, stream.end - place, reason)

    def _damaged(self, words: Words, stop: int, place: int, end: int, problem: str) -> None:
        compressed = "compression" in self.header.features or not self.header.data_complete
        if compressed and int(words[stop]) & 0xFFFFFFFF in COMPRESSED:
            raise TraceFormatError(
                self.header.path, place, "holds compressed records (perf record -z); not supported yet"
            )
        self.truncated = Truncation(place, end - place, problem)

    def _window(
        self, words: Words, starts: Starts, seq: Starts, carried: int, *, last: bool
    ) -> list[Callable[[], None]]:
        """Take in the records of a window; returns what is left to do in any order."""
        heads = words.take(starts, mode="clip")
        kind = (heads & np.uint64(0xFFFFFFFF)).astype(np.int64)
        ends = starts + (heads >> np.uint64(51)).astype(np.int64)
        is_sample = kind == SAMPLE
        samples = self._samples(words, starts[is_sample], ends[is_sample], seq[is_sample])
        records = self._records(words, starts[~is_sample], seq[~is_sample])
        self._follow_rounds(samples, records, int(seq[carried]) if carried < len(seq) else LAST, last=last)
        waiting = samples.time_ns > self.horizon
        also_waiting = records.time_ns > self.horizon
        if not last:
            oldest = min(samples.starts[waiting].min(initial=LAST), records.starts[also_waiting].min(initial=LAST))
            if oldest != LAST and 8 * (int(ends[-1]) - int(oldest)) > CARRY_BYTES:
                self.horizon = max(samples.time_ns.max(initial=-1), records.time_ns.max(initial=-1))
                self.count("flushed_before_end_of_round")
                waiting, also_waiting = np.zeros_like(waiting), np.zeros_like(also_waiting)
        self._carry_starts = np.concatenate((samples.starts[waiting], records.starts[also_waiting]))
        self._carry_seq = np.concatenate((samples.seq[waiting], records.seq[also_waiting]))
        order = np.argsort(self._carry_starts)
        self._carry_starts, self._carry_seq = self._carry_starts[order], self._carry_seq[order]
        self._sideband(records.pick(~also_waiting))
        return self._decode(words, samples.pick(~waiting))

    def _samples(self, words: Words, starts: Starts, ends: Starts, seq: Starts) -> Samples:
        event = self.ids.event_of_samples(words, starts)
        known = event != UNKNOWN
        if not known.all():
            self.count("sample_without_attr", int(np.count_nonzero(~known)))
        wanted = event >= 0
        if not wanted.all():
            starts, ends, seq, event = starts[wanted], ends[wanted], seq[wanted], event[wanted]
        whole = starts + self.ids.fixed_words.take(event) <= ends
        if not whole.all():
            self.count("sample_too_short", int(np.count_nonzero(~whole)))
            starts, ends, seq, event = starts[whole], ends[whole], seq[whole], event[whole]
        time_ns = self.ids.sample_word(words, starts, event, "time")
        return Samples(starts, ends, event, time_ns.view(np.int64), seq)

    def _records(self, words: Words, starts: Starts, seq: Starts) -> sideband.Records:
        """Records that are no samples; those without a time have −1."""
        heads = words.take(starts, mode="clip")
        kind = (heads & np.uint64(0xFFFFFFFF)).astype(np.int64)
        misc = (heads >> np.uint64(32)).astype(np.int64) & 0xFFFF
        ends = starts + (heads >> np.uint64(51)).astype(np.int64)
        event = np.full(len(starts), -1, np.int64)
        time_ns = np.full(len(starts), -1, np.int64)
        cpu = np.full(len(starts), -1, np.int64)
        mine = np.flatnonzero(kind < 64)
        if len(mine):
            attr = self.ids.event_of_trailers(words, ends[mine])
            length = self.ids.trailer_words[attr]
            fits = starts[mine] + 1 + length <= ends[mine]
            mine, attr, length = mine[fits], attr[fits], length[fits]
            event[mine] = attr
            time_ns[mine] = self.ids.trailer_word(words, ends[mine], attr, "time", 0).view(np.int64)
            word = self.ids.trailer_word(words, ends[mine], attr, "cpu", 0xFFFFFFFF)
            cpu[mine] = word.astype(np.uint32).view(np.int32)
            ends[mine] -= length
        return sideband.Records(words, starts, ends, kind, misc, time_ns, cpu, event, seq)

    def _follow_rounds(self, samples: Samples, records: sideband.Records, fresh: int, *, last: bool) -> None:
        """Move the horizon as perf does at each FINISHED_ROUND from place ``fresh`` of the file on."""
        rounds = records.seq[(records.kind == FINISHED_ROUND) & (records.seq >= fresh)]
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
            self.horizon = max(self.horizon, self._next_flush)
        elif len(rounds) > 1:
            self.horizon = max(self.horizon, peaks[0])
        if len(rounds):
            self._next_flush = peaks[-2]
        if last:
            self.horizon = LAST

    def _sideband(self, records: sideband.Records) -> None:
        for kind in np.unique(records.kind).tolist():
            if kind not in KERNEL_TYPES and kind not in TOOL_TYPES:
                self.count(
                    f"unknown_record_type_{kind}" if kind < 256 else "unknown_record_type",
                    int((records.kind == kind).sum()),
                )
        known = sideband.whole(records, self.count)
        known = known.pick(np.lexsort((known.seq, known.time_ns)))
        sideband.write_tasks(known, self.comms, self.sink)
        sideband.write_maps(known, self.sink)
        names = [event.name for event in self.events]
        sideband.write_losses(known, self.losses, names, self.ids.event_of, self.sink)

    def _decode(self, words: Words, samples: Samples) -> list[Callable[[], None]]:
        """What is left to do with the samples: one task for each table, the largest first."""
        comms = self.comms.window()
        chain_ids = self.chains.ids(words, samples.starts, samples.ends, samples.event, self.ids.layouts)
        window = Window(words, samples, comms, chain_ids)
        narrow = samples.event.astype(np.int16 if len(self.events) < 1 << 15 else np.int64)  # 16 bits: radix sort
        order = np.argsort(narrow, kind="stable")
        counts = np.bincount(samples.event, minlength=len(self.events))
        ends = np.cumsum(counts).tolist()
        tables: dict[str, list[tuple[PerfEvent, np.ndarray]]] = {}
        for number in np.flatnonzero(counts).tolist():
            event = self.events[number]
            tables.setdefault(event.table, []).append((event, order[ends[number] - int(counts[number]) : ends[number]]))
        work = sorted(tables.values(), key=lambda parts: -sum(len(mine) for _, mine in parts))
        return [partial(self._decode_table, window, parts) for parts in work]

    def _decode_table(self, window: Window, parts: list[tuple[PerfEvent, np.ndarray]]) -> None:
        for event, mine in parts:
            self.decoder.decode(window, event, mine)

    def metadata(self) -> TraceMetadata:
        """What the header and the walk say of the trace."""
        features = dict(self.header.features)
        tracing = self.header.tracing
        machine = {
            "release": features.pop("release", None),
            "arch": features.pop("arch", None),
            "page_size": tracing.page_size if tracing else None,
            "cpus": features.pop("cpus", None),
            "cpus_available": features.pop("cpus_available", None),
            "nodes": features.pop("nodes", None),
            "memory_bytes": features.pop("memory_bytes", None),
            "cpu": features.pop("cpu", None),
        }
        features.pop("hostname", None)
        recorder = {"name": "perf", "version": features.pop("version", None), "cmdline": features.pop("cmdline", None)}
        clock = {"name": self.header.attrs[0].clock, "wall_offset_ns": features.pop("wall_offset_ns", None)}
        lost = self.losses.summary()
        return TraceMetadata(
            "perf.data",
            self.header.file_bytes,
            machine,
            recorder,
            clock,
            lost,
            self.anomalies,
            self.truncated,
            features,
        )


def _finish(pending: list[Future[None]]) -> None:
    wait(pending)
    for future in pending:
        future.result()
    pending.clear()
