"""What batches change: time against how long folios stay blocked."""

from typing import Any

from tracekit.reports._section import DASH, Section, interval

_TIMES = ("total_ns", "first_ns", "mean_ns", "worst_ns")
_HEADER = ["all batches ms", "first folio µs", "mean µs", "worst µs"]
_TEXT = (
    "Who faults on a page that is being migrated waits until its folio is moved: since its entries were set, tracing "
    "taken off. First folio: of a batch, mean over the batches. Mean and worst: over all folios. In brackets 90 %."
)


def blocking(policies: list[dict[str, Any]]) -> list[Section]:
    """How long folios stay blocked as traced and under each policy that copies in batches; none: no section."""
    batched = [policy for policy in policies if policy.get("blocking")]
    if not batched:
        return []
    rows: list[list[str]] = []
    for policy in batched:
        found = policy["blocking"]
        if found["reason"] is not None:
            rows.append([policy["spec"], *[DASH] * (2 + len(_TIMES)), found["reason"]])
            continue
        for side, name in (("traced", "as traced"), ("policy", policy["spec"])):
            times = [interval(time_of(found, what, side), 1e6 if what == "total_ns" else 1e3, 1) for what in _TIMES]
            row = [name, f"{found['batches'][side]:,}", f"{found['folios']:,}", *times, ""]
            if row not in rows:
                rows.append(row)
    header = ["policy", "batches", "folios", *_HEADER, "note"]
    return [Section("Time blocked", [_TEXT, *_least(batched)], header, rows)]


def time_of(found: dict[str, Any], what: str, side: str) -> dict[str, float]:
    """Low, median and high of a time of ``blocking``, ns; ``mean_ns`` is of all waits."""
    if what == "mean_ns":
        return {end: value / found["folios"] for end, value in found["sum_ns"][side].items()}
    times: dict[str, float] = found[what][side]
    return times


def _least(policies: list[dict[str, Any]]) -> list[str]:
    """Which of several is best at what."""
    known = [policy for policy in policies if policy["blocking"]["reason"] is None]
    if len(known) < 2:
        return []
    said = []
    for what, name in (("total_ns", "total time"), ("first_ns", "wait of the first folio"), ("sum_ns", "waits in all")):
        best = min(known, key=lambda policy, what=what: policy["blocking"][what]["policy"]["median"])  # type: ignore[misc]
        said.append(f"least {name}: {best['spec']}")
    return [f"Of these, {'; '.join(said)}."]
