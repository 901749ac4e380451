"""perf.data files of Linux perf."""

from pathlib import Path

from tracekit.formats import ReadOptions, Sink, TraceMetadata

NAME = "perf.data"
DESCRIPTION = "Linux perf record: files, pipe mode, --threads directories; compressed (-z) or not; either byte order"
EXTENSIONS = (".data", ".perf")

_MAGICS = (b"PERFILE2", b"2ELIFREP", b"PERFFILE")


def sniff(head: bytes) -> bool:
    """Whether the file starts as perf.data files do, in either byte order."""
    return head[:8] in _MAGICS


def streams(head: bytes) -> bool:
    """Whether it is of pipe mode: a header of 16 bytes and records."""
    size = head[8:16]
    return sniff(head) and size in {b"\x10" + bytes(7), bytes(7) + b"\x10"} and head[:8] != b"PERFFILE"


def read(path: Path, sink: Sink, options: ReadOptions) -> TraceMetadata:
    """Put all rows of the trace at ``path`` into ``sink``; see tracekit.formats.Reader."""
    from tracekit.formats import _perf_read  # noqa: PLC0415 - numpy and pyarrow are not for listing formats

    return _perf_read.read(path, sink, options)
