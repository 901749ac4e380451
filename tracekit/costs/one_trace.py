"""The overhead of a record and the price of a VMA visit out of one trace that holds every visit (source 3).

    gap(visit → next visit)              = m + O       a visit that finds nothing, and one probe
    gap(try_to_migrate → its 1st visit)  = w + O       w: a lock and the way into the tree

Two unknowns too many, so two things are taken as known, each with its uncertainty, and the two answers are weighted
by theirs:

    a   O = 0.88 k          what lies between two neighbouring probes is a small part of their gap (ACCURACY.md)
    b   m = (g - k)/(1 - β) w is β = 0.4 of a visit: the same work by the same processor, so that the tracer's price
                            cancels, be it ftrace's or perf's twice as dear one

β was read off pairs of traces of the same work, with and without the visit probes, which give O without either
assumption (``densities``): 0.38 to 0.42 from try_to_migrate, anonymous and file, 0.47 to 0.74 from
remove_migration_ptes. No measured saving went into it.
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from tracekit.costs.gaps import MIN_SAMPLES, Records, Rows, beside, between, centre_draws, mean_draws, named
from tracekit.costs.model import Floats, uncertain, weighted
from tracekit.machine.timeline import Kind, Source


class Assumed(NamedTuple):
    """What is taken as known of two neighbouring probes, each with its deviation.

    Attributes:
        record: the first one's overhead, in shares of their gap.
        work: what lies between them, in shares of the step to be priced; None: nothing does.
    """

    record: tuple[float, float]
    work: tuple[float, float] | None


PROBE_SHARE = (0.88, 0.06)  # of the gap of two neighbouring probes: the record; its deviation
WORK_SHARE = {Kind.TRY: (0.40, 0.15), Kind.REMOVE: (0.50, 0.18)}  # of a visit: what lies between entry and first visit
TRACEPOINT_SHARE = (0.79, 0.08)  # of the smallest usual gap into one
TRACEPOINT_IN_PROBES = (0.55, 0.10)
VISIT_SHARE = (0.05, 0.90)  # of its gap: no visit is outside

VISITS = {
    Kind.TRY_VISIT: "try_to_migrate.vma_visit",
    Kind.REMOVE_VISIT: "remove_migration_ptes.vma_visit",
}
_ENTRY_OF = {Kind.TRY: Kind.TRY_VISIT, Kind.REMOVE: Kind.REMOVE_VISIT}
# Probes of nested wrappers, outer first: nothing at all between them (ACCURACY.md source 2)
_NESTED = (("try_to_migrate", "folio_lock_anon_vma_read"), ("rmap_walk", "rmap_walk_anon"))
_BETWEEN_VISITS = (Kind.TRY, Kind.TRY_RETURN, Kind.REMOVE, Kind.COPY, Kind.MIGRATE_START, Kind.MIGRATE_END)


class Neighbours(NamedTuple):
    """The tightest pair of probes.

    Attributes:
        gap_ns: float64[DRAWS], its usual gap.
        assumed: of the pair.
        samples: gaps that it rests on.
    """

    gap_ns: Floats
    assumed: Assumed
    samples: int


class VisitGaps(NamedTuple):
    """Gaps from a visit that finds nothing to the next of its walk, all records but one probe taken off.

    Attributes:
        single_ns: float64[n].
    """

    single_ns: Floats

    @property
    def enough(self) -> bool:
        """Whether a price can rest on them."""
        return len(self.single_ns) >= MIN_SAMPLES


def neighbours(these: Records) -> Neighbours | int:
    """The pair of neighbouring probes with the smallest usual gap; how many gaps there were where that is too few."""
    gaps, same = np.diff(these.time_ns), beside(these)
    kind = these.kind
    pairs = {(entry, ""): (kind[:-1] == entry) & (kind[1:] == visit) for entry, visit in _ENTRY_OF.items()}
    pairs |= {(Kind.OTHER, a): named(these, a)[:-1] & named(these, b)[1:] for a, b in _NESTED}
    found = {key: gaps[pair & same].astype(np.float64) for key, pair in pairs.items()}
    centres = {
        key: centre_draws(f"pair {key}", some, these.step_ns) for key, some in found.items() if len(some) >= MIN_SAMPLES
    }
    if not centres:
        return max(map(len, found.values()), default=0)
    tightest = min(centres, key=lambda key: float(centres[key][0]))
    assumed = Assumed(PROBE_SHARE, WORK_SHARE.get(tightest[0]))
    return Neighbours(centres[tightest], assumed, len(found[tightest]))


def tracepoint_ns(these: Records, probe_ns: Floats) -> Floats:
    """float64[DRAWS]: what a tracepoint costs: off the smallest usual gap into one, and as a share of a probe.

    The former holds a little work, the latter depends on the probe's arguments: the mean of both. Where the gap allows
    no less than a probe takes, it takes as long.
    """
    gaps, same = np.diff(these.time_ns), beside(these)
    pairs = pl.DataFrame({"before": these.event[:-1], "after": these.event[1:], "gap": gaps}).filter(
        pl.Series(same & (these.source[1:] == Source.TRACEPOINT))
    )
    usual = pairs.group_by("before", "after").agg(pl.col("gap").median(), n=pl.len())
    smallest = usual.filter((pl.col("n") >= MIN_SAMPLES) & (pl.col("gap") > 0))["gap"].min()
    share = np.clip(uncertain("tracepoint share", *TRACEPOINT_IN_PROBES), 0.1, 1.0) * probe_ns
    if not isinstance(smallest, int | float):
        return share
    own = uncertain("tracepoint", *TRACEPOINT_SHARE) * smallest
    return probe_ns if own[0] >= probe_ns[0] else np.minimum((own + share) / 2, probe_ns)


def visit_gaps(these: Records, visit: Kind, overhead_ns: dict[Source, float]) -> VisitGaps:
    """The gaps after visits of the sort ``visit`` that find nothing.

    A walk's last visit is left out: its gap holds the next folio's work. So is a gap in which the task did
    something else, and one across a change of CPU.
    """
    at = np.flatnonzero(these.kind == visit)
    i, j = at[:-1], at[1:]
    none = np.zeros(len(i), dtype=np.int64)
    for flags in (
        np.isin(these.kind, (*_BETWEEN_VISITS, Kind.SET, Kind.RESTORE, Kind.SYSCALL_ENTER, Kind.SYSCALL_EXIT)),
        (these.kind == Kind.OTHER) & (these.source == Source.TRACEPOINT),
        ~these.whole,
    ):
        none += between(flags, i, j)
    other = Kind.TRY_VISIT if visit == Kind.REMOVE_VISIT else Kind.REMOVE_VISIT
    none += between(these.kind == other, i, j)
    good = (none == 0) & (these.folio[i] == these.folio[j]) & (these.task[i] == these.task[j])
    good &= these.cpu[i] == these.cpu[j]
    return VisitGaps(_single(these, i[good], j[good], overhead_ns))


def _single(these: Records, i: Rows, j: Rows, overhead_ns: dict[Source, float]) -> Floats:
    single = (these.time_ns[j] - these.time_ns[i]).astype(np.float64) + overhead_ns[Source.KPROBE]
    for source, ns in overhead_ns.items():
        single -= between(these.source == source, i, j) * ns
    return single


def solve(near: Neighbours, gap_ns: Floats) -> tuple[Floats, float]:
    """The price of a visit, float64[DRAWS], out of the usual gap ``gap_ns`` that holds it, and how far a and b differ.

    Returns:
        the price, and b's answer over a's.
    """
    a = gap_ns - uncertain("probe share", *near.assumed.record) * near.gap_ns
    if near.assumed.work is None:
        return within(a, gap_ns), 1.0
    share = np.clip(uncertain("work share", *near.assumed.work), 0.0, 0.9)
    b = (gap_ns - near.gap_ns) / (1 - share)
    return within(weighted(a, b), gap_ns), float(b[0] / a[0]) if min(a[0], b[0]) > 0 else float("inf")


def within(price_ns: Floats, gap_ns: Floats) -> Floats:
    """``price_ns`` held between the least and the most that a visit takes of the gap that holds it."""
    return np.clip(price_ns, VISIT_SHARE[0] * gap_ns, VISIT_SHARE[1] * gap_ns)


def usual(name: str, these: Records, gaps: VisitGaps) -> tuple[Floats, Floats]:
    """Centre and mean of ``gaps``, float64[DRAWS] each: the one tells the price, the other adds up to durations."""
    return centre_draws(name, gaps.single_ns, these.step_ns), mean_draws(name, gaps.single_ns)
