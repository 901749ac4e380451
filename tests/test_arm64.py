"""Real arm64 traces: PTEs and migration entries of both layouts decoded as pagemap says, walks as the probes show.

arch/arm64/include/asm/pgtable.h has the type of a swap entry from bit 3 on up to v6.11, from bit 6 on since v6.12;
which of them a trace has is told from its entries.
"""

import json
import lzma
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import tracekit
from tracekit.machine import pte

FIXTURES = Path(__file__).parents[1] / "fixtures"
LAYOUTS = {"arm64-6.1-forkcow-c4-all": (3, 28), "arm64-7.2-forkcow-c4-all": (6, 25)}  # type_shift, type of a read entry


@pytest.fixture(params=LAYOUTS, scope="module")
def arm64(request, tmp_path_factory):
    folder = FIXTURES / request.param
    trace = tracekit.ingest(folder / "trace.dat", tmp_path_factory.mktemp("arm64") / "trace")
    return folder, trace, json.loads((folder / "truth.json").read_text())


def _entries(trace):
    tables = (trace.events(f"migrate:{name}_migration_pte").collect() for name in ("set", "remove"))
    return [(table["addr"].to_list(), table["pte"].to_numpy().astype(np.uint64)) for table in tables]


def _printed(folder):
    """How many lines trace-cmd report printed of each event; groups it does not print."""
    report = lzma.decompress((folder / "oracle.report.txt.xz").read_bytes()).decode()
    return Counter(re.findall(r" \d+\.\d+: +(\w+): ", report))


def test_rows_are_those_that_trace_cmd_prints(arm64):
    folder, trace, _ = arm64
    printed = _printed(folder)
    rows = Counter()
    for event in trace.event_names:
        rows[event.split(":")[1]] += trace.rows(event)
    assert +rows == printed


def test_frames_are_those_of_pagemap(arm64):
    folder, trace, truth = arm64
    assert trace.manifest["machine"]["arch"] == "aarch64"
    assert trace.manifest["machine"]["page_size"] == 4096
    (set_at, sets), (removed_at, removed) = _entries(trace)
    layout = pte.layout_of(sets, "aarch64", 4096)
    type_shift, read = LAYOUTS[folder.name]
    assert layout.type_shift == type_shift
    assert pte.read_entry_type(np.unique(layout.types(sets)).tolist()) == read
    before = dict(zip(set_at, layout.source_frames(sets).tolist(), strict=True))
    after = dict(zip(removed_at, pte.present_pfn(removed, "aarch64", 4096).tolist(), strict=True))
    pages = [int(truth["region"]["start"], 16) + 4096 * i for i in range(truth["pages"])]
    assert [before[page] for page in pages] == truth["pfn_before"]
    assert [after[page] for page in pages] == truth["pfn_after"]


def test_walks_are_observed_and_every_entry_is_explained(arm64):
    folder, trace, truth = arm64
    result = tracekit.replay(trace)
    assert result.document["fidelity"] == "observed"
    assert result.document["coverage"] == 1
    assert result.document["as_traced"]["operations_reproduced"] == 1
    count = dict(result.operations.group_by("op").len().iter_rows())
    (_, sets), (_, removed) = _entries(trace)
    assert len(sets) >= truth["pages"]
    assert count["migration_entry.set"] == len(sets)
    assert count["migration_entry.restore"] == len(removed)
    printed = _printed(folder)
    assert count["try_to_migrate.vma_visit"] == printed["try_to_migrate_one"]
    # probe and tracepoint have one name
    assert count["remove_migration_ptes.vma_visit"] == printed["remove_migration_pte"] - len(removed)
