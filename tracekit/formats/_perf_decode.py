"""Samples of one event → batches of its table."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats import Sink
from tracekit.formats._backlog import Backlog
from tracekit.formats._event_rows import NO_RAWS, EventRows, Named, Places, Raws, Rows
from tracekit.formats._perf_batch import Part, joined
from tracekit.formats._perf_callchain import NONE
from tracekit.formats._perf_events import PerfEvent
from tracekit.formats._perf_index import Starts, Words
from tracekit.formats._perf_reading import reading_types
from tracekit.formats._perf_rest import REST, rest, rest_types
from tracekit.formats._perf_sample import CALLCHAIN, RAW, READ, SampleLayout, Variable, locate, word_of
from tracekit.formats._perf_swap import swap_raw
from tracekit.formats._perf_window import Ordered

_U16, _I32, _U32, _I64 = (np.dtype(kind) for kind in (np.uint16, np.int32, np.uint32, np.int64))
_COMMON = [
    ("time_ns", pa.int64()), ("cpu", pa.int32()), ("pid", pa.int32()), ("tid", pa.int32()), ("comm", _columns.LABEL),
    ("callchain_id", pa.uint32()), ("seq", pa.uint64()),
]  # fmt: skip
_WORDS = ("ip", "addr", "period")
_RAW = [("raw", pa.binary())]
_NULLABLE = frozenset({"cpu", "pid", "tid", "comm", "callchain_id"})


_COMMON_PLACES = (("time", 0, _I64, 0), ("cpu", 0, _I32, -1), ("tid", 0, _I32, -1), ("tid", 4, _I32, -1))


class _RawOf(NamedTuple):
    """The raw data of samples."""

    found: Variable | None  # None: it follows the fixed words of each
    place: Starts  # words
    size: Places  # bytes, 0 where not whole
    whole: np.ndarray[tuple[int], np.dtype[np.bool_]]
    matrix: np.ndarray | None  # copies of the records, if ``found`` is None


class Decoder:
    """Decodes the samples of any event of a file into ``sink``; ``note`` is told of anomalies."""

    def __init__(self, sink: Sink, note: Callable[..., None], names: list[str], *, swapped: bool = False) -> None:
        self.sink = sink
        self.note = note
        self.names = names  # of tasks
        self.swapped = swapped  # raw data is in the other byte order
        self.backlog: Backlog[PerfEvent, Part] = Backlog(self._write_parts, keeps_last=True)
        self.tables: set[str] = set()  # that have rows
        self._schemas: dict[tuple[str, PerfEvent], pa.Schema] = {}

    def declare(self, event: PerfEvent) -> None:
        """Make the table of an event that did not fire."""
        if event.tracepoint and event.layout.sample_type & RAW and event.rows(self.note) is None:
            return
        schema = self._schema(event.table, event)
        nothing = [pa.nulls(0, kind) for kind in schema.types]
        self.sink.append(event.table, pa.RecordBatch.from_arrays(nothing, schema=schema))

    def decode(self, some: Ordered, event: PerfEvent, of: PerfEvent, *, put_by: bool) -> None:
        """Take in samples of a window, all of which are of event ``of``, and of ``event`` or read its counter.

        Unless ``put_by``, their rows are handed on at once: another event has the same table.
        """
        if not event.tracepoint:
            self._decode_plain(some, event, of)
        elif event is not of:  # perf prints the other's raw data as if it were its own
            self.note("reading_of_tracepoint", len(some.starts))
        elif event.layout.sample_type & RAW:
            self._decode_raw(some, event, event.rows(self.note), put_by=put_by)
        else:
            self._decode_bare(some, event, put_by=put_by)

    def _decode_bare(self, some: Ordered, event: PerfEvent, *, put_by: bool) -> None:
        """The same for samples of a tracepoint that have no raw data."""
        part, more = _part(some, event), []
        if event.layout.sample_type & (READ | REST):
            more = self._more(some, event, event, locate(some.words, some.starts, some.ends, event.layout))
        if put_by and not more:
            self._put_by(event, part)
        else:
            self._write_parts(event, [part], more=more)

    def _decode_plain(self, some: Ordered, event: PerfEvent, of: PerfEvent) -> None:
        """The same for samples of an event that is no tracepoint; what those of another do not say is null."""
        found = locate(some.words, some.starts, some.ends, of.layout)
        said = dict(self._common(_part(some, of)) + _fixed(some, of) + self._more(some, event, of, found))
        columns = [
            (column.name, said[column.name] if column.name in said else pa.nulls(len(some.starts), column.type))
            for column in self._schema(event.table, event)
        ]
        self._append(event.table, event, columns)

    def _decode_raw(self, some: Ordered, event: PerfEvent, rows: EventRows | None, *, put_by: bool) -> None:
        """The same for samples of a tracepoint."""
        found, place, size, whole, matrix = self._raw_of(some, event.layout, 0 if rows is None else rows.row_bytes)
        if not whole.all():
            self.note("raw_too_short", int(np.count_nonzero(~whole)))
            self._write_raw(some.pick(~whole), event, place[~whole], size[~whole])
            if whole.any():
                self._decode_raw(some.pick(whole), event, rows, put_by=put_by)
            return
        if rows is None:
            self._write_raw(some, event, place, size)
            return
        raws = Raws(some.words.view(np.uint8), 8 * place + 4, size) if rows.dynamic or self.swapped else NO_RAWS
        if self.swapped:
            swap_raw(raws.data, raws.at, raws.size, rows.event)
        if matrix is None:
            raw = Rows(_gather(some.words, place, _words_of(rows.row_bytes)), 4)
        else:
            raw = Rows(matrix, 8 * event.layout.fixed_words + 4)
        part = _part(some, event, matrix, rows.extract(raw))
        more = [] if found is None else self._more(some, event, event, found)
        if put_by and not more and not rows.dynamic:
            self._put_by(event, part)
        else:
            self._write_parts(event, [part], raws, more)

    def _put_by(self, event: PerfEvent, part: Part) -> None:
        full = self.backlog.put(event, part)
        if full is not None:
            full()

    def _raw_of(self, some: Ordered, layout: SampleLayout, row_bytes: int) -> _RawOf:
        """Where the raw data of samples is; those with less than ``row_bytes`` are not whole."""
        if self.swapped or layout.sample_type & (READ | CALLCHAIN | REST):
            found = locate(some.words, some.starts, some.ends, layout)
            assert found.raw is not None
            assert found.raw_bytes is not None
            return _RawOf(found, found.raw, found.raw_bytes, found.whole & (found.raw_bytes >= row_bytes), None)
        # the raw data follows at once: one copy of each record serves all
        matrix = _gather(some.words, some.starts, layout.fixed_words + _words_of(row_bytes))
        size, whole = _raw_in(matrix, layout.fixed_words)
        return _RawOf(None, some.starts + layout.fixed_words, size, whole & (size >= row_bytes), matrix)

    def _write_parts(
        self, event: PerfEvent, parts: list[Part], raws: Raws = NO_RAWS, more: Named | None = None
    ) -> None:
        """Hand on the rows of ``parts``; ``raws`` are needed if their event is dynamic."""
        part = _in_order(event, parts)
        columns = self._common(part)
        fields: Named = []
        if event.layout.sample_type & RAW:
            rows = event.rows(self.note)
            assert rows is not None
            fields = rows.arrays(part.fields, raws, self.note)
        self._append(event.table, event, columns + fields + (more or []))

    def _common(self, part: Part) -> Named:
        """The columns that all tables of events start with."""
        time_ns, cpu, pid, tid = part.common
        if part.chain is None:
            chain = _columns.nulls(_U32, len(part.seq))
        else:
            chain = _columns.numbers(part.chain, part.chain != NONE)
        return [
            ("time_ns", _columns.numbers(time_ns)),
            ("cpu", _columns.known(cpu)),
            ("pid", _columns.known(pid)),
            ("tid", _columns.known(tid)),
            ("comm", _columns.labels(part.comm, self.names)),
            ("callchain_id", chain),
            ("seq", _columns.numbers(part.seq.view(np.uint64))),
        ]

    def _more(self, some: Ordered, event: PerfEvent, of: PerfEvent, found: Variable) -> Named:
        """What samples of ``of`` read, and what they say after their raw data."""
        columns = [(name, kept.array) for name, kept in some.reading.items()]
        if some.reading and "period" in of.layout.words:
            own = word_of(some.words, some.starts, of.layout.words["period"])
            columns.append(("sample_period", _columns.numbers(own, np.full(len(own), event is of))))
        for name, kept in rest(some.words, some.ends, of.layout, found).items():
            if kept.offsets is None and not kept.whole.all():
                self.note("sample_part_outside_record", int(np.count_nonzero(~kept.whole)))
            columns.append((name, kept.array))
        return columns

    def _write_raw(self, some: Ordered, event: PerfEvent, place: Starts, size: Places) -> None:
        at = 8 * place + 4
        raw = _columns.binary(some.words.view(np.uint8), at, at + size)
        self._append(event.raw_table, event, [*self._common(_part(some, event)), ("raw", raw)])

    def _append(self, table: str, event: PerfEvent, columns: Named) -> None:
        self.tables.add(table)
        arrays = [array for _, array in columns]
        self.sink.append(table, pa.RecordBatch.from_arrays(arrays, schema=self._schema(table, event)))

    def _schema(self, table: str, event: PerfEvent) -> pa.Schema:
        """What the batches of ``event`` for its own table, or for that of its undecodable samples, look like."""
        schema = self._schemas.get((table, event))
        if schema is None:
            layout, rows = event.layout, event.rows(self.note)
            more: list[tuple[str, pa.DataType]] = []
            also = _more_types(layout)
            if not event.tracepoint:
                more = [(part, pa.uint64()) for part in _fixed_names(layout)]
            elif layout.sample_type & RAW and (rows is None or table != event.table):
                more, also = _RAW, []
            elif layout.sample_type & RAW and rows is not None:
                more = rows.types
            taken = {name for name, _ in (*_COMMON, *more)}
            fields = [
                pa.field(name, kind, nullable=name in _NULLABLE or not pa.types.is_integer(kind))
                for name, kind in (*_COMMON, *more)
            ]
            fields += [pa.field(f"sample_{name}" if name in taken else name, kind) for name, kind in also]
            schema = self._schemas[table, event] = pa.schema(fields, event.metadata)
        return schema


def _fixed_names(layout: SampleLayout) -> list[str]:
    """The words that samples have columns of which are of no tracepoint; of counters that are read, period is not."""
    return [part for part in _WORDS if part in layout.words and not (part == "period" and layout.sample_type & READ)]


def _fixed(some: Ordered, event: PerfEvent) -> Named:
    layout = event.layout
    return [
        (part, _columns.numbers(word_of(some.words, some.starts, layout.words[part]))) for part in _fixed_names(layout)
    ]


def _more_types(layout: SampleLayout) -> list[tuple[str, pa.DataType]]:
    """What ``Decoder._more`` finds."""
    types: list[tuple[str, pa.DataType]] = []
    if layout.sample_type & READ:
        types = reading_types(layout.read_format)
        types += [("sample_period", pa.uint64())] if "period" in layout.words else []
    return types + rest_types(layout)


def _words_of(row_bytes: int) -> int:
    """Words from the one on that starts with the size of the raw data."""
    return (4 + row_bytes + 7) // 8


def _raw_in(matrix: np.ndarray, fixed_words: int) -> tuple[Places, np.ndarray]:
    """Bytes of the raw data after the fixed words of copied records; whether all of it is there."""
    rows = Rows(matrix, 0)
    size, room = rows.column(8 * fixed_words, _U32).astype(np.int64), rows.column(6, _U16)  # of the record
    whole = size <= room - np.int64(8 * fixed_words + 4)
    return size if whole.all() else np.where(whole, size, 0), whole


def _part(
    some: Ordered, event: PerfEvent, matrix: np.ndarray | None = None, fields: list[np.ndarray] | None = None
) -> Part:
    """Samples to be put by; ``matrix`` has at least their fixed words."""
    if matrix is None:
        matrix = _gather(some.words, some.starts, event.layout.fixed_words)
    rows, places = Rows(matrix, 0), event.layout.words
    common = [
        rows.column(8 * places[part] + offset, kind) if part in places else np.full(len(matrix), missing, kind)
        for part, offset, kind, missing in _COMMON_PLACES
    ]
    chain = None if some.chain is None else some.chain.copy()
    return Part(common, fields or [], some.seq.copy(), some.comm.copy(), chain)


def _gather(words: Words, starts: Starts, width: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """uint8[n, 8 * width]: copies of the first words of each record, one memcpy each.

    Indexing costs 6 ns a record; ``take`` of the same view costs 106.
    """
    view: np.ndarray = np.ndarray((len(words) - width + 1,), np.dtype((np.void, 8 * width)), words.data, 0, (8,))
    return view[starts].view(np.uint8).reshape(len(starts), 8 * width)


def _in_order(event: PerfEvent, parts: list[Part]) -> Part:
    """The same rows by (time, cpu, seq), in one; parts follow each other in time unless rows came late."""
    part = joined(parts)
    if len(parts) == 1 or "time" not in event.layout.words:
        return part
    ends = [(one.common[0][0], one.common[0][-1]) for one in parts]
    if all(before[1] < after[0] for before, after in pairwise(ends)):
        return part
    time_ns, cpu, *_ = part.common
    return part.pick(np.lexsort((part.seq, cpu, time_ns)))
