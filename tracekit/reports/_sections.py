"""A summary as titled tables of text, the same for every report that is read by people."""

from typing import Any

from tracekit.reports._blocking import blocking
from tracekit.reports._section import DASH, Section, interval


def sections(document: dict[str, Any]) -> list[Section]:
    """All that a report says, in reading order."""
    policies = document["policies"]
    judged = [policy for policy in policies if policy["judgeable"]]
    return [
        _policies(policies, document["self_check"]),
        _calls(judged),
        *blocking(judged),
        _operations(judged),
        *_harm(judged),
        *_missing(policies),
        _trust(document),
        _self_check(document["self_check"]),
        Section("How the prices were got", [*document["costs"]["how"], document["note"]], [], []),
        _source(document),
    ]


def _policies(policies: list[dict[str, Any]], checked: dict[str, Any]) -> Section:
    rows = []
    for policy in policies:
        if not policy["judgeable"]:
            rows.append([policy["spec"], DASH, DASH, f"not judgeable: {policy['reason']}"])
            continue
        saving = interval((policy.get("time_ns") or {}).get("saving"), 1e6)
        note = "as traced: the kernel has it" if policy["kernel_has"] else policy["reason"] or ""
        rows.append([policy["spec"], interval(policy["ratio"]), saving, note])
    over = [f"{one['name']} {_residual(one['residual'])}" for one in checked["checks"] if one["status"] == "over"]
    text = [f"SELF-CHECK FAILED, do not rely on these numbers: {', '.join(over)}."] if over else []
    text += ["Ratio: predicted time under the policy / time as traced, tracing taken off both; below 1 is a saving."]
    return Section("Policies", text, ["policy", "ratio (90 %)", "saved ms (90 %)", "note"], rows)


def _calls(policies: list[dict[str, Any]]) -> Section:
    rows = [
        [
            policy["spec"],
            call["call"] + (" (nested)" if call["nested"] else ""),
            f"{call['n']:,}",
            DASH if call["traced_ns"] is None else f"{call['traced_ns'] / 1e6:.3f}",
            interval(call["ratio"]),
            call["reason"] or "",
        ]
        for policy in policies
        if policy["name"] != "as_traced"
        for call in policy["calls"]
    ]
    return Section("Calls", [], ["policy", "call", "n", "traced ms", "ratio (90 %)", "note"], rows)


def _operations(policies: list[dict[str, Any]]) -> Section:
    rows = [
        [policy["spec"], name, f"{count['traced']:,}", f"{count['policy']:,}"]
        for policy in policies
        for name, count in policy["operations"].items()
        if policy["name"] == "as_traced" or count["traced"] != count["policy"]
    ]
    text = ["All that the trace shows, and what each policy would change of it."]
    return Section("Operations", text, ["policy", "operation", "as traced", "under the policy"], rows)


def _harm(policies: list[dict[str, Any]]) -> list[Section]:
    rows = [
        [policy["spec"], kind, name, f"{count:,}"]
        for policy in policies
        for kind in ("unsafe", "losses", "open", "exposed")
        for name, count in policy[kind].items()
        if count
    ]
    if not rows:
        return []
    text = [
        "unsafe: would be a kernel bug. losses: no longer achieved. open: the trace cannot tell, at most so many.",
        "exposed: changed, with effects that no price covers: lock contention, IPIs, work that comes later.",
    ]
    return [Section("Harm", text, ["policy", "kind", "what", "count"], rows)]


def _missing(policies: list[dict[str, Any]]) -> list[Section]:
    commands = dict.fromkeys(policy["record"] for policy in policies if policy.get("record"))
    return [Section("To record what is missing, as root", list(commands), [], [])] if commands else []


def _trust(document: dict[str, Any]) -> Section:
    episodes, residual = document["episodes"], document["as_traced"]
    rows = [
        ["fidelity", _fidelity(document)],
        [
            "coverage",
            f"{_percent(document['coverage'])} ({episodes['judged']:,} of {episodes['all']:,} episodes judged)",
        ],
        ["entries explained by a replayed visit", _percent(residual["operations_reproduced"])],
        ["prices against the gaps they were made from", f"off by {_percent(residual['time_residual'])}"],
        ["lost events", _lost(document["trace"]["lost"])],
    ]
    rows += [
        [f"kernel has {name}", f"{has['variant'] or 'unknown'} ({has['source']}: {has['why']})"]
        for name, has in document["trace"]["kernel_has"].items()
        if any(name in policy["name"].split("+") for policy in document["policies"])
    ]
    rows += [[name.replace("_", " "), f"{count:,}"] for name, count in document["anomalies"].items()]
    return Section("How far to trust it", [], ["", ""], rows)


def _self_check(checked: dict[str, Any]) -> Section:
    rows = [
        [
            one["name"],
            one["status"],
            f"{one['equal']:,} of {one['compared']:,}" if one["compared"] else DASH,
            _residual(one["residual"]),
            _residual(one["threshold"]),
            one["what"] if one["reason"] is None else one["reason"],
        ]
        for one in checked["checks"]
    ]
    text = ["What the machine predicts of the kernel that made the trace, against what the trace shows."]
    return Section(
        "Self-check", text, ["check", "status", "agree", "residual", "threshold", "of what, or why not"], rows
    )


def _residual(share: float | None) -> str:
    return DASH if share is None else f"{100 * share:.2f} %"


def _fidelity(document: dict[str, Any]) -> str:
    used, possible = document["fidelity"], document["trace"]["fidelity"]
    return f"{used} (the trace allows {possible})" if used == "counts" and possible != "counts" else str(used)


def _lost(lost: dict[str, Any] | None) -> str:
    if not lost or not lost.get("records"):
        return "none"
    return "an unknown number" if lost["events"] is None else f"{lost['events']:,}"


def _source(document: dict[str, Any]) -> Section:
    trace = document["trace"]
    machine, source = trace["machine"], trace["source"]
    rows = [
        ["source", f"{source['name']} ({source['format']}, {source['size_bytes']:,} bytes, sha256 {source['sha256']})"],
        ["kernel", f"{machine['release'] or 'unknown'} {machine['arch'] or ''}, {machine['cpus'] or '?'} CPUs"],
    ]
    return Section("Trace", [], ["", ""], rows)


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{100 * share:.1f} %"
