"""Pipe mode: what a file has in its header and feature sections comes as records before, or between, the others.

Source: tools/perf/util/header.c perf_event__process_attr(), perf_event__process_feature(),
perf_event__process_event_update(), perf_event__process_tracing_data(); MODEL.md F.3.
"""

from pathlib import Path

import numpy as np

from tracekit.errors import TraceFormatError
from tracekit.formats._cursor import Cursor
from tracekit.formats._perf_attr import Attr, parse_attr
from tracekit.formats._perf_features import MAX_ATTRS, MAX_SECTION_BYTES, TRACING_DATA, Features
from tracekit.formats._perf_header import PIPE_HEADER_BYTES, PerfHeader, Section
from tracekit.formats._perf_index import Found, Words

HEADER_ATTR, EVENT_TYPE, TRACING_DATA_RECORD, EVENT_UPDATE, HEADER_FEATURE = 64, 65, 66, 78, 80
_KINDS = np.array([HEADER_ATTR, EVENT_TYPE, EVENT_UPDATE, HEADER_FEATURE])
_UPDATE_NAME = 2

NOTHING_YET = Attr(1, 9, 0, 0, 0, 0, ())
"""Stands in for attributes until the first has come: no sample may come before."""


class PipeHeader:
    """The header as far as it has come."""

    def __init__(self, path: Path, file_bytes: int, order: str) -> None:
        self.path = path
        self.file_bytes = file_bytes
        self.order = order
        self.problems: dict[str, int] = {}
        self.attrs: list[Attr] = []
        self.features = Features(self.problems)

    def take(self, words: Words, found: Found, base: int) -> bool:
        """Read the records of ``found`` that belong to the header; whether there were any."""
        mine = found.starts[np.isin(found.kind, _KINDS)]
        data = words.view(np.uint8)
        for start in mine.tolist():
            head = Cursor(self.path, data[8 * start : 8 * start + 8].tobytes(), base + 8 * start, self.order)
            number, _, size = head.numbers("IHH", "record")
            body = data[8 * start + 8 : 8 * start + size].tobytes()
            self._record(number, Cursor(self.path, body, base + 8 * start + 8, self.order))
        return len(mine) > 0

    def take_unaligned(self, words: Words, start: int, filled: int, base: int) -> int | None:
        """Bytes of the header's record at word ``start`` that ends beside a word, as features do: None: it is none.

        0: it is not whole within the ``filled`` bytes.
        """
        data = words.view(np.uint8)[8 * start : filled]
        kind, _, size = Cursor(self.path, data[:8].tobytes(), base + 8 * start, self.order).numbers("IHH", "record")
        if kind not in _KINDS or size < 8 or size % 8 == 0:
            return None
        if size > len(data):
            return 0
        self._record(kind, Cursor(self.path, data[8:size].tobytes(), base + 8 * start + 8, self.order))
        return size

    def take_tracing_data(self, block: bytes, offset: int) -> None:
        """Read the event formats."""
        self.features.take(TRACING_DATA, Cursor(self.path, block, offset, self.order))

    @property
    def wants_tracing_data(self) -> int:
        """Bytes of it to read at most."""
        return MAX_SECTION_BYTES

    def header(self) -> PerfHeader:
        """As far as it has come."""
        attrs = tuple(self.features.named(attr) for attr in self.attrs) or (NOTHING_YET,)
        return PerfHeader(
            self.path, self.file_bytes, Section(PIPE_HEADER_BYTES, self.file_bytes - PIPE_HEADER_BYTES),
            True, attrs, self.features.tracing, self.features.values, self.problems, self.order,
        )  # fmt: skip

    def _record(self, kind: int, body: Cursor) -> None:
        try:
            if kind == HEADER_ATTR:
                attr = parse_attr(body, body.left)
                if len(self.attrs) < MAX_ATTRS:
                    self.attrs.append(attr._replace(ids=body.numbers(f"{body.left // 8}Q", "ids")))
            elif kind == HEADER_FEATURE:
                bit = body.u64("feature")
                rest = Cursor(self.path, body.take(body.left, "feature"), body.offset + 8, self.order)
                if self.features.wants(bit, rest.left):
                    self.features.take(bit, rest)
            elif kind == EVENT_UPDATE:
                what, number = body.numbers("QQ", "event update")
                if what == _UPDATE_NAME:
                    self.features.names[number] = body.line("event name")
            else:
                number = body.u64("event type")
                self.features.names.setdefault((2, number), body.line("event type"))
        except TraceFormatError:
            self.features.count("header_record_damaged")
