"""What becomes of the samples of each attribute of a perf.data file: which table, decoded how."""

import fnmatch
from collections.abc import Callable, Iterable, Sequence

from tracekit.formats._event_format import FormatTextError, parse_format
from tracekit.formats._event_rows import EventRows
from tracekit.formats._perf_attr import TRACEPOINT, Attr
from tracekit.formats._perf_header import PerfHeader
from tracekit.formats._perf_sample import SampleLayout, layout_of
from tracekit.formats._tracing_data import FormatText

Count = Callable[..., None]
_NAME_CHARS = frozenset("_-+.")
_MAX_NAME = 120


class PerfEvent:
    """The samples of one attribute."""

    def __init__(self, attr: Attr, name: str, table: str, text: FormatText | None) -> None:
        self.table = table
        self.name = name  # as perf script prints it
        self.layout: SampleLayout = layout_of(attr)
        self.tracepoint = attr.type == TRACEPOINT
        self.silent = attr.silent
        self.lacks_format = self.tracepoint and text is None
        self.raw_table = f"events/unknown/tracepoint_{attr.config}"
        self._text = text
        self._rows: EventRows | None = None

    def is_of(self, attr: Attr, name: str, table: str, text: FormatText | None) -> bool:
        """Whether it is what these would make."""
        return (self.name, self.table, self._text, self.layout) == (name, table, text, layout_of(attr))

    @property
    def may_be_empty(self) -> bool:
        """Whether its table says something even without a row: that it was recorded and did not happen."""
        return not self.silent and not self.lacks_format

    def rows(self, count: Count) -> EventRows | None:
        """What decodes its fields; None if there is no usable format."""
        if self._rows is None and self._text is not None:
            try:
                self._rows = EventRows(parse_format(self._text.system, self._text.text))
            except FormatTextError:
                count("format_damaged")
                self._text = None
        return self._rows

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """What its table says of it."""
        metadata = {b"tracekit.event": self.name.encode()}
        if self._text is not None:
            metadata[b"tracekit.format"] = self._text.text.encode()
        return metadata

    def wanted(self, globs: Iterable[str]) -> bool:
        """Whether one of ``globs``, if there are any, names it."""
        patterns = list(globs)
        return not patterns or any(fnmatch.fnmatchcase(self.name, glob) for glob in patterns)


def perf_events(header: PerfHeader, known: Sequence[PerfEvent] = ()) -> list[PerfEvent]:
    """One for each attribute, in their order; ``known`` are those of the header as it was before."""
    formats = header.tracing.formats if header.tracing else {}
    owners: dict[str, tuple[int, int]] = {}
    events: list[PerfEvent] = []
    for attr in header.attrs:
        text = formats.get(attr.config) if attr.type == TRACEPOINT else None
        if text is not None:
            name = f"{text.system}:{text.name}"
            table = f"events/{safe_name(text.system)}/{safe_name(text.name)}"
        elif attr.type == TRACEPOINT:
            name = attr.name or f"unknown:tracepoint_{attr.config}"
            table = f"events/unknown/tracepoint_{attr.config}"
        else:
            name = attr.name or attr.generic_name
            table = f"samples/{safe_name(name)}"
        identity = (attr.type, attr.config)
        while owners.setdefault(table, identity) != identity:
            table += "_"
        old = known[len(events)] if len(events) < len(known) else None
        same = old is not None and old.is_of(attr, name, table, text)
        events.append(old if old is not None and same else PerfEvent(attr, name, table, text))
    return events


def safe_name(name: str) -> str:
    """A name from the file as a file name: nothing in it may lead elsewhere."""
    kept = "".join(char if char.isascii() and (char.isalnum() or char in _NAME_CHARS) else "_" for char in name)
    kept = kept[:_MAX_NAME]
    return kept if kept.strip(".") else "_" + kept
