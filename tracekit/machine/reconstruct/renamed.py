"""exec that no event shows: a forked task is called otherwise later, and where exec was recorded it is known anyway.

Its name changes by prctl(PR_SET_NAME), too, so what this says is likely, not certain.
"""

import polars as pl

from tracekit import schema
from tracekit.machine.reconstruct.events import LIKELY, SCHEMA, Code
from tracekit.trace import Trace


def execs(trace: Trace) -> pl.DataFrame:
    """An EXEC for each, at the latest moment that its task was called as before: columns as ``SCHEMA``.

    That is its fork, as a rule. Names are read of the events' own fields: what a recorder writes down beside them is
    the last name that a task had.
    """
    if schema.recorded(trace, "process_exec") or trace.manifest["tables"].get("tasks", {}).get("rows"):
        return pl.DataFrame(schema=SCHEMA)
    return of_names(_names(trace))


def of_names(names: pl.DataFrame) -> pl.DataFrame:
    """The same, of ``names``: time_ns, tid, comm, and whether the task was ``born`` there."""
    ordered = names.sort("time_ns").with_columns(
        after=pl.col("comm").shift(-1).over("tid"), ends=pl.col("born").shift(-1).over("tid")
    )
    changed = ordered.filter(~pl.col("ends") & (pl.col("after") != pl.col("comm")))
    other = [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in ("time_ns", "tid")]
    return (
        changed.select(pl.col("time_ns") + 1, "tid", *other)
        .with_columns(code=pl.lit(int(Code.EXEC), pl.UInt8), a="tid", b=pl.lit(LIKELY, pl.Int64))
        .select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    )


def _names(trace: Trace) -> pl.DataFrame:
    """Who is called what when, by the events that say so at that moment."""
    found = [pl.DataFrame(schema={"time_ns": pl.Int64, "tid": pl.Int32, "comm": pl.String, "born": pl.Boolean})]
    for event, pairs in (("comm_at_fork", (("a", "b"), ("c", "d"))), ("comm_at_exit", (("a", "b"),))):
        for table in schema.tables_fit(trace, event):
            frame = trace.events(table).select("time_ns", *schema.columns_of(trace, table, event)).collect()
            found += [
                frame.select(
                    "time_ns",
                    pl.col(tid).cast(pl.Int32).alias("tid"),
                    pl.col(comm).cast(pl.String).alias("comm"),
                    pl.lit(tid == "c").alias("born"),
                )
                for tid, comm in pairs
            ]
    return pl.concat(found)
