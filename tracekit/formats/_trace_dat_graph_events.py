"""Takes what function_graph needs out of the events of a window.

Source: kernel/trace/trace_entries.h funcgraph_entry, funcgraph_exit; before 6.14 depth is an int, from then on unsigned
int or long; kernels that print return addresses call the entry funcgraph_retaddr_entry.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tracekit.formats._event_format import FormatTextError, parse_format
from tracekit.formats._trace_dat_batch import Events
from tracekit.formats._trace_dat_events import EventTables
from tracekit.formats._trace_dat_graph import CallGraph, GraphEvents
from tracekit.formats._trace_dat_header import Contents
from tracekit.formats._trace_dat_window import Lost

_ENTRIES = ("funcgraph_entry", "funcgraph_retaddr_entry")
_EXITS = ("funcgraph_exit",)
_MOST_DEPTH = 0xFFFF


class _Layout(NamedTuple):
    number: int
    is_exit: bool
    row_bytes: int
    fields: dict[str, tuple[int, np.dtype]]  # offset and type


class GraphReader:
    """Feeds a CallGraph."""

    def __init__(self, contents: Contents, tables: EventTables, calls: CallGraph) -> None:
        self.calls = calls
        self._layouts = []
        self._lost: dict[int, list[int]] = {}  # by CPU: places, rising
        for names in (_ENTRIES, _EXITS):
            for number in tables.numbers("ftrace", names):
                layout = _layout(contents, number, is_exit=names is _EXITS)
                if layout is not None and tables.event(number).wanted:
                    self._layouts.append(layout)

    def note_lost(self, lost: list[Lost]) -> None:
        """Events were lost: no call is paired across that."""
        if self._layouts:
            for one in lost:
                self._lost.setdefault(one.cpu, []).append(one.seq)

    def task(self, events: dict[int, Events]) -> Callable[[], None] | None:
        """What takes in the window; None if it has no such events. One task at a time, in the order of the windows."""
        mine = [(layout, events[layout.number]) for layout in self._layouts if layout.number in events]
        if not mine:
            return None

        lost = {cpu: np.array(places, np.int64) for cpu, places in self._lost.items()}

        def task() -> None:
            parts = [_read(some, layout, lost) for layout, some in mine]
            both = GraphEvents(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
            self.calls.add(both.take(np.lexsort((both.seq, both.cpu, both.time_ns))))

        return task


def _layout(contents: Contents, number: int, *, is_exit: bool) -> _Layout | None:
    try:
        event = parse_format("ftrace", contents.formats[number].text)
    except FormatTextError:
        return None
    fields = {
        field.name: (field.offset, np.dtype(f"{contents.order}{'i' if field.signed else 'u'}{field.size}"))
        for field in (*event.common, *event.fields)
        if field.size in {1, 2, 4, 8}
    }
    if not {"common_pid", "func", "depth"} <= fields.keys():
        return None
    return _Layout(number, is_exit, max(offset + kind.itemsize for offset, kind in fields.values()), fields)


def _read(events: Events, layout: _Layout, lost: dict[int, np.ndarray]) -> GraphEvents:
    events = events.pick(np.flatnonzero(events.size >= layout.row_bytes))
    rows, count = events.rows(layout.row_bytes), len(events.place)
    cpu, seq = events.sources()

    def part(name: str) -> np.ndarray:
        return rows.column(*layout.fields[name]).astype(np.int64)

    none = np.full(count, -1, np.int64)
    timed = layout.is_exit and {"calltime", "rettime"} <= layout.fields.keys()
    duration = np.maximum(part("rettime") - part("calltime"), -1) if timed else none
    return GraphEvents(
        events.time_ns,
        cpu,
        part("common_pid").astype(np.int32),
        np.full(count, layout.is_exit),
        np.clip(part("depth"), 0, _MOST_DEPTH - 1),
        part("func").view(np.uint64),
        duration,
        part("overrun") if layout.is_exit and "overrun" in layout.fields else none,
        seq,
        _gaps(cpu, seq, lost),
    )


def _gaps(cpu: np.ndarray, seq: np.ndarray, lost: dict[int, np.ndarray]) -> np.ndarray:
    """int64[n]: how many times the CPU of each event had lost events before it."""
    gaps = np.zeros(len(cpu), np.int64)
    for number, places in lost.items():
        mine = cpu == number
        gaps[mine] = np.searchsorted(places, seq[mine], "right")
    return gaps
