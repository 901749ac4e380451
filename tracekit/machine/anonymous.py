"""Which zaps are of anonymous memory, by the system calls that mapped it."""

import polars as pl

from tracekit import schema
from tracekit.trace import Trace

_MAP_ANONYMOUS = 0x20


def zapped_anonymous(trace: Trace, table: pl.DataFrame) -> pl.Series:
    """Boolean[n]: true where a removal is part of a munmap() or madvise() of a range that an anonymous mmap() covers.

    Args:
        trace: for the arguments of the calls.
        table: number, time_ns, task, phase of each removal.
    """
    ranges = [_calls(trace, event) for event in ("munmap", "madvise")]
    zaps = pl.concat(ranges).sort("time_ns")
    maps = _mapped(trace)
    nothing = pl.repeat(None, len(table), dtype=pl.Boolean, eager=True)
    if zaps.is_empty() or maps.is_empty():
        return nothing
    files = maps.filter(~pl.col("anonymous")).select("task", "time_ns", file_ns="time_ns")
    # what was mapped there last: by the same start, or by the task's latest mmap() of all
    same = maps.select("task", "time_ns", "end", "anonymous", a="start", map_ns="time_ns")
    latest = maps.select("task", "time_ns", "anonymous", low="start", high="end")
    every = (
        zaps.join_asof(same, on="time_ns", by=["task", "a"], check_sortedness=False)
        .join_asof(latest, on="time_ns", by="task", check_sortedness=False, suffix="_latest")
        .join_asof(files, on="time_ns", by="task", check_sortedness=False)
        .with_columns(
            # a file mapped since may lie in the range
            by_start=pl.col("anonymous")
            & (pl.col("a") + pl.col("b") <= pl.col("end"))
            & (pl.col("file_ns").fill_null(-1) < pl.col("map_ns")),
            by_latest=pl.col("anonymous_latest")
            & (pl.col("a") >= pl.col("low"))
            & (pl.col("a") + pl.col("b") <= pl.col("high")),
        )
        .select(
            "task",
            "time_ns",
            call_ns="time_ns",
            anonymous=pl.col("by_start").fill_null(value=False) | pl.col("by_latest").fill_null(value=False),
        )
    )
    exits = _exits(trace)
    found = (
        table.select("number", "time_ns", "task", "phase")
        .sort("time_ns")
        .join_asof(every, on="time_ns", by="task", check_sortedness=False)
        .join_asof(exits, on="time_ns", by="task", check_sortedness=False)
        .with_columns(
            # in the call: no exit of one since
            anon=pl.when((pl.col("phase") == "zap") & (pl.col("exit_ns").fill_null(-1) < pl.col("call_ns"))).then(
                "anonymous"
            )
        )
        .sort("number")
    )
    return found["anon"].replace_strict({False: None, True: True}, return_dtype=pl.Boolean)


def _calls(trace: Trace, event: str) -> pl.DataFrame:
    frames = [
        trace.events(table).select(
            "time_ns", *schema.columns_of(trace, table, event), task=schema.task_of(trace, table)
        )
        for table in schema.tables_fit(trace, event)
    ]
    empty = pl.DataFrame(schema={"time_ns": pl.Int64, "a": pl.UInt64, "b": pl.UInt64, "task": pl.Int32})
    return pl.concat([empty, *(frame.select(empty.columns).collect() for frame in frames)])


def _exits(trace: Trace) -> pl.DataFrame:
    names = [f"syscalls:sys_exit_{name}" for name in ("munmap", "madvise")]
    frames = [
        trace.events(name).select("time_ns", exit_ns="time_ns", task=schema.task_of(trace, name)).collect()
        for name in names
        if name in trace.event_names
    ]
    empty = pl.DataFrame(schema={"time_ns": pl.Int64, "exit_ns": pl.Int64, "task": pl.Int32})
    return pl.concat([empty, *frames]).sort("time_ns")


def _mapped(trace: Trace) -> pl.DataFrame:
    """(task, time_ns, start, end, anonymous) of each mmap() whose return was seen, in order of time."""
    empty = pl.DataFrame(
        schema={"task": pl.Int32, "time_ns": pl.Int64, "start": pl.UInt64, "end": pl.UInt64, "anonymous": pl.Boolean}
    )
    returns = "syscalls:sys_exit_mmap"
    if returns not in trace.event_names or not schema.tables_fit(trace, "mmap"):
        return empty
    entered = pl.concat(
        [
            trace.events(table).select(
                "time_ns", *schema.columns_of(trace, table, "mmap"), task=schema.task_of(trace, table)
            )
            for table in schema.tables_fit(trace, "mmap")
        ]
    ).sort("time_ns")
    left = trace.events(returns).select("time_ns", "ret", task=schema.task_of(trace, returns)).sort("time_ns")
    pairs = left.join_asof(entered.with_columns(enter_ns="time_ns"), on="time_ns", by="task", check_sortedness=False)
    start = pl.col("ret").cast(pl.UInt64, strict=False)
    return (
        pairs.filter((pl.col("ret") > 0) & pl.col("enter_ns").is_not_null())
        .select(
            "task",
            "time_ns",
            start=start,
            end=start + pl.col("b"),
            anonymous=pl.col("d") & _MAP_ANONYMOUS > 0,
        )
        .sort("time_ns")
        .collect()
    )
