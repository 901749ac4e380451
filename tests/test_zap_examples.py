"""MODEL.md E2: what each worked example must give, traced by a kernel that zaps page by page, and by one that batches.

The kernel is that of ``unmapping``; its own counts are held against the table, too.
"""

import random
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import traces
from unmapping import ALWAYS, TABLE, Kernel

import tracekit
from tracekit.machine.removals import find_removals
from tracekit.machine.timeline import COLUMNS as COLUMNS_OF_TIMELINE
from tracekit.machine.timeline import Kind
from tracekit.policies import _gather, batched_zap

RULES = ("none", "v1", "upstream")
COLUMNS = ("rmap.remove", "rmap.atomic", "deferred_split.enqueue", "gather.slot")


def whole(kernel):
    vma = kernel.map(kernel.folio())
    yield [(vma, range(16))]


def first_half(kernel):
    vma = kernel.map(kernel.folio())
    yield [(vma, range(8))]
    kernel.munmap((vma, range(8, 16)))


def second_half(kernel):
    vma = kernel.map(kernel.folio())
    kernel.munmap((vma, range(8)))
    yield [(vma, range(8, 16))]


def hole(kernel):
    vma = kernel.map(kernel.folio())
    kernel.munmap((vma, [7]))
    yield [(vma, range(16))]


def shared(kernel):
    folio = kernel.folio(pages=4)
    vma, other = kernel.map(folio), kernel.map(folio, task=8)
    yield [(vma, range(4))]
    kernel.munmap((other, range(4)), task=8)


def crossing(kernel):
    vma = kernel.map(kernel.folio(), addr=0x7F00_0000_0000 + TABLE - 5 * 4096)
    yield [(vma, range(16))]


def swapped_out(kernel):
    folio = kernel.folio(pages=8)
    vma = kernel.map(folio)
    vma.present.discard(4)
    folio.mapped[4], folio.partial = 0, True
    kernel.add("kprobes:deferred_split_folio", folio=folio.address, partially_mapped=1)
    yield [(vma, range(8))]


class Example(NamedTuple):
    """A row of the table: (rmap calls, atomics, D, gather slots); None: not in the table."""

    name: str
    script: object
    none: tuple | None
    v1: tuple | None
    upstream: tuple | None


EXAMPLES = [
    Example("E2.1", whole, (16, 48, 1, 16), (1, 18, 0, 16), (1, 18, 0, 2)),
    Example("E2.2", first_half, (8, 24, 1, 8), None, (1, 10, 1, 2)),
    Example("E2.2, the other 8", second_half, None, None, (1, 10, 0, 2)),
    Example("E2.3", hole, (15, 45, 0, 15), None, (2, 19, 0, 4)),
    Example("E2.4", shared, (4, 8, 0, 4), None, (1, 5, 0, 2)),
    Example("E2.7", crossing, None, None, (2, 20, 1, 4)),
    Example("E2.8", swapped_out, None, None, (2, 11, 0, 4)),
]


def traced(tmp_path, script, zap):
    """The trace of ``script`` by a kernel with that rule; the munmap() in question lies between two marks."""
    kernel = Kernel(zap=zap)
    steps = script(kernel)
    for ranges in steps:
        kernel.counts.clear()
        kernel.add("ftrace:print", buf="call_begin")
        kernel.munmap(*ranges)
        kernel.add("ftrace:print", buf="call_end")
        counts = dict(kernel.counts)
    return traces.write(tmp_path / zap, kernel.events, always=(*traces.ALWAYS, *ALWAYS)), counts


def counted(result, spec):
    policy = next(policy for policy in result.document["policies"] if policy["spec"] == spec)
    assert policy["judgeable"], policy
    call = next(call for call in policy["calls"] if call["call"] == "mark:call")
    empty = {"traced": 0, "policy": 0}
    return tuple(call["operations"].get(name, empty)["policy"] for name in COLUMNS)


@pytest.mark.parametrize("zap", ["none", "upstream"])
@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_example(example, zap, tmp_path):
    trace, counts = traced(tmp_path, example.script, zap)
    result = tracekit.replay(trace, [f"batched_zap:rule={rule}" for rule in RULES], kernel_has={"batched_zap": zap})
    for rule in RULES:
        expected = getattr(example, rule)
        if expected is not None:
            assert counted(result, f"batched_zap:rule={rule}") == expected, rule
    # the kernel of the test itself is right
    assert (counts["rmap"], counts["atomics"], counts.get("D", 0)) == counted(result, "as_traced")[:3]
    assert counted(result, "as_traced") == counted(result, f"batched_zap:rule={zap}")


def test_capacity_of_the_mmu_gather():
    """E2.5: 9 698 pages by the old rule, 9 678 single pages or 4 849 ranges by the new one."""
    assert _gather.OLD_CAPACITY == 9_698

    def first(n, slots, *, by_range):
        return _gather.fills(np.zeros(n, np.int64), np.full(n, slots), by_range=by_range).place.tolist()

    assert first(9_698, 1, by_range=False) == [9_697]
    assert first(9_697, 1, by_range=False) == []
    assert first(2 * 9_698, 1, by_range=False) == [9_697, 2 * 9_698 - 1]
    assert first(9_678, 1, by_range=True) == [9_677]
    assert first(9_677, 1, by_range=True) == []
    assert first(4_849, 2, by_range=True) == [4_848]
    assert first(4_848, 2, by_range=True) == []


@pytest.mark.parametrize("zap", ["none", "upstream"])
def test_v1_cuts_a_run_where_the_mmu_gather_is_full(zap, tmp_path):
    """E2.6: 700 folios of 16 pages; "one page table assumed": their pages stand in 22, of which none is crossed."""

    def many(kernel):
        vmas = [
            kernel.map(kernel.folio(0xFFFF_EA00_0010_0000 + i * 16 * 64), addr=0x7F00_0000_0000 + i * 16 * 4096)
            for i in range(700)
        ]
        yield [(vma, range(16)) for vma in vmas]

    trace, _ = traced(tmp_path, many, zap)
    result = tracekit.replay(
        trace, ["batched_zap:rule=v1", "batched_zap:rule=upstream"], kernel_has={"batched_zap": zap}
    )
    v1, upstream = (counted(result, f"batched_zap:rule={rule}") for rule in ("v1", "upstream"))
    assert (v1[0], v1[2]) == (701, 1)
    assert (upstream[0], upstream[2], upstream[3]) == (700, 0, 1_400)
    judgement = batched_zap.POLICY("v1").judge(result.operations)
    if zap == "upstream":
        assert judgement.added["tlb.flush"].sum() == 1
        rows = result.operations.filter(pl.Series(judgement.added["deferred_split.enqueue"] > 0))
        assert [(page - 0xFFFF_EA00_0010_0000) // (16 * 64) for page in rows["folio"]] == [606]


def test_what_is_not_known_is_open(tmp_path):
    """Without the probes of mappings nobody knows where the pages are mapped, nor whether they are anonymous."""
    kernel = Kernel(zap="none")
    kernel.munmap((kernel.map(kernel.folio()), range(16)))
    events = [event for event in kernel.events if "add_new_anon" not in event.name and "deferred" not in event.name]
    trace = traces.write(tmp_path / "t", events, always=("kprobes:folio_remove_rmap_ptes",))
    result = tracekit.replay(trace, ["batched_zap"])
    policy = result.document["policies"][-1]
    assert policy["open"]["runs_that_may_cross_a_page_table"] == 1
    assert policy["operations"]["rmap.remove"] == {"traced": 16, "policy": 1}
    kernel = Kernel()
    kernel.munmap((kernel.map(kernel.folio()), range(16)))
    events = [event for event in kernel.events if "add_new_anon" not in event.name]
    trace = traces.write(tmp_path / "u", events, always=("kprobes:folio_remove_rmap_ptes",))
    policy = tracekit.replay(trace, ["batched_zap:rule=none"]).document["policies"][-1]
    assert policy["open"]["deferred_splits_of_folios_of_unknown_kind"] == 1
    assert "deferred_split.enqueue" not in policy["operations"]


def test_the_kernel_of_a_trace_is_told_by_its_removals(tmp_path):
    for zap in ("none", "upstream"):
        trace, _ = traced(tmp_path, whole, zap)
        has = tracekit.replay(trace).document["trace"]["kernel_has"]["batched_zap"]
        assert (has["variant"], has["source"]) == (zap, "trace")


def at_random(kernel, seed):
    """Folios of 2 to 32 pages, some shared, unmapped bit by bit in any order, and at last all the rest."""
    chance = random.Random(seed)
    vmas = []
    for number in range(6):
        folio = kernel.folio(0xFFFF_EA00_0010_0000 + number * 64 * 64, chance.choice([2, 4, 16, 32]))
        start = 0x7F00_0000_0000 + TABLE * 4 * number + chance.choice([0, TABLE - 3 * 4096])
        tasks = range(7, 7 + chance.choice([1, 1, 2]))  # forked: at the same address
        vmas += [(kernel.map(folio, addr=start, task=task), task) for task in tasks]
    kernel.counts.clear()
    for _ in range(12):
        vma, task = chance.choice(vmas)
        begin = chance.randrange(vma.folio.pages)
        kernel.munmap((vma, range(begin, chance.randint(begin, vma.folio.pages))), task=task)
    for vma, task in vmas:
        kernel.munmap((vma, range(vma.folio.pages)), task=task)
    return kernel


@pytest.mark.parametrize("seed", range(12))
def test_each_kernel_predicts_the_other(seed, tmp_path):
    """The same program on both kernels: calls, atomics and folios queued, from the trace of either."""
    kernels = {zap: at_random(Kernel(zap=zap), seed) for zap in ("none", "upstream")}
    for zap, other in (("none", "upstream"), ("upstream", "none")):
        trace = traces.write(tmp_path / zap, kernels[zap].events, always=(*traces.ALWAYS, *ALWAYS))
        spec = f"batched_zap:rule={other}"
        policy = tracekit.replay(trace, [spec], kernel_has={"batched_zap": zap}).document["policies"][-1]
        expected = [kernels[other].counts[name] for name in ("rmap", "atomics", "D")]
        empty = {"policy": 0}
        assert [policy["operations"].get(name, empty)["policy"] for name in COLUMNS[:3]] == expected, other


@pytest.mark.parametrize(("page_size", "pages"), [(4096, 512), (16384, 2048), (65536, 8192)])
def test_a_pmd_maps_as_many_pages_as_its_table_has_entries(page_size, pages):
    row = {
        "task": 7,
        "time_ns": 1,
        "cpu": 0,
        "seq": 1,
        "kind": Kind.RMAP_REMOVE_PMD,
        "source": 1,
        "folio": 64,
        "page": 64,
    }
    rows = pl.DataFrame([row], schema=COLUMNS_OF_TIMELINE)
    assert find_removals(rows, page_size).table["nr_pages"].to_list() == [pages]
