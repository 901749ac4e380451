"""Lost events: what they may have touched is unknown, is not judged and not priced; all else stays as it was."""

import naive
import polars as pl
import pytest
import traces

import tracekit
from tracekit.machine import losses
from tracekit.machine import replay as machine

STEP_NS = 10
VISIT = "remove_migration_ptes.vma_visit"
SRC, DST = 0x10_0000, 0x20_0000


def told(*, returns=True, tail=True):
    """Three system calls, each with one folio; the position of what happens is known by its name."""
    script = traces.Script(step_ns=STEP_NS)
    for call in range(3):
        src, dst = SRC + call * 64, DST + call * 64
        script.enter("move_pages")
        script.start()
        script.try_to_migrate(src, [-1, -2], returns=returns)
        script.add("sched:sched_switch")
        script.copy(src, dst)
        script.remove(dst, [-1, -2, 3])
        if tail:
            script.end()
            script.exit("move_pages")
    return script.events


def at(events, name, call, which=0):
    """Time of the event ``name`` of a call, the ``which``-th of them."""
    begins = [event.time_ns for event in events if event.name == "syscalls:sys_enter_move_pages"]
    ends = [*begins[1:], events[-1].time_ns + 1]
    found = [e.time_ns for e in events if e.name == name and begins[call] <= e.time_ns < ends[call]]
    return found[which]


def replay(tmp_path, events, lost):
    return machine.replay(traces.write(tmp_path / "t", events, lost=lost))


# what is lost comes right after this event of the second call, and before the next one
INSIDE = {
    "the walk that sets, at its start": ("kprobes:try_to_migrate", 0),
    "the walk that sets, in a visit": ("kprobes:try_to_migrate_one", 0),
    "the walk that sets, between visits": ("migrate:set_migration_pte", 0),
    "the walk that sets, at its end": ("migrate:set_migration_pte", -1),
    "the walk that restores, before what is seen of it": ("kprobes:folio_mc_copy", 0),
    "the walk that restores, in a visit": ("kprobes:remove_migration_pte", 0),
    "the walk that restores, between visits": ("migrate:remove_migration_pte", 0),
    "the walk that restores, at its end": ("kprobes:remove_migration_pte", -1),
}


@pytest.mark.parametrize("cpu", [0, None])
@pytest.mark.parametrize("place", INSIDE, ids=str)
def test_a_loss_in_a_walk_makes_its_episode_unknown(place, cpu, tmp_path):
    name, which = INSIDE[place]
    events = told()
    replayed = replay(tmp_path, events, [(at(events, name, 1, which) + STEP_NS // 2, cpu)])
    assert replayed.episodes["known"].to_list() == [True, False, True]
    assert replayed.calls.filter(pl.col("kind") == "syscall")["lost"].to_list() == [False, True, False]


@pytest.mark.parametrize("name", ["migrate:set_migration_pte", "sched:sched_switch"])
def test_without_a_return_probe_the_walk_may_go_on_to_the_next_event(name, tmp_path):
    events = told(returns=False)
    lost = [(at(events, name, 1, -1) + STEP_NS // 2, 0)]
    # after the switch the walk is not over either, as far as the trace can tell: a task may be switched out in it
    assert replay(tmp_path, events, lost).episodes["known"].to_list() == [True, False, True]


def test_a_loss_at_the_end_of_the_trace_touches_the_last_walk(tmp_path):
    events = told(tail=False)
    replayed = replay(tmp_path, events, [(events[-1].time_ns + STEP_NS, 0)])
    assert replayed.episodes["known"].to_list() == [True, True, False]


@pytest.mark.parametrize("name", ["syscalls:sys_enter_move_pages", "migrate:mm_migrate_pages"])
def test_a_loss_in_the_call_alone_leaves_the_episode_known(name, tmp_path):
    """Both walks were seen from end to end; the call is not priced all the same."""
    events = told()
    replayed = replay(tmp_path, events, [(at(events, name, 1) + STEP_NS // 2, 0)])
    assert replayed.episodes["known"].to_list() == [True, True, True]
    assert replayed.calls.filter(pl.col("kind") == "syscall")["lost"].to_list() == [False, True, False]


@pytest.mark.parametrize("cpu", [1, 0])
def test_a_loss_elsewhere_touches_nothing(cpu, tmp_path):
    """On another processor, or between two calls."""
    events = told()
    name = "syscalls:sys_exit_move_pages" if cpu == 0 else "kprobes:remove_migration_pte"
    replayed = replay(tmp_path, events, [(at(events, name, 1) + STEP_NS // 2, cpu)])
    assert replayed.episodes["known"].all()
    assert not replayed.calls["lost"].any()


def test_coverage_falls_and_nothing_is_saved_across_the_gap(tmp_path):
    events = told()
    lost = [(at(events, "kprobes:remove_migration_pte", 1, -1) + STEP_NS // 2, 0)]
    whole = tracekit.replay(traces.write(tmp_path / "whole", events)).document
    holed = tracekit.replay(traces.write(tmp_path / "holed", events, lost=lost)).document
    assert (whole["coverage"], holed["coverage"]) == (1.0, pytest.approx(2 / 3, abs=1e-6))
    assert holed["episodes"] == {"all": 3, "judged": 2}
    assert holed["anomalies"]["call_with_lost_events"] == 2  # the system call and the migrate_pages() in it
    saved = [document["policies"][-1]["operations"][VISIT] for document in (whole, holed)]
    assert saved == [{"traced": 9, "policy": 6}, {"traced": 9, "policy": 7}]


def test_calls_with_losses_are_not_priced(tmp_path):
    events = told()
    lost = [(at(events, "kprobes:remove_migration_pte", 1, -1) + STEP_NS // 2, 0)]
    document = tracekit.replay(traces.write(tmp_path / "t", events, lost=lost)).document
    (call,) = document["policies"][-1]["calls"]
    span = events[-1].time_ns - at(events, "syscalls:sys_enter_move_pages", 2)
    assert (call["call"], call["n"], call["priced"], call["traced_ns"]) == ("move_pages", 3, 2, 2 * span)


def test_calls_all_of_them_with_losses_give_a_reason(tmp_path):
    events = told()
    lost = [(at(events, "kprobes:remove_migration_pte", call) + STEP_NS // 2, 0) for call in range(3)]
    policy = tracekit.replay(traces.write(tmp_path / "t", events, lost=lost)).document["policies"][-1]
    assert policy["ratio"] is None
    assert policy["reason"] == "no call with both ends seen and no event lost"


def test_a_task_that_moves_is_touched_on_either_processor(tmp_path):
    events = told()
    middle = at(events, "kprobes:remove_migration_pte", 1, 1)
    moved = [event._replace(cpu=int(event.time_ns >= middle)) for event in events]
    for cpu in (0, 1):
        # on processor 1 the task's next event after this visit; on 0 the last one before it
        replayed = replay(tmp_path / str(cpu), moved, [(middle + (STEP_NS // 2 if cpu else -STEP_NS // 2), cpu)])
        assert replayed.episodes["known"].to_list() == [True, False, True], cpu


def test_the_window_goes_back_to_the_last_record_of_that_processor(tmp_path):
    """Another task's records say nothing about what its own processor lost."""
    events = told()
    other = [naive.Event(9, event.time_ns + 1, "migrate:mm_migrate_pages", {}, 1) for event in events]
    late = at(events, "kprobes:remove_migration_pte", 2) - 1
    # processor 0 kept nothing of the second call's remove walk nor of the third call's beginning
    begin = at(events, "kprobes:remove_migration_pte", 1)
    kept = sorted([e for e in events if not begin < e.time_ns < late] + other, key=lambda e: e.time_ns)
    replayed = replay(tmp_path, kept, [(late, 0)])
    assert replayed.episodes.filter(pl.col("task") == 7)["known"].to_list()[:2] == [True, False]
    assert not replayed.episodes.filter(pl.col("task") == 7)["known"].to_list()[-1]


def test_the_reader_tells_when_a_loss_began(tmp_path):
    events = told()
    # long after the first call's walks were over, though nothing in the timeline shows its CPU meanwhile
    begun, noticed = at(events, "syscalls:sys_enter_move_pages", 1) + 1, at(events, "kprobes:try_to_migrate", 1) - 1
    directory = traces.write(tmp_path / "t", events, lost=[(noticed, 0)])
    lost = pl.read_parquet(directory.path / "lost.parquet").with_columns(from_ns=pl.lit(begun, pl.Int64))
    lost.write_parquet(directory.path / "lost.parquet")
    replayed = machine.replay(directory)
    windows = losses.lost_windows(directory, replayed.rows)
    assert windows.rows() == [(0, begun, noticed)]


@pytest.mark.parametrize(("counted", "last_is_known"), [(5, True), (6, False)])
def test_what_no_lost_record_tells_of_was_lost_at_the_end(tmp_path, counted, last_is_known):
    events = told(tail=False)
    early = events[0].time_ns - 1
    directory = traces.write(tmp_path / "t", events, lost=[(early, 0)])
    pl.DataFrame(
        {
            "time_ns": [early, 0],
            "cpu": [0, 0],
            "from_ns": [early - 1, None],
            "count": [5, counted],
            "kind": ["lost", "lost_samples"],
        },
        schema_overrides={"cpu": pl.Int32, "count": pl.UInt64},
    ).write_parquet(directory.path / "lost.parquet")
    assert machine.replay(directory).episodes["known"].to_list() == [True, True, last_is_known]
