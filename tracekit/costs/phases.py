"""The price of a whole rmap walk, where a trace holds the walks but not their visits (ACCURACY.md, light trace alone).

    R = gap(remove_migration_ptes → next folio copied)      restores E entries, visits all N VMAs
    U = gap(try_to_migrate → next try_to_migrate)           sets E entries, stops behind the last of them

A walk that stops behind the last entry restores what R does in about κU: restoring an entry costs about what setting
it does. κ = 0.85 (ACCURACY.md), and is uncertain. What follows the walk, unlocking and putting the folio, lies in R,
too: little beside the copy and what else lies between the two, of which it is taken for 0.015 (a trace in which no
folio has a second VMA shows 0.03). Both phases hold two or three records, so a rough overhead will do.

Beside a denser trace of the same work, which tells how many visits follow the last entry, (R - κU) / visits is what one
takes with no record near it (``visit``). Where there is a real cache tracing slows the visit itself, so this price
errs otherwise than the gap between two visits does.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tracekit.costs.gaps import MIN_SAMPLES, Bools, Records, Rows, beside, between, centre, mean_draws
from tracekit.costs.model import Floats, uncertain
from tracekit.costs.one_trace import TRACEPOINT_IN_PROBES
from tracekit.machine.timeline import Kind, Source

RESTORED_IN_SET = (0.85, 0.08)  # κ, and its deviation
FINISHING_SHARE = (0.015, 0.010)  # of the way from the copy to the restoring walk: what follows that walk
PROBE_SHARE = (0.6, 0.12)  # of the smallest usual gap from a probe to whatever comes next

WALK = "remove_migration_ptes.walk"
CUT = "remove_migration_ptes.walk_to_last_entry"
_ENDS = (Kind.TRY, Kind.REMOVE, Kind.COPY, Kind.MIGRATE_START, Kind.MIGRATE_END, Kind.SYSCALL_ENTER, Kind.SYSCALL_EXIT)


class Phase(NamedTuple):
    """Phases of one sort, in one call's name.

    Attributes:
        ns: float64[n].
        kprobes, tracepoints: mean number of records in one.
    """

    ns: Floats
    kprobes: float
    tracepoints: float

    def net(self, name: str, kprobe_ns: Floats, tracepoint_ns: Floats) -> Floats:
        """float64[DRAWS]: mean duration less the records."""
        return mean_draws(name, self.ns) - self.kprobes * kprobe_ns - self.tracepoints * tracepoint_ns


def rough_overhead(these: Records) -> tuple[Floats, Floats] | None:
    """Overhead of a probe and of a tracepoint, float64[DRAWS] each, off the smallest usual gap after a probe."""
    gaps, same = np.diff(these.time_ns).astype(np.float64), beside(these) & (these.source[:-1] == Source.KPROBE)
    pair = these.event[:-1] * len(these.events) + these.event[1:]
    found = []
    for code in np.unique(pair[same]):
        some = gaps[same & (pair == code)]
        if len(some) >= MIN_SAMPLES:
            found.append(centre(some, these.step_ns))
    if not found:
        return None
    probe = np.maximum(uncertain("rough probe", *PROBE_SHARE), 0.1) * min(found)
    return probe, np.clip(uncertain("rough tracepoint", *TRACEPOINT_IN_PROBES), 0.1, 1.0) * probe


def prices(
    these: Records, names: npt.NDArray[np.object_], kprobe_ns: Floats, tracepoint_ns: Floats
) -> dict[str, Floats]:
    """Prices of WALK and CUT by the name of the call around them: key ``OP in NAME``.

    Args:
        these: the records.
        names: of the outermost call each record lies in.
        kprobe_ns: overhead of a probe.
        tracepoint_ns: of a tracepoint.
    """
    found = {}
    for name in sorted(set(names)):
        walk = _walk(these, names == name, name, kprobe_ns, tracepoint_ns)
        if walk is not None:
            whole, cut = (np.maximum(part, 0.0) for part in walk)
            found[f"{WALK} in {name}"], found[f"{CUT} in {name}"] = whole, np.minimum(cut, whole)
    return found


def visit(light: Records, dense: Records, kprobe_ns: Floats, tracepoint_ns: Floats) -> Floats | None:
    """float64[DRAWS]: the price of a visit behind the last entry, off walks that nothing delays.

    Args:
        light: a trace that holds the walks but not their visits.
        dense: one of the same work that holds both, and the entries.
        kprobe_ns: overhead of a probe.
        tracepoint_ns: of a tracepoint.

    Returns:
        None: too few walks in one of them, or no such visits.
    """
    walk = _walk(light, np.ones(len(light.row), dtype=bool), "both", kprobe_ns, tracepoint_ns)
    i, j = _phases(dense, Kind.REMOVE, Kind.COPY)
    if walk is None or len(i) < MIN_SAMPLES:
        return None
    place = np.arange(len(dense.row))
    last = np.maximum.accumulate(np.where(dense.kind == Kind.RESTORE, place, -1))[j]
    # a walk that restored nothing ended no earlier than the setting one: it spares no visit
    behind = np.where(last > i, between(dense.kind == Kind.REMOVE_VISIT, np.maximum(last, 0), j), 0)
    visits = mean_draws("behind", behind.astype(np.float64))
    whole, cut = walk
    return (whole - cut) / visits if visits.min() > 0 else None


def _walk(
    these: Records, there: Bools, name: str, kprobe_ns: Floats, tracepoint_ns: Floats
) -> tuple[Floats, Floats] | None:
    """float64[DRAWS] each: a restoring walk, and one that ends behind the last entry; None: too few of them.

    Args:
        these: the records.
        there: bool[n_records], those where a phase may begin.
        name: of those.
        kprobe_ns: overhead of a probe.
        tracepoint_ns: of a tracepoint.
    """
    sorts = {"R": (Kind.REMOVE, Kind.COPY), "U": (Kind.TRY, Kind.TRY), "C": (Kind.COPY, Kind.REMOVE)}
    found = {}
    for sort, ends in sorts.items():
        i, j = _phases(these, *ends)
        phase = _phase(these, i[there[i]], j[there[i]])
        if len(phase.ns) < MIN_SAMPLES:
            return None
        found[sort] = phase.net(f"{sort} {name}", kprobe_ns, tracepoint_ns)
    kappa = np.maximum(uncertain("restored in set", *RESTORED_IN_SET), 0.0)
    finishing = np.maximum(uncertain("finishing", *FINISHING_SHARE), 0.0) * np.maximum(found["C"], 0.0)
    return found["R"], kappa * found["U"] + finishing


def _phases(these: Records, begin: Kind, end: Kind) -> tuple[Rows, Rows]:
    """Where a phase begins, and the record that ends it: the task's next of those that do, if it is of sort ``end``."""
    at = np.flatnonzero(np.isin(these.kind, _ENDS))
    i, j = at[:-1], at[1:]
    good: Bools = (these.kind[i] == begin) & (these.kind[j] == end) & (these.task[i] == these.task[j])
    good &= (these.cpu[i] == these.cpu[j]) & (between(~these.whole, i, j) == 0)
    return i[good], j[good]


def _phase(these: Records, i: Rows, j: Rows) -> Phase:
    is_probe = these.source != Source.TRACEPOINT
    probes, points = (between(flags, i, j) for flags in (is_probe, ~is_probe))
    duration = (these.time_ns[j] - these.time_ns[i]).astype(np.float64)
    return Phase(duration, float(probes.mean()) if len(i) else 0.0, float(points.mean()) if len(i) else 0.0)
