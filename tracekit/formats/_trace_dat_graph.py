"""funcgraph_entry and funcgraph_exit events → one row for each call of a function: ``function_graph``.

A call is an entry and the exit of the same function that follows it at the same depth of the same task. Task 0 runs
on all CPUs at once and counts as one task for each. No call is paired across a place where its CPU lost events.

Source: kernel/trace/trace_functions_graph.c, fgraph.c: calltime and rettime are of the clock ``local``, whatever the
clock of the buffer is; kernel/trace/trace_entries.h.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats import Sink
from tracekit.formats._trace_dat_symbols import Symbols

_DEPTHS = 1 << 16
MAX_HELD = 1 << 19
"""Rows kept back until all calls that began before them have ended; beyond that, those calls come late."""

Columns = np.ndarray


class GraphEvents(NamedTuple):
    """Entries and exits in order of time; parallel arrays."""

    time_ns: Columns  # int64
    cpu: Columns  # int32
    tid: Columns  # int32
    is_exit: Columns  # bool
    depth: Columns  # int64
    func: Columns  # uint64
    duration_ns: Columns  # int64 of exits; −1: the exit does not say
    overrun: Columns  # int64 of exits
    seq: Columns  # int64
    gap: Columns  # int64: how many times this CPU had lost events before

    def take(self, which: np.ndarray) -> "GraphEvents":
        """Those at the places ``which``."""
        return GraphEvents(*(column[which] for column in self))


class Calls(NamedTuple):
    """Rows of the table; parallel arrays, −1 for null."""

    time_ns: Columns
    cpu: Columns
    tid: Columns
    depth: Columns
    func: Columns
    duration_ns: Columns
    overrun: Columns
    entry_seq: Columns
    exit_seq: Columns


class CallGraph:
    """Pairs entries and exits, window by window."""

    def __init__(self, sink: Sink, table: str, symbols: Symbols) -> None:
        self.sink = sink
        self.table = table
        self.symbols = symbols
        self._open: GraphEvents | None = None
        self._held: list[Calls] = []

    def add(self, events: GraphEvents) -> None:
        """Take in the events of a window."""
        if self._open is not None:
            events = GraphEvents(*(np.concatenate(pair) for pair in zip(self._open, events, strict=True)))
        task = np.where(events.tid == 0, -1 - events.cpu.astype(np.int64), events.tid.astype(np.int64))
        order = np.lexsort((events.depth, task))  # stable: in order of time within
        events, task = events.take(order), task[order]
        key = task * _DEPTHS + events.depth
        again = key[1:] == key[:-1]
        same_cpu = events.cpu[1:] == events.cpu[:-1]
        paired = again & ~events.is_exit[:-1] & events.is_exit[1:] & (events.func[1:] == events.func[:-1])
        paired &= ~same_cpu | (events.gap[1:] == events.gap[:-1])
        is_open = ~events.is_exit & np.append(~again, True)
        is_open &= ~_left(events, task, order)
        has_exit = np.append(paired, False)
        has_entry = np.append(False, paired)
        entries = np.flatnonzero(~events.is_exit & ~is_open)
        exits = np.flatnonzero(events.is_exit & ~has_entry)
        self._held.append(_calls(events, entries, has_exit))
        self._held.append(_lone_exits(events, exits))
        self._open = events.take(np.flatnonzero(is_open))
        self._flush()

    def finish(self) -> None:
        """Write the calls that never ended, and all that was kept back."""
        if self._open is not None and len(self._open.time_ns):
            rows = np.arange(len(self._open.time_ns))
            self._held.append(_calls(self._open, rows, np.zeros(len(rows), bool)))
            self._open = None
        self._flush(everything=True)

    def _flush(self, *, everything: bool = False) -> None:
        held = Calls(*(np.concatenate(parts) for parts in zip(*self._held, strict=True))) if self._held else None
        if held is None or len(held.time_ns) == 0:
            return
        horizon = np.iinfo(np.int64).max
        if not everything and len(held.time_ns) <= MAX_HELD and self._open is not None and len(self._open.time_ns):
            horizon = int(self._open.time_ns.min())
        ready = np.flatnonzero(held.time_ns < horizon) if horizon != np.iinfo(np.int64).max else None
        if ready is None:
            self._held = []
        else:
            kept = np.flatnonzero(held.time_ns >= horizon)
            self._held = [Calls(*(column[kept] for column in held))]
            held = Calls(*(column[ready] for column in held))
        if len(held.time_ns):
            self._write(held)

    def _write(self, calls: Calls) -> None:
        order = np.lexsort((np.where(calls.entry_seq < 0, calls.exit_seq, calls.entry_seq), calls.cpu, calls.time_ns))
        calls = Calls(*(column[order] for column in calls))
        columns = [
            ("time_ns", _columns.numbers(calls.time_ns)),
            ("cpu", _columns.numbers(calls.cpu)),
            ("tid", _columns.numbers(calls.tid)),
            ("depth", _columns.numbers(calls.depth.astype(np.int32))),
            ("func", _columns.numbers(calls.func)),
            ("func_name", self.symbols.column(calls.func)),
            ("duration_ns", _columns.known(calls.duration_ns)),
            ("overrun", _columns.known(calls.overrun)),
            ("entry_seq", _columns.numbers(calls.entry_seq.view(np.uint64), calls.entry_seq >= 0)),
            ("exit_seq", _columns.numbers(calls.exit_seq.view(np.uint64), calls.exit_seq >= 0)),
        ]
        arrays, names = [array for _, array in columns], [name for name, _ in columns]
        self.sink.append(self.table, pa.RecordBatch.from_arrays(arrays, names))


def _left(events: GraphEvents, task: np.ndarray, order: np.ndarray) -> np.ndarray:
    """bool[n]: entries whose task was seen at a lesser depth later: their exit is lost."""
    rank = np.unique(task, return_inverse=True)[1].reshape(-1)
    by_time = np.lexsort((order, rank))
    value = rank[by_time] * _DEPTHS + events.depth[by_time]
    least_later = np.minimum.accumulate(value[::-1])[::-1]
    left = np.zeros(len(task), bool)
    following = np.append(least_later[1:], np.iinfo(np.int64).max)
    left[by_time] = (following // _DEPTHS == rank[by_time]) & (following < value)
    return left


def _calls(events: GraphEvents, entries: np.ndarray, has_exit: np.ndarray) -> Calls:
    ended = has_exit[entries]
    exits = np.minimum(entries + 1, len(events.time_ns) - 1)
    said = events.duration_ns[exits]
    duration = np.where(said >= 0, said, events.time_ns[exits] - events.time_ns[entries])
    return Calls(
        events.time_ns[entries], events.cpu[entries], events.tid[entries], events.depth[entries], events.func[entries],
        np.where(ended, duration, -1), np.where(ended, events.overrun[exits], -1),
        events.seq[entries], np.where(ended, events.seq[exits], -1),
    )  # fmt: skip


def _lone_exits(events: GraphEvents, exits: np.ndarray) -> Calls:
    """Calls that began before the trace or in a gap, or that are recorded at their end only (tracing_thresh)."""
    duration = events.duration_ns[exits]
    return Calls(
        events.time_ns[exits] - np.maximum(duration, 0), events.cpu[exits], events.tid[exits], events.depth[exits],
        events.func[exits], duration, events.overrun[exits], np.full(len(exits), -1, np.int64), events.seq[exits],
    )  # fmt: skip
