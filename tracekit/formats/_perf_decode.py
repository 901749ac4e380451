"""Samples of one event → batches of its table."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats import Sink
from tracekit.formats._comm import Codes
from tracekit.formats._event_rows import NO_RAWS, EventRows, Named, Places, Raws, RowParts, Rows
from tracekit.formats._perf_backlog import Backlog, Part, joined
from tracekit.formats._perf_callchain import NONE
from tracekit.formats._perf_events import PerfEvent
from tracekit.formats._perf_ids import EventIds
from tracekit.formats._perf_index import Starts, Words
from tracekit.formats._perf_sample import CALLCHAIN, RAW, READ, STACK_USER, Variable, locate, rest, word_of
from tracekit.formats._perf_swap import swap_raw

_I32, _U32, _I64 = (np.dtype(kind) for kind in (np.int32, np.uint32, np.int64))
_NO_TASK = np.uint64(0xFFFFFFFFFFFFFFFF)
_RECORD_WORDS = 1 << 14  # more than a record has
_NULLABLE = frozenset({
    "cpu", "pid", "tid", "comm", "callchain_id", "user_stack_bytes", "weight", "weight2", "weight3", "data_src",
    "transaction", "phys_addr", "cgroup", "data_page_size", "code_page_size",
})  # fmt: skip


class Samples(NamedTuple):
    """Samples of a window; int64[n] each."""

    starts: Starts  # words
    ends: Starts
    event: Places
    time_ns: Places
    seq: Places  # offset in the file

    def pick(self, which: np.ndarray) -> "Samples":
        """Some of them, by mask."""
        return self if which.all() else Samples(*(column[which] for column in self))


class Window(NamedTuple):
    """What the threads need to know of a window."""

    words: Words
    samples: Samples  # by event; of an event by (time, cpu, place in the file)
    comm: Codes  # int32[n_samples]; −1: unknown
    names: list[str]  # of ``comm``
    chain_ids: np.ndarray | None  # uint32[n_samples]; NONE: none


class _Some(NamedTuple):
    """Some samples of a window, all of one event."""

    which: slice | Places
    starts: Starts
    ends: Starts

    def pick(self, rows: np.ndarray) -> "_Some":
        which = self.which
        mine = np.arange(which.start, which.stop)[rows] if isinstance(which, slice) else which[rows]
        return _Some(mine, self.starts[rows], self.ends[rows])


class Decoder:
    """Decodes the samples of any event of a file into ``sink``; ``note`` is told of anomalies."""

    def __init__(self, sink: Sink, note: Callable[..., None], *, swapped: bool = False, put_by: bool = True) -> None:
        self.sink = sink
        self.note = note
        self.swapped = swapped  # raw data is in the other byte order
        self.backlog = Backlog(self._write_parts) if put_by else None
        self._names: list[str] = []

    def declare(self, event: PerfEvent) -> None:
        """Make the table of an event that did not fire: from a sample of zeros, which is then dropped."""
        one = np.zeros(1, np.int64)
        words = np.zeros(_RECORD_WORDS, np.uint64)
        found = locate(words, one, one + _RECORD_WORDS, event.layout)
        if found.raw is not None:
            rows = event.rows(self.note)
            words[found.raw] = 0 if rows is None else rows.row_bytes
        samples = Samples(one, one + _RECORD_WORDS, one, one, one)
        window = Window(words, samples, np.full(1, -1, np.int32), [], np.full(1, NONE, np.uint32))
        Decoder(_Emptied(self.sink, event.table), _ignore, put_by=False).decode(window, event, slice(0, 1))

    def excess(self) -> list[Callable[[], None]]:
        """What is to be done, in any order, to stay within the memory."""
        return [] if self.backlog is None else self.backlog.excess()

    def rest(self) -> list[Callable[[], None]]:
        """What is to be done, in any order, at the end."""
        return [] if self.backlog is None else self.backlog.rest()

    def decode(self, window: Window, event: PerfEvent, mine: slice, *, put_by: bool = True) -> None:
        """Take in the samples ``mine`` of ``window``, all of which are of ``event``.

        Unless ``put_by``, their rows are handed on at once: another event has the same table.
        """
        some = _Some(mine, window.samples.starts[mine], window.samples.ends[mine])
        self._names = window.names
        if not event.tracepoint:
            common = _common(event, [_part(window, event, some)], window.names)
            self._append(event.table, event, common + self._extras(window, event, some))
        elif event.layout.sample_type & RAW:
            self._decode_raw(window, event, some, event.rows(self.note), put_by=put_by)
        elif put_by and self.backlog is not None:
            self.backlog.put(event, _part(window, event, some))
        else:
            self._write_parts(event, [_part(window, event, some)])

    def _decode_raw(
        self, window: Window, event: PerfEvent, some: _Some, rows: EventRows | None, *, put_by: bool
    ) -> None:
        layout = event.layout
        found = locate(window.words, some.starts, some.ends, layout)
        assert found.raw is not None
        assert found.raw_bytes is not None
        place, size = found.raw, found.raw_bytes
        whole = found.whole & (size >= (0 if rows is None else rows.row_bytes))
        if not whole.all():
            self.note("raw_too_short", int(np.count_nonzero(~whole)))
            self._write_raw(window, event, some.pick(~whole), place[~whole], size[~whole])
            some, place, size = some.pick(whole), place[whole], size[whole]
            found = found._replace(after=found.after[whole], whole=found.whole[whole])
        if len(some.starts) == 0:
            return
        if rows is None:
            self._write_raw(window, event, some, place, size)
            return
        raws = Raws(window.words.view(np.uint8), 8 * place + 4, size)
        if self.swapped:
            swap_raw(raws.data, raws.at, raws.size, rows.event)
        part = _part(window, event, some, place, rows.row_bytes)
        fields: Named = []
        if layout.sample_type & STACK_USER:
            fields = [part for part in self._rest(window, event, some, found) if part[0] == "user_stack_bytes"]
        if put_by and self.backlog is not None and not fields and not rows.dynamic:
            self.backlog.put(event, part)
        else:
            self._write_parts(event, [part], raws, fields)

    def _write_parts(
        self, event: PerfEvent, parts: list[Part], raws: Raws = NO_RAWS, more: Sequence[tuple[str, pa.Array]] = ()
    ) -> None:
        """Hand on the rows of ``parts``; ``raws`` are needed if their event is dynamic."""
        parts = _in_order(event, parts)
        columns = _common(event, parts, self._names)
        fields: Named = []
        if event.layout.sample_type & RAW:
            rows = event.rows(self.note)
            assert rows is not None
            fields = rows.decode(_rows(parts, 8 * event.layout.fixed_words + 4), raws, self.note)
        taken = {name for name, _ in fields}
        self._append(event.table, event, columns + fields + [part for part in more if part[0] not in taken])

    def _extras(self, window: Window, event: PerfEvent, some: _Some) -> Named:
        """What else the samples of an event say that is no tracepoint."""
        places = event.layout.words
        parts = (part for part in ("ip", "addr", "period") if part in places)
        columns = [(part, _columns.numbers(word_of(window.words, some.starts, places[part]))) for part in parts]
        found = locate(window.words, some.starts, some.ends, event.layout)
        return columns + self._rest(window, event, some, found)

    def _rest(self, window: Window, event: PerfEvent, some: _Some, found: Variable) -> Named:
        columns = []
        for name, (values, whole) in rest(window.words, some.ends, event.layout, found).items():
            if not whole.all():
                self.note("sample_part_outside_record", int(np.count_nonzero(~whole)))
            columns.append((name, _columns.numbers(values, whole)))
        return columns

    def _write_raw(self, window: Window, event: PerfEvent, some: _Some, place: Starts, size: Places) -> None:
        at = 8 * place + 4
        raw = _columns.binary(window.words.view(np.uint8), at, at + size)
        common = _common(event, [_part(window, event, some)], window.names)
        self._append(event.raw_table, event, [*common, ("raw", raw)])

    def _append(self, table: str, event: PerfEvent, columns: Named) -> None:
        arrays = [array for _, array in columns]
        key = (table, len(columns))
        schema = event.schemas.get(key)
        if schema is None:
            schema = event.schemas[key] = _schema(columns, event.metadata)
        self.sink.append(table, pa.RecordBatch.from_arrays(arrays, schema=schema))


class _Emptied(NamedTuple):
    """Hands on what a table looks like, without a row."""

    sink: Sink
    table: str

    def append(self, table: str, batch: pa.RecordBatch) -> None:
        if table == self.table:
            self.sink.append(table, batch.slice(0, 0))

    def settle(self) -> None:
        self.sink.settle()


def _ignore(kind: str, number: int = 1) -> None:
    pass


def _schema(columns: Named, metadata: dict[bytes, bytes]) -> pa.Schema:
    fields = [
        pa.field(name, array.type, nullable=name in _NULLABLE or not pa.types.is_integer(array.type))
        for name, array in columns
    ]
    return pa.schema(fields, metadata)


def by_event(words: Words, samples: Samples, ids: EventIds) -> tuple[Samples, Places]:
    """The samples by event, those of an event by (time, cpu, place in the file); and where each stood before.

    Sorted all at once: of 75 events in windows of 24 MB that takes half the time of sorting each.
    """
    order = np.argsort(samples.time_ns, kind="stable")
    narrow = samples.event.astype(np.int16 if len(ids.layouts) < 1 << 15 else np.int64)  # 16 bits: radix sort
    order = order.take(np.argsort(narrow.take(order), kind="stable"))
    time_ns = samples.time_ns.take(order)
    same = time_ns[1:] == time_ns[:-1]
    if same.any():
        ties = np.flatnonzero(np.concatenate(([False], same)) | np.concatenate((same, [False])))
        tied = order[ties]
        cpu = ids.sample_word(words, samples.starts[tied], samples.event[tied], "cpu") & np.uint64(0xFFFFFFFF)
        order[ties] = tied[np.lexsort((cpu, time_ns[ties], samples.event[tied]))]
    event = np.repeat(np.arange(len(ids.layouts)), np.bincount(samples.event, minlength=len(ids.layouts)))
    return Samples(samples.starts.take(order), samples.ends.take(order), event, time_ns, samples.seq.take(order)), order


def tids(words: Words, samples: Samples, ids: EventIds) -> np.ndarray:
    """int32[n] thread of each sample; −1: not recorded."""
    word = ids.sample_word(words, samples.starts, samples.event, "tid", _NO_TASK)
    return (word >> np.uint64(32)).astype(np.int32)


def _part(window: Window, event: PerfEvent, some: _Some, raw: Starts | None = None, raw_bytes: int = 0) -> Part:
    """Copies of the fixed words of samples, and of ``raw_bytes`` from the words ``raw`` on, after the size in them."""
    words = event.layout.fixed_words
    more = 0 if raw is None else (4 + raw_bytes + 7) // 8
    if raw is None or not event.layout.sample_type & (READ | CALLCHAIN):
        # the raw data follows at once: one copy of each record serves both
        matrix = _gather(window.words, some.starts, words + more)
    else:
        matrix = np.concatenate((_gather(window.words, some.starts, words), _gather(window.words, raw, more)), axis=1)
    chain = None if window.chain_ids is None else window.chain_ids[some.which].copy()
    return Part(matrix, window.samples.seq[some.which].copy(), window.comm[some.which].copy(), chain)


def _gather(words: Words, starts: Starts, width: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """uint8[n, 8 * width]: copies of the first words of each record, one memcpy each.

    Indexing costs 6 ns a record; ``take`` of the same view costs 106.
    """
    view: np.ndarray = np.ndarray((len(words) - width + 1,), np.dtype((np.void, 8 * width)), words.data, 0, (8,))
    return view[starts].view(np.uint8).reshape(len(starts), 8 * width)


def _rows(parts: list[Part], origin: int) -> RowParts:
    return RowParts([Rows(part.matrix, origin) for part in parts])


def _in_order(event: PerfEvent, parts: list[Part]) -> list[Part]:
    """The same rows by (time, cpu, seq); parts follow each other in time unless rows came late."""
    place = event.layout.words.get("time")
    if len(parts) == 1 or place is None:
        return parts
    time_ns = [Rows(part.matrix, 0).column(8 * place, _I64) for part in parts]
    if all(before[-1] < after[0] for before, after in pairwise(time_ns)):
        return parts
    part = joined(parts)
    keys = [part.seq, np.concatenate(time_ns)]
    if "cpu" in event.layout.words:
        keys.insert(1, Rows(part.matrix, 0).column(8 * event.layout.words["cpu"], _I32))
    return [part.pick(np.lexsort(keys))]


def _common(event: PerfEvent, parts: list[Part], names: list[str]) -> Named:
    """The columns that all tables of events start with."""
    rows, places = _rows(parts, 0), event.layout.words
    count = sum(len(part.seq) for part in parts)

    def column(part: str, offset: int, dtype: np.dtype, missing: int) -> np.ndarray:
        return rows.column(8 * places[part] + offset, dtype) if part in places else np.full(count, missing, dtype)

    chains = [part.chain for part in parts if part.chain is not None]
    if chains:
        ids = np.concatenate(chains)
        chain = _columns.numbers(ids, ids != NONE)
    else:
        chain = _columns.nulls(_U32, count)
    return [
        ("time_ns", _columns.numbers(column("time", 0, _I64, 0))),
        ("cpu", _columns.known(column("cpu", 0, _I32, -1))),
        ("pid", _columns.known(column("tid", 0, _I32, -1))),
        ("tid", _columns.known(column("tid", 4, _I32, -1))),
        ("comm", _columns.labels(np.concatenate([part.comm for part in parts]), names)),
        ("callchain_id", chain),
        ("seq", _columns.numbers(np.concatenate([part.seq for part in parts]).view(np.uint64))),
    ]
