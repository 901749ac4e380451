"""VMA visits that the probes recorded, against those that the machine makes when the probes are hidden from it."""

import polars as pl

from tracekit import schema
from tracekit.machine.replay import Replay, replay
from tracekit.machine.selfcheck.check import Check
from tracekit.trace import Trace

# The target for captures in which tasks fork and exit while pages migrate (the rest is exact). A walk that the machine
# is not certain of is not compared: policies do not judge it either.
THRESHOLD = 0.01
# Replaying a second time takes 4 s per million records of the timeline: no more than that.
MOST_ROWS = 1_000_000
_NAME = "walk.visits"
_WHAT = "rmap walks, VMAs visited and places of those hit: as reconstructed without the probes"
_ENTRIES = {"migration_entry.set": "try_to_migrate", "migration_entry.restore": "remove_migration_ptes"}
_KEY = ["walk", "seq"]


def checks(trace: Trace, observed: Replay) -> list[Check]:
    """The one check: walks that both replays know."""
    why = "nothing is known by both sides"
    if observed.fidelity != "observed":
        why = "needs probes on VMA visits: try_to_migrate_one, remove_migration_pte"
    elif not schema.shows_life_cycle(trace):
        why = "needs the life cycle, to reconstruct the walks from: task_newtask, process_fork, process_exit"
    elif len(observed.rows) > MOST_ROWS:
        why = f"left out above {MOST_ROWS:,} records; replay with --fidelity reconstructed and compare"
    else:
        made = _walks(replay(trace, fidelity="reconstructed").operations)
        both = _walks(observed.operations).join(made, on=_KEY, suffix="_made")
        right = (both["visits"] == both["visits_made"]) & (both["hits"] == both["hits_made"])
        return [Check.of(_NAME, _WHAT, right, THRESHOLD, why)]
    return [Check(_NAME, _WHAT, 0, 0, THRESHOLD, why)]


def _walks(operations: pl.DataFrame) -> pl.DataFrame:
    """Per walk of a judged episode: seq of its first entry (which names it), visits, hits (places in the tree)."""
    op = pl.col("op").cast(pl.String)
    is_visit = op.str.ends_with(".vma_visit")
    return (
        operations.filter(pl.col("known").fill_null(value=False))
        .with_columns(
            walk=pl.when(is_visit)
            .then(op.str.split(".").list.first())
            .otherwise(op.replace_strict(_ENTRIES, default=None)),
            is_visit=is_visit,
        )
        .drop_nulls("walk")
        .group_by("episode", "walk")
        .agg(
            pl.col("seq").filter(~pl.col("is_visit")).min(),
            visits=pl.col("is_visit").sum(),
            hits=pl.col("position").filter(pl.col("is_visit") & pl.col("hit")).sort(),
        )
        .drop_nulls("seq")
    )
