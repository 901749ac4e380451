"""What it costs to take a folio out of the rmap page by page instead of at once, off traces that hold the former.

Between the first and the last removal of a run lies what a kernel that batches does not do: N - 1 steps of it, with
their flushes and the deferred-split enqueue, less the records.

    step    = (t_last - t_first - records x overhead) / (N - 1)
    queue   = 0.85 x (gap deferred_split_folio → next removal - O)    what was queued is taken from the queue at free
    slot    = 0.08 x step                                             a page in the mmu_gather, put when it is freed

Queue and slot are not seen by themselves: their shares are those of the freeing stage (last removal → system call's
exit) in traces of one kernel taking folios of 4 and of 16 pages out page by page and at once. They are uncertain.

The overhead is that of two neighbouring probes, as in ``one_trace``: folio_remove_rmap_ptes → deferred_split_folio, of
whose gap 0.94 is the record (ACCURACY.md), and the rest 0.13 of a step. Where no folio is queued, it is 0.8 of the gap
of two neighbouring removals of one page, roughly.
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from tracekit.costs.gaps import MIN_SAMPLES, Bools, Records, Rows, beside, between, centre_draws, mean_draws, named
from tracekit.costs.model import Floats, Ints, uncertain
from tracekit.costs.one_trace import Assumed, Neighbours, solve
from tracekit.machine.replay import Replay
from tracekit.machine.timeline import Kind, Source

ASSUMED = Assumed(record=(0.94, 0.02), work=(0.13, 0.06))
QUEUE_SHARE = (0.85, 0.3)
SLOT_SHARE = (0.08, 0.04)
OTHER_MODE = 0.2  # deviation of a step's price in the flush mode that was not seen
ROUGH_SHARE = (0.8, 0.08)

REMOVE, QUEUE, SLOT = "rmap.remove", "deferred_split.enqueue", "gather.slot"
FLUSHING = " with a flush"
_PHASES = ("zap", "try_to_unmap", "try_to_migrate")


class Runs(NamedTuple):
    """Runs of a large folio that were taken out by several removals.

    Attributes:
        phase: what the kernel was at, an index into ``_PHASES``.
        flushes: whether the TLB is flushed before each removal.
        first, last: records of the first and the last removal.
        steps: removals less one.
    """

    phase: Ints
    flushes: Bools
    first: Rows
    last: Rows
    steps: Ints


def flush_before(these: Records) -> Bools:
    """bool[n_records]: whether the record before is the task's own flush of the TLB."""
    flush = named(these, "tlb_flush")
    found = np.zeros(len(flush), dtype=bool)
    found[1:] = flush[:-1] & (these.task[1:] == these.task[:-1])
    return found


def find_runs(replay: Replay, these: Records) -> Runs:
    """The runs of ``replay.operations``, on one CPU each and with nothing lost, that several removals took out."""
    removals = replay.operations.filter(
        pl.col("op") == REMOVE, pl.col("run").is_not_null(), pl.col("life").is_not_null()
    )
    runs = (
        removals.group_by("run", maintain_order=True)
        .agg(
            pl.col("phase").first().cast(pl.String), first=pl.col("seq").first(), last=pl.col("seq").last(), n=pl.len()
        )
        .filter((pl.col("n") > 1) & pl.col("phase").is_in(_PHASES))
    )
    first, last = (_places(these, runs[name]) for name in ("first", "last"))
    good = (first >= 0) & (last > first)
    good &= (these.cpu[first] == these.cpu[last]) & (between(~these.whole, first, last) == 0)
    good &= between((these.kind == Kind.OTHER) & named(these, "sched_switch"), first, last) == 0
    number = {phase: place for place, phase in enumerate(_PHASES)}
    phase = runs["phase"].replace_strict(number, return_dtype=pl.Int64).to_numpy()
    steps = (runs["n"].cast(pl.Int64) - 1).to_numpy()
    return Runs(phase[good], flush_before(these)[last[good]], first[good], last[good], steps[good])


def _places(these: Records, seq: pl.Series) -> Rows:
    """Record of each ``seq``; -1: it is none of these."""
    order = np.argsort(these.seq)
    at = np.searchsorted(these.seq[order], seq.to_numpy())
    place = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(seq), dtype=np.intp)
    return np.where(these.seq[place] == seq.to_numpy(), place, -1) if len(order) else place - 1


def neighbours(these: Records) -> Neighbours | None:
    """The probes of a removal and of the enqueue that it calls; None: too few."""
    gaps = np.diff(these.time_ns).astype(np.float64)
    pair = (these.kind[:-1] == Kind.RMAP_REMOVE) & (these.kind[1:] == Kind.DEFERRED_SPLIT) & beside(these)
    if pair.sum() < MIN_SAMPLES:
        return None
    return Neighbours(centre_draws("removal, enqueue", gaps[pair], these.step_ns), ASSUMED, int(pair.sum()))


def single_gap(these: Records) -> Floats | None:
    """float64[DRAWS]: usual gap of two neighbouring removals; None: too few."""
    gaps = np.diff(these.time_ns).astype(np.float64)
    pair = (these.kind[:-1] == Kind.RMAP_REMOVE) & (these.kind[1:] == Kind.RMAP_REMOVE) & beside(these)
    return centre_draws("removals", gaps[pair], these.step_ns) if pair.sum() >= MIN_SAMPLES else None


def overhead(these: Records) -> tuple[Floats, int, str] | None:
    """Overhead of a probe, float64[DRAWS], off removals; gaps it rests on; and how it was found. None: not to be."""
    near, single = neighbours(these), single_gap(these)
    if near is not None and single is not None:
        step, _ = solve(near, single)
        return single - step, near.samples, f"of {near.gap_ns[0]:.0f} ns between a removal and its enqueue"
    if near is not None:
        return (
            near.assumed.record[0] * near.gap_ns,
            near.samples,
            f"{near.assumed.record[0]} of a removal's way to its enqueue",
        )
    if single is not None:
        rough = uncertain("rough removal", *ROUGH_SHARE) * single
        return rough, MIN_SAMPLES, f"roughly, {ROUGH_SHARE[0]} of the usual gap of two removals"
    return None


def prices(
    these: Records, runs: Runs, kprobe_ns: Floats, tracepoint_ns: Floats
) -> tuple[dict[str, Floats], dict[str, int]]:
    """Prices by key, float64[DRAWS], and how many runs each rests on."""
    is_probe = these.source != Source.TRACEPOINT
    probes, points = (between(flags, runs.first, runs.last) for flags in (is_probe, ~is_probe))
    duration = (these.time_ns[runs.last] - these.time_ns[runs.first]).astype(np.float64)
    found: dict[str, Floats] = {}
    samples: dict[str, int] = {}
    for place, phase in enumerate(_PHASES):
        for flushes in (False, True):
            which = (runs.phase == place) & (runs.flushes == flushes)
            key = f"{REMOVE} in {phase}{FLUSHING if flushes else ''}"
            if which.sum() < MIN_SAMPLES:
                continue
            per_run = runs.steps[which].mean()
            total = mean_draws(key, duration[which] / runs.steps[which] * per_run)
            taken = (probes[which].mean() * kprobe_ns + points[which].mean() * tracepoint_ns) / per_run
            found[key] = np.maximum(total / per_run - taken, 0.01 * total / per_run)
            samples[key] = int(which.sum())
        found |= _unseen(phase, found)
        found |= _consequences(these, phase, found, kprobe_ns)
    return found, samples


def _unseen(phase: str, found: dict[str, Floats]) -> dict[str, Floats]:
    """The price of a step in the flush mode that was not seen: roughly that of the other."""
    keys = [f"{REMOVE} in {phase}{end}" for end in ("", FLUSHING)]
    seen = [key for key in keys if key in found]
    if len(seen) != 1:
        return {}
    other = next(key for key in keys if key not in found)
    return {other: found[seen[0]] * np.maximum(1 + uncertain("other flush mode", 0.0, OTHER_MODE), 0.1)}


def _consequences(these: Records, phase: str, found: dict[str, Floats], kprobe_ns: Floats) -> dict[str, Floats]:
    """What a removal of its own brings with it later: taking the folio from the queue, and freeing page by page."""
    step = found.get(f"{REMOVE} in {phase}")
    if step is None:
        return {}
    gaps = np.diff(these.time_ns).astype(np.float64)
    after = (these.kind[:-1] == Kind.DEFERRED_SPLIT) & (these.kind[1:] == Kind.RMAP_REMOVE) & beside(these)
    queue = step
    if after.sum() >= MIN_SAMPLES:
        queue = np.maximum(centre_draws("enqueue", gaps[after], these.step_ns) - kprobe_ns, 0.0)
    return {
        f"{QUEUE} in {phase}": np.maximum(uncertain("queue", *QUEUE_SHARE), 0.0) * queue,
        f"{SLOT} in {phase}": np.maximum(uncertain("slot", *SLOT_SHARE), 0.0) * step,
    }
