"""Bounded reads from a trace.dat file and from its compressed parts.

Source: trace-cmd.dat.v7.5.txt, sections "FORMAT OF THE SECTION HEADER", "COMPRESSION FORMAT OF …".
"""

import os
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tracekit.formats._cursor import Cursor

MAX_PART_BYTES = 128 << 20
"""Largest part of the header that is taken into memory (kallsyms of a large kernel: 16 MB)."""
MAX_CHUNK_BYTES = 16 << 20
"""Largest chunk of trace data; trace-cmd makes chunks of ten pages."""
_LINE_BYTES = 4096
_COMPRESSED = 1
SECTION_HEAD = 16
"""Bytes of a section's header."""


class FileCursor(Cursor):
    """A cursor over a whole file of which nothing but what is asked for is read; ``position`` is the file's offset."""

    def __init__(self, path: Path, file: BinaryIO, file_bytes: int, order: str = "<", position: int = 0) -> None:
        super().__init__(path, b"", 0, order)
        self.file = file
        self.file_bytes = file_bytes
        self.position = position

    @property
    def left(self) -> int:
        """Bytes of the file not yet taken."""
        return self.file_bytes - self.position

    def at(self, position: int, what: str) -> "FileCursor":
        """Another cursor over the same file.

        Raises:
            TraceFormatError: ``position`` is outside of it.
        """
        if not 0 <= position < self.file_bytes:
            raise self.fail(f"{what} is to be at {position:#x}, the file ends at {self.file_bytes:#x}; damaged or cut")
        return FileCursor(self.path, self.file, self.file_bytes, self.order, position)

    def take(self, size: int, what: str) -> bytes:
        """The next ``size`` bytes; see Cursor.take."""
        if not 0 <= size <= self.left:
            raise self.fail(f"{what} wants {size} bytes, {self.left} are left; the file is damaged or cut")
        if size > MAX_PART_BYTES:
            raise self.fail(f"{what} wants {size} bytes, more than any kernel fills; the file is damaged")
        data = os.pread(self.file.fileno(), size, self.position)
        if len(data) != size:
            raise self.fail(f"{what} cannot be read: the file became shorter")
        self.position += size
        return data

    def line(self, what: str) -> str:
        """A NUL-terminated string."""
        text, end, _ = os.pread(self.file.fileno(), min(_LINE_BYTES, self.left), self.position).partition(b"\0")
        if not end:
            raise self.fail(f"{what} has no end; the file is damaged or cut")
        self.position += len(text) + 1
        return text.decode("utf-8", "replace")


class Codec:
    """Undoes the compression that a file names in its header.

    Raises:
        TraceFormatError: it is one that no trace-cmd writes.
    """

    def __init__(self, cursor: Cursor, name: str) -> None:
        self.name = name
        if name not in {"none", "zlib", "zstd"}:
            raise cursor.fail(f"is compressed with {name!r}; known are none, zlib and zstd")
        self._zstd = None
        if name == "zstd":
            import pyarrow as pa  # noqa: PLC0415 - not for files without

            self._zstd = pa.Codec("zstd")

    def decompress(self, data: bytes | memoryview, size: int) -> bytes | memoryview:
        """Exactly ``size`` bytes from ``data``; never more memory than that.

        Raises:
            ValueError: that is not what is in it.
        """
        if self._zstd is not None:
            try:
                return memoryview(self._zstd.decompress(data, size))
            except (OSError, ValueError) as error:
                raise ValueError("does not decompress to the size it gives") from error
        if self.name == "none":
            raise ValueError("is compressed, although the file names no compression")
        try:
            inflater = zlib.decompressobj()
            plain = inflater.decompress(data, size + 1)
        except zlib.error as error:
            raise ValueError("does not decompress") from error
        if len(plain) != size or not inflater.eof:
            raise ValueError("does not decompress to the size it gives")
        return plain


class Section(NamedTuple):
    """A section of a version 7 file; ``body`` is where its data starts."""

    id: int
    compressed: bool
    body: int
    size: int  # in the file


def section_at(cursor: FileCursor) -> Section:
    """The header at ``cursor``, which moves on to the body."""
    number, flags, _, size = cursor.numbers("HHIQ", "section header")
    return Section(number, bool(flags & _COMPRESSED), cursor.position, size)


def section_data(cursor: FileCursor, section: Section, codec: Codec) -> bytes:
    """The data of a section, decompressed if need be.

    Raises:
        TraceFormatError: it is cut, or does not decompress to what it says.
    """
    body = cursor.at(section.body, f"section {section.id}")
    if not section.compressed:
        return body.take(section.size, f"section {section.id}")
    stored, size = body.numbers("II", f"section {section.id}")
    if size > MAX_PART_BYTES:
        raise body.fail(f"section {section.id} says it holds {size} bytes, more than any kernel fills; it is damaged")
    try:
        return bytes(codec.decompress(body.take(stored, f"section {section.id}"), size))
    except ValueError as error:
        body.position = section.body
        raise body.fail(f"section {section.id} {error}; the file is damaged") from error
