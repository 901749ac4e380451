"""A trace file → a trace directory: whole or absent."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp

from tracekit import formats
from tracekit._parquet import Tables, TableStats
from tracekit.errors import OutputError, TraceFormatError
from tracekit.formats import ReadOptions, TraceMetadata

VERSION = "0.1.0"  # the package's: ingest stands below it and may not import it, a test holds them together
SCHEMA = "tracekit/manifest/1"
_HASH_BYTES = 1 << 20
_PROBE_GROUPS = ("kprobes", "probe", "fprobes")


def ingest(  # noqa: PLR0913 - all but two are options with a default
    source: Path,
    out: Path | None = None,
    *,
    force: bool = False,
    jobs: int | None = None,
    events: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Ingest the trace at ``source`` and return the trace directory.

    Args:
        source: a trace file of any supported format.
        out: the directory to make; by default ``source`` with ``.tracekit`` appended.
        force: replace an existing directory, once the new one is whole.
        jobs: threads; by default one per CPU.
        events: globs on "system:event"; none: all. Events left out cost almost nothing.
        progress: called with (bytes done, bytes total) as it goes.

    Raises:
        UnknownFormatError: no reader claims the file.
        TraceFormatError: the file is not what its format says, and nothing of it can be salvaged.
        OutputError: ``out`` exists and ``force`` is not given, or it cannot be written.
    """
    source = Path(source)
    target = Path(out) if out is not None else source.with_name(source.name + ".tracekit")
    if target.exists() and not force:
        raise OutputError(f"{target}: exists; give --force to replace it, or another directory with -o")
    reader = formats.detect(source)
    options = ReadOptions(tuple(events), jobs if jobs is not None else os.cpu_count() or 1, progress)
    work = _beside(target)
    try:
        _write(source, reader, work, options)
        _put_in_place(work, target, force=force)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


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


def _write(source: Path, reader: formats.Reader, work: Path, options: ReadOptions) -> None:
    size = source.stat().st_size
    digest = _Digest(source, size)
    tables = Tables(work)
    try:
        metadata = reader.read(source, tables, options._replace(size_bytes=size))
        stats = tables.close()
    except BaseException:
        digest.stop()
        tables.abort()
        raise
    late = tables.late_rows
    if late:
        metadata.anomalies["out_of_order_records"] = metadata.anomalies.get("out_of_order_records", 0) + late
    manifest = _manifest(source, metadata, stats, digest.result())
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
    """SHA-256 of a file, in a thread of its own (hashlib lets go of the interpreter's lock)."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._stopped = False
        self._hash = hashlib.sha256()
        self._done = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._path.open("rb", buffering=0) as file:
                while self._done < self._size and not self._stopped:
                    block = file.read(min(_HASH_BYTES, self._size - self._done))
                    if not block:
                        return
                    self._hash.update(block)
                    self._done += len(block)
        except OSError:
            return

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()

    def result(self) -> str:
        self._thread.join()
        if self._done != self._size:
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
            "name": source.name,
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
        "fidelity": fidelity(stats),
        "kernel_has": {},
        "features": metadata.features,
    }


def fidelity(tables: dict[str, TableStats]) -> str | None:
    """The highest level that tables with rows allow (DESIGN.md 2)."""
    migrations = any(name.startswith("events/migrate/") for name in tables)
    if not migrations:
        return None
    probes = {
        f"events/{group}/{name}" for group in _PROBE_GROUPS for name in ("try_to_migrate_one", "remove_migration_pte")
    }
    found = {name.rsplit("/", 1)[-1] for name in probes & tables.keys()}
    if len(found) == 2:
        return "observed"
    life_cycle = {"events/sched/sched_process_fork", "events/sched/sched_process_exit"}
    return "reconstructed" if {"tasks", "maps"} <= tables.keys() or life_cycle & tables.keys() else "counts"
