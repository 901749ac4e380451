"""What would have been, operation by operation: tracekit replay TRACE --policy ./mine.py."""

from dataclasses import dataclass

import polars as pl

from tracekit.policies import Judgement


@dataclass(frozen=True)
class Mine:
    """remove_migration_ptes visits no VMA that holds no entry, from the one at position ``after`` on."""

    after: int = 1  # on the command line: ./mine.py:after=3

    needs = ("remove_migration_pte_visit",)
    touches = ("remove_migration_ptes.vma_visit",)

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """Columns of ``ops``: tracekit/machine/operations.py. 1: the operation is still performed, 0: it is spared."""
        vain = (pl.col("op") == self.touches[0]) & ~pl.col("hit") & (pl.col("position") >= self.after)
        return Judgement(ops.select((~vain).fill_null(value=True).cast(pl.Int64)).to_series().to_numpy())


POLICY = Mine
