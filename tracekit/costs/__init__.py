"""What an operation costs, and what tracing it cost: prices made from the trace's own gaps, and from others' beside it.

Taking a record delays its task. So between two visits of a walk lies the visit and the cost of every record in
between, and a call's traced duration holds the cost of all its records:

    m    = centre(gap visit → next visit) - records in the gap x overhead      the true price of a visit
    D_u  = D - records in the call x overhead                                  the call's untraced duration

Everything hangs on the overhead. Sources, best first (ACCURACY.md): two traces of the same work at two densities
(``densities``), this trace alone (``one_trace``), and where it holds no visits, its phases (``phases``). Prices are
this trace's: never carry them to another machine, clock or tracer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl

from tracekit.costs import densities, one_trace, phases, removals, tables
from tracekit.costs.gaps import MIN_SAMPLES, Records, records
from tracekit.costs.keys import miss, sites
from tracekit.costs.model import CostModel, Floats, Prices, fixed, uncertain, weighted
from tracekit.machine.replay import Replay
from tracekit.machine.timeline import Kind, Source

__all__ = ["MIN_SAMPLES", "CostModel", "Prices", "calibrate", "miss", "tables", "untraced_ns", "without_overhead"]

UPDATE = "counter.update"
CHECK = "page.check"  # reads one counter, and writes one of its own
UPDATE_SHARE = (0.01, 0.004)  # of a probe's overhead: one atomic update of a counter; its deviation
LENT = 0.08  # of a price taken from another trace: deviation
# What remains when the prices are right, ± of the ratio; of two densities, with what the two traces are unlike by
MARGIN = {"one_trace": 0.015, "two_densities": 0.02, "phases": 0.015}


def calibrate(replay: Replay, others: Sequence[Replay | CostModel] = ()) -> CostModel:
    """Read the prices off the records of ``replay``, and off ``others`` where they tell more.

    Args:
        replay: the trace.
        others: traces of the same machine, and cost tables (``tables.read``), in order of preference.
    """
    these = records(replay)
    beside = [(other, records(other)) for other in others if isinstance(other, Replay)]
    costs = _alone(replay, these)
    for _, there in beside:
        found = densities.overhead(these, there, _tracepoint_share(these, there))
        if found is not None:
            costs = _with_own(_of_two_densities([these, there], found), these, replay)
            break
    for other, there in beside:
        costs = _borrowed(costs, _alone(other, there), these, replay)
    for table in others:
        if isinstance(table, CostModel):
            costs = _borrowed(costs, table, these, replay)
    return costs


def without_overhead(costs: CostModel) -> CostModel:
    """``costs`` for a trace of another tracer: what an operation costs holds there, what a record does, does not."""
    if costs.prices is None:
        return costs
    return replace(costs, prices=Prices({}, costs.prices.price_ns), source="foreign")


def _alone(replay: Replay, these: Records) -> CostModel:
    near = one_trace.neighbours(these)
    if not isinstance(near, int):
        return _with_own(_of_one_trace(these, near), these, replay)
    found = removals.overhead(these)
    if found is not None:
        probe, samples, how = found
        return _with_own(_of_removals(these, probe, samples, how), these, replay)
    rough = phases.rough_overhead(these)
    if rough is not None and not these.has(*one_trace.VISITS):
        return _with_own(_of_phases(rough), these, replay)
    how = f"no prices: needs {MIN_SAMPLES} gaps between try_to_migrate and its first visit, found {near}"
    return CostModel(None, 0.0, "none", {"probe": near}, None, [how])


def _borrowed(costs: CostModel, lender: CostModel, these: Records, replay: Replay) -> CostModel:
    """``costs`` with what only ``lender``, another trace of the same machine, can price."""
    if lender.prices is None:
        return costs
    name = lender.how[0] if lender.source == "table" else "another trace"
    overhead = lender.prices.overhead_ns
    if overhead and (costs.prices is None or costs.source in ("rough", "phases")):
        own = _prices(overhead[Source.KPROBE], overhead[Source.TRACEPOINT], {})
        costs = _with_own(CostModel(own, lender.margin, "borrowed", {}, None, [f"overhead: {name}"]), these, replay)
    if costs.prices is None:
        return costs
    wanted = {key: price for key, price in lender.prices.price_ns.items() if key not in costs.prices.price_ns}
    if not wanted:
        return costs
    lent = np.maximum(1 + uncertain("lent", 0.0, LENT), 0.1)
    prices = Prices(
        costs.prices.overhead_ns, {**costs.prices.price_ns, **{key: ns * lent for key, ns in wanted.items()}}
    )
    how = [f"{key}: {ns[0]:.0f} ns, {name}" for key, ns in wanted.items()]
    return replace(costs, prices=prices, how=[*costs.how, *how])


def _of_removals(these: Records, probe: Floats, samples: int, how: str) -> CostModel:
    tracepoint = one_trace.tracepoint_ns(these, probe)
    source = "rough" if how.startswith("roughly") else "one_trace"
    said = [
        f"taking a probe: {probe[0]:.0f} ns, {how} ({samples} gaps)",
        f"taking a tracepoint: {tracepoint[0]:.0f} ns",
    ]
    return CostModel(_prices(probe, tracepoint, {}), MARGIN["one_trace"], source, {"probe": samples}, None, said)


def _of_phases(rough: tuple[Floats, Floats]) -> CostModel:
    probe, tracepoint = rough
    how = f"taking a probe: {probe[0]:.0f} ns, {phases.PROBE_SHARE[0]} of the least usual gap after one: roughly"
    return CostModel(_prices(probe, tracepoint, {}), MARGIN["phases"], "phases", {}, None, [how])


def _with_own(costs: CostModel, these: Records, replay: Replay) -> CostModel:
    """``costs`` with the prices of removals page by page, and of whole walks where ``these`` hold no visits."""
    if costs.prices is None:
        return costs
    probe, tracepoint = (costs.prices.overhead_ns[source] for source in (Source.KPROBE, Source.TRACEPOINT))
    found, samples = removals.prices(these, removals.find_runs(replay, these), probe, tracepoint)
    how = [f"{key}: {price[0]:.0f} ns ({samples.get(key, 0)} runs)" for key, price in found.items()]
    prices = Prices(costs.prices.overhead_ns, {**costs.prices.price_ns, **found})
    costs = replace(costs, prices=prices, samples={**costs.samples, **samples}, how=[*costs.how, *how])
    return costs if these.has(*one_trace.VISITS) else _with_walks(costs, these, replay)


def _with_walks(costs: CostModel, these: Records, replay: Replay) -> CostModel:
    assert costs.prices is not None
    name_of = sites(replay.calls)
    names = np.full(len(replay.rows), "no call", dtype=object)
    for call, start, end in replay.calls.select("call", "start_row", "end_row").iter_rows():
        if end is not None:
            names[start : end + 1] = name_of[call]
    overhead = costs.prices.overhead_ns
    found = phases.prices(these, names[these.row], overhead[Source.KPROBE], overhead[Source.TRACEPOINT])
    how = [f"{key}: {price[0]:.0f} ns" for key, price in found.items()]
    prices = Prices(overhead, {**costs.prices.price_ns, **found})
    return replace(costs, prices=prices, how=[*costs.how, *how])


def untraced_ns(calls: pl.DataFrame, prices: Prices) -> Floats:
    """float64[n_calls, DRAWS]: duration less what taking the call's records cost; NaN where its end was not seen."""
    columns = (
        (Source.TRACEPOINT, "tracepoints"),
        (Source.KPROBE, "kprobes"),
        (Source.KRETPROBE, "kretprobes"),
    )
    untraced: Floats = calls["duration_ns"].cast(pl.Float64).fill_null(np.nan).to_numpy()[:, None]
    for source, column in columns:
        untraced = untraced - calls[column].cast(pl.Float64).to_numpy()[:, None] * prices.overhead_ns[source]
    return untraced


class _Visit(NamedTuple):
    """Usual gap (for the price) and mean gap (for sums) of visits that find nothing; float64[DRAWS] each."""

    usual_ns: Floats
    mean_ns: Floats
    total_ns: float
    samples: int


def _of_one_trace(these: Records, near: one_trace.Neighbours) -> CostModel:
    probe = one_trace.PROBE_SHARE[0] * near.gap_ns
    tracepoint = one_trace.tracepoint_ns(these, probe)
    visits, samples = _visits([these], float(probe[0]), float(tracepoint[0]))
    how: list[str] = []
    prices: dict[str, Floats] = {}
    excess = fixed(0.0)
    for op, visit in reversed(visits.items()):  # the remove walk has the say: its visits are what the policies spare
        if not prices:
            prices[miss(op)], apart = one_trace.solve(near, visit.usual_ns)
            probe = visit.usual_ns - prices[miss(op)]
            excess = visit.mean_ns - visit.usual_ns
            how.append(f"the two ways to price a visit differ by a factor of {max(apart, 1 / apart):.2f}")
        else:
            prices[miss(op)] = np.maximum(visit.usual_ns - probe, 0.01 * visit.usual_ns)
    # What makes the mean gap longer than the usual one, a page of the ring buffer begun, is tracing, too
    probe = np.maximum(probe + np.maximum(excess, 0.0), 0.0)
    head = [
        f"taking a probe: {probe[0]:.0f} ns, of {near.gap_ns[0]:.0f} ns between two neighbours ({near.samples} gaps)",
        f"taking a tracepoint: {tracepoint[0]:.0f} ns",
    ]
    seen = sum(visit.total_ns for visit in visits.values())
    priced = sum(visit.samples * float(prices[miss(op)][0] + probe[0]) for op, visit in visits.items())
    residual = abs(priced - seen) / seen if seen else None
    return CostModel(
        _prices(probe, np.minimum(tracepoint, probe), prices),
        MARGIN["one_trace"],
        "one_trace",
        {"probe": near.samples, **samples},
        residual,
        [*head, *_say(visits, samples, prices), *how],
    )


def _of_two_densities(traces: list[Records], found: densities.Overhead) -> CostModel:
    """Visits come from the trace that holds them, the first of ``traces`` if both do.

    Where the other holds the walks only, these are a second answer to what a restoring walk's visit takes, and the one
    that tracing disturbs least (``phases.visit``). The two are ``weighted``; and as a visit's gap holds it and a probe,
    what one takes more the other takes less, draw by draw.
    """
    visits, samples = _visits(traces, float(found.kprobe_ns[0]), float(found.tracepoint_ns[0]))
    probe, how = found.kprobe_ns, []
    op = one_trace.VISITS[Kind.REMOVE_VISIT]
    of_walks = _of_walks(traces, found) if op in visits else None
    if of_walks is not None:
        of_gaps = visits[op].mean_ns - probe
        probe = visits[op].mean_ns - one_trace.within(weighted(of_gaps, of_walks), visits[op].mean_ns)
        how.append(f"{miss(op)}: {of_gaps[0]:.0f} ns by its gaps, {of_walks[0]:.0f} ns by the lighter trace's walks")
    prices = {miss(op): np.maximum(one.mean_ns - probe, 0.01 * one.mean_ns) for op, one in visits.items()}
    head = (
        f"taking a probe: {probe[0]:.0f} ns, a tracepoint: {found.tracepoint_ns[0]:.0f} ns, off a trace of "
        f"the same work at another density ({found.stretches} sorts of stretches)"
    )
    return CostModel(
        _prices(probe, np.minimum(found.tracepoint_ns, probe), prices),
        float(np.hypot(MARGIN["two_densities"], found.unlike)),
        "two_densities",
        samples,
        found.residual + abs(float(probe[0] / found.kprobe_ns[0]) - 1),
        [head, *_say(visits, samples, prices), *how],
    )


def _of_walks(traces: list[Records], found: densities.Overhead) -> Floats | None:
    """The price of a visit off the one of ``traces`` that has walks only; None: there is none, or it cannot tell."""
    dense = [these for these in traces if these.has(Kind.REMOVE_VISIT)]
    light = [these for these in traces if not these.has(*one_trace.VISITS)]
    if not dense or not light:
        return None
    return phases.visit(light[0], dense[0], found.kprobe_ns, found.tracepoint_ns)


def _visits(traces: list[Records], kprobe_ns: float, tracepoint_ns: float) -> tuple[dict[str, _Visit], dict[str, int]]:
    """Gaps after visits that find nothing, by operation, from the first trace with enough of them; and how many."""
    rough = {Source.TRACEPOINT: tracepoint_ns, Source.KPROBE: kprobe_ns, Source.KRETPROBE: kprobe_ns}
    found: dict[str, _Visit] = {}
    samples: dict[str, int] = {}
    for kind, op in one_trace.VISITS.items():
        for these in traces:
            gaps = one_trace.visit_gaps(these, kind, rough)
            samples[op] = max(samples.get(op, 0), len(gaps.single_ns))
            if gaps.enough:
                found[op] = _Visit(*one_trace.usual(op, these, gaps), float(gaps.single_ns.sum()), samples[op])
                break
    return found, samples


def _prices(probe: Floats, tracepoint: Floats, visits: dict[str, Floats]) -> Prices:
    overhead = {Source.TRACEPOINT: tracepoint, Source.KPROBE: probe, Source.KRETPROBE: probe}
    update = np.maximum(uncertain("update", *UPDATE_SHARE), 0.0) * probe
    return Prices(overhead, {**visits, UPDATE: update, CHECK: update})


def _say(visits: dict[str, _Visit], samples: dict[str, int], prices: dict[str, Floats]) -> list[str]:
    said = []
    for op, n in samples.items():
        if op not in visits:
            said.append(f"{miss(op)}: not priced, {n} gaps of the {MIN_SAMPLES} it takes")
            continue
        low, high = np.percentile(prices[miss(op)], (5, 95))
        said.append(
            f"{miss(op)}: {prices[miss(op)][0]:.0f} ns ({low:.0f} to {high:.0f}) "
            f"of a gap of {visits[op].usual_ns[0]:.0f} ns with one probe in it ({n} gaps)"
        )
    return said


def _tracepoint_share(*traces: Records) -> Floats:
    """float64[DRAWS]: what a tracepoint costs in probes, as the first of ``traces`` that can tell has it."""
    for these in traces:
        near = one_trace.neighbours(these)
        if not isinstance(near, int):
            probe = one_trace.PROBE_SHARE[0] * near.gap_ns
            return np.clip(one_trace.tracepoint_ns(these, probe) / probe, 0.1, 1.0)
    return np.clip(uncertain("tracepoint share", *one_trace.TRACEPOINT_IN_PROBES), 0.1, 1.0)
