"""All captures beside the checkout, probes hidden: each walk against the probes' record, each pair of recorders.

``python tests/reconstruct_table.py FOLDER …`` prints the same as a table, with what is not certain and why.
"""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import polars as pl
import pytest
from reconstruct_table import compare, walks_of

import tracekit
from tracekit.machine.reconstruct import reconstruct
from tracekit.machine.timeline import Kind, timeline

SHARED = Path(__file__).resolve().parents[2] / "shared" / "captures"
PROBED = (Kind.TRY_VISIT, Kind.REMOVE_VISIT)
SHARES = {
    # Not one is called certain. These cannot be told from what was recorded: no page fault is among it, and
    "7.2/forkcow-c16-split.tc": (0.96, "each child has replaced four pages; which, no event says"),
    "7.2/filemap-memfd-c16-f2.tc": (0.5, "two of 16 mappings were touched; which, no event says"),
    "7.2/compact.tc": (0.55, "pages of tasks older than the trace, forked from each other: whose, no event says"),
    # timing: forks in the middle of the walks
    "7.2/forkmig.tc": (0.99, "a fork under way"),
}
DIFFERENT_RUNS = {
    "6.12/filemap-memfd-c16-f2": "whose mapping came into the tree when is a race of 16 children, and see above",
    "7.2/filemap-memfd-c16-f2": "the same",
    "6.12/forkmig": "how many children are alive at a walk is a race",
    "7.2/forkmig": "the same",
    "7.2/numab": "the kernel's scan moved 1007 pages in one run, 1024 in the other",
}

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/captures")


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Name → the trace, ingested once for all tests here."""

    @cache
    def of(name):
        source = next(SHARED / name / file for file in ("perf.data", "trace.dat") if (SHARED / name / file).is_file())
        return tracekit.ingest(source, tmp_path_factory.mktemp("captures") / "t.tracekit")

    return of


def named(pattern):
    return sorted(f"{path.parts[-2]}/{path.name}" for path in SHARED.glob(pattern))


@pytest.mark.parametrize("name", named("*/*.tc"))
def test_walks_are_those_that_the_probes_saw(name, trace):
    if not timeline(trace(name))["kind"].is_in(PROBED).any():
        assert "lazyfree" in name, "reclaim moves nothing"
        return
    table, *_ = compare(trace(name))
    assert len(table)
    assert table.filter(pl.col("certain") & ~pl.col("order_right")).is_empty(), "what is called certain is right"
    share, _ = SHARES.get(name, (1.0, ""))
    assert table["order_right"].mean() >= share, table.filter(~pl.col("order_right"))
    assert table["visits_right"].all() or name in SHARES


@pytest.mark.parametrize("name", ["7.2/collapse.tc", "7.2/thp2m-move-munmap.tc", "7.2/thp2m-partial.tc"])
def test_entries_of_pmds_alone_are_enough(name, trace):
    levels = {}
    for fidelity in ("observed", "reconstructed"):
        document = tracekit.replay(trace(name), ["counter_early_exit"], fidelity=fidelity).document
        assert document["fidelity"] == fidelity
        traced = document["policies"][0]["operations"]
        levels[fidelity] = {kind: count for kind, count in traced.items() if kind.endswith(".vma_visit")}
    assert levels["observed"] == levels["reconstructed"] != {}


@pytest.mark.parametrize("name", [name for name in named("*/*.tc") if (SHARED / name).with_suffix(".perf").is_dir()])
def test_without_probes_perf_shows_the_visits_that_they_saw(name, trace):
    """NAME.perf is another run of the same workload: its region alone, the rest depends on where it happened to be."""
    observed = timeline(trace(name))
    if not observed["kind"].is_in(PROBED).any():
        assert "lazyfree" in name, "reclaim moves nothing"
        return
    name = name.removesuffix(".tc")
    made = reconstruct(trace(f"{name}.perf"), timeline(trace(f"{name}.perf"), probes=False)).rows
    real, mine = visits_per_walk(observed, f"{name}.tc"), visits_per_walk(made, f"{name}.perf")
    assert real or "compact" in name, "compaction moved others' pages"
    assert (real == mine) == (name not in DIFFERENT_RUNS), (real, mine)


def visits_per_walk(rows, name):
    """(SET or RESTORE, visits) → walks in the region of the workload."""
    truth = json.loads((SHARED / name / "truth.json").read_text())
    start, size = int(truth["region"]["start"], 16), truth["region"]["len"]
    return Counter(
        (kind, len(visits))
        for (kind, _), (visits, *_) in walks_of(rows).items()
        if any(start <= addr < start + size for _, addr, _ in visits)
    )
