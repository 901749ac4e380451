"""Self-check: what the machine predicts of a stock kernel against what the trace shows (MODEL.md C).

One module per area, each with ``checks(trace, replay)``. A residual above its threshold marks the result.
"""

from typing import Any

from tracekit.machine.replay import Replay
from tracekit.machine.selfcheck import entries, moved, rss, visits
from tracekit.machine.selfcheck.check import Check
from tracekit.trace import Trace

__all__ = ["Check", "document", "self_check"]


def self_check(trace: Trace, replay: Replay) -> list[Check]:
    """Every check there is, those that this trace does not allow included."""
    return [check for area in (visits, entries, moved, rss) for check in area.checks(trace, replay)]


def document(checks: list[Check]) -> dict[str, Any]:
    """``checks`` as summary.json holds them, with the worst status of all; not possible: none could be made."""
    found = {check.status for check in checks}
    worst = next((status for status in ("over", "ok") if status in found), "not possible")
    return {"status": worst, "checks": [check.as_json() for check in checks]}
