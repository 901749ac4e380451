"""The header of trace.dat version 7: sections, found through a chain of sections of options.

Source: trace-cmd.dat.v7.5.txt.
"""

from collections.abc import Callable
from typing import Literal

from tracekit.errors import TraceFormatError
from tracekit.formats import _trace_dat_header as header
from tracekit.formats._cursor import Cursor
from tracekit.formats._trace_dat_file import SECTION_HEAD, FileCursor, section_at, section_data
from tracekit.formats._trace_dat_header import (
    BUFFER,
    BUFFER_TEXT,
    CMDLINES,
    DONE,
    EVENT_FORMATS,
    FTRACE_EVENTS,
    HEADER_INFO,
    KALLSYMS,
    PRINTK,
    BufferInfo,
    Contents,
)
from tracekit.formats._trace_dat_salvage import find_buffers, find_sections

_MAX_OPTION_SECTIONS = 1 << 14
Part = Callable[[Cursor, Contents], None]


def read(cursor: FileCursor, contents: Contents) -> None:
    """Read the header from behind the compression on.

    Raises:
        TraceFormatError: it is damaged, or cut so early that no trace data is left.
    """
    first = cursor.u64("offset of the options")
    start = cursor.position
    try:
        _read_options(cursor, contents, first)
    except TraceFormatError as error:
        header.soft(contents, error, "options_not_read")
    order: Literal["little", "big"] = "little" if cursor.order == "<" else "big"
    parts = {number: int.from_bytes(data[:8], order) for number, data in contents.options if number in _PARTS}
    sections = [] if contents.truncated is None else list(find_sections(cursor, start))
    for section in sections:
        parts.setdefault(section.id, section.body - SECTION_HEAD)
    for number in _PARTS:
        if number in parts:
            _read_part(cursor, contents, number, parts[number])
    contents.buffers = [info._replace(layout=contents.layout(info.layout.page_bytes)) for info in contents.buffers]
    if sections and not contents.buffers:
        find_buffers(cursor, contents, sections)
    if not contents.buffers and not contents.texts:
        problem = contents.truncated[1] if contents.truncated else "has no buffer"
        raise cursor.fail(f"no trace data can be found: {problem}")


def _read_options(cursor: FileCursor, contents: Contents, offset: int) -> None:
    """All options, and the buffers they name."""
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) > _MAX_OPTION_SECTIONS:
            raise cursor.fail(f"the options come back to offset {offset:#x}; the file is damaged")
        seen.add(offset)
        there = cursor.at(offset, "a section of options")
        section = section_at(there)
        if section.id != DONE:
            raise there.fail(f"has section {section.id} where options were to be; the file is damaged")
        block = Cursor(cursor.path, section_data(there, section, contents.codec), section.body, cursor.order)
        offset = 0
        while block.left >= 6:
            number, size = block.numbers("HI", "option")
            data = block.take(size, f"option {number}")
            if number == DONE:
                offset = int.from_bytes(data[:8], "little" if cursor.order == "<" else "big")
                break
            contents.options.append((number, data))
            if number in {BUFFER, BUFFER_TEXT}:
                _read_buffer(cursor, contents, number, data)


def _read_buffer(cursor: FileCursor, contents: Contents, number: int, data: bytes) -> None:
    option = Cursor(cursor.path, data, 0, cursor.order)
    try:
        offset = option.u64("offset of the buffer")
        name, clock = option.line("name of the instance"), option.line("clock")
        if number == BUFFER_TEXT:
            contents.texts.append(name)
            return
        page_bytes, count = option.u32("page size"), option.u32("number of CPUs")
        table = header.read_cpu_table(option, count, numbered=True)
        compressed = bool(table) and section_at(cursor.at(offset, f"buffer {name!r}")).compressed
        if page_bytes & 0xFF or not 0 < page_bytes <= 1 << 22:
            raise option.fail(f"buffer {name!r} has pages of {page_bytes} bytes; the file is damaged")
    except TraceFormatError as error:
        header.soft(contents, error, "buffer_not_read")
        return
    contents.buffers.append(BufferInfo(name, clock, contents.layout(page_bytes), table, compressed))


def _read_part(cursor: FileCursor, contents: Contents, number: int, offset: int) -> None:
    try:
        there = cursor.at(offset, f"section {number}")
        section = section_at(there)
        if section.id != number:
            raise there.fail(f"has section {section.id} where section {number} was to be; the file is damaged")
        block = section_data(there, section, contents.codec)
        _PARTS[number](Cursor(cursor.path, block, section.body, cursor.order), contents)
    except TraceFormatError as error:
        header.soft(contents, error, "section_not_read")


def _kallsyms(block: Cursor, contents: Contents) -> None:
    contents.kallsyms = block.take(block.u32("kallsyms"), "kallsyms")


def _printk(block: Cursor, contents: Contents) -> None:
    contents.printk = block.take(block.u32("printk formats"), "printk formats")


def _cmdlines(block: Cursor, contents: Contents) -> None:
    contents.cmdlines = block.take(block.u64("saved command lines"), "saved command lines")


_PARTS: dict[int, Part] = {
    HEADER_INFO: header.read_header_page,
    FTRACE_EVENTS: header.read_ftrace_formats,
    EVENT_FORMATS: header.read_event_formats,
    KALLSYMS: _kallsyms,
    PRINTK: _printk,
    CMDLINES: _cmdlines,
}
