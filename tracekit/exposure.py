"""What a policy changes that has no price (MODEL.md D.4): how often, so that nobody takes it for nothing."""

import numpy as np
import polars as pl

from tracekit.machine.replay import Replay
from tracekit.policies import Judgement

# Operation that becomes rarer or more frequent → what hangs on it beside its own time
_FOLLOWS = {
    "remove_migration_ptes.vma_visit": "visits_under_the_rmap_lock",
    "try_to_migrate.vma_visit": "visits_under_the_rmap_lock",
    "remove_migration_ptes.walk": "walks_under_the_rmap_lock",
    "rmap.remove": "removals_under_the_page_table_lock",
    "deferred_split.enqueue": "folios_for_the_deferred_split_shrinker",
    "tlb.flush": "tlb_flushes",
    "tlb.shootdown": "tlb_shootdowns_of_other_processors",
    "page.trylock": "page_trylocks",
}


def exposure(replay: Replay, judgement: Judgement) -> dict[str, int]:
    """What has no price → how many times fewer or more often it happens under the policy, whichever; none: left out."""
    names = replay.operations["op"].cast(pl.String)
    changed = np.abs(1 - judgement.executed)
    counts: dict[str, int] = {}
    for op, what in _FOLLOWS.items():
        times = int(changed[(names == op).to_numpy()].sum())
        if op in judgement.added:
            times += int(np.abs(judgement.added[op]).sum())
        if times:
            counts[what] = counts.get(what, 0) + times
    return counts
