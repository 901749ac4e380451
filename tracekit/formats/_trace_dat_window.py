"""The streams of all CPUs of a buffer → windows of events in order of time.

Each CPU's events are in order; a window ends where the first of the CPUs that have more runs out of what was read of
it. Pages with events beyond that are kept for the next window, the others make room.

The memory of a window is bounded by the pages read at a time, whatever the file says.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tracekit._columns import Bytes
from tracekit.formats._ring_buffer import PageLayout, decode_pages
from tracekit.formats._trace_dat_batch import joined_chains
from tracekit.formats._trace_dat_clock import Clock
from tracekit.formats._trace_dat_header import BufferInfo
from tracekit.formats._trace_dat_stream import Stream

WINDOW_BYTES = 8 << 20
SLACK_BYTES = 1 << 16
"""Behind the pages, so that rows of an event may be copied in their full width wherever it stands."""

Places = np.ndarray[tuple[int], np.dtype[np.int64]]
Count = Callable[..., None]


class CpuEvents(NamedTuple):
    """Events of one CPU in their order; parallel arrays."""

    at: Places  # of the event's data in the window
    size: Places
    time_ns: Places
    seq: Places
    kind: np.ndarray  # uint16: common_type
    chain: np.ndarray | None  # uint32, NO_CHAIN: none; None: none has any

    def part(self, which: slice | Places) -> "CpuEvents":
        """Some of them."""
        return CpuEvents(*(None if column is None else column[which] for column in self))  # type: ignore[arg-type]


def joined(parts: Sequence[CpuEvents]) -> CpuEvents:
    """All ``parts``, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    at, size, time_ns, seq, kind = (np.concatenate([part[column] for part in parts]) for column in range(5))
    chain = joined_chains([(len(part.at), part.chain) for part in parts])
    return CpuEvents(at, size, time_ns, seq, kind, chain)


class Lost(NamedTuple):
    """Events that were lost before a page."""

    time_ns: int
    cpu: int
    events: int  # −1: unknown
    seq: int


class Window(NamedTuple):
    """Events of all CPUs up to a time."""

    arena: Bytes
    cpus: list[tuple[int, CpuEvents]]
    lost: list[Lost]
    done_bytes: int  # of the file, read so far


Attach = Callable[[Bytes, CpuEvents, int], CpuEvents]


class _Cpu:
    """One stream and those of its events that wait."""

    def __init__(self, number: int, cpu: int, stream: Stream) -> None:
        self.number = number
        self.cpu = cpu
        self.stream = stream
        self.waiting: CpuEvents | None = None
        self.pages: Places = np.empty(0, np.int64)  # in the arena, of those that waiting events are in; rising
        self.latest = np.iinfo(np.int64).min
        self.rising = True  # whether time never went back

    @property
    def done(self) -> bool:
        return self.stream.exhausted and self.waiting is None

    def wants(self, pages: int) -> bool:
        """Whether to read more of it now: what waits is less than ``pages``, or all of one time and cannot go out."""
        if self.stream.exhausted:
            return False
        return self.waiting is None or len(self.pages) < pages or self.waiting.time_ns[0] == self.waiting.time_ns[-1]

    def add(self, events: CpuEvents) -> None:
        """``events`` are what waits now."""
        self.waiting = events if len(events.at) else None

    def wait(self, events: CpuEvents, page_bytes: int) -> None:
        """``events`` are what waits for the next window."""
        self.add(events)
        page = events.at // page_bytes
        self.pages = page[
            np.concatenate((np.zeros(1, np.int64), 1 + np.flatnonzero(page[1:] != page[:-1])))[: len(page)]
        ]

    def before(self, horizon: int) -> int:
        """How many of those that wait come before ``horizon``."""
        assert self.waiting is not None
        time_ns = self.waiting.time_ns
        return int(np.searchsorted(time_ns if self.rising else np.maximum.accumulate(time_ns), horizon))


class Windows:
    """Reads one buffer."""

    def __init__(self, info: BufferInfo, streams: list[Stream], clock: Clock, attach: Attach, count: Count) -> None:
        self.layout: PageLayout = info.layout
        self.clock = clock
        self.attach = attach
        self.count = count
        self.cpus = [
            _Cpu(number, data.cpu, stream) for number, (data, stream) in enumerate(zip(info.cpus, streams, strict=True))
        ]
        self.cpus.sort(key=lambda cpu: cpu.cpu)
        self._lost: list[Lost] = []
        self._arena: Bytes = np.empty(0, np.uint8)
        self._spare: list[Bytes] = []

    def __iter__(self) -> Iterator[Window]:
        while not all(cpu.done for cpu in self.cpus):
            self._fill()
            horizon = min((cpu.latest for cpu in self.cpus if not cpu.stream.exhausted), default=None)
            yield self._cut(horizon)

    def _fill(self) -> None:
        """A new arena: the pages that still hold waiting events, and new ones of the CPUs that run out."""
        page_bytes = self.layout.page_bytes
        active = sum(not cpu.stream.exhausted for cpu in self.cpus)
        hungry = [cpu for cpu in self.cpus if cpu.wants(WINDOW_BYTES // page_bytes // max(2 * active, 1))]
        kept = sum(len(cpu.pages) for cpu in self.cpus) * page_bytes
        share = max((WINDOW_BYTES - kept) // max(len(hungry), 1) // page_bytes, 1) * page_bytes
        arena = self._room(kept + sum(min(share, cpu.stream.most_bytes) for cpu in hungry) + SLACK_BYTES)
        begin = position = self._keep(arena)
        spans = []
        for cpu in hungry:
            seq = cpu.stream.seq
            got = cpu.stream.read_into(arena[position : position + min(share, len(arena) - SLACK_BYTES - position)])
            spans.append((cpu, position, got, seq))
            position += got
        arena[position : position + SLACK_BYTES] = 0
        self._arena = arena[: position + SLACK_BYTES]
        if position > begin:
            self._take_in(begin, position, spans)

    def _room(self, size: int) -> Bytes:
        """An array for the next window: the one before last, if it is large enough, which saves the kernel clearing it.

        Whoever takes windows is done with one before he asks for the next but one.
        """
        spare = self._spare.pop(0) if len(self._spare) > 1 else np.empty(0, np.uint8)
        if len(spare) < size:
            spare = np.empty(size, np.uint8)
        self._spare.append(spare)
        return spare[:size]

    def _keep(self, arena: Bytes) -> int:
        """Copy the pages that waiting events are in; returns where they end."""
        page_bytes = self.layout.page_bytes
        old = self._arena[: len(self._arena) // page_bytes * page_bytes].reshape(-1, page_bytes)
        first = 0
        for cpu in self.cpus:
            if cpu.waiting is None:
                continue
            count = len(cpu.pages)
            arena[first * page_bytes : (first + count) * page_bytes].reshape(count, page_bytes)[:] = old[cpu.pages]
            page = cpu.waiting.at // page_bytes
            moved = np.zeros(len(old), np.int64)
            moved[cpu.pages] = (np.arange(first, first + count) - cpu.pages) * page_bytes
            cpu.waiting = cpu.waiting._replace(at=cpu.waiting.at + moved.take(page))
            cpu.pages = np.arange(first, first + count)
            first += count
        return first * page_bytes

    def _take_in(self, begin: int, end: int, spans: list[tuple[_Cpu, int, int, int]]) -> None:
        """Decode the pages at ``[begin, end)`` of the arena and give each CPU its own."""
        page_bytes = self.layout.page_bytes
        found = decode_pages(self._arena[begin:end], self.layout)
        for problem, number in found.problems.items():
            self.count(problem, number)
        at = found.at
        at += begin
        head = self._arena.view(np.uint32).take(at >> 2)
        if self.layout.big_endian:
            head = head.byteswap() >> np.uint32(16)
        kind = head.astype(np.uint16)
        ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(found.counts)))
        for cpu, start, size, seq in spans:
            first = (start - begin) // page_bytes
            last = first + size // page_bytes
            self._note_lost(cpu, found.missed[first:last], found.first_stamp[first:last], seq)
            part = slice(int(ends[first]), int(ends[last]))
            time_ns = self.clock.times(found.stamp[part], cpu.number)
            self._append(
                cpu, CpuEvents(at[part], found.size[part], time_ns, at[part] + (seq - start), kind[part], None)
            )

    def _note_lost(self, cpu: _Cpu, missed: Places, stamp: np.ndarray, seq: int) -> None:
        places = np.flatnonzero(missed)
        times = self.clock.times(stamp[places], cpu.number).tolist()
        for place, time_ns, count in zip(places.tolist(), times, missed[places].tolist(), strict=True):
            self._lost.append(Lost(time_ns, cpu.cpu, count, seq + place * self.layout.page_bytes))

    def _append(self, cpu: _Cpu, events: CpuEvents) -> None:
        if len(events.at) == 0:
            return
        cpu.rising &= bool((events.time_ns[1:] >= events.time_ns[:-1]).all()) and cpu.latest <= int(events.time_ns[0])
        cpu.latest = max(cpu.latest, int(events.time_ns[-1] if cpu.rising else events.time_ns.max()))
        old = 0
        if cpu.waiting is not None:
            old = len(cpu.waiting.at)
            events = joined([cpu.waiting, events])
        cpu.add(self.attach(self._arena, events, old))

    def _cut(self, horizon: int | None) -> Window:
        """What may go out: everything before ``horizon``; all if there is none."""
        parts = []
        for cpu in self.cpus:
            if cpu.waiting is None:
                continue
            row = len(cpu.waiting.at)
            if horizon is not None and not self._crowded(cpu):
                row = cpu.before(horizon)
            parts.append((cpu.cpu, cpu.waiting.part(slice(0, row))))
            cpu.wait(cpu.waiting.part(slice(row, None)), self.layout.page_bytes)
        lost, self._lost = self._lost, []
        return Window(self._arena, parts, lost, sum(cpu.stream.done_bytes for cpu in self.cpus))

    def _crowded(self, cpu: _Cpu) -> bool:
        """Whether so much waits that it must go out although its time has not come: a clock that stands still."""
        assert cpu.waiting is not None
        if len(cpu.pages) * self.layout.page_bytes <= WINDOW_BYTES:
            return False
        self.count("flushed_before_its_time")
        return True
