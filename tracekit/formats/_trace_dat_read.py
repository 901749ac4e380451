"""trace.dat, window by window: pages → rows of tables.

One thread reads, decompresses and finds the events. What may be written is split by event, and each event's rows are
decoded and encoded by whichever thread is free.
"""

import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit._workers import Task, Workers
from tracekit.errors import TraceFormatError
from tracekit.formats import ReadOptions, Sink, TraceMetadata, Truncation
from tracekit.formats._backlog import Backlog
from tracekit.formats._perf_events import safe_name
from tracekit.formats._trace_dat_batch import Events, Part
from tracekit.formats._trace_dat_clock import Clock
from tracekit.formats._trace_dat_events import Decoder, EventTables
from tracekit.formats._trace_dat_graph import CallGraph
from tracekit.formats._trace_dat_graph_events import GraphReader
from tracekit.formats._trace_dat_header import BufferInfo, Contents, read_contents
from tracekit.formats._trace_dat_metadata import describe
from tracekit.formats._trace_dat_stacks import Stacks
from tracekit.formats._trace_dat_stream import Source, streams_of
from tracekit.formats._trace_dat_symbols import Comms, Symbols
from tracekit.formats._trace_dat_window import CpuEvents, Lost, Window, Windows, joined

_Key = tuple[int, bool]
"""common_type, and whether the events have the fields of their format; if not, they go to another table."""


def read(path: Path, sink: Sink, options: ReadOptions) -> TraceMetadata:
    """Read the file at ``path``; see tracekit.formats.Reader."""
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            size = before.st_size if options.size_bytes is None else options.size_bytes
            contents = read_contents(path, file, size)
            if not contents.buffers:
                raise TraceFormatError(path, None, "holds a latency tracer's text only; trace-cmd report prints it")
            walk = _Walk(contents, sink, options)
            walk.run(file)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise TraceFormatError(path, None, f"cannot be read: {error.strerror or error}") from error
    if after.st_size <= size and after.st_mtime_ns != before.st_mtime_ns:
        raise TraceFormatError(path, None, "was written to while it was read; ingest a copy")
    return describe(contents, walk.clock, walk.losses, walk.anomalies, walk.truncated)


class _Walk:
    """One pass over all buffers of one file."""

    def __init__(self, contents: Contents, sink: Sink, options: ReadOptions) -> None:
        self.contents = contents
        self.sink = sink
        self.options = options
        self.clock = Clock(contents)
        self.anomalies = dict(contents.problems)
        self.losses: list[int] = []  # −1: of unknown number
        self.truncated = _truncation(contents)
        self._lock = threading.Lock()
        self.stacks = Stacks(contents, sink)
        self.symbols = Symbols(contents.kallsyms, contents.printk)
        big_endian = contents.order == ">"
        self.decoder = Decoder(sink, self.count, Comms(contents.cmdlines), self.symbols, big_endian)
        self._done = 0

    def count(self, kind: str, number: int = 1) -> None:
        """Count an anomaly; from any thread."""
        with self._lock:
            self.anomalies[kind] = self.anomalies.get(kind, 0) + number

    def run(self, file: BinaryIO) -> None:
        """All buffers, in turn."""
        source = Source(file, self.contents.file_bytes, self.contents.order, self.contents.codec)
        names: set[str] = set()
        with Workers(self.options.jobs) as workers:
            for info in self.contents.buffers:
                name = safe_name(info.name) if info.name else ""
                while name in names:
                    name += "_"
                names.add(name)
                self._read_buffer(source, info, name, workers)

    def _read_buffer(self, source: Source, info: BufferInfo, name: str, workers: Workers) -> None:
        root = f"instances/{name}/" if name else ""
        streams = streams_of(source, info)
        windows = Windows(info, streams, self.clock, self.stacks.attach, self.count)
        buffer = _Buffer(self, root)
        for window in windows:
            tasks = buffer.tasks(window)
            workers.finish()
            # here, where no task runs: what this thread appends itself (losses, call chains) would else come in between
            self.sink.settle()
            workers.start(tasks)
            self._report(window.done_bytes)
        workers.finish()
        workers.start(buffer.rest())
        workers.finish()
        buffer.graph.calls.finish()
        self._done += sum(stream.stored_bytes for stream in streams)
        for stream in streams:
            if stream.truncated is not None:
                self.count("cpu_data_cut")
                if self.truncated is None or stream.truncated.offset < self.truncated.offset:
                    self.truncated = stream.truncated

    def _report(self, done: int) -> None:
        if self.options.progress is not None:
            total = max(self.contents.file_bytes, 1)
            self.options.progress(min(self._done + done, total), total)


class _Buffer:
    """The tables of one buffer."""

    def __init__(self, walk: _Walk, root: str) -> None:
        self.walk = walk
        self.root = root
        self.tables = EventTables(walk.contents.formats, walk.options.events, root)
        calls = CallGraph(walk.sink, f"{root}function_graph", walk.symbols)
        self.graph = GraphReader(walk.contents, self.tables, calls)
        self.backlog: Backlog[_Key, Part] = Backlog(self._write)

    def tasks(self, window: Window) -> list[Task]:
        """What there is to do for a window, in any order."""
        self._write_lost(window.lost)
        kinds = self._by_kind(window)
        tasks = []
        for kind, events in kinds.items():
            for whole, part in self.walk.decoder.extract(events, self.tables.event(kind)):
                full = self.backlog.put((kind, whole), part)
                if full is not None:
                    tasks.append(full)
        graph = self.graph.task(kinds)
        return [*tasks, *self.backlog.excess(), *([graph] if graph is not None else [])]

    def _write(self, key: _Key, parts: list[Part]) -> None:
        kind, whole = key
        self.walk.decoder.write(parts, self.tables.event(kind), whole=whole)

    def _by_kind(self, window: Window) -> dict[int, Events]:
        """The events that are wanted."""
        if not window.cpus:
            return {}
        events = joined([self._wanted(events) for events in window.cpus])
        # CPUs come in order, events of each in order of their place: a stable sort by time orders by all three
        order = np.argsort(events.time_ns, kind="stable")
        counts = np.bincount(events.kind)
        order = order.take(np.argsort(_short_keys(events.kind, counts).take(order), kind="stable"))
        chain = None if events.chain is None else events.chain.take(order)
        place, length, time_ns = events.place.take(order), events.length.take(order), events.time_ns.take(order)
        every = Events(window.arena, place, length, time_ns, chain)
        ends = np.cumsum(counts)
        places = {kind: slice(ends[kind] - counts[kind], ends[kind]) for kind in np.flatnonzero(counts).tolist()}
        return {kind: every.pick(place) for kind, place in places.items()}

    def _wanted(self, events: CpuEvents) -> CpuEvents:
        if not self.tables.globs:
            return events
        kinds = np.flatnonzero(np.bincount(events.kind)).tolist()
        left_out = [kind for kind in kinds if not self.tables.event(kind).wanted]
        return events.part(np.flatnonzero(~np.isin(events.kind, left_out))) if left_out else events

    def rest(self) -> list[Task]:
        """What is left to do after the last window."""
        return self.backlog.rest()

    def _write_lost(self, lost: list[Lost]) -> None:
        if not lost:
            return
        lost = sorted(lost)
        self.walk.losses += [one.events for one in lost]
        self.graph.note_lost(lost)
        time_ns, cpu, count, seq = (np.array(column, np.int64) for column in zip(*lost, strict=True))
        named = [
            ("time_ns", _columns.numbers(time_ns)),
            ("cpu", _columns.numbers(cpu.astype(np.int32))),
            ("count", _columns.numbers(count.view(np.uint64), count >= 0)),
            ("seq", _columns.numbers(seq.view(np.uint64))),
        ]
        batch = pa.RecordBatch.from_arrays([array for _, array in named], [name for name, _ in named])
        self.walk.sink.append(f"{self.root}lost", batch)


def _short_keys(kind: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Keys of one byte in the order of uint16[n] ``kind`` where few kinds occur: half the time to sort."""
    there = np.flatnonzero(counts)
    if len(there) > 256:
        return kind
    key = np.zeros(len(counts), np.uint8)
    key[there] = np.arange(len(there))
    return key.take(kind)


def _truncation(contents: Contents) -> Truncation | None:
    if contents.truncated is None:
        return None
    offset, reason = contents.truncated
    offset = min(max(offset, 0), contents.file_bytes)
    return Truncation(offset, contents.file_bytes - offset, reason)
