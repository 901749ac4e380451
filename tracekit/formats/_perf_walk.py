"""perf records, window by window → rows of tables.

One thread reads, finds the records, follows the rounds and the task names. What may be written is split by event, and
each event's rows are decoded and encoded by whichever thread is free.

Rows up to the time that the horizon has come to go out, the others wait for the next window.
"""

import threading
from functools import partial
from typing import NamedTuple

import numpy as np

from tracekit import _columns
from tracekit._workers import Task, Workers
from tracekit.errors import TraceFormatError
from tracekit.formats import ReadOptions, Sink
from tracekit.formats import _perf_sideband as sideband
from tracekit.formats._comm import CommHistory
from tracekit.formats._perf_callchain import CallchainIds
from tracekit.formats._perf_decode import Decoder
from tracekit.formats._perf_events import PerfEvent
from tracekit.formats._perf_header import PerfHeader
from tracekit.formats._perf_horizon import LAST, Horizon
from tracekit.formats._perf_ids import UNKNOWN
from tracekit.formats._perf_index import FINISHED_ROUND, NONE_FOUND, SAMPLE, Found, Words, joined
from tracekit.formats._perf_known import Known
from tracekit.formats._perf_pipe import NOTHING_YET, PipeHeader
from tracekit.formats._perf_reading import Readings
from tracekit.formats._perf_scan import Scan
from tracekit.formats._perf_select import Selection
from tracekit.formats._perf_stream import SOURCE_SHIFT, Cut, RecordStream
from tracekit.formats._perf_stream import Window as Read
from tracekit.formats._perf_window import Ordered, Samples, by_event, tids

CARRY_BYTES = 32 << 20  # beyond that, rows go out before their round is over
_NO_CPU = np.uint64(0xFFFFFFFF)
_NO_PLACES = np.empty(0, np.int64)


KERNEL_TYPES = frozenset(range(1, 23))
TOOL_TYPES = frozenset(range(64, 84))
"""Types of PERF_RECORD_* and of perf's own records that are known and hold nothing for the tables, or are read."""


class _Share(NamedTuple):
    """Samples of event ``of``, which are of ``event`` or read its counter."""

    event: PerfEvent
    of: PerfEvent
    some: Ordered


class Walk:
    """One pass over the records of one trace."""

    def __init__(self, header: PerfHeader, pipe: PipeHeader | None, sink: Sink, options: ReadOptions) -> None:
        self.sink = sink
        self.options = options
        self.anomalies: dict[str, int] = {}
        self.known = Known(header, options.events)
        self.tally = sideband.Tally()
        self.losses = sideband.Losses()
        self.scan = Scan(self.known, pipe, self.tally)
        self._comms = CommHistory()
        self._chains = CallchainIds(sink)
        self._lock = threading.Lock()
        self._decoder = Decoder(sink, self.count, self._comms.names, swapped=header.order == ">")
        self._select = Selection(options)
        self._readings = Readings(self.count)
        self._horizon = Horizon()
        self._carried = NONE_FOUND  # of the window before
        self._carried_seq = _NO_PLACES

    def count(self, kind: str, number: int = 1) -> None:
        """Count an anomaly; from any thread."""
        with self._lock:
            self.anomalies[kind] = self.anomalies.get(kind, 0) + number

    def run(self, stream: RecordStream) -> None:
        """All windows, in turn; then the tables of the events that never fired."""
        with Workers(self.options.jobs) as workers:
            self._windows(stream, workers)
        for kind, number in self.known.header.problems.items():
            self.count(kind, number)
        filled = self._decoder.tables.copy()
        for event, wanted in zip(self.known.events, self.known.wanted.tolist(), strict=True):
            if event.lacks_format:
                self.count("event_without_format")
            if wanted and event.may_be_empty and event.table not in filled:
                self._decoder.declare(event)
                filled.add(event.table)

    def _windows(self, stream: RecordStream, workers: Workers) -> None:
        start = sum(source.feed.place for source in stream.sources)
        total = sum(source.feed.bytes_left for source in stream.sources)
        backlog = self._decoder.backlog
        cuts: list[Cut] = []
        while (window := stream.next(self._carried.starts, self._carried.ends, cuts)) is not None:
            lengths = self._carried.ends - self._carried.starts
            ends = np.cumsum(lengths)
            pieces, seq = [Found(ends - lengths, ends, self._carried.kind)], [self._carried_seq]
            cuts = []
            for segment in window.segments:
                found, cut = self.scan.segment(window.words, segment)
                pieces.append(found)
                seq.append((segment.source.number << SOURCE_SHIFT) + segment.base + 8 * found.starts)
                cuts.append(cut)
            tasks = self._window(window.words, joined(pieces), np.concatenate(seq), stream, last=_is_last(window, cuts))
            workers.finish()
            self.sink.settle()
            workers.start([*backlog.excess(), *tasks])
            if self.options.progress is not None and total:
                done = sum(source.feed.place for source in stream.sources) - start
                self.options.progress(min(done, total), total)
        workers.finish()
        workers.start(backlog.rest())
        workers.finish()

    def _window(self, words: Words, found: Found, seq: np.ndarray, stream: RecordStream, *, last: bool) -> list[Task]:
        """Take in the records of a window; returns what is left to do in any order."""
        carried = len(self._carried_seq)
        fresh = int(seq[carried]) if carried < len(seq) else LAST
        is_sample, is_round = found.kind == SAMPLE, found.kind == FINISHED_ROUND
        samples = self._samples(words, found.pick(is_sample), seq[is_sample])
        other = ~(is_sample | is_round)
        records = self._records(words, found.pick(other), seq[other])
        if len(stream.sources) > 1:
            self._horizon.follow_sources(samples, records, stream.sources)
        else:
            self._horizon.follow_rounds(samples, records, seq[is_round], fresh)
        if last:
            self._horizon.time_ns = LAST
        ids = self.known.ids
        if ids.trailer_words.any():
            cpu = ids.sample_word(words, samples.starts, samples.event, "cpu", _NO_CPU).view(np.int32)[::2]
            self.losses.follow(cpu, samples.time_ns, samples.seq, records)
        order = np.argsort(samples.time_ns, kind="stable")
        ready = int(samples.time_ns.take(order).searchsorted(self._horizon.time_ns, "right"))
        waiting = records.time_ns > self._horizon.time_ns
        self._carry(samples, np.sort(order[ready:]), records.pick(waiting))
        if 8 * int((self._carried.ends - self._carried.starts).sum()) > CARRY_BYTES:
            self._horizon.time_ns = max(samples.time_ns.max(initial=-1), records.time_ns.max(initial=-1))
            self.count("flushed_before_end_of_round")
            ready, waiting = len(order), np.zeros_like(waiting)
            self._carry(samples, _NO_PLACES, records.pick(waiting))
        self._sideband(records.pick(~waiting))
        return self._decode(words, samples, order[:ready])

    def _carry(self, samples: Samples, waiting: np.ndarray, records: sideband.Records) -> None:
        """Keep some of the samples, and ``records``, for the next window."""
        mine = Found(samples.starts[waiting], samples.ends[waiting], np.full(len(waiting), SAMPLE, np.uint32))
        found = joined([mine, Found(records.starts, records.whole_ends, records.kind.astype(np.uint32))])
        order = np.argsort(found.starts)
        self._carried = found.pick(order)
        self._carried_seq = np.concatenate((samples.seq[waiting], records.seq))[order]

    def _samples(self, words: Words, found: Found, seq: np.ndarray) -> Samples:
        ids = self.known.ids
        if len(seq) and self.known.header.attrs[0] is NOTHING_YET:
            raise TraceFormatError(self.known.header.path, int(seq[0]), "a sample comes before any event attribute")
        event = ids.event_of_samples(words, found.starts)
        time_ns = ids.sample_word(words, found.starts, event, "time").view(np.int64)
        samples = Samples(found.starts, found.ends, event, time_ns, seq)
        if event.min(initial=0) < 0:
            unknown = int(np.count_nonzero(event == UNKNOWN))
            if unknown:
                self.count("sample_without_attr", unknown)
            samples = samples.pick(event >= 0)
        whole = samples.starts + ids.fixed_words.max() <= samples.ends
        if not whole.all():  # seldom: then each by its own
            whole = samples.starts + ids.fixed_words.take(samples.event) <= samples.ends
        if not whole.all():
            self.count("sample_too_short", int(np.count_nonzero(~whole)))
            samples = samples.pick(whole)
        if self.known.reads is None:
            return self._select.pick(words, samples, ids)
        kept = self.known.reads[samples.event]  # what a counter came to before is needed to know what it counted since
        kept[self._select.places(words, samples, ids)] = True
        return samples.pick(kept)

    def _records(self, words: Words, found: Found, seq: np.ndarray) -> sideband.Records:
        """Records that are no samples; those without a time have −1."""
        ids = self.known.ids
        starts, ends = found.starts, found.ends.copy()
        kind = found.kind.astype(np.int64)
        misc = (words[starts] >> np.uint64(32)).astype(np.int64) & 0xFFFF
        event = np.full(len(starts), -1, np.int64)
        time_ns = np.full(len(starts), -1, np.int64)
        cpu = np.full(len(starts), -1, np.int64)
        mine = np.flatnonzero(kind < 64)
        if len(mine):
            attr = ids.event_of_trailers(words, ends[mine])
            length = ids.trailer_words[attr]
            fits = starts[mine] + 1 + length <= ends[mine]
            mine, attr, length = mine[fits], attr[fits], length[fits]
            event[mine] = attr
            time_ns[mine] = ids.trailer_word(words, ends[mine], attr, "time", 0).view(np.int64)
            word = ids.trailer_word(words, ends[mine], attr, "cpu", 0xFFFFFFFF)
            cpu[mine] = word.astype(np.uint32).view(np.int32)
            ends[mine] -= length
        return sideband.Records(words, starts, ends, kind, misc, time_ns, cpu, event, seq, found.ends)

    def _sideband(self, records: sideband.Records) -> None:
        self.tally.take(records.kind)
        for kind in _columns.distinct(records.kind).tolist():
            if kind not in KERNEL_TYPES and kind not in TOOL_TYPES:
                self.count(
                    f"unknown_record_type_{kind}" if kind < 256 else "unknown_record_type",
                    int((records.kind == kind).sum()),
                )
        known = sideband.whole(records, self.count)
        known = known.pick(np.lexsort((known.seq, known.time_ns)))
        sideband.write_tasks(known, self._comms, self.sink)
        sideband.write_maps(known, self.sink)
        names = [event.name for event in self.known.events]
        sideband.write_losses(known, self.losses, names, self.known.ids.event_of, self.sink)

    def _decode(self, words: Words, samples: Samples, order: np.ndarray) -> list[Task]:
        """What is left to do with the samples in ``order``, by time: a task for each table, the largest first."""
        ids = self.known.ids
        chains = self._chains.ids(words, samples, order, ids.layouts)
        comm = self._comms.window().codes(tids(words, samples, ids), samples.time_ns)
        order, edges = by_event(words, samples, order, ids)
        starts, seq = samples.starts.take(order), samples.seq.take(order)
        ordered = Ordered(words, starts, seq, comm.take(order), None if chains is None else chains.take(order))
        tables: dict[str, list[_Share]] = {}
        for number, (event, begin, end) in enumerate(zip(self.known.events, edges[:-1], edges[1:], strict=True)):
            if begin < end:
                mine = ordered.pick(slice(begin, end))
                reads = self.known.reads is not None and self.known.reads[number]
                for share in self._read(mine, number) if reads else [_Share(event, event, mine)]:
                    tables.setdefault(share.event.table, []).append(share)
        work = sorted(tables.values(), key=lambda shares: -sum(len(share.some.starts) for share in shares))
        return [partial(self._decode_table, shares) for shares in work]

    def _read(self, some: Ordered, number: int) -> list["_Share"]:
        """What samples of an event that read counters are of."""
        words, starts, ends = some.words, some.starts, some.ends
        ids, own = self.known.ids, self.known.events[number]
        event = np.full(len(starts), number, np.int64)
        time_ns = ids.sample_word(words, starts, event, "time").view(np.int64)
        wanted = np.zeros(len(starts), bool)
        wanted[self._select.places(words, Samples(starts, ends, event, time_ns, some.seq), ids)] = True
        shares = []
        for read in self._readings.deliver(some, number, own.layout, ids):
            kept = wanted[read.sample]
            if self.known.wanted[read.event] and kept.any():
                columns = {name: column.pick(kept) for name, column in read.columns.items()}
                mine = some.pick(read.sample[kept])._replace(reading=columns)
                shares.append(_Share(self.known.events[read.event], own, mine))
        return shares

    def _decode_table(self, shares: list["_Share"]) -> None:
        for event, of, some in shares:
            self._decoder.decode(some, event, of, put_by=self.known.alone(event))


def _is_last(window: Read, cuts: list[Cut]) -> bool:
    """Whether nothing that could hold a record follows."""
    more = (
        cut.unpack or (cut.skip_bytes and 8 * cut.stop + cut.skip_bytes + 8 <= segment.filled)
        for segment, cut in zip(window.segments, cuts, strict=True)
    )
    return all(segment.source.done for segment in window.segments) and window.last and not any(more)
