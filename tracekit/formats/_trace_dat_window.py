"""The streams of all CPUs of a buffer → windows of events in order of time.

Each CPU's events are in order; a window ends where the first of the CPUs that have more runs out of what was read of
it. Pages with events beyond that are kept for the next window, the others make room.

The memory of a window is bounded by the pages read at a time, whatever the file says.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tracekit._columns import Bytes
from tracekit.formats._ring_buffer import Lengths, PageLayout, decode_pages
from tracekit.formats._trace_dat_batch import Arena, joined_chains
from tracekit.formats._trace_dat_clock import Clock
from tracekit.formats._trace_dat_header import BufferInfo
from tracekit.formats._trace_dat_stream import Stream

WINDOW_BYTES = 16 << 20
SLACK_BYTES = 1 << 16
"""Behind the pages, so that rows of an event may be copied in their full width wherever it stands."""

Places = np.ndarray[tuple[int], np.dtype[np.int64]]
Count = Callable[..., None]


class CpuEvents(NamedTuple):
    """Events of one CPU in their order; parallel arrays."""

    place: Places  # of the event's data in the window, in words
    length: Lengths
    time_ns: Places
    kind: np.ndarray  # uint16: common_type
    chain: np.ndarray | None  # uint32, NO_CHAIN: none; None: none has any

    def part(self, which: slice | Places) -> "CpuEvents":
        """Some of them."""
        return CpuEvents(*(None if column is None else column[which] for column in self))  # type: ignore[arg-type]


def joined(parts: Sequence[CpuEvents]) -> CpuEvents:
    """All ``parts``, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    place, length, time_ns, kind = (np.concatenate([part[column] for part in parts]) for column in range(4))
    chain = joined_chains([(len(part.place), part.chain) for part in parts])
    return CpuEvents(place, length, time_ns, kind, chain)


class Lost(NamedTuple):
    """Events that were lost before a page."""

    time_ns: int
    cpu: int
    events: int  # −1: unknown
    seq: int


class Window(NamedTuple):
    """Events of all CPUs up to a time."""

    arena: Arena
    cpus: list[CpuEvents]  # in the order of their numbers
    lost: list[Lost]
    done_bytes: int  # of the file, read so far


Attach = Callable[[Arena, CpuEvents, int], CpuEvents]


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
        self.waiting = events if len(events.place) else None

    def wait(self, events: CpuEvents, page_words: int) -> None:
        """``events`` are what waits for the next window."""
        self.add(events)
        page = events.place // page_words
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
        self._arena = self._pages(np.empty(0, np.uint8), [(np.empty(0, np.int32), np.empty(0, np.int64))])
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
        # a CPU whose time is far ahead may keep a whole window waiting: the others still get on
        room = max(WINDOW_BYTES - kept, WINDOW_BYTES // 4)
        share = max(room // max(len(hungry), 1) // page_bytes, 1) * page_bytes
        arena = self._room(kept + sum(min(share, cpu.stream.most_bytes) for cpu in hungry) + SLACK_BYTES)
        pages = [self._keep(arena)]  # of each piece: CPU and shift
        begin = position = len(pages[0][0]) * page_bytes
        spans = []
        for cpu in hungry:
            seq = cpu.stream.seq
            got = cpu.stream.read_into(arena[position : position + min(share, len(arena) - SLACK_BYTES - position)])
            spans.append((cpu, position, got, seq))
            count = got // page_bytes
            pages.append((np.full(count, cpu.cpu, np.int32), np.full(count, seq - position)))
            position += got
        arena[position : position + SLACK_BYTES] = 0
        self._arena = self._pages(arena[: position + SLACK_BYTES], pages)
        if position > begin:
            self._take_in(begin, position, spans)

    def _pages(self, data: Bytes, pages: Sequence[tuple[np.ndarray, Places]]) -> Arena:
        cpu, shift = (np.concatenate(column) for column in zip(*pages, strict=True))
        return Arena(data, data.view(self.layout.dtype("u4")), self.layout.page_bytes // 4, cpu, shift)

    def _room(self, size: int) -> Bytes:
        """An array for the next window: the one before last, if it is large enough, which saves the kernel clearing it.

        Whoever takes windows is done with one before he asks for the next but one.
        """
        spare = self._spare.pop(0) if len(self._spare) > 1 else np.empty(0, np.uint8)
        if len(spare) < size:
            spare = np.empty(size, np.uint8)
        self._spare.append(spare)
        return spare[:size]

    def _keep(self, arena: Bytes) -> tuple[np.ndarray, Places]:
        """Copy the pages that waiting events are in; returns ``cpu`` and ``shift`` of each; see Arena."""
        page_bytes, page_words = self.layout.page_bytes, self.layout.page_bytes // 4
        old = self._arena.data[: len(self._arena.cpu) * page_bytes].reshape(-1, page_bytes)
        kept = np.concatenate([np.empty(0, np.int64), *(cpu.pages for cpu in self.cpus)])
        np.take(old, kept, axis=0, out=arena[: len(kept) * page_bytes].reshape(-1, page_bytes), mode="clip")
        moved = np.zeros(len(old), np.int64)  # pages further to the end
        moved[kept] = np.arange(len(kept)) - kept
        for cpu in self.cpus:
            if cpu.waiting is not None:
                by = (moved * page_words).take(cpu.waiting.place // page_words)
                cpu.waiting = cpu.waiting._replace(place=cpu.waiting.place + by)
                cpu.pages = cpu.pages + moved.take(cpu.pages)
        return self._arena.cpu.take(kept), self._arena.shift.take(kept) - moved.take(kept) * page_bytes

    def _take_in(self, begin: int, end: int, spans: list[tuple[_Cpu, int, int, int]]) -> None:
        """Decode the pages at ``[begin, end)`` of the arena and give each CPU its own."""
        page_bytes = self.layout.page_bytes
        found = decode_pages(self._arena.data[begin:end], self.layout)
        for problem, number in found.problems.items():
            self.count(problem, number)
        place = found.place
        place += begin // 4
        head = self._arena.words.take(place)
        kind = (head >> np.uint32(16) if self.layout.big_endian else head).astype(np.uint16)
        ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(found.counts)))
        for cpu, start, size, seq in spans:
            first = (start - begin) // page_bytes
            last = first + size // page_bytes
            self._note_lost(cpu, found.missed[first:last], found.first_stamp[first:last], seq)
            part = slice(int(ends[first]), int(ends[last]))
            time_ns = self.clock.times(found.stamp[part], cpu.number)
            self._append(cpu, CpuEvents(place[part], found.length[part], time_ns, kind[part], None))

    def _note_lost(self, cpu: _Cpu, missed: Places, stamp: np.ndarray, seq: int) -> None:
        places = np.flatnonzero(missed)
        times = self.clock.times(stamp[places], cpu.number).tolist()
        for place, time_ns, count in zip(places.tolist(), times, missed[places].tolist(), strict=True):
            self._lost.append(Lost(time_ns, cpu.cpu, count, seq + place * self.layout.page_bytes))

    def _append(self, cpu: _Cpu, events: CpuEvents) -> None:
        if len(events.place) == 0:
            return
        cpu.rising &= bool((events.time_ns[1:] >= events.time_ns[:-1]).all()) and cpu.latest <= int(events.time_ns[0])
        cpu.latest = max(cpu.latest, int(events.time_ns[-1] if cpu.rising else events.time_ns.max()))
        old = 0
        if cpu.waiting is not None:
            old = len(cpu.waiting.place)
            events = joined([cpu.waiting, events])
        cpu.add(self.attach(self._arena, events, old))

    def _cut(self, horizon: int | None) -> Window:
        """What may go out: everything before ``horizon``; all if there is none."""
        parts = []
        for cpu in self.cpus:
            if cpu.waiting is None:
                continue
            row = len(cpu.waiting.place)
            if horizon is not None and not self._crowded(cpu):
                row = cpu.before(horizon)
            parts.append(cpu.waiting.part(slice(0, row)))
            cpu.wait(cpu.waiting.part(slice(row, None)), self.layout.page_bytes // 4)
        lost, self._lost = self._lost, []
        return Window(self._arena, parts, lost, sum(cpu.stream.done_bytes for cpu in self.cpus))

    def _crowded(self, cpu: _Cpu) -> bool:
        """Whether so much waits that it must go out although its time has not come: a clock that stands still."""
        assert cpu.waiting is not None
        if len(cpu.pages) * self.layout.page_bytes <= WINDOW_BYTES:
            return False
        self.count("flushed_before_its_time")
        return True
