"""The bound: no VMA is visited in vain, no run taken out in two, no folio queued, contents copied in no time."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from tracekit.policies import Batches, Judgement
from tracekit.policies._batches import find_copies
from tracekit.policies._removals import ENQUEUE


@dataclass(frozen=True)
class UpperBound:
    """The most that any policy could spare: visits that find nothing, removals beside the first of a run, copies.

    And all that queues a folio for deferred split, and the run of a visit that must keep a page of it.
    """

    needs: ClassVar[tuple[str, ...]] = ("try_to_migrate_one", "remove_migration_pte_visit")
    instead: ClassVar[tuple[str, ...]] = ("rmap_remove",)
    touches: ClassVar[tuple[str, ...]] = (
        "try_to_migrate.vma_visit",
        "remove_migration_ptes.vma_visit",
        "remove_migration_ptes.walk",
        "folio.copy",
        "rmap.remove",
        ENQUEUE,
    )

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """What sets or restores something stays, and the first removal of each run."""
        copies = find_copies(ops)
        op = pl.col("op")
        visit = op.is_in(["try_to_migrate.vma_visit", "remove_migration_ptes.vma_visit"])
        # a page of the run that a visit of reclaim ended with may have had to be kept: a policy keeps them all
        reclaims = op == "try_to_unmap.vma_visit"
        stopped = pl.when(reclaims).then(pl.col("stopped").fill_null(value=False)).forward_fill()
        spared = (
            (visit & ~pl.col("hit"))
            | op.is_in(["remove_migration_ptes.walk", ENQUEUE])
            | ((op == "rmap.remove") & pl.col("run").is_not_null() & ~pl.col("run").is_first_distinct())
            | ((op == "rmap.remove") & (pl.col("phase") == "try_to_unmap") & (stopped | pl.col("left")))
        )
        executed = ops.select((~spared.fill_null(value=False)).cast(pl.Int64)).to_series().to_numpy().copy()
        executed[copies.row] = 0
        in_no_time = np.full((3, len(copies.row)), np.inf)
        return Judgement(
            executed,
            batches=Batches(
                copies.batch, copies.batch, in_no_time, 0.0, (0.0, 0.0, 0.0), before_move=True, is_free=True
            ),
        )


POLICY = UpperBound
