"""Bounded reads: every size, count and offset is checked against what is left before anything is taken."""

import struct
from pathlib import Path

from tracekit.errors import TraceFormatError


class Cursor:
    """Reads numbers and bytes one after another from a block of a file.

    ``order`` is the byte order of the file, ``<`` or ``>``; ``offset`` is where the block starts in the file.
    """

    def __init__(self, path: Path, block: bytes, offset: int, order: str = "<") -> None:
        self.path = path
        self.block = block
        self.offset = offset
        self.order = order
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return len(self.block) - self.position

    def fail(self, problem: str) -> TraceFormatError:
        """The error to raise about the current position."""
        return TraceFormatError(self.path, self.offset + self.position, problem)

    def take(self, size: int, what: str) -> bytes:
        """The next ``size`` bytes.

        Raises:
            TraceFormatError: fewer are left.
        """
        if not 0 <= size <= self.left:
            raise self.fail(f"{what} wants {size} bytes, {self.left} are left; the file is damaged or cut")
        self.position += size
        return self.block[self.position - size : self.position]

    def numbers(self, kinds: str, what: str) -> tuple[int, ...]:
        """Numbers in ``struct`` notation, byte order and no padding applied."""
        layout = struct.Struct(self.order + kinds)
        return layout.unpack(self.take(layout.size, what))

    def u32(self, what: str) -> int:
        """The next 32-bit unsigned number."""
        return self.numbers("I", what)[0]

    def u64(self, what: str) -> int:
        """The next 64-bit unsigned number."""
        return self.numbers("Q", what)[0]

    def line(self, what: str) -> str:
        """A NUL-terminated string."""
        end = self.block.find(b"\0", self.position)
        if end < 0:
            raise self.fail(f"{what} has no end; the file is damaged or cut")
        text = self.take(end - self.position, what)
        self.position += 1
        return text.decode("utf-8", "replace")

    def text(self, what: str) -> str:
        """A perf header string: u32 padded length, then that many bytes with a NUL inside."""
        return self.take(self.u32(what), what).split(b"\0", 1)[0].decode("utf-8", "replace")
