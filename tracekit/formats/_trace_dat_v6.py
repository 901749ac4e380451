"""The header of trace.dat version 6: one part after another, the trace data at the end.

Source: trace-cmd.dat.v6.5.txt.
"""

from typing import Literal

from tracekit.errors import TraceFormatError
from tracekit.formats import _trace_dat_header as header
from tracekit.formats._trace_dat_file import FileCursor
from tracekit.formats._trace_dat_header import BUFFER, CPUCOUNT, DONE, TRACECLOCK, BufferInfo, Contents

_TAG_BYTES = 10


def read(cursor: FileCursor, contents: Contents) -> None:
    """Read the header from behind the page size on.

    Raises:
        TraceFormatError: it is damaged, or cut before its table of trace data.
    """
    header.read_header_page(cursor, contents)
    header.read_ftrace_formats(cursor, contents)
    header.read_event_formats(cursor, contents)
    contents.kallsyms = cursor.take(cursor.u32("kallsyms"), "kallsyms")
    contents.printk = cursor.take(cursor.u32("printk formats"), "printk formats")
    contents.cmdlines = cursor.take(cursor.u64("saved command lines"), "saved command lines")
    cpus = cursor.u32("number of CPUs")
    tag = cursor.take(_TAG_BYTES, "tag")
    if tag.startswith(b"options"):
        _read_options(cursor, contents)
        tag = cursor.take(_TAG_BYTES, "tag")
    counted = contents.option(CPUCOUNT)
    if counted is not None and len(counted) >= 4:  # the number above is then one too few, for old readers
        cpus = int.from_bytes(counted[:4], "little" if contents.order == "<" else "big")
    clock = _read_table(cursor, contents, tag, "", cpus)
    for kind, data in list(contents.options):
        if kind == BUFFER:
            _read_instance(cursor, contents, data, cpus, clock)


def _read_options(cursor: FileCursor, contents: Contents) -> None:
    while True:
        kind = cursor.numbers("H", "option")[0]
        if kind == DONE:
            return
        contents.options.append((kind, cursor.take(cursor.u32("option"), "option")))


def _read_table(cursor: FileCursor, contents: Contents, tag: bytes, name: str, cpus: int) -> str:
    """The table of one buffer; returns its clock, which stands behind the table."""
    if tag.startswith(b"latency"):
        contents.texts.append(name)
        return ""
    if not tag.startswith(b"flyrecord"):
        raise cursor.fail(f"has {tag!r} where trace data was to start; the file is damaged")
    table = header.read_cpu_table(cursor, cpus, numbered=False)
    clock = "local"
    option = contents.option(TRACECLOCK)
    if option is not None:
        try:
            text = option.decode("utf-8", "replace").strip("\0 \n")
            if not text:
                text = cursor.take(cursor.u64("trace clock"), "trace clock").decode("utf-8", "replace")
            clock = header.current_clock(text)
        except TraceFormatError as error:
            header.soft(contents, error, "clock_not_read")
    contents.buffers.append(BufferInfo(name, clock, contents.layout(contents.page_bytes), table, compressed=False))
    return clock


def _read_instance(cursor: FileCursor, contents: Contents, data: bytes, cpus: int, clock: str) -> None:
    """A BUFFER option: u64 offset of a tag and a table, and a name."""
    order: Literal["little", "big"] = "little" if contents.order == "<" else "big"
    name = data[8:].split(b"\0", 1)[0].decode("utf-8", "replace")
    try:
        there = cursor.at(int.from_bytes(data[:8], order), f"instance {name!r}")
        _read_table(there, contents, there.take(_TAG_BYTES, "tag"), name, cpus)
    except TraceFormatError as error:
        header.soft(contents, error, "instance_not_read")
        return
    if contents.buffers[-1].name == name and not contents.option(TRACECLOCK):
        contents.buffers[-1] = contents.buffers[-1]._replace(clock=clock)
