"""What must hold of every policy on every capture: the null policy is the trace, the bound is one, parts add up."""

import itertools
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import tracekit
from tracekit import pipeline, policies, registry
from tracekit.ingest import ingest
from tracekit.machine.replay import VISIT_EVENTS, replay

SHARED = Path(__file__).resolve().parents[2] / "shared" / "captures"
# A subset by default: one of each sort; TRACEKIT_ALL_CAPTURES=1 takes all
CHOSEN = (
    "6.12/lazyfree64-partial.tc",
    "6.12/mthp64-move-munmap.tc",
    "7.2/forkcow-c16-half.tc",
    "7.2/forkmig.tc",
    "7.2/mthp64-fork-move.tc",
    "7.2/rec.perf-allk",
    "7.2/thp2m-partial.tc",
)
FILES = ("trace.dat", "perf.data")
NAMES = registry.names("tracekit.policies")


def captures():
    if os.environ.get("TRACEKIT_ALL_CAPTURES"):
        return sorted(file for name in FILES for file in SHARED.glob(f"*/*/{name}"))
    return [file for one in CHOSEN for name in FILES if (file := SHARED / one / name).is_file()]


def variants(name):
    params = policies.describe(name)["params"]
    choices = {key: one["choices"] for key, one in params.items() if one["choices"] and key != "engine"}
    for values in itertools.product(*choices.values()):
        said = ",".join(f"{key}={value}" for key, value in zip(choices, values, strict=True))
        yield f"{name}:{said}" if said else name


@pytest.fixture(scope="module", params=captures(), ids=lambda file: str(file.relative_to(SHARED)))
def facts(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("bounds") / "t.tracekit"
    return replay(tracekit.open(ingest(request.param, out)))


def made(facts, judgement):
    """Operation → how often under the policy."""
    names = facts.operations.select(pl.col("op").cast(pl.String), n=pl.Series(judgement.executed))
    found = dict(names.group_by("op").sum().iter_rows())
    for name, count in judgement.added.items():
        found[name] = found.get(name, 0) + int(count.sum())
    return found


def judged(facts):
    for name in NAMES:
        for one in (chosen for spec in variants(name) for chosen in policies.expand(spec)):
            yield one, policies.judge(one.name, one.policy, facts.operations)


def test_as_traced_is_the_trace(facts):
    judgement = policies.parse("as_traced")[1].judge(facts.operations)
    traced = dict(facts.operations.group_by(pl.col("op").cast(pl.String)).len().iter_rows())
    assert made(facts, judgement) == traced


def test_no_policy_is_better_than_the_bound(facts):
    bound = made(facts, policies.parse("upper_bound")[1].judge(facts.operations))
    for one, judgement in judged(facts):
        if any(judgement.unsafe.values()) or any(judgement.losses.values()):
            continue  # what breaks the kernel, or leaves work undone, has no bound
        found = made(facts, judgement)
        for op in getattr(one.policy, "touches", ()):
            if op in bound and op not in ("tlb.flush", "tlb.shootdown"):  # merged, not spared
                assert bound[op] <= found.get(op, 0), (one.spec, op)


def test_what_a_policy_touches_is_what_it_says(facts):
    op = facts.operations["op"].cast(pl.String)
    for one, judgement in judged(facts):
        changed = set(op.filter(pl.Series(judgement.executed != 1)).unique())
        assert changed <= set(getattr(one.policy, "touches", ())), one.spec


def test_a_combination_spares_what_each_part_does_and_no_more(facts):
    together = 0
    for a, b in itertools.combinations(NAMES, 2):
        try:
            (both,) = policies.expand(f"{a}+{b}")
        except tracekit.errors.UsageError:
            continue
        together += 1
        found = both.policy.judge(facts.operations)
        parts = [policies.judge(part, policies.parse(part)[1], facts.operations) for part in (a, b)]
        assert (found.executed == parts[0].executed * parts[1].executed).all()
        assert found.added.keys() == parts[0].added.keys() | parts[1].added.keys()
        for part in parts:
            assert (found.executed <= part.executed).all()
            for name, count in part.added.items():
                assert (found.added[name] >= count).all()
    assert together >= 3, "some can be combined"


def test_a_combination_saves_what_its_parts_do(facts):
    """In time, where all of it is priced: the ratio of the whole is that of the parts, added up."""
    if facts.fidelity != "observed" or not len(facts.operations):
        pytest.skip("nothing is priced without visits")
    from tracekit.costs import calibrate  # noqa: PLC0415
    from tracekit.predict import Asked, predict  # noqa: PLC0415

    costs = calibrate(facts)
    outermost = facts.calls.filter(pl.col("parent").is_null() & ~pl.col("lost"))
    specs = ("counter_early_exit", "batched_copy", "counter_early_exit+batched_copy")
    if costs.prices is None or outermost.is_empty():
        pytest.skip("no prices")
    found = [predict(facts, Asked(policies.parse(s)[1].judge(facts.operations)), costs, outermost) for s in specs]
    if any(one.ratio is None for one in found):
        pytest.skip(str([one.reason for one in found]))
    a, b, both = (one.ratio.median for one in found)
    assert 1 - both == pytest.approx((1 - a) + (1 - b), abs=1e-6)


def test_needs_are_checked_before_judging(facts):
    """At fidelity counts nothing that needs visits may be judged; no policy fails on a table without them."""
    hidden = facts.operations.filter(~pl.col("op").cast(pl.String).str.ends_with("vma_visit"))
    for name in NAMES:
        kind = registry.load("tracekit.policies", name).POLICY
        judgement = kind().judge(hidden)
        assert len(judgement.executed) == len(hidden)
        assert np.isin(judgement.executed, (0, 1)).all()
    assert set(VISIT_EVENTS) & set(registry.load("tracekit.policies", "upper_bound").POLICY.needs)
    assert pipeline.BOUNDS == ("as_traced", "upper_bound")
