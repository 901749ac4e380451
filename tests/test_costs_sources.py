"""Where prices come from beside the trace's own visits: a second density, whole walks, other traces and tables.

The timelines are written by a clock whose overhead and prices are known; the last part holds what was measured.
"""

import json
import statistics
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest
import traces
from test_costs import OVERHEAD, TRACEPOINT, VISIT, Clock

import tracekit
from tracekit import errors, resources, validation
from tracekit.costs import calibrate, miss, phases, tables
from tracekit.costs.gaps import records
from tracekit.costs.model import fixed, uncertain, weighted
from tracekit.exposure import exposure
from tracekit.machine import replay as machine
from tracekit.machine.timeline import Source
from tracekit.policies import judge, parse
from tracekit.predict import Asked, predict

TRUTH = Path(__file__).parents[2] / "shared" / "truth"
PRICE, LOCK, SETTING, RESTORING, REST = 300.0, 190.0, 700.0, 600.0, 5000.0
FOLIOS, VMAS = 40, 8
LIGHT = tuple(name for name in traces.ALWAYS if "pte" not in name and "one" not in name)


def migrate(clock: Clock, *, dense: bool, price_ns: float = PRICE, vmas: int = VMAS, flushes: int = 0) -> None:
    """A call that moves folios, each mapped by the first VMA of its tree: the probes of visits and entries if dense.

    The first ``flushes`` restoring walks flush the TLB, twice and in no time.
    """
    clock.enter("move_pages")
    clock.start()
    pages = [(0x10_0000 + page * 64, 0x20_0000 + page * 64, 0x7000 + page * 4096) for page in range(FOLIOS)]
    for src, _, addr in pages:
        clock.add("kprobes:try_to_migrate", folio=src)
        clock.work(LOCK)
        if dense:
            clock.add("kprobes:try_to_migrate_one", folio=src, vma=0x101, addr=addr, mm=0x201)
        clock.work(SETTING)
        if dense:
            clock.add("migrate:set_migration_pte", addr=addr, pte=traces.pte("set", src), order=0)
    for page, (src, dst, addr) in enumerate(pages):
        clock.copy(src, dst)
        clock.work(REST)
        clock.add("kprobes:remove_migration_ptes", src=src, dst=dst)
        clock.work(LOCK)
        for vma in range(vmas):
            if dense:
                clock.add("kprobes:remove_migration_pte", folio=dst, vma=0x101 + vma, addr=addr, mm=0x201 + vma)
            clock.work(price_ns if vma else RESTORING)
            if dense and not vma:
                clock.add("migrate:remove_migration_pte", addr=addr, pte=traces.pte("remove", dst), order=0)
        if page < flushes:
            clock.add("tlb:tlb_flush", reason=0, pages=1)
            clock.add("tlb:tlb_flush", reason=0, pages=1)
    clock.end()
    clock.exit("move_pages")


def untraced_ns(price_ns: float = PRICE) -> float:
    return FOLIOS * (2 * LOCK + SETTING + REST + RESTORING + (VMAS - 1) * price_ns)


def true_ratio(price_ns: float = PRICE) -> float:
    return 1 - FOLIOS * (VMAS - 1) * price_ns / untraced_ns(price_ns)


def replayed(path: Path, *, dense: bool, price_ns: float = PRICE, vmas: int = VMAS, flushes: int = 0) -> machine.Replay:
    clock = Clock()
    for _ in range(3):
        migrate(clock, dense=dense, price_ns=price_ns, vmas=vmas, flushes=flushes)
        clock.work(REST)
    return machine.replay(traces.write(path, clock.events, always=traces.ALWAYS if dense else LIGHT))


def ratio_of(facts: machine.Replay, costs: Any) -> Any:
    name, policy = parse("counter_early_exit")
    judgement = judge(name, policy, facts.operations)
    return predict(facts, Asked(judgement), costs, facts.calls.filter(facts.calls["kind"] == "syscall")).ratio


@pytest.fixture
def dense(tmp_path: Path) -> machine.Replay:
    return replayed(tmp_path / "dense", dense=True)


@pytest.fixture
def light(tmp_path: Path) -> machine.Replay:
    return replayed(tmp_path / "light", dense=False)


def test_two_densities_need_no_assumption(dense: machine.Replay, light: machine.Replay) -> None:
    """The lock is not what one trace takes it for; the difference of two traces of the same work does not care."""
    alone, both = calibrate(dense), calibrate(dense, [light])
    assert (alone.source, both.source) == ("one_trace", "two_densities")
    assert both.prices is not None
    assert both.prices.overhead_ns[Source.KPROBE][0] == pytest.approx(OVERHEAD, rel=0.01)
    assert both.prices.overhead_ns[Source.TRACEPOINT][0] == pytest.approx(TRACEPOINT, rel=0.05)
    assert both.prices.price_ns[miss(VISIT)][0] == pytest.approx(PRICE, rel=0.03)
    errors_in_points = [100 * abs(ratio_of(dense, costs).median - true_ratio()) for costs in (alone, both)]
    assert errors_in_points[1] < 0.5 < errors_in_points[0]


def test_the_walks_of_the_lighter_trace_price_visits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing slows each visit by half. The walks that hold them flush the TLB in the lighter trace mostly.

    So those walks are no same work, and the overhead comes from elsewhere and knows nothing of the slower visits: by
    their gaps alone these look dearer than they are untraced. The lighter trace's walks were not slowed.
    """
    monkeypatch.setitem(traces.TABLES, "tlb:tlb_flush", {"reason": pl.Int32, "pages": pl.UInt64})
    slowed = replayed(tmp_path / "dense", dense=True, price_ns=PRICE * 3 / 2, flushes=3)
    lighter = replayed(tmp_path / "light", dense=False, flushes=FOLIOS)
    both = calibrate(slowed, [lighter])
    with monkeypatch.context() as without:
        without.setattr(phases, "visit", lambda *_: None)
        by_gaps = calibrate(slowed, [lighter])
    assert by_gaps.source == both.source == "two_densities"
    assert by_gaps.prices is not None
    assert both.prices is not None
    price, seen = both.prices.price_ns[miss(VISIT)], by_gaps.prices.price_ns[miss(VISIT)]
    assert seen[0] > 1.2 * PRICE
    assert price[0] == pytest.approx(PRICE, rel=0.08)
    # what a visit takes less the probe beside it takes more, in every draw
    probes = [costs.prices.overhead_ns[Source.KPROBE] for costs in (both, by_gaps) if costs.prices is not None]
    assert np.ptp(price + probes[0]) < 0.02 * price[0]
    assert (price + probes[0])[0] == pytest.approx((seen + probes[1])[0])
    mixed, alone = (ratio_of(slowed, costs) for costs in (both, by_gaps))
    assert abs(mixed.median - true_ratio()) < 0.5 * abs(alone.median - true_ratio())
    assert mixed.low <= true_ratio() <= mixed.high
    assert alone.high < true_ratio()
    assert any("by the lighter trace's walks" in line for line in both.how)


def test_visits_that_are_not_behind_the_last_entry_are_not_in_the_walks(tmp_path: Path) -> None:
    """A tree of one VMA: its only visit restores, so the walks say nothing of a visit that finds nothing."""
    few = [replayed(tmp_path / str(dense), dense=dense, vmas=1) for dense in (True, False)]
    light, dense = records(few[1]), records(few[0])
    assert phases.visit(light, dense, fixed(OVERHEAD), fixed(TRACEPOINT)) is None


def test_answers_that_contradict_each_other_widen() -> None:
    """Their weighted mean; its deviation covers half of what lies between two equally good ones (Birge's ratio)."""
    one = uncertain("one", 100.0, 1.0)
    near, far = uncertain("other", 100.5, 1.0), uncertain("other", 130.0, 1.0)
    assert weighted(one, near)[0] == pytest.approx(100.25, abs=0.05)
    assert weighted(one, near).std() == pytest.approx(1 / 2**0.5, rel=0.15)
    assert weighted(one, far)[0] == pytest.approx(115, abs=1)
    assert weighted(one, far).std() == pytest.approx(15, rel=0.15)
    sure = uncertain("sure", 130.0, 0.1)
    assert weighted(one, sure)[0] == pytest.approx(130, abs=0.5)


def test_other_work_is_no_second_density(dense: machine.Replay, tmp_path: Path) -> None:
    """Twice the price of a visit, so nearly as dear again as a probe: the difference is not the probes' alone."""
    other = replayed(tmp_path / "other", dense=False, price_ns=PRICE + OVERHEAD)
    costs = calibrate(dense, [other])
    assert costs.source == "one_trace"


def test_a_light_trace_alone(light: machine.Replay) -> None:
    """Neither visits nor entries: what the restoring walk takes beyond the setting one."""
    costs = calibrate(light)
    assert (light.fidelity, costs.source) == ("counts", "phases")
    assert light.operations["op"].cast(str).value_counts(sort=True)["count"].max() == 3 * FOLIOS
    ratio = ratio_of(light, costs)
    assert ratio.low <= true_ratio() <= ratio.high
    assert ratio.median == pytest.approx(true_ratio(), abs=0.06)


def test_a_light_trace_with_the_overhead_of_another(dense: machine.Replay, light: machine.Replay) -> None:
    ratio = ratio_of(light, calibrate(light, [dense]))
    assert ratio.low <= true_ratio() <= ratio.high
    assert ratio.median == pytest.approx(true_ratio(), abs=0.04)


def test_what_has_no_price_is_counted(dense: machine.Replay) -> None:
    name, policy = parse("counter_early_exit")
    found = exposure(dense, judge(name, policy, dense.operations))
    assert found == {"visits_under_the_rmap_lock": 3 * FOLIOS * (VMAS - 1)}
    name, policy = parse("as_traced")
    assert exposure(dense, judge(name, policy, dense.operations)) == {}


# --- tables ---


def test_the_tables_that_come_along_fit_their_schema() -> None:
    schema = json.loads((resources.schemas() / "costs.schema.json").read_text())
    assert tables.names()
    for name in tables.names():
        file = resources.schemas() / "costs" / f"{name}.toml"
        content = tomllib.loads(file.read_text())
        jsonschema.Draft202012Validator(schema).validate(content)
        assert content["name"] == name
        costs = tables.read(Path(name))
        assert costs.prices is not None
        assert {key: draws[0] for key, draws in costs.prices.price_ns.items()} == {
            key: price["median"] for key, price in content["price_ns"].items()
        }


def test_a_table_prices_what_the_trace_cannot(tmp_path: Path) -> None:
    clock = Clock()
    for _ in range(20):  # one miss in each walk, and no next visit to measure it by
        clock.enter("move_pages")
        src, dst = 0x10_0000, 0x20_0000
        clock.add("kprobes:try_to_migrate", folio=src)
        clock.work(LOCK)
        clock.visits("set", src, [-1])
        clock.copy(src, dst)
        clock.remove(dst, [-1, 2])
        clock.work(REST)
        clock.exit("move_pages")
    facts = machine.replay(traces.write(tmp_path / "t", clock.events))
    assert ratio_of(facts, calibrate(facts)) is None
    costs = calibrate(facts, [tables.read(Path("rfc-mig-entry-count"))])
    assert any("Huan Yang" in line for line in costs.how)
    assert ratio_of(facts, costs).median < 1
    dearer = tmp_path / "dearer.toml"
    dearer.write_text(
        'schema = "tracekit/costs/1"\nname = "d"\nmachine = "m"\nsource = "s"\n[price_ns]\n'
        f'"{miss(VISIT)}" = {{low = 400, median = 500, high = 600}}\n'
    )
    assert ratio_of(facts, calibrate(facts, [tables.read(dearer)])).median < ratio_of(facts, costs).median


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("schema = 1", "expected schema = 'tracekit/costs/1'"),
        ("schema =", "no cost table"),
        ('schema = "tracekit/costs/1"\nname = "n"\nmachine = "m"', "source is missing"),
        ('schema = "tracekit/costs/1"\nprices = 1', "unknown key prices"),
        ("price_ns = 3", "price_ns is 3, not a table of prices"),
        ("[price_ns]\na = 3", "price_ns.a is 3, not {low, median, high}"),
        ("[price_ns]\na = {low = 3, median = 2, high = 4}", "expected low <= median <= high"),
        ("[price_ns]\na = {low = -3, median = 2, high = 4}", "not {low, median, high}"),
        ("[overhead_ns]\nkprobe = {low = 1, median = 2, high = 4}", "overhead_ns has kprobe and tracepoint"),
    ],
)
def test_a_table_that_is_none_is_refused(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    head = (
        "" if content.startswith("schema") else 'schema = "tracekit/costs/1"\nname = "n"\nmachine = "m"\nsource = "s"\n'
    )
    file.write_text(head + content)
    with pytest.raises(errors.UsageError, match=said.replace("{", r"\{").replace("}", r"\}")):
        tables.read(file)


# --- what was measured ---


# Points: median and worst that the predictions of a folder may be off
@pytest.mark.parametrize(
    ("folder", "predicted", "median", "worst"),
    [
        ("1-mig-entry-count/forkcow-C16-all-move", 4, 1.0, 4.0),
        ("1-mig-entry-count/um-forkcow-C64-all-small", 1, 12.0, 12.0),
        ("3-zap-rmap/zap-64k-munmap", 3, 4.0, 6.0),
        ("4-lazyfree-unmap/reclaim-16k", 4, 4.0, 8.0),
    ],
)
def test_the_measured_pairs(folder: str, predicted: int, median: float, worst: float) -> None:
    if not TRUTH.is_dir():
        pytest.skip("the measured pairs are not beside this checkout")
    rows = [row for row in validation.validate([TRUTH / folder]) if row.predicted is not None]
    assert len(rows) == predicted
    off = [row.error for row in rows if row.error is not None]
    assert statistics.median(off) <= median
    assert max(off) <= worst
    assert all(row.covered for row in rows)


def test_walks_that_could_not_be_rebuilt_give_no_number() -> None:
    """Without the visits nothing is known of these: the entries' values are not understood."""
    if not TRUTH.is_dir():
        pytest.skip("the measured pairs are not beside this checkout")
    (row,) = validation.validate([TRUTH / "1-mig-entry-count/um-forkcow-C64-all-small"], fidelity="reconstructed")
    assert row.predicted is None
    assert row.reason is not None
    assert row.reason.startswith("only 0% of the migration entries in these calls")


def test_visits_rebuilt_give_the_ratio_of_those_seen() -> None:
    if not TRUTH.is_dir():
        pytest.skip("the measured pairs are not beside this checkout")
    folder = [TRUTH / "1-mig-entry-count/forkcow-C4-all-move"]
    for one, other in zip(
        validation.validate(folder), validation.validate(folder, fidelity="reconstructed"), strict=True
    ):
        if other.predicted is not None:
            assert other.fidelity == "reconstructed"
            assert one.predicted == pytest.approx(other.predicted, abs=0.03)


def test_what_changes_outside_any_call_has_no_ratio(tmp_path: Path) -> None:
    """No system call was recorded and no mark: counts stand, but there is no time that they could be a share of."""
    clock = Clock()
    migrate(clock, dense=True)
    events = [event for event in clock.events if not event.name.startswith(("syscalls:", "migrate:mm_"))]
    document = tracekit.replay(traces.write(tmp_path / "t", events), ["counter_early_exit"]).document
    policy = document["policies"][-1]
    assert policy["operations"][VISIT] == {"traced": FOLIOS * VMAS, "policy": FOLIOS}
    assert policy["ratio"] is None
    assert policy["reason"].startswith("all that it changes lies outside any recorded call")
