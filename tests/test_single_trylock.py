"""MODEL.md E3: one attempt to lock a page in migrate_vma() or two, each worked example; and the measured pair."""

from pathlib import Path

import pytest
import traces

import tracekit
from tracekit import validation
from tracekit.policies.single_trylock import Outcome, Pages, outcome

TRUTH = Path(__file__).resolve().parents[2] / "shared" / "truth" / "5-migrate-vma-retry"
NO, TWICE = "single_trylock:rule=noretry", "single_trylock:rule=retry2"
PAGE = 0x1000
GOOD = 8


@pytest.mark.parametrize(
    ("name", "pages", "old", "new"),
    [
        ("E3.1", Pages(at_once=GOOD), Outcome(8, 16, 8, 8, 0), Outcome(8, 8, 8, 8, 0)),
        (
            "E3.2: ok, ok, locked then free, locked twice, hole, pinned, ok, isolation fails",
            Pages(at_once=5, second=1, never=1, kept=1, pinned=1, holes=1),
            Outcome(9, 9, 5, 4, 1),
            Outcome(7, 4, 4, 3, 0),
        ),
        ("E3.5: four, all locked at first", Pages(second=4), Outcome(8, 8, 4, 4, 4), Outcome(4, 0, 0, 0, 0)),
    ],
)
def test_closed_form(name, pages, old, new):
    assert (outcome(pages, "retry2"), outcome(pages, "noretry")) == (old, new), name


class Driver(traces.Script):
    """migrate_vma() in a driver's system call."""

    def restore(self, place, *, moved=True, shared=0, src=0x10_0000):
        """One page's way: collected unseen; ``shared``: mapped by so many more, whose entries try_to_migrate sets."""
        src += place * 64
        addr = 0x7000_0000 + place * PAGE
        if shared:
            self.try_to_migrate(src, [-n for n in range(2, 2 + shared)], addr=addr)
        dst = src + 0x10_0000 if moved else src
        if moved:
            self.copy(src, dst)
        self.add("kprobes:remove_migration_ptes", dst=dst, src=src)
        self.remove(dst, [-n for n in range(1, 2 + shared)], addr=addr)

    def second_chance(self, place):
        """A page that a kernel which tries twice won at the second attempt: try_to_migrate unmaps it."""
        src, addr = 0x10_0000 + place * 64, 0x7000_0000 + place * PAGE
        self.try_to_migrate(src, [-1], addr=addr)
        self.copy(src, src + 0x10_0000)
        self.remove(src + 0x10_0000, [-1], addr=addr)


@pytest.fixture
def replayed(tmp_path):
    def of(script, *specs, **options):
        result = tracekit.replay(traces.write(tmp_path / "t", script.events), specs, **options)
        return {policy["spec"]: policy for policy in result.document["policies"]}

    return of


def counts(policy):
    return {op: (one["traced"], one["policy"]) for op, one in policy["operations"].items()}


def call(*places, **how):
    script = Driver()
    script.enter("ioctl")
    for place in places:
        script.restore(place, **how)
    script.exit("ioctl")
    return script


def test_e3_1_all_good(replayed):
    found = replayed(call(*range(GOOD)), NO, TWICE)
    made = counts(found["as_traced"])
    assert made["migration_entry.collect"] == (GOOD, GOOD)
    assert made["migration_entry.restore"] == (GOOD, GOOD)
    assert "migration_entry.set" not in made
    assert counts(found[TWICE])["page.check"] == (0, 16 - 8)
    assert set(found[TWICE]["open"].values()) == {0}, "none between them was left alone"
    assert found[NO]["kernel_has"], "7.2 tries once"


def test_e3_2_an_interval(replayed):
    """The trace of the new kernel: 0, 1, 6 migrated, 5 and 7 put back, of 2, 3 and 4 nothing."""
    script = Driver()
    script.enter("ioctl")
    for place in (0, 1, 5, 6, 7):
        script.restore(place, moved=place in (0, 1, 6))
    script.exit("ioctl")
    found = replayed(script, TWICE)[TWICE]
    pages = Pages(at_once=5, second=1, never=1, kept=1, pinned=1, holes=1)
    old, new = outcome(pages, "retry2"), outcome(pages, "noretry")
    assert 0 <= old.trylocks - new.trylocks <= found["open"]["trylocks_more"] == 3
    assert 0 <= old.migrated - new.migrated <= found["open"]["pages_more_migrated"] == 3
    # the five that were locked; that two of them stayed where they were is not known without their source
    assert old.checks - new.checks <= counts(found)["page.check"][1] == 5


def test_e3_2_undone_the_second_chance_is_lost(replayed):
    """The same by the old kernel: the third page was won at the second attempt."""
    script = Driver()
    script.enter("ioctl")
    for place in (0, 1, 5, 6, 7):
        script.restore(place, moved=place in (0, 1, 6))
    script.second_chance(2)
    script.exit("ioctl")
    found = replayed(script, NO, TWICE, kernel_has={"single_trylock": "retry2"})
    assert found[TWICE]["kernel_has"]
    assert found[NO]["losses"] == {"pages_not_migrated": 1}
    assert counts(found[NO])["migration_entry.set"] == (1, 0)
    assert found[NO]["ratio"] is None or found[NO]["ratio"]["median"] == 1.0, "a loss is no saving"


def test_e3_3_flushes_are_as_traced(replayed, monkeypatch):
    """16 pages of one table, exclusive: each flushed, and the range once."""
    import polars as pl  # noqa: PLC0415

    monkeypatch.setitem(traces.TABLES, "tlb:tlb_flush", {"reason": pl.Int32, "pages": pl.UInt64})
    script = Driver()
    script.enter("ioctl")
    for _ in range(16):
        script.add("tlb:tlb_flush", reason=2, pages=1)
    script.add("tlb:tlb_flush", reason=2, pages=16)
    for place in range(16):
        script.restore(place)
    script.exit("ioctl")
    found = replayed(script, TWICE)
    assert counts(found["as_traced"])["tlb.flush"] == (17, 17)
    assert counts(found[TWICE])["tlb.flush"] == (17, 17)


def test_e3_4_shared_pages(replayed):
    made = counts(replayed(call(*range(4), shared=2), TWICE)["as_traced"])
    assert made["migration_entry.set"] == (8, 8)
    assert made["migration_entry.restore"] == (12, 12)
    assert made["migration_entry.collect"] == (4, 4)


def test_e3_4_shared_pages_are_no_second_chances(replayed):
    found = replayed(call(*range(4), shared=2), NO, kernel_has={"single_trylock": "retry2"})
    assert found[NO]["losses"] == {"pages_not_migrated": 0}


def test_a_driver_that_asks_again_tries_as_often(replayed):
    found = replayed(call(0, 3), "single_trylock:rule=driver_retry,attempts=3")
    assert found["single_trylock:rule=driver_retry,attempts=3"]["open"] == {
        "pages_between_that_may_have_been_locked": 0,
        "trylocks_more": 0,
        "pages_more_migrated": 0,
    }, "two pages do not tell how large a page is"
    found = replayed(call(0, 1, 4), "single_trylock:rule=driver_retry,attempts=3")
    assert found["single_trylock:rule=driver_retry,attempts=3"]["open"] == {
        "pages_between_that_may_have_been_locked": 2,
        "trylocks_more": 6,
        "pages_more_migrated": 2,
    }


def test_ordinary_migration_is_not_touched(ingested):
    for spec in (NO, TWICE):
        policy = tracekit.replay(ingested("demo"), [spec], kernel_has={"single_trylock": "none"}).document["policies"][
            -1
        ]
        assert all(count["traced"] == count["policy"] for count in policy["operations"].values())


def test_without_the_restoring_it_is_not_judged_and_says_what_would_do(tmp_path):
    script = Driver()
    script.enter("ioctl")
    script.try_to_migrate(0x10_0000, [-1])
    script.exit("ioctl")
    events = [event for event in script.events if "remove" not in event.name]
    always = ["kprobes:try_to_migrate_one", "migrate:set_migration_pte"]
    document = tracekit.replay(traces.write(tmp_path / "t", events, always=always), [TWICE]).document
    policy = document["policies"][-1]
    assert not policy["judgeable"]
    assert "remove_migration_pte" in policy["reason"]
    assert "perf record" in policy["record"]


@pytest.mark.skipif(not TRUTH.is_dir(), reason="the shared measurements are not here")
def test_the_measured_pair():
    (row,) = validation.validate([TRUTH])
    assert row.error is not None
    assert row.error < 0.5
    assert row.covered
