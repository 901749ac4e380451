"""One rmap removal per run of PTEs of a large folio in try_to_migrate, as zap and reclaim do it.

Ours: no kernel has it. Page by page, migration finds the folio partially mapped by its own doing, and queues it, and
then the new one, for deferred split (MODEL.md A.0, E4.10).
"""

from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from tracekit.policies import Judgement
from tracekit.policies._removals import AS_TRACED, ENQUEUE, MERGED, judge, removals


@dataclass(frozen=True)
class BatchedMigrateUnmap:
    """try_to_migrate takes a run of PTEs of a large folio out of the rmap in one step; entries are set as before."""

    needs: ClassVar[tuple[str, ...]] = ("rmap_remove", "try_to_migrate_one")
    touches: ClassVar[tuple[str, ...]] = ("rmap.remove", ENQUEUE)

    @property
    def variant(self) -> str:
        """As ``Replay.kernel_has`` names it."""
        return "all"

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """One call per run; a folio that only its migration had queued is not, and nor is the one it moves to."""
        has = pl.col("batched").fill_null(value=False)
        taken = removals(ops, "try_to_migrate").with_columns(how=pl.when(has).then(AS_TRACED).otherwise(MERGED))
        judgement = judge(ops, taken, "try_to_migrate")
        queued = (
            ops.lazy()
            .select("op", "phase", "episode")
            .with_row_index("row")
            .filter((pl.col("op") == ENQUEUE) & pl.col("episode").is_not_null())
            .with_columns(pl.col("row").cast(pl.Int64))
            .collect()
        )
        queued = queued.with_columns(spared=pl.Series(judgement.executed[queued["row"].to_numpy()] == 0))
        by_itself = queued.filter("spared")["episode"]
        new = queued.filter((pl.col("phase") == "other") & pl.col("episode").is_in(by_itself.implode()))
        judgement.executed[new["row"].to_numpy()] = 0
        return judgement


POLICY = BatchedMigrateUnmap
