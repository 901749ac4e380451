"""Two traces, or two results, side by side: ``tracekit compare``.

Whether calls of one name took another time in B than in A is asked by a permutation test of their ranks (Mann and
Whitney's), exact where all ways to deal them out can be gone through. It says how often chance alone would do as much,
and with few calls it cannot say that anything is beyond chance: the least p that was possible stands beside it.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit import pipeline, policies
from tracekit.costs import CostModel, calibrate, untraced_ns
from tracekit.errors import TableError, UsageError
from tracekit.machine.replay import Replay, replay
from tracekit.predict import Asked, enclosing, predict, spared_by_call
from tracekit.result import SUMMARY, open_result
from tracekit.trace import Trace

Floats = npt.NDArray[np.float64]

_DEALS = 20_000
_SEED = 20_251_121
_WORD = {"batched_zap": "rule", "batched_unmap": "rule", "batched_migrate_unmap": "rule", "single_trylock": "rule"}


class Side(NamedTuple):
    """One of the two: a trace with what was made of it, or the summary of a result (then ``trace`` is None)."""

    path: Path
    document: dict[str, Any]
    trace: Trace | None = None
    facts: Replay | None = None
    costs: CostModel | None = None


def compare(
    a: Path, b: Path, specs: Sequence[str] = (), progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Compare ``b`` with ``a``: operations, calls, and what the policies ``specs`` predict from ``a`` against ``b``.

    Without ``specs`` those are predicted that the kernel of ``b`` has and that of ``a`` has not, where they matter.

    Raises:
        TracekitError: see ``pipeline.load`` and ``open_result``.
        UsageError: one is a trace and the other a result, or a policy is asked for of two results.
    """
    is_result = [_is_result(path) for path in (a, b)]
    if is_result[0] != is_result[1]:
        raise UsageError(f"{a} and {b}: one is a result and the other a trace; compare like with like")
    if all(is_result) and specs:
        raise UsageError(f"{a}: --policy needs traces; these results were made with theirs")
    one, other = (_side(path, is_result[0], progress) for path in (a, b))
    return {
        "schema": "tracekit/compare/1",
        "a": _head(one),
        "b": _head(other),
        "operations": _operations(one, other),
        "calls": _calls(one, other),
        "predictions": [] if one.facts is None else _predictions(one, other, specs),
    }


def _is_result(path: Path) -> bool:
    return (path / SUMMARY).is_file() or path.name == SUMMARY


def _side(path: Path, is_result: bool, progress: Callable[[int, int], None] | None) -> Side:
    if is_result:
        return Side(path, open_result(path).document)
    trace = pipeline.load(path, progress=progress)
    facts = replay(trace)
    document = {"trace": trace.manifest, "fidelity": facts.fidelity}
    return Side(path, document, trace, facts, calibrate(facts))


def _head(side: Side) -> dict[str, Any]:
    trace = side.document["trace"]
    has = (
        {name: one["variant"] for name, one in trace["kernel_has"].items()}
        if side.facts is None
        else {name: one.variant for name, one in side.facts.kernel_has.items()}
    )
    return {
        "path": str(side.path),
        "source": trace["source"]["name"],
        "release": trace["machine"]["release"],
        "clock": trace["clock"]["name"],
        "fidelity": side.document["fidelity"],
        "kernel_has": has,
    }


def _operations(a: Side, b: Side) -> dict[str, dict[str, int]]:
    counts = [_counts(side) for side in (a, b)]
    return {
        op: {"a": counts[0].get(op, 0), "b": counts[1].get(op, 0)} for op in sorted(counts[0].keys() | counts[1].keys())
    }


def _counts(side: Side) -> dict[str, int]:
    if side.facts is not None:
        return dict(side.facts.operations.group_by(pl.col("op").cast(pl.String)).len().iter_rows())
    as_traced = side.document["policies"][0]
    if not as_traced["judgeable"]:
        raise TableError(f"{side.path}: not a result: as_traced was not judged; make it anew with tracekit replay -o")
    return {op: count["traced"] for op, count in as_traced["operations"].items()}


def _calls(a: Side, b: Side) -> list[dict[str, Any]]:
    sides = [_durations(side) for side in (a, b)]
    found = []
    for name in sorted(sides[0].keys() | sides[1].keys()):
        one, other = (side.get(name) for side in sides)
        row: dict[str, Any] = {"call": name, "a": _distribution(one), "b": _distribution(other)}
        each = [None if these is None else these.untraced for these in (one, other)]
        row["significance"] = None if each[0] is None or each[1] is None else _significance(each[0], each[1])
        row["ratio"] = _ratio(one, other)
        found.append(row)
    return found


class _Durations(NamedTuple):
    """Of the calls of one name: how many, ns of all together, and of each less the tracing; None: not known."""

    n: int
    traced_ns: float | None
    untraced: Floats | None


def _durations(side: Side) -> dict[str, _Durations]:
    if side.facts is None:
        calls = side.document["policies"][0]["calls"]
        return {call["call"]: _Durations(call["n"], call["traced_ns"], None) for call in calls}
    found = {}
    good = _worked(side.facts)
    for (name,), calls in good.group_by("name", maintain_order=True):
        prices = side.costs.prices if side.costs else None
        each = None if prices is None else np.maximum(untraced_ns(calls, prices)[:, 0], 0.0)
        found[str(name)] = _Durations(len(calls), float(calls["duration_ns"].sum()), each)
    return found


def _worked(facts: Replay) -> pl.DataFrame:
    """The named calls with both ends seen, nothing lost and an operation in them."""
    used = enclosing(facts, facts.operations.select("call"))
    named = facts.calls.filter(pl.col("is_named"), ~pl.col("lost"), pl.col("end_row").is_not_null())
    return named.join(used, on="call", how="semi", maintain_order="left")


def _distribution(these: _Durations | None) -> dict[str, Any] | None:
    if these is None:
        return None
    quantiles = None
    if these.untraced is not None:
        low, median, high = np.percentile(these.untraced, (10, 50, 90))
        quantiles = {"p10": round(float(low)), "median": round(float(median)), "p90": round(float(high))}
    return {"n": these.n, "traced_ns": these.traced_ns, "untraced_ns": quantiles}


def _ratio(a: _Durations | None, b: _Durations | None) -> float | None:
    """Usual untraced duration in B over that in A; of results, mean traced duration."""
    if a is None or b is None:
        return None
    if a.untraced is not None and b.untraced is not None:
        one, other = float(np.median(a.untraced)), float(np.median(b.untraced))
    else:
        one, other = ((these.traced_ns or 0.0) / max(these.n, 1) for these in (a, b))
    return round(other / one, 4) if one else None


def _significance(a: Floats, b: Floats) -> dict[str, Any]:
    """The p of the ranks, two-sided, and the least that these numbers of calls could have shown."""
    ranks = _ranks(np.concatenate([a, b]))
    n, total = len(a), len(a) + len(b)
    middle = n * (total + 1) / 2
    seen = abs(float(ranks[:n].sum()) - middle)
    ways = comb(total, n)
    if ways <= _DEALS:
        sums = np.array([ranks[list(some)].sum() for some in combinations(range(total), n)])
        p = float(np.mean(np.abs(sums - middle) >= seen - 1e-9))
    else:
        random = np.random.default_rng(_SEED)
        sums = np.array([random.permutation(ranks)[:n].sum() for _ in range(_DEALS)])
        p = (1 + float(np.sum(np.abs(sums - middle) >= seen - 1e-9))) / (_DEALS + 1)
    least = 2 / ways if ways <= _DEALS else 1 / (_DEALS + 1)
    return {"p": p, "least_p": min(least, 1.0), "exact": ways <= _DEALS}


def _ranks(values: Floats) -> Floats:
    """Ranks from 1, ties sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared: Floats = (ends - (counts - 1) / 2)[inverse]
    return shared


def _predictions(a: Side, b: Side, specs: Sequence[str]) -> list[dict[str, Any]]:
    """What each policy predicts from A for each call, beside B's time over A's."""
    assert a.facts is not None
    assert b.facts is not None
    assert a.costs is not None
    shown = {call["call"]: call for call in _calls(a, b)}
    found = []
    for spec in specs or _gained(a.facts, b.facts):
        name, policy = policies.parse(spec)
        judgement = policies.judge(name, policy, a.facts.operations)
        changed = enclosing(a.facts, spared_by_call(a.facts, judgement).select("call"))
        worked = _worked(a.facts)
        asked = worked if specs else worked.join(changed, on="call", how="semi", maintain_order="left")
        for (call,), calls in asked.group_by("name", maintain_order=True):
            prediction = predict(a.facts, Asked(judgement), a.costs, calls)
            ratio = prediction.ratio
            seen = shown[str(call)]["ratio"]
            found.append(
                {
                    "policy": spec,
                    "call": str(call),
                    "ratio": None if ratio is None else {key: round(end, 4) for key, end in ratio._asdict().items()},
                    "reason": prediction.reason,
                    "shown": seen,
                    "covered": None if ratio is None or seen is None else ratio.low <= seen <= ratio.high,
                }
            )
    return found


def _gained(a: Replay, b: Replay) -> list[str]:
    """The policies that the kernel of ``b`` has and that of ``a`` has otherwise, both seen in the traces or known."""
    return [
        f"{policy}:{_WORD[policy]}={has.variant}"
        for policy, has in b.kernel_has.items()
        if policy in _WORD
        and policy in a.kernel_has
        and has.variant
        and a.kernel_has[policy].variant not in (None, has.variant)
    ]


def text(document: dict[str, Any]) -> str:
    """``document`` of ``compare`` for a terminal."""
    lines = []
    for side, head in (("A", document["a"]), ("B", document["b"])):
        kernel, clock = head["release"] or "unknown", head["clock"] or "unknown"
        lines.append(f"{side}  {head['path']}: kernel {kernel}, clock {clock}, {head['fidelity']}")
    lines += ["", f"{'operation':<34} {'A':>12} {'B':>12}"]
    lines += [f"{op:<34} {count['a']:>12,} {count['b']:>12,}" for op, count in document["operations"].items()]
    lines += [
        "",
        f"{'call':<20} {'n A':>5} {'n B':>5} {'usual ms A':>12} {'usual ms B':>12} {'B / A':>7}  could it be chance",
    ]
    lines += [_call_line(call) for call in document["calls"]]
    if document["predictions"]:
        lines += ["", f"{'predicted from A':<34} {'call':<16} {'ratio (90 %)':<22} {'B / A':>7}"]
        lines += [_prediction_line(one) for one in document["predictions"]]
    return "\n".join(lines)


def _call_line(call: dict[str, Any]) -> str:
    a, b = call["a"], call["b"]
    ratio = "–" if call["ratio"] is None else f"{call['ratio']:.3f}"
    numbers = [f"{side['n']:>5}" if side else f"{'–':>5}" for side in (a, b)]
    times = f"{_usual(a):>12} {_usual(b):>12} {ratio:>7}"
    return f"{call['call']:<20} {' '.join(numbers)} {times}  {_chance(call['significance'])}"


def _usual(side: dict[str, Any] | None) -> str:
    if side is None or (side["untraced_ns"] is None and side["traced_ns"] is None):
        return "–"
    if side["untraced_ns"] is None:
        return f"{side['traced_ns'] / max(side['n'], 1) / 1e6:.3f}*"
    return f"{side['untraced_ns']['median'] / 1e6:.3f}"


def _chance(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not tested"
    if found["least_p"] > 0.05:
        return f"too few calls to tell: p = {found['p']:.2f}, at the least {found['least_p']:.2f}"
    return f"p = {found['p']:.4f} ({'exact' if found['exact'] else 'sampled'})"


def _prediction_line(one: dict[str, Any]) -> str:
    ratio = one["ratio"]
    said = one["reason"] if ratio is None else f"{ratio['median']:.3f} ({ratio['low']:.3f} – {ratio['high']:.3f})"
    shown = "–" if one["shown"] is None else f"{one['shown']:.3f}"
    return f"{one['policy']:<34} {one['call']:<16} {said:<22} {shown:>7}"
