"""What becomes of the events of each number in a trace.dat file: which table, decoded how."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit._columns import Bytes
from tracekit.formats import Sink
from tracekit.formats._event_format import EventFormat, Field, FormatTextError, parse_format
from tracekit.formats._event_rows import NO_RAWS, EventRows, Named, Places, Raws
from tracekit.formats._perf_events import safe_name
from tracekit.formats._trace_dat_batch import NO_CHAIN, Events, Part, joined
from tracekit.formats._trace_dat_symbols import Comms, Symbols
from tracekit.formats._tracing_data import FormatText

Count = Callable[..., None]
_NULLABLE = frozenset({"cpu", "pid", "tid", "comm", "callchain_id"})
_ADDRESSES = {"ip": "ip_name", "parent_ip": "parent_ip_name", "func": "func_name"}
"""Fields of ftrace's own events that hold an address of code, and the column with its name."""
_STACKS = frozenset({"kernel_stack", "user_stack"})
_I32, _U32 = np.dtype(np.int32), np.dtype(np.uint32)
_PID = 4  # where all events have it
_WIDTHS = frozenset({4, 8})
"""Of an address; a field of another size is no number, whatever its name."""


class TraceEvent:
    """Events of one number."""

    def __init__(self, number: int, text: FormatText | None, root: str, wanted: bool) -> None:
        self.number = number
        self.text = text
        self.wanted = wanted
        self.raw_table = f"{root}events/unknown/type_{number}"
        self.name = f"{text.system}:{text.name}" if text else f"unknown:type_{number}"
        self.table = f"{root}events/{safe_name(text.system)}/{safe_name(text.name)}" if text else self.raw_table
        self._layout: _Layout | None = None

    def layout(self, count: Count, *, big_endian: bool) -> "_Layout | None":
        """How its fields are decoded; None if there is no usable format."""
        if self._layout is None and self.text is not None:
            try:
                self._layout = _Layout(parse_format(self.text.system, self.text.text), big_endian=big_endian)
            except FormatTextError:
                count("format_damaged")
                self.text, self.table = None, self.raw_table
        return self._layout

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """What its table says of it."""
        said = {b"tracekit.event": self.name.encode()}
        return said if self.text is None else {**said, b"tracekit.format": self.text.text.encode()}


class EventTables:
    """The events of one buffer, found by number; made when first seen."""

    def __init__(self, formats: dict[int, FormatText], globs: Sequence[str], root: str) -> None:
        self.formats = formats
        self.globs = globs
        self.root = root
        self._events: dict[int, TraceEvent] = {}
        self._owners: dict[str, int] = {}

    def event(self, number: int) -> TraceEvent:
        """The event with that common_type."""
        found = self._events.get(number)
        if found is None:
            text = self.formats.get(number)
            name = f"{text.system}:{text.name}" if text else f"unknown:type_{number}"
            wanted = not self.globs or any(fnmatch.fnmatchcase(name, glob) for glob in self.globs)
            found = self._events[number] = TraceEvent(number, text, self.root, wanted)
            while self._owners.setdefault(found.table, number) != number:
                found.table += "_"
        return found

    def numbers(self, system: str, names: Sequence[str]) -> list[int]:
        """common_type of those events that the file knows."""
        return [number for number, text in self.formats.items() if text.system == system and text.name in names]


class _Layout:
    """The parts of a format: what has a fixed place, and what fills the rest of the record."""

    def __init__(self, event: EventFormat, *, big_endian: bool) -> None:
        stack = event.system == "ftrace" and event.name in _STACKS
        self.event = event
        self.big_endian = big_endian
        self.tail = next((f for f in event.fields if f.array == "[]" and not f.dynamic and f.size == 0), None)
        if stack:
            self.tail = next((field for field in event.fields if field.name == "caller"), None)
        fixed = tuple(field for field in event.fields if field is not self.tail)
        self.rows = EventRows(event._replace(fields=fixed))
        # the place of variable data has four bytes, whatever a damaged format says
        dynamic = max((field.offset + 4 for field in fixed if field.dynamic), default=0)
        self.row_bytes = max(self.rows.row_bytes, dynamic, self.tail.offset if self.tail else 0)
        own = {
            field.name: field
            for field in fixed
            if event.system == "ftrace" and field.size in _WIDTHS and not field.array and not field.dynamic
        }
        self.counter = own.get("size") if stack else None
        self.text = own.get("str") if event.name == "bputs" else None
        self.pattern = own.get("fmt") if event.name == "bprint" else None
        self.addresses = [field for name, field in own.items() if name in _ADDRESSES]
        self.variable = self.rows.dynamic or self.tail is not None
        self.swaps = _swaps((*event.common, *fixed)) if big_endian else []

    def numbers(self, part: Part, field: Field) -> np.ndarray:
        """uint64[n] values of a field that is one number, whatever its sign."""
        values = part.fields[self.rows.place(field)]
        return values.view(f"u{values.itemsize}").astype(np.uint64)


def _swaps(fields: Sequence[Field]) -> list[tuple[int, int, int]]:
    """Offset, size of an element and number of elements of everything that has a byte order."""
    found = []
    for field in fields:
        if field.text and not field.dynamic:
            continue
        length = field.array.strip("[]")
        count = int(length) if field.array and not field.dynamic and length.isdecimal() else 1
        if count and field.size % count == 0 and field.size // count in {2, 4, 8}:
            found.append((field.offset, field.size // count, count))
    return found


class Decoder(NamedTuple):
    """Decodes events of any number into ``sink``."""

    sink: Sink
    note: Count  # of anomalies
    comms: Comms
    symbols: Symbols
    big_endian: bool

    def extract(self, events: Events, event: TraceEvent) -> list[tuple[bool, Part]]:
        """Take the columns of ``events``, all of which are of ``event``, out of their window.

        Those that are not as long as their format says are kept as bytes: they come in a part of their own, not whole.
        """
        layout = event.layout(self.note, big_endian=self.big_endian)
        if layout is None:
            return [(False, self._raw_part(events))]
        if events.length.min() >= (layout.row_bytes + 3) // 4:  # 0 for those that are long
            return [(True, self._part(events, layout))]
        whole = events.size >= layout.row_bytes
        found = []
        if not whole.all():
            found.append((False, self._raw_part(events.pick(np.flatnonzero(~whole)))))
        if whole.any():
            found.append((True, self._part(events.pick(np.flatnonzero(whole)), layout)))
        return found

    def _part(self, events: Events, layout: _Layout) -> Part:
        rows = events.rows(layout.row_bytes)
        for offset, size, number in layout.swaps:
            _swap(rows.matrix, offset, size, number)
        raws = events.raws() if layout.variable else NO_RAWS
        return _part(events, rows.column(_PID, _I32), layout.rows.extract(rows), raws)

    def _raw_part(self, events: Events) -> Part:
        tid = events.rows(8).column(_PID, np.dtype(">i4" if self.big_endian else "<i4"))
        return _part(events, tid.astype(np.int32), [], events.raws())

    def write(self, parts: Sequence[Part], event: TraceEvent, *, whole: bool) -> None:
        """Hand on the rows of ``parts``, all of which are of ``event`` and whole or not."""
        part = joined(parts)
        columns = self._common(part)
        layout = event.layout(self.note, big_endian=self.big_endian)
        if layout is None or not whole:
            raws = part.raws
            self.note("event_without_format" if layout is None else "event_shorter_than_format", len(raws.at))
            raw = _columns.binary(raws.data, raws.at, raws.at + raws.size)
            self._append(event.raw_table, event, [*columns, ("raw", raw)])
            return
        columns += layout.rows.arrays(part.fields, part.raws, self.note)
        for field in layout.addresses:
            columns.append((_ADDRESSES[field.name], self.symbols.column(layout.numbers(part, field))))
        if layout.tail is not None:
            columns += self._tail(part, layout)
        if layout.text is not None:  # bputs: the pointer's string
            known = self.symbols.printk_formats
            pointers = layout.numbers(part, layout.text).tolist()
            columns.append(("buf", _columns.texts([known.get(one, hex(one)).removesuffix("\n") for one in pointers])))
        self._append(event.table, event, columns)

    def _common(self, part: Part) -> Named:
        time_ns, cpu, tid, seq = part.common
        if part.chain is None:
            chain = _columns.nulls(_U32, len(tid))
        else:
            chain = _columns.numbers(part.chain, part.chain != NO_CHAIN)
        return [
            ("time_ns", _columns.numbers(time_ns)),
            ("cpu", _columns.numbers(cpu)),
            ("pid", _columns.nulls(_I32, len(tid))),
            ("tid", _columns.known(tid)),
            ("comm", self.comms.column(tid)),
            ("callchain_id", chain),
            ("seq", _columns.numbers(seq.view(np.uint64))),
        ]

    def _tail(self, part: Part, layout: _Layout) -> Named:
        """The field that fills the rest of the record."""
        field, events = layout.tail, part.raws
        assert field is not None
        begin, end = events.at + field.offset, events.at + events.size
        if layout.event.system == "ftrace" and layout.event.name == "print":
            return [(field.name, _line(events.data, begin, end))]
        if layout.pattern is not None:
            patterns = layout.numbers(part, layout.pattern).tolist()
            texts = _bprint(self.symbols, patterns, layout.pattern.size, events, field, self.big_endian)
            return [(field.name, _columns.texts(texts))]
        width = _width(field, layout)
        length = (end - begin) // width
        if layout.counter is not None:
            stored = layout.numbers(part, layout.counter).astype(f"i{layout.counter.size}").astype(np.int64)
            length = np.clip(stored, 0, length)
        flat, offsets = _columns.pick(events.data, begin, begin + length * width)
        kind = np.dtype((">" if self.big_endian else "<") + f"u{width}")
        return [(field.name, _columns.lists(flat.view(kind).astype(kind.newbyteorder("=")), offsets // width))]

    def _append(self, table: str, event: TraceEvent, columns: Named) -> None:
        fields = [
            pa.field(name, array.type, nullable=name in _NULLABLE or not pa.types.is_integer(array.type))
            for name, array in columns
        ]
        schema = pa.schema(fields, event.metadata)
        self.sink.append(table, pa.RecordBatch.from_arrays([array for _, array in columns], schema=schema))


def _bprint(  # noqa: PLR0913, PLR0917 - where the parts of an event are
    symbols: Symbols, patterns: list[int], width: int, events: Raws, tail: Field, big_endian: bool
) -> list[str]:
    from tracekit.formats._trace_dat_printk import format_binary  # noqa: PLC0415 - few traces have such events

    begin = (events.at + tail.offset).tolist()
    end = (events.at + events.size).tolist()
    data = events.data.data
    order = ">" if big_endian else "<"
    return [
        format_binary(symbols, pattern, bytes(data[first:last]), width, order)
        for pattern, first, last in zip(patterns, begin, end, strict=True)
    ]


def _width(field: Field, layout: _Layout) -> int:
    """Bytes of an element of the field that fills the rest."""
    longs = [other.size for other in layout.event.fields if "long" in other.type and other.size in _WIDTHS]
    if field.size:  # a stack: caller[8]
        length = field.array.strip("[]")
        width = field.size // int(length) if length.isdecimal() and int(length) else 8
        return width if width in _WIDTHS else 8
    if "long" in field.type or "*" in field.type:
        return 8 if "long long" in field.type or not longs else longs[0]
    return {"char": 1, "u8": 1, "u16": 2, "short": 2, "u64": 8}.get(field.type.split()[-1] if field.type else "", 4)


def _line(arena: Bytes, begin: Places, end: Places) -> pa.Array:
    """Strings up to their NUL and without the newline at their end."""
    flat, offsets = _columns.pick(arena, begin, end)
    first, last = offsets[:-1], offsets[1:]
    zeros = np.flatnonzero(flat == 0)
    if len(zeros):
        place = np.searchsorted(zeros, first)
        last = np.minimum(last, np.where(place < len(zeros), zeros[np.minimum(place, len(zeros) - 1)], len(flat)))
    newline = (last > first) & (flat.take(np.maximum(last - 1, 0), mode="clip") == 10) if len(flat) else last > first
    return _columns.strings(flat, first, last - newline)


def _part(events: Events, tid: np.ndarray, fields: list[np.ndarray], raws: Raws) -> Part:
    """Copies of all that is to be kept: what was a piece of a window's columns would keep all of these alive."""
    cpu, seq = events.sources()
    chain = None if events.chain is None else events.chain.copy()
    return Part([events.time_ns.copy(), cpu, tid, seq], fields, chain, raws)


def _swap(matrix: np.ndarray, offset: int, size: int, number: int) -> None:
    """Turn the bytes of ``number`` elements of ``size`` bytes round."""
    part = matrix[:, offset : offset + size * number].reshape(len(matrix), number, size)
    matrix[:, offset : offset + size * number] = part[:, :, ::-1].reshape(len(matrix), number * size)
