"""Page frames that migration entries and PTEs decode to, against those that pagemap showed before and after.

truth.json of ../shared/captures has both for one region of the workload; the processes forked from it map other frames
at the same addresses, so the chain of its own frames is followed from the first.
"""

import json
from pathlib import Path

import polars as pl
import pytest

import tracekit
from tracekit.machine import pte
from tracekit.machine.entries import find_entries
from tracekit.machine.replay import replay
from tracekit.machine.timeline import Kind

SHARED = Path(__file__).parents[2] / "shared" / "captures"
PAGE, PAGES_OF_PMD = 4096, 512
# capture → pages of the region with an entry: as many as pagemap says were moved, or split where they lay
CAPTURES = {
    "6.12/forkcow-c16-half.tc": 64,
    "6.12/thp2m-fork-move.tc": 2048,
    "6.12/lazyfree64-partial.perf": 384,  # split, and discarded after
    "7.2/filemap-memfd-c16-f2.perf": 64,
    "7.2/forkcow-c64-all.perf": 64,
    "7.2/mthp64-partial.tc": 64,
    "7.2/numab.perf": 1024,
    "7.2/pinned-vmsplice.tc": 128,
    "7.2/thp2m-move-munmap.perf": 2048,  # by PMD
    "7.2/compact.perf": 0,  # compaction moved others' pages
    "7.3/forkcow-c4-all.perf": 64,
}
# The last of these moves happens after pagemap was read.
MOVES_ON = {"pinned": -1}


def moves(trace, until_ns):
    """Page → (frame before, frame after or None where no restore was seen), in order of time."""
    made = replay(trace)
    entries = find_entries(made.rows, made.walks)
    event = made.rows["event"].cast(pl.String).gather(entries["row"])
    entries = entries.with_columns(pages=pl.when(event.str.ends_with("_pmd")).then(PAGES_OF_PMD).otherwise(1))
    sets = entries.filter((pl.col("kind") == Kind.SET) & (pl.col("time_ns") < until_ns))
    ends = entries.filter(pl.col("kind") == Kind.RESTORE).select(row="partner", new="pte")
    both = sets.join(ends, on="row", how="left").sort("row")
    src = pte.migration_entry_pfn(both["pte"].to_numpy(), "x86_64")
    dst = pte.present_pfn(both["new"].fill_null(0).to_numpy(), "x86_64")
    found = {}
    seen = both["new"].is_not_null()
    for addr, before, after, known, pages in zip(both["addr"], src, dst, seen, both["pages"], strict=True):
        for i in range(pages):
            move = (int(before) + i, int(after) + i if known else None)
            found.setdefault(addr // PAGE + i, []).append(move)
    return found


@pytest.mark.skipif(not SHARED.exists(), reason="the shared captures are not beside the checkout")
@pytest.mark.parametrize("name", CAPTURES)
def test_frames_are_those_of_pagemap(name, tmp_path):
    folder = SHARED / name
    truth = json.loads((folder / "truth.json").read_text())
    source = next(folder / file for file in ("perf.data", "trace.dat") if (folder / file).exists())
    last = MOVES_ON.get(truth["workload"])
    until_ns = truth["calls"][last]["t_ns"] if last is not None else 1 << 62
    found = moves(tracekit.ingest(source, tmp_path / "trace"), until_ns)
    first = int(truth["region"]["start"], 16) // PAGE
    touched = 0
    for i, before in enumerate(truth["pfn_before"]):
        here = found.get(first + i, [])
        frame = before
        for src, dst in here:
            frame = dst if src == frame else frame
        touched += any(src == before for src, _ in here)
        after = truth.get("pfn_after", truth["pfn_before"])[i]
        if "pfn_after" in truth and after >= 0 <= before:  # -1: nothing was mapped there
            assert frame == after, f"page {i}: {before:#x} became {after:#x}, not {frame}"
    assert touched == CAPTURES[name]
