"""trace.dat files of trace-cmd."""

from pathlib import Path

from tracekit.formats import ReadOptions, Sink, TraceMetadata

NAME = "trace.dat"
DESCRIPTION = "trace-cmd record, file versions 6 and 7, not compressed or with zlib or zstd, with instances"
EXTENSIONS = (".dat",)

_MAGIC = b"\x17\x08\x44tracing"


def sniff(head: bytes) -> bool:
    """Whether the file starts as trace.dat files do; perf's TRACING_DATA block does so too, but says 0.5 or 0.6."""
    return head.startswith(_MAGIC) and head[len(_MAGIC) : len(_MAGIC) + 2] != b"0."


def read(path: Path, sink: Sink, options: ReadOptions) -> TraceMetadata:
    """Put all rows of the trace at ``path`` into ``sink``; see tracekit.formats.Reader."""
    from tracekit.formats import _trace_dat_read  # noqa: PLC0415 - numpy and pyarrow are not for listing formats

    return _trace_dat_read.read(path, sink, options)
