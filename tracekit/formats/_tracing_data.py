"""The block with all event formats that perf (feature TRACING_DATA) and trace-cmd store.

Source: tools/perf/util/trace-event-read.c; MODEL.md F.4.
"""

from typing import NamedTuple

from tracekit.errors import TraceFormatError
from tracekit.formats._cursor import Cursor
from tracekit.formats._event_format import FormatTextError, name_and_id

MAGIC = b"\x17\x08\x44tracing"


class FormatText(NamedTuple):
    """One event's format, not parsed yet: a file may hold 700 of which ten occur."""

    system: str
    name: str
    text: str


class TracingData(NamedTuple):
    """Formats of the events used, and what else the block says of the machine."""

    page_size: int
    long_bytes: int
    formats: dict[int, FormatText]  # by tracepoint id
    problems: tuple[str, ...]


def parse_tracing_data(cursor: Cursor) -> TracingData:
    """Parse the block that ``cursor`` holds; formats before a cut are kept.

    Raises:
        TraceFormatError: not even its header is there.
    """
    if cursor.take(len(MAGIC), "tracing data") != MAGIC:
        cursor.position = 0
        raise cursor.fail(f"tracing data starts with {cursor.block[:10]!r} instead of {MAGIC!r}")
    cursor.line("tracing data version")
    big_endian, long_bytes = cursor.take(2, "byte order and long size")
    cursor.order = ">" if big_endian else "<"
    page_size = cursor.u32("page size")
    formats: dict[int, FormatText] = {}
    problems: list[str] = []
    try:
        _read_formats(cursor, formats, problems)
    except TraceFormatError as error:
        problems.append(error.problem)
    return TracingData(page_size, long_bytes, formats, tuple(problems))


def _read_formats(cursor: Cursor, formats: dict[int, FormatText], problems: list[str]) -> None:
    for part in ("header_page", "header_event"):
        cursor.line(part)
        cursor.take(cursor.u64(part), part)
    for _ in range(cursor.u32("number of ftrace events")):
        _read_format(cursor, "ftrace", formats, problems)
    for _ in range(cursor.u32("number of systems")):
        system = cursor.line("system name")
        for _ in range(cursor.u32("number of events")):
            _read_format(cursor, system, formats, problems)


def _read_format(cursor: Cursor, system: str, formats: dict[int, FormatText], problems: list[str]) -> None:
    text = cursor.take(cursor.u64("format text"), "format text").decode("utf-8", "replace").rstrip("\0")
    try:
        name, number = name_and_id(text)
    except FormatTextError as error:
        problems.append(f"a format of {system} {error}")
        return
    formats[number] = FormatText(system, name, text)
