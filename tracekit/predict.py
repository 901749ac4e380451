"""Judgements × prices → predicted time, call by call, with the interval and the reason where there is no number."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.costs import CostModel, Prices, untraced_ns
from tracekit.machine.replay import Replay
from tracekit.policies import Judgement

Floats = npt.NDArray[np.float64]

# What remains when the prices are right: ± this much of the ratio (ACCURACY.md, interval of one trace)
RATIO_MARGIN = 0.015


class Interval(NamedTuple):
    """A 90 % interval and its middle."""

    low: float
    median: float
    high: float


class Prediction(NamedTuple):
    """Time of a set of calls under a policy.

    Attributes:
        n: calls in the set.
        priced: how many of them could be priced: both ends seen, no event lost inside.
        traced_ns: their duration as traced, tracing included.
        untraced: their duration less the tracing.
        policy: the same under the policy.
        ratio: policy / untraced.
        reason: why there is no ratio; None if there is one.
    """

    n: int
    priced: int
    traced_ns: int | None
    untraced: Interval | None
    policy: Interval | None
    ratio: Interval | None
    reason: str | None


def predict(replay: Replay, judgement: Judgement, costs: CostModel, calls: pl.DataFrame) -> Prediction:
    """Predict the time that ``calls`` (rows of ``replay.calls``) take together under the judged policy.

    Calls touched by a loss, and those whose end was not seen, are left out of both sides.
    """
    good = calls.filter(~pl.col("lost") & pl.col("end_row").is_not_null())
    traced = int(good["duration_ns"].sum()) if len(good) else None
    spared = spared_by_call(replay, judgement).join(enclosed(replay, good), on="call", how="semi")
    counts = {op: int(n) for op, n in spared.group_by("op").agg(pl.col("count").sum()).iter_rows() if n}

    def refuse(reason: str) -> Prediction:
        return Prediction(len(calls), len(good), traced, None, None, None, reason)

    if not len(good):
        return refuse("no call with both ends seen and no event lost")
    if costs.best is None or costs.cheap is None or costs.dear is None:
        return refuse(costs.how[0])
    unpriced = sorted(op for op in counts if op != "counter.update" and op not in costs.best.visit_ns)
    if unpriced:
        return refuse(f"no price in this trace for {', '.join(unpriced)}")
    both = [_price(counts, prices, good) for prices in (costs.best, costs.cheap, costs.dear)]
    if any(saved >= untraced for untraced, saved in both):
        return refuse("void: the estimated tracing overhead leaves less time than the policy would save")
    ratios = [1 - saved / untraced for untraced, saved in both]
    untraced = Interval(*_spread([untraced for untraced, _ in both]))
    policy = Interval(*_spread([untraced - saved for untraced, saved in both]))
    low, median, high = _spread(ratios)
    margin = RATIO_MARGIN if counts else 0.0  # where nothing changes the ratio is 1, whatever the prices
    ratio = Interval(max(0.0, low - margin), median, high + margin)
    return Prediction(len(calls), len(good), traced, untraced, policy, ratio, None)


def spared_by_call(replay: Replay, judgement: Judgement) -> pl.DataFrame:
    """(call, op, count): operations spared, positive, and added, negative; none from an episode that is harmed."""
    spared = 1 - judgement.executed
    if judgement.harmed is not None:
        spared = np.where(judgement.harmed, 0, spared)
    ops = replay.operations.select("call", "op").with_columns(pl.col("op").cast(pl.String))
    parts = [ops.with_columns(count=pl.Series(spared))]
    parts += [
        ops.with_columns(count=pl.Series(-count), op=pl.lit(name)).filter(pl.col("count") != 0)
        for name, count in judgement.added.items()
    ]
    return pl.concat(parts).filter(pl.col("count") != 0).group_by("call", "op").agg(pl.col("count").sum())


def enclosed(replay: Replay, calls: pl.DataFrame) -> pl.DataFrame:
    """(call): ``calls`` and every call inside one of them."""
    all_calls = replay.calls.select("call", "parent")
    inside = set(calls["call"].to_list())
    for call, parent in all_calls.iter_rows():  # parents come before children
        if parent in inside:
            inside.add(call)
    return pl.DataFrame({"call": sorted(inside)}, schema={"call": pl.Int64})


def enclosing(replay: Replay, calls: pl.DataFrame) -> pl.DataFrame:
    """(call): the calls of ``calls`` and all those around them."""
    parents = replay.calls["parent"].to_list()
    around: set[int] = set()
    for start in calls["call"].drop_nulls().to_list():
        call: int | None = start
        while call is not None and call not in around:
            around.add(call)
            call = parents[call]
    return pl.DataFrame({"call": sorted(around)}, schema={"call": pl.Int64})


def _price(counts: dict[str, int], prices: Prices, calls: pl.DataFrame) -> tuple[float, float]:
    """Untraced time of ``calls`` and the time saved in them, ns."""
    costs = {**prices.visit_ns, "counter.update": prices.update_ns}
    saved = sum(count * costs[op] for op, count in counts.items())
    return float(np.nansum(untraced_ns(calls, prices))), float(saved)


def _spread(best_and_ends: list[float]) -> tuple[float, float, float]:
    return min(best_and_ends), best_and_ends[0], max(best_and_ends)


def as_json(prediction: Prediction) -> dict[str, Any]:
    """The fields of ``prediction`` as summary.json holds them."""

    def interval(value: Interval | None, digits: int) -> dict[str, float] | None:
        return None if value is None else {key: round(number, digits) for key, number in value._asdict().items()}

    saving = None
    if prediction.untraced is not None and prediction.ratio is not None:
        base = prediction.untraced.median
        saving = Interval(
            *(base * (1 - end) for end in (prediction.ratio.high, prediction.ratio.median, prediction.ratio.low))
        )
    return {
        "traced_ns": prediction.traced_ns,
        "time_ns": {
            "traced": interval(prediction.untraced, 0),
            "policy": interval(prediction.policy, 0),
            "saving": interval(saving, 0),
        },
        "ratio": interval(prediction.ratio, 4),
        "reason": prediction.reason,
    }
