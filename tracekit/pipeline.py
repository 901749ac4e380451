"""The whole flow on one screen: a trace file or directory → a result."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from tracekit import policies, recording
from tracekit.costs import CostModel, calibrate, tables, without_overhead
from tracekit.errors import OutputError, UsageError
from tracekit.ingest import ingest, printable
from tracekit.machine.replay import VISIT_EVENTS, Replay, replay
from tracekit.policies import Chosen, Judgement, Policy
from tracekit.predict import likely
from tracekit.result import Result
from tracekit.summary import Judged, has_already, summarise, why_not
from tracekit.trace import Trace, is_trace_dir, open_trace

Progress = Callable[[int, int], None]
BOUNDS = ("as_traced", "upper_bound")


def load(path: Path, *, progress: Progress | None = None) -> Trace:
    """Open a trace directory, or the one beside a trace file, or ingest the file for this run only.

    Raises:
        TracekitError: see ``ingest``.
    """
    if is_trace_dir(path):
        return open_trace(path)
    beside = path.with_name(path.name + ".tracekit")
    if is_trace_dir(beside) and _is_of(beside, path):
        return open_trace(beside)
    try:
        scratch = Path(tempfile.mkdtemp(prefix="tracekit-"))
    except OSError as error:
        raise OutputError(f"{tempfile.gettempdir()}: cannot be written: {error.strerror}; set TMPDIR") from error
    try:
        trace = open_trace(ingest(path, scratch / f"{printable(path.name)}.tracekit", progress=progress))
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(trace, shutil.rmtree, scratch, ignore_errors=True)
    return trace


def run(
    trace: Trace,
    specs: Sequence[str],
    *,
    fidelity: str | None = None,
    costs: Sequence[Path] = (),
    kernel_has: Mapping[str, str] | None = None,
) -> Result:
    """Replay ``trace`` once and judge each policy that ``specs`` name on it, the two bounds first.

    Prices are made from ``trace`` and from ``costs``: other traces of the same machine. ``kernel_has``: policy →
    variant that the traced kernel has, where its trace or release do not tell, or tell it wrong.

    Raises:
        UsageError: an unknown policy, parameter or variant, or a fidelity that the trace does not allow.
    """
    every = [one for spec in (*BOUNDS, *specs) for one in policies.expand(spec)]
    chosen = list({one.spec: one for one in every}.values())
    policies.check_variants(kernel_has or {})
    facts = replay(trace, fidelity=fidelity, kernel_has=kernel_has)
    if fidelity not in (None, facts.fidelity):
        raise UsageError(f"--fidelity {fidelity}: this trace allows {facts.fidelity} here; leave the option out")
    perhaps = likely(facts)
    judged = [
        Judged(
            one,
            _judge(facts, one, facts.operations),
            None if perhaps is None else _judge(facts, one, perhaps),
        )
        if _judgeable(trace, facts, one.policy) and not why_not(facts, one)
        else Judged(one, None)
        for one in chosen
    ]
    document = summarise(trace, facts, calibrate(facts, [_price_source(path, trace) for path in costs]), judged)
    counts = [_counts(facts, one.chosen.spec, one.judgement) for one in judged if one.judgement is not None]
    return Result(document, facts.operations, pl.concat(counts), _proof(judged))


def _proof(judged: Sequence[Judged]) -> pl.DataFrame | None:
    """What shows the unsafe outcomes of all policies; None: there are none."""
    found = [
        one.judgement.proof.select(pl.lit(one.chosen.spec).alias("policy"), pl.all())
        for one in judged
        if one.judgement is not None and one.judgement.proof is not None
    ]
    return pl.concat(found) if found else None


def _price_source(path: Path, trace: Trace) -> Replay | CostModel:
    if tables.is_table(path):
        return tables.read(path)
    other = load(path)
    facts = replay(other)
    return facts if _is_perfs(other) == _is_perfs(trace) else without_overhead(calibrate(facts))


def _is_perfs(trace: Trace) -> bool:
    return str(trace.manifest["source"]["format"]).startswith("perf")


def _judgeable(trace: Trace, facts: Replay, policy: Policy) -> bool:
    if facts.fidelity == "counts" and recording.whole_walks(trace, policy):
        return True
    hidden = facts.fidelity == "counts" and any(event in VISIT_EVENTS for event in policy.needs)
    return not hidden and not facts.hidden & set(policy.needs) and not recording.missing(trace, policy.needs)


def _judge(facts: Replay, one: Chosen, ops: pl.DataFrame) -> Judgement:
    """What the kernel has already changes nothing."""
    return policies.unchanged(len(ops)) if has_already(facts, one) else policies.judge(one.name, one.policy, ops)


def _counts(facts: Replay, spec: str, judgement: Judgement) -> pl.DataFrame:
    """Per episode and operation: traced, policy, and whether the policy does harm there."""
    harmed = np.zeros(len(facts.operations), dtype=bool) if judgement.harmed is None else judgement.harmed
    return (
        facts.operations.select("call", "episode", "op")
        .with_columns(policy_count=pl.Series(judgement.executed), harmed=pl.Series(harmed))
        .group_by("call", "episode", "op", maintain_order=True)
        .agg(traced=pl.len().cast(pl.Int64), policy_count=pl.col("policy_count").sum(), harmed=pl.col("harmed").any())
        .select(pl.lit(spec).alias("policy"), pl.all())
    )


def _is_of(directory: Path, source: Path) -> bool:
    """Whether ``directory`` was made from all of ``source`` as it is now, by name, size and age."""
    manifest = open_trace(directory).manifest
    files = [source / "data", *source.glob("data.*")] if source.is_dir() else [source]
    try:
        parts = [part.stat() for part in files]
    except OSError:
        return False
    size = sum(part.st_size for part in parts)
    younger = (directory / "manifest.json").stat().st_mtime >= max(part.st_mtime for part in parts)
    known = manifest["source"]
    chosen = any(value not in (None, []) for value in manifest.get("filters", {}).values())
    return bool(known["name"] == source.name and known["size_bytes"] == size and younger and not chosen)
