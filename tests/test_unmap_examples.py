"""MODEL.md E4: what each worked example must give, traced by kernels that unmap page by page and by such that batch."""

from typing import NamedTuple

import polars as pl
import pytest
import traces
import unmapping
from unmapping import ALWAYS, TABLE, Kernel

import tracekit

PAGE, WHOLE = "batched_unmap:rule=page", "batched_unmap:rule=whole"
V2, V3 = "batched_unmap:rule=partial,respect_write=false", "batched_unmap:rule=partial"
NAMES = ("try_to_unmap.vma_visit", "rmap.remove", "tlb.pend", "deferred_split.enqueue")
CROSSING = 0x7F00_0000_0000 + TABLE - 5 * 4096
SECOND = 0x7F00_1000_0000
MASK = (1 << 40) - 1  # what a PTE holds of an address


def lazyfree(kernel, **map_):
    folio = kernel.folio()
    vma = kernel.map(folio, **map_)
    kernel.free(folio)
    return folio, vma


def clean(kernel):
    folio, vma = lazyfree(kernel)
    return folio, [vma]


def redirtied(kernel):
    folio, vma = lazyfree(kernel)
    folio.dirty = frozenset({5})
    return folio, [vma]


def partial(kernel):
    folio, vma = lazyfree(kernel)
    kernel.munmap((vma, range(4)))
    return folio, [vma]


def crossing(kernel, dirty=()):
    folio, vma = lazyfree(kernel, addr=CROSSING)
    folio.dirty = frozenset(dirty)
    return folio, [vma]


def crossing_dirty(kernel):
    return crossing(kernel, {9})


def two_vmas(kernel, dirty=()):
    folio = kernel.folio()
    vmas = [kernel.map(folio, range(8)), kernel.map(folio, range(8, 16), addr=SECOND)]
    kernel.free(folio)
    folio.dirty = frozenset(dirty)
    return folio, vmas


def two_vmas_dirty(kernel):
    return two_vmas(kernel, {12})


def pinned(kernel):
    folio, vma = lazyfree(kernel)
    folio.pinned = True
    return folio, [vma]


def shared(kernel):
    folio = kernel.folio()
    vmas = [kernel.map(folio), kernel.map(folio, task=8)]
    kernel.free(folio)
    return folio, vmas


def half_read_only(kernel):
    folio, vma = lazyfree(kernel, read_only=range(8, 16))
    return folio, [vma]


def hole(kernel):
    folio, vma = lazyfree(kernel)
    kernel.munmap((vma, [7]))
    return folio, [vma]


class Example(NamedTuple):
    """A row of the table: (visits, rmap calls, pends, D, PTEs left); None: not in the table, or not to be had."""

    name: str
    script: object
    page: tuple
    whole: tuple
    partial: tuple
    unsafe: int = 0


EXAMPLES = [
    Example("E4.1", clean, (1, 16, 16, 1, 0), (1, 1, 1, 0, 0), (1, 1, 1, 0, 0)),
    Example("E4.2", redirtied, (1, 5, 6, 1, 11), (1, 0, 1, 0, 16), (1, 0, 1, 0, 16)),
    Example("E4.3", partial, (1, 12, 12, 0, 0), (1, 12, 12, 0, 0), (1, 1, 1, 0, 0)),
    Example("E4.4", crossing, (1, 16, 16, 1, 0), (1, 16, 16, 1, 0), (1, 2, 2, 1, 0), unsafe=1),
    Example("E4.4d", crossing_dirty, (1, 9, 10, 1, 7), None, (1, 1, 2, 1, 11)),
    Example("E4.5", two_vmas, (2, 16, 16, 1, 0), (2, 16, 16, 1, 0), (2, 2, 2, 1, 0)),
    Example("E4.5d", two_vmas_dirty, (2, 12, 13, 1, 4), None, (2, 1, 2, 1, 8)),
    Example("E4.6", pinned, (1, 0, 1, 0, 16), (1, 0, 1, 0, 16), (1, 0, 1, 0, 16)),
    Example("E4.7", shared, (2, 32, 32, 1, 0), (2, 2, 2, 0, 0), (2, 2, 2, 0, 0)),
    Example("E4.8", half_read_only, (1, 16, 16, 1, 0), (1, 1, 1, 0, 0), (1, 1, 1, 0, 0)),
    Example("E4.9", hole, (1, 15, 15, 0, 0), (1, 15, 15, 0, 0), (1, 2, 2, 0, 0)),
]


def traced(tmp_path, script, unmap):
    """The trace of ``script`` by a kernel with that rule; the reclaim in question lies between two marks."""
    kernel = Kernel(unmap=unmap)
    folio, vmas = script(kernel)
    kernel.counts.clear()
    mapped = sum(folio.mapped)
    kernel.add("ftrace:print", buf="call_begin")
    kernel.reclaim(folio, *vmas)
    kernel.add("ftrace:print", buf="call_end")
    trace = traces.write(tmp_path / unmap, kernel.events, always=(*traces.ALWAYS, *ALWAYS))
    return trace, mapped, dict(kernel.counts), sum(folio.mapped), folio


def counted(result, spec, mapped):
    policy = next(policy for policy in result.document["policies"] if policy["spec"] == spec)
    assert policy["judgeable"], policy
    operations = next(call for call in policy["calls"] if call["call"] == "mark:call")["operations"]
    found = {name: operations.get(name, {"policy": 0})["policy"] for name in (*NAMES, "rmap.remove_pages")}
    return (*(found[name] for name in NAMES), mapped - found["rmap.remove_pages"])


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_example_from_a_kernel_that_unmaps_page_by_page(example, tmp_path):
    trace, mapped, counts, left, _ = traced(tmp_path, example.script, "page")
    result = tracekit.replay(trace, [PAGE, WHOLE, V2, V3], kernel_has={"batched_unmap": "page"})
    assert counted(result, "as_traced", mapped) == example.page == counted(result, PAGE, mapped)
    assert counted(result, V2, mapped) == example.partial
    assert counted(result, V3, mapped) == example.partial
    by_spec = {policy["spec"]: policy for policy in result.document["policies"]}
    if example.unsafe:
        assert by_spec[WHOLE]["unsafe"] == {"reads_beyond_the_page_table": example.unsafe}
    elif example.whole is not None:
        assert counted(result, WHOLE, mapped) == example.whole
        assert by_spec[WHOLE]["unsafe"] == {"reads_beyond_the_page_table": 0}
    assert by_spec[V2]["losses"] == {"pages_left_mapped": example.partial[4] - example.page[4]}
    # the kernel of the test itself is right
    assert (counts["visits"], counts.get("rmap", 0), counts["pends"], counts.get("D", 0), left) == example.page


# Where a page must be kept a kernel that batches does not show which: those before it are open
FROM_BATCHED = [example for example in EXAMPLES if "dirt" not in example.script.__name__]


@pytest.mark.parametrize("example", FROM_BATCHED, ids=[example.name for example in FROM_BATCHED])
def test_example_from_a_kernel_that_batches(example, tmp_path):
    trace, mapped, counts, left, _ = traced(tmp_path, example.script, "partial")
    result = tracekit.replay(trace, [PAGE, WHOLE, V2, V3], kernel_has={"batched_unmap": "partial"})
    assert counted(result, "as_traced", mapped) == example.partial == counted(result, V3, mapped)
    assert counted(result, PAGE, mapped) == example.page
    if not example.unsafe:
        assert counted(result, WHOLE, mapped) == example.whole
    assert (counts["visits"], counts.get("rmap", 0), counts["pends"], counts.get("D", 0), left) == example.partial


@pytest.mark.parametrize("script", [redirtied, crossing_dirty, two_vmas_dirty])
def test_pages_before_a_bad_one_are_open_where_the_kernel_batches(script, tmp_path):
    trace, mapped, *_ = traced(tmp_path, script, "partial")
    result = tracekit.replay(trace, [PAGE], kernel_has={"batched_unmap": "partial"})
    policy = result.document["policies"][-1]
    example = next(example for example in EXAMPLES if example.script is script)
    assert counted(result, "as_traced", mapped) == example.partial
    assert policy["open"]["visits_that_may_take_pages_out_first"] == 1
    assert policy["losses"]["folios_set_swapbacked"] == 1


def test_what_is_set_swapbacked(tmp_path):
    """E4.2, E4.6: page by page whatever the reason; else only if it is dirty, which the trace does not say."""
    for script, is_dirty in ((redirtied, True), (pinned, False)):
        for unmap in ("page", "partial"):
            trace, _, _, _, folio = traced(tmp_path / script.__name__, script, unmap)
            assert folio.swapbacked == (unmap == "page" or is_dirty)
            policies = tracekit.replay(trace, [PAGE, V2], kernel_has={"batched_unmap": "none"}).document["policies"]
            by_spec = {policy["spec"]: policy for policy in policies}
            assert by_spec[PAGE]["losses"]["folios_set_swapbacked"] == 1
            assert by_spec[V2]["open"]["folios_set_swapbacked"] == 1


def test_runs_that_differ_in_being_writable(tmp_path):
    """E4.8: V2 1, V3 2, from a kernel that respects it; another's trace does not show it."""
    trace, mapped, *_ = traced(tmp_path, half_read_only, "respect_write")
    result = tracekit.replay(trace, [PAGE, WHOLE, V2, V3])
    assert counted(result, V3, mapped)[1] == 2
    assert counted(result, V2, mapped)[1] == 1
    assert counted(result, PAGE, mapped)[1] == 16
    assert counted(result, WHOLE, mapped)[1] == 1
    assert result.document["trace"]["kernel_has"]["batched_unmap"]["variant"] == "partial"


def test_swap_backed_folios_go_page_by_page_under_every_rule(tmp_path):
    kernel = Kernel(unmap="page")
    folio = kernel.folio()
    vma = kernel.map(folio)
    kernel.reclaim(folio, vma)
    trace = traces.write(tmp_path / "t", kernel.events, always=(*traces.ALWAYS, *ALWAYS))
    result = tracekit.replay(trace, [PAGE, WHOLE, V2, V3], kernel_has={"batched_unmap": "page"})
    for policy in result.document["policies"][-4:]:
        assert policy["operations"]["rmap.remove"] == {"traced": 16, "policy": 16}, policy["spec"]


def migrating(tmp_path, *, partly=False, requeues=True):
    """E4.10: a fully mapped folio of 16 pages is migrated; dst is queued, too, if the kernel found src marked."""
    kernel = Kernel()
    folio = kernel.folio()
    vma = kernel.map(folio)
    if partly:
        kernel.munmap((vma, [15]))
    kernel.counts.clear()
    kernel.enter("move_pages")
    kernel.add("kprobes:try_to_migrate", folio=folio.address)
    kernel.add("kprobes:try_to_migrate_one", folio=folio.address, vma=0x101, addr=vma.addr, mm=0x201)
    for page in sorted(vma.present):
        addr = vma.addr_of(page)
        kernel.add("migrate:set_migration_pte", addr=addr, pte=traces.pte("set", folio.address & MASK), order=4)
        kernel.remove(vma, [page])
    kernel.add("kprobes:try_to_migrate_ret")
    new = folio.address + (1 << 20)
    kernel.copy(folio.address, new)
    if requeues:
        kernel.add("kprobes:deferred_split_folio", folio=new, partially_mapped=1)
    kernel.add("kprobes:remove_migration_pte", folio=new, vma=0x101, addr=vma.addr, mm=0x201)
    for page in range(15 if partly else 16):
        kernel.add(
            "migrate:remove_migration_pte", addr=vma.addr_of(page), pte=traces.pte("remove", new & MASK), order=4
        )
    kernel.exit("move_pages")
    return traces.write(tmp_path / "t", kernel.events, always=(*traces.ALWAYS, *ALWAYS))


@pytest.mark.parametrize(
    ("partly", "requeues", "queued"),
    [
        (False, False, (1, 0)),  # 6.12 as the model has it
        (False, True, (2, 0)),  # 6.18 and later, and 6.12.107
        (True, True, (2, 2)),  # it was partially mapped before: that is no doing of the migration
    ],
)
def test_migration_queues_what_it_moves(partly, requeues, queued, tmp_path):
    """E4.10."""
    result = tracekit.replay(migrating(tmp_path, partly=partly, requeues=requeues), ["batched_migrate_unmap"])
    operations = result.document["policies"][-1]["operations"]
    assert tuple(operations["deferred_split.enqueue"].values()) == queued
    removed = 15 if partly else 16
    inside = result.operations.filter((pl.col("op") == "rmap.remove") & (pl.col("phase") == "try_to_migrate"))
    assert len(inside) == removed
    assert operations["rmap.remove"] == {"traced": removed + partly, "policy": 1 + partly}


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_where_a_page_table_ends_is_told_by_the_page_size(page_size, tmp_path, monkeypatch):
    monkeypatch.setattr(unmapping, "FOLIO_BYTES", page_size)
    monkeypatch.setattr(unmapping, "TABLE", page_size * page_size // 8)

    def script(kernel):
        folio, vma = lazyfree(kernel, addr=0x7F00_0000_0000 + unmapping.TABLE - 5 * page_size)
        return folio, [vma]

    trace, *_ = traced(tmp_path, script, "page")
    trace.manifest["machine"] |= {"arch": "aarch64", "page_size": page_size}
    result = tracekit.replay(trace, [WHOLE, V3], kernel_has={"batched_unmap": "page"})
    whole = next(policy for policy in result.document["policies"] if policy["spec"] == WHOLE)
    assert whole["unsafe"] == {"reads_beyond_the_page_table": 1}
    assert counted(result, V3, 16)[:2] == (1, 2)
