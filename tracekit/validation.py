"""Predictions beside measurements: every ``spec.json`` below some folders, predicted from the files it allows."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tracekit import pipeline
from tracekit.errors import TracekitError, UsageError

_ASKED = {"trace", "policy", "costs", "call", "measured_ratio", "clock"}  # what each prediction in a spec.json says


class Row(NamedTuple):
    """One prediction that a spec.json asks for; ratios without a unit, error in points (hundredths of a ratio)."""

    config: str
    trace: str
    policy: str
    call: str
    clock: str
    fidelity: str | None
    low: float | None
    predicted: float | None
    high: float | None
    measured: float
    error: float | None
    covered: bool | None
    reason: str | None


def validate(dirs: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[Row]:
    """Predict every configuration below ``dirs``.

    Raises:
        UsageError: there is no spec.json, or one that cannot be understood.
    """
    specs = sorted(spec for folder in dirs for spec in folder.rglob("spec.json"))
    if not specs:
        raise UsageError(f"{', '.join(map(str, dirs))}: no spec.json below")
    rows = []
    for done, spec in enumerate(specs):
        if progress:
            progress(done, len(specs))
        config, asked = _read(spec)
        rows += [_predict(spec.parent, config, one) for one in asked]
    if progress:
        progress(len(specs), len(specs))
    return rows


def _read(spec: Path) -> tuple[str, list[dict[str, Any]]]:
    """The configuration's name and what is asked of it."""
    try:
        content = json.loads(spec.read_text())
        config, asked = content["config"], content["predictions"]
        lacking = {key for one in asked for key in _ASKED - one.keys()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{spec}: cannot be understood: {error!r}") from error
    if lacking:
        raise UsageError(f"{spec}: a prediction lacks {', '.join(sorted(lacking))}")
    return config, asked


def _predict(folder: Path, config: str, asked: dict[str, Any]) -> Row:
    """One row; a prediction that cannot be made has its reason."""
    found: dict[str, Any] = {}
    fidelity, reason = None, None
    try:
        trace = pipeline.load(folder / asked["trace"])
        result = pipeline.run(trace, [asked["policy"]], costs=[folder / path for path in asked["costs"]])
        fidelity = result.document["fidelity"]
        policy = result.document["policies"][-1]
        call = next((call for call in policy.get("calls", []) if call["call"] == asked["call"]), None)
        found = (call or {}).get("ratio") or {}
        reason = None if found else (call or policy).get("reason") or f"no call {asked['call']} in the trace"
    except TracekitError as fault:
        reason = str(fault)
    measured, median = asked["measured_ratio"], found.get("median")
    error = None if median is None else 100 * abs(median - measured) / max(1.0, measured)
    covered = None if median is None else found["low"] <= measured <= found["high"]
    ratios = (found.get("low"), median, found.get("high"))
    head = (config, asked["trace"], asked["policy"], asked["call"], asked["clock"], fidelity)
    return Row(*head, *ratios, measured, error, covered, reason)


def document(rows: list[Row]) -> dict[str, Any]:
    """The accuracy table as JSON."""
    return {"schema": "tracekit/accuracy/1", "predictions": [row._asdict() for row in rows], "all": _overall(rows)}


def text(rows: list[Row]) -> str:
    """The accuracy table for a terminal; what was not predicted is listed by reason."""
    lines = [
        f"{'config':<34} {'trace':<18} {'policy':<36} {'call':<12} predicted (90 %)       measured  error  covered"
    ]
    for row in rows:
        if row.predicted is not None:
            interval = f"{row.predicted:.3f} ({row.low:.3f} – {row.high:.3f})"
            lines.append(
                f"{row.config:<34} {row.trace:<18} {row.policy:<36} {row.call:<12} {interval:<22} {row.measured:8.3f} "
                f"{row.error:6.1f}  {'yes' if row.covered else 'no'}"
            )
    overall = _overall(rows)
    if overall["predicted"]:
        lines.append(
            f"{overall['predicted']} predictions: error {overall['median_error']:.1f} points in the median, "
            f"{overall['worst_error']:.1f} at worst; the interval covered {overall['covered']}"
        )
    reasons: dict[str, list[Row]] = {}
    for row in rows:
        if row.predicted is None:
            reasons.setdefault(_general(row), []).append(row)
    lines += [f"{len(group)} not predicted: {reason}" for reason, group in sorted(reasons.items())]
    return "\n".join(lines)


def _general(row: Row) -> str:
    """The reason without the path in front, so that equal reasons are counted together."""
    return (row.reason or "").rsplit(row.trace + ": ", 1)[-1]


def _overall(rows: list[Row]) -> dict[str, Any]:
    errors = [row.error for row in rows if row.error is not None]
    return {
        "asked": len(rows),
        "predicted": len(errors),
        "median_error": statistics.median(errors) if errors else None,
        "worst_error": max(errors, default=None),
        "covered": sum(1 for row in rows if row.covered),
    }
