"""The pages of one CPU, in turn, however they are stored.

Source: trace-cmd.dat.v7.5.txt, section "COMPRESSION FORMAT OF THE TRACE DATA".
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from tracekit._columns import Bytes
from tracekit.formats import Truncation
from tracekit.formats._trace_dat_file import MAX_CHUNK_BYTES, Codec
from tracekit.formats._trace_dat_header import BufferInfo, CpuData

SEQ_BITS = 40
"""Positions in compressed data: the number of the CPU in its buffer's table above, the offset in its pages below."""
_READ_BYTES = 1 << 20
_CHUNK_HEAD = 8


class Source(NamedTuple):
    """The file that all streams read."""

    file: BinaryIO
    file_bytes: int
    order: str
    codec: Codec

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset``; none where the file has none."""
        size = min(size, self.file_bytes - offset)
        return os.pread(self.file.fileno(), size, offset) if size > 0 else b""


class PageStream:
    """Pages of one CPU that stand in the file as they are."""

    def __init__(self, source: Source, data: CpuData, page_bytes: int) -> None:
        self.source = source
        self.page_bytes = page_bytes
        self.position = data.offset
        self.end = min(data.offset + data.size, source.file_bytes)
        self.begin = data.offset
        self.stored_bytes = max(self.end - data.offset, 0)
        self.truncated: Truncation | None = None
        whole = self.end - max(self.end - data.offset, 0) % page_bytes
        if data.offset + data.size > source.file_bytes or whole < self.end:
            place = max(min(whole, source.file_bytes), 0)
            unread = data.offset + data.size - max(whole, data.offset)
            self.truncated = Truncation(place, unread, f"the file ends before the data of CPU {data.cpu} does")
        self.end = whole

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing more to read."""
        return self.position >= self.end

    def read_into(self, arena: Bytes) -> int:
        """Fill ``arena`` with whole pages; returns how many bytes."""
        size = min(len(arena), self.end - self.position)
        size -= size % self.page_bytes
        done = os.preadv(self.source.file.fileno(), [arena[:size].data], self.position) if size > 0 else 0
        done -= done % self.page_bytes
        if done < size:  # the file became shorter
            self.end = self.position + done
        self.position += done
        return done

    @property
    def seq(self) -> int:
        """Position of the next page: its offset in the file."""
        return self.position

    @property
    def most_bytes(self) -> int:
        """How much it can still give."""
        return max(self.end - self.position, 0)

    @property
    def done_bytes(self) -> int:
        """Bytes of the file that were read."""
        return self.position - self.begin


class ChunkStream:
    """Pages of one CPU in compressed chunks: u32 count, then u32 stored size, u32 size, bytes for each."""

    def __init__(self, source: Source, data: CpuData, page_bytes: int, number: int) -> None:
        self.source = source
        self.page_bytes = page_bytes
        self.cpu = data.cpu
        self.truncated: Truncation | None = None
        self.stored_bytes = max(min(data.offset + data.size, source.file_bytes) - data.offset, 0)
        self.seq = number << SEQ_BITS
        self.done_bytes = 0
        self.most_bytes = 1 << 62  # nobody knows
        self._end = data.offset + 4 + data.size  # trace-cmd does not count the number of chunks in
        self._chunks = self._read_chunks(data.offset)
        self._rest: memoryview = memoryview(b"")
        self.exhausted = data.size == 0
        self._advance()

    def read_into(self, arena: Bytes) -> int:
        """Fill ``arena`` with whole pages; returns how many bytes."""
        done = 0
        room = len(arena) - len(arena) % self.page_bytes
        while done < room and not self.exhausted:
            size = min(room - done, len(self._rest))
            arena[done : done + size] = np.frombuffer(self._rest[:size], np.uint8)
            self._rest = self._rest[size:]
            done += size
            self._advance()
        self.seq += done
        return done

    def _advance(self) -> None:
        while not self._rest and not self.exhausted:
            chunk = next(self._chunks, None)
            if chunk is None:
                self.exhausted = True
            else:
                self._rest = memoryview(chunk)

    def _read_chunks(self, offset: int) -> Iterator[bytes | memoryview]:
        head = self._number(offset)
        if len(head) < 4:
            self._stop(offset, "the file ends before the number of its chunks")
            return
        count = int.from_bytes(head[:4], "little" if self.source.order == "<" else "big")
        offset += 4
        window, base = b"", offset
        for _ in range(count):
            if offset + _CHUNK_HEAD > base + len(window):
                window, base = self.source.read(offset, _READ_BYTES), offset
            inside = offset - base
            stored, size = np.frombuffer(window[inside : inside + 8].ljust(8, b"\0"), self.source.order + "u4").tolist()
            problem = self._problem(offset, stored, size, len(window) - inside)
            if problem is None and offset + _CHUNK_HEAD + stored > base + len(window):
                window, base = self.source.read(offset, max(_READ_BYTES, _CHUNK_HEAD + stored)), offset
                inside = 0
                problem = self._problem(offset, stored, size, len(window))
            if problem is not None:
                self._stop(offset, problem)
                return
            begin = inside + _CHUNK_HEAD
            try:
                plain = self.source.codec.decompress(memoryview(window)[begin : begin + stored], size)
            except ValueError as error:
                self._stop(offset, f"{error}; the chunk is damaged")
                return
            self.done_bytes += _CHUNK_HEAD + stored
            yield plain
            offset += _CHUNK_HEAD + stored

    def _number(self, offset: int) -> bytes:
        return self.source.read(offset, 4)

    def _problem(self, offset: int, stored: int, size: int, left: int) -> str | None:
        if left < _CHUNK_HEAD or offset + _CHUNK_HEAD + stored > self.source.file_bytes:
            return "the file ends inside of a chunk"
        if offset + _CHUNK_HEAD + stored > self._end:
            return "a chunk goes beyond the data of its CPU"
        if size % self.page_bytes or not 0 < size <= MAX_CHUNK_BYTES:
            return f"a chunk says it holds {size} bytes, with pages of {self.page_bytes}"
        return None

    def _stop(self, offset: int, reason: str) -> None:
        place = min(offset, self.source.file_bytes)
        self.truncated = Truncation(place, max(self._end - place, 0), f"CPU {self.cpu}: {reason}")


Stream = PageStream | ChunkStream


def streams_of(source: Source, info: BufferInfo) -> list[Stream]:
    """One for each CPU of a buffer, in the order of its table."""
    page_bytes = info.layout.page_bytes
    if info.compressed:
        return [ChunkStream(source, data, page_bytes, number) for number, data in enumerate(info.cpus)]
    return [PageStream(source, data, page_bytes) for data in info.cpus]
