"""The data section of a perf.data file in windows of bounded size.

Two buffers take turns: while threads decode one window, the next is read into the other.
"""

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from tracekit.errors import TraceFormatError
from tracekit.formats._perf_header import Section, unreadable
from tracekit.formats._perf_index import Words

WINDOW_BYTES = 24 << 20
PAD_BYTES = 1 << 17  # a record has at most 64 KiB: gathers may look that far beyond the last one


class Window(NamedTuple):
    """Part of the data section in memory."""

    words: Words
    first: int  # word where what was newly read starts; before it is what the last window carried over
    end: int  # words filled
    base: int  # what to add to 8 * word to get the file offset, from ``first`` on


class RecordStream:
    """Reads a section window by window; the caller says what of a window is still needed with the next."""

    def __init__(self, path: Path, file: BinaryIO, section: Section) -> None:
        self.path = path
        self.file = file
        self.position = section.offset  # in the file, of the next byte to read
        self.end = section.offset + section.size
        self._buffers = [np.empty(0, np.uint8), np.empty(0, np.uint8)]
        self._filled = 0  # bytes in the current buffer

    def is_last(self, stop: int, skip_bytes: int) -> bool:
        """Whether nothing that could hold a record follows the current window's word ``stop``."""
        left = self._filled - 8 * stop - skip_bytes
        return self.position >= self.end and (skip_bytes == 0 or left < 8)

    def next(self, carry: int, stop: int, skip_bytes: int = 0) -> Window | None:
        """The next window, or None at the end of the section.

        Words ``carry`` to ``stop`` of the current window are copied to its start. What follows ``stop`` by
        ``skip_bytes`` comes next.
        """
        old = self._buffers[0]
        kept = 8 * (stop - carry)
        begin = 8 * stop + skip_bytes
        tail = max(self._filled - begin, 0)
        self.position = min(self.position + max(begin - self._filled, 0), self.end)
        fresh = min(max(WINDOW_BYTES - tail, WINDOW_BYTES // 4), self.end - self.position)
        if fresh == 0 and (skip_bytes == 0 or tail < 8):
            return None
        new = self._room(kept + tail + fresh + PAD_BYTES)
        new[:kept] = old[8 * carry : 8 * stop]
        new[kept : kept + tail] = old[self._filled - tail : self._filled]
        self._read(new[kept + tail : kept + tail + fresh])
        base = self.position - (kept + tail)
        self.position += fresh
        self._filled = kept + tail + fresh
        self._buffers = [new, old]
        return Window(new.view(np.uint64), kept // 8, self._filled // 8, base)

    def _room(self, size: int) -> np.ndarray:
        spare = self._buffers[1]
        if len(spare) >= size:
            return spare
        return np.zeros((size + (1 << 20) - 1) >> 20 << 20, np.uint8)

    def _read(self, into: np.ndarray) -> None:
        done = 0
        view = into.data
        while done < len(into):
            try:
                self.file.seek(self.position + done)
                count = self.file.readinto(view[done:])  # type: ignore[attr-defined]
            except OSError as error:
                raise unreadable(self.path, error) from error
            if not count:
                where = self.position + done
                raise TraceFormatError(self.path, where, "the file became shorter while it was read; ingest a copy")
            done += count
