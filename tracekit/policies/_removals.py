"""What the policies that batch rmap removals share: calls made one, or made many, and what follows for the queue.

A kernel that batches takes a run out in one step (``run`` of the operations table). After a step the folio is queued
for deferred split if pages of it were unmapped by it, others are still mapped and it is not queued yet (MODEL.md A.0,
D.2). So fewer, longer steps mean fewer folios in the queue, and steps of one page, more.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.policies import Ints, Judgement

Bools = npt.NDArray[np.bool_]

_SMALLEST = 4  # pages: deferred_split_folio leaves folios of order 1 alone
_STRUCT_PAGE = 64
ENQUEUE = "deferred_split.enqueue"
# How a removal is done under a policy
AS_TRACED, PAGES, MERGED, NOT = range(4)


class Steps(NamedTuple):
    """The removals of one phase under a policy, step by step.

    Attributes:
        row: int64[n_steps], the first removal that the step replaces.
        calls: int64[n_steps], how many calls it takes.
        pages, unmapped: int64[n_steps], sums over its removals; what is not known to be unmapped counts as none.
        left: bool[n_steps], whether pages of the folio are mapped after it.
        life: int64[n_steps].
        anon: int8[n_steps]; -1: not known.
    """

    row: Ints
    calls: Ints
    pages: Ints
    unmapped: Ints
    left: Bools
    life: Ints
    anon: npt.NDArray[np.int8]


def removals(ops: pl.DataFrame, phase: str) -> pl.DataFrame:
    """The removals of PTEs of large folios in ``phase``: columns of the operations table, and more.

    Returns:
        row, index (of the first page in its folio), cuts (0: how often it is interrupted) and what policies look at.
    """
    columns = ("op", "phase", "run", "nr_pages", "unmapped", "left", "life", "anon", "lazyfree", "batched", "folio")
    return (
        ops.lazy()
        .select(*columns, "page", "addr", "ends_table")
        .with_row_index("row")
        .filter(
            (pl.col("op") == "rmap.remove")
            & (pl.col("phase") == phase)
            & pl.col("run").is_not_null()
            & pl.col("life").is_not_null()
        )
        .with_columns(
            pl.col("row").cast(pl.Int64),
            index=(pl.col("page") - pl.col("folio")).cast(pl.Int64) // _STRUCT_PAGE,
            cuts=pl.lit(0, pl.Int64),
        )
        .drop("op", "phase", "folio", "page")
        .collect()
    )


def steps(taken: pl.DataFrame) -> Steps:
    """The steps of ``taken`` (of ``removals``, with ``how``); what is NOT done at all is left out."""
    done = taken.filter(pl.col("how") != NOT)
    how, run = done["how"].to_numpy(), done["run"].to_numpy()
    begins = np.ones(len(done), dtype=bool)
    begins[1:] = (how[1:] != MERGED) | (how[:-1] != MERGED) | (run[1:] != run[:-1])
    first = np.flatnonzero(begins)
    last = np.append(first, len(done))[1:] - 1

    def total(column: str) -> Ints:
        values = done[column].fill_null(0).to_numpy()
        return np.add.reduceat(values, first) if len(first) else np.zeros(0, dtype=np.int64)

    pages = total("nr_pages")
    return Steps(
        done["row"].to_numpy()[first],
        np.where(how[first] == PAGES, pages, 1 + total("cuts")),
        pages,
        total("unmapped"),
        done["left"].fill_null(value=False).to_numpy()[last],
        done["life"].to_numpy()[first],
        done["anon"].cast(pl.Int8).fill_null(-1).to_numpy()[first],
    )


def judge(ops: pl.DataFrame, taken: pl.DataFrame, phase: str) -> Judgement:
    """The judgement of a policy that does each removal of ``phase`` as ``taken`` says (``how``)."""
    done = steps(taken)
    executed = np.ones(len(ops), dtype=np.int64)
    executed[taken["row"].to_numpy()[np.isin(taken["how"].to_numpy(), (MERGED, NOT))]] = 0
    executed[done.row] = 1
    spared, queued, unknown = _queue(ops, taken, done, phase)
    executed[spared] = 0
    added = {"rmap.remove": at(ops, done.row, done.calls - 1), ENQUEUE: at(ops, queued, 1)}
    before = 1 + taken["nr_pages"] + (taken["unmapped"].fill_null(0) > 0).cast(pl.Int64)
    atomics = at(ops, done.row, done.calls + done.pages + np.minimum(done.calls, done.unmapped))
    atomics[taken["row"].to_numpy()] -= before.to_numpy()
    return Judgement(
        executed,
        {name: count for name, count in added.items() if count.any()},
        open={"deferred_splits_of_folios_of_unknown_kind": unknown},
        amounts={"rmap.atomic": atomics} if atomics.any() else {},
    )


def at(ops: pl.DataFrame, rows: Ints, counts: Ints | int) -> Ints:
    """int64[n_ops]: ``counts`` at ``rows``, 0 elsewhere."""
    out = np.zeros(len(ops), dtype=np.int64)
    out[rows] = counts
    return out


def _queue(ops: pl.DataFrame, taken: pl.DataFrame, done: Steps, phase: str) -> tuple[Ints, Ints, int]:
    """Which rows of deferred_split.enqueue are spared, at which others one is added, and of how many it is not known.

    A folio whose removals, as traced, should have queued it and did not was queued before, or is none to queue.
    """
    large = (
        ops.lazy()
        .select("op", "phase", "life", "unmapped", "left", "page", "folio", "nr_pages")
        .with_row_index("row")
        .filter(pl.col("life").is_not_null() & pl.col("op").is_in(["rmap.remove", ENQUEUE]))
        .select(
            pl.col("row").cast(pl.Int64),
            "life",
            is_queue=pl.col("op") == ENQUEUE,
            own=(pl.col("phase") == phase).fill_null(value=False),
            extent=((pl.col("page") - pl.col("folio")).cast(pl.Int64) // _STRUCT_PAGE + pl.col("nr_pages")).fill_null(
                0
            ),
            queues=((pl.col("unmapped") > 0) & pl.col("left")).fill_null(value=False),
        )
        .collect()
    )
    row, life, is_queue, own, extents, queues = (large[name].to_numpy() for name in large.columns)
    lives = int(life.max(initial=-1)) + 1
    extent, due, touched = np.zeros(lives, np.int64), np.zeros(lives, bool), np.zeros(lives, bool)
    np.maximum.at(extent, life, extents)
    due[life[queues]] = True
    touched[taken["life"].to_numpy()] = True
    queued = _first(lives, life[is_queue & own], row[is_queue & own])
    elsewhere = _first(lives, life[is_queue & ~own], row[is_queue & ~own])
    # one page at a time, all but the last of a step leave others mapped
    wants = (done.unmapped > 0) & (done.left | (done.calls > 1)) & (extent[done.life] >= _SMALLEST)
    wanted = _first(lives, done.life[wants], done.row[wants])
    kind = np.zeros(lives, np.int8)
    kind[done.life] = done.anon
    spared = queued[touched & (wanted < 0) & (queued >= 0)]
    before = due | ((elsewhere >= 0) & (elsewhere < wanted))
    new = (wanted >= 0) & (queued < 0) & ~before
    return spared, wanted[new & (kind == 1)], int((new & (kind == -1)).sum())


def _first(lives: int, life: Ints, row: Ints) -> Ints:
    """int64[lives]: the first of the ascending ``row`` of each life; -1: none."""
    found = np.full(lives, -1, dtype=np.int64)
    found[life[::-1]] = row[::-1]
    return found
