"""A file of text → texts of whole lines, so many bytes at a time."""

from collections.abc import Iterator
from typing import BinaryIO

from tracekit.formats._text_bytes import Text

CHUNK_BYTES = 8 << 20
MAX_LINE_BYTES = 1 << 20


def chunks(file: BinaryIO, size: int, *, perf: bool) -> Iterator[tuple[Text, int]]:
    """Texts of whole lines, an event's stack never cut from it, and how many bytes of overlong lines were left out."""
    file.seek(0)
    offset = 0
    rest = b""
    while True:
        data = file.read(min(CHUNK_BYTES, max(size - offset - len(rest), 0)))
        block = rest + data
        if not data:
            if block:
                yield Text(block, offset), 0
            return
        cut = _cut(block, perf=perf)
        if cut == 0 and len(block) > CHUNK_BYTES + MAX_LINE_BYTES:
            cut = block.rfind(b"\n") + 1  # one stack of megabytes
            if cut == 0:
                yield Text(b"", offset), len(block)
                offset, rest = _skip_line(file, offset + len(block), size)
                continue
        if cut:
            yield Text(block[:cut], offset), 0
        offset, rest = offset + cut, block[cut:]


def _cut(block: bytes, *, perf: bool) -> int:
    """Where the last event starts: what belongs to it may be still to come."""
    stop = block.rfind(b"\n") + 1
    while stop > 0:
        start = block.rfind(b"\n", 0, stop - 1) + 1
        line = block[start : start + 4]
        frame = line[:1] in {b"\t", b"\n", b"\r"} if perf else line.lstrip(b" ").startswith(b"=>")
        if not frame:
            return start or (stop if stop < len(block) else 0)
        stop = start
    return 0


def _skip_line(file: BinaryIO, offset: int, size: int) -> tuple[int, bytes]:
    """Skip to behind the next line end; returns the new offset and what was read behind it."""
    while offset < size:
        data = file.read(min(CHUNK_BYTES, size - offset))
        if not data:
            break
        place = data.find(b"\n")
        if place >= 0:
            return offset + place + 1, data[place + 1 :]
        offset += len(data)
    return size, b""
