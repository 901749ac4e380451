"""Reconstruction against a small kernel (tests/naive_kernel.py) that knows which VMAs its walks went through.

Hypothesis makes up what processes do. What the kernel shows of it is all the machine has: every walk must be found, in
the same VMAs, in the same order. Where events are lost, and that is told, whatever is still called certain must be
right; where they are lost, doubled or moved and nothing tells it, nothing is raised.
"""

from unittest import mock

import polars as pl
from hypothesis import HealthCheck, Phase, assume, given, settings, target
from hypothesis import strategies as st
from naive_kernel import HEAP, File, Kernel

from tracekit.machine.reconstruct import pruned, take
from tracekit.machine.reconstruct.events import DIRTY, SCHEMA, Code, Shown
from tracekit.machine.reconstruct.kin import kin_of
from tracekit.machine.reconstruct.machine import Life
from tracekit.machine.reconstruct.rows import MM
from tracekit.machine.timeline import Kind

EXAMPLES = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
BASE, SIZE = 0x7F000, 4
MARKS = ("SET", "RESTORE", "EDGE")


def play(draw, kernel, steps):
    """What Hypothesis has the processes do."""
    file, tasks, movers = File(), [100], []

    def one(*, alone=False):
        task = draw(st.sampled_from(tasks))
        if task not in kernel.mm:
            return
        start = BASE + draw(st.integers(0, SIZE - 1))
        pages = draw(st.integers(1, BASE + SIZE - start))
        what = draw(st.sampled_from(["write"] * 8 + ["fork"] * 3 + ["migrate"] * 9 + OTHERS))
        if what == "write":
            first = start if draw(st.integers(0, 2)) else start - BASE + HEAP
            for page in range(first, first + min(pages, 3)):
                kernel.write(task, page)
        elif what == "migrate" and not alone:
            between = [lambda: one(alone=True)] * draw(st.integers(0, 2))
            owner = draw(st.sampled_from(tasks))
            if owner in kernel.mm and kernel.mm[owner].table:
                mapped = sorted(kernel.mm[owner].table)
                movers.append(task)
                first = (start - BASE) % len(mapped)
                kernel.migrate(task, owner, *mapped[first : first + draw(st.integers(1, 3))], between=between)
                movers.pop()
        elif what == "fork" and len(tasks) < 9:
            tasks.append(kernel.fork(task))
        elif what == "thread" and len(tasks) < 9:
            tasks.append(kernel.thread(task))
        elif what == "mmap":
            shared = draw(st.booleans())
            kernel.mmap(task, start, pages, shared=shared, file=file if shared else None)
        elif what in ("exit", "exec") and len(tasks) > 1 and task not in movers:
            if kernel.mm[task].users == 1 or what == "exit":
                getattr(kernel, what)(task)
        elif what == "advise":
            kernel.advise(task, start, pages, huge=draw(st.booleans()))
        elif what == "brk":
            kernel.brk(task, HEAP + start - BASE)
        elif what in ("munmap", "dontneed"):
            getattr(kernel, what)(task, start, pages)

    shared = draw(st.integers(0, 3)) == 0
    kernel.mmap(100, BASE, SIZE, shared=shared, file=file if shared else None)
    if draw(st.booleans()):
        kernel.brk(100, HEAP + 2)
    tasks += [kernel.fork(100) for _ in range(draw(st.integers(0, 2)))]
    for _ in range(steps):
        one()


OTHERS = ["mmap", "brk", "brk", "munmap", "advise", "dontneed", "exit", "exec", "thread"]


def frames(events):
    """(life cycle, marks) of what the kernel wrote down; the place of a mark among the marks is its row."""
    cycle, marks = [], []
    for now, (name, task, arguments, ret) in enumerate(events, 1):
        told = mark(name, arguments, len(marks)) if name in MARKS else arguments
        padded = [*told, *[0] * (6 - len(told))]
        (marks if name in MARKS else cycle).append((now, now, int(Code[name]), task, *padded, ret))
    return [pl.DataFrame(rows, schema=SCHEMA, orient="row") for rows in (cycle, marks)]


def mark(name, arguments, row):
    if name == "EDGE":
        begins, reason = arguments
        return row, 0, 0, 0, begins, reason
    page, pfn, *kind = arguments
    return row, page, pfn, 0, kind[0] + DIRTY if kind else 0, 0


def found(walker):
    """[(try or remove, [(mm of the kernel, address), …], certain)]."""
    walks = []
    for made in walker.made:
        if made.kind in (Kind.TRY, Kind.REMOVE):
            # a walk that found nothing left is at a guess, and shows nowhere
            walks.append(("try" if made.kind == Kind.TRY else "remove", [], made.sure, bool(made.folio & 1)))
        else:
            walks[-1][1].append((made.mm, made.addr))
    return [(kind, visits, bool(sure)) for kind, visits, sure, nothing in walks if not nothing]


class Remember(dict):
    """Address spaces by thread, and all that each thread ever had."""

    def __init__(self):
        super().__init__()
        self.had = {}

    def __setitem__(self, tid, space):
        super().__setitem__(tid, space)
        self.had.setdefault(tid, []).append(space)


class Watched(Life):
    def __init__(self, *arguments, **how):
        super().__init__(*arguments, **how)
        self.space_of = Remember()


def run(*arguments):
    with mock.patch("tracekit.machine.reconstruct.Life", Watched):
        return take(*arguments)


def named(walks, kernel, walker):
    """The visits with the kernel's address spaces: each thread had as many there, if it is one of those left."""
    same = {}
    for tid, spaces in walker.life.space_of.had.items():
        for space, mm in zip(reversed(spaces), reversed(kernel.had.get(tid, [])), strict=False):
            same.setdefault(MM + (space.number << 12), mm)
    return [[(same.get(mm), addr) for mm, addr in visits] for _, visits, _ in walks]


SLICE = 5  # faults at a time


def compare(kernel, walker, *, names=True):
    """How many walks there are and how many certain ones; none of these may be another than the kernel's.

    Without ``names`` only how many VMAs they go through, and where: lost events leave open which thread had what.
    """
    walks = found(walker)
    assert [kind for kind, _, _ in walks] == [kind for kind, _ in kernel.walks]
    for (_, _, sure), mine, (_, real) in zip(walks, named(walks, kernel, walker), kernel.walks, strict=True):
        same = mine == real if names else [addr for _, addr in mine] == [addr for _, addr in real]
        assert same or not sure
    return len(walks), sum(sure for *_, sure in walks)


def run_both_ways(cycle, marks):
    """Walks in blocks, which must be what they are one by one."""
    runs = []
    for few in (1, len(marks)):
        with mock.patch("tracekit.machine.reconstruct.blocks.FEW", few):
            runs.append(run(cycle, marks))
    at_once, one_by_one = runs
    assert list(at_once.made) == list(one_by_one.made)
    assert at_once.why == one_by_one.why
    return at_once


def played(draw, most):
    """A kernel after at most so many operations, the life cycle that it tells, and the entries."""
    kernel = Kernel()
    play(draw, kernel, draw(st.integers(5, most)))
    return kernel, *frames(kernel.events)


@EXAMPLES
@given(st.data())
def test_every_walk_is_found(data):
    kernel, cycle, marks = played(data.draw, 40)
    walks, sure = compare(kernel, run(cycle, marks))
    target(walks)
    of_files = sum(name == "MMAP" and not arguments[3] & 0x20 for name, _, arguments, _ in kernel.events)
    assert of_files > 1 or walks - sure <= 4 + walks // 3, "uncertain is no excuse"


@EXAMPLES
@given(st.data())
def test_walks_taken_at_once_are_what_they_are_one_by_one(data):
    kernel, cycle, marks = played(data.draw, 40)
    compare(kernel, run_both_ways(cycle, marks))


@EXAMPLES
@given(st.data())
def test_blocks_of_a_quiet_family_are_found(data):
    """Nothing but writes and forks, and walks of many pages together: what blocks are made for."""
    kernel, tasks, pages = Kernel(), [100], range(BASE, BASE + 6)
    kernel.say("EXEC", 100, 100)
    kernel.mmap(100, BASE, len(pages))
    for _ in range(data.draw(st.integers(4, 16))):
        task, some = data.draw(st.sampled_from(tasks)), data.draw(st.sets(st.sampled_from(pages), min_size=2))
        what = data.draw(st.sampled_from(["write", "write", "fork", "migrate", "migrate", "exit"]))
        if what == "fork" and len(tasks) < 5:
            tasks.append(kernel.fork(task))
        elif what == "exit" and len(tasks) > 2:
            tasks.remove(task)
            kernel.exit(task)
        elif what == "migrate":
            kernel.migrate(task, task, *sorted(some))
        else:
            for page in some:
                kernel.write(task, page)
    compare(kernel, run_both_ways(*frames(kernel.events)))


@EXAMPLES
@given(st.data())
def test_what_is_left_out_before_changes_nothing(data):
    kernel, cycle, marks = played(data.draw, 40)
    is_fault = pl.col("code") == Code.FAULT
    how = Shown.of(cycle, faults=bool(cycle.select(is_fault.any()).item()), complete=True)
    kept = pruned(cycle.filter(~is_fault), cycle.filter(is_fault).iter_slices(SLICE), marks)
    assert compare(kernel, run(kept, marks, how)) == compare(kernel, run(cycle, marks, how))


def test_what_a_thread_did_stays_when_it_is_gone():
    """It mapped memory of its process, which no one wrote before the fork, and wrote what was shared since another."""
    kernel = Kernel()
    kernel.say("EXEC", 100, 100)
    thread = kernel.thread(100)
    kernel.mmap(thread, BASE, SIZE)
    kernel.exit(thread)
    kernel.fork(100)
    kernel.write(100, BASE)
    kernel.fork(100)
    thread = kernel.thread(100)
    kernel.write(thread, BASE)
    kernel.exit(thread)
    kernel.migrate(100, 100, BASE)
    cycle, marks = frames(kernel.events)
    is_fault = pl.col("code") == Code.FAULT
    how = Shown.of(cycle, faults=True, complete=True)
    walker = run(pruned(cycle.filter(~is_fault), [cycle.filter(is_fault)], marks), marks, how)
    assert not walker.why
    compare(kernel, walker)


@EXAMPLES
@given(st.data())
def test_what_strangers_wrote_changes_nothing_unless_it_was_asked_for(data):
    """Two families, each of a process that no one is seen to fork, at the same addresses."""
    _, cycle, marks = played(data.draw, 30)
    strangers = [
        frame.with_columns(pl.col("tid") + 5000, a=pl.when(of_task).then(pl.col("a") + 5000).otherwise("a"))
        for frame, of_task in (
            (cycle, pl.col("code").is_in([Code.NEWTASK, Code.FORK, Code.CALL]) & (pl.col("a") > 0)),
            (marks, pl.lit(value=False)),
        )
    ]
    cycle = pl.concat([cycle, strangers[0].with_columns(pl.col("time_ns") + 1000)])
    marks = pl.concat([marks, strangers[1].with_columns(pl.col("time_ns") + 1000, pl.col("a") + len(marks))])
    is_fault = pl.col("code") == Code.FAULT
    how = Shown.of(cycle, faults=bool(cycle.select(is_fault.any()).item()), complete=True)
    everyone, kin = (
        take(
            pruned(
                cycle.filter(~is_fault),
                cycle.filter(is_fault).iter_slices(SLICE),
                marks,
                kin_of(cycle, marks) if narrow else None,
            ),
            marks,
            how,
        )
        for narrow in (False, True)
    )
    assume(not kin.identify.asked)
    assert list(kin.made) == list(everyone.made)
    assert kin.why == everyone.why


@EXAMPLES
@given(st.data())
def test_after_a_loss_what_is_called_certain_is_right(data):
    """Any run of events but those of a migration is lost, and the trace says that something is."""
    kernel = Kernel()
    play(data.draw, kernel, data.draw(st.integers(10, 30)))
    events = kernel.events
    at = data.draw(st.integers(1, len(events)))
    until = at + data.draw(st.integers(0, 5))
    kept = [event for i, event in enumerate(events) if not at <= i < until or event[0] in MARKS]
    kept.insert(at, ("LOST", 0, (), 0))
    compare(kernel, run(*frames(kept)), names=False)


@EXAMPLES
@given(st.data())
def test_broken_streams_raise_nothing(data):
    kernel = Kernel()
    play(data.draw, kernel, data.draw(st.integers(5, 40)))
    events = list(kernel.events)
    for _ in range(data.draw(st.integers(1, 8))):
        i, how = data.draw(st.integers(0, len(events) - 1)), data.draw(st.integers(0, 2))
        if how == 0:
            del events[i]
        elif how == 1:
            events.insert(data.draw(st.integers(0, len(events))), events[i])
        else:
            events.insert(data.draw(st.integers(0, len(events) - 1)), events.pop(i))
        if not events:
            break
    take(*frames(events))
