"""What a trace.dat file says of itself: formats, options, buffers and where their pages are.

Source: trace-cmd.dat.v6.5.txt and trace-cmd.dat.v7.5.txt; MODEL.md F.5; lib/trace-cmd/trace-input.c.
"""

import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tracekit.errors import TraceFormatError
from tracekit.formats._cursor import Cursor
from tracekit.formats._event_format import FormatTextError, name_and_id
from tracekit.formats._ring_buffer import PageLayout
from tracekit.formats._trace_dat_file import Codec, FileCursor
from tracekit.formats._tracing_data import MAGIC, FormatText

# option numbers: lib/trace-cmd/include/private/trace-cmd-private.h, enum TRACECMD_OPTION_*
DONE, DATE, CPUSTAT, BUFFER, TRACECLOCK, UNAME, HOOK, OFFSET, CPUCOUNT, VERSION, PROCMAPS, TRACEID = range(12)
TIME_SHIFT, GUEST, TSC2NSEC, STRINGS, HEADER_INFO, FTRACE_EVENTS, EVENT_FORMATS, KALLSYMS, PRINTK = range(12, 21)
CMDLINES, BUFFER_TEXT, BTF_FILE, LAST_BOOT_INFO, MODULES = range(21, 26)

_MAX_CPUS = 1 << 16
_MAX_PAGE_BYTES = 1 << 22  # a sub-buffer is at most 64 KB today
_FIELD = re.compile(r"field:\s*[^;]*?(\w+);\s*offset:(\d+);\s*size:(\d+);")


class CpuData(NamedTuple):
    """Where the pages of one CPU are."""

    cpu: int
    offset: int
    size: int  # bytes in the file


class BufferInfo(NamedTuple):
    """One ring buffer: the top one (name "") or an instance."""

    name: str
    clock: str
    layout: PageLayout
    cpus: tuple[CpuData, ...]
    compressed: bool


class Contents:
    """What is found in the header of a file, part by part."""

    def __init__(self, cursor: FileCursor, version: int, page_bytes: int, long_bytes: int, codec: Codec) -> None:
        self.path = cursor.path
        self.file_bytes = cursor.file_bytes
        self.order = cursor.order
        self.version = version
        self.page_bytes = page_bytes  # of the machine
        self.long_bytes = long_bytes  # of user space, until header_page says what the kernel's is
        self.codec = codec
        self.data_page_bytes = 0  # as header_page says; 0: it does not
        self.formats: dict[int, FormatText] = {}
        self.kallsyms = self.printk = self.cmdlines = b""
        self.options: list[tuple[int, bytes]] = []
        self.buffers: list[BufferInfo] = []
        self.texts: list[str] = []  # buffers that hold text of a latency tracer
        self.problems: dict[str, int] = {}
        self.truncated: tuple[int, str] | None = None

    def problem(self, kind: str) -> None:
        """Count an anomaly."""
        self.problems[kind] = self.problems.get(kind, 0) + 1

    def option(self, number: int) -> bytes | None:
        """The last option of that number."""
        return next((data for kind, data in reversed(self.options) if kind == number), None)

    def layout(self, page_bytes: int) -> PageLayout:
        """How pages of a buffer that says its pages have ``page_bytes`` look.

        Recorders up to 3.2 write the machine's page size there whatever the kernel's sub-buffers have (6.8: up to
        64 KB); header_page knows.
        """
        if page_bytes == self.page_bytes and self.data_page_bytes % page_bytes == 0:
            page_bytes = self.data_page_bytes or page_bytes
        return PageLayout(page_bytes, self.long_bytes, self.order == ">")


def read_contents(path: Path, file: BinaryIO, file_bytes: int) -> Contents:
    """Read the header of the file.

    Raises:
        TraceFormatError: it is not one of a trace.dat file of version 6 or 7, or it is cut so early that no trace
            data is left.
    """
    from tracekit.formats import _trace_dat_v6, _trace_dat_v7  # noqa: PLC0415 - they take their types from here

    cursor = FileCursor(path, file, file_bytes)
    if cursor.take(len(MAGIC), "the magic number") != MAGIC:
        cursor.position = 0
        raise cursor.fail(f"does not start with {MAGIC!r}")
    version = cursor.line("file version")
    if version not in {"6", "7"}:
        raise cursor.fail(f"is a trace.dat file of version {version!r}; known are 6 and 7")
    big_endian, long_bytes = cursor.take(2, "byte order and long size")
    cursor.order = ">" if big_endian else "<"
    page_bytes = cursor.u32("page size")
    if long_bytes not in {4, 8} or page_bytes & 0xFF or not 0 < page_bytes <= _MAX_PAGE_BYTES:
        raise cursor.fail(f"says long has {long_bytes} bytes and a page {page_bytes}; the file is damaged")
    names = ("none", "") if version == "6" else (cursor.line("compression"), cursor.line("compression version"))
    contents = Contents(cursor, int(version), page_bytes, long_bytes, Codec(cursor, names[0]))
    if version == "6":
        _trace_dat_v6.read(cursor, contents)
    else:
        _trace_dat_v7.read(cursor, contents)
    return contents


def read_header_page(cursor: Cursor, contents: Contents) -> None:
    """header_page and header_event: how pages look."""
    for part in ("header_page", "header_event"):
        cursor.line(part)
        text = cursor.take(cursor.u64(part), part).decode("utf-8", "replace")
        if part == "header_page":
            _understand_page(text, contents)


def _understand_page(text: str, contents: Contents) -> None:
    fields = {name: (int(offset), int(size)) for name, offset, size in _FIELD.findall(text)}
    if "commit" in fields and fields["commit"][1] in {4, 8}:
        contents.long_bytes = fields["commit"][1]
    if "data" in fields and 0 < sum(fields["data"]) <= _MAX_PAGE_BYTES and sum(fields["data"]) % 256 == 0:
        contents.data_page_bytes = sum(fields["data"])


def read_ftrace_formats(cursor: Cursor, contents: Contents) -> None:
    """Formats of ftrace's own events."""
    for _ in range(cursor.u32("number of ftrace events")):
        _read_format(cursor, "ftrace", contents)


def read_event_formats(cursor: Cursor, contents: Contents) -> None:
    """Formats of all other events."""
    for _ in range(cursor.u32("number of systems")):
        system = cursor.line("system name")
        for _ in range(cursor.u32("number of events")):
            _read_format(cursor, system, contents)


def _read_format(cursor: Cursor, system: str, contents: Contents) -> None:
    text = cursor.take(cursor.u64("format text"), "format text").decode("utf-8", "replace").rstrip("\0")
    try:
        name, number = name_and_id(text)
    except FormatTextError:
        contents.problem("format_damaged")
        return
    contents.formats[number] = FormatText(system, name, text)


def read_cpu_table(cursor: Cursor, count: int, *, numbered: bool) -> tuple[CpuData, ...]:
    """Where the pages of ``count`` CPUs are; version 7 numbers them.

    Raises:
        TraceFormatError: it is cut, or there are more CPUs than any machine has, or one of a higher number.
    """
    if count > _MAX_CPUS:
        raise cursor.fail(f"says it has data of {count} CPUs; the file is damaged")
    rows = []
    for row in range(count):
        cpu = cursor.u32("CPU number") if numbered else row
        if cpu >= _MAX_CPUS:
            raise cursor.fail(f"says it has data of CPU {cpu}; the file is damaged")
        rows.append(CpuData(cpu, cursor.u64("offset of the CPU's data"), cursor.u64("size of the CPU's data")))
    return tuple(rows)


def current_clock(text: str) -> str:
    """The one in brackets of the text of tracefs ``trace_clock``."""
    found = re.search(r"\[([^\]]*)\]", text)
    return found[1] if found else text.strip()


def soft(contents: Contents, error: TraceFormatError, kind: str) -> None:
    """Go on without a part of the header that is cut or damaged."""
    contents.problem(kind)
    if contents.truncated is None:
        contents.truncated = (error.offset or 0, error.problem)
