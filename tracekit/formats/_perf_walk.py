"""perf records, window by window → rows of tables.

One thread reads, finds the records, follows the rounds and the task names. What may be written is split by event, and
each event's rows are decoded and encoded by whichever thread is free.

Order: records are in order of time only within a CPU. When perf writes FINISHED_ROUND for the second time after a
record, nothing older than that record can come any more (tools/perf/util/session.c, ordered-events.c): rows up to that
time go out, the others wait for the next window. Where each CPU has a stream of its own (perf record --threads), what
all streams have passed goes out.
"""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise

import numpy as np

from tracekit.errors import TraceFormatError
from tracekit.formats import ReadOptions, Sink, Truncation
from tracekit.formats import _perf_sideband as sideband
from tracekit.formats._comm import CommHistory
from tracekit.formats._perf_callchain import CallchainIds
from tracekit.formats._perf_decode import Decoder, Samples, Window, by_event, tids
from tracekit.formats._perf_events import PerfEvent, perf_events
from tracekit.formats._perf_header import PerfHeader
from tracekit.formats._perf_ids import UNKNOWN, EventIds
from tracekit.formats._perf_index import AUXTRACE, COMPRESSED, FINISHED_ROUND, SAMPLE, TRACING_DATA, Starts, Words, link
from tracekit.formats._perf_pipe import NOTHING_YET, PipeHeader
from tracekit.formats._perf_select import Selection
from tracekit.formats._perf_stream import SOURCE_SHIFT, Cut, RecordStream, Segment
from tracekit.formats._perf_stream import Window as Read
from tracekit.formats._perf_swap import hop_swapped, to_native

CARRY_BYTES = 32 << 20  # beyond that, rows go out before their round is over
LAST = np.iinfo(np.int64).max
_NO_CPU = np.uint64(0xFFFFFFFF)

KERNEL_TYPES = frozenset(range(1, 23))
TOOL_TYPES = frozenset(range(64, 84))
"""Types of PERF_RECORD_* and of perf's own records that are known and hold nothing for the tables, or are read."""


class Walk:
    """One pass over the records of one trace."""

    def __init__(self, header: PerfHeader, pipe: PipeHeader | None, sink: Sink, options: ReadOptions) -> None:
        self.header = header
        self.sink = sink
        self.options = options
        self.anomalies: dict[str, int] = {}
        self.events: list[PerfEvent] = []
        self.comms = CommHistory()
        self.tally = sideband.Tally()
        self.losses = sideband.Losses()
        self.chains = CallchainIds(sink)
        self.truncated: Truncation | None = None
        self._pipe = pipe
        self._swapped = header.order == ">"
        self._packed = pipe is not None or "compression" in header.features or not header.data_complete
        self._lock = threading.Lock()
        self.decoder = Decoder(sink, self.count, swapped=self._swapped)
        self._select = Selection(options)
        self._next_flush = 0  # perf's ordered_events.next_flush
        self._max_time = 0
        self.horizon = -1
        self._carry_starts: Starts = np.empty(0, np.int64)
        self._carry_ends: Starts = np.empty(0, np.int64)
        self._carry_seq: Starts = np.empty(0, np.int64)
        self._learn(header)

    def _learn(self, header: PerfHeader) -> None:
        """Take in what the header says by now."""
        self.header = header
        self.events = perf_events(header, self.events)
        wanted = np.array([event.wanted(self.options.events) for event in self.events])
        self.ids = EventIds(header.attrs, wanted)
        self._owners = Counter(event.table for event in self.events)

    def count(self, kind: str, number: int = 1) -> None:
        """Count an anomaly; from any thread."""
        with self._lock:
            self.anomalies[kind] = self.anomalies.get(kind, 0) + number

    def run(self, stream: RecordStream) -> None:
        """All windows, in turn; then the tables of the events that never fired."""
        jobs = max(self.options.jobs, 1)
        # this thread is one of them: with two more, two CPUs take 5 % longer, and 40 MB more
        with ThreadPoolExecutor(max(jobs - 1, 1)) as pool:
            pending: list[Future[None]] = []
            try:
                self._windows(stream, pool if jobs > 1 else None, pending)
            finally:
                for future in pending:
                    future.cancel()
        for kind, number in self.header.problems.items():
            self.count(kind, number)
        for event in self.events:
            if event.lacks_format:
                self.count("event_without_format")
        filled = {table for event in self.events for table, _ in event.schemas}
        for event in self.events:
            if event.may_be_empty and event.table not in filled and event.wanted(self.options.events):
                self.decoder.declare(event)
                filled.add(event.table)

    def _windows(self, stream: RecordStream, pool: ThreadPoolExecutor | None, pending: list[Future[None]]) -> None:
        start = sum(source.feed.place for source in stream.sources)
        total = sum(source.feed.bytes_left for source in stream.sources)
        cuts: list[Cut] = []
        while (window := stream.next(self._carry_starts, self._carry_ends, cuts)) is not None:
            lengths = self._carry_ends - self._carry_starts
            starts, seq = [np.cumsum(lengths) - lengths], [self._carry_seq]
            cuts = []
            for segment in window.segments:
                found, cut = self._segment(window.words, segment)
                starts.append(found)
                seq.append((segment.source.number << SOURCE_SHIFT) + segment.base + 8 * found)
                cuts.append(cut)
            tasks = self._window(
                window.words, np.concatenate(starts), np.concatenate(seq), stream, last=_is_last(window, cuts)
            )
            _finish(pending)
            self.sink.settle()
            _start([*self.decoder.excess(), *tasks], pool, pending)
            if self.options.progress is not None and total:
                done = sum(source.feed.place for source in stream.sources) - start
                self.options.progress(min(done, total), total)
        _finish(pending)
        rest = self.decoder.rest()
        _start(rest[1::2], pool, pending)
        _start(rest[::2], None, [])
        _finish(pending)

    # --- finding the records ---------------------------------------------------------------------------------------

    def _segment(self, words: Words, segment: Segment) -> tuple[Starts, Cut]:
        """The starts of the records of a segment, in this machine's byte order from here on."""
        pieces = []
        following: int | None = segment.first
        while following is not None:
            found, cut, problem = self._piece(words, segment, following)
            pieces.append(found)
            end = 8 * cut.stop + cut.skip_bytes
            more = problem is None and cut.skip_bytes and end % 8 == 0 and end <= segment.filled
            following = end // 8 if more else None
        if problem is not None and self._pipe is not None:
            size = self._pipe.take_unaligned(words, cut.stop, segment.filled, segment.base)
            if size is not None:
                problem, cut = None, Cut(cut.stop, size)
                self._learn(self._pipe.header())
        if problem is not None:
            cut = self._damaged(words, segment, cut, problem)
        elif segment.source.done:
            self._ended(segment, cut)
        return np.concatenate(pieces), cut

    def _piece(self, words: Words, segment: Segment, first: int) -> tuple[Starts, Cut, str | None]:
        """Records up to a payload that is none, the end, or damage, which is named."""
        if self._swapped:
            chain = hop_swapped(words, first, segment.end)
        else:
            chain = link(words, first, segment.end, self.ids.pattern)
        cut = Cut(chain.stop, chain.skip_bytes)
        if self._pipe is not None:
            cut = self._take_header(words, segment, chain.starts, cut)
        if self._swapped:
            to_native(words, chain.starts, self.ids)
        if chain.skip_bytes and self._kind_of_last(words, chain.starts) == AUXTRACE:
            self.tally.auxtrace_bytes += chain.skip_bytes
        return self.ids.drop_unwanted(words, chain.starts), cut, chain.problem

    def _take_header(self, words: Words, segment: Segment, starts: Starts, cut: Cut) -> Cut:
        assert self._pipe is not None
        changed = self._pipe.take(words, starts, segment.base)
        if cut.skip_bytes and self._kind_of_last(words, starts) == TRACING_DATA:
            begin = 8 * cut.stop
            size = min(cut.skip_bytes, self._pipe.wants_tracing_data)
            block = words.view(np.uint8)[begin : min(begin + size, segment.filled)].tobytes()
            if len(block) < size:
                cut = cut._replace(skip_bytes=len(block))
                block += segment.source.more(size - len(block))
            if len(block) < size:
                self._note(segment.source.number, segment.base + begin, len(block), "the event formats are cut")
            self._pipe.take_tracing_data(block, segment.base + begin)
            changed = True
        if changed:
            self._learn(self._pipe.header())
        return cut

    def _kind_of_last(self, words: Words, starts: Starts) -> int:
        """Type of the last record, which may still be in the other byte order."""
        kind = int(words[starts[-1]])
        number = kind & 0xFFFFFFFF
        return number if not self._swapped or number < 256 else int.from_bytes(kind.to_bytes(8, "little")[:4], "big")

    def _damaged(self, words: Words, segment: Segment, cut: Cut, problem: str) -> Cut:
        """Stop there, or unpack what follows."""
        order = self.header.order
        kind = int.from_bytes(words[cut.stop : cut.stop + 1].tobytes()[:4], "little" if order == "<" else "big")
        if kind in COMPRESSED and self._packed:
            return Cut(cut.stop, 0, order)
        source = segment.source
        unread = segment.filled - 8 * cut.stop + _unread(source.feed)
        self._note(source.number, segment.base + 8 * cut.stop, unread, problem)
        source.done = True
        return cut

    def _ended(self, segment: Segment, cut: Cut) -> None:
        """State what a source that has come to its end lacks."""
        feed = segment.source.feed
        left = segment.filled - 8 * cut.stop - cut.skip_bytes
        if feed.problem is not None:
            self._note(segment.source.number, feed.place, feed.bytes_left, feed.problem)
        elif cut.skip_bytes and left < 0:
            reason = f"a record is followed by {cut.skip_bytes} bytes, which go beyond the end"
            self._note(segment.source.number, segment.base + 8 * cut.stop, left + cut.skip_bytes, reason)
        elif left and not (cut.skip_bytes and left >= 8):
            self._note(segment.source.number, segment.base + 8 * cut.stop, left, "the last record is cut")

    def _note(self, number: int, offset: int, unread: int, reason: str) -> None:
        """Note where reading had to stop, the first such place."""
        where = f"data.{number - 1}: " if number else ""
        if self.truncated is None:
            self.truncated = Truncation(offset, unread, where + reason)

    # --- taking them in --------------------------------------------------------------------------------------------

    def _window(
        self, words: Words, starts: Starts, seq: Starts, stream: RecordStream, *, last: bool
    ) -> list[Callable[[], None]]:
        """Take in the records of a window; returns what is left to do in any order."""
        carried = len(self._carry_seq)
        heads = words.take(starts, mode="clip")
        kind = (heads & np.uint64(0xFFFFFFFF)).astype(np.int64)
        ends = starts + (heads >> np.uint64(51)).astype(np.int64)
        is_sample = kind == SAMPLE
        samples = self._samples(words, starts[is_sample], ends[is_sample], seq[is_sample])
        records = self._records(words, starts[~is_sample], seq[~is_sample])
        if len(stream.sources) > 1:
            self._follow_sources(samples, records, stream)
        else:
            self._follow_rounds(samples, records, int(seq[carried]) if carried < len(seq) else LAST)
        if last:
            self.horizon = LAST
        if self.ids.trailer_words.any():
            cpu = self.ids.sample_word(words, samples.starts, samples.event, "cpu", _NO_CPU).astype(np.int32)
            self.losses.follow(cpu.astype(np.int64), samples.time_ns, samples.seq, records)
        waiting = samples.time_ns > self.horizon
        also_waiting = records.time_ns > self.horizon
        self._carry(samples.pick(waiting), records.pick(also_waiting))
        if 8 * int((self._carry_ends - self._carry_starts).sum()) > CARRY_BYTES:
            self.horizon = max(samples.time_ns.max(initial=-1), records.time_ns.max(initial=-1))
            self.count("flushed_before_end_of_round")
            waiting, also_waiting = np.zeros_like(waiting), np.zeros_like(also_waiting)
            self._carry(samples.pick(waiting), records.pick(also_waiting))
        self._sideband(records.pick(~also_waiting))
        return self._decode(words, samples.pick(~waiting))

    def _carry(self, samples: Samples, records: sideband.Records) -> None:
        """Keep these for the next window."""
        starts = np.concatenate((samples.starts, records.starts))
        order = np.argsort(starts)
        self._carry_starts = starts[order]
        self._carry_ends = np.concatenate((samples.ends, records.whole_ends))[order]
        self._carry_seq = np.concatenate((samples.seq, records.seq))[order]

    def _samples(self, words: Words, starts: Starts, ends: Starts, seq: Starts) -> Samples:
        if len(starts) and self.header.attrs[0] is NOTHING_YET:
            raise TraceFormatError(self.header.path, int(seq[0]), "a sample comes before any event attribute")
        event = self.ids.event_of_samples(words, starts)
        known = event != UNKNOWN
        if not known.all():
            self.count("sample_without_attr", int(np.count_nonzero(~known)))
        wanted = event >= 0
        if not wanted.all():
            starts, ends, seq, event = starts[wanted], ends[wanted], seq[wanted], event[wanted]
        whole = starts + self.ids.fixed_words.max() <= ends
        if not whole.all():  # seldom: then each by its own
            whole = starts + self.ids.fixed_words.take(event) <= ends
        if not whole.all():
            self.count("sample_too_short", int(np.count_nonzero(~whole)))
            starts, ends, seq, event = starts[whole], ends[whole], seq[whole], event[whole]
        time_ns = self.ids.sample_word(words, starts, event, "time")
        samples = Samples(starts, ends, event, time_ns.view(np.int64), seq)
        return self._select.pick(words, samples, self.ids)

    def _records(self, words: Words, starts: Starts, seq: Starts) -> sideband.Records:
        """Records that are no samples; those without a time have −1."""
        heads = words.take(starts, mode="clip")
        kind = (heads & np.uint64(0xFFFFFFFF)).astype(np.int64)
        misc = (heads >> np.uint64(32)).astype(np.int64) & 0xFFFF
        ends = starts + (heads >> np.uint64(51)).astype(np.int64)
        whole_ends = ends.copy()
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
        return sideband.Records(words, starts, ends, kind, misc, time_ns, cpu, event, seq, whole_ends)

    def _follow_rounds(self, samples: Samples, records: sideband.Records, fresh: int) -> None:
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

    def _follow_sources(self, samples: Samples, records: sideband.Records, stream: RecordStream) -> None:
        """Move the horizon to where all streams have come to."""
        latest = np.full(len(stream.sources), -1, np.int64)
        for rows in (samples, records):
            np.maximum.at(latest, rows.seq >> SOURCE_SHIFT, rows.time_ns)
        for source, time_ns in zip(stream.sources, latest.tolist(), strict=True):
            source.last_ns = max(source.last_ns, time_ns)
        self.horizon = min((source.last_ns for source in stream.sources if not source.done), default=LAST)

    def _sideband(self, records: sideband.Records) -> None:
        self.tally.take(records.kind)
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
        samples, order = by_event(words, samples, self.ids)
        codes = comms.codes(tids(words, samples, self.ids), samples.time_ns)
        window = Window(words, samples, codes, comms.names, None if chain_ids is None else chain_ids.take(order))
        edges = np.searchsorted(samples.event, np.arange(len(self.events) + 1)).tolist()
        tables: dict[str, list[tuple[PerfEvent, slice]]] = {}
        for event, begin, end in zip(self.events, edges[:-1], edges[1:], strict=True):
            if begin < end:
                tables.setdefault(event.table, []).append((event, slice(begin, end)))
        work = sorted(tables.values(), key=lambda parts: -sum(mine.stop - mine.start for _, mine in parts))
        return [partial(self._decode_table, window, parts) for parts in work]

    def _decode_table(self, window: Window, parts: list[tuple[PerfEvent, slice]]) -> None:
        for event, mine in parts:
            self.decoder.decode(window, event, mine, put_by=self._owners[event.table] == 1)


def _is_last(window: Read, cuts: list[Cut]) -> bool:
    """Whether nothing that could hold a record follows."""
    more = (
        cut.unpack or (cut.skip_bytes and 8 * cut.stop + cut.skip_bytes + 8 <= segment.filled)
        for segment, cut in zip(window.segments, cuts, strict=True)
    )
    return all(segment.source.done for segment in window.segments) and window.last and not any(more)


def _unread(feed: object) -> int:
    """Bytes that are left in a feed; a pipe is read to its end, that they may be counted."""
    return int(getattr(feed, "bytes_left", 0)) or int(feed.skip(1 << 62))  # type: ignore[attr-defined]


def _start(tasks: list[Callable[[], None]], pool: ThreadPoolExecutor | None, pending: list[Future[None]]) -> None:
    if pool is not None:
        pending[:] = [pool.submit(task) for task in tasks]
        return
    for task in tasks:
        task()


def _finish(pending: list[Future[None]]) -> None:
    wait(pending)
    for future in pending:
        future.result()
    pending.clear()
