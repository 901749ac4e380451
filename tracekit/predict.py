"""Judgements × prices → predicted time, call by call, with the interval and the reason where there is no number."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit import blocking
from tracekit.costs import CostModel, Prices
from tracekit.costs.keys import keys, sorts
from tracekit.costs.model import DRAWS, Floats, generator
from tracekit.machine.replay import Replay
from tracekit.machine.timeline import Source
from tracekit.policies import Judgement

_TAKEN = {Source.TRACEPOINT: "tracepoints", Source.KPROBE: "kprobes", Source.KRETPROBE: "kretprobes"}
_PRICED_AMOUNTS = ("gather.slot",)  # the others are part of the price of their operation
IDLE_MARGIN = 0.01  # ± of the ratio, of a policy that changes nothing here: its code is there all the same
_MOST_BLOCKS = 200  # of calls, for the bootstrap
_ALIKE = 0.02  # in their number of records: calls that do the same work
_LEAST_ACCOUNTED = 0.5  # share of the migration entries that must be explained for a number
_VOID = 0.25  # share of the draws that may leave less time than is saved


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


def likely(replay: Replay) -> pl.DataFrame | None:
    """The operations with walks taken for known that were chosen among alternatives; None: there are none."""
    ops = replay.operations
    whole = replay.episodes.filter(
        ~pl.col("known"), pl.col("try_walk").is_not_null() & pl.col("remove_walk").is_not_null()
    )
    inferred = ops.filter(pl.col("certainty") == "inferred", pl.col("position").is_not_null()).select("episode")
    chosen = whole.select("episode").join(inferred, on="episode", how="semi")["episode"]
    if chosen.is_empty():
        return None
    return ops.with_columns(known=pl.col("known") | pl.col("episode").is_in(chosen.implode()).fill_null(value=False))


class Asked(NamedTuple):
    """What is to be predicted.

    Attributes:
        judgement: of the operations that are certain.
        perhaps: of ``likely`` operations, too: the best guess, and with the certain ones the interval; None: all are.
        is_null: the policy is the kernel as it was. Any other is code that runs, even where it changes nothing.
        spared, perhaps_spared: ``spared_by_call`` of both, where they are known already (``ask``).
    """

    judgement: Judgement
    perhaps: Judgement | None = None
    is_null: bool = False
    spared: pl.DataFrame | None = None
    perhaps_spared: pl.DataFrame | None = None


def ask(replay: Replay, judgement: Judgement, perhaps: Judgement | None = None, *, is_null: bool = False) -> Asked:
    """Make ready for many predictions: what hangs on the operations alone is counted once."""
    more = None if perhaps is None else spared_by_call(replay, perhaps)
    return Asked(judgement, perhaps, is_null, spared_by_call(replay, judgement), more)


def predict(replay: Replay, asked: Asked, costs: CostModel, calls: pl.DataFrame) -> Prediction:
    """Predict the time that ``calls`` (rows of ``replay.calls``) take together under the judged policy.

    Calls touched by a loss, and those whose end was not seen, are left out of both sides.
    """
    good = calls.filter(~pl.col("lost") & pl.col("end_row").is_not_null())
    traced = int(good["duration_ns"].sum()) if len(good) else None
    times = _judged_times(replay, asked, costs, good)
    if isinstance(times, str):
        return Prediction(len(calls), len(good), traced, None, None, None, times)
    margin = 0.0 if asked.is_null else IDLE_MARGIN
    if times is None:
        return Prediction(len(calls), len(good), traced, None, None, _widened(Interval(1.0, 1.0, 1.0), margin), None)
    untraced, saved = times
    ratio = _interval(np.maximum(1 - saved / untraced, 0.0))
    # where nothing changes the ratio is 1, whatever the prices
    ratio = _widened(ratio, costs.margin if saved.any() else margin)
    return Prediction(len(calls), len(good), traced, _interval(untraced), _interval(untraced - saved), ratio, None)


def _judged_times(
    replay: Replay, asked: Asked, costs: CostModel, calls: pl.DataFrame
) -> tuple[Floats, Floats] | str | None:
    """float64[DRAWS] each: untraced time of ``calls`` and the time saved in them, ns; or why there is no number.

    None: nothing changes in them, and there are no prices.
    """
    judgement, perhaps = asked.judgement, asked.perhaps
    inside = enclosed(replay, calls)
    spared = _own(asked.spared if asked.spared is not None else spared_by_call(replay, judgement), judgement, inside)
    share = _accounted(replay, inside)
    reason = _lacking(costs, calls, spared, judgement) or _unaccounted(judgement, share)
    if reason:
        return reason
    if costs.prices is None:
        return None
    felt = _felt(replay, calls)
    untraced, saved = _times(replay, felt, spared, costs.prices)
    if perhaps is not None:
        more = asked.perhaps_spared if asked.perhaps_spared is not None else spared_by_call(replay, perhaps)
        more = _own(more, perhaps, inside).filter(pl.col("key").is_in(list(costs.prices.price_ns)))
        saved = saved + _part("perhaps", 0, 1, 1) * (_times(replay, felt, more, costs.prices)[1] - saved)
    saved = saved * _part("unaccounted", 1, 1 / share if share else 1, 1)
    if judgement.batches is not None:
        batched = blocking.saving(replay, judgement.batches, costs.prices, inside)
        if isinstance(batched, str):
            return batched
        # of all calls, while ``untraced`` is of those drawn
        whole = _untraced(felt, costs.prices)
        saved = saved + batched * np.divide(untraced, whole, out=np.ones(DRAWS), where=whole > 0)
    if saved[0] >= untraced[0] or np.mean(saved >= untraced) > _VOID:
        return "void: the estimated tracing overhead leaves less time than the policy would save"
    return untraced, saved


def _untraced(calls: pl.DataFrame, prices: Prices) -> Floats:
    """float64[DRAWS]: untraced time of all ``calls``, ns."""
    untraced: Floats = np.full(DRAWS, float(calls["duration_ns"].sum()))
    for source, column in _TAKEN.items():
        untraced = untraced - float(calls[column].sum()) * prices.overhead_ns[source]
    return untraced


def _lacking(costs: CostModel, calls: pl.DataFrame, spared: pl.DataFrame, judgement: Judgement) -> str | None:
    """Why there is no number for ``spared``; None: there is one."""
    if calls.is_empty():
        return "no call with both ends seen and no event lost"
    changed = spared.group_by("key").agg(pl.col("count").abs().sum()).filter(pl.col("count") > 0)["key"]
    if costs.prices is None:
        return costs.how[0] if len(changed) or judgement.batches is not None else None
    unpriced = sorted(set(changed.to_list()) - costs.prices.price_ns.keys())
    if not unpriced:
        return None
    return f"not priced, this trace holds none: {', '.join(unpriced)}; give a trace that does with --costs"


def _unaccounted(judgement: Judgement, share: float) -> str | None:
    """Why nothing can be said of calls of whose migration entries only ``share`` are explained."""
    changes = bool(judgement.added) or not bool(judgement.executed.all())
    if share >= _LEAST_ACCOUNTED or not changes:
        return None
    return f"only {share:.0%} of the migration entries in these calls belong to walks that could be judged"


def _part(name: str, low: float, high: float, best: float) -> Floats:
    """float64[DRAWS]: a factor anywhere between ``low`` and ``high``."""
    draws = generator(name).uniform(low, high, DRAWS)
    draws[0] = best
    return draws


def _own(spared: pl.DataFrame, judgement: Judgement, inside: pl.DataFrame) -> pl.DataFrame:
    """Rows of ``spared_by_call`` in the calls ``inside``, less what the judgement prices by itself."""
    here = spared.join(inside, on="call", how="semi")
    # what a copy in a batch takes is its own, and not that of its sort
    return here.filter(~pl.col("key").is_in(blocking.OWN)) if judgement.batches is not None else here


def _accounted(replay: Replay, inside: pl.DataFrame) -> float:
    """Share of the migration entries set in the calls ``inside`` whose folio's walks are known or were chosen."""
    sets = pl.col("op") == "migration_entry.set"
    entries = replay.operations.filter(sets).join(inside, on="call", how="semi")
    if entries.is_empty():
        return 1.0
    judged = replay.episodes.filter(pl.col("try_walk").is_not_null() & pl.col("remove_walk").is_not_null())
    return len(entries.join(judged, on="episode", how="semi")) / len(entries)


def _felt(replay: Replay, calls: pl.DataFrame) -> pl.DataFrame:
    """``calls`` with the duration and records of the one system call inside, for a mark: a mark is a little wider.

    So only where all that the mark holds of operations lies in that call.
    """
    worked = replay.operations.select("call").unique()
    inner = (
        replay.calls.filter(pl.col("kind") == "syscall", ~pl.col("lost"))
        .filter(pl.len().over("parent") == 1)
        .join(enclosing(replay, worked), on="call", how="semi")
        .select("duration_ns", *_TAKEN.values(), call="parent")
        .drop_nulls()
        .join(worked, on="call", how="anti")
    )
    is_mark = pl.col("kind") == "mark"
    return calls.join(inner, on="call", how="left", maintain_order="left", suffix="_inner").with_columns(
        pl.when(is_mark).then(pl.coalesce(f"{name}_inner", name)).otherwise(name).alias(name)
        for name in ("duration_ns", *_TAKEN.values())
    )


def _times(replay: Replay, calls: pl.DataFrame, spared: pl.DataFrame, prices: Prices) -> tuple[Floats, Floats]:
    """float64[DRAWS] each: untraced time of ``calls`` and the time saved in them, ns; a bootstrap over calls."""
    block = pl.int_range(len(calls)) * min(len(calls), _MOST_BLOCKS) // len(calls)
    facts = calls.select("duration_ns", *_TAKEN.values(), block=block).group_by("block").sum().sort("block")
    blocks = _blocks(replay, calls.select("call", block=block), spared)
    drawn = generator("calls").integers(0, len(facts), (DRAWS, len(facts)))
    drawn[0] = np.arange(len(facts))

    def total(column: pl.Series) -> Floats:
        summed: Floats = column.to_numpy().astype(np.float64)[drawn].sum(axis=1)
        return summed

    untraced = _durations(facts, drawn)
    for source, column in _TAKEN.items():
        untraced = untraced - total(facts[column]) * prices.overhead_ns[source]
    saved = np.zeros(DRAWS)
    for key in blocks["key"].unique(maintain_order=True):
        of_key = blocks.filter(pl.col("key") == key)
        counts = facts.select("block").join(of_key, on="block", how="left", maintain_order="left")["count"]
        saved = saved + total(counts.fill_null(0)) * prices.price_ns[key]
    return untraced, saved


def _durations(facts: pl.DataFrame, drawn: npt.NDArray[np.int64]) -> Floats:
    """float64[DRAWS]: summed duration; where all the calls did the same, the usual one's: the first is often cold."""
    duration = facts["duration_ns"].to_numpy().astype(np.float64)[drawn]
    records = facts.select(pl.sum_horizontal(_TAKEN.values())).to_series().to_numpy()
    # of two neither is the usual one
    alike = len(facts) > 2 and float(np.ptp(records)) <= _ALIKE * float(records.max())
    summed: Floats = np.median(duration, axis=1) * len(facts) if alike else duration.sum(axis=1)
    return summed


def _blocks(replay: Replay, outer: pl.DataFrame, spared: pl.DataFrame) -> pl.DataFrame:
    """(block, key, count): what is spared in each block of calls, with what they enclose."""
    parent = dict(replay.calls.select("call", "parent").iter_rows())
    block = dict(outer.iter_rows())

    def of(call: int | None) -> int | None:
        while call is not None and call not in block:
            call = parent[call]
        return None if call is None else block[call]

    of_call = {call: of(call) for call in spared["call"].unique().to_list()}
    return (
        spared.with_columns(block=pl.col("call").replace_strict(of_call, return_dtype=pl.Int64))
        .group_by("block", "key", maintain_order=True)
        .agg(pl.col("count").sum())
        .sort("key", "block")
    )


def _interval(draws: Floats) -> Interval:
    low, high = np.percentile(draws, (5, 95))
    best = float(draws[0])
    return Interval(min(float(low), best), best, max(float(high), best))


def _widened(ratio: Interval, margin: float) -> Interval:
    """With what remains when the prices are right; independent of them, so squares add."""
    low, best, high = ratio
    return Interval(
        max(0.0, best - float(np.hypot(best - low, margin))), best, best + float(np.hypot(high - best, margin))
    )


def spared_by_call(replay: Replay, judgement: Judgement) -> pl.DataFrame:
    """(call, key, count): operations spared, positive, and added, negative, by price; none from an episode harmed."""
    spared = 1 - judgement.executed
    if judgement.harmed is not None:
        spared = np.where(judgement.harmed, 0, spared)
    ops = sorts(replay)
    own = judgement.added | {name: more for name, more in judgement.amounts.items() if name in _PRICED_AMOUNTS}
    parts = [ops.select("call", key=keys(), count=pl.Series(spared))]
    parts += [ops.select("call", key=keys(name), count=pl.Series(-more)) for name, more in own.items()]
    return (
        pl.concat([part.filter(pl.col("count") != 0) for part in parts])
        .group_by("call", "key", maintain_order=True)
        .agg(pl.col("count").sum())
    )


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
