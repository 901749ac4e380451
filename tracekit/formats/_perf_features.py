"""The feature sections of perf.data, which pipe mode sends as records of the same content.

Source: tools/perf/Documentation/perf.data-file-format.txt, tools/perf/util/header.c; MODEL.md F.1.
"""

from collections.abc import Callable

from tracekit.errors import TraceFormatError
from tracekit.formats._cursor import Cursor
from tracekit.formats._perf_attr import Attr, parse_attr
from tracekit.formats._tracing_data import TracingData, parse_tracing_data

MAX_ATTRS = 1 << 16
MAX_SECTION_BYTES = 256 << 20  # TRACING_DATA with kallsyms is some 10 MB
MAX_TEXT_BYTES = 1 << 20

# feature bits that mean something here
TRACING_DATA, HOSTNAME, EVENT_DESC, CLOCKID, DIR_FORMAT, COMPRESSED, CLOCK_DATA = 1, 3, 12, 23, 24, 27, 29
_STRINGS = {3: "hostname", 4: "release", 5: "version", 6: "arch", 8: "cpu", 9: "cpuid"}


class Features:
    """What the feature sections read so far say."""

    def __init__(self, problems: dict[str, int]) -> None:
        self.values: dict[str, object] = {}
        self.names: dict[object, str] = {}  # of events, by id or (type, config)
        self.tracing: TracingData | None = None
        self.problems = problems

    def wants(self, bit: int, size: int) -> bool:
        """Whether feature ``bit``, of ``size`` bytes, is to be given to ``take``."""
        if bit != TRACING_DATA and _parser(bit) is None:
            return False
        limit = MAX_SECTION_BYTES if bit in {TRACING_DATA, EVENT_DESC} else MAX_TEXT_BYTES
        if size > limit:
            self.count("features_damaged")
        return size <= limit

    def take(self, bit: int, cursor: Cursor) -> None:
        """Read the body of a feature; what is damaged is counted."""
        parse = _parser(bit)
        try:
            if bit == TRACING_DATA:
                self.tracing = parse_tracing_data(cursor)
                if self.tracing.problems:
                    self.problems["formats_damaged"] = len(self.tracing.problems)
            elif bit == EVENT_DESC:
                self.names.update(parse_event_desc(cursor))
            elif parse is not None:
                self.values.update(parse(cursor))
        except TraceFormatError:
            self.count("features_damaged")

    def count(self, problem: str, number: int = 1) -> None:
        """Count an anomaly."""
        self.problems[problem] = self.problems.get(problem, 0) + number

    def named(self, attr: Attr) -> Attr:
        """``attr`` with the name that the file gives it."""
        key: object = attr.ids[0] if attr.ids and attr.ids[0] in self.names else (attr.type, attr.config)
        return attr._replace(name=self.names.get(key, attr.name))


def _parser(bit: int) -> Callable[[Cursor], dict[str, object]] | None:
    """What turns the body of feature ``bit`` into named values."""
    if bit in _STRINGS:
        return lambda cursor: {_STRINGS[bit]: cursor.text(_STRINGS[bit])}
    return {
        7: lambda cursor: dict(zip(("cpus_available", "cpus"), cursor.numbers("II", "cpus"), strict=True)),
        10: lambda cursor: {"memory_bytes": cursor.u64("memory") * 1024},
        11: lambda cursor: {"cmdline": [cursor.text("argument") for _ in range(_count(cursor))]},
        EVENT_DESC: lambda _: {},
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


def parse_event_desc(cursor: Cursor) -> dict[object, str]:
    """EVENT_DESC: names by id and by (type, config)."""
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
    return names
