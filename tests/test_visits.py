"""Real captures with probes: every visit of every walk, against an independent count from perf script's text.

The captures of the fixtures folder always; those beside the checkout (``../shared/captures``) where they exist.
"""

from functools import cache
from pathlib import Path

import polars as pl
import pytest
import rmap_oracle

from tracekit import pipeline
from tracekit.ingest import ingest
from tracekit.machine import replay as machine
from tracekit.policies import counter_early_exit

ROOT = Path(__file__).resolve().parents[1]
CAPTURES = ROOT.parent / "shared" / "captures"
VISITS = {"try": "try_to_migrate.vma_visit", "remove": "remove_migration_ptes.vma_visit"}


def fixtures():
    """Name → perf.data and the oracle's text, of the fixtures that carry the probes."""
    found = {"demo": (ROOT / "fixtures" / "demo.perf.data", ROOT / "fixtures" / "demo.oracle.script.txt.xz")}
    for data in sorted((ROOT / "fixtures").glob("*/perf.data")):
        if b"try_to_migrate_one" in data.read_bytes():
            found[data.parent.name] = (data, data.with_name("oracle.script.txt.xz"))
    return found


def captures():
    """The same of the captures beside the checkout: regular files, not compressed."""
    found = {}
    for data in sorted(CAPTURES.glob("*/*/perf.data")):
        texts = sorted(data.parent.glob("oracle.script.txt*")) or sorted(data.parent.glob("oracle.perf*.txt*"))
        if data.is_file() and texts and probed(data):
            found[f"{data.parts[-3]}/{data.parts[-2]}"] = (data, texts[0])
    return found


def probed(data):
    head = data.read_bytes()
    return head[:8] == b"PERFILE2" and b"try_to_migrate_one" in head and not data.parent.name.endswith("-z")


SOURCES = {**fixtures(), **captures()}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """Name → replay, ingested once for all tests here."""

    @cache
    def of(name):
        out = tmp_path_factory.mktemp("visits") / "t.tracekit"
        return machine.replay(pipeline.load(ingest(SOURCES[name][0], out)))

    return of


@cache
def oracle(name):
    """Walks that the text tells, in the order they began, task by task."""
    return rmap_oracle.read_walks(rmap_oracle.read_lines(SOURCES[name][1]))


def walks_of(replayed):
    """(task, folio, [(vma, addr, mm, entries)]) of each walk that visits anything, from the operations alone."""
    walks = []
    for kind, name in VISITS.items():
        visits = replayed.operations.filter(pl.col("op") == name)
        # a visit at position 0 begins a walk
        numbered = visits.with_columns(walk=(pl.col("position") == 0).cum_sum().over("task"))
        for (task, _), walk in numbered.group_by("task", "walk", maintain_order=True):
            assert walk["position"].to_list() == list(range(len(walk)))
            assert walk["folio"].n_unique() == 1
            rows = walk.select("vma", "addr", "mm", "nr_pages", "hit").rows()
            walks.append((kind, task, walk["folio"][0], rows))
    return walks


def walks_of_oracle(walks):
    told = []
    for kind in VISITS:
        for tid in dict.fromkeys(walk.tid for walk in sorted(walks, key=lambda walk: walk.tid)):
            for walk in walks:
                if (walk.kind, walk.tid) == (kind, tid) and walk.visits:
                    rows = [(visit.vma, visit.addr, visit.mm, len(visit.entries), visit.hit) for visit in walk.visits]
                    told.append((kind, tid, walk.folio, rows))
    return told


def test_captures_with_probes_are_found():
    assert set(SOURCES) >= {"demo", "7.2-rec-kprobes", "filemap", "pinned", "thp-split", "forkmig-copied"}
    if CAPTURES.is_dir():
        assert set(SOURCES) >= {"7.2/rec.perf-allk", "7.2/rec.perf-kprobes", "7.2/rec.perf-allocs"}


@pytest.mark.parametrize("name", SOURCES)
def test_every_walk_visits_the_same_vmas_in_the_same_order(name, replayed):
    walks, strays = oracle(name)
    assert walks
    mine = replayed(name)
    assert walks_of(mine) == walks_of_oracle(walks)
    assert mine.fidelity == "observed"
    orphans = sum(mine.anomalies.get(f"{what}_without_visit", 0) for what in ("set", "restore"))
    assert orphans == strays


@pytest.mark.parametrize("name", SOURCES)
def test_what_the_counter_leaves_of_each_walk(name, replayed):
    walks, _ = oracle(name)
    mine = replayed(name)
    judgement = counter_early_exit.POLICY().judge(mine.operations)
    visits = mine.operations.with_columns(made=pl.Series(judgement.executed)).filter(pl.col("op") == VISITS["remove"])
    mine_left = visits.with_columns(walk=(pl.col("position") == 0).cum_sum().over("task"))
    mine_left = mine_left.group_by("task", "walk", maintain_order=True).agg(pl.col("made").sum())["made"].to_list()
    removes = [walk for walk in walks if walk.kind == "remove"]
    left = zip(removes, rmap_oracle.counter_early_exit_visits(walks), strict=True)
    assert mine_left == [n for _, n in sorted(left, key=lambda pair: pair[0].tid)]
    assert judgement.unsafe == {"stale_migration_entries": 0}


@pytest.mark.parametrize("name", SOURCES)
def test_entries_set_restored_copied_and_zapped(name, replayed):
    walks, _ = oracle(name)
    counted = replayed(name).operations.group_by("op").len()
    mine = {op.removeprefix("migration_entry."): n for op, n in counted.cast({"op": pl.String}).iter_rows()}
    mine = {of: mine.get(op, 0) for of, op in [("set", "set"), ("restored", "restore"), ("zapped", "zap")]} | {
        "copied": mine.get("fork_copy", 0) + mine.get("collect", 0)
    }
    assert mine == rmap_oracle.count_entries(walks)


@pytest.mark.parametrize("name", SOURCES)
def test_pairs_undos_and_splits(name, replayed):
    """Every remove walk is paired, and moved exactly where the oracle takes it for a migration."""
    walks, _ = oracle(name)
    removed = replayed(name).episodes.filter(pl.col("visits") > 0).sort("task", "first_row")  # a tree may be empty
    removes = sorted((walk for walk in walks if walk.kind == "remove"), key=lambda walk: walk.tid)
    assert removed["dst"].to_list() == [walk.folio for walk in removes]
    assert removed["moved"].to_list() == [walk.real for walk in removes]
    paired = removed.filter("moved")
    assert paired["src"].to_list() == [walk.src for walk in removes if walk.real]
    assert paired["order"].to_list() == [walk.order for walk in removes if walk.real]


# pages, VMAs and what the children copied: fixtures/README.md
POSITION = {"all": 16, "half": 48, "none": 80, "keeplast": 80}


@pytest.mark.parametrize("mode", POSITION)
def test_the_place_in_the_tree_decides_not_the_number_that_map_it(mode, replayed):
    ops = replayed(f"forkcow-c4-{mode}").operations
    judgement = counter_early_exit.POLICY().judge(ops)
    visits = ops.with_columns(made=pl.Series(judgement.executed)).filter(pl.col("op") == VISITS["remove"])
    assert (len(visits), visits["made"].sum()) == (80, POSITION[mode])
    hits = visits.group_by("episode").agg(pl.col("hit").sum())["hit"].unique().to_list()
    # keeplast has as few mapped VMAs as all has, one per page, but it stands last
    assert hits == {"all": [1], "none": [5], "keeplast": [1]}.get(mode, hits)
    assert sorted(hits) == ([1, 5] if mode == "half" else hits)
    last = visits.filter("hit").group_by("episode").agg(pl.col("position").max())["position"].unique().sort().to_list()
    assert last == {"all": [0], "half": [0, 4], "none": [4], "keeplast": [4]}[mode]
