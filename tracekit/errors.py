"""Everything that tracekit raises on purpose.

TracekitError
├── UsageError            the request cannot be met: unknown policy, bad parameter (exit 1)
├── TraceFormatError      the bytes are not what their format says; names path, offset, value
│   └── UnknownFormatError    no reader, or more than one, claims the file
├── MissingEventsError    the trace lacks what a policy needs; names it and how to record it
├── OutputError           the target exists, is read-only or full
└── TableError            a trace or result directory is not what its manifest says

The command line prints one line for any of these and exits 1. Anything else is a bug and keeps its traceback.
"""

from pathlib import Path


class TracekitError(Exception):
    """Base of all of them; its text is one line that says what to do next."""


class UsageError(TracekitError):
    """The request cannot be met as written."""


class TraceFormatError(TracekitError):
    """The bytes at ``offset`` of ``path`` are not what the format says."""

    def __init__(self, path: Path | str, offset: int | None, problem: str) -> None:
        self.path = str(path)
        self.offset = offset
        self.problem = problem
        where = self.path if offset is None else f"{self.path}: offset {offset:#x}"
        super().__init__(f"{where}: {problem}")


class UnknownFormatError(TraceFormatError):
    """No reader claims the file, or more than one does."""


class MissingEventsError(TracekitError):
    """The trace lacks events that were asked for."""


class OutputError(TracekitError):
    """The target of a write exists, cannot be written or is full."""


class TableError(TracekitError):
    """A trace or result directory is not what its manifest says."""
