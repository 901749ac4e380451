"""What ``trace-cmd report`` prints."""

from pathlib import Path

from tracekit.formats import ReadOptions, Sink, TraceMetadata
from tracekit.formats._text_sniff import kind_of

NAME = "trace_cmd_report"
DESCRIPTION = "trace-cmd report, as text"
EXTENSIONS = (".txt",)


def sniff(head: bytes) -> bool:
    """Whether the file starts as such text does."""
    return kind_of(head) == NAME


def read(path: Path, sink: Sink, options: ReadOptions) -> TraceMetadata:
    """Put all rows of the text at ``path`` into ``sink``; see tracekit.formats.Reader."""
    from tracekit.formats import _text_read  # noqa: PLC0415 - numpy and pyarrow are not for listing formats

    return _text_read.read(path, _text_read.TRACE_CMD, sink, options)
