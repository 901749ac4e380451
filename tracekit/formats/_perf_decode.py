"""Samples of one event in one window → a batch of its table."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats import Sink
from tracekit.formats._comm import CommWindow
from tracekit.formats._event_rows import EventRows, Named, Places, Raws, Rows
from tracekit.formats._perf_callchain import NONE
from tracekit.formats._perf_events import PerfEvent
from tracekit.formats._perf_index import Starts, Words
from tracekit.formats._perf_sample import CALLCHAIN, RAW, READ, STACK_USER, Variable, locate, rest, word_of
from tracekit.formats._perf_swap import swap_raw

_I32, _U32 = np.dtype(np.int32), np.dtype(np.uint32)
_RECORD_WORDS = 1 << 14  # more than a record has
_NULLABLE = frozenset({
    "cpu", "pid", "tid", "comm", "callchain_id", "user_stack_bytes", "weight", "weight2", "weight3", "data_src",
    "transaction", "phys_addr", "cgroup", "data_page_size", "code_page_size",
})  # fmt: skip


class Samples(NamedTuple):
    """Samples of a window in file order; int64[n] each."""

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
    samples: Samples
    comms: CommWindow
    chain_ids: np.ndarray | None  # uint32[n_samples]; NONE: none


class _Some(NamedTuple):
    """Some samples of a window, all of one event."""

    mine: Places  # which
    starts: Starts
    time_ns: Places

    def pick(self, which: np.ndarray) -> "_Some":
        return _Some(*(column[which] for column in self))


class Decoder(NamedTuple):
    """Decodes the samples of any event of a file into ``sink``; ``note`` is told of anomalies."""

    sink: Sink
    note: Callable[..., None]
    swapped: bool = False  # raw data is in the other byte order

    def declare(self, event: PerfEvent) -> None:
        """Make the table of an event that did not fire: from a sample of zeros, which is then dropped."""
        one = np.zeros(1, np.int64)
        words = np.zeros(_RECORD_WORDS, np.uint64)
        found = locate(words, one, one + _RECORD_WORDS, event.layout)
        if found.raw is not None:
            rows = event.rows(self.note)
            words[found.raw] = 0 if rows is None else rows.row_bytes
        none = np.empty(0, np.int64)
        comms = CommWindow(np.full(1, -1, np.int32), none, none, none.astype(np.int32), none, [])
        samples = Samples(one, one + _RECORD_WORDS, one, one, one)
        chain_ids = np.full(1, NONE, np.uint32)
        Decoder(_Emptied(self.sink, event.table), _ignore).decode(Window(words, samples, comms, chain_ids), event, one)

    def decode(self, window: Window, event: PerfEvent, mine: Places) -> None:
        """Hand on the rows of samples ``mine`` of ``window``, all of which are of ``event``."""
        some = _sorted(window, event, mine)
        if not event.tracepoint:
            self._append(event.table, event, _common(window, event, some) + self._extras(window, event, some))
        elif not event.layout.sample_type & RAW:
            self._append(event.table, event, _common(window, event, some))
        else:
            self._decode_raw(window, event, some, event.rows(self.note))

    def _decode_raw(self, window: Window, event: PerfEvent, some: _Some, rows: EventRows | None) -> None:
        words, layout = window.words, event.layout
        found = locate(words, some.starts, window.samples.ends.take(some.mine), layout)
        assert found.raw is not None
        assert found.raw_bytes is not None
        place, size = found.raw, found.raw_bytes
        whole = found.whole & (size >= (0 if rows is None else rows.row_bytes))
        if not whole.all():
            self.note("raw_too_short", int(np.count_nonzero(~whole)))
            self._write_raw(window, event, some.pick(~whole), place[~whole], size[~whole])
            some, place, size = some.pick(whole), place[whole], size[whole]
            found = found._replace(after=found.after[whole], whole=found.whole[whole])
        if len(some.mine) == 0:
            return
        if rows is None:
            self._write_raw(window, event, some, place, size)
            return
        raws = Raws(words.view(np.uint8), 8 * place + 4, size)
        if self.swapped:
            swap_raw(raws.data, raws.at, raws.size, rows.event)
        if layout.sample_type & (READ | CALLCHAIN):
            matrix, origin = _gather(words, place, 4 + rows.row_bytes), 4
            common = _common(window, event, some)
        else:
            # the raw data is at the same place in all: one copy of each record serves both
            origin = 8 * layout.fixed_words + 4
            matrix = _gather(words, some.starts, origin + rows.row_bytes)
            common = _common(window, event, some, Rows(matrix, 0))
        fields = rows.decode(Rows(matrix, origin), raws, self.note)
        if layout.sample_type & STACK_USER:
            taken = {name for name, _ in fields}
            parts = self._rest(window, event, some, found)
            fields += [part for part in parts if part[0] == "user_stack_bytes" and part[0] not in taken]
        self._append(event.table, event, common + fields)

    def _extras(self, window: Window, event: PerfEvent, some: _Some) -> Named:
        """What else the samples of an event say that is no tracepoint."""
        places = event.layout.words
        parts = (part for part in ("ip", "addr", "period") if part in places)
        columns = [(part, _columns.numbers(word_of(window.words, some.starts, places[part]))) for part in parts]
        found = locate(window.words, some.starts, window.samples.ends.take(some.mine), event.layout)
        return columns + self._rest(window, event, some, found)

    def _rest(self, window: Window, event: PerfEvent, some: _Some, found: Variable) -> Named:
        ends = window.samples.ends.take(some.mine)
        columns = []
        for name, (values, whole) in rest(window.words, ends, event.layout, found).items():
            if not whole.all():
                self.note("sample_part_outside_record", int(np.count_nonzero(~whole)))
            columns.append((name, _columns.numbers(values, whole)))
        return columns

    def _write_raw(self, window: Window, event: PerfEvent, some: _Some, place: Starts, size: Places) -> None:
        at = 8 * place + 4
        raw = _columns.binary(window.words.view(np.uint8), at, at + size)
        self._append(event.raw_table, event, [*_common(window, event, some), ("raw", raw)])

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


def _sorted(window: Window, event: PerfEvent, mine: Places) -> _Some:
    """Samples ``mine`` by (time, cpu, place in the file)."""
    samples = window.samples
    time_ns = samples.time_ns.take(mine)
    order = np.argsort(time_ns, kind="stable")
    ordered = time_ns.take(order)
    if (ordered[1:] == ordered[:-1]).any() and "cpu" in event.layout.words:
        cpu = word_of(window.words, samples.starts.take(mine), event.layout.words["cpu"])
        order = np.lexsort((cpu & np.uint64(0xFFFFFFFF), time_ns))
    mine = mine.take(order)
    return _Some(mine, samples.starts.take(mine), ordered)


def _common(window: Window, event: PerfEvent, some: _Some, rows: Rows | None = None) -> Named:
    """The columns that all tables of events start with; from ``rows`` if these hold the heads of the samples."""
    places = event.layout.words
    if rows is None:
        rows = Rows(_gather(window.words, some.starts, 8 * event.layout.fixed_words), 0)
    count = len(some.mine)
    cpu = rows.column(8 * places["cpu"], _I32) if "cpu" in places else np.full(count, -1, np.int32)
    if "tid" in places:
        pid, tid = (rows.column(8 * places["tid"] + half, _I32) for half in (0, 4))
    else:
        pid = tid = np.full(count, -1, np.int32)
    if window.chain_ids is None:
        chain = _columns.nulls(_U32, count)
    else:
        ids = window.chain_ids.take(some.mine)
        chain = _columns.numbers(ids, ids != NONE)
    return [
        ("time_ns", _columns.numbers(some.time_ns)),
        ("cpu", _columns.known(cpu)),
        ("pid", _columns.known(pid)),
        ("tid", _columns.known(tid)),
        ("comm", _columns.labels(window.comms.codes(tid, some.time_ns), window.comms.names)),
        ("callchain_id", chain),
        ("seq", _columns.numbers(window.samples.seq.take(some.mine).view(np.uint64))),
    ]


def _gather(words: Words, starts: Starts, row_bytes: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """uint8[n, width]: copies of the first bytes of each record, one memcpy each; width is a multiple of 8."""
    width = (row_bytes + 7) // 8
    view: np.ndarray = np.ndarray((len(words) - width + 1,), np.dtype((np.void, 8 * width)), words.data, 0, (8,))
    return view[starts].view(np.uint8).reshape(len(starts), 8 * width)
