"""Prices, read off timelines whose overhead and visit price are known, and the calls' times that follow from them."""

import itertools

import numpy as np
import polars as pl
import pytest
import traces

import tracekit
from tracekit.costs import MIN_SAMPLES, calibrate, miss
from tracekit.costs.model import DRAWS
from tracekit.costs.one_trace import PROBE_SHARE, VISIT_SHARE, WORK_SHARE
from tracekit.machine import replay as machine
from tracekit.machine.timeline import Kind, Source

VISIT = "remove_migration_ptes.vma_visit"
OVERHEAD, TRACEPOINT = 1000.0, 550.0
# What the method takes to lie between a walk's entry and its first visit: as a share of the gap, and of a visit
LOCK = OVERHEAD * (1 / PROBE_SHARE[0] - 1)
PRICE = LOCK / WORK_SHARE[Kind.TRY][0]
PROBES = ("kprobes:",)


class Clock(traces.Script):
    """Writes events at the times that a kernel would: taking a record delays its task, work passes between them."""

    def __init__(self, *, probe_ns=OVERHEAD, tracepoint_ns=TRACEPOINT, step_ns=1):
        super().__init__(step_ns=0)
        self.true_ns, self.probe_ns, self.tracepoint_ns, self.clock_ns = 1e6, probe_ns, tracepoint_ns, step_ns

    def add(self, name, *, task=None, **fields):
        self.now = int(self.true_ns // self.clock_ns) * self.clock_ns
        super().add(name, task=task, **fields)
        self.true_ns += self.probe_ns if name.startswith(PROBES) else self.tracepoint_ns

    def work(self, ns):
        self.true_ns += ns


def call(
    clock,
    *,
    folios=20,
    vmas=8,
    price_ns=PRICE,
    lock_ns=None,
    returns=False,
    hits=(0,),
    name="move_pages",
    other_ns=3000.0,
):
    """One system call that moves ``folios``; returns what it takes without tracing.

    ``lock_ns`` lies between try_to_migrate and its first visit: by default what the method takes it for.
    """
    lock_ns = clock.probe_ns * LOCK / OVERHEAD if lock_ns is None else lock_ns
    start, probes, tracepoints = clock.true_ns, count(clock, PROBES), len(clock.events)
    clock.enter(name)
    clock.work(other_ns)
    clock.start()
    clock.work(other_ns)
    for page in range(folios):
        src, dst = 0x10_0000 + page * 64, 0x20_0000 + page * 64
        clock.add("kprobes:try_to_migrate", folio=src)
        clock.work(lock_ns)
        clock.add("kprobes:try_to_migrate_one", folio=src, vma=0x101, addr=0x7000, mm=0x201)
        clock.work(price_ns)
        clock.add("migrate:set_migration_pte", addr=0x7000, pte=traces.pte("set", src), order=0)
        # next to nothing between a tracepoint and the one before it
        clock.work(clock.tracepoint_ns * (1 / 0.79 - 1))
        clock.add("sched:sched_switch")
        clock.work(other_ns)
        clock.copy(src, dst)
        clock.work(other_ns)
        for vma in range(vmas):
            clock.add("kprobes:remove_migration_pte", folio=dst, vma=0x101 + vma, addr=0x7000, mm=0x201 + vma)
            clock.work(price_ns)
            if vma in hits:
                clock.add("migrate:remove_migration_pte", addr=0x7000, pte=traces.pte("remove", dst), order=0)
            if returns:
                clock.add("kprobes:remove_migration_pte_ret")
        clock.work(other_ns)
    clock.end()
    clock.work(other_ns)
    before = clock.true_ns
    clock.exit(name)
    taken = len(clock.events) - tracepoints - 1
    probes = count(clock, PROBES) - probes
    return before - start - probes * clock.probe_ns - (taken - probes) * clock.tracepoint_ns


def count(clock, systems):
    return sum(event.name.startswith(systems) for event in clock.events)


def run(tmp_path, clock, specs=("counter_early_exit",)):
    trace = traces.write(tmp_path / "t", clock.events)
    document = tracekit.replay(trace, specs).document
    return calibrate(machine.replay(trace)), {policy["spec"]: policy for policy in document["policies"]}


def saving(untraced_ns, *, folios=20, vmas=8, price_ns=PRICE):
    """The true ratio: all but the first visit of each folio are spared."""
    return 1 - folios * (vmas - 1) * price_ns / untraced_ns


def test_known_prices_are_read_off(tmp_path):
    clock = Clock()
    untraced = call(clock)
    costs, by_spec = run(tmp_path, clock)
    assert costs.prices.overhead_ns[Source.KPROBE][0] == pytest.approx(OVERHEAD, rel=0.01)
    assert costs.prices.overhead_ns[Source.TRACEPOINT][0] == pytest.approx(TRACEPOINT, rel=0.01)
    assert costs.prices.price_ns[miss(VISIT)][0] == pytest.approx(PRICE, rel=0.03)
    policy = by_spec["counter_early_exit"]
    assert policy["time_ns"]["traced"]["median"] == pytest.approx(untraced, rel=0.02)
    # the counter's own updates cost it a little: one hundredth of a probe each, two for each folio
    updates = 20 * 2 * 0.01 * OVERHEAD / untraced
    assert policy["ratio"]["median"] == pytest.approx(saving(untraced) + updates, abs=0.01)
    assert costs.residual == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("price_ns", [300.0, 400.0, 500.0])
@pytest.mark.parametrize("lock", [0.08, 0.12, 0.14])
def test_the_interval_holds_the_truth(price_ns, lock, tmp_path):
    """A lock of another length than the method takes it for moves the middle, not the truth out of the interval."""
    clock = Clock()
    untraced = call(clock, price_ns=price_ns, lock_ns=OVERHEAD * lock / (1 - lock))
    costs, by_spec = run(tmp_path, clock)
    ratio = by_spec["counter_early_exit"]["ratio"]
    assert ratio["low"] <= saving(untraced, price_ns=price_ns) <= ratio["high"]
    assert ratio["low"] < ratio["median"] < ratio["high"]
    visit, probe = costs.prices.price_ns[miss(VISIT)], costs.prices.overhead_ns[Source.KPROBE]
    assert len(visit) == len(probe) == DRAWS
    # where a visit is dear a probe is cheap: the gap that holds both is what was seen
    assert np.corrcoef(visit, probe)[0, 1] < -0.9


@pytest.mark.parametrize(("price_ns", "share"), [(1.0, VISIT_SHARE[0]), (90_000.0, VISIT_SHARE[1])])
def test_a_visit_is_held_within_its_share_of_the_gap(price_ns, share, tmp_path):
    clock = Clock()
    call(clock, price_ns=price_ns)
    costs, _ = run(tmp_path, clock)
    assert costs.prices.price_ns[miss(VISIT)][0] == pytest.approx(share * (OVERHEAD + price_ns), rel=0.02)


def test_return_probes_are_counted_and_taken_off(tmp_path):
    plain, returning = Clock(), Clock()
    untraced = call(plain)
    assert call(returning, returns=True) == pytest.approx(untraced)
    costs, by_spec = run(tmp_path / "r", returning)
    assert costs.prices.price_ns[miss(VISIT)][0] == pytest.approx(PRICE, rel=0.05)
    calls = machine.replay(tracekit.open(tmp_path / "r" / "t")).calls
    assert calls.filter(pl.col("kind") == "syscall")["kretprobes"].to_list() == [20 * 8]
    assert by_spec["counter_early_exit"]["time_ns"]["traced"]["median"] == pytest.approx(untraced, rel=0.04)
    _, without = run(tmp_path / "p", plain)
    medians = [policies["counter_early_exit"]["ratio"]["median"] for policies in (by_spec, without)]
    assert medians[0] == pytest.approx(medians[1], abs=0.03)


def test_a_clock_with_coarse_steps_uses_the_mean(tmp_path):
    """256 ns against gaps of 80 and 114: every gap is seen as 0 or 256, and a median would be one of the two."""
    clock = Clock(probe_ns=100.0, tracepoint_ns=60.0, step_ns=256)
    untraced = call(clock, folios=400, price_ns=40.0, other_ns=211.0)
    assert {b.time_ns - a.time_ns for a, b in itertools.pairwise(clock.events)} <= {0, 256, 512}
    costs, by_spec = run(tmp_path, clock)
    # a clip at the 99th percentile and the finite number of gaps
    assert costs.prices.overhead_ns[Source.KPROBE][0] == pytest.approx(100, rel=0.15)
    assert costs.prices.price_ns[miss(VISIT)][0] == pytest.approx(40, rel=0.35)
    ratio = by_spec["counter_early_exit"]["ratio"]
    assert ratio["low"] <= saving(untraced, folios=400, price_ns=40.0) <= ratio["high"]


def test_outliers_do_not_move_the_price(tmp_path):
    clock = Clock()
    call(clock, folios=10)
    for event in range(40):
        call(clock, folios=1, price_ns=PRICE * (40 if event % 10 == 0 else 1))
    costs, _ = run(tmp_path, clock)
    assert costs.prices.price_ns[miss(VISIT)][0] == pytest.approx(PRICE, rel=0.03)


def test_gaps_with_a_switch_or_on_two_processors_are_left_out(tmp_path):
    clock = Clock()
    call(clock, folios=MIN_SAMPLES, vmas=2, hits=())
    assert calibrate(machine.replay(traces.write(tmp_path / "one", clock.events))).samples[VISIT] == MIN_SAMPLES
    events = []
    for event in clock.events:
        second = event.name == "kprobes:remove_migration_pte" and event.fields["vma"] == 0x102
        events.append(event._replace(cpu=1) if second else event)
    assert calibrate(machine.replay(traces.write(tmp_path / "cpus", events))).samples[VISIT] == 0
    clock = Clock()
    call(clock, folios=MIN_SAMPLES, vmas=3, hits=())
    switched = []
    for event in clock.events:
        switched.append(event)
        if event.name == "kprobes:remove_migration_pte" and event.fields["vma"] == 0x101:
            switched.append(event._replace(name="sched:sched_switch", fields={}))
    assert calibrate(machine.replay(traces.write(tmp_path / "whole", clock.events))).samples[VISIT] == 2 * MIN_SAMPLES
    assert calibrate(machine.replay(traces.write(tmp_path / "switched", switched))).samples[VISIT] == MIN_SAMPLES


def test_the_gap_after_a_walk_is_no_visits(tmp_path):
    """It holds the next folio's work."""
    clock = Clock()
    call(clock, vmas=1, hits=())
    events = [event for event in clock.events if event.name != "sched:sched_switch"]
    assert calibrate(machine.replay(traces.write(tmp_path / "t", events))).samples[VISIT] == 0


def test_without_probes_there_is_no_number_and_a_reason(tmp_path):
    """No gap of two probes, nothing to read an overhead off: counts stand, times do not."""
    clock = Clock()
    call(clock)
    events = [event for event in clock.events if event.name != "kprobes:try_to_migrate"]
    trace = traces.write(tmp_path / "t", events)
    policy = tracekit.replay(trace).document["policies"][-1]
    assert calibrate(machine.replay(trace)).prices is None
    assert policy["operations"][VISIT] == {"traced": 160, "policy": 20}
    assert policy["ratio"] is None
    assert policy["time_ns"] == {"traced": None, "policy": None, "saving": None}
    assert (
        policy["reason"] == f"no prices: needs {MIN_SAMPLES} gaps between try_to_migrate and its first visit, found 0"
    )
    assert {call["reason"] for call in policy["calls"]} == {policy["reason"]}


@pytest.mark.parametrize(("folios", "priced"), [(MIN_SAMPLES - 1, False), (MIN_SAMPLES, True)])
def test_it_takes_some_gaps_to_make_a_price(folios, priced, tmp_path):
    clock = Clock()
    call(clock, folios=folios)
    costs, by_spec = run(tmp_path, clock)
    assert (costs.prices is not None) == priced
    assert (by_spec["counter_early_exit"]["ratio"] is not None) == priced


def test_an_operation_without_a_price_gives_a_reason(tmp_path):
    clock = Clock()
    # one miss of a remove walk in each folio, and no next visit to measure it by
    call(clock, vmas=2)
    _, by_spec = run(tmp_path, clock)
    policy = by_spec["counter_early_exit"]
    assert policy["operations"][VISIT] == {"traced": 40, "policy": 20}
    assert policy["ratio"] is None
    assert policy["reason"] == f"not priced, this trace holds none: {miss(VISIT)}; give a trace that does with --costs"


def test_more_overhead_than_time_is_void(tmp_path):
    """A lock as dear as a probe makes the probe look twice its price: more than there is to take off."""
    clock = Clock()
    call(clock, lock_ns=OVERHEAD * 3, price_ns=OVERHEAD * 3, other_ns=0.0, vmas=20)
    _, by_spec = run(tmp_path, clock)
    policy = by_spec["counter_early_exit"]
    assert policy["ratio"] is None
    assert policy["reason"].startswith("void: the estimated tracing overhead leaves less time")
    assert by_spec["as_traced"]["operations"][VISIT]["traced"] == 400


def test_where_nothing_is_spared_the_ratio_is_one(tmp_path):
    """Whatever the prices: no margin around nothing. A counter's own updates are something."""
    clock = Clock()
    call(clock, vmas=3, hits=(2,))
    _, by_spec = run(tmp_path, clock)
    assert by_spec["as_traced"]["ratio"] == {"low": 1.0, "median": 1.0, "high": 1.0}
    assert by_spec["counter_early_exit"]["operations"][VISIT] == {"traced": 60, "policy": 60}
    assert 1.0 < by_spec["counter_early_exit"]["ratio"]["median"] < 1.02


def test_calls_are_priced_each_by_its_own(tmp_path):
    clock = Clock()
    one = call(clock)
    clock.work(1e6)
    other = call(clock, name="migrate_pages", hits=range(8))
    _, by_spec = run(tmp_path, clock)
    calls = {call["call"]: call for call in by_spec["counter_early_exit"]["calls"]}
    assert calls.keys() == {"move_pages", "migrate_pages"}
    assert calls["move_pages"]["time_ns"]["traced"]["median"] == pytest.approx(one, rel=0.03)
    assert calls["migrate_pages"]["time_ns"]["traced"]["median"] == pytest.approx(other, rel=0.03)
    assert calls["move_pages"]["ratio"]["median"] < 0.9
    assert calls["migrate_pages"]["ratio"]["median"] == pytest.approx(1.0, abs=0.02)
    assert calls["migrate_pages"]["operations"][VISIT] == {"traced": 160, "policy": 160}


def test_what_does_harm_is_no_saving(tmp_path):
    """E0.5 many times over: the posted counter's early exits there leave stale entries."""
    clock = Clock()
    clock.enter("ioctl")
    for page in range(10):
        src, dst = 0x10_0000 + page * 64, 0x20_0000 + page * 64
        clock.try_to_migrate(src, [-1])
        clock.copy(src, dst)
        clock.remove(dst, [-1, 2, 3, -4])
        clock.work(9 * OVERHEAD)
    clock.exit("ioctl")
    spec = "counter_early_exit:counter=posted"
    _, by_spec = run(tmp_path, clock, [spec])
    assert by_spec[spec]["unsafe"] == {"stale_migration_entries": 10}
    assert by_spec[spec]["operations"][VISIT] == {"traced": 40, "policy": 10}
    assert by_spec[spec]["reason"] is None
    assert by_spec[spec]["ratio"]["median"] >= 1.0


def test_a_mark_is_priced_by_the_call_in_it_that_works(tmp_path):
    """A mark is wider than its system call; but a call in which nothing happened is not what it was about."""
    clock = Clock()
    clock.add("ftrace:print", buf="call_begin")
    clock.work(1e6)  # on the way, not in the call
    untraced = call(clock)
    clock.add("ftrace:print", buf="call_end")
    _, by_spec = run(tmp_path / "in", clock)
    calls = {call["call"]: call for call in by_spec["counter_early_exit"]["calls"]}
    assert calls["mark:call"]["ratio"] == calls["move_pages"]["ratio"]
    assert calls["mark:call"]["traced_ns"] > calls["move_pages"]["traced_ns"] + 1e6
    assert calls["mark:call"]["time_ns"]["traced"]["median"] == pytest.approx(untraced, rel=0.03)
    beside = Clock()
    beside.add("ftrace:print", buf="call_begin")
    beside.enter("munmap")
    beside.work(10.0)
    beside.exit("munmap")
    untraced = call(beside)
    events = [event for event in beside.events if "move_pages" not in event.name]  # not recorded
    end = events[-1].time_ns + 1000
    events.append(events[0]._replace(time_ns=end, fields={"buf": "call_end"}))
    document = tracekit.replay(traces.write(tmp_path / "beside", events), ["counter_early_exit"]).document
    (mark,) = [call for call in document["policies"][-1]["calls"] if call["call"] == "mark:call"]
    assert mark["time_ns"]["traced"]["median"] > untraced / 2
