"""Text traces, chunk by chunk: lines → rows of tables. Memory depends on the chunk, not on the file.

Two rounds at most. The first writes every event whose format is known and learns what the others look like; the second,
only if there are others, writes those: a column must have one type for the whole file.
"""

import fnmatch
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.errors import TraceFormatError
from tracekit.formats import ReadOptions, Sink, TraceMetadata
from tracekit.formats import _text_notes as notes
from tracekit.formats._text_bytes import Places, Text, Vocabulary
from tracekit.formats._text_chains import Chains, is_frame
from tracekit.formats._text_chunks import chunks
from tracekit.formats._text_columns import Named, labels
from tracekit.formats._text_events import Dialect, EventLines, Name
from tracekit.formats._text_forms import FORMS, forms_of, name_of
from tracekit.formats._text_lines import COMM_WIDTH, HeadFinder, Heads

MAX_EVENTS = 1 << 11
"""Distinct names in one file. A kernel has as many tracepoints, a trace some hundreds; each becomes a table."""


class Kind(NamedTuple):
    """One text format."""

    name: str
    recorder: str
    layouts: tuple[str, ...]
    dialect: Dialect

    @property
    def perf(self) -> bool:
        return "perf" in self.layouts


FTRACE = Kind(
    "ftrace_text", "tracefs", ("task", "latency", "raw"), Dialect(hashed_pointers=True, return_address_first=True)
)
TRACE_CMD = Kind(
    "trace_cmd_report", "trace-cmd", ("task", "latency"), Dialect(hashed_pointers=False, return_address_first=False)
)
PERF = Kind("perf_script", "perf", ("perf",), Dialect(hashed_pointers=False, return_address_first=False))


def read(path: Path, kind: Kind, sink: Sink, options: ReadOptions) -> TraceMetadata:
    """Read the file at ``path``; see tracekit.formats.Reader."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size if options.size_bytes is None else options.size_bytes
            walk = _Walk(kind, sink, options, size)
            walk.run(file)
    except OSError as error:
        raise TraceFormatError(path, None, f"cannot be read: {error.strerror or error}") from error
    return walk.metadata()


class _Walk:
    """Both rounds over one file."""

    def __init__(self, kind: Kind, sink: Sink, options: ReadOptions, size: int) -> None:
        self.kind, self.sink, self.options, self.size = kind, sink, options, size
        self.finder = HeadFinder(kind.layouts)
        self.chains = Chains(sink)
        self.notes = notes.Notes(sink)
        self.events: dict[Name, EventLines] = {}
        self.digits: set[int] = set()
        self.second = False
        self._names = Vocabulary()
        self._comms = Vocabulary()
        self._instances = Vocabulary()
        self._tables: dict[str, pa.Schema] = {}

    def run(self, file: BinaryIO) -> None:
        """Read the file once, and once more if there are events of unknown format."""
        for text, left_out in chunks(file, self.size, perf=self.kind.perf):
            if left_out:
                self.notes.unparsed(text.origin + text.begin, "line_too_long")
            self._chunk(text)
            self._progress(text, 0)
        self.notes.close()
        if any(event.needs_second_round for event in self.events.values()):
            self.second = True
            for text, _ in chunks(file, self.size, perf=self.kind.perf):
                self._chunk(text)
                self._progress(text, self.size)

    def _progress(self, text: Text, before: int) -> None:
        self.sink.settle()
        if self.options.progress is not None:
            done = before + text.origin + text.end
            self.options.progress(done // 2 if self.second else done, self.size)

    def _chunk(self, text: Text) -> None:
        starts, ends = text.lines()
        frames = is_frame(text, starts, ends, perf=self.kind.perf)
        plain = np.flatnonzero(~frames & (text.bytes[starts] != ord("#")) & (ends > starts))
        heads, bad = self.finder.find(text, starts[plain], ends[plain])
        heads = heads._replace(line=plain[heads.line])
        bad = plain[bad]
        chain = self._stacks(text, starts, ends, frames, heads)
        if not self.second:
            self.digits.update(np.unique(heads.digits).tolist())
            comments = np.flatnonzero(text.bytes[starts] == ord("#"))
            self.notes.take(text, starts, ends, comments, bad, heads)
        self._rows(text, starts, ends, heads, chain)

    def _stacks(self, text: Text, starts: Places, ends: Places, frames: np.ndarray, heads: Heads) -> pa.Array | None:
        """callchain_id of each head; None if there are no stacks."""
        rows = np.flatnonzero(frames)
        if len(rows) == 0:
            return None
        first = rows[np.flatnonzero(np.diff(rows, prepend=-2) != 1)]
        last = rows[np.flatnonzero(np.diff(rows, append=len(frames) + 1) != 1)]
        head = np.searchsorted(heads.line, first) - 1
        owned = (
            (head >= 0) & (heads.line[np.maximum(head, 0)] == first - 1)
            if len(heads.line)
            else np.zeros(len(first), bool)
        )
        if not self.second and not owned.all():
            for line in first[~owned].tolist():
                self.notes.unparsed(text.origin + int(starts[line]), "stack_without_event")
        ids = np.full(len(heads.line), 0xFFFFFFFF, np.uint32)
        ids[head[owned]] = self.chains.number(text, starts[first[owned]], ends[last[owned]])
        return _columns.numbers(ids, ids != 0xFFFFFFFF)

    def _rows(self, text: Text, starts: Places, ends: Places, heads: Heads, chain: pa.Array | None) -> None:
        """Split the lines by event and have each read."""
        if len(heads.line) == 0:
            return
        codes, values = self._names.codes(text, heads.name_start, heads.name_end)
        messages, forms = forms_of(text, heads, ends, perf=self.kind.perf)
        buffers, instances = self._buffers(text, starts, heads)
        keys = (codes.astype(np.int64) * 16 + forms) << 20 | buffers
        order = np.argsort(keys, kind="stable")
        bounds = np.flatnonzero(np.diff(keys[order], prepend=-1))
        for begin, stop in zip(bounds.tolist(), [*bounds[1:].tolist(), len(order)], strict=True):
            mine = order[begin:stop]
            key = int(keys[mine[0]])
            form, printed = FORMS[key >> 20 & 15], values[key >> 24]
            if form == "":
                self._unparsed(text, starts[heads.line[mine]])
                continue
            name = name_of(printed, form)._replace(instance=instances[key & 0xFFFFF])
            if name not in self.events and len(self.events) >= MAX_EVENTS:
                self._unparsed(text, starts[heads.line[mine]], "too_many_events")
                continue
            self._event(text, starts, ends, heads.pick(mine), messages[mine], chain, mine, name)

    def _buffers(self, text: Text, starts: Places, heads: Heads) -> tuple[Places, list[str]]:
        """Which buffer each line is of: trace-cmd prints the name of an instance before the task's."""
        begin, stop = starts[heads.line], heads.comm_end - COMM_WIDTH
        wide = stop > begin
        if self.kind.perf or not wide.any():
            return np.zeros(len(begin), np.int64), [""]
        front = np.where(wide, text.find(begin, ord(":"), stop), begin)
        codes, values = self._instances.codes(text, begin, np.where(front < stop, front, begin))
        return codes.astype(np.int64), [value.decode("utf-8", "replace").strip() for value in values]

    def _unparsed(self, text: Text, places: Places, kind: str = "unparsed_line") -> None:
        if not self.second:
            for place in places.tolist():
                self.notes.unparsed(text.origin + place, kind)

    def _event(  # noqa: PLR0913, PLR0917 - the lines of one event
        self,
        text: Text,
        starts: Places,
        ends: Places,
        heads: Heads,
        messages: Places,
        chain: pa.Array | None,
        rows: np.ndarray,
        name: Name,
    ) -> None:
        event = self.events.get(name)
        if event is None:
            event = self.events[name] = EventLines(name, self.kind.dialect)
        if self.second and not event.needs_second_round:
            return

        def write(table: str, full_name: str, which: np.ndarray, columns: Named) -> None:
            mine = heads.pick(which)
            chains = chain.take(_columns.numbers(rows[which])) if chain is not None else None
            self._append(text, starts, table, full_name, mine, chains, columns)

        event.read(text, messages, ends[heads.line], write, second=self.second)

    def _append(  # noqa: PLR0913, PLR0917
        self, text: Text, starts: Places, table: str, name: str, heads: Heads, chain: pa.Array | None, columns: Named
    ) -> None:
        globs = self.options.events
        if len(heads.line) == 0 or (globs and not any(fnmatch.fnmatchcase(name, glob) for glob in globs)):
            return
        named = [*self._common(text, starts, heads, chain), *columns]
        own = pa.schema([pa.field(key, array.type) for key, array in named], {b"tracekit.event": name.encode()})
        while not (schema := self._tables.setdefault(table, own)).equals(own):
            table += "_"  # one name, two shapes: as probes may be defined anew while the trace runs
        batch = pa.RecordBatch.from_arrays([array for _, array in named], schema=schema)
        order = _order(heads)
        self.sink.append(table, batch if order is None else batch.take(_columns.numbers(order)))

    def _common(self, text: Text, starts: Places, heads: Heads, chain: pa.Array | None) -> Named:
        task = not self.kind.perf
        named: Named = [
            ("time_ns", _columns.numbers(heads.time_ns)),
            ("cpu", _columns.numbers(heads.cpu.astype(np.int32), heads.cpu >= 0)),
            ("pid", _columns.numbers(heads.pid.astype(np.int32), heads.pid >= 0)),
            ("tid", _columns.numbers(heads.tid.astype(np.int32), heads.tid >= 0)),
            ("comm", self._comm(text, heads)),
            ("callchain_id", chain if chain is not None else pa.nulls(len(heads.line), pa.uint32())),
            ("seq", _columns.numbers((starts[heads.line] + text.origin).astype(np.uint64))),
        ]
        if task:
            flags, preempt = heads.flags.astype(np.uint8), heads.preempt.astype(np.uint8)
            named += [
                ("common_flags", _columns.numbers(flags, heads.flags >= 0)),
                ("common_preempt_count", _columns.numbers(preempt, heads.preempt >= 0)),
                ("common_pid", _columns.numbers(heads.tid.astype(np.int32), heads.tid >= 0)),
            ]
        elif (heads.period >= 0).any():
            named.append(("period", _columns.numbers(heads.period.astype(np.uint64), heads.period >= 0)))
        return named

    def _comm(self, text: Text, heads: Heads) -> pa.Array:
        """Null for ``<...>``, and for ``:1234``, which perf prints for a task whose name it does not know."""
        start, end = heads.comm_start, heads.comm_end
        missing = (start >= end) | (text.equals(start, b"<...>") & (end - start == 5))
        if self.kind.perf:
            number, length = text.decimal(start + 1)
            own = (number.astype(np.int64) == heads.tid) & (start + 1 + length == end)
            missing |= (text.bytes[start] == ord(":")) & (own | text.equals(start, b":-1"))
        return labels(text, self._comms, start, np.maximum(start, end), missing)

    def metadata(self) -> TraceMetadata:
        """What the comments and the lines say of the trace."""
        anomalies = dict(self.notes.anomalies)
        unfit = {
            f"{event.known.system}:{event.known.name}": event.unfit
            for event in self.events.values()
            if event.known and event.unfit
        }
        if unfit:
            anomalies["text_fits_no_known_format"] = sum(unfit.values())
            self.notes.features["text_fits_no_known_format"] = dict(sorted(unfit.items()))
        recorder: dict[str, object] = {"name": self.kind.recorder, "version": None, "cmdline": None}
        return TraceMetadata(
            self.kind.name, self.size, self.notes.machine, recorder, self._clock(),
            self.notes.lost(), anomalies, None, self.notes.features,
        )  # fmt: skip

    def _clock(self) -> dict[str, object]:
        """Resolution as printed; what clock it was, the text does not say."""
        shown = self.digits
        relative = -6 in shown
        counter = 0 in shown
        digits = min((abs(number) for number in shown if number), default=0)
        return {
            "name": "relative to the first event in the buffer" if relative else "counter" if counter else "unknown",
            "resolution_ns": None if counter or not digits else 10 ** (9 - digits),
            "wall_offset_ns": None,
        }


def _order(heads: Heads) -> np.ndarray | None:
    """Order by (time, cpu, place); None if the rows are in order."""
    time = heads.time_ns
    if len(time) < 2 or (time[1:] > time[:-1]).all():
        return None
    order = np.lexsort((heads.line, heads.cpu, time))
    return None if (order[1:] > order[:-1]).all() else order
