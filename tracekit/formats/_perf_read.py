"""A perf.data file, stream or directory → the walk over its records."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tracekit.errors import TraceFormatError
from tracekit.formats import ReadOptions, Sink, TraceMetadata, Truncation, files_of
from tracekit.formats._perf_feed import FileFeed, PipeFeed
from tracekit.formats._perf_header import (
    MAGICS,
    PIPE_HEADER_BYTES,
    PerfHeader,
    Section,
    is_pipe,
    read_header,
    unreadable,
)
from tracekit.formats._perf_pipe import PipeHeader
from tracekit.formats._perf_stream import RecordStream, Source
from tracekit.formats._perf_walk import Walk

_HEADER_BYTES = 1 << 16


class _Opened(NamedTuple):
    """One file that is read, and what it looked like before."""

    path: Path
    file: BinaryIO
    before: os.stat_result
    size: int  # bytes to read


def read(path: Path, sink: Sink, options: ReadOptions) -> TraceMetadata:
    """Read the trace at ``path``; see tracekit.formats.Reader."""
    if options.stream is not None:
        return _read_stream(path, options.stream, sink, options)
    with ExitStack() as stack:
        parts = files_of(path)
        files = [_open(stack, part, options.size_bytes if len(parts) == 1 else None) for part in parts]
        head = files[0].file.read(PIPE_HEADER_BYTES)
        if is_pipe(head):
            feed = FileFeed(path, files[0].file, Section(PIPE_HEADER_BYTES, files[0].size - PIPE_HEADER_BYTES))
            metadata = _read_pipe(head, feed, files[0].size, sink, options)
        else:
            metadata = _read_files(files, sink, options)
        for one in files:
            after = os.fstat(one.file.fileno())
            if after.st_size <= one.size and after.st_mtime_ns != one.before.st_mtime_ns:
                raise TraceFormatError(one.path, None, "was written to while it was read; ingest a copy")
    return metadata


def _open(stack: ExitStack, path: Path, size: int | None) -> _Opened:
    try:
        file = stack.enter_context(path.open("rb", buffering=0))
        before = os.fstat(file.fileno())
    except OSError as error:
        raise unreadable(path, error) from error
    return _Opened(path, file, before, before.st_size if size is None else size)


def _read_files(files: list[_Opened], sink: Sink, options: ReadOptions) -> TraceMetadata:
    first, *others = files
    header = read_header(first.path, first.file, first.size)
    walk = Walk(header, None, sink, options)
    available = min(header.data.size, header.file_bytes - header.data.offset)
    seen = options.seen if header.order == "<" and not others else None  # the other byte order is turned in place
    feeds = [FileFeed(first.path, first.file, Section(header.data.offset, available), seen)]
    feeds += [FileFeed(one.path, one.file, Section(0, one.size)) for one in others]
    for number, one in enumerate(others):
        expected = int(one.path.suffix[1:])
        if expected != number:
            walk.count("data_file_missing")
            break
    if header.directory and not others:
        walk.count("data_file_missing")
    walk.run(RecordStream([Source(feed, number) for number, feed in enumerate(feeds)]))
    walk.scan.truncated = _cut(walk, header, header.data.offset + available)
    return _metadata(walk, sum(one.size for one in files))


def _cut(walk: Walk, header: PerfHeader, end: int) -> Truncation | None:
    """What a file that ends too early, at ``end``, lacks."""
    declared_end = header.data.offset + header.data.size
    if end < declared_end:
        place = end if walk.scan.truncated is None else walk.scan.truncated.offset
        reason = f"the file ends at {end:#x}, its data should end at {declared_end:#x}"
        return Truncation(place, declared_end - place, reason)
    if walk.scan.truncated is None and not header.data_complete:
        return Truncation(end, 0, "the recorder was killed before it wrote the event formats")
    if walk.scan.truncated is None and "features_missing" in walk.anomalies:
        return Truncation(end, 0, "the file ends before its feature sections do")
    return walk.scan.truncated


def _read_stream(path: Path, stream: BinaryIO, sink: Sink, options: ReadOptions) -> TraceMetadata:
    head = b""
    while len(head) < PIPE_HEADER_BYTES and (more := stream.read(PIPE_HEADER_BYTES - len(head))):
        head += more
    feed = PipeFeed(path, stream, len(head))
    metadata = _read_pipe(head, feed, 0, sink, options)
    feed.skip(1 << 62)  # what follows damage counts too
    return metadata._replace(source_bytes=feed.place)


def _read_pipe(head: bytes, feed: FileFeed | PipeFeed, size: int, sink: Sink, options: ReadOptions) -> TraceMetadata:
    path = feed.path
    pipe = PipeHeader(path, size, MAGICS[head[:8]])
    walk = Walk(pipe.header(), pipe, sink, options)
    source = Source(feed, 0)
    source.window_bytes = _HEADER_BYTES  # features end beside words: each moves the rest of its window
    walk.run(RecordStream([source]))
    if not pipe.attrs:
        raise TraceFormatError(path, feed.place, "has no event attributes; was the recording interrupted at its start?")
    return _metadata(walk, size)


def _metadata(walk: Walk, size: int) -> TraceMetadata:
    """What the header and the walk say of the trace."""
    features = dict(walk.known.header.features)
    tracing = walk.known.header.tracing
    machine = {
        "release": features.pop("release", None),
        "arch": features.pop("arch", None),
        "page_size": tracing.page_size if tracing else None,
        "cpus": features.pop("cpus", None),
        "cpus_available": features.pop("cpus_available", None),
        "nodes": features.pop("nodes", None),
        "memory_bytes": features.pop("memory_bytes", None),
        "cpu": features.pop("cpu", None),
    }
    features.pop("hostname", None)
    recorder = {"name": "perf", "version": features.pop("version", None), "cmdline": features.pop("cmdline", None)}
    clock = {"name": walk.known.header.attrs[0].clock, "wall_offset_ns": features.pop("wall_offset_ns", None)}
    if walk.known.header.order == ">":
        features["byte_order"] = "big"
    records = walk.tally.summary()
    if records:
        features["records"] = records
    lost, truncated = walk.losses.summary(), walk.scan.truncated
    return TraceMetadata("perf.data", size, machine, recorder, clock, lost, walk.anomalies, truncated, features)
