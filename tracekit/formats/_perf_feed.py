"""Where the bytes of perf records come from: a section of a file, or a pipe; compressed or not.

A feed hands out bytes in order and knows nothing of records. Only that of a file seeks, and only forward.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np

from tracekit.errors import TraceFormatError
from tracekit.formats._perf_header import Section, unreadable
from tracekit.formats._perf_index import AUXTRACE, COMPRESSED, COMPRESSED2, TRACING_DATA, SamplePattern, hop, link

if TYPE_CHECKING:
    import zstandard

MAX_EXPANSION_BYTES = 64 << 20
"""What one compressed record, of at most 64 KiB, may hold: perf's are not larger than its ring buffer."""

MAX_WINDOW_BYTES = 1 << 27  # of zstd at its highest level

_READ_BYTES = 1 << 20
_SLICE_BYTES = 1 << 11
_SCAN_BYTES = 4 << 20
_SMALL_BYTES = 1 << 14
_HEAD = {"<": struct.Struct("<IHH"), ">": struct.Struct(">IHH")}
_ANY = SamplePattern(1, 0, 0, 0)


class Feed(Protocol):
    """Bytes of records, in order."""

    @property
    def place(self) -> int:
        """Offset in the source of the next byte, as near as can be told."""

    @property
    def bytes_left(self) -> int:
        """Known to follow; 0 where nobody knows."""

    @property
    def problem(self) -> str | None:
        """Why it ended before its time."""

    def readinto(self, into: memoryview) -> int:
        """Fill ``into``; fewer bytes than it holds only at the end."""

    def skip(self, size: int) -> int:
        """Pass over ``size`` bytes; returns how many there were."""


class FileFeed:
    """A section of a file, no longer than the file was at first."""

    problem: str | None = None

    def __init__(
        self, path: Path, file: BinaryIO, section: Section, seen: Callable[[int, memoryview], None] | None = None
    ) -> None:
        self.path = path
        self.file = file
        self.seen = seen  # see ReadOptions
        self.place = section.offset
        self.end = section.offset + section.size

    @property
    def bytes_left(self) -> int:
        """See Feed."""
        return self.end - self.place

    def readinto(self, into: memoryview) -> int:
        """See Feed.

        Raises:
            TraceFormatError: the file cannot be read, or has become shorter.
        """
        size = min(len(into), self.end - self.place)
        done = 0
        while done < size:
            try:
                count = os.preadv(self.file.fileno(), [into[done:size]], self.place)
            except OSError as error:
                raise unreadable(self.path, error) from error
            if not count:
                raise TraceFormatError(
                    self.path, self.place, "the file became shorter while it was read; ingest a copy"
                )
            done += count
            self.place += count
        if self.seen is not None and size:
            self.seen(self.place - size, into[:size])
        return size

    def skip(self, size: int) -> int:
        """See Feed."""
        size = min(size, self.end - self.place)
        self.place += size
        return size


class PipeFeed:
    """What comes out of a pipe, or of a file that perf wrote as to a pipe."""

    problem: str | None = None
    bytes_left = 0

    def __init__(self, path: Path, stream: BinaryIO, place: int = 0) -> None:
        self.path = path
        self.stream = stream
        self.place = place

    def readinto(self, into: memoryview) -> int:
        """See Feed."""
        done = 0
        while done < len(into):
            try:
                count = self.stream.readinto(into[done:])  # type: ignore[attr-defined]
            except OSError as error:
                raise unreadable(self.path, error) from error
            if not count:
                break
            done += count
        self.place += done
        return done

    def skip(self, size: int) -> int:
        """See Feed."""
        left = size
        room = bytearray(min(size, _READ_BYTES))
        while left and (count := self.readinto(memoryview(room)[: min(left, len(room))])):
            left -= count
        return size - left


class UnpackedFeed:
    """The records within compressed records in place of these; others pass as they are.

    One zstd stream runs through all compressed records of a file (perf flushes it, and never ends it), so what is in
    one may be the half of a record that the next one completes. An uncompressed record in between comes after the last
    whole record, as for perf.

    Source: tools/perf/util/session.c perf_session__process_compressed_event(), zstd.c; MODEL.md F.2.
    """

    def __init__(self, feed: Feed, ahead: bytes, order: str = "<") -> None:
        self.feed = feed
        self.problem: str | None = None
        self._order = order
        self._raw = ahead  # read but not looked at
        self._at = 0  # in _raw
        self._raw_ended = False
        self._payload = 0  # bytes that follow a record and are none
        self._inner = bytearray()  # unpacked, from the start of a record on
        self._ready: list[memoryview] = []  # to hand out
        self._ready_bytes = 0
        self._ended = False
        self._unpacker = _Unpacker(self._inner)

    @property
    def place(self) -> int:
        """See Feed."""
        return self.feed.place - (len(self._raw) - self._at)

    @property
    def bytes_left(self) -> int:
        """See Feed."""
        return self.feed.bytes_left + len(self._raw) - self._at

    def readinto(self, into: memoryview) -> int:
        """See Feed."""
        done = 0
        while done < len(into):
            if not self._ready:
                if self._ended:
                    break
                self._advance()
                continue
            piece = self._ready[0]
            count = min(len(piece), len(into) - done)
            into[done : done + count] = piece[:count]
            done += count
            if count == len(piece):
                del self._ready[0]
            else:
                self._ready[0] = piece[count:]
        return done

    def skip(self, size: int) -> int:
        """See Feed."""
        left = size
        room = memoryview(bytearray(min(size, _READ_BYTES)))
        while left and (count := self.readinto(room[: min(left, len(room))])):
            left -= count
        return size - left

    def _advance(self) -> None:
        """Make something ready, or find the end."""
        while not self._ready and not self._ended:
            if not self._more(8):
                self._end()
            elif self._payload:
                count = min(self._payload, len(self._raw) - self._at)
                self._pass(count)
                self._payload -= count
            else:
                self._record()

    def _more(self, size: int) -> bool:
        """Whether at least ``size`` bytes are there to look at; reads if it must."""
        if self._payload:
            size = 1
        if len(self._raw) - self._at >= size:
            return True
        while not self._raw_ended and len(self._raw) - self._at < size:
            room = bytearray(max(_READ_BYTES, size))
            count = self.feed.readinto(memoryview(room))
            self._raw_ended = count < len(room)
            self._raw = self._raw[self._at :] + bytes(memoryview(room)[:count])
            self._at = 0
        return len(self._raw) - self._at >= size

    def _record(self) -> None:
        kind, _, size = _HEAD[self._order].unpack_from(self._raw, self._at)
        if size < 8 or not self._more(size):
            self._end()
            return
        begin = self._at
        if kind not in COMPRESSED:
            if kind in {AUXTRACE, TRACING_DATA} and size >= 16:
                wide = struct.unpack_from(self._order + ("Q" if kind == AUXTRACE else "I"), self._raw, begin + 8)
                self._payload = int(wide[0])
            self._flush()
            self._pass(size)
            return
        data, end = begin + 8, begin + size
        if kind == COMPRESSED2:
            data = begin + 16
            length = struct.unpack_from(self._order + "Q", self._raw, begin + 8)[0] if size >= 16 else 1 << 63
            end = data + length
        if end > begin + size:
            self._fail(f"compressed record says it holds {end - data} bytes, there are {begin + size - data}")
            return
        problem = self._unpacker.unpack(memoryview(self._raw)[data:end])
        self._at = begin + size
        if problem is not None:
            self._at = begin
            self._fail(problem)
        elif len(self._inner) >= _SCAN_BYTES:
            self._flush()

    def _pass(self, size: int) -> None:
        if size:
            self._ready.append(memoryview(self._raw)[self._at : self._at + size])
        self._at += size

    def _flush(self) -> None:
        """Hand out the whole records unpacked so far, keep the start of the next."""
        if not self._inner:
            return
        whole = _whole_bytes(self._inner, self._order)
        if whole:
            self._ready.append(memoryview(bytes(memoryview(self._inner)[:whole])))
            del self._inner[:whole]

    def _end(self) -> None:
        """Nothing whole follows: hand out all that there is, a cut record too."""
        self._flush()
        if self._inner:
            self._ready.append(memoryview(bytes(self._inner)))
            self._inner.clear()
        elif len(self._raw) > self._at:
            self._pass(len(self._raw) - self._at)
        self._ended = True

    def _fail(self, problem: str) -> None:
        self.problem = problem
        self._flush()
        self._inner.clear()
        self._ended = True


def _whole_bytes(inner: bytearray, order: str) -> int:
    """How many bytes of ``inner`` are whole records; all of them where a record is damaged, which the reader says."""
    count = len(inner) // 8
    if not count:
        return 0
    if order == ">" or len(inner) < _SMALL_BYTES:
        head = _HEAD[order]
        at = 0
        while at + 8 <= len(inner):
            size = head.unpack_from(inner, at)[2]
            if size < 8 or size % 8:
                return len(inner)
            if at + size > len(inner):
                break
            at += size
        return at
    words = np.frombuffer(bytes(memoryview(inner)[: 8 * count]), np.uint64)
    chain = link(words, 0, count, _ANY)
    while chain.skip_bytes and chain.problem is None:  # a payload has no place in here: its record is like any other
        chain = hop(words, chain.stop, count)
    return len(inner) if chain.problem is not None else 8 * chain.stop


class _Unpacker:
    """Appends the content of one compressed record after the other to ``out``.

    A few bytes may unpack to 30,000 times as many: they go in a slice at a time, and what came out is counted.
    """

    def __init__(self, out: bytearray) -> None:
        self.out = out
        self._stream: zstandard.ZstdDecompressionObj | None = None

    def unpack(self, packed: memoryview) -> str | None:
        """Take one record's bytes; returns what is wrong with them."""
        limit = len(self.out) + MAX_EXPANSION_BYTES
        import zstandard  # noqa: PLC0415 - seldom needed

        try:
            for begin in range(0, len(packed), _SLICE_BYTES):
                piece = bytes(packed[begin : begin + _SLICE_BYTES])
                while piece:
                    if self._stream is None or self._stream.eof:
                        self._stream = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
                    self.out += self._stream.decompress(piece)
                    piece = self._stream.unused_data
                    if len(self.out) > limit:
                        return f"compressed record of {len(packed)} bytes holds more than {MAX_EXPANSION_BYTES}"
        except (zstandard.ZstdError, MemoryError) as error:
            return f"compressed record cannot be unpacked: {error}"
        return None
