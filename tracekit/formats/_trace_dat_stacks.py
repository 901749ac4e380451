"""Kernel stacks in the ring buffer → call chains of the events they belong to.

The kernel writes an event's stack right behind it, into the same buffer; an interrupt in between may put its own events
(and their stacks) there. So a stack belongs to the nearest event before it that is of the same task, is no stack, and
has none yet.

Source: kernel/trace/trace.c __ftrace_trace_stack(); kernel/trace/trace_entries.h kernel_stack.
"""

from typing import NamedTuple

import numpy as np

from tracekit._columns import pick
from tracekit.formats import Sink
from tracekit.formats._event_format import Field, FormatTextError, parse_format
from tracekit.formats._perf_callchain import CallchainIds
from tracekit.formats._ring_buffer import Lengths, sizes
from tracekit.formats._trace_dat_batch import Arena, no_chains
from tracekit.formats._trace_dat_events import EventTables
from tracekit.formats._trace_dat_header import Contents
from tracekit.formats._trace_dat_window import CpuEvents

_LOOK_BACK = 16  # events of interrupts between an event and its stack
Places = np.ndarray[tuple[int], np.dtype[np.int64]]


class _StackLayout(NamedTuple):
    """Where the addresses of a stack are."""

    number: int  # common_type
    offset: int
    width: int  # of an address
    counter: Field | None  # the field that counts them; older kernels end with −1


class Stacks:
    """Numbers the stacks of a file; they become rows of ``callchains``."""

    def __init__(self, contents: Contents, sink: Sink) -> None:
        self.order = contents.order
        self.chains = CallchainIds(sink)
        tables = EventTables(contents.formats, (), "")
        self.all = np.array(tables.numbers("ftrace", ("kernel_stack", "user_stack")), np.int64)
        self.kernel = [
            found
            for number in tables.numbers("ftrace", ("kernel_stack",))
            if (found := _layout(number, contents)) is not None
        ]

    def attach(self, arena: Arena, events: CpuEvents, fresh: int) -> CpuEvents:
        """``events`` of one CPU, with ``chain`` of those that have a stack among those from ``fresh`` on."""
        for layout in self.kernel:
            mine = fresh + np.flatnonzero(events.kind[fresh:] == layout.number)
            if len(mine):
                if events.chain is None:
                    events = events._replace(chain=no_chains(len(events.place)))
                assert events.chain is not None
                ids = self._ids(arena, events.place[mine], events.length[mine], layout)
                tid = arena.words.take(events.place + 1)
                _attach(np.isin(events.kind, self.all), tid, events.chain, mine, ids)
        return events

    def _ids(self, arena: Arena, place: Places, words: Lengths, layout: _StackLayout) -> np.ndarray:
        """uint32[n] numbers of the chains."""
        length = np.maximum(sizes(arena.words, place, words) - layout.offset, 0) // layout.width
        at = place << 2
        if layout.counter is not None:
            counter = at[:, None] + layout.counter.offset + np.arange(layout.counter.size)
            kind = np.dtype(f"{self.order}i{layout.counter.size}")
            stored = np.ascontiguousarray(arena.data.take(counter, mode="clip")).view(kind).reshape(-1).astype(np.int64)
            length = np.clip(stored, 0, length)
        begin = at + layout.offset
        flat, offsets = pick(arena.data, begin, begin + length * layout.width)
        ips = flat.view(np.dtype(f"{self.order}u{layout.width}")).astype(np.uint64)
        starts = offsets[:-1] // layout.width
        if layout.counter is None:
            end = np.uint64((1 << (8 * layout.width)) - 1)
            ends = np.append(np.flatnonzero(ips == end), len(ips))
            length = np.minimum(length, ends[np.searchsorted(ends, starts)] - starts)
        return self.chains.number(ips, starts, length)


def _layout(number: int, contents: Contents) -> _StackLayout | None:
    try:
        event = parse_format("ftrace", contents.formats[number].text)
    except FormatTextError:
        return None
    caller = next((field for field in event.fields if field.name == "caller"), None)
    if caller is None:
        return None
    length = caller.array.strip("[]")
    width = caller.size // int(length) if length.isdecimal() and int(length) else contents.long_bytes
    count = next((field for field in event.fields if field.name == "size" and field.size in {1, 2, 4, 8}), None)
    return _StackLayout(number, caller.offset, width if width in {4, 8} else contents.long_bytes, count)


def _attach(is_stack: np.ndarray, tid: np.ndarray, chain: np.ndarray, mine: Places, ids: np.ndarray) -> None:
    place = mine - 1
    taken = np.zeros(len(chain), bool)
    for _ in range(_LOOK_BACK):
        if len(mine) == 0:
            return
        inside = np.maximum(place, 0)
        # of two stacks that come to the same event, the first has it
        right = (place >= 0) & ~is_stack[inside] & ~taken[inside] & (tid[inside] == tid[mine])
        first = np.zeros(len(mine), bool)
        first[np.unique(inside, return_index=True)[1]] = True
        right &= first
        chain[place[right]] = ids[right]
        taken[place[right]] = True
        left = ~right & (place > 0)
        mine, ids, place = mine[left], ids[left], place[left] - 1
