"""The header, attributes and feature sections of a perf.data file.

Source: tools/perf/Documentation/perf.data-file-format.txt, tools/perf/util/header.c; MODEL.md F.1.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tracekit.errors import TraceFormatError
from tracekit.formats._cursor import Cursor
from tracekit.formats._tracing_data import TracingData, parse_tracing_data

HEADER_BYTES = 104
MIN_ATTR_BYTES = 64  # PERF_ATTR_SIZE_VER0
TRACEPOINT = 2  # perf_event_attr.type

MAX_ATTRS = 1 << 16
MAX_SECTION_BYTES = 256 << 20  # TRACING_DATA with kallsyms is some 10 MB
MAX_TEXT_BYTES = 1 << 20

# feature bits that mean something here
TRACING_DATA, EVENT_DESC, CLOCKID, DIR_FORMAT, COMPRESSED, CLOCK_DATA = 1, 12, 23, 24, 27, 29
_STRINGS = {3: "hostname", 4: "release", 5: "version", 6: "arch", 8: "cpu", 9: "cpuid"}
_CLOCKS = {0: "realtime", 1: "monotonic", 4: "monotonic_raw", 7: "boottime", 11: "tai"}


class Section(NamedTuple):
    """A piece of the file."""

    offset: int
    size: int  # bytes


class Attr(NamedTuple):
    """One recorded event: the parts of struct perf_event_attr that decide how its samples look."""

    type: int
    config: int
    sample_type: int
    read_format: int
    flags: int
    clock_id: int
    ids: tuple[int, ...]  # one per CPU
    name: str | None = None  # from EVENT_DESC

    @property
    def sample_id_all(self) -> bool:
        """Whether kernel records that are no samples end with who, when and where."""
        return bool(self.flags >> 18 & 1)

    @property
    def clock(self) -> str:
        """Name of the clock that its times are of."""
        if not self.flags >> 25 & 1:
            return "perf"
        return _CLOCKS.get(self.clock_id, f"clock {self.clock_id}")


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


def read_header(path: Path, file: BinaryIO, file_bytes: int) -> PerfHeader:
    """Read everything but the records.

    Raises:
        TraceFormatError: the header is damaged, or of a kind that is not supported yet.
    """
    source = _Source(path, file, file_bytes)
    cursor = source.cursor(Section(0, min(HEADER_BYTES, file_bytes)))
    magic = cursor.take(8, "magic")
    if magic == b"2ELIFREP":
        raise TraceFormatError(path, 0, "was recorded on a machine of the other byte order; this is not supported yet")
    if magic == b"PERFFILE":
        raise TraceFormatError(path, 0, "is of perf's first format (before Linux 3.0); this is not supported yet")
    if cursor.u64("header size") == 16:
        raise TraceFormatError(path, 8, "is in pipe mode (perf record -o -); this is not supported yet")
    attr_bytes = cursor.u64("attribute size")
    attrs_section, data, _types = (Section(*cursor.numbers("QQ", "section")) for _ in range(3))
    bits = [bit for word, flags in enumerate(cursor.numbers("4Q", "features")) for bit in _bits(flags, word)]
    problems: dict[str, int] = {}
    attrs = _read_attrs(source, attrs_section, attr_bytes)
    complete = data.size != 0
    if not HEADER_BYTES <= data.offset <= file_bytes:
        raise TraceFormatError(path, 40, f"data starts at {data.offset:#x}, the file ends at {file_bytes:#x}")
    if not complete:
        return PerfHeader(
            path, file_bytes, Section(data.offset, file_bytes - data.offset), complete, attrs, None, {}, problems
        )
    sections = _feature_sections(source, data.offset + data.size, bits, problems)
    features: dict[str, object] = {}
    tracing = _read_features(source, sections, features, problems)
    names = features.pop("event_names", {})
    if isinstance(names, dict):
        attrs = tuple(_named(attr, names) for attr in attrs)
    if DIR_FORMAT in bits:
        raise TraceFormatError(path, None, "belongs to a perf record --threads directory; this is not supported yet")
    return PerfHeader(path, file_bytes, data, complete, attrs, tracing, features, problems)


def unreadable(path: Path, error: OSError) -> TraceFormatError:
    """What to raise if the source, not the target, fails."""
    return TraceFormatError(path, None, f"cannot be read: {error.strerror or error}")


def _bits(flags: int, word: int) -> list[int]:
    return [64 * word + bit for bit in range(64) if flags >> bit & 1]


class _Source(NamedTuple):
    """The file, as long as it was when it was opened."""

    path: Path
    file: BinaryIO
    size: int  # bytes

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
        return Cursor(self.path, self.read(section.offset, section.size), section.offset)


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
        entry = Cursor(source.path, cursor.take(stride, "attribute"), section.offset + number * stride)
        attr = parse_attr(entry, stride - 16)
        entry.position = stride - 16
        ids = Section(*entry.numbers("QQ", "ids"))
        if ids.offset + ids.size > source.size or ids.size // 8 > ids_left:
            raise entry.fail(f"{ids.size} bytes of ids at {ids.offset:#x} exceed the file")
        ids_left -= ids.size // 8
        attrs.append(attr._replace(ids=source.cursor(ids).numbers(f"{ids.size // 8}Q", "ids")))
    return tuple(attrs)


def parse_attr(entry: Cursor, room: int) -> Attr:
    """A struct perf_event_attr of at most ``room`` bytes; ``entry`` stands at its start.

    Source: include/uapi/linux/perf_event.h. Its own size says how much of it is there; a longer one is newer.
    """
    kind, size, config, _period, sample_type, read_format, flags = entry.numbers("IIQQQQQ", "attribute")
    if not MIN_ATTR_BYTES <= max(size, MIN_ATTR_BYTES) <= room:
        raise entry.fail(f"attribute says it has {size} bytes, there is room for {room}")
    clock_id = 0
    if size >= 96:
        entry.take(92 - 48, "attribute")
        clock_id = entry.numbers("i", "clock id")[0]
    return Attr(kind, config, sample_type, read_format, flags, clock_id, ())


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


def _read_features(
    source: _Source, sections: dict[int, Section], features: dict[str, object], problems: dict[str, int]
) -> TracingData | None:
    tracing = None
    for bit, section in sections.items():
        limit = MAX_SECTION_BYTES if bit in {TRACING_DATA, EVENT_DESC} else MAX_TEXT_BYTES
        parse = _parser(bit)
        if parse is None and bit != TRACING_DATA:
            continue
        if section.size > limit:
            problems["features_damaged"] = problems.get("features_damaged", 0) + 1
            continue
        cursor = source.cursor(section)
        try:
            if parse is None:
                tracing = parse_tracing_data(cursor)
            else:
                features.update(parse(cursor))
        except TraceFormatError:
            problems["features_damaged"] = problems.get("features_damaged", 0) + 1
    if tracing is not None and tracing.problems:
        problems["formats_damaged"] = len(tracing.problems)
    return tracing


def _parser(bit: int) -> Callable[[Cursor], dict[str, object]] | None:
    """What turns the body of feature ``bit`` into named values."""
    if bit in _STRINGS:
        return lambda cursor: {_STRINGS[bit]: cursor.text(_STRINGS[bit])}
    return {
        7: lambda cursor: dict(zip(("cpus_available", "cpus"), cursor.numbers("II", "cpus"), strict=True)),
        10: lambda cursor: {"memory_bytes": cursor.u64("memory") * 1024},
        11: lambda cursor: {"cmdline": [cursor.text("argument") for _ in range(_count(cursor))]},
        12: parse_event_desc,
        14: _numa,
        21: lambda cursor: dict(zip(("first_sample_ns", "last_sample_ns"), cursor.numbers("QQ", "time"), strict=True)),
        CLOCKID: lambda cursor: {"clock_resolution_ns": cursor.u64("clock resolution")},
        COMPRESSED: lambda cursor: {"compression": cursor.numbers("5I", "compression")},
        CLOCK_DATA: _clock_data,
    }.get(bit)


def _count(cursor: Cursor) -> int:
    count = cursor.u32("count")
    if count > cursor.left // 4:
        raise cursor.fail(f"{count} entries do not fit into {cursor.left} bytes")
    return count


def _numa(cursor: Cursor) -> dict[str, object]:
    nodes = []
    for _ in range(_count(cursor)):
        node, total, free = cursor.numbers("IQQ", "node")
        nodes.append(
            {"node": node, "memory_bytes": total * 1024, "free_bytes": free * 1024, "cpus": cursor.text("cpus")}
        )
    return {"nodes": nodes}


def _clock_data(cursor: Cursor) -> dict[str, object]:
    _version, clock_id, wall_ns, clock_ns = cursor.numbers("IIQQ", "clock data")
    return {"clock_id": clock_id, "wall_offset_ns": wall_ns - clock_ns}


def parse_event_desc(cursor: Cursor) -> dict[str, object]:
    """EVENT_DESC: {"event_names": {id or (type, config): name}}."""
    count, attr_bytes = cursor.numbers("II", "event descriptions")
    names: dict[object, str] = {}
    for _ in range(min(count, MAX_ATTRS)):
        start = cursor.position
        attr = parse_attr(cursor, attr_bytes)
        cursor.position = start
        cursor.take(attr_bytes, "attribute")
        ids = cursor.u32("number of ids")
        name = cursor.text("event name")
        if ids > cursor.left // 8:
            raise cursor.fail(f"{ids} ids do not fit into {cursor.left} bytes")
        names.setdefault((attr.type, attr.config), name)
        names.update(dict.fromkeys(cursor.numbers(f"{ids}Q", "ids"), name))
    return {"event_names": names}


def _named(attr: Attr, names: dict[object, str]) -> Attr:
    key: object = attr.ids[0] if attr.ids and attr.ids[0] in names else (attr.type, attr.config)
    return attr._replace(name=names.get(key))
