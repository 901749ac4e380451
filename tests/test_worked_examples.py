"""MODEL.md E0: what each worked example must give, through tracekit's front door and by the naive twin.

The input is what a trace of the *stock* kernel shows: its walks have no early exit, so every entry is restored.
"""

from pathlib import Path
from typing import NamedTuple

import naive
import polars as pl
import pytest
import traces

import tracekit
from tracekit.ingest import ingest
from tracekit.machine.operations import SCHEMA
from tracekit.policies import counter_early_exit

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
EXACT, POSTED = "counter_early_exit:counter=exact", "counter_early_exit:counter=posted"
VISIT = "remove_migration_ptes.vma_visit"
SRC, DST = 0x10_0000, 0x20_0000


def moved(*, pages=1, order=0, call="move_pages", dst=DST, **walks):
    """Trace ``pages`` folios that one system call migrates, each visited alike."""
    script = traces.Script()
    script.enter(call)
    script.start()
    for page in range(pages):
        script.migrate(SRC + page * 64, dst + page * 64, walks["tried"], walks["removed"], order=order)
    script.end()
    script.exit(call)
    return script.events


def undone():
    """E0.8: src == dst, nothing is copied."""
    script = traces.Script()
    script.enter("move_pages")
    script.start()
    script.try_to_migrate(SRC, [-1])
    script.remove(SRC, [-1, 2, 3])
    script.end()
    script.exit("move_pages")
    return script.events


def forked(link, copied):
    """P forks C; the events ``link`` (C's VMA enters the tree) and ``copied`` (fork is past it) come at these points.

    0: before the walk, 1: in it, after P's entry was set, 2: after the walk.
    """
    script = traces.Script()

    def fork(point):
        if link == point:
            script.add("kprobes:anon_vma_fork", task=8, vma=0x102, pvma=0x101)
        if copied == point:
            script.add("sched:sched_process_fork", task=8, parent_pid=8, child_pid=9)

    script.enter("move_pages")
    script.start()
    fork(0)
    script.try_to_migrate(SRC, [-1], returns=False)
    fork(1)
    script.add("kprobes:try_to_migrate_ret")
    fork(2)
    script.copy(SRC, DST)
    script.remove(DST, [-1, -2])
    script.end()
    script.exit("move_pages")
    return script.events


def collected(*, shared):
    """E0.10: a driver's migrate_vma() on P (VMA 2) sets P's entry unseen; C (VMA 1) comes first in the tree."""
    script = traces.Script()
    script.enter("ioctl")
    if shared:
        script.try_to_migrate(SRC, [-1])
    script.copy(SRC, DST)
    script.remove(DST, [-1, -2] if shared else [1, -2])
    script.exit("ioctl")
    return script.events


class Example(NamedTuple):
    """A row of the table; ``ttm``: visits of each try walk; ``open``: of posted, where it is not zero."""

    name: str
    events: list
    ttm: int
    base: int
    exact: int
    posted: int
    stale: int = 0
    open: dict = {}  # noqa: RUF012 -- read only


LATE_ZAP = {"walks_that_may_be_full": 1}  # no event shows when an entry was zapped
EXAMPLES = [
    Example("E0.1", moved(pages=3, tried=[-1], removed=[-1, 2, 3, 4, 5]), 1, 15, 3, 3),
    Example("E0.2", moved(tried=[1, -2, -3, -4], removed=[1, -2, -3, -4]), 4, 4, 4, 4),
    Example("E0.2b", moved(tried=[-1, 2, -3], removed=[-1, 2, -3, 4]), 3, 4, 3, 3),
    Example("E0.3", moved(tried=[-1, -2], removed=[-1, -2]), 2, 2, 2, 2),
    Example("E0.4", forked(2, 2), 1, 2, 2, 2),
    Example("E0.5", forked(0, 1), 1, 2, 2, 1, stale=1),
    Example("E0.5, when unknown", forked(0, 2), 1, 2, 2, 2, open={"stale_migration_entries": 1}),
    Example("E0.6", moved(tried=[-1, -2, -3], removed=[-1, -2, 3]), 3, 3, 2, 2, open=LATE_ZAP),
    Example("E0.7", moved(tried=[-1], removed=[1, 2, 3]), 1, 3, 1, 1, open=LATE_ZAP),
    Example("E0.8", undone(), 1, 3, 3, 3),
    # 3 in the table: that the zap came during the walk is what no event shows, see below
    Example("E0.9", moved(tried=[-1, -2], removed=[1, -2, 3]), 2, 3, 2, 2, open=LATE_ZAP),
    Example("E0.10", collected(shared=True), 1, 2, 2, 1, stale=1),
    Example("E0.10b", collected(shared=False), 0, 2, 2, 2),
    # P, C3, C2, C1: a file's fork links the youngest child next to its parent
    Example("E0.11", moved(tried=[1, 4, 3, -2], removed=[1, 4, 3, -2]), 4, 4, 4, 4),
    Example("E0.11, anon", moved(tried=[1, -2], removed=[1, -2, 3, 4]), 2, 4, 2, 2),
    Example("E0.13", moved(tried=[-1], removed=[-1, 2, 3], order=4), 1, 3, 3, 3),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_example_by_tracekit(example, tmp_path):
    result = tracekit.replay(traces.write(tmp_path / "t", example.events), [EXACT, POSTED])
    assert result.document["fidelity"] == "observed"
    tries = result.operations.filter(pl.col("op") == "try_to_migrate.vma_visit")
    assert all(count == example.ttm for count in tries.group_by("episode").len()["len"])
    assert tries.is_empty() == (example.ttm == 0)
    by_spec = {policy["spec"]: policy for policy in result.document["policies"]}
    for spec, visits, stale in ((EXACT, example.exact, 0), (POSTED, example.posted, example.stale)):
        policy = by_spec[spec]
        assert policy["operations"][VISIT] == {"traced": example.base, "policy": visits}
        assert policy["unsafe"] == {"stale_migration_entries": stale}
        assert {name: n for name, n in policy["open"].items() if n} == (example.open if spec == POSTED else {})
    assert by_spec["as_traced"]["operations"][VISIT] == {"traced": example.base, "policy": example.base}


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_example_by_the_twin(example):
    replayed, links = naive.replay(example.events), naive.forks(example.events)
    seqs = {op.seq for op in replayed.operations if op.op == VISIT}
    tries = [len(walk.visits) for walk in replayed.walks if walk.phase == "try"]
    assert set(tries) == ({example.ttm} if example.ttm else set())
    assert len(seqs) == example.base
    exact = naive.counter_early_exit(replayed, links)
    posted = naive.counter_early_exit(replayed, links, counter="posted")
    assert [len(seqs - judged.spared) for judged in (exact, posted)] == [example.exact, example.posted]
    assert [exact.stale, posted.stale] == [0, example.stale]
    assert {name: n for name, n in posted.open.items() if n} == example.open


def test_without_events_of_migrate_pages_a_copied_entry_is_not_taken_for_a_drivers(tmp_path):
    """E0.4 where mm_migrate_pages_start was not recorded: nothing says that the entry was set outside of it."""
    events = [event for event in forked(2, 2) if not event.name.startswith("migrate:mm_")]
    always = [name for name in traces.ALWAYS if not name.startswith("migrate:mm_")]
    result = tracekit.replay(traces.write(tmp_path / "t", events, always=always), [POSTED])
    policy = result.document["policies"][-1]
    assert policy["operations"]["migration_entry.fork_copy"] == {"traced": 1, "policy": 1}
    assert policy["operations"][VISIT] == {"traced": 2, "policy": 2}
    assert policy["unsafe"] == {"stale_migration_entries": 0}


def judged(ops, counter="exact"):
    judgement = counter_early_exit.POLICY(counter=counter).judge(ops)
    made = ops.with_columns(n=pl.Series(judgement.executed)).filter(pl.col("op") == VISIT)["n"].sum()
    return made, judgement.unsafe["stale_migration_entries"]


def test_zapped_during_the_walk_the_posted_count_stays_too_high(tmp_path):
    events = next(example.events for example in EXAMPLES if example.name == "E0.9")
    ops = tracekit.replay(traces.write(tmp_path / "t", events)).operations
    zap = pl.col("op") == "migration_entry.zap"
    in_walk = pl.when(zap).then(pl.lit("during_walk", SCHEMA["window"])).otherwise(pl.col("window")).alias("window")
    assert ops.filter(zap)["window"].to_list() == ["unknown"]
    assert judged(ops.with_columns(in_walk), "posted") == (3, 0)
    assert judged(ops.with_columns(in_walk)) == (2, 0)


def test_the_full_letter():
    """E0.1 at its full size, on the policy alone: 1 280 folios x 1 001 VMAs."""
    folios, vmas = 1_280, 1_001
    ops = pl.concat(
        [
            table("migration_entry.set", range(folios)),
            table(VISIT, [e for e in range(folios) for _ in range(vmas)], position=list(range(vmas)) * folios),
        ]
    ).with_columns(nr_pages=((pl.col("op") != VISIT) | (pl.col("position") == 0)).cast(pl.Int64))
    assert (ops["op"] == VISIT).sum() == 1_281_280
    assert judged(ops) == (1_280, 0)


def test_ksm_makes_two_passes_and_stops_in_either(tmp_path):
    """A.1, D.2: a KSM page that P (VMA 1) maps at two addresses; C, forked from it, comes in the second pass."""
    script = traces.Script()
    script.enter("move_pages")
    script.start()
    script.add("kprobes:try_to_migrate", folio=SRC)
    for addr in (0x7000, 0x9000):
        script.visits("set", SRC, [-1], addr=addr)
    script.add("kprobes:try_to_migrate_ret")
    script.copy(SRC, DST)
    for vma in (-1, 2):
        for addr in (0x7000, 0x9000):
            script.visits("remove", DST, [vma], addr=addr)
    script.end()
    script.exit("move_pages")
    result = tracekit.replay(traces.write(tmp_path / "t", script.events), [EXACT, POSTED])
    for policy in result.document["policies"][-2:]:
        assert policy["operations"][VISIT] == {"traced": 4, "policy": 2}
        assert policy["unsafe"] == {"stale_migration_entries": 0}
    visits = result.operations.filter(pl.col("op") == VISIT)
    assert visits["position"].to_list() == [0, 1, 2, 3]
    assert visits["episode"].n_unique() == 1


@pytest.mark.parametrize("name", ["E0.5", "E0.10"])
def test_what_is_unsafe_can_be_looked_up_in_the_trace(name, tmp_path):
    example = next(example for example in EXAMPLES if example.name == name)
    result = tracekit.replay(traces.write(tmp_path / "t", example.events), [EXACT, POSTED])
    (proof,) = result.proof.iter_rows(named=True)
    event = example.events[proof["seq"]]
    assert (proof["policy"], proof["outcome"]) == (POSTED, "stale_migration_entries")
    assert event.name == "migrate:remove_migration_pte"
    assert (proof["time_ns"], proof["task"], proof["addr"]) == (event.time_ns, event.task, event.fields["addr"])
    made = {"E0.5": "migration_entry.fork_copy", "E0.10": "migration_entry.collect"}[name]
    assert proof["made_by"] == made
    if name == "E0.5":  # between the link of the child's VMA and the end of the fork
        linked = next(event for event in example.events if event.name == "kprobes:anon_vma_fork")
        assert proof["made_ns"] == linked.time_ns
    result.write(tmp_path / "out")
    assert tracekit.result.open_result(tmp_path / "out").proof.equals(result.proof)


def table(op, episodes, **columns):
    """Rows of an operations table: small folios, moved, all seen."""
    facts = {"op": op, "order": 0, "known": True, "moved": True, "nr_pages": 1}
    frame = pl.DataFrame({"episode": list(episodes), **columns}).with_columns(
        pl.lit(value).alias(name) for name, value in facts.items()
    )
    missing = [pl.lit(None).alias(name) for name in SCHEMA if name not in frame.columns]
    return frame.with_columns(missing).select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())


def test_the_limit_of_the_count(monkeypatch):
    """E0.12: refused above 16 777 215 entries. A table of that size is too large for a test: the limit is lowered."""
    assert counter_early_exit._LIMIT == naive.LIMIT == 16_777_215
    monkeypatch.setattr(counter_early_exit, "_LIMIT", 5)
    visits = table(VISIT, [0] * 9, position=list(range(9)), vma=list(range(9))).with_columns(
        nr_pages=pl.when(pl.col("position") == 1).then(5).otherwise(0).cast(pl.Int64)
    )
    for entries, left in ((5, 2), (6, 9)):
        for counter in ("exact", "posted"):
            ops = pl.concat([table("migration_entry.set", [0] * entries), visits])
            assert judged(ops, counter)[0] == left, (entries, counter)


@pytest.mark.parametrize("counter", ["exact", "posted"])
def test_a_fork_that_takes_the_count_over_its_limit_clears_it(counter, monkeypatch):
    """A.1: an increment at 0xffffff clears the type, and the walk goes on to its end."""
    monkeypatch.setattr(counter_early_exit, "_LIMIT", 5)
    visits = table(VISIT, [0] * 9, position=list(range(9)), vma=list(range(9))).with_columns(
        nr_pages=pl.when(pl.col("position") < 6).then(1).otherwise(0).cast(pl.Int64)
    )
    copies = table("migration_entry.fork_copy", [0], window=["after_walk"])
    assert judged(pl.concat([table("migration_entry.set", [0] * 4), copies, visits]), counter)[0] < 9
    assert judged(pl.concat([table("migration_entry.set", [0] * 5), copies, visits]), counter)[0] == 9


def test_traces_made_by_hand_have_the_columns_of_ingested_ones(tmp_path):
    real = tracekit.open(ingest(FIXTURES / "demo.perf.data", tmp_path / "demo.tracekit"))
    made = traces.write(tmp_path / "t", EXAMPLES[0].events)
    for name in set(made.event_names) & set(real.event_names):
        theirs, ours = (trace.events(name).collect_schema() for trace in (real, made))
        assert {key: theirs[key] for key in ours} == dict(ours), name


def test_examples_do_not_depend_on_the_clock(tmp_path):
    """The same events at other times: nothing but their order counts."""
    example = next(example for example in EXAMPLES if example.name == "E0.1")
    events = [event._replace(time_ns=event.time_ns * 7919) for event in example.events]
    result = tracekit.replay(traces.write(tmp_path / "t", events), [EXACT])
    assert result.document["policies"][-1]["operations"][VISIT] == {"traced": 15, "policy": 3}
