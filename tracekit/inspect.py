"""What a trace holds and what can be judged from it: the content of ``tracekit info``."""

from typing import Any

from tracekit.trace import Trace

_FIDELITY = {None: "none: nothing migrated", "reconstructed": "reconstructed: VMA visits from the life cycle"}


def inspect(trace: Trace) -> dict[str, Any]:
    """The manifest, and for each policy whether the trace allows it, what it lacks and how to record that."""
    from tracekit import policies, recording, registry  # noqa: PLC0415 - they bring polars in; loss() needs none

    judged = []
    for name in registry.names("tracekit.policies"):
        needs = tuple(policies.describe(name)["needs"])
        kind = registry.load("tracekit.policies", name).POLICY
        lacking = [] if recording.whole_walks(trace, kind) else recording.missing(trace, needs)
        judged.append(
            {
                "policy": name,
                "judgeable": not lacking,
                "missing": lacking,
                "record": recording.record_command() if recording.unrecorded(trace, needs) else None,
            }
        )
    return {"path": str(trace.path), "manifest": trace.manifest, "policies": judged}


def loss(trace: Trace) -> tuple[float | None, str | None]:
    """Share of events lost (None: not known) and a sentence about it (None: nothing was lost)."""
    truncated, lost = trace.manifest["truncated"], trace.manifest["lost"]
    said = []
    if truncated:
        said.append(
            f"{truncated['reason']} at offset {truncated['offset']:#x}: {truncated['bytes_unread']:,} bytes not read"
        )
    if lost["records"]:
        said.append(
            "events were lost, " + ("how many is unknown" if lost["events"] is None else f"{lost['events']:,} of them")
        )
    if not said:
        return 0.0, None
    rows = sum(trace.rows(event) for event in trace.event_names)
    known = not truncated and lost["events"] is not None
    return (lost["events"] / max(rows + lost["events"], 1) if known else None), "; ".join(said)


def text(document: dict[str, Any]) -> str:
    """``document`` of ``inspect`` for a terminal."""
    manifest = document["manifest"]
    machine, source, span = manifest["machine"], manifest["source"], manifest["time_range_ns"]
    seconds = _duration(span, manifest["clock"].get("unit", "ns"))
    lines = [
        f"{source['name']}: {source['format']}, {source['size_bytes']:,} bytes, sha256 {source['sha256']}",
        f"kernel {machine['release'] or 'unknown'} {machine['arch'] or ''}, {machine['cpus'] or '?'} CPUs",
        f"clock {manifest['clock']['name'] or 'unknown'}, {seconds}",
        f"fidelity {_FIDELITY.get(manifest['fidelity'], manifest['fidelity'])}",
    ]
    lines += _snapshot(manifest)
    lines += [f"anomaly: {name.replace('_', ' ')}: {count:,}" for name, count in manifest["anomalies"].items()]
    lines += ["", "rows        table"]
    lines += [f"{table['rows']:>11,} {name}" for name, table in sorted(manifest["tables"].items()) if table["rows"]]
    silent = sum(1 for table in manifest["tables"].values() if not table["rows"])
    lines += [f"{'':>11} and {silent} that were recorded but never fired"] if silent else []
    lines += ["", "policy              can be judged"]
    for one in document["policies"]:
        lines.append(f"{one['policy']:<19} {'yes' if one['judgeable'] else 'no: lacks ' + ', '.join(one['missing'])}")
    commands = {one["record"] for one in document["policies"] if one["record"]}
    lines += ["", "This records what is missing (as root):", *commands] if commands else []
    return "\n".join(lines)


def _snapshot(manifest: dict[str, Any]) -> list[str]:
    if not manifest.get("snapshot"):
        return []
    rows = {name: manifest["tables"][f"snapshot/{name}"]["rows"] for name in ("tasks", "vmas")}
    return [f"snapshot {manifest['snapshot']['name']}: {rows['tasks']:,} threads, {rows['vmas']:,} VMAs"]


def _duration(span: dict[str, int | None], unit: str) -> str:
    """How long the trace is; a clock that counts something else than nanoseconds says so."""
    if span["first"] is None or span["last"] is None:
        return "unknown"
    length = span["last"] - span["first"]
    return f"{length / 1e9:.6f} s" if unit == "ns" else f"{length:,} {unit}"
