"""What has one price: an operation, and of what sort it was where that decides what it costs."""

import polars as pl

from tracekit.costs.phases import CUT, WALK
from tracekit.costs.removals import FLUSHING, QUEUE, REMOVE, SLOT
from tracekit.machine.replay import Replay

_VISITS = ("try_to_migrate.vma_visit", "remove_migration_ptes.vma_visit", "try_to_unmap.vma_visit")


def miss(op: str) -> str:
    """Key of a VMA visit that finds nothing."""
    return f"{op} that finds nothing"


def sites(calls: pl.DataFrame) -> dict[int, str]:
    """Call → name of the outermost call around it."""
    found: dict[int, str] = {}
    for call, parent, name in calls.select("call", "parent", "name").iter_rows():  # parents come before children
        found[call] = found.get(parent, name)
    return found


def sorts(replay: Replay) -> pl.DataFrame:
    """The operations with what decides their price: ``site`` (see ``sites``), ``flushes`` (see ``removals.Runs``)."""
    site = pl.col("call").replace_strict(sites(replay.calls), default="no call", return_dtype=pl.String)
    rows = replay.rows
    # TLB flushes of other sorts do not come between two removals of one task
    flush = rows["event"].cast(pl.String).str.starts_with("tlb:")
    flushes = rows.select("seq", flushes=flush.shift(1, fill_value=False) & (pl.col("task") == pl.col("task").shift(1)))
    removals = flushes.filter(pl.col("flushes")).drop_nulls("seq").unique("seq")
    return replay.operations.with_columns(site=site).join(removals, on="seq", how="left", maintain_order="left")


def keys(name: str | None = None) -> pl.Expr:
    """String: the price key of each row of ``sorts``; of operations ``name`` that a policy adds there."""
    op = pl.col("op").cast(pl.String) if name is None else pl.lit(name)
    in_vain = op.is_in(_VISITS) & ~pl.col("hit").fill_null(value=True)
    end = (
        pl.when(pl.col("flushes").fill_null(value=False) & (op == REMOVE)).then(pl.lit(FLUSHING)).otherwise(pl.lit(""))
    )
    return (
        pl.when(in_vain)
        .then(pl.format("{} that finds nothing", op))
        .when(op.is_in([WALK, CUT]))
        .then(pl.format("{} in {}", op, "site"))
        .when(op.is_in([REMOVE, QUEUE, SLOT]) & pl.col("phase").is_not_null())
        .then(pl.format("{} in {}{}", op, pl.col("phase").cast(pl.String), end))
        .otherwise(op)
    )
