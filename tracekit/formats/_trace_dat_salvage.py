"""A version 7 file without its end: the options that say where the trace data is stand behind the data.

What can be found without them: sections follow each other, and so do the CPUs of a buffer, each from a page boundary
on. Not known then are the numbers of the CPUs (they are counted through) and the names of instances.

Source: lib/trace-cmd/trace-output.c tracecmd_append_cpu_data(), out_write_cpu_data().
"""

from collections.abc import Iterator

import numpy as np

from tracekit.errors import TraceFormatError
from tracekit.formats import _trace_dat_header as header
from tracekit.formats._trace_dat_file import MAX_CHUNK_BYTES, FileCursor, Section, section_at
from tracekit.formats._trace_dat_header import BUFFER, TRACECLOCK, BufferInfo, Contents, CpuData

_SLAB_BYTES = 1 << 22
_SECTION_IDS = frozenset(range(26))


def find_sections(cursor: FileCursor, start: int) -> Iterator[Section]:
    """Sections one after another from ``start`` on, up to where the file ends or is no section."""
    position = start
    while position < cursor.file_bytes:
        try:
            section = section_at(cursor.at(position, "a section"))
        except TraceFormatError:
            return
        if section.id not in _SECTION_IDS:
            return
        yield section
        position = section.body + section.size


def find_buffers(cursor: FileCursor, contents: Contents, sections: list[Section]) -> None:
    """Buffers, from their sections alone."""
    layout = contents.layout(contents.page_bytes)
    option = contents.option(TRACECLOCK) or b""
    clock = header.current_clock(option.split(b"\0", 1)[0].decode("utf-8", "replace"))
    for number, section in enumerate(section for section in sections if section.id == BUFFER):
        begin = _aligned(section.body, contents.page_bytes)
        end = min(section.body + section.size, cursor.file_bytes)
        find = _chunked if section.compressed else _paged
        table = tuple(find(cursor, begin, end, layout.page_bytes))
        if table:
            contents.problem("cpu_numbers_guessed")
            name = f"unknown_{number}" if number else ""
            contents.buffers.append(BufferInfo(name, clock, layout, table, section.compressed))


def _aligned(position: int, page_bytes: int) -> int:
    return (position + page_bytes - 1) // page_bytes * page_bytes


def _chunked(cursor: FileCursor, begin: int, end: int, page_bytes: int) -> Iterator[CpuData]:
    """CPUs of a compressed buffer: each has the number of its chunks in front."""
    cpu = 0
    while begin + 4 <= end:
        there = cursor.at(begin, "chunks")
        count = there.u32("number of chunks")
        for _ in range(count):
            if there.left < 8:
                break
            stored, size = there.numbers("II", "chunk")
            if size % page_bytes or not 0 < size <= MAX_CHUNK_BYTES:
                return
            there.position += stored
        yield CpuData(cpu, begin, there.position - begin - 4)
        cpu += 1
        begin = _aligned(there.position, page_bytes)


def _paged(cursor: FileCursor, begin: int, end: int, page_bytes: int) -> Iterator[CpuData]:
    """CPUs of a buffer that is not compressed: where time goes back, another one begins."""
    cpu, start, latest = 0, begin, 0
    slab = max(_SLAB_BYTES // page_bytes, 1) * page_bytes
    for position in range(begin, end - page_bytes + 1, slab):
        size = min(slab, (end - position) // page_bytes * page_bytes)
        pages = np.frombuffer(cursor.at(position, "pages").take(size, "pages"), np.uint8).reshape(-1, page_bytes)
        stamps = np.ascontiguousarray(pages[:, :8]).view(cursor.order + "u8").reshape(-1).astype(np.uint64)
        before = np.concatenate((np.array([latest], np.uint64), stamps[:-1]))
        for page in np.flatnonzero(stamps < before).tolist():
            place = position + page * page_bytes
            yield CpuData(cpu, start, place - start)
            cpu, start = cpu + 1, place
        latest = int(stamps[-1])
    if end > start:
        yield CpuData(cpu, start, end - start)
