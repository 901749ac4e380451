"""The bound: no VMA is visited in vain."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from tracekit.policies import Judgement


@dataclass(frozen=True)
class UpperBound:
    """The most that any policy could spare: every VMA visit, of either walk, that finds nothing."""

    needs: ClassVar[tuple[str, ...]] = ("try_to_migrate_one", "remove_migration_pte_visit")
    touches: ClassVar[tuple[str, ...]] = ("try_to_migrate.vma_visit", "remove_migration_ptes.vma_visit")

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """Visits that set or restore something stay, and all that is no visit."""
        return Judgement(ops["hit"].fill_null(value=True).to_numpy().astype(np.int64))


POLICY = UpperBound
