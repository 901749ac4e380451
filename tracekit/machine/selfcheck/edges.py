"""Where tasks were in the kernel and what they did there, as stretches of time to compare others with."""

from typing import Literal

import numpy as np
import polars as pl

from tracekit import schema
from tracekit.trace import Trace

WRITE = 2  # page_fault_user's error_code
# Canonical events that unmap what is there from then on, and those that come when it is done. kernel/exit.c prints
# process_exit before the address space goes or after it (schemas/events/sched/sched_process_exit.toml).
UNMAPS = (("munmap", "madvise", "mremap", "mmap", "exit", "process_exit"), ("process_exec", "exit_mmap"))
FORKS = ((), ("task_newtask", "process_fork"))
_EDGES = ("syscalls:", "sched:sched_process_", "task:task_newtask", "mmap:exit_mmap")


def canonical(trace: Trace, event: str, *columns: str) -> pl.DataFrame:
    """Every record of the canonical ``event``: time_ns, seq, task and those of its ``columns``, in order of time.

    Raises:
        MissingEventsError: the event's fields fit no known variant.
    """
    empty = {"time_ns": pl.Int64, "seq": pl.UInt64, "task": pl.Int32, **dict.fromkeys(columns, pl.Int64)}
    frames = [pl.LazyFrame(schema=empty)]
    for table in schema.tables_of(trace, event):
        own = {} if not columns else {e.meta.output_name(): e for e in schema.columns_of(trace, table, event)}
        frames.append(
            trace.events(table).select(
                "time_ns",
                "seq",
                schema.task_of(trace, table),
                *(own[name].cast(pl.Int64, wrap_numerical=True) for name in columns),
            )
        )
    return pl.concat(frames).sort("time_ns", "seq").collect()


def edges(trace: Trace) -> pl.DataFrame:
    """Where a task entered or left the kernel, as far as the trace shows: by faults, system calls and life cycle.

    Returns:
        edge_ns, task, write (a write fault), in_exec (the end of exec).
    """
    faults = schema.tables_of(trace, "page_fault_user")
    frames = [
        trace.events(table).select(
            schema.task_of(trace, table),
            edge_ns="time_ns",
            write=(pl.col("error_code").cast(pl.Int64) & WRITE) > 0 if table in faults else pl.lit(value=False),
            in_exec=pl.lit(table == "sched:sched_process_exec"),
        )
        for table in trace.event_names
        if table in faults or table.startswith(_EDGES)
    ]
    empty = {"edge_ns": pl.Int64, "task": pl.Int32, "write": pl.Boolean, "in_exec": pl.Boolean}
    return pl.concat(frames).sort("edge_ns").collect() if frames else pl.DataFrame(schema=empty)


def during(trace: Trace, begins: tuple[str, ...], ends: tuple[str, ...]) -> pl.DataFrame:
    """(from_ns, until_ns): from each of ``begins`` to its task's next edge, to each of ``ends`` from the one before.

    An edge that the trace does not show adds nothing.
    """
    busy = edges(trace).select("task", near_ns="edge_ns")
    parts = [pl.DataFrame(schema={"from_ns": pl.Int64, "until_ns": pl.Int64})]
    sides: tuple[tuple[tuple[str, ...], Literal["forward", "backward"]], ...] = (
        (begins, "forward"),
        (ends, "backward"),
    )
    for events, strategy in sides:
        for table in (table for event in events for table in schema.tables_of(trace, event)):
            at = trace.events(table).select("time_ns", schema.task_of(trace, table)).sort("time_ns").collect()
            ends_ns = pl.coalesce("near_ns", "time_ns")
            lower, upper = pl.min_horizontal("time_ns", ends_ns), pl.max_horizontal("time_ns", ends_ns)
            parts.append(_beside(at, busy, strategy).select(from_ns=lower, until_ns=upper))
    return pl.concat(parts)


def _beside(at: pl.DataFrame, busy: pl.DataFrame, strategy: Literal["backward", "forward"]) -> pl.DataFrame:
    return at.join_asof(
        busy,
        left_on="time_ns",
        right_on="near_ns",
        by="task",
        strategy=strategy,
        allow_exact_matches=False,
        coalesce=False,
        check_sortedness=False,
    )


def clean(windows: pl.DataFrame, start: pl.Series, end: pl.Series) -> pl.Series:
    """bool[n]: whether no loss, on any CPU, falls between ``start`` and ``end`` (ns); a null start is not clean."""
    begins, ends = np.sort(windows["from_ns"].to_numpy()), np.sort(windows["until_ns"].to_numpy())
    known = start.is_not_null() & end.is_not_null()
    first, last = start.fill_null(0).to_numpy(), end.fill_null(0).to_numpy()
    # one overlaps iff more begin before the end than end before the start
    lost = np.searchsorted(begins, last, side="left") > np.searchsorted(ends, first, side="right")
    return known & ~pl.Series(lost, dtype=pl.Boolean)


def overlaps(spans: pl.DataFrame, start: pl.Series, end: pl.Series) -> pl.Series:
    """bool[n]: whether one of ``spans`` (from_ns, until_ns) falls between ``start`` and ``end``."""
    return ~clean(spans, start, end)
