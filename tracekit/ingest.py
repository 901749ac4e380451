"""A trace file → a trace directory: whole or absent."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import BinaryIO, cast

from tracekit import formats, snapshot
from tracekit._parquet import Tables, TableStats
from tracekit.errors import OutputError, TraceFormatError, UsageError
from tracekit.formats import ReadOptions, TraceMetadata, _stdin

VERSION = "0.1.0"  # the package's: ingest stands below it and may not import it, a test holds them together
SCHEMA = "tracekit/manifest/1"
MOST_JOBS = 4
"""Threads by default. Each takes memory: for 1 GB of trace 4 took 437 MB, 8 took 486; 32, with larger windows, 660.

Whether more are faster where there are more CPUs was not measured: on two they were not.
"""
_HASH_BYTES = 1 << 20
_PROBE_GROUPS = ("kprobes", "probe", "fprobes", "unknown")  # unknown: a text's, which names no group


def ingest(  # noqa: PLR0913 - all but two are options with a default
    source: Path,
    out: Path | None = None,
    *,
    force: bool = False,
    jobs: int | None = None,
    events: Sequence[str] = (),
    from_ns: int | None = None,
    to_ns: int | None = None,
    cpus: Collection[int] | None = None,
    pids: Collection[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Ingest the trace at ``source`` and return the trace directory.

    Args:
        source: a trace of any supported format; ``-``: standard input, which wants ``out``.
        out: the directory to make; by default ``source`` with ``.tracekit`` appended.
        force: replace an existing directory, once the new one is whole.
        jobs: threads; by default one for each CPU that the process may run on, at most ``MOST_JOBS``.
        events: globs on "system:event"; none: all. Events left out cost almost nothing.
        from_ns: no events before that time of the trace's clock.
        to_ns: nor after that one.
        cpus: only events of these CPUs.
        pids: only events of these processes or threads.
        progress: called with (bytes done, bytes total) as it goes.

    Raises:
        UnknownFormatError: no reader claims the file.
        TraceFormatError: the file is not what its format says, and nothing of it can be salvaged.
        OutputError: ``out`` exists and ``force`` is not given, or it cannot be written.
    """
    source = Path(source)
    if source == _stdin.NAME and out is None:
        raise UsageError("standard input has no name of its own; give the trace directory with -o")
    target = Path(out) if out is not None else source.with_name(source.name + ".tracekit")
    if target.exists() and not force:
        raise OutputError(f"{target}: exists; give --force to replace it, or another directory with -o")
    if printable(target.absolute()) != str(target.absolute()):
        raise OutputError(f"{target}: is no UTF-8, and Parquet cannot be written there; give another directory with -o")
    options = ReadOptions(
        tuple(events), jobs if jobs is not None else _cpus(), progress, None, from_ns, to_ns,
        None if cpus is None else frozenset(cpus), None if pids is None else frozenset(pids),
    )  # fmt: skip
    reader = None if source == _stdin.NAME else formats.detect(source)
    work = _beside(target)
    try:
        if reader is None:
            _write_stream(work, options)
        else:
            _write(source, reader, work, options)
        _put_in_place(work, target, force=force)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _cpus() -> int:
    """Threads to use by default: a container, or taskset, may leave the process few of the machine's CPUs."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MOST_JOBS)


def printable(name: str | Path) -> str:
    """A file's name as text: bytes in it that are no UTF-8 are written as in C."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _beside(target: Path) -> Path:
    """A new directory in that of ``target``."""
    try:
        work = Path(mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.absolute().parent))
    except OSError as error:
        raise OutputError(f"{target.parent}: cannot be written: {error.strerror or error}") from error
    mask = os.umask(0)
    os.umask(mask)
    work.chmod(0o777 & ~mask)
    return work


def _write_stream(work: Path, options: ReadOptions) -> None:
    """Ingest standard input: as it comes where that is possible, else from a copy."""
    stream = _stdin.HashedStream(sys.stdin.buffer)
    try:
        stream.head()
    except OSError as error:
        raise TraceFormatError(_stdin.NAME, None, f"cannot be read: {error.strerror or error}") from error
    reader = formats.detect_head(_stdin.NAME, stream.head())
    if formats.streams(stream.head()):
        options = options._replace(stream=cast("BinaryIO", stream), progress=None)
        metadata, stats = _tables(_stdin.NAME, reader, work, options)
        metadata = metadata._replace(source_bytes=stream.size_bytes)
        _finish(work, options, _manifest(_stdin.NAME, metadata, stats, stream.sha256()))
        return
    copy = stream.spool(work)
    try:
        metadata, stats = _tables(copy, reader, work, options._replace(size_bytes=stream.size_bytes))
    except TraceFormatError as error:
        raise TraceFormatError(_stdin.NAME, error.offset, error.problem) from error
    finally:
        copy.unlink()
    _finish(work, options, _manifest(_stdin.NAME, metadata, stats, stream.sha256()))


def _write(source: Path, reader: formats.Reader, work: Path, options: ReadOptions) -> None:
    digest = _Digest([(part, part.stat().st_size) for part in formats.files_of(source)])
    try:
        metadata, stats = _tables(source, reader, work, options._replace(size_bytes=digest.size, seen=digest.seen))
        taken, of_snapshot = snapshot.take_in(source, work)
        sha256 = digest.result()
    except BaseException:
        digest.stop()
        raise
    manifest = _manifest(source, metadata, stats | of_snapshot, sha256)
    _finish(work, options, manifest | {"snapshot": taken})


def _tables(
    source: Path, reader: formats.Reader, work: Path, options: ReadOptions
) -> tuple[TraceMetadata, dict[str, TableStats]]:
    """All tables but not the manifest."""
    from tracekit.formats._filter import filtered  # noqa: PLC0415 - it needs numpy

    tables = Tables(work)
    try:
        metadata = reader.read(source, filtered(tables, options), options)
        stats = tables.close(options.jobs)
    except BaseException:
        tables.abort()
        raise
    late = tables.late_rows
    if late:
        metadata.anomalies["out_of_order_records"] = metadata.anomalies.get("out_of_order_records", 0) + late
    return metadata, stats


def _finish(work: Path, options: ReadOptions, manifest: dict[str, object]) -> None:
    manifest["filters"] = _filters(options)
    (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _put_in_place(work: Path, target: Path, *, force: bool) -> None:
    if target.exists():
        if not force:
            raise OutputError(f"{target}: came into being meanwhile; give --force to replace it")
        old = work.with_suffix(".old")
        target.rename(old)
        work.rename(target)
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()
        return
    work.rename(target)


class _Digest:
    """SHA-256 of a file, in a thread of its own (hashlib lets go of the interpreter's lock).

    It takes the bytes that the reader has read anyway, and reads the rest: to read all of it twice cost 4 % of ingest.
    """

    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self._files = files
        self._path = files[0][0]
        self.size = sum(size for _, size in files)
        self._stopped = False
        self._hash = hashlib.sha256()
        self._done = 0
        self._shown = False
        self._thread = ThreadPoolExecutor(1)
        self._busy = self._thread.submit(self._rest)  # until the reader shows what it reads, if it does

    def seen(self, offset: int, block: memoryview) -> None:
        """Take in what was read at ``offset`` of the first file; it must stay as it is until the next call."""
        self._shown = True
        self._busy.result()
        self._busy = self._thread.submit(self._take, offset, block)

    def _take(self, offset: int, block: memoryview) -> None:
        if offset > self._done:
            self._read(self._path, self._done, offset)
        if offset <= self._done:
            self._update(block[self._done - offset :])

    def _update(self, block: memoryview) -> None:
        for begin in range(0, len(block), _HASH_BYTES):  # that it may be stopped
            if not self._stopped:
                piece = block[begin : begin + _HASH_BYTES]
                self._hash.update(piece)
                self._done += len(piece)

    def _read(self, path: Path, begin: int, end: int, *, gives_way: bool = False) -> None:
        """Read on from ``begin`` to ``end`` or the file's end; ``gives_way``: until the reader shows what it reads."""
        with suppress(OSError), path.open("rb", buffering=0) as file:
            file.seek(begin)
            while begin < end and not self._stopped and not (gives_way and self._shown):
                block = file.read(min(_HASH_BYTES, end - begin))
                if not block:
                    return
                self._update(memoryview(block))
                begin += len(block)

    def _rest(self) -> None:
        begin = 0
        for path, size in self._files:
            if begin <= self._done < begin + size:
                self._read(path, self._done - begin, size, gives_way=True)
            begin += size

    def stop(self) -> None:
        self._stopped = True
        self._thread.shutdown()

    def result(self) -> str:
        self._busy.result()
        self._shown = False
        self._thread.submit(self._rest).result()
        self._thread.shutdown()
        if self._done != self.size:
            raise TraceFormatError(self._path, self._done, "the file changed while it was read; ingest a copy")
        return self._hash.hexdigest()


def _manifest(source: Path, metadata: TraceMetadata, stats: dict[str, TableStats], sha256: str) -> dict[str, object]:
    timed = [table for name, table in stats.items() if name.startswith(("events/", "samples/"))]
    firsts = [table.first_ns for table in timed if table.first_ns is not None]
    lasts = [table.last_ns for table in timed if table.last_ns is not None]
    return {
        "schema": SCHEMA,
        "tool": {"name": "tracekit", "version": VERSION},
        "source": {
            "name": printable(source.name),
            "size_bytes": metadata.source_bytes,
            "sha256": sha256,
            "format": metadata.format,
        },
        "machine": metadata.machine,
        "recorder": metadata.recorder,
        "clock": metadata.clock,
        "time_range_ns": {"first": min(firsts, default=None), "last": max(lasts, default=None)},
        "tables": {name: {"rows": table.rows, "bytes": table.bytes} for name, table in stats.items()},
        "lost": metadata.lost,
        "anomalies": dict(sorted(metadata.anomalies.items())),
        "truncated": metadata.truncated._asdict() if metadata.truncated else None,
        "fidelity": fidelity(
            {name: table for name, table in stats.items() if table.rows or "/migrate/" not in name},
            metadata.machine["arch"],
        ),
        "kernel_has": {},
        "features": metadata.features,
    }


def _filters(options: ReadOptions) -> dict[str, object]:
    """What was asked for; null or empty: no limit."""
    return {
        "events": list(options.events),
        "from_ns": options.from_ns,
        "to_ns": options.to_ns,
        "cpus": None if options.cpus is None else sorted(options.cpus),
        "pids": None if options.pids is None else sorted(options.pids),
    }


def fidelity(tables: dict[str, TableStats], arch: object) -> str | None:
    """The highest level that these tables allow (DESIGN.md 2); page table entries are read for x86-64 only."""
    migrations = any(name.startswith("events/migrate/") for name in tables)
    if not migrations:
        return None
    probes = {
        f"events/{group}/{name}" for group in _PROBE_GROUPS for name in ("try_to_migrate_one", "remove_migration_pte")
    }
    found = {name.rsplit("/", 1)[-1] for name in probes & tables.keys()}
    if len(found) == 2:
        return "observed"
    life_cycle = {"events/sched/sched_process_fork", "events/sched/sched_process_exit"} & tables.keys()
    shown = bool(life_cycle) or {"tasks", "maps"} <= tables.keys()
    # of no other events can a walk be rebuilt
    shown &= bool({"events/migrate/set_migration_pte", "events/thp/set_migration_pmd"} & tables.keys())
    return "reconstructed" if shown and arch == "x86_64" else "counts"
