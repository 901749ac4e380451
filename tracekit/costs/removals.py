"""What it costs to take a folio out of the rmap page by page instead of at once, off traces that hold the former.

Between the first and the last removal of a run lies what a kernel that batches does not do: N - 1 steps of it, with
their flushes and the deferred-split enqueue, less the records.

    step    = (t_last - t_first - records x overhead) / (N - 1)
    price   = (1 - b) x step       of one removal spared: a page more in a batch is scanned and cleared all the same
    queue   = 0.54 x step          what was queued is taken from the queue when it is freed
    slot    = 0.146 x step         a page in the mmu_gather, put when it is freed

These shares were read off pairs of traces of one workload, page by page and at once, of folios of 4 and of 16 pages:
the last two off what lies between the flush and the exit of munmap, where there is no record (1154 and 2378 ns for each
folio against 806 and 1298), b off the way from one folio to the next (0.07 in zap, 0.025 in reclaim). They are
uncertain, but small.

The overhead is that of two neighbouring probes, as in ``one_trace``: folio_remove_rmap_ptes → deferred_split_folio, of
whose gap 0.94 is the record (ACCURACY.md), and the rest 0.13 of a step. Where no folio is queued, it is 0.8 of the gap
of two neighbouring removals of one page, roughly. A pair of different probes shows only what one takes after its stamp
and the other before: under perf that is 9 % short. So where a run's steps with and without the enqueue are there, what
the former takes longer has a say, too: it holds all of one record, and an enqueue is little work beside a step.
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
SIDES = 0.06  # deviation: a probe takes its time before and after its stamp, and two probes not in the same shares
ENQUEUE_SHARE = (0.08, 0.10)  # of a step: what an enqueue takes longer than the rest of them
QUEUE_SHARE = (0.54, 0.20)
SLOT_SHARE = (0.146, 0.05)
BATCHED_SHARE = {"zap": (0.07, 0.03), "try_to_unmap": (0.025, 0.03), "try_to_migrate": (0.05, 0.04)}
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
    near, single, more = neighbours(these), single_gap(these), _of_enqueue(these)
    if near is None:
        if single is None:
            return None
        rough = uncertain("rough removal", *ROUGH_SHARE) * single
        return rough, MIN_SAMPLES, f"roughly, {ROUGH_SHARE[0]} of the usual gap of two removals"
    if single is None:
        probe = uncertain("removal share", *near.assumed.record) * near.gap_ns
    else:
        probe = single - solve(near, single)[0]
    how = f"of {near.gap_ns[0]:.0f} ns between a removal and its enqueue"
    if more is None:
        return probe, near.samples, how
    probe = probe * (1 + uncertain("sides", 0.0, SIDES))
    step = (single if single is not None else near.gap_ns) - probe[0]
    other = more - uncertain("enqueue", *ENQUEUE_SHARE) * step
    weight = [1 / max(float(np.var(draws)), 1e-9) for draws in (probe, other)]
    both: Floats = (weight[0] * probe + weight[1] * other) / sum(weight)
    return both, near.samples, f"{how}, and of what a step with an enqueue takes longer: {more[0]:.0f} ns"


def _of_enqueue(these: Records) -> Floats | None:
    """float64[DRAWS]: how much longer a step is that enqueues: by the probe of it, and little else."""
    at = np.flatnonzero(these.kind == Kind.RMAP_REMOVE)
    i, j = at[:-1], at[1:]
    inside = j - i - 1
    queued = between(these.kind == Kind.DEFERRED_SPLIT, i, j)
    flushed = between(named(these, "tlb_flush"), i, j)
    good = (these.folio[i] == these.folio[j]) & (these.task[i] == these.task[j]) & (these.cpu[i] == these.cpu[j])
    good &= (between(~these.whole, i, j) == 0) & (inside == queued + flushed) & (queued <= 1)
    gaps = (these.time_ns[j] - these.time_ns[i]).astype(np.float64)
    found = []
    for flushes in (0, 1):
        sorts = [gaps[good & (flushed == flushes) & (queued == queue)] for queue in (1, 0)]
        if min(map(len, sorts)) >= MIN_SAMPLES:
            more, usual = (
                centre_draws(f"step {flushes} {place}", some, these.step_ns) for place, some in enumerate(sorts)
            )
            found.append((len(sorts[0]), more - usual))
    return max(found, key=lambda one: one[0])[1] if found else None


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
            step = np.maximum(total / per_run - taken, 0.01 * total / per_run)
            found[key] = step * (1 - uncertain("batched", *BATCHED_SHARE[phase]))
            samples[key] = int(which.sum())
        found |= _unseen(phase, found)
        found |= _consequences(phase, found)
    return found, samples


def _unseen(phase: str, found: dict[str, Floats]) -> dict[str, Floats]:
    """The price of a step in the flush mode that was not seen: roughly that of the other."""
    keys = [f"{REMOVE} in {phase}{end}" for end in ("", FLUSHING)]
    seen = [key for key in keys if key in found]
    if len(seen) != 1:
        return {}
    other = next(key for key in keys if key not in found)
    return {other: found[seen[0]] * np.maximum(1 + uncertain("other flush mode", 0.0, OTHER_MODE), 0.1)}


def _consequences(phase: str, found: dict[str, Floats]) -> dict[str, Floats]:
    """What a removal of its own brings with it later: taking the folio from the queue, and freeing page by page."""
    step = found.get(f"{REMOVE} in {phase}")
    if step is None:
        return {}
    return {
        f"{QUEUE} in {phase}": np.maximum(uncertain("queue", *QUEUE_SHARE), 0.0) * step,
        f"{SLOT} in {phase}": np.maximum(uncertain("slot", *SLOT_SHARE), 0.0) * step,
    }
