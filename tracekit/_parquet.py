"""The tables of one trace directory, written as they come.

All writers share one budget of buffered bytes, however many tables there are. Rows that come later than their time
promised (their table already reached the disk beyond them) are kept aside as sorted runs and merged at the end.
"""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tracekit._columns import numbers
from tracekit._workers import Workers

ROW_GROUP_BYTES = 16 << 20
ROW_GROUP_ROWS = 1 << 18
BUDGET_BYTES = 48 << 20
DIRECT_ROWS = 1 << 15
"""Batches of so many rows go to the disk at once: who makes them has put them together from many."""
MERGE_ROWS = 1 << 15
STATISTICS = ("time_ns",)  # of five columns they cost 6 % of writing, of all 15
RISING = ("time_ns", "seq")
KEYS = ("time_ns", "cpu", "seq")

Key = tuple[int, int, int]


class TableStats(NamedTuple):
    """What became of one table."""

    rows: int
    bytes: int  # on disk
    first_ns: int | None
    last_ns: int | None


class Tables:
    """Appends batches to the Parquet tables below ``root``; a table is made when its first row comes."""

    def __init__(self, root: Path, budget_bytes: int = BUDGET_BYTES) -> None:
        self.root = root
        self.budget_bytes = budget_bytes
        self.late_rows = 0
        self._tables: dict[str, _Table] = {}
        self._lock = threading.Lock()

    def append(self, table: str, batch: pa.RecordBatch) -> None:
        """Add rows to ``table``; see tracekit.formats.Sink."""
        with self._lock:
            writer = self._tables.get(table)
            if writer is None:
                writer = self._tables[table] = _Table(self.root / f"{table}.parquet", batch.schema)
        writer.append(batch)

    def settle(self) -> None:
        """Write out the largest buffers until all of them together are within the budget."""
        total = sum(writer.buffered_bytes for writer in self._tables.values())
        if total <= self.budget_bytes:
            return
        for writer in sorted(self._tables.values(), key=lambda writer: -writer.buffered_bytes):
            total -= writer.buffered_bytes
            writer.flush(keep_last=False)
            if total <= self.budget_bytes // 2:
                return

    def close(self, jobs: int = 1) -> dict[str, TableStats]:
        """Write what is left, merge what came late, and say what there is."""
        self.late_rows = sum(writer.late_rows for writer in self._tables.values())
        stats: dict[str, TableStats] = {}

        def close(name: str) -> None:
            stats[name] = self._tables[name].close()

        names = sorted(self._tables, key=lambda name: -self._tables[name].buffered_bytes)
        with Workers(jobs) as workers:
            workers.start([partial(close, name) for name in names])
            workers.finish()
        return dict(sorted(stats.items()))

    def abort(self) -> None:
        """Let go of all files, whole or not."""
        for writer in self._tables.values():
            writer.abort()


class _Table:
    """One Parquet file in the making."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self.sorted = "time_ns" in schema.names
        self.buffered_bytes = 0
        self.late_rows = 0
        self.rows = 0
        self._buffered_rows = 0
        self._batches: list[pa.RecordBatch] = []
        self._late: list[pa.RecordBatch] = []
        self._runs: list[Path] = []
        self._in_order = True
        self._tail: Key | None = None  # of the last row buffered
        self._written: Key | None = None  # of the last row on disk
        self._writer: pq.ParquetWriter | None = None
        self._first_ns: int | None = None
        self._last_ns: int | None = None

    def append(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        self.rows += batch.num_rows
        if self.sorted:
            batch = self._in_time(batch)
            if batch.num_rows == 0:
                return
        self._batches.append(batch)
        self._buffered_rows += batch.num_rows
        self.buffered_bytes += batch.nbytes
        if self._buffered_rows >= ROW_GROUP_ROWS or self.buffered_bytes >= ROW_GROUP_BYTES:
            # rows out of order are seldom more than one batch late: the last stays, to take them in
            self.flush(keep_last=len(self._batches) > 1)
        elif batch.num_rows >= DIRECT_ROWS:
            self.flush(keep_last=False)

    def _in_time(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Put aside what comes before rows already written; notes whether the rest is in order."""
        times = _column(batch, "time_ns")
        first, last = int(times[0]), int(times[-1])
        self._first_ns = first if self._first_ns is None else min(self._first_ns, first)
        self._last_ns = last if self._last_ns is None else max(self._last_ns, last)
        if self._tail is None or first > self._tail[0]:
            self._tail = _key(batch, batch.num_rows - 1)
            return batch
        if self._written is not None and _key(batch, 0) < self._written:
            late = _count_below(batch, self._written)
            self._late.append(batch.slice(0, late))
            self.buffered_bytes += self._late[-1].nbytes
            self.late_rows += late
            batch = batch.slice(late)
            if batch.num_rows == 0:
                return batch
        self._in_order &= self._tail <= _key(batch, 0)
        self._tail = max(self._tail, _key(batch, batch.num_rows - 1))
        return batch

    def flush(self, *, keep_last: bool) -> None:
        """Write the buffered rows, except for those of the last batch if it is to be kept."""
        if self._late and (not keep_last or sum(part.nbytes for part in self._late) > ROW_GROUP_BYTES):
            self._spill()
        if not self._batches:
            self._recount()
            return
        if self._in_order:
            kept = self._batches[-1:] if keep_last else []
            table = pa.Table.from_batches(self._batches[: len(self._batches) - len(kept)])
        else:
            table = sort_rows(pa.Table.from_batches(self._batches))
            keep = self._batches[-1].num_rows if keep_last else 0
            kept = table.slice(table.num_rows - keep).combine_chunks().to_batches() if keep else []
            table = table.slice(0, table.num_rows - keep)
        if table.num_rows:
            self._write(table)
        self._batches = kept
        self._in_order = True
        self._recount()

    def _recount(self) -> None:
        self._buffered_rows = sum(part.num_rows for part in self._batches)
        self.buffered_bytes = sum(part.nbytes for part in (*self._batches, *self._late))

    def _write(self, table: pa.Table) -> None:
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = open_writer(self.path, self.schema)
        self._writer.write_table(table.unify_dictionaries(), row_group_size=ROW_GROUP_ROWS)
        if self.sorted:
            self._written = _key(table.slice(table.num_rows - 1).to_batches()[0], 0)

    def _spill(self) -> None:
        """Put the rows that came late into a sorted run of their own."""
        path = self.path.with_name(f"{self.path.name}.late-{len(self._runs)}")
        table = sort_rows(pa.Table.from_batches(self._late)).unify_dictionaries()
        with open_writer(path, self.schema) as writer:
            writer.write_table(table, row_group_size=MERGE_ROWS)
        self._runs.append(path)
        self._late = []

    def close(self) -> TableStats:
        if self._writer is None:
            self._batches += self._late
            self._late = []
        if self._late:
            self._spill()
        self.flush(keep_last=False)
        if self._writer is None:  # recorded, and it did not happen once
            return TableStats(0, _write_empty(self.path, self.schema), None, None)
        self._writer.close()
        self._writer = None
        if self._runs:
            self._merge()
        return TableStats(self.rows, self.path.stat().st_size, self._first_ns, self._last_ns)

    def _merge(self) -> None:
        main = self.path.with_name(f"{self.path.name}.late-main")
        self.path.rename(main)
        with open_writer(self.path, self.schema) as writer:
            for table in merge([main, *self._runs]):
                writer.write_table(table.unify_dictionaries(), row_group_size=ROW_GROUP_ROWS)
        for path in (main, *self._runs):
            path.unlink()

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _write_empty(path: Path, schema: pa.Schema) -> int:
    """A table without a row; returns its bytes. 0.2 ms, by way of ``open_writer`` 0.35: a trace may have 700."""
    file = pa.BufferOutputStream()
    pq.ParquetWriter(file, schema, use_dictionary=False, write_statistics=False).close()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_bytes(file.getvalue())


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer with this project's encodings.

    Measured on 11.3 million rows of a trace, in CPU seconds and MB. The 64-bit fields are mostly addresses, of which
    the bytes high up are alike: byte by byte they come out smaller than as differences, and are done sooner.

        zstd, differences in all 64-bit columns             0.72    51.6
        zstd, differences in times and places, BSS else     0.63    41.0
        LZ4,  differences in times and places, BSS else     0.48    54.7
        LZ4,  differences in all 64-bit columns             0.50    63.7
        LZ4,  BSS in 32-bit columns too                     0.49    54.1

    zstd, for a quarter less to keep: a fleet's traces are written once and lie for long. Dictionaries pay only for
    strings (PEERS.md 2).
    """
    strings = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    wide = [field.name for field in schema if field.type in (pa.int64(), pa.uint64())]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=strings,
        write_statistics=[name for name in STATISTICS if name in schema.names],
        column_encoding={name: "DELTA_BINARY_PACKED" if name in RISING else "BYTE_STREAM_SPLIT" for name in wide},
        # Arrow's own allocator keeps some 60 MB more, and is not faster here
        memory_pool=pa.system_memory_pool(),
    )


def _column(rows: pa.RecordBatch | pa.Table, name: str) -> np.ndarray:
    """A key column as NumPy; nulls come as −1. Not by ``to_numpy``, which imports pandas, or pyarrow.compute."""
    column = rows.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    bitmap, data = column.buffers()
    end = column.offset + len(column)
    values: np.ndarray = np.frombuffer(data, str(column.type), end)[column.offset :]
    if column.null_count:
        valid = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=end, bitorder="little")[column.offset :]
        values = np.where(valid, values, 0 if name == "seq" else -1)
    return values


def _key(batch: pa.RecordBatch, row: int) -> Key:
    one = batch.slice(row, 1)
    time, cpu, seq = (int(_column(one, name)[0]) if name in one.schema.names else 0 for name in KEYS)
    return time, cpu, seq


def _count_below(batch: pa.RecordBatch, key: Key) -> int:
    """How many rows of a sorted batch come before ``key``."""
    times = _column(batch, "time_ns")
    row = int(np.searchsorted(times, key[0], "left"))
    end = int(np.searchsorted(times, key[0], "right"))
    while row < end and _key(batch, row) < key:
        row += 1
    return row


def sort_rows(table: pa.Table) -> pa.Table:
    """The rows by (time_ns, cpu, seq)."""
    keys = [_column(table, name) for name in reversed(KEYS) if name in table.schema.names]
    order = np.lexsort(keys)
    return table.unify_dictionaries().combine_chunks().take(numbers(order))


class _Run:
    """A sorted file, read a piece at a time."""

    def __init__(self, path: Path) -> None:
        self._batches: Iterator[pa.RecordBatch] = pq.ParquetFile(path).iter_batches(MERGE_ROWS)
        self.table: pa.Table | None = None
        self.advance()

    def advance(self) -> None:
        batch = next(self._batches, None)
        self.table = None if batch is None else pa.Table.from_batches([batch])

    def last(self) -> Key:
        assert self.table is not None
        return _key(self.table.slice(self.table.num_rows - 1).to_batches()[0], 0)

    def take(self, bound: Key) -> pa.Table:
        """Cut off the rows up to and with ``bound``."""
        assert self.table is not None
        batch = self.table.combine_chunks().to_batches()[0]
        count = _count_below(batch, (bound[0], bound[1], bound[2] + 1))
        taken = self.table.slice(0, count)
        self.table = self.table.slice(count)
        if self.table.num_rows == 0:
            self.advance()
        return taken


def merge(paths: list[Path]) -> Iterator[pa.Table]:
    """Merge sorted files; yields sorted tables of bounded size."""
    runs = [run for run in map(_Run, paths) if run.table is not None]
    while runs:
        bound = min(run.last() for run in runs)
        parts = [run.take(bound) for run in runs]
        yield sort_rows(pa.concat_tables(parts))
        runs = [run for run in runs if run.table is not None]
