"""What an operation costs, and what tracing it cost: a price list made from the trace's own gaps.

The one-trace method of ACCURACY.md (source 3). Taking a record delays its task. So between two visits of a walk lies
the visit and the cost of every record in between, and a call's traced duration holds the cost of all its records:

    m    = centre(gap visit → next visit) - records in the gap x overhead      the true price of a visit
    D_u  = D - records in the call x overhead                                  the call's untraced duration

The overhead of a probe is read off two probes with next to nothing between them. Its share of that gap (0.88), of a
tracepoint's (0.79) and the band that holds m (0.20 to 0.45 of a gap with one probe in it) were fitted elsewhere, on the
traces of ACCURACY.md: they are defaults, and the interval, m x 1.7 and m / 1.7 with the overhead moved along, is wide
for that reason. Prices are this trace's: never carry them to another machine, clock or tracer.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.machine.replay import Replay
from tracekit.machine.timeline import Kind, Source

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PROBE_SHARE = 0.88
TRACEPOINT_SHARE = 0.79
VISIT_SHARE = (0.20, 0.45)
SPREAD = 1.7
UPDATE_SHARE = 0.01  # of a probe's overhead: one atomic update of a counter
MIN_SAMPLES = 8

_VISITS = {
    "try_to_migrate.vma_visit": Kind.TRY_VISIT,
    "remove_migration_ptes.vma_visit": Kind.REMOVE_VISIT,
}

# (from, to): nothing but a lock and the way into the tree lies between these two probes
_ADJACENT = ((Kind.TRY, Kind.TRY_VISIT), (Kind.REMOVE, Kind.REMOVE_VISIT))
# Probes of nested wrappers, outer first: nothing at all between them (ACCURACY.md source 2)
_NESTED = (("try_to_migrate", "folio_lock_anon_vma_read"), ("rmap_walk", "rmap_walk_anon"))


@dataclass(frozen=True)
class Prices:
    """One consistent set of prices: nanoseconds of the trace's clock.

    Attributes:
        overhead_ns: of one record, by how it was taken.
        visit_ns: of one VMA visit that finds nothing, by operation name; missing: this trace cannot tell.
        update_ns: of one counter update.
    """

    overhead_ns: dict[Source, float]
    visit_ns: dict[str, float]
    update_ns: float


@dataclass(frozen=True)
class CostModel:
    """Prices at their best guess and at both ends; none of them where the trace has no probes to read them off.

    Attributes:
        best, cheap, dear: ``cheap`` holds the lowest price of a visit and so the highest overhead.
        samples: gaps that a price rests on, by name.
        residual: |prices x counts - seen| / seen over the gaps between visits; None: nothing to compare.
        how: one sentence per price, for the report.
    """

    best: Prices | None
    cheap: Prices | None
    dear: Prices | None
    samples: dict[str, int]
    residual: float | None
    how: list[str]


class _Gap(NamedTuple):
    """Gaps from a visit that finds nothing to the next of its walk, with all records but one probe's taken off."""

    single_ns: float  # centre: one visit and one probe
    visit_ns: float  # the visit's part of it
    total_ns: float
    n: int


def calibrate(replay: Replay) -> CostModel:
    """Read the prices off the gaps of ``replay``'s own timeline, where its visits are records."""
    if replay.fidelity == "reconstructed":
        how = ["no prices: the visits were reconstructed, so no record tells when one began"]
        return CostModel(None, None, None, {}, None, how)
    probe_ns, n_probe = _probe_gap(replay)
    if probe_ns is None:
        how = [f"no prices: needs {MIN_SAMPLES} gaps between try_to_migrate and its first visit, found {n_probe}"]
        return CostModel(None, None, None, {"probe": n_probe}, None, how)
    kprobe_ns = PROBE_SHARE * probe_ns
    tracepoint_ns = min(TRACEPOINT_SHARE * _tracepoint_gap(replay), kprobe_ns)
    overhead = {Source.TRACEPOINT: tracepoint_ns, Source.KPROBE: kprobe_ns, Source.KRETPROBE: kprobe_ns}
    gaps = {op: _visit_gap(replay, kind, overhead) for op, kind in _VISITS.items()}
    priced = {op: gap for op, gap in gaps.items() if gap.n >= MIN_SAMPLES}
    seen_ns = sum(gap.total_ns for gap in priced.values())
    priced_ns = sum(gap.n * (gap.visit_ns + kprobe_ns) for gap in priced.values())
    return CostModel(
        best=_prices(overhead, priced, 1),
        cheap=_prices(overhead, priced, 1 / SPREAD),
        dear=_prices(overhead, priced, SPREAD),
        samples={"probe": n_probe, **{op: gap.n for op, gap in gaps.items()}},
        residual=abs(priced_ns - seen_ns) / seen_ns if seen_ns else None,
        how=[
            f"taking a probe: {kprobe_ns:.0f} ns, {PROBE_SHARE} of the gap of two with a lock between ({n_probe} gaps)",
            f"taking a tracepoint: {tracepoint_ns:.0f} ns, {TRACEPOINT_SHARE} of the smallest usual gap into one",
            *(_say(op, gap) for op, gap in gaps.items()),
        ],
    )


def _prices(overhead: dict[Source, float], gaps: dict[str, _Gap], factor: float) -> Prices:
    """Visits at ``factor`` times their price; what is not the visit's is the probe's, so a dear visit, a cheap probe.

    The remove walk has the say on the overhead where it is priced: its visits are what the policies spare.
    """
    moved = 1.0
    for op in _VISITS:
        if op in gaps:
            gap = gaps[op]
            moved = (gap.single_ns - factor * gap.visit_ns) / (gap.single_ns - gap.visit_ns)
    return Prices(
        {source: ns * moved for source, ns in overhead.items()},
        {op: gap.visit_ns * factor for op, gap in gaps.items()},
        UPDATE_SHARE * overhead[Source.KPROBE],
    )


def _say(op: str, gap: _Gap) -> str:
    if gap.n < MIN_SAMPLES:
        return f"{op} that finds nothing: not priced, {gap.n} gaps of the {MIN_SAMPLES} it takes"
    return (
        f"{op} that finds nothing: {gap.visit_ns:.0f} ns ({gap.visit_ns / SPREAD:.0f} to {gap.visit_ns * SPREAD:.0f}) "
        f"of a gap of {gap.single_ns:.0f} ns with one probe in it ({gap.n} gaps)"
    )


def untraced_ns(calls: pl.DataFrame, prices: Prices) -> Floats:
    """float64[n_calls]: duration less what taking the call's records cost; NaN where its end was not seen."""
    taken = (
        (Source.TRACEPOINT, "tracepoints"),
        (Source.KPROBE, "kprobes"),
        (Source.KRETPROBE, "kretprobes"),
    )
    records = sum(calls[column].cast(pl.Float64) * prices.overhead_ns[source] for source, column in taken)
    untraced: Floats = (calls["duration_ns"].cast(pl.Float64) - records).fill_null(np.nan).to_numpy()
    return untraced


def _probe_gap(replay: Replay) -> tuple[float | None, int]:
    """The smallest centre of gaps between neighbouring records that are probes with next to nothing between them."""
    kind, name = replay.rows["kind"].to_numpy(), replay.rows["event"].cast(pl.String).str.split(":").list.last()
    gaps, same = _neighbour_gaps(replay.rows)
    pairs = [(kind[:-1] == a) & (kind[1:] == b) for a, b in _ADJACENT]
    pairs += [((name[:-1] == a) & (name[1:] == b)).to_numpy() for a, b in _NESTED] if len(name) else []
    found = [gaps[pair & same] for pair in pairs]
    step = _clock_step(replay)
    centres = [_centre(some, step) for some in found if len(some) >= MIN_SAMPLES]
    return (min(centres) if centres else None), max((len(some) for some in found), default=0)


def _tracepoint_gap(replay: Replay) -> float:
    """The smallest usual gap from any record into a tracepoint, over all pairs of events that neighbour often."""
    gaps, same = _neighbour_gaps(replay.rows)
    event = replay.rows["event"].cast(pl.String)
    pairs = pl.DataFrame({"before": event[:-1], "after": event[1:], "gap": gaps}).filter(
        pl.Series(same) & pl.Series(replay.rows["source"].to_numpy()[1:] == Source.TRACEPOINT)
    )
    centres = (
        pairs.group_by("before", "after").agg(pl.col("gap").median(), n=pl.len()).filter(pl.col("n") >= MIN_SAMPLES)
    )
    smallest = centres["gap"].min()
    return float(smallest) if isinstance(smallest, int | float) else float("inf")


def _visit_gap(replay: Replay, kind: Kind, overhead: dict[Source, float]) -> _Gap:
    """The gaps after visits of ``kind`` that find nothing.

    A walk's last visit is left out: its gap holds the next folio's work. So is a gap in which the task did
    something else, and one across a change of CPU.
    """
    rows, walks = replay.rows, replay.walks
    at = np.flatnonzero((walks.position_of_row >= 0) & (rows["kind"].to_numpy() == kind))
    i, j = at[:-1], at[1:]
    hit = np.zeros(len(rows) + 1, dtype=bool)
    hit[walks.visit_of_row] = True  # -1, no visit, falls on the spare place at the end
    time, cpu, source = (rows[column].to_numpy() for column in ("time_ns", "cpu", "source"))
    strange = (rows["kind"].to_numpy() == Kind.OTHER) & (source == Source.TRACEPOINT)
    good = (walks.walk_of_row[i] == walks.walk_of_row[j]) & ~hit[i] & (cpu[i] == cpu[j])
    good &= _between(strange, i, j) == 0
    single = (time[j] - time[i]).astype(np.float64) + overhead[Source.KPROBE]
    for one, ns in overhead.items():
        single -= _between(source == one, i, j) * ns
    single = single[good]
    if len(single) < MIN_SAMPLES:
        return _Gap(0.0, 0.0, 0.0, len(single))
    centre = _centre(single, _clock_step(replay))
    visit = float(np.clip(centre - overhead[Source.KPROBE], VISIT_SHARE[0] * centre, VISIT_SHARE[1] * centre))
    return _Gap(centre, visit, float(single.sum()), len(single))


def _between(flags: npt.NDArray[np.bool_], i: npt.NDArray[np.intp], j: npt.NDArray[np.intp]) -> Ints:
    """int64[n]: how many of the rows i+1 … j have the flag."""
    total = np.cumsum(flags)
    return np.asarray(total[j] - total[i], dtype=np.int64)


def _neighbour_gaps(rows: pl.DataFrame) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Gap between each two neighbouring rows, and whether both are of one task on one CPU."""
    task, cpu = rows["task"].to_numpy(), rows["cpu"].to_numpy()
    return np.diff(rows["time_ns"].to_numpy()), (task[1:] == task[:-1]) & (cpu[1:] == cpu[:-1])


def _clock_step(replay: Replay) -> int:
    """Resolution of the trace's clock: the greatest common divisor of its differences."""
    differences = np.diff(replay.rows["time_ns"].to_numpy()[:10_000])
    return int(np.gcd.reduce(np.abs(differences))) if len(differences) else 1


def _centre(gaps: Floats | Ints, step: int) -> float:
    """The median; where the clock's step is not well below the gap, the mean, which alone is unbiased then."""
    median = float(np.median(gaps))
    if 4 * step < median:
        return median
    return float(np.mean(np.minimum(gaps, np.percentile(gaps, 99))))
