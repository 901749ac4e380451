"""kmem:rss_stat, with what a law needs beside each value: the value before, what the task did last, whose mm it is."""

import polars as pl

from tracekit.machine.selfcheck.edges import canonical, edges
from tracekit.trace import Trace

CLONE_VM = 0x100


def counters(trace: Trace) -> pl.DataFrame:
    """One row per rss_stat event, in order of time.

    Returns:
        time_ns, task, mm_id, curr, member, pages; ``before``, ``since``: pages and time of the same counter's event
        before it; ``edge_ns``, ``write``: when the task last entered or left the kernel, as far as the trace shows, and
        whether by a write fault; ``first``: whether no other event of that counter followed the edge; ``in_exec``:
        whether the end of an exec is the task's next edge, so that it may be in either address space.
    """
    last = pl.col("pages", "time_ns").shift(1).over("mm_id", "member")
    rss = (
        canonical(trace, "rss_stat", "a", "b", "c", "d")
        .select("time_ns", "task", mm_id="a", curr="b", member="c", pages=pl.col("d") // trace.page_size)
        .with_columns(last.name.map({"pages": "before", "time_ns": "since"}.__getitem__))
    )
    known = edges(trace)
    ends = known.select("task", "in_exec", time_ns="edge_ns")
    return (
        rss.join_asof(
            known.drop("in_exec"),
            left_on="time_ns",
            right_on="edge_ns",
            by="task",
            check_sortedness=False,
            coalesce=False,
        )
        .join_asof(ends, on="time_ns", by="task", strategy="forward", check_sortedness=False)
        .with_columns(
            pl.col("in_exec").fill_null(value=False),
            first=pl.int_range(pl.len()).over("task", "edge_ns", "mm_id", "member") == 0,
        )
    )


def switches(trace: Trace) -> pl.DataFrame:
    """When a thread came into an address space.

    Returns:
        time_ns, task, space (a number; negative where its maker was there before the trace), parent: the thread that
        forked it. A thread, and the child of a vfork until it calls exec, stands in the space of its maker.
    """
    births = canonical(trace, "task_newtask", "a", "b").rename({"a": "child", "b": "flags"})
    execs = canonical(trace, "process_exec")
    space_of: dict[int, int] = {}
    rows: list[tuple[int, int, int, int | None]] = []
    events = pl.concat([births, execs], how="diagonal").sort("time_ns", "seq").drop("seq")
    for number, (time_ns, task, child, flags) in enumerate(events.iter_rows(), 1):
        born = task if child is None else child
        shares = child is not None and flags & CLONE_VM
        space_of[born] = space_of.setdefault(task, -task) if shares else number
        rows.append((time_ns, born, space_of[born], None if child is None or shares else task))
    kinds = {"time_ns": pl.Int64, "task": pl.Int32, "space": pl.Int64, "parent": pl.Int32}
    return pl.DataFrame(rows, schema=kinds, orient="row")


def with_space(frame: pl.DataFrame, switched: pl.DataFrame) -> pl.DataFrame:
    """With the ``space`` that ``task`` was in at ``time_ns``; of one from before the trace, one of its own."""
    spaces = switched.select("time_ns", "task", "space")
    return frame.join_asof(spaces, on="time_ns", by="task", check_sortedness=False).with_columns(
        pl.col("space").fill_null(-pl.col("task").cast(pl.Int64))
    )
