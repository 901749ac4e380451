"""perf.data, window by window: records → rows of tables.

One thread reads, finds the records, follows the rounds and the task names. What may be written is split by event, and
each event's rows are decoded and encoded by whichever thread is free.

Order: records are in order of time only within a CPU. When perf writes FINISHED_ROUND for the second time after a
record, nothing older than that record can come any more (tools/perf/util/session.c, ordered-events.c): rows up to that
time go out, the others wait for the next window.
"""

import fnmatch
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.errors import TraceFormatError
from tracekit.formats import ReadOptions, Sink, TraceMetadata, Truncation
from tracekit.formats import _perf_sideband as sideband
from tracekit.formats._comm import CommHistory, CommWindow
from tracekit.formats._event_rows import EventColumns, EventRows, Named
from tracekit.formats._perf_callchain import CallchainIds
from tracekit.formats._perf_header import TRACEPOINT, PerfHeader, Section, read_header
from tracekit.formats._perf_index import COMPRESSED, FINISHED_ROUND, SAMPLE, SamplePattern, Starts, Words, link
from tracekit.formats._perf_sample import RAW, SampleLayout, layout_of, locate
from tracekit.formats._perf_stream import RecordStream

CARRY_BYTES = 48 << 20  # beyond that, rows go out before their round is over
LAST = np.iinfo(np.int64).max

KERNEL_TYPES = frozenset(range(1, 23))
TOOL_TYPES = frozenset(range(64, 84))
"""Types of PERF_RECORD_* and of perf's own records that are known and hold nothing for the tables, or are read."""


class Event(NamedTuple):
    """What becomes of the samples of one attribute."""

    table: str
    name: str  # as perf script prints it
    layout: SampleLayout
    rows: EventRows | None  # None: no format; common columns and raw bytes
    tracepoint: bool
    config: int


class Samples(NamedTuple):
    """Samples of a window in file order; int64[n] each."""

    starts: Starts  # words
    ends: Starts
    event: np.ndarray
    time_ns: np.ndarray
    seq: np.ndarray

    def pick(self, which: np.ndarray) -> "Samples":
        return Samples(*(column[which] for column in self))


class Decoding(NamedTuple):
    """What the threads need to know of a window."""

    words: Words
    comms: CommWindow
    chain_ids: np.ndarray | None  # uint32[n_samples], parallel to the samples; 0xFFFFFFFF: none


def read(path: Path, sink: Sink, options: ReadOptions) -> TraceMetadata:
    """Read the file at ``path``; see tracekit.formats.Reader."""
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            header = read_header(path, file, before.st_size)
            walk = _Walk(header, sink, options)
            walk.run(file)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise TraceFormatError(path, None, f"cannot be read: {error.strerror or error}") from error
    if after.st_size <= before.st_size and after.st_mtime_ns != before.st_mtime_ns:
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
        self.events = _events(header, self.count)
        self.ids = _Ids(header, self.events, options.events)
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
        if self.truncated is None and available < header.data.size:
            self.truncated = Truncation(header.file_bytes, 0, "the file ends before its data does")

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
            last = problem is not None or (stream.position >= stream.end and not skip)
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
        if problem is None and place + skip < stream.end:
            reason = "the last record is cut" if place + 8 <= stream.end else "a few bytes are left after the last record"
            self.truncated = Truncation(place, stream.end - place, reason)

    def _damaged(self, words: Words, stop: int, place: int, end: int, problem: str) -> None:
        if int(words[stop]) & 0xFFFFFFFF in COMPRESSED:
            raise TraceFormatError(self.header.path, place, "holds compressed records (perf record -z); not supported yet")
        self.truncated = Truncation(place, end - place, problem)

    def _window(self, words: Words, starts: Starts, seq: Starts, carried: int, *, last: bool) -> list[Callable[[], None]]:
        """Take in the records of a window; returns what is left to do in any order."""
        heads = words[starts]
        kind = (heads & np.uint64(0xFFFFFFFF)).astype(np.int64)
        ends = starts + (heads >> np.uint64(51)).astype(np.int64)
        is_sample = kind == SAMPLE
        samples = self._samples(words, starts, ends, seq, is_sample)
        records = self._records(words, starts, ends, heads, kind, seq, ~is_sample)
        self._follow_rounds(kind, carried, samples, records, seq, last=last)
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

    def _samples(self, words: Words, starts: Starts, ends: Starts, seq: Starts, which: np.ndarray) -> Samples:
        starts, ends, seq = starts[which], ends[which], seq[which]
        event = self.ids.event_of_samples(words, starts)
        known = event != _Ids.UNKNOWN
        if not known.all():
            self.count("sample_without_attr", int(np.count_nonzero(~known)))
        wanted = event >= 0
        if not wanted.all():
            starts, ends, seq, event = starts[wanted], ends[wanted], seq[wanted], event[wanted]
        whole = starts + self.ids.part("fixed_words")[event] <= ends
        if not whole.all():
            self.count("sample_too_short", int(np.count_nonzero(~whole)))
            starts, ends, seq, event = starts[whole], ends[whole], seq[whole], event[whole]
        time_ns = self.ids.word(words, starts, event, "time", 0)
        return Samples(starts, ends, event, time_ns.view(np.int64), seq)

    def _records(  # noqa: PLR0913 - the columns of the window
        self, words: Words, starts: Starts, ends: Starts, heads: Words, kind: np.ndarray, seq: Starts, which: np.ndarray
    ) -> sideband.Records:
        """Records that are no samples; those without a time have −1."""
        starts, ends, kind, seq = starts[which], ends[which], kind[which], seq[which]
        misc = (heads[which] >> np.uint64(32)).astype(np.int64) & 0xFFFF
        event = np.full(len(starts), -1, np.int64)
        time_ns = np.full(len(starts), -1, np.int64)
        cpu = np.full(len(starts), -1, np.int64)
        mine = np.flatnonzero(kind < 64)
        if len(mine):
            attr = self.ids.event_of_trailers(words, ends[mine])
            length = self.ids.part("trailer_words")[attr]
            fits = starts[mine] + 1 + length <= ends[mine]
            mine, attr, length = mine[fits], attr[fits], length[fits]
            event[mine] = attr
            time_ns[mine] = self.ids.trailer(words, ends[mine], attr, "time", 0).view(np.int64)
            cpu[mine] = self.ids.trailer(words, ends[mine], attr, "cpu", 0xFFFFFFFF).astype(np.uint32).view(np.int32)
            ends = ends.copy()
            ends[mine] -= length
        return sideband.Records(words, starts, ends, kind, misc, time_ns, cpu, event, seq)

    def _follow_rounds(  # noqa: PLR0913
        self, kind: np.ndarray, carried: int, samples: Samples, records: sideband.Records, seq: Starts, *, last: bool
    ) -> None:
        """Move the horizon as perf does at each FINISHED_ROUND."""
        rounds = seq[carried:][kind[carried:] == FINISHED_ROUND]
        fresh = seq[carried] if carried < len(seq) else LAST
        edges = np.concatenate(([fresh], rounds[-2:], [LAST]))
        peaks = []
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
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
                self.count(f"unknown_record_type_{kind}" if kind < 256 else "unknown_record_type", int((records.kind == kind).sum()))
        known = sideband.whole(records, self.count)
        known = known.pick(np.lexsort((known.seq, known.time_ns)))
        sideband.write_tasks(known, self.comms, self.sink)
        sideband.write_maps(known, self.sink)
        names = [event.name for event in self.events]
        sideband.write_losses(known, self.losses, names, self.ids.event_of, self.sink)

    def _decode(self, words: Words, samples: Samples) -> list[Callable[[], None]]:
        comms = self.comms.window()
        chain_ids = self.chains.ids(words, samples.starts, samples.ends, samples.event, [e.layout for e in self.events])
        decoding = Decoding(words, comms, chain_ids)
        tables: dict[str, list[tuple[int, np.ndarray]]] = {}
        order = np.argsort(samples.event.astype(np.int16 if len(self.events) < 1 << 15 else np.int64), kind="stable")
        bounds = np.searchsorted(samples.event[order], np.arange(len(self.events) + 1))
        for number in range(len(self.events)):
            mine = order[bounds[number] : bounds[number + 1]]
            if len(mine):
                tables.setdefault(self.events[number].table, []).append((number, mine))
        work = sorted(tables.values(), key=lambda parts: -sum(len(mine) for _, mine in parts))
        return [self._task(decoding, samples, parts) for parts in work]

    def _task(self, decoding: Decoding, samples: Samples, parts: list[tuple[int, np.ndarray]]) -> Callable[[], None]:
        def task() -> None:
            for number, mine in parts:
                self._decode_event(decoding, samples, number, mine)

        return task

    def _decode_event(self, decoding: Decoding, samples: Samples, number: int, mine: np.ndarray) -> None:
        """Decode samples ``mine`` of event ``number`` and hand them to the sink."""
        event, words = self.events[number], decoding.words
        cpu = _cpu(words, samples.starts[mine], event.layout)
        order = _by_time(samples.time_ns[mine], cpu)
        mine, cpu = mine[order], cpu[order]
        starts, ends = samples.starts[mine], samples.ends[mine]
        common = self._common(decoding, samples, mine, cpu, event.layout)
        if not event.tracepoint:
            columns = _extras(words, starts, event.layout)
            self._append(event.table, common, columns)
            return
        if not event.layout.sample_type & RAW:
            self._append(event.table, common, [])
            return
        data = words.view(np.uint8)
        found = locate(words, starts, ends, event.layout)
        assert found.raw is not None
        assert found.raw_bytes is not None
        at, size = found.raw * 8 + 4, found.raw_bytes
        if event.rows is None:
            self._append(event.table, common, [("raw", _columns.binary(data, at, at + size))])
            return
        whole = found.whole & (size >= event.rows.row_bytes)
        if not whole.all():
            self.count("raw_too_short", int(np.count_nonzero(~whole)))
            short = np.flatnonzero(~whole)
            raw = _columns.binary(data, at[short], at[short] + size[short])
            self._append(f"events/unknown/tracepoint_{event.config}", _rows_of(common, short), [("raw", raw)])
            kept = np.flatnonzero(whole)
            common, at, size = _rows_of(common, kept), at[kept], size[kept]
        self._append(event.table, common, event.rows.decode(data, at, size, self.count), event)

    def _common(
        self, decoding: Decoding, samples: Samples, mine: np.ndarray, cpu: np.ndarray, layout: SampleLayout
    ) -> EventColumns:
        starts, time_ns = samples.starts[mine], samples.time_ns[mine]
        pid = tid = np.full(len(mine), -1, np.int32)
        if "tid" in layout.words:
            both = decoding.words[starts + layout.words["tid"]]
            pid = both.astype(np.uint32).view(np.int32)
            tid = (both >> np.uint64(32)).astype(np.uint32).view(np.int32)
        comm = _columns.labels(decoding.comms.codes(tid, time_ns), decoding.comms.names)
        ids = np.full(len(mine), 0xFFFFFFFF, np.uint32) if decoding.chain_ids is None else decoding.chain_ids[mine]
        chain = _columns.numbers(ids, ids != 0xFFFFFFFF)
        return EventColumns(time_ns, cpu, pid, tid, comm, chain, samples.seq[mine].astype(np.uint64))

    def _append(self, table: str, common: EventColumns, columns: Named, event: Event | None = None) -> None:
        if len(common.time_ns) == 0:
            return
        named = common.named() + columns
        metadata = None
        if event is not None and event.rows is not None:
            metadata = {b"tracekit.format": event.rows.event.source.encode(), b"tracekit.event": event.name.encode()}
        schema = pa.schema([pa.field(name, array.type) for name, array in named], metadata)
        self.sink.append(table, pa.RecordBatch.from_arrays([array for _, array in named], schema=schema))

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
            "perf.data", self.header.file_bytes, machine, recorder, clock, lost, self.anomalies, self.truncated, features
        )


def _finish(pending: list[Future[None]]) -> None:
    wait(pending)
    for future in pending:
        future.result()
    pending.clear()


def _cpu(words: Words, starts: Starts, layout: SampleLayout) -> np.ndarray:
    if "cpu" not in layout.words:
        return np.full(len(starts), -1, np.int32)
    return words[starts + layout.words["cpu"]].astype(np.uint32).view(np.int32)


def _by_time(time_ns: np.ndarray, cpu: np.ndarray) -> np.ndarray:
    """Order by (time, cpu, place in the file)."""
    order = np.argsort(time_ns, kind="stable")
    ordered = time_ns[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.lexsort((cpu, time_ns))
    return order


def _extras(words: Words, starts: Starts, layout: SampleLayout) -> Named:
    return [
        (part, _columns.numbers(words[starts + layout.words[part]]))
        for part in ("ip", "addr", "period")
        if part in layout.words
    ]


def _rows_of(common: EventColumns, which: np.ndarray) -> EventColumns:
    index = _columns.numbers(which)
    return EventColumns(
        common.time_ns[which], common.cpu[which], common.pid[which], common.tid[which],
        common.comm.take(index), common.callchain_id.take(index), common.seq[which],
    )  # fmt: skip


class _Ids:
    """Which event a sample or a record belongs to, and where its parts are."""

    UNKNOWN = -1
    UNWANTED = -2

    def __init__(self, header: PerfHeader, events: list[Event], wanted: Iterable[str]) -> None:
        globs = list(wanted)
        first = events[0].layout
        self.sample_id = first.words.get("identifier", first.words.get("id", 0))
        self.trailer_id = first.trailer.get("identifier", first.trailer.get("id", 0))
        self._layouts = [event.layout for event in events]
        self._cache: dict[str, np.ndarray] = {}
        pairs = sorted((number, event) for event, attr in enumerate(header.attrs) for number in attr.ids)
        self._numbers = np.array([number for number, _ in pairs], np.uint64)
        self._events = np.array([event for _, event in pairs], np.int64)
        self._single = len(events) == 1 or not self.sample_id or not pairs
        self._wanted = np.array([_is_wanted(event, globs) for event in events])
        self._all_wanted = bool(self._wanted.all())
        smallest = min(layout.fixed_words for layout in self._layouts)
        low, high = (int(self._numbers[0]), int(self._numbers[-1])) if pairs else (0, 0)
        self.pattern = SamplePattern(smallest, 0 if self._single else self.sample_id, low, high)
        self._dense = None
        if pairs and high < 1 << 20:
            self._dense = np.full(high + 2, self.UNKNOWN, np.int64)
            self._dense[self._numbers.astype(np.int64)] = self._events
            self._dense[0] = 0  # perf: id 0 is the first event

    def event_of(self, numbers: np.ndarray) -> np.ndarray:
        """Event of each id; UNKNOWN if there is none."""
        if len(self._numbers) == 0:
            return np.zeros(len(numbers), np.int64)
        if self._dense is not None:
            return self._dense[np.minimum(numbers, np.uint64(len(self._dense) - 1)).astype(np.int64)]
        place = np.minimum(np.searchsorted(self._numbers, numbers), len(self._numbers) - 1)
        event = np.where(self._numbers[place] == numbers, self._events[place], self.UNKNOWN)
        event[numbers == 0] = 0
        return event

    def event_of_samples(self, words: Words, starts: Starts) -> np.ndarray:
        """Event of each sample; UNKNOWN, or UNWANTED."""
        if self._single:
            event = np.zeros(len(starts), np.int64)
        else:
            event = self.event_of(words[starts + self.sample_id])
        if self._all_wanted:
            return event
        return np.where((event >= 0) & ~self._wanted[event], self.UNWANTED, event)

    def event_of_trailers(self, words: Words, ends: Starts) -> np.ndarray:
        """Event that each record's trailer names; the first if it names none."""
        if self._single or not self.trailer_id:
            return np.zeros(len(ends), np.int64)
        return np.maximum(self.event_of(words[ends - self.trailer_id]), 0)

    def part(self, name: str) -> np.ndarray:
        """A number of each event's layout."""
        if name not in self._cache:
            self._cache[name] = np.array([getattr(layout, name) for layout in self._layouts], np.int64)
        return self._cache[name]

    def word(self, words: Words, starts: Starts, event: np.ndarray, part: str, default: int) -> np.ndarray:
        """The word of each sample that holds ``part``."""
        return self._at(words, starts, event, part, default, [layout.words.get(part, 0) for layout in self._layouts])

    def trailer(self, words: Words, ends: Starts, event: np.ndarray, part: str, default: int) -> np.ndarray:
        """The word of each record's trailer that holds ``part``."""
        places = [-layout.trailer.get(part, 0) for layout in self._layouts]
        return self._at(words, ends, event, "trailer_" + part, default, places)

    def _at(  # noqa: PLR0913
        self, words: Words, origin: Starts, event: np.ndarray, key: str, default: int, places: list[int]
    ) -> np.ndarray:
        if len(set(places)) == 1:
            if places[0] == 0:
                return np.full(len(origin), default, np.uint64)
            return words[origin + places[0]]
        place = self._cache.setdefault("at_" + key, np.array(places, np.int64))[event]
        return np.where(place == 0, np.uint64(default), words[origin + place])


def _is_wanted(event: Event, globs: list[str]) -> bool:
    return not globs or any(fnmatch.fnmatchcase(event.name, glob) for glob in globs)


def _events(header: PerfHeader, count: Callable[[str, int], None]) -> list[Event]:
    formats = header.tracing.formats if header.tracing else {}
    events = []
    rows: dict[int, EventRows] = {}
    owners: dict[str, tuple[int, int]] = {}
    for attr in header.attrs:
        event_format = formats.get(attr.config) if attr.type == TRACEPOINT else None
        if event_format is not None:
            name = f"{event_format.system}:{event_format.name}"
            table = f"events/{_safe(event_format.system)}/{_safe(event_format.name)}"
            rows.setdefault(attr.config, EventRows(event_format))
        elif attr.type == TRACEPOINT:
            name = attr.name or f"unknown:tracepoint_{attr.config}"
            table = f"events/unknown/tracepoint_{attr.config}"
            count("event_without_format", 1)
        else:
            name = attr.name or f"type_{attr.type}_config_{attr.config:#x}"
            table = f"samples/{_safe(name)}"
        identity = (attr.type, attr.config)
        while owners.setdefault(table, identity) != identity:
            table += "_"
        known = rows.get(attr.config) if attr.type == TRACEPOINT else None
        events.append(Event(table, name, layout_of(attr), known, attr.type == TRACEPOINT, attr.config))
    return events


def _safe(name: str) -> str:
    """A name from the file as a file name: nothing in it may lead elsewhere."""
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "_-+.") else "_" for char in name)[:120]
    return kept if kept.strip(".") else "_" + kept


