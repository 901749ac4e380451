"""Removals, reclaim and the deferred split queue in real captures, against what trace-cmd printed of the same files.

And before and after, on kernels that nobody patched: 6.12 unmaps lazyfree folios page by page, 7.2 and 7.3 at once.
"""

import lzma
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import tracekit
from tracekit import pipeline, policies
from tracekit.machine import replay as machine
from tracekit.machine.operations import AMOUNTS, amounts

SHARED = Path(__file__).resolve().parents[2] / "shared" / "captures"
CAPTURES = sorted(
    f"{path.parent.name}/{path.name}"
    for pattern in ("lazyfree", "mthp", "thp2m")
    for path in SHARED.glob(f"*/{pattern}*.tc")
)
ENQUEUE = "deferred_split.enqueue"
SPECS = [
    *(f"batched_zap:rule={rule}" for rule in ("none", "v1", "upstream")),
    *(
        f"batched_unmap:rule={rule},respect_write={w}"
        for rule in ("page", "whole", "partial")
        for w in ("true", "false")
    ),
    "batched_migrate_unmap",
]

pytestmark = pytest.mark.skipif(not CAPTURES, reason="needs ../shared/captures")


@pytest.fixture(scope="module")
def replayed():
    """The replay of a capture, by name."""

    @cache
    def replay(name):
        return machine.replay(pipeline.load(SHARED / name / "trace.dat"))

    return replay


def lines(name):
    """(task, event, its fields) of every line that trace-cmd printed."""
    pattern = re.compile(r"\s*\S.*-(\d+)\s+\[\d+\].*?\d+\.\d+: (\w+): +(.*)")
    with lzma.open(SHARED / name / "oracle.report.txt.xz", "rt", errors="replace") as text:
        for line in text:
            if (found := pattern.match(line)) is not None:
                yield int(found[1]), found[2], dict(re.findall(r"(\w+)=(\S+)", found[3]))


def judged(ops, spec):
    return policies.parse(spec)[1].judge(ops)


def total(ops, judgement, op, *, large=None, phase=None):
    """How often ``op`` is done under the policy, of large folios and in one phase if asked."""
    rows = pl.col("op") == op
    if large is not None:
        rows &= pl.col("life").is_not_null() == large
    if phase is not None:
        rows &= pl.col("phase") == phase
    at = ops.select(rows.fill_null(value=False)).to_series().to_numpy()
    every = judgement.executed[at].sum()
    own = judgement.added.get(op)
    return int(every + (0 if own is None else own[ops["life"].is_not_null().to_numpy()].sum()))


@pytest.mark.parametrize("name", CAPTURES)
def test_every_line_of_a_probe_is_an_operation(name, replayed):
    ops = replayed(name).operations
    seen, pages = Counter(), 0
    for _, event, fields in lines(name):
        seen[event] += 1
        if event == "folio_remove_rmap_ptes":
            pages += int(fields["nr"])
        if event == "folio_remove_rmap_pmd":
            pages += 512
    found = Counter(ops["op"].cast(pl.String))
    removes = ops.filter(pl.col("op") == "rmap.remove")
    assert found["rmap.remove"] == seen["folio_remove_rmap_ptes"] + seen["folio_remove_rmap_pmd"]
    assert removes["nr_pages"].sum() == pages
    assert found[ENQUEUE] + found["deferred_split.call"] == seen["deferred_split_folio"]
    assert found["try_to_unmap.vma_visit"] == seen["try_to_unmap_one"]
    assert found["try_to_migrate.vma_visit"] == seen["try_to_migrate_one"]


@pytest.mark.parametrize("name", CAPTURES)
def test_the_phase_of_a_removal_is_that_of_the_probes_around_it(name, replayed):
    """By the text: what stands between a visit's entry and its return is done by the visit; a page gathered, by zap."""
    ops = replayed(name).operations.filter(pl.col("op") == "rmap.remove").sort("time_ns", "seq")
    entered = {"try_to_unmap_one": "try_to_unmap", "try_to_migrate_one": "try_to_migrate"}
    expected, visit, before = [], {}, None
    for task, event, fields in lines(name):
        if event in entered:
            visit[task] = entered[event]
        elif event in ("try_to_unmap_one_ret", "try_to_migrate_one_ret"):
            visit.pop(task, None)
        elif event.startswith("folio_remove_rmap_p"):
            expected.append(visit.get(task))
            before = (task, fields["page"])
        elif event == "__tlb_remove_folio_pages" and before == (task, fields["page"]):
            expected[-1] = "zap"
    assert len(expected) == len(ops)
    told = [(ours, theirs) for ours, theirs in zip(ops["phase"], expected, strict=True) if theirs is not None]
    assert all(ours == theirs for ours, theirs in told)
    assert {"try_to_migrate", "try_to_unmap"}.isdisjoint(
        ours for ours, theirs in zip(ops["phase"], expected, strict=True) if theirs is None
    )


@pytest.mark.parametrize("name", CAPTURES)
def test_what_the_kernel_has_changes_nothing(name, replayed):
    """Under the rule that the trace shows, counts are the probes' own, without being told so."""
    facts = replayed(name)
    ops = facts.operations
    for policy, spec in (("batched_zap", "batched_zap:rule={}"), ("batched_unmap", "batched_unmap:rule={}")):
        has = facts.kernel_has[policy]
        if has.source == "trace":
            judgement = judged(ops, spec.format(has.variant))
            assert (judgement.executed == 1).all(), policy
            assert not judgement.added, policy
            assert not judgement.amounts, policy


@pytest.mark.parametrize("name", CAPTURES)
def test_bounds_hold(name, replayed):
    ops = replayed(name).operations
    bound = judged(ops, "upper_bound")
    own = amounts(ops)
    for spec in SPECS:
        judgement = judged(ops, spec)
        assert set(np.unique(judgement.executed)) <= {0, 1}, spec
        assert (bound.executed <= judgement.executed).all(), spec
        assert all((count >= 0).all() for count in judgement.added.values()), spec
        assert judgement.amounts.keys() <= AMOUNTS.keys(), spec
        for amount, change in judgement.amounts.items():
            assert own[amount].sum() + change.sum() >= 0, (spec, amount)
        # pages are neither made nor lost, but for those that are said to be kept
        kept = judgement.losses.get("pages_left_mapped", 0)
        assert -judgement.amounts.get("rmap.remove_pages", np.zeros(1)).sum() == kept, spec


def reclaimed(replayed, name, spec=None):
    """(calls, queued) of what reclaim takes out of large folios in the capture, or would under the policy."""
    ops = replayed(name).operations
    judgement = judged(ops, spec or "as_traced")
    calls = total(ops, judgement, "rmap.remove", large=True, phase="try_to_unmap")
    return calls, total(ops, judgement, ENQUEUE)


BEFORE, AFTER = "6.12/lazyfree64-full.tc", ("7.2/lazyfree64-full.tc", "7.3/lazyfree64-full.tc")
PARTIAL, PAGE = "batched_unmap:rule=partial", "batched_unmap:rule=page"


def test_a_6_12_capture_and_the_policy_predict_what_7_2_and_7_3_do(replayed):
    """32 folios of 16 pages: 512 removals (and 10 of small file pages) → 32, 32 folios queued → none."""
    assert reclaimed(replayed, BEFORE) == (512, 32)
    for name in AFTER:
        assert reclaimed(replayed, BEFORE, PARTIAL) == reclaimed(replayed, name) == (32, 0)


def test_and_the_reverse(replayed):
    for name in AFTER:
        assert reclaimed(replayed, name, PAGE) == reclaimed(replayed, BEFORE) == (512, 32)


def test_redirtied_folios_are_kept_whole_by_7_2(replayed):
    """Every other folio has page 3 dirtied again: 6.12 takes pages 0 … 2 out first (of 15: one was not come to)."""
    before, after = "6.12/lazyfree64-redirty.tc", "7.2/lazyfree64-redirty.tc"
    assert reclaimed(replayed, before)[0] == 16 * 16 + 15 * 3
    assert reclaimed(replayed, before, PARTIAL)[0] == reclaimed(replayed, after)[0] == 16
    ops = replayed(before).operations
    judgement = judged(ops, PARTIAL)
    assert judgement.losses == {"pages_left_mapped": 45}
    # those that a write fault queued stay: it copied a page that reclaim had restored read-only
    assert total(ops, judgement, ENQUEUE) == 2
    back = judged(replayed(after).operations, PAGE)
    assert reclaimed(replayed, after, PAGE)[0] == 16 * 16
    assert back.open["visits_that_may_take_pages_out_first"] == 16
    assert back.losses["folios_set_swapbacked"] == 16


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_batching_in_migration_queues_no_folio(kernel, replayed):
    """E4.10: 16 folios of 16 pages, each queued itself and its new one; also on 6.12.107, against the model's word."""
    ops = replayed(f"{kernel}/mthp64-move-munmap.tc").operations
    judgement = judged(ops, "batched_migrate_unmap")
    of_migrations = ops.filter((pl.col("op") == ENQUEUE) & pl.col("episode").is_not_null())
    assert Counter(of_migrations["phase"]) == {"try_to_migrate": 16, "other": 16}
    assert total(ops, judgement, "rmap.remove", phase="try_to_migrate") == 16
    assert (judgement.executed[(ops["op"] == ENQUEUE).to_numpy() & ops["episode"].is_not_null().to_numpy()] == 0).all()


def test_a_folio_that_a_child_maps_in_part_is_queued_all_the_same(replayed):
    """The child wrote page 0 of each: the parent's run leaves pages mapped that the child still has."""
    ops = replayed("7.2/mthp64-fork-move.tc").operations
    judgement = judged(ops, "batched_migrate_unmap")
    assert total(ops, judgement, ENQUEUE) == (ops["op"] == ENQUEUE).sum()


def test_a_result_says_what_the_kernel_has():
    result = tracekit.replay(SHARED / BEFORE / "trace.dat", ["batched_zap:rule=none", PARTIAL])
    has = result.document["trace"]["kernel_has"]
    assert (has["batched_unmap"]["variant"], has["batched_unmap"]["source"]) == ("page", "trace")
    assert (has["batched_zap"]["variant"], has["batched_zap"]["source"]) == ("upstream", "trace")
