"""Migration entries set against those restored."""

import polars as pl

from tracekit.machine.entries import find_entries
from tracekit.machine.losses import lost_windows
from tracekit.machine.replay import Replay
from tracekit.machine.selfcheck.check import Check
from tracekit.machine.selfcheck.edges import FORKS, UNMAPS, clean, during, overlaps
from tracekit.machine.timeline import Kind
from tracekit.trace import Trace

# What fork copies and what is unmapped in the middle of a migration is told by the system call or the exit around it.
# Unmapping with neither (by reclaim) is rarer than this: of 47 045 entries set in one run under load 47 018 were
# restored (MODEL.md B.2).
THRESHOLD = 0.01
_NAME = "migration_entry.fate"
_WHAT = "migration entries: a set one is restored or unmapped, a restored one was set or copied by fork"


def checks(trace: Trace, replay: Replay) -> list[Check]:
    """The one check: entries, and whether the machine and the life cycle explain each."""
    if replay.fidelity in ("counts", "none"):
        return [Check(_NAME, _WHAT, 0, 0, THRESHOLD, "needs VMA visits, observed or reconstructed")]
    entries = _with_stretch(trace, replay)
    around = entries["from_ns"], entries["until_ns"]
    forked, unmapped = (overlaps(during(trace, *events), *around) for events in (FORKS, UNMAPS))
    is_set = entries["kind"] == Kind.SET
    alone = entries["partner"].is_null()
    right = entries["visited"] & (~alone | (is_set & unmapped) | (~is_set & forked))
    return [Check.of(_NAME, _WHAT, right, THRESHOLD, "the trace shows none, or events were lost around each")]


def _with_stretch(trace: Trace, replay: Replay) -> pl.DataFrame:
    """Every entry, but those in whose stretch of the timeline events were lost.

    Returns:
        kind, partner, visited (whether a visit explains it), from_ns, until_ns (its stretch), and others.
    """
    rows = replay.rows.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    spans = rows.group_by("task", "stretch").agg(from_ns=pl.col("time_ns").min(), until_ns=pl.col("time_ns").max())
    found = find_entries(replay.rows, replay.walks).select("row", "partner", visited=pl.lit(value=True))
    entries = (
        rows.filter(pl.col("kind").is_in([Kind.SET, Kind.RESTORE]))
        .select("row", "kind", "task", "stretch")
        .join(found, on="row", how="left")
        .join(spans, on=["task", "stretch"])
        .with_columns(pl.col("visited").fill_null(value=False))
    )
    return entries.filter(clean(lost_windows(trace, replay.rows), entries["from_ns"], entries["until_ns"]))
