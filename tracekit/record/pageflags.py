"""Flags of page frames (Documentation/admin-guide/mm/pagemap.rst), which only root can read."""

import os

import numpy as np
import numpy.typing as npt

MOST_FRAMES = 1 << 23  # whose flags are read: a second or two
_CHUNK = 1 << 9  # page frames whose flags are read at once

Words = npt.NDArray[np.uint64]


class PageFlags:
    """/proc/kpageflags, read where it is asked for, once, and no more of it than ``MOST_FRAMES``."""

    def __init__(self) -> None:
        self._chunks: dict[int, Words] = {}
        try:
            self._file: int | None = os.open("/proc/kpageflags", os.O_RDONLY)
        except OSError:
            self._file = None

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)

    def of(self, frames: Words) -> Words | None:
        """The flags of each of one or more frames; None: not to be read, or too many."""
        flags = np.zeros(len(frames), np.uint64)
        order = np.argsort(frames)
        chunk = frames[order] // np.uint64(_CHUNK)
        for group in np.split(order, np.flatnonzero(np.diff(chunk)) + 1):
            words = self._chunk(int(frames[group[0]]) // _CHUNK)
            place = (frames[group] % np.uint64(_CHUNK)).astype(np.int64)
            if words is None or place[-1] >= len(words):
                return None
            flags[group] = words[place]
        return flags

    def _chunk(self, number: int) -> Words | None:
        if number not in self._chunks:
            if self._file is None or len(self._chunks) * _CHUNK >= MOST_FRAMES:
                return None
            raw = os.pread(self._file, 8 * _CHUNK, 8 * _CHUNK * number)
            self._chunks[number] = np.frombuffer(raw, np.uint64)
        return self._chunks[number]
