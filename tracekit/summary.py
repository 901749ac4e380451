"""Replay, judgements and prices → the one summary that every report prints (schemas/summary.schema.json)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from tracekit import blocking, recording
from tracekit.costs import CostModel
from tracekit.exposure import exposure
from tracekit.machine import operations, selfcheck
from tracekit.machine.replay import Replay
from tracekit.policies import Chosen, Judgement
from tracekit.predict import Asked, Prediction, as_json, ask, enclosed, enclosing, predict
from tracekit.trace import Trace

SCHEMA = "tracekit/summary/1"
OPEN_LOOP = "Replay is open-loop: what a policy saves does not change what the program does next."
_NO_CALL = "all that it changes lies outside any recorded call: record the system calls, too, or marks around the work"
# What a summary repeats of the manifest
_FACTS = ("source", "machine", "clock", "time_range_ns", "fidelity", "lost", "truncated")


class Judged(NamedTuple):
    """A policy, as asked for on the command line, and what it made of the operations; None: events are missing.

    perhaps: what it made of those that are likely, too (``predict.likely``); None: all are certain.
    """

    chosen: Chosen
    judgement: Judgement | None
    perhaps: Judgement | None = None


def summarise(trace: Trace, replay: Replay, costs: CostModel, judged: Sequence[Judged]) -> dict[str, Any]:
    """The summary as a JSON document."""
    return {
        "schema": SCHEMA,
        "trace": {key: trace.manifest.get(key) for key in _FACTS}
        | {"kernel_has": {name: has._asdict() for name, has in replay.kernel_has.items()}},
        "fidelity": replay.fidelity,
        "coverage": coverage(replay),
        "episodes": {"all": len(replay.episodes), "judged": int(replay.episodes["known"].sum())},
        "anomalies": {**trace.manifest["anomalies"], **replay.anomalies},
        "as_traced": {"operations_reproduced": _reproduced(replay), "time_residual": _rounded(costs.residual)},
        "self_check": selfcheck.document(selfcheck.self_check(trace, replay)),
        "costs": {"samples": costs.samples, "how": costs.how},
        "note": OPEN_LOOP,
        "policies": [_policy(trace, replay, costs, one) for one in judged],
    }


def has_already(replay: Replay, chosen: Chosen) -> bool:
    """Whether the traced kernel has the very variant."""
    variant = getattr(chosen.policy, "variant", None)
    return (
        variant is not None and chosen.name in replay.kernel_has and replay.kernel_has[chosen.name].variant == variant
    )


def _is_null(replay: Replay, chosen: Chosen) -> bool:
    """Whether the policy is, beyond doubt, the kernel as it was: its release alone leaves one."""
    return chosen.name == "as_traced" or (
        has_already(replay, chosen) and replay.kernel_has[chosen.name].source in ("trace", "given")
    )


def why_not(replay: Replay, chosen: Chosen) -> str | None:
    """Why the kernel's own variant cannot be undone, to be judged with another; None: it can, or there is none."""
    own = replay.kernel_has.get(chosen.name)
    if own is None or own.variant in (None, "none") or has_already(replay, chosen):
        return None
    if getattr(chosen.policy, "undoes", True):
        return None
    return (
        f"the traced kernel has {chosen.name}={own.variant}: what it spared left no trace to judge another variant by"
    )


def coverage(replay: Replay) -> float | None:
    """Share of episodes in which both walks were seen and nothing was lost; None: no episode."""
    return _rounded(replay.episodes["known"].mean() if len(replay.episodes) else None)


def _reproduced(replay: Replay) -> float | None:
    """Share of the entries set and restored in the trace that a replayed visit explains; None: no visits to replay."""
    if replay.fidelity == "counts":
        return None
    entries = replay.operations.filter(pl.col("op").is_in(["migration_entry.set", "migration_entry.restore"]))
    return _rounded(entries["vma"].is_not_null().mean() if len(entries) else None)


def _rounded(value: Any) -> float | None:  # noqa: ANN401 -- polars' mean() has half a dozen types
    return None if value is None else round(float(value), 6)


def _policy(trace: Trace, replay: Replay, costs: CostModel, judged: Judged) -> dict[str, Any]:
    judgement = judged.judgement
    head = {
        "name": judged.chosen.name,
        "spec": judged.chosen.spec,
        "params": judged.chosen.params,
        "judgeable": judgement is not None,
        "kernel_has": has_already(replay, judged.chosen),
    }
    if judgement is None and (undone := why_not(replay, judged.chosen)):
        return {**head, "reason": undone, "record": None}
    if judgement is None:
        lacking = recording.missing(trace, judged.chosen.policy.needs)
        reason = "needs VMA visits, which --fidelity counts hides"
        if lacking:
            reason = f"the trace has no {', '.join(lacking)}"
        elif recording.unrecorded(trace, judged.chosen.policy.needs):
            reason = "needs VMA visits: they were not recorded, and are not reconstructed at fidelity counts"
        return {**head, "reason": reason, "record": recording.record_command() if lacking else None}
    counted = _counted(replay, judgement)
    used = enclosing(replay, replay.operations.select("call"))
    asked = ask(replay, judgement, judged.perhaps, is_null=_is_null(replay, judged.chosen))
    assert asked.spared is not None
    changed = enclosing(replay, asked.spared.select("call"))
    outermost = replay.calls.filter(pl.col("parent").is_null())
    touched = outermost.join(changed if len(changed) else used, on="call", how="semi")
    worked = replay.calls.filter("is_named").join(used, on="call", how="semi", maintain_order="left")
    if len(asked.spared) and changed.is_empty():
        total = as_json(Prediction(0, 0, None, None, None, None, _NO_CALL))
    else:
        total = as_json(predict(replay, asked, costs, touched))
    return {
        **head,
        "reason": total["reason"],
        "operations": _operations(replay, counted, None),
        "time_ns": total["time_ns"],
        "ratio": total["ratio"],
        "calls": [
            {**_call(replay, asked, costs, str(key[0]), calls), "operations": _operations(replay, counted, calls)}
            for key, calls in worked.group_by("name", maintain_order=True)
        ],
        "unsafe": judgement.unsafe,
        "losses": judgement.losses,
        "open": judgement.open,
        "exposed": exposure(replay, judgement),
        "blocking": _blocking(replay, judgement, costs),
    }


def _blocking(replay: Replay, judgement: Judgement, costs: CostModel) -> dict[str, Any] | None:
    """How long folios stay blocked; None: the policy copies as the kernel did, or is a bound."""
    if judgement.batches is None or judgement.batches.is_free:
        return None
    if costs.prices is None:
        return blocking.as_json(costs.how[0])
    return blocking.as_json(blocking.blocking(replay, judgement.batches, costs.prices))


def _call(replay: Replay, asked: Asked, costs: CostModel, name: str, calls: pl.DataFrame) -> dict[str, Any]:
    prediction = predict(replay, asked, costs, calls)
    return {
        "call": name,
        "n": prediction.n,
        "priced": prediction.priced,
        "nested": calls["parent"].null_count() < len(calls),
        **as_json(prediction),
    }


def _counted(replay: Replay, judgement: Judgement) -> pl.DataFrame:
    """(call, op, traced, policy): operations, and the amounts that they bring with them, call by call."""
    ops = replay.operations.select("call", pl.col("op").cast(pl.String)).with_columns(
        traced=pl.lit(1, pl.Int64), policy=pl.Series(judgement.executed)
    )
    parts = [ops.group_by("call", "op").agg(pl.col("traced", "policy").sum())]
    for name, count in judgement.added.items():
        own = ops.select("call", op=pl.lit(name), traced=pl.lit(0, pl.Int64), policy=pl.Series(count))
        parts.append(own.filter(pl.col("policy") != 0))
    traced = operations.amounts(replay.operations).with_columns(ops["call"]).group_by("call").sum()
    parts.append(
        traced.unpivot(index="call", variable_name="op", value_name="traced").with_columns(policy=pl.col("traced"))
    )
    for name, change in judgement.amounts.items():
        parts.append(ops.select("call", op=pl.lit(name), traced=pl.lit(0, pl.Int64), policy=pl.Series(change)))
    counted = pl.concat(parts).group_by("call", "op").agg(pl.col("traced", "policy").sum())
    return counted.filter((pl.col("traced") != 0) | (pl.col("policy") != 0))


def _operations(replay: Replay, counted: pl.DataFrame, calls: pl.DataFrame | None) -> dict[str, dict[str, int]]:
    """Operation → how often as traced and under the policy, in ``calls`` and what they enclose, or in all."""
    if calls is not None:
        counted = counted.join(enclosed(replay, calls), on="call", how="semi")
    total = counted.group_by("op").agg(pl.col("traced", "policy").sum()).sort("op")
    return {op: {"traced": traced, "policy": policy} for op, traced, policy in total.iter_rows()}
