"""Predictions beside measurements: every ``spec.json`` below some folders, predicted from the files it allows."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tracekit import pipeline
from tracekit.errors import OutputError, TracekitError, UsageError

_ASKED = {"trace", "policy", "costs", "call", "measured_ratio", "clock"}  # what each prediction in a spec.json says


class Row(NamedTuple):
    """One prediction that a spec.json asks for; ratios without a unit, error in points (hundredths of a ratio).

    Attributes:
        costs: the other traces that prices may come from.
        fidelity: what the operations rest on.
        low, predicted, high: the ratio; None: refused, for ``reason``.
        error: |predicted - measured| / max(1, measured).
        width: high - low, in points likewise.
    """

    config: str
    trace: str
    policy: str
    costs: list[str]
    call: str
    clock: str
    fidelity: str | None
    low: float | None
    predicted: float | None
    high: float | None
    measured: float
    error: float | None
    width: float | None
    covered: bool | None
    reason: str | None


def validate(
    dirs: Sequence[Path], progress: Callable[[int, int], None] | None = None, *, fidelity: str | None = None
) -> list[Row]:
    """Predict every configuration below ``dirs``.

    Args:
        dirs: folders with spec.json files below them.
        progress: is told how many of them are done.
        fidelity: use no more than that; a trace that does not allow it is not predicted.

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
        rows += [_predict(spec.parent, config, one, fidelity) for one in asked]
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


def _predict(folder: Path, config: str, asked: dict[str, Any], fidelity: str | None) -> Row:
    """One row; a prediction that cannot be made has its reason."""
    found: dict[str, Any] = {}
    level, reason = None, None
    try:
        trace = pipeline.load(folder / asked["trace"])
        others = [folder / path for path in asked["costs"]]
        result = pipeline.run(trace, [asked["policy"]], fidelity=fidelity, costs=others)
        level = result.document["fidelity"]
        policy = result.document["policies"][-1]
        call = next((call for call in policy.get("calls", []) if call["call"] == asked["call"]), None)
        found = (call or {}).get("ratio") or {}
        reason = None if found else (call or policy).get("reason") or f"no call {asked['call']} in the trace"
    except TracekitError as fault:
        reason = str(fault)
    measured, median = asked["measured_ratio"], found.get("median")
    scale = 100 / max(1.0, measured)
    error = None if median is None else scale * abs(median - measured)
    width = None if median is None else scale * (found["high"] - found["low"])
    covered = None if median is None else found["low"] <= measured <= found["high"]
    ratios = (found.get("low"), median, found.get("high"))
    head = (config, asked["trace"], asked["policy"], asked["costs"], asked["call"], asked["clock"], level)
    return Row(*head, *ratios, measured, error, width, covered, reason)


def document(rows: list[Row]) -> dict[str, Any]:
    """The accuracy table as JSON (schemas/accuracy.schema.json)."""
    return {
        "schema": "tracekit/accuracy/1",
        "predictions": [row._asdict() for row in rows],
        "classes": [
            {"policy": policy, "prices": prices, "fidelity": level, "clock": clock, **_overall(some)}
            for (policy, prices, level, clock), some in _classes(rows).items()
        ],
        "all": _overall(rows),
    }


def write(rows: list[Row], file: Path) -> None:
    """Write ``document`` to ``file``.

    Raises:
        OutputError: it cannot be written.
    """
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.write_text(json.dumps(document(rows), indent=1) + "\n")
        beside.replace(file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OutputError(f"{file}: cannot be written: {error.strerror}") from error


def text(rows: list[Row]) -> str:
    """The accuracy table for a terminal; what was not predicted is listed by reason."""
    names = _traces(rows)
    policy, trace = (max(map(len, column), default=0) for column in ([row.policy for row in rows], names))
    head = f"{'config':<27} {'trace':<{trace}} {'policy':<{policy}} {'call':<10}"
    lines = [f"{head} predicted (90 %)       measured  error  covered"]
    for row, name in zip(rows, names, strict=True):
        if row.predicted is not None:
            head = f"{row.config:<27} {name:<{trace}} {row.policy:<{policy}} {row.call:<10}"
            interval = f"{row.predicted:.3f} ({row.low:.3f} – {row.high:.3f})"
            said = "yes" if row.covered else "no"
            lines.append(f"{head} {interval:<22} {row.measured:8.3f} {row.error:6.1f}  {said}")
    lines += ["", *_class_lines(rows)]
    reasons: dict[str, list[Row]] = {}
    for row in rows:
        if row.predicted is None:
            reasons.setdefault(_general(row), []).append(row)
    lines += [f"{len(group)} not predicted: {reason}" for reason, group in sorted(reasons.items())]
    return "\n".join(lines)


def _traces(rows: list[Row]) -> list[str]:
    """Names of the traces, a plus for each other that prices come from."""
    return [f"{row.trace} {'+' * len(row.costs)}".rstrip() for row in rows]


def _class_lines(rows: list[Row]) -> list[str]:
    """Medians and worst by policy, by where prices come from, by fidelity and by clock."""
    wide = max((len(row.policy) for row in rows), default=0)
    lines = [
        f"{'policy':<{wide}} {'prices':<12} {'fidelity':<13} {'clock':<13} predicted  median  worst  covered  width"
    ]
    for (policy, prices, level, clock), some in _classes(rows).items():
        lines.append(f"{policy:<{wide}} {prices:<12} {level:<13} {clock:<13} {_numbers(_overall(some))}")
    return [*lines, f"{'all':<{wide + 41}} {_numbers(_overall(rows))}"]


def _numbers(overall: dict[str, Any]) -> str:
    if not overall["predicted"]:
        return f"{0:>4} of {overall['asked']:<2}"
    median, worst, width, covered = (overall[key] for key in ("median_error", "worst_error", "median_width", "covered"))
    return f"{overall['predicted']:>4} of {overall['asked']:<2} {median:7.1f} {worst:6.1f} {covered:8} {width:6.1f}"


def _classes(rows: list[Row]) -> dict[tuple[str, str, str, str], list[Row]]:
    found: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        prices = "other traces" if row.costs else "own"
        found.setdefault((row.policy, prices, row.fidelity or "none", row.clock), []).append(row)
    return dict(sorted(found.items()))


def _general(row: Row) -> str:
    """The reason without the path in front, so that equal reasons are counted together."""
    return (row.reason or "").rsplit(row.trace + ": ", 1)[-1]


def _overall(rows: list[Row]) -> dict[str, Any]:
    errors = [row.error for row in rows if row.error is not None]
    widths = [row.width for row in rows if row.width is not None]
    return {
        "asked": len(rows),
        "predicted": len(errors),
        "median_error": statistics.median(errors) if errors else None,
        "worst_error": max(errors, default=None),
        "covered": sum(1 for row in rows if row.covered),
        "median_width": statistics.median(widths) if widths else None,
    }
