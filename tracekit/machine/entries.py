"""Migration entries and their fate: set, then restored, copied by fork or zapped; and so which walks belong together.

An entry is named by the page table slot it stands in, (mm, addr), by (vma, addr) where a probe did not record mm.
Only one stands there at a time, so a restore ends the latest set of its slot that no other restore has ended.
"""

import polars as pl

from tracekit import schema
from tracekit.machine.timeline import Kind
from tracekit.machine.walks import Walks
from tracekit.trace import Trace

WINDOWS = pl.Enum(["during_walk", "after_walk", "unknown"])


def find_entries(rows: pl.DataFrame, walks: Walks) -> pl.DataFrame:
    """Every entry set or restored in a visit.

    Returns:
        row, kind (SET or RESTORE), walk, task, time_ns, addr, vma, mm, pte, slot (mm, else vma) and ``partner``: for a
        restore the row of its set, for a set the row of its restore; null where there is none.
    """
    at = pl.Series(walks.visit_of_row)
    visits = rows.select("vma", "mm")
    entries = (
        rows.select("kind", "task", "time_ns", "addr", "pte")
        .with_columns(row=pl.int_range(len(rows), dtype=pl.Int64), visit=at, walk=pl.Series(walks.walk_of_row))
        .filter(pl.col("visit") >= 0)
    )
    of_visit = visits[entries["visit"].to_numpy()]
    entries = entries.with_columns(of_visit["vma"], of_visit["mm"], slot=pl.coalesce(of_visit["mm"], of_visit["vma"]))
    sets = entries.filter(pl.col("kind") == Kind.SET).select("task", "slot", "addr", "row", set_row="row")
    restores = entries.filter(pl.col("kind") == Kind.RESTORE).select("task", "slot", "addr", "row")
    pairs = (
        restores.sort("row")
        .join_asof(sets.sort("row"), on="row", by=["task", "slot", "addr"], strategy="backward", check_sortedness=False)
        .drop_nulls("set_row")
        .filter(pl.col("set_row").is_first_distinct())
        .select("row", "set_row")
    )
    both = pl.concat([pairs.select("row", partner="set_row"), pairs.select(row="set_row", partner="row")])
    return entries.join(both, on="row", how="left", maintain_order="left")


def pair_walks(rows: pl.DataFrame, walks: Walks, entries: pl.DataFrame) -> pl.DataFrame:
    """For each remove walk the try_to_migrate walk that set its entries.

    The entries themselves say it. A walk that restored none of them is known by what was copied just before it, or
    by its folio: where that is the source, the migration was undone.

    Returns:
        walk (of a remove walk), try_walk (null: not known).
    """
    by_entry = (
        entries.filter(pl.col("kind") == Kind.RESTORE)
        .drop_nulls("partner")
        .sort("row")
        .group_by("walk", maintain_order=True)
        .agg(set_row=pl.col("partner").first())
        .join(entries.select(set_row="row", try_walk="walk"), on="set_row")
        .select("walk", "try_walk")
    )
    table = walks.table.sort("first_row")
    tries = table.filter(~pl.col("is_remove")).select("task", "folio", "first_row", by_folio="walk")
    removes = table.filter("is_remove").select("walk", "task", "folio", "src", "first_row")
    copies = (
        rows.lazy()
        .with_row_index("first_row")
        .filter(pl.col("kind") == Kind.COPY)
        .select("task", "folio", pl.col("first_row").cast(pl.Int64), copied_from="src")
        .collect()
    )
    # since a folio's own try_to_migrate it is no copy of another any more
    itself = tries.select("task", "folio", "first_row", copied_from="folio")
    copies = pl.concat([copies, itself]).sort("first_row")
    removes = removes.join_asof(copies, by=["task", "folio"], on="first_row", check_sortedness=False).with_columns(
        source=pl.coalesce("src", "copied_from", "folio")
    )
    removes = removes.join_asof(
        tries, by_left=["task", "source"], by_right=["task", "folio"], on="first_row", check_sortedness=False
    )
    return removes.join(by_entry, on="walk", how="left").select(
        "walk", pl.coalesce("try_walk", "by_folio").alias("try_walk")
    )


def fork_windows(trace: Trace, copied: pl.DataFrame) -> pl.DataFrame:
    """When fork copied each entry of ``copied`` (row, vma, time_ns of the restore).

    After the child's VMA was linked (anon_vma_fork), before the forking task's next VMA or the end of its fork.

    Returns:
        row, from_ns, until_ns; null where no event shows it.
    """
    links = [
        trace.events(table).select(
            "time_ns", *schema.columns_of(trace, table, "anon_vma_fork"), task=schema.task_of(trace, table)
        )
        for table in schema.tables_of(trace, "anon_vma_fork")
    ]
    if not links or copied.is_empty():
        return copied.select("row", from_ns=pl.lit(None, pl.Int64), until_ns=pl.lit(None, pl.Int64))
    ends = [
        trace.events(name).select("time_ns", task=schema.task_of(trace, name), vma=pl.lit(None, pl.UInt64))
        for name in ("sched:sched_process_fork", "syscalls:sys_exit_clone", "syscalls:sys_exit_clone3")
        if name in trace.event_names
    ]
    forks = (
        pl.concat([*links, *ends], how="diagonal")
        .sort("task", "time_ns", maintain_order=True)
        .with_columns(until_ns=pl.col("time_ns").shift(-1).over("task"))
        .drop_nulls("vma")
        .select("vma", "time_ns", "until_ns", from_ns="time_ns")
        .sort("time_ns")
        .collect()
    )
    return (
        copied.select("row", "vma", "time_ns")
        .sort("time_ns")
        .join_asof(forks, on="time_ns", by="vma", strategy="backward", check_sortedness=False)
        .select("row", "from_ns", "until_ns")
    )
