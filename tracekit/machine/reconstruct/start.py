"""The tasks of before the trace, out of the snapshot that ``tracekit record`` takes (``tracekit.snapshot``).

They become what perf says of them itself, TASK and MAP at time 0, where it does not. A task that began, or ran another
program, between the trace's beginning and its row of the snapshot is left to the events.
"""

from typing import NamedTuple

import polars as pl

from tracekit.machine.reconstruct.events import SCHEMA, Code, file_of
from tracekit.trace import Trace

BEGINS = (Code.NEWTASK, Code.FORK, Code.EXEC)
_CLOCKS = ("mono", "monotonic")  # as trace-cmd and perf name it


class Start(NamedTuple):
    """Attributes.

    rows: columns as ``SCHEMA``.
    anomalies: why a snapshot was not used, counted.
    """

    rows: pl.DataFrame
    anomalies: dict[str, int]


def start(trace: Trace, cycle: pl.DataFrame, begun: pl.DataFrame, end_ns: int | None) -> Start:
    """What was there before ``cycle``, the events of a trace that ends at ``end_ns``; None: nobody knows when.

    ``begun`` has all events of ``BEGINS``.
    """
    head = trace.manifest.get("snapshot")
    if head is None:
        return Start(pl.DataFrame(schema=SCHEMA), {})
    clock = trace.manifest["clock"]["name"]
    if clock not in _CLOCKS or head["clock"] not in _CLOCKS:
        return Start(pl.DataFrame(schema=SCHEMA), {"snapshot_of_another_clock": 1})
    if end_ns is None or head["end_ns"] > end_ns:
        return Start(pl.DataFrame(schema=SCHEMA), {"snapshot_after_the_trace": 1})
    tables = [trace.table(f"snapshot/{name}").collect() for name in ("tasks", "vmas")]
    return Start(before(tables[0], tables[1], pl.concat([cycle, begun], how="diagonal")), {})


def before(tasks: pl.DataFrame, vmas: pl.DataFrame, cycle: pl.DataFrame) -> pl.DataFrame:
    """TASK and MAP rows of ``snapshot/tasks`` and ``snapshot/vmas``."""
    own = cycle.filter((pl.col("time_ns") <= 0) & pl.col("code").is_in([Code.TASK, Code.MAP]))
    theirs = own.select(pid=pl.when(pl.col("code") == Code.TASK).then("a").otherwise("tid").cast(pl.Int32)).unique()
    tasks = _old(tasks, cycle).join(theirs, on="pid", how="anti")
    vmas = vmas.join(tasks.select("pid").unique(), on="pid", how="semi").filter(
        pl.col("perms").cast(pl.String).str.slice(2, 1) == "x", pl.col("inode") > 0, pl.col("end") < 1 << 56
    )
    with_memory = tasks.filter(pl.col("mm_of").is_not_null() | pl.col("pid").is_in(vmas["pid"].implode()))
    found = [
        # the tasks first: those that share an address space are known before what is mapped there
        with_memory.select(code=pl.lit(int(Code.TASK)), tid="tid", a=pl.coalesce("mm_of", "pid"), b="ppid"),
        vmas.select(
            code=pl.lit(int(Code.MAP)),
            tid="pid",
            a="start",
            b=pl.col("end") - pl.col("start"),
            c="offset",
            d=file_of(pl.col("dev") // (1 << 20), pl.col("dev") % (1 << 20), pl.col("inode")),
        ),
    ]
    rows = pl.concat([frame.cast(dict.fromkeys(frame.columns, pl.Int64)) for frame in found], how="diagonal")
    missing = [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in rows.columns]
    placed = rows.with_columns(missing).with_columns(time_ns=pl.lit(0), seq=pl.int_range(pl.len()))
    return placed.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def _old(tasks: pl.DataFrame, cycle: pl.DataFrame) -> pl.DataFrame:
    """``tasks`` but those whose address space began in the trace, before they were looked at."""
    after = cycle.filter(pl.col("time_ns") > 0)
    born = after.filter(pl.col("code").is_in([Code.NEWTASK, Code.FORK])).select(tid=pl.col("a"), since="time_ns")
    run = after.filter(pl.col("code") == Code.EXEC).select(tid=pl.col("tid").cast(pl.Int64), since="time_ns")
    began = pl.concat([born, run]).group_by(pl.col("tid").cast(pl.Int32)).agg(pl.col("since").min())
    for key in ("tid", "pid"):
        seen = tasks.join(began, left_on=key, right_on="tid", how="left", maintain_order="left")
        tasks = seen.filter(pl.col("since").is_null() | (pl.col("since") > pl.col("time_ns"))).drop("since")
    return tasks
