"""A trace that comes from standard input: streamed where its reader can, else put by in a file first."""

import hashlib
import tempfile
from pathlib import Path
from typing import BinaryIO

from tracekit.errors import TraceFormatError
from tracekit.formats import HEAD_BYTES

NAME = Path("-")
_BLOCK_BYTES = 1 << 20


class HashedStream:
    """Bytes of a pipe, hashed as they are read; what was looked at ahead is read again."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self._head = b""
        self.size_bytes = 0

    def head(self) -> bytes:
        """The first HEAD_BYTES, or as many as there are."""
        while len(self._head) < HEAD_BYTES and (more := self._stream.read(HEAD_BYTES - len(self._head))):
            self._head += more
        return self._head

    def readinto(self, into: memoryview) -> int:
        """Fill ``into`` as far as there is something."""
        if self._head:
            count = min(len(into), len(self._head))
            into[:count] = self._head[:count]
            self._head = self._head[count:]
        else:
            count = self._stream.readinto(into)  # type: ignore[attr-defined]
        self._hash.update(into[:count])
        self.size_bytes += count
        return int(count)

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes."""
        room = bytearray(size)
        return bytes(room[: self.readinto(memoryview(room))])

    def sha256(self) -> str:
        """Of all bytes read so far."""
        return self._hash.hexdigest()

    def spool(self, folder: Path) -> Path:
        """Put all of it into a new file in ``folder``.

        Raises:
            OSError: the folder is full.
            TraceFormatError: standard input cannot be read.
        """
        room = memoryview(bytearray(_BLOCK_BYTES))
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".stdin-", delete=False) as file:
            while True:
                try:
                    count = self.readinto(room)
                except OSError as error:
                    raise TraceFormatError("-", None, f"cannot be read: {error.strerror or error}") from error
                if not count:
                    return Path(file.name)
                file.write(room[:count])
