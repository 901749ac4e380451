"""The bound: no VMA is visited in vain, and contents are copied in no time."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from tracekit.policies import Batches, Judgement
from tracekit.policies._batches import find_copies


@dataclass(frozen=True)
class UpperBound:
    """The most that any policy could spare: every VMA visit, of either walk, that finds nothing, and every copy."""

    needs: ClassVar[tuple[str, ...]] = ("try_to_migrate_one", "remove_migration_pte_visit")
    touches: ClassVar[tuple[str, ...]] = (
        "try_to_migrate.vma_visit",
        "remove_migration_ptes.vma_visit",
        "folio.copy",
    )

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """Visits that set or restore something stay, and all that is neither visit nor copy."""
        copies = find_copies(ops)
        executed = ops["hit"].fill_null(value=True).to_numpy().astype(np.int64)
        executed[copies.row] = 0
        batch = np.full(len(ops), -1, dtype=np.int64)
        batch[copies.row] = copies.batch
        in_no_time = np.full((3, len(ops)), np.inf)
        return Judgement(
            executed,
            batches=Batches(batch, batch, in_no_time, 0.0, (0.0, 0.0, 0.0), before_move=True, is_free=True),
        )


POLICY = UpperBound
