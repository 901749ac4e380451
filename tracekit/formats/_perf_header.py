"""The header and attributes of a perf.data file, of both versions and in either byte order.

Source: tools/perf/Documentation/perf.data-file-format.txt, tools/perf/util/header.c; MODEL.md F.1.
"""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tracekit.errors import TraceFormatError
from tracekit.formats._cursor import Cursor
from tracekit.formats._perf_attr import MIN_ATTR_BYTES, Attr, parse_attr
from tracekit.formats._perf_features import DIR_FORMAT, HOSTNAME, MAX_ATTRS, MAX_SECTION_BYTES, Features
from tracekit.formats._tracing_data import TracingData

HEADER_BYTES = 104
PIPE_HEADER_BYTES = 16
MAGICS = {b"PERFILE2": "<", b"2ELIFREP": ">", b"PERFFILE": ""}
"""First eight bytes → byte order; perf's first version, before Linux 3.0, writes the same ones in both."""

_EVENT_TYPE_BYTES = 72  # struct perf_trace_event_type { u64 event_id; char name[64]; }, before Linux 3.11


class Section(NamedTuple):
    """A piece of the file."""

    offset: int
    size: int  # bytes


class PerfHeader(NamedTuple):
    """All that a perf.data file says beside its records."""

    path: Path
    file_bytes: int  # at open
    data: Section
    data_complete: bool  # False: the writer died, there are no features
    attrs: tuple[Attr, ...]
    tracing: TracingData | None
    features: dict[str, object]
    problems: dict[str, int]  # anomalies by kind
    order: str = "<"  # byte order: < or >
    directory: bool = False  # part of what perf record --threads writes


def is_pipe(head: bytes) -> bool:
    """Whether a file that starts like this is of pipe mode: a stream of records and nothing else."""
    order = MAGICS.get(head[:8])
    return bool(order) and head[8:16] == struct.pack(f"{order}Q", PIPE_HEADER_BYTES)


def read_header(path: Path, file: BinaryIO, file_bytes: int) -> PerfHeader:
    """Read everything but the records of a file that is not of pipe mode.

    Raises:
        TraceFormatError: the header is damaged.
    """
    source = _Source(path, file, file_bytes, "<")
    cursor = source.cursor(Section(0, min(HEADER_BYTES, file_bytes)))
    source = source._replace(order=_order(cursor))
    cursor.order = source.order
    _size = cursor.u64("header size")
    attr_bytes = cursor.u64("attribute size")
    attrs_section, data, types = (Section(*cursor.numbers("QQ", "section")) for _ in range(3))
    bits = _feature_bits(cursor)
    problems: dict[str, int] = {}
    attrs = _read_attrs(source, attrs_section, attr_bytes)
    complete = data.size != 0
    if not HEADER_BYTES <= data.offset <= file_bytes:
        raise TraceFormatError(path, 40, f"data starts at {data.offset:#x}, the file ends at {file_bytes:#x}")
    features = Features(problems)
    features.names.update(_event_types(source, types, problems))
    if complete:
        for bit, section in _feature_sections(source, data.offset + data.size, bits, problems).items():
            if features.wants(bit, section.size):
                features.take(bit, source.cursor(section))
    else:
        data = Section(data.offset, file_bytes - data.offset)
    return PerfHeader(
        path, file_bytes, data, complete, tuple(features.named(attr) for attr in attrs), features.tracing,
        features.values, problems, source.order, DIR_FORMAT in bits,
    )  # fmt: skip


def unreadable(path: Path, error: OSError) -> TraceFormatError:
    """What to raise if the source, not the target, fails."""
    return TraceFormatError(path, None, f"cannot be read: {error.strerror or error}")


def _order(cursor: Cursor) -> str:
    """The byte order, from the magic or, in the first version, from the attribute size, which is small."""
    order = MAGICS.get(cursor.take(8, "magic"), "")
    if not order:
        start = cursor.position
        cursor.u64("header size")
        order = "<" if cursor.u64("attribute size") < 1 << 32 else ">"
        cursor.position = start
    return order


def _feature_bits(cursor: Cursor) -> list[int]:
    """The bits that are set.

    They are words of the recorder's ``long``. Every recorder sets HOSTNAME: where it is not in its place in words of
    64 bits, they are of 32 (tools/perf/util/header.c perf_file_header__read()).
    """
    start = cursor.position
    bits = _bits(cursor.numbers("4Q", "features"), 64)
    if cursor.order == ">" and HOSTNAME not in bits:
        cursor.position = start
        narrow = _bits(cursor.numbers("8I", "features"), 32)
        return narrow if HOSTNAME in narrow else bits
    return bits


def _bits(words: tuple[int, ...], width: int) -> list[int]:
    return [width * place + bit for place, flags in enumerate(words) for bit in range(width) if flags >> bit & 1]


class _Source(NamedTuple):
    """The file, as long as it was when it was opened."""

    path: Path
    file: BinaryIO
    size: int  # bytes
    order: str

    def read(self, offset: int, size: int) -> bytes:
        """Bytes that the caller knows to lie within the file."""
        try:
            self.file.seek(offset)
            block = self.file.read(size)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if len(block) != size:
            problem = f"{size} bytes were there at first, {len(block)} now: the file changes"
            raise TraceFormatError(self.path, offset, problem)
        return block

    def cursor(self, section: Section) -> Cursor:
        """What reads the whole of ``section``."""
        return Cursor(self.path, self.read(section.offset, section.size), section.offset, self.order)


def _read_attrs(source: _Source, section: Section, stride: int) -> tuple[Attr, ...]:
    if not MIN_ATTR_BYTES + 16 <= stride <= 1 << 16:
        raise TraceFormatError(source.path, 16, f"attribute size is {stride}; the header is damaged")
    if section.offset + section.size > source.size or section.size // stride > MAX_ATTRS:
        raise TraceFormatError(
            source.path, 24, f"{section.size} bytes of attributes at {section.offset:#x} exceed the file"
        )
    if section.size < stride:
        raise TraceFormatError(source.path, 24, "has no event attributes; the header is damaged")
    cursor = source.cursor(section)
    attrs = []
    ids_left = source.size // 8
    for number in range(section.size // stride):
        cursor.position = number * stride
        offset = section.offset + number * stride
        entry = Cursor(source.path, cursor.take(stride, "attribute"), offset, source.order)
        attr = parse_attr(entry, stride - 16)
        entry.position = stride - 16
        ids = Section(*entry.numbers("QQ", "ids"))
        if ids.offset + ids.size > source.size or ids.size // 8 > ids_left:
            raise entry.fail(f"{ids.size} bytes of ids at {ids.offset:#x} exceed the file")
        ids_left -= ids.size // 8
        attrs.append(attr._replace(ids=source.cursor(ids).numbers(f"{ids.size // 8}Q", "ids")))
    return tuple(attrs)


def _event_types(source: _Source, section: Section, problems: dict[str, int]) -> dict[object, str]:
    """Names of events in files of old recorders: {(type, config): name}; ids of tracepoints, or of perf's own."""
    if section.size == 0:
        return {}
    if section.offset + section.size > source.size or section.size > MAX_SECTION_BYTES:
        problems["features_damaged"] = 1
        return {}
    cursor = source.cursor(section)
    names: dict[object, str] = {}
    for _ in range(section.size // _EVENT_TYPE_BYTES):
        config = cursor.u64("event type")
        name = cursor.take(_EVENT_TYPE_BYTES - 8, "event type").split(b"\0", 1)[0].decode("utf-8", "replace")
        if ":" in name:
            names.setdefault((2, config), name)
    return names


def _feature_sections(source: _Source, offset: int, bits: list[int], problems: dict[str, int]) -> dict[int, Section]:
    """Feature bit → section; those outside of the file are left out and counted."""
    if offset + 16 * len(bits) > source.size:
        if bits:
            problems["features_missing"] = len(bits)
        return {}
    table = source.cursor(Section(offset, 16 * len(bits)))
    sections = {}
    for bit in bits:
        section = Section(*table.numbers("QQ", "feature section"))
        if section.offset + section.size > source.size:
            problems["features_missing"] = problems.get("features_missing", 0) + 1
        else:
            sections[bit] = section
    return sections
