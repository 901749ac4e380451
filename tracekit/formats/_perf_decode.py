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
from tracekit.formats._perf_sample import CALLCHAIN, RAW, READ, locate, word_of

_I32, _U32 = np.dtype(np.int32), np.dtype(np.uint32)
_NULLABLE = frozenset({"cpu", "pid", "tid", "comm", "callchain_id"})


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

    def decode(self, window: Window, event: PerfEvent, mine: Places) -> None:
        """Hand on the rows of samples ``mine`` of ``window``, all of which are of ``event``."""
        some = _sorted(window, event, mine)
        if not event.tracepoint:
            self._append(event.table, event, _common(window, event, some) + _extras(window.words, some.starts, event))
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
        if len(some.mine) == 0:
            return
        if rows is None:
            self._write_raw(window, event, some, place, size)
            return
        raws = Raws(words.view(np.uint8), 8 * place + 4, size)
        if layout.sample_type & (READ | CALLCHAIN):
            matrix, origin = _gather(words, place, 4 + rows.row_bytes), 4
            common = _common(window, event, some)
        else:
            # the raw data is at the same place in all: one copy of each record serves both
            origin = 8 * layout.fixed_words + 4
            matrix = _gather(words, some.starts, origin + rows.row_bytes)
            common = _common(window, event, some, Rows(matrix, 0))
        self._append(event.table, event, common + rows.decode(Rows(matrix, origin), raws, self.note))

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


def _extras(words: Words, starts: Starts, event: PerfEvent) -> Named:
    places = event.layout.words
    parts = (part for part in ("ip", "addr", "period") if part in places)
    return [(part, _columns.numbers(word_of(words, starts, places[part]))) for part in parts]
