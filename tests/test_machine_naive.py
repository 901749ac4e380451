"""The machine against its naive twin (tests/naive.py), on streams of events that Hypothesis makes up.

Streams are told by a small kernel, folio by folio, with what a trace may lack; broken ones have events dropped, doubled
and moved besides. Whatever comes, the two agree and nothing is raised.
"""

import tempfile
from pathlib import Path

import naive
import polars as pl
import pytest
import traces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracekit.machine import replay as machine
from tracekit.policies import as_traced, counter_early_exit, upper_bound

EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
FOLIOS = [0x10_0000 + 64 * i for i in range(4)] + [0x20_0000 + 64 * i for i in range(4)]
VMAS = [1, 2, 3, 4]
CALLS = ["move_pages", "migrate_pages", "ioctl"]
REASONS = ["syscall_or_cpuset", "mempolicy_mbind", "compaction", "numa_misplaced", None]


class Kernel:
    """Tells what a task does; ``draw`` decides what happens, and what of it was recorded."""

    def __init__(self, draw, task, *, writes):
        self.draw, self.writes = draw, writes
        self.script = traces.Script(task, comm=draw(st.sampled_from(["forkcow", "kcompactd0"])))
        self.script.cpu = draw(st.integers(0, 1))
        # probes that the trace lacks
        self.lacks = {
            f"kprobes:{name}"
            for name in ("try_to_migrate", "try_to_migrate_ret", "folio_mc_copy", "remove_migration_ptes")
            if draw(st.integers(0, 3)) == 0
        }

    def one_in(self, n):
        return self.draw(st.integers(0, n - 1)) == 0

    def call(self):
        """One system call or piece of kernel work, with up to three folios in it."""
        script, name = self.script, self.draw(st.sampled_from([*CALLS, None]))
        mark = self.one_in(4)
        if mark:
            self.write_mark(" round_begin\n")
        if name:
            script.enter(name)
        migrate = name != "ioctl"
        if migrate and not self.one_in(8):
            script.start(self.draw(st.sampled_from(REASONS)))
        self.batch()
        if migrate and not self.one_in(8):
            script.end()
        if name and not self.one_in(8):
            script.exit(name)
        if mark and not self.one_in(8):
            self.write_mark("round_end\n")

    def write_mark(self, line):
        """A mark goes through write(), which may be recorded, too."""
        traced = self.writes and self.one_in(2)
        if traced:
            self.script.enter("write")
        self.script.add("ftrace:print", buf=line)
        if traced:
            self.script.exit("write")

    def batch(self):
        """Unmap up to three folios, then move or undo each."""
        order = self.draw(st.sampled_from([0, 0, 0, 2]))
        unmapped = []
        for folio in self.draw(st.lists(st.sampled_from(FOLIOS[:4]), max_size=3, unique=True)):
            mapped = self.try_to_migrate(folio, order)
            unmapped.append((folio, mapped))
            self.noise()
        for folio, mapped in unmapped:
            fate = self.draw(st.sampled_from(["moved", "moved", "moved", "undone", "split", "forgotten"]))
            if fate == "moved":
                new = self.draw(st.sampled_from(FOLIOS))
                self.script.copy(folio, new)
                self.remove(folio, new, mapped, order)
            elif fate == "undone":
                self.remove(folio, folio, mapped, order)
            elif fate == "split":
                for page in range(1 << order):
                    self.remove(folio + 64 * page, folio + 64 * page, mapped, 0, page)

    def try_to_migrate(self, folio, order):
        tree = self.draw(st.lists(st.sampled_from(VMAS), max_size=4, unique=True))
        mapped = [vma for vma in tree if self.one_in(2)]
        self.script.add("kprobes:try_to_migrate", folio=folio)
        for vma in tree:
            self.visit("try_to_migrate_one", folio, vma, 0)
            for page in range(1 << order if vma in mapped else 0):
                self.entry("set", folio + 64 * page, vma, page, order)
            self.noise()
        self.script.add("kprobes:try_to_migrate_ret")
        return tree, mapped

    def remove(self, src, dst, walked, order, page=0):
        tree, mapped = walked
        self.script.add("kprobes:remove_migration_ptes", src=src, dst=dst)
        for vma in self.forks(tree):
            self.visit("remove_migration_pte", dst, vma, page)
            there = not self.one_in(4) if vma in mapped else self.one_in(4)  # or zapped, or copied by fork
            for tail in range(1 << order if there else 0):
                self.entry("remove", dst + 64 * tail, vma, page + tail, 0 if tail else order)
            self.noise()

    def forks(self, tree):
        """The tree at remove time: children that fork put in since, each told by its probe or not."""
        for vma in VMAS:
            if vma not in tree and self.one_in(2):
                if not self.one_in(3):
                    self.script.add("kprobes:anon_vma_fork", task=90 + vma, vma=0x100 + vma, pvma=0x101)
                if not self.one_in(3):
                    self.script.add("sched:sched_process_fork", task=90 + vma, parent_pid=1, child_pid=2)
                tree = [*tree, vma]
        return tree

    def visit(self, name, folio, vma, page):
        self.script.add(
            f"kprobes:{name}", folio=folio, vma=0x100 + vma, addr=0x7000 + 0x1000 * page, mm=0x200 + vma // 2
        )

    def entry(self, name, folio, vma, page, order):
        """Two VMAs may share an mm; then they map the folio at different addresses."""
        addr = 0x7000 + 0x1000 * page + 0x10_0000 * vma
        if self.one_in(12):
            self.script.add(f"thp:{name}_migration_pmd", addr=addr, pmd=traces.pte(name, folio))
        else:
            self.script.add(f"migrate:{name}_migration_pte", addr=addr, pte=traces.pte(name, folio), order=order)

    def noise(self):
        if self.one_in(4):
            self.script.add("kprobes:try_to_migrate_one_ret" if self.one_in(2) else "sched:sched_switch")

    def recorded(self):
        return [event for event in self.script.events if event.name not in self.lacks]


@st.composite
def streams(draw, *, writes=True):
    """Events of up to three tasks that take turns; write() is recorded only where asked for."""
    events, now = [], 1_000
    kernels = [Kernel(draw, task, writes=writes) for task in range(1, draw(st.integers(1, 3)) + 1)]
    for _ in range(draw(st.integers(1, 4))):
        kernel = draw(st.sampled_from(kernels))
        kernel.script.now = max(now, kernel.script.now)
        kernel.call()
        # another task's next call may begin inside this one; times stay distinct: tasks differ in the last digit
        now = draw(st.sampled_from([kernel.script.now, max(now, kernel.script.now - 60)]))
    for kernel in kernels:
        events += [e._replace(time_ns=e.time_ns * 10 + kernel.script.task) for e in kernel.recorded()]
    begin = draw(st.integers(0, 12)) if draw(st.booleans()) else 0
    events = sorted(events, key=lambda event: event.time_ns)[begin:]
    return events[: len(events) - draw(st.integers(0, 12))] if draw(st.booleans()) else events


@st.composite
def broken_streams(draw):
    """The same with events dropped, doubled and moved."""
    events = draw(streams(writes=False))  # in a write() that brings a mark nothing migrates, and the timeline knows it
    for _ in range(draw(st.integers(1, 6)) if events else 0):
        at = draw(st.integers(0, len(events) - 1))
        fault = draw(st.sampled_from(["drop", "double", "move"]))
        event = events.pop(at)
        if fault == "double":
            events[at:at] = [event, event]
        elif fault == "move":
            other = draw(st.integers(0, len(events)))
            time_ns = events[other].time_ns if other < len(events) else event.time_ns
            # a time of its own, so that it is clear what came first
            events.insert(other, event._replace(time_ns=time_ns - draw(st.integers(-4, 4)) or time_ns))
        if not events:
            break
    return events


def soup_event(draw, task):
    """Any event of the rmap machinery at all."""
    folio, vma = draw(st.sampled_from(FOLIOS[:3])), draw(st.sampled_from(VMAS[:3]))
    addr = 0x7000 + 0x1000 * draw(st.integers(0, 1))
    visit = {"folio": folio, "vma": 0x100 + vma, "addr": addr, "mm": 0x200 + vma // 2}
    both = {"src": folio, "dst": draw(st.sampled_from(FOLIOS[:3]))}
    name, fields = draw(
        st.sampled_from(
            [
                ("kprobes:try_to_migrate", {"folio": folio}),
                ("kprobes:try_to_migrate_ret", {}),
                ("kprobes:try_to_migrate_one", visit),
                ("kprobes:try_to_migrate_one", visit),
                ("migrate:set_migration_pte", {"addr": addr, "pte": traces.pte("set", folio), "order": 0}),
                ("migrate:remove_migration_pte", {"addr": addr, "pte": traces.pte("remove", folio), "order": 0}),
                ("kprobes:remove_migration_pte", visit),
                ("kprobes:remove_migration_pte", visit),
                ("kprobes:remove_migration_ptes", both),
                ("kprobes:folio_mc_copy", both),
                ("migrate:mm_migrate_pages_start", {"reason_name": draw(st.sampled_from(REASONS))}),
                ("migrate:mm_migrate_pages", {}),
                ("syscalls:sys_enter_move_pages", {}),
                ("syscalls:sys_exit_move_pages", {}),
                ("syscalls:sys_exit_ioctl", {}),
            ]
        )
    )
    return naive.Event(task, 0, name, fields)


@st.composite
def soups(draw):
    """Events that no kernel would write in that order."""
    events = [soup_event(draw, draw(st.integers(1, 2))) for _ in range(draw(st.integers(0, 40)))]
    return [event._replace(time_ns=1_000 + 10 * i) for i, event in enumerate(events)]


COMPARED = [name for name in naive.Operation._fields if name not in ("call", "seq")]


def by_machine(replayed):
    """Operations as naive.Operation, with the call named by the seq of its start."""
    starts = replayed.rows["seq"].gather(replayed.calls["start_row"])
    ops = replayed.operations.with_columns(
        call=starts.gather(replayed.operations["call"]), op=pl.col("op").cast(pl.String)
    )
    return [naive.Operation(*row) for row in ops.select(naive.Operation._fields).iter_rows()]


def calls_by_machine(replayed):
    seq = replayed.rows["seq"]
    table = replayed.calls.with_columns(
        seq=seq.gather(replayed.calls["start_row"]), end_seq=seq.gather(replayed.calls["end_row"])
    )
    parent = table["seq"].gather(table["parent"])
    columns = ["seq", "kind", "name", "is_named", "task", "start_ns", "end_seq", "end_ns"]
    return {
        row[0]: row for row in table.select(*columns, "tracepoints", "kprobes", "kretprobes", parent=parent).iter_rows()
    }


def calls_by_twin(calls):
    return {
        call.seq: (
            *(
                getattr(call, name)
                for name in ("seq", "kind", "name", "is_named", "task", "start_ns", "end_seq", "end_ns")
            ),
            *(call.counts.values() if call.end_seq is not None else (None,) * 3),
            call.parent.seq if call.parent else None,
        )
        for call in calls
        if call.migrates
    }


def check(events, **how):
    with tempfile.TemporaryDirectory() as scratch:
        replayed = machine.replay(traces.write(Path(scratch) / "t", events, **how))
    twin = naive.replay(events)
    assert by_machine(replayed) == twin.operations
    columns = ["task", "order", "moved", "known", "in_migrate_pages", "src", "dst"]
    assert replayed.episodes.select(columns).rows() == [
        (
            episode.task,
            episode.order,
            episode.moved,
            episode.known,
            episode.in_migrate_pages,
            episode.tried.folio if episode.tried else None,
            episode.removed.folio if episode.removed else None,
        )
        for episode in twin.episodes
    ]
    machine_calls, twin_calls = calls_by_machine(replayed), calls_by_twin(twin.calls)
    for seq, call in twin_calls.items():
        # the timeline leaves out the write() that brings a mark's begin
        assert machine_calls.get(seq) == call or (call[2] == "write" and seq not in machine_calls)
    # the machine may keep more calls than those in which something migrated, but none that there was not
    assert machine_calls.keys() <= {call.seq for call in twin.calls}
    found = {name: replayed.anomalies.get(name, 0) for name in twin.orphans}
    assert found == twin.orphans
    check_policies(replayed, twin, naive.forks(events))


def check_policies(replayed, twin, links):
    ops = replayed.operations
    judgements = [
        (as_traced.POLICY(), naive.as_traced(twin)),
        (upper_bound.POLICY(), naive.upper_bound(twin)),
    ]
    for counter in ("exact", "posted"):
        for scope in ("small", "all"):
            for device_path in ("include", "exclude"):
                params = {"counter": counter, "scope": scope, "device_path": device_path}
                mine = counter_early_exit.POLICY(**params)
                judgements.append((mine, naive.counter_early_exit(twin, links, **params)))
    for policy, expected in judgements:
        judged = policy.judge(ops)
        # which copies a policy makes together is for test_batched_copy
        spared = set(ops.filter(pl.Series(judged.executed == 0) & (pl.col("op") != "folio.copy"))["seq"])
        assert spared == expected.spared, policy
        assert judged.unsafe.get("stale_migration_entries", 0) == expected.stale, policy
        assert judged.open == expected.open, policy


@EXAMPLES
@given(streams())
def test_streams_of_a_kernel(events):
    check(events)


@EXAMPLES
@given(broken_streams())
def test_broken_streams(events):
    check(events)


@EXAMPLES
@given(soups())
def test_soups(events):
    check(events)


@settings(EXAMPLES, max_examples=25)
@given(streams())
def test_probes_that_did_not_record_mm(events):
    bare = [
        event._replace(fields={key: value for key, value in event.fields.items() if key != "mm"}) for event in events
    ]
    check(bare, without=("mm",))


def visits(*vmas):
    """Remove visits of one folio with nothing between; a VMA stands in a tree once."""
    script = traces.Script()
    script.remove(FOLIOS[0], vmas)
    return script.events


def nested_marks(*, traced):
    """A mark around another, the first of them begun before the trace; write() itself recorded or not."""
    script = traces.Script()
    for line in ("early_end", "outer_begin", "inner_begin", None, "inner_end", "outer_end"):
        if line and traced:
            script.enter("write")
        if line:
            script.add("ftrace:print", buf=line)
        else:
            script.enter("move_pages")
            script.migrate(FOLIOS[0], FOLIOS[4], [-1], [-1, 2])
            script.exit("move_pages")
        if line and traced:
            script.exit("write")
    return script.events


@pytest.mark.parametrize("traced", [False, True])
def test_marks_nest(traced, tmp_path):
    check(nested_marks(traced=traced))
    replayed = machine.replay(traces.write(tmp_path / "t", nested_marks(traced=traced)))
    calls = replayed.calls.filter(pl.col("name") != "write")
    assert calls["name"].to_list() == ["mark:outer", "mark:inner", "move_pages"]
    assert calls["parent"].is_null().to_list() == [True, False, False]
    assert replayed.anomalies == {}


@pytest.mark.parametrize("between", ["ftrace:print", "syscalls:sys_exit_write", "kprobes:try_to_migrate_ret", None])
def test_a_walk_ends_where_its_task_is_seen_elsewhere(between, tmp_path):
    script = traces.Script()
    script.remove(FOLIOS[0], [-1])
    if between:
        script.add(between, **({"buf": "a_begin"} if between == "ftrace:print" else {}))
    script.remove(FOLIOS[0], [-2])
    check(script.events)
    ops = machine.replay(traces.write(tmp_path / "t", script.events)).operations
    assert ops["position"].drop_nulls().to_list() == [0, 0 if between else 1]


def test_an_entry_stands_in_a_page_table_whatever_becomes_of_its_vma(tmp_path):
    """mprotect() or a merge may put another VMA over it between the walks; without mm nothing shows that."""
    script = traces.Script()
    script.migrate(FOLIOS[0], FOLIOS[4], [-1], [-1])
    other = [
        event._replace(fields=event.fields | {"vma": 0x999}) if event.name == "kprobes:remove_migration_pte" else event
        for event in script.events
    ]
    check(other)
    bare = [e._replace(fields={key: value for key, value in e.fields.items() if key != "mm"}) for e in other]
    check(bare, without=("mm",))
    found = []
    for name, events, without in (("mm", other, ()), ("vma", bare, ("mm",))):
        ops = machine.replay(traces.write(tmp_path / name, events, without=without)).operations["op"]
        found.append(ops.is_in(["migration_entry.fork_copy", "migration_entry.zap"]).sum())
    assert found == [0, 2]


def test_a_call_is_over_where_a_system_call_followed_that_migrated_nothing(tmp_path):
    """The timeline leaves that one out; the end of a migrate_pages() behind it belongs to one whose start was lost."""
    script = traces.Script()
    script.start("compaction")
    script.migrate(FOLIOS[0], FOLIOS[4], [-1], [-1])
    script.enter("ioctl")
    script.exit("ioctl")
    script.migrate(FOLIOS[1], FOLIOS[5], [-1], [-1])
    script.end()
    check(script.events)
    calls = machine.replay(traces.write(tmp_path / "t", script.events)).calls
    assert calls.select("name", "end_row").rows() == [("compaction", None)]


@pytest.mark.parametrize("ended", [True, False])
def test_a_copy_in_a_call_whose_migrate_pages_lost_its_end_is_of_either_kind(ended, tmp_path):
    """A fork copied the second entry: no driver's migrate_vma() collected it, as far as one can tell."""
    script = traces.Script()
    script.enter("move_pages")
    script.start()
    script.migrate(FOLIOS[0], FOLIOS[4], [-1], [-1, -2])
    if ended:
        script.end()
    script.exit("move_pages")
    check(script.events)
    replayed = machine.replay(traces.write(tmp_path / "t", script.events))
    assert replayed.episodes["in_migrate_pages"].to_list() == [True if ended else None]
    assert "migration_entry.fork_copy" in replayed.operations["op"].cast(pl.String).to_list()


@pytest.mark.parametrize("vmas", [(1, 1, 2, 2), (1, 2, 1, 3, 1), (1, 2, 2, 1), (1, 2, 1, 2)])
def test_a_vma_that_comes_back_begins_a_walk(vmas):
    check(visits(*vmas))


@pytest.mark.parametrize("events", [[], [naive.Event(1, 5, "syscalls:sys_enter_move_pages")]])
def test_nothing_migrated(events):
    check(events)
