"""Entries that migrate_vma() set, where no visit tells whose they were: it has no event of its own (MODEL.md A.4)."""

import numpy as np
import polars as pl

from tracekit.machine.calls import Calls
from tracekit.machine.timeline import Kind
from tracekit.machine.walks import Walks

# the system call through which a driver is asked to move pages to its device and back
_DRIVERS = "ioctl"


def find_collected(rows: pl.DataFrame, walks: Walks, calls: Calls) -> pl.DataFrame:
    """Of each entry restored in a driver's system call that nobody was seen to set there, that it was collected.

    Returns:
        columns of ``replay._seen``, op migration_entry.collect; time_ns null, row and walk of the restoring.
    """
    kind, task = rows["kind"].to_numpy(), rows["task"].to_numpy()
    driver = calls.table.filter(pl.col("name") == _DRIVERS, pl.col("kind") == "syscall")["call"].to_numpy()
    inside = np.isin(calls.of_row, driver)
    at = np.flatnonzero((kind == Kind.RESTORE) & inside)
    sets = rows[np.flatnonzero((kind == Kind.SET) & inside)].select("task", "addr")
    before = np.maximum.accumulate(np.where(kind == Kind.REMOVE, np.arange(len(rows)), -1)) if len(rows) else at
    entry = before[at]
    own = (entry >= 0) & (task[entry] == task[at])
    return (
        rows[at]
        .select("task", "cpu", "addr", time_ns=pl.lit(None, pl.Int64))
        .with_columns(
            row=pl.Series(at, dtype=pl.Int64),
            walk=pl.Series(np.where(own, walks.walk_of_row[entry], -1), dtype=pl.Int64),
            call=pl.Series(calls.of_row[at], dtype=pl.Int64),
            op=pl.lit("migration_entry.collect"),
            certainty=pl.lit("inferred"),
            nr_pages=pl.lit(1, pl.Int64),
        )
        .join(sets, on=["task", "addr"], how="anti")
    )
