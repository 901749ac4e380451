"""What the policies that batch rmap removals share: calls made one, or made many, and what follows for the queue.

A kernel that batches takes a run out in one step (``run`` of the operations table). After a step the folio is queued
for deferred split if pages of it were unmapped by it, others are still mapped and it is not queued yet (MODEL.md A.0,
D.2). So fewer, longer steps mean fewer folios in the queue, and steps of one page, more.
"""

import numpy as np
import polars as pl

from tracekit.machine.operations import atomics
from tracekit.policies import Ints, Judgement

_SMALLEST = 4  # pages: deferred_split_folio leaves folios of order 1 alone
_STRUCT_PAGE = 64
ENQUEUE = "deferred_split.enqueue"
# How a removal is done under a policy
AS_TRACED, PAGES, MERGED, NOT = range(4)


def removals(ops: pl.DataFrame, phase: str) -> pl.DataFrame:
    """The removals of PTEs in ``phase``: row, run, nr_pages, unmapped, left, life, anon, lazyfree, batched and more."""
    columns = ("op", "phase", "run", "nr_pages", "unmapped", "left", "life", "anon", "lazyfree", "batched", "folio")
    return (
        ops.lazy()
        .select(*columns, "page", "addr", "vma", "task", "call", "position")
        .with_row_index("row")
        .filter((pl.col("op") == "rmap.remove") & (pl.col("phase") == phase) & pl.col("run").is_not_null())
        .with_columns(
            pl.col("row").cast(pl.Int64),
            index=(pl.col("page") - pl.col("folio")).cast(pl.Int64) // _STRUCT_PAGE,
            cuts=pl.lit(0, pl.Int64),
        )
        .drop("op", "phase")
        .collect()
    )


def steps(taken: pl.DataFrame) -> pl.DataFrame:
    """One row per step of ``taken`` (of ``removals``, with ``how``); what is NOT done at all is left out.

    Returns:
        row (the first that it replaces), last, how, calls (that it takes), nr_pages, unmapped, left, known (whether the
        two are), life, anon, batched, task, call.
    """
    merged = pl.col("how") == MERGED
    done = taken.filter(pl.col("how") != NOT)
    return (
        done.with_columns(step=pl.when(merged).then("run").otherwise(-1 - pl.col("row")))
        .group_by("step", maintain_order=True)
        .agg(
            pl.col("row").first(),
            pl.col("row").last().alias("last"),
            pl.col("how", "life", "anon", "batched", "task", "call").first(),
            pl.col("nr_pages", "unmapped", "cuts").sum(),
            pl.col("left").last(),
            known=pl.col("unmapped").is_not_null().all(),
        )
        .with_columns(calls=pl.when(pl.col("how") == PAGES).then("nr_pages").otherwise(1 + pl.col("cuts")))
        .drop("step")
    )


def judge(ops: pl.DataFrame, taken: pl.DataFrame, phase: str) -> Judgement:
    """The judgement of a policy that does each removal of ``phase`` as ``taken`` says (``how``)."""
    done = steps(taken)
    executed = np.ones(len(ops), dtype=np.int64)
    executed[taken.filter(pl.col("how").is_in([MERGED, NOT]))["row"].to_numpy()] = 0
    executed[done["row"].to_numpy()] = 1
    added = {"rmap.remove": at(ops, done["row"], done["calls"] - 1)}
    spared, queued, unknown = _queue(ops, taken, done, phase)
    executed[spared.to_numpy()] = 0
    added[ENQUEUE] = at(ops, queued, 1)
    return Judgement(
        executed,
        {name: count for name, count in added.items() if count.any()},
        open={"deferred_splits_of_folios_of_unknown_kind": unknown},
        amounts=_amounts(ops, taken, done),
    )


def at(ops: pl.DataFrame, rows: pl.Series, counts: pl.Series | int) -> Ints:
    """int64[n_ops]: ``counts`` at ``rows``, 0 elsewhere."""
    out = np.zeros(len(ops), dtype=np.int64)
    out[rows.to_numpy()] = counts.to_numpy() if isinstance(counts, pl.Series) else counts
    return out


def _queue(ops: pl.DataFrame, taken: pl.DataFrame, done: pl.DataFrame, phase: str) -> tuple[pl.Series, pl.Series, int]:
    """Which rows of deferred_split.enqueue are spared, at which others one is added, and of how many it is not known.

    A folio whose removals, as traced, should have queued it and did not was queued before, or is none to queue.
    """
    lives = taken["life"].drop_nulls().unique()
    in_lives = pl.col("life").is_in(lives.implode())
    facts = (
        ops.lazy()
        .select("op", "phase", "life", "unmapped", "left", "page", "folio", "nr_pages")
        .with_row_index("row")
        .with_columns(pl.col("row").cast(pl.Int64))
        .filter(in_lives)
        .collect()
    )
    is_remove, is_queue = pl.col("op") == "rmap.remove", pl.col("op") == ENQUEUE
    pages = (pl.col("page") - pl.col("folio")).cast(pl.Int64) // _STRUCT_PAGE + pl.col("nr_pages")
    queues = is_remove & (pl.col("unmapped") > 0) & pl.col("left")
    own = is_queue & (pl.col("phase") == phase)
    of_life = facts.group_by("life").agg(
        extent=pages.filter(is_remove).max(),
        own=pl.col("row").filter(own).min(),
        other=pl.col("row").filter(is_queue & ~own.fill_null(value=False)).min(),
        due=queues.any(),
    )
    may = (pl.col("extent") >= _SMALLEST) & pl.col("known")
    # one page at a time, all but the last of a step leave others mapped
    first = (
        pl.when(pl.col("calls") > 1).then(pl.col("unmapped") > 0).otherwise((pl.col("unmapped") > 0) & pl.col("left"))
    )
    wanted = (
        done.join(of_life, on="life")
        .filter(may & first)
        .group_by("life", maintain_order=True)
        .agg(pl.col("row", "anon", "extent").first())
    )
    both = of_life.join(wanted.select("life", "row", "anon"), on="life", how="left")
    spared = both.filter(pl.col("row").is_null() & pl.col("own").is_not_null())["own"]
    never = pl.col("own").is_null() & (pl.col("due") | (pl.col("other") < pl.col("row")).fill_null(value=False))
    new = both.filter(pl.col("row").is_not_null() & pl.col("own").is_null() & ~never)
    return spared, new.filter("anon")["row"], int(new["anon"].null_count())


def _amounts(ops: pl.DataFrame, taken: pl.DataFrame, done: pl.DataFrame) -> dict[str, Ints]:
    """What the steps bring with them, less what the removals as traced do."""
    large = pl.col("life").is_not_null()
    before = taken.select("row", n=pl.when(large).then(atomics(pl.lit(1))).otherwise(0))
    after = done.select("row", n=pl.when(large).then(atomics(pl.col("calls"))).otherwise(0))
    change = at(ops, after["row"], after["n"]) - at(ops, before["row"], before["n"])
    return {"rmap.atomic": change} if change.any() else {}
