"""bytes → raw events: one module per trace format, found by content.

A format is one public module here. Listing formats imports them all, so a module keeps its own imports light and
brings numpy and pyarrow in only when it reads.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, cast

from tracekit import registry
from tracekit.errors import TraceFormatError, UnknownFormatError

if TYPE_CHECKING:
    import pyarrow as pa

HEAD_BYTES = 128
"""How much of a file a reader may look at to claim it."""


class Sink(Protocol):
    """Where a reader puts its rows: the tables of one trace directory."""

    def append(self, table: str, batch: "pa.RecordBatch") -> None:
        """Add rows, sorted by (time_ns, cpu, seq), to ``table`` (``events/migrate/set_migration_pte``, ``tasks``, …).

        Batches of one table come from one thread at a time; different tables may come from different threads.
        """

    def settle(self) -> None:
        """Bring the buffered rows of all tables below the budget; no ``append`` may be running."""


class ReadOptions(NamedTuple):
    """What the caller of a reader wants."""

    events: Sequence[str] = ()  # globs on "system:event"; none: all
    jobs: int = 1  # threads
    progress: Callable[[int, int], None] | None = None  # (bytes done, bytes total)
    size_bytes: int | None = None  # of the file when it was opened: what it grows by meanwhile is not read
    from_ns: int | None = None  # first and last time of the rows wanted, both included
    to_ns: int | None = None
    cpus: frozenset[int] | None = None  # None: all
    pids: frozenset[int] | None = None  # processes or threads; None: all
    stream: BinaryIO | None = None  # to read instead of the path, by a reader that can (``streams``)
    # told of (offset, bytes of the file) by readers that read it in order; they stay as they are until the next call
    seen: Callable[[int, memoryview], None] | None = None


class Truncation(NamedTuple):
    """Where reading had to stop before the end."""

    offset: int  # of the first byte that was not read
    bytes_unread: int
    reason: str


class TraceMetadata(NamedTuple):
    """What a trace says about itself beside its rows; everything is JSON-writable."""

    format: str
    source_bytes: int
    machine: dict[str, object]
    recorder: dict[str, object]
    clock: dict[str, object]
    lost: dict[str, object]
    anomalies: dict[str, int]
    truncated: Truncation | None
    features: dict[str, object]  # whatever else its header holds


class Reader(Protocol):
    """A module of this package."""

    NAME: str
    DESCRIPTION: str
    EXTENSIONS: tuple[str, ...]

    def sniff(self, head: bytes) -> bool:
        """Whether a file that starts with ``head`` (at most HEAD_BYTES) is of this format; does no I/O."""

    def read(self, path: Path, sink: Sink, options: ReadOptions) -> TraceMetadata:
        """Put all rows of the trace at ``path`` into ``sink``.

        Raises:
            TraceFormatError: the file is not what its format says and nothing can be salvaged.
        """


def files_of(path: Path) -> list[Path]:
    """The files that make up the trace at ``path``: itself, or those of a directory of perf record --threads."""
    if not path.is_dir():
        return [path]
    numbered = [part for part in path.glob("data.*") if part.suffix[1:].isdecimal() and part.is_file()]
    return [path / "data", *sorted(numbered, key=lambda part: int(part.suffix[1:]))]


def streams(head: bytes) -> bool:
    """Whether what starts with ``head`` can be read from a pipe, without a seek."""
    from tracekit.formats import perf_data  # noqa: PLC0415 - it imports this module

    return perf_data.streams(head)


def readers() -> list[Reader]:
    """All readers, sorted by name."""
    return [cast("Reader", registry.load(__name__, name)) for name in registry.names(__name__)]


def detect(path: Path) -> Reader:
    """The one reader that claims the file at ``path``.

    Raises:
        TraceFormatError: there is no such file, or it cannot be read.
        UnknownFormatError: no reader, or more than one, claims it.
    """
    opened = path
    if path.is_dir():
        opened = path / "data"  # perf record --threads
        if not opened.is_file():
            raise UnknownFormatError(path, None, "is a directory; give the trace file inside it")
    try:
        with opened.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise TraceFormatError(path, None, f"cannot be read: {error.strerror or error}") from error
    return detect_head(path, head)


def detect_head(path: Path, head: bytes) -> Reader:
    """The one reader that claims a file that starts with ``head``.

    Raises:
        UnknownFormatError: no reader, or more than one, claims it.
    """
    if not head:
        raise UnknownFormatError(path, 0, "is empty; was the recording interrupted before it wrote anything?")
    known = readers()
    claims = [reader for reader in known if reader.sniff(head)]
    if len(claims) == 1:
        return claims[0]
    if claims:
        names = ", ".join(reader.NAME for reader in claims)
        raise UnknownFormatError(path, 0, f"is claimed by more than one format: {names}")
    tried = ", ".join(reader.NAME for reader in known)
    raise UnknownFormatError(path, 0, f"starts with {head[:8]!r}, which none of these formats does: {tried}")
