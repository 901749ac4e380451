"""The overhead of a record out of two traces of the same work, one with more probes than the other (source 1).

Between two records that both traces have lies the same work. So the difference of such a stretch's mean duration is
what the additional records in it cost, each trace's own counted:

    T_dense - T_light = Δn_k x O_k + Δn_t x O_t

Stretches of several sorts make several such equations; where they cannot tell O_k from O_t, the share that one trace
suggests decides. A stretch in which something else differs (a TLB flush more) is not the same work and is left out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tracekit.costs.gaps import MIN_SAMPLES, Records, between, mean, mean_draws, named
from tracekit.costs.model import Floats, Ints, uncertain
from tracekit.costs.one_trace import PROBE_SHARE, neighbours
from tracekit.machine.timeline import Kind, Source

# The same work: the events that both traces have are in both in the same proportions, within this
_ALIKE = 0.03
_SAME_COUNT = 0.02  # records of an event in a stretch, between the two traces
_ROUGH = 0.005  # of a difference: deviation of its equation
_SHARE_DEVIATION = 0.3
_MODEL = 0.015  # of O: what is left when all else is right
_APART = 0.15  # of the overhead: what one trace alone is off by at most
_NO_WORK = ("print",)
_MOST_ANCHORS = 12
_A_RECORD = 0.5  # of difference: less is none


class Stretches(NamedTuple):
    """Stretches of one sort in one trace: from one anchor to the next.

    Attributes:
        ns: float64[n], durations.
        records: of each event that is no anchor, mean number in a stretch.
        kprobes, tracepoints: mean number of records, the one at the end counted.
    """

    ns: Floats
    records: dict[str, float]
    kprobes: float
    tracepoints: float


class Overhead(NamedTuple):
    """Attributes.

    kprobe_ns, tracepoint_ns: float64[DRAWS].
    stretches: how many sorts of stretches it rests on.
    residual: |what the two make of the stretches' differences - those| / those.
    unlike: share by which stretches differ that hold the same records in both: the machine was not the same.
    """

    kprobe_ns: Floats
    tracepoint_ns: Floats
    stretches: int
    residual: float
    unlike: float


def overhead(one: Records, other: Records, share: Floats) -> Overhead | None:
    """The overhead of a record, if ``one`` and ``other`` are of the same work at two densities; else None.

    Args:
        one: the trace that is priced.
        other: another of the same machine.
        share: float64[DRAWS], of a tracepoint's overhead in a probe's, as one trace suggests.
    """
    anchors = _anchors(one, other)
    if not anchors:
        return None
    here, there = _stretches(one, anchors), _stretches(other, anchors)
    rows = []
    for key in here.keys() & there.keys():
        a, b = here[key], there[key]
        if min(len(a.ns), len(b.ns)) < MIN_SAMPLES or not _same_work(a, b):
            continue
        difference = mean_draws(f"here {key}", a.ns) - mean_draws(f"there {key}", b.ns)
        rows.append((a.kprobes - b.kprobes, a.tracepoints - b.tracepoints, difference))
    unlike = _unlike(here, there)
    rows = [row for row in rows if abs(row[0]) + abs(row[1]) > _A_RECORD]
    if not any(abs(row[0]) > _A_RECORD for row in rows):
        return None
    kprobe, tracepoint = _solve(rows, share)
    if kprobe[0] <= 0 or not _plausible(float(kprobe[0]), one, other):
        return None
    model = 1 + uncertain("two densities", 0.0, _MODEL)
    seen = sum(float(row[2][0]) for row in rows)
    made = sum(float(row[0] * kprobe[0] + row[1] * tracepoint[0]) for row in rows)
    residual = abs(made - seen) / abs(seen)
    return Overhead(kprobe * model, np.clip(tracepoint, 0.0, kprobe) * model, len(rows), residual, unlike)


def _unlike(here: dict[tuple[str, str], Stretches], there: dict[tuple[str, str], Stretches]) -> float:
    """By how much of their duration stretches differ where the records do not: by that the rest may, too."""
    apart, total = 0.0, 0.0
    for key in here.keys() & there.keys():
        a, b = here[key], there[key]
        same_records = abs(a.kprobes - b.kprobes) + abs(a.tracepoints - b.tracepoints) <= _SAME_COUNT
        if same_records and min(len(a.ns), len(b.ns)) >= MIN_SAMPLES:
            apart += abs(mean(a.ns) - mean(b.ns)) * len(b.ns)
            total += mean(b.ns) * len(b.ns)
    return apart / total if total else 0.0


def _plausible(kprobe_ns: float, *traces: Records) -> bool:
    """Whether the overhead is about what the denser trace alone suggests; else the work was not the same."""
    guesses = [near for near in map(neighbours, traces) if not isinstance(near, int)]
    alone = [PROBE_SHARE[0] * float(near.gap_ns[0]) for near in guesses]
    return not alone or any(abs(kprobe_ns / guess - 1) <= _APART for guess in alone)


def _solve(rows: list[tuple[float, float, Floats]], share: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares of ``Δn_k O_k + Δn_t O_t = difference`` and ``O_t = share x O_k``, draw by draw."""
    k, t = (np.array([row[i] for row in rows])[:, None] for i in (0, 1))
    difference = np.stack([row[2] for row in rows])
    deviation = np.maximum(_ROUGH * np.abs(difference[:, :1]), 1.0)
    typical = float(np.median(difference[:, 0] / (k[:, 0] + t[:, 0])))
    k, t, difference = (np.vstack([part, prior]) for part, prior in (
        (np.broadcast_to(k, difference.shape) / deviation, share / (_SHARE_DEVIATION * abs(typical))),
        (np.broadcast_to(t, difference.shape) / deviation, np.full_like(share, -1) / (_SHARE_DEVIATION * abs(typical))),
        (difference / deviation, np.zeros_like(share)),
    ))  # fmt: skip
    kk, tt, kt = (k * k).sum(0), (t * t).sum(0), (k * t).sum(0)
    ky, ty = (k * difference).sum(0), (t * difference).sum(0)
    determinant = kk * tt - kt * kt
    return (tt * ky - kt * ty) / determinant, (kk * ty - kt * ky) / determinant


def _anchors(one: Records, other: Records) -> list[str]:
    """Events that both traces have in the same proportions, most frequent first; none where it is not the same work."""
    counts = [_counts(these) for these in (one, other)]
    both = {event: (counts[0][event], counts[1][event]) for event in counts[0].keys() & counts[1].keys()}
    probes = {event: n for event, n in both.items() if min(n) >= MIN_SAMPLES and not event.startswith("tlb:")}
    if not probes or counts[0].keys() == counts[1].keys():
        return []
    scale = np.median([a / b for a, b in probes.values()])
    alike = {event for event, (a, b) in probes.items() if abs(a / b / scale - 1) <= _ALIKE}
    if len(alike) * 2 <= len(probes):
        return []
    return sorted(alike, key=lambda event: -both[event][0])[:_MOST_ANCHORS]


def _counts(these: Records) -> dict[str, int]:
    codes, counts = np.unique(these.event[_at_work(these)], return_counts=True)
    return {these.events[code]: int(n) for code, n in zip(codes, counts, strict=True)}


def _at_work(these: Records) -> Ints:
    edges = (Kind.SYSCALL_ENTER, Kind.SYSCALL_EXIT, Kind.MARK_BEGIN, Kind.MARK_END)
    return np.flatnonzero(~np.isin(these.kind, edges) & ~named(these, *_NO_WORK))


def _stretches(these: Records, anchors: list[str]) -> dict[tuple[str, str], Stretches]:
    at = np.flatnonzero(np.isin(these.event, [these.events.index(event) for event in anchors]))
    i, j = at[:-1], at[1:]
    good = (these.task[i] == these.task[j]) & (these.cpu[i] == these.cpu[j]) & (between(~these.whole, i, j) == 0)
    edges = np.isin(these.kind, (Kind.SYSCALL_ENTER, Kind.SYSCALL_EXIT, Kind.MARK_BEGIN, Kind.MARK_END))
    good &= between(edges, i, j) == 0
    i, j = i[good], j[good]
    inner = [event for event in _counts(these) if event not in anchors]
    counted = {event: between(these.event == these.events.index(event), i, j) for event in inner}
    is_probe = these.source != Source.TRACEPOINT
    probes, points = between(is_probe, i, j), between(~is_probe, i, j)
    duration = (these.time_ns[j] - these.time_ns[i]).astype(np.float64)
    found = {}
    for key, which in _by_pair(these, i, j):
        records = {event: float(n[which].mean()) for event, n in counted.items()}
        found[key] = Stretches(duration[which], records, float(probes[which].mean()), float(points[which].mean()))
    return found


def _by_pair(these: Records, i: Ints, j: Ints) -> Iterator[tuple[tuple[str, str], Ints]]:
    pair = these.event[i] * len(these.events) + these.event[j]
    for code in np.unique(pair):
        first, second = divmod(int(code), len(these.events))
        yield (these.events[first], these.events[second]), np.flatnonzero(pair == code)


def _same_work(a: Stretches, b: Stretches) -> bool:
    """Whether what both traces record happens equally often in both."""
    return all(
        abs(a.records[event] - b.records[event]) <= max(_SAME_COUNT * b.records[event], _SAME_COUNT)
        for event in a.records.keys() & b.records.keys()
    )
