"""Fidelity reconstructed: trees, folios and walks out of hand-made life cycles (MODEL.md B.3, E0), and of captures."""

import itertools
import statistics
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import polars as pl
import pytest
import reconstruct_table
import traces
from streams import ANON, BASE, EXCLUSIVE, FORK, PAGES, P, Stream

import tracekit
from tracekit.machine.reconstruct import blocks, prune, prune_faults, pruned, reconstruct, renamed, spaces, start, take
from tracekit.machine.reconstruct.events import LIKELY, SCHEMA, Code
from tracekit.machine.reconstruct.match import Holds, lay
from tracekit.machine.reconstruct.rows import MM
from tracekit.machine.reconstruct.state import Folio, Space
from tracekit.machine.reconstruct.vma import Vma
from tracekit.machine.timeline import Kind, timeline

THREAD = 0x3D0F00
DUAL = Path(__file__).resolve().parents[2] / "shared" / "captures" / "7.2" / "rec.dual" / "trace.dat"
SHARED, FIXED = 0x01, 0x10


@pytest.fixture(params=[blocks.FEW, 0], ids=["one by one", "in blocks"])
def stream(request, monkeypatch):
    """P maps pages and writes the first."""
    monkeypatch.setattr(blocks, "FEW", request.param)
    new = Stream()
    new.mmap()
    new.write(P)
    return new


def test_e0_1_all_children_copied_the_page(stream):
    for child in [stream.fork() for _ in range(4)]:
        stream.write(child)
    stream.move(sets=1, restores=1)
    assert stream.walks() == [("try", [0], True), ("remove", [0, 1, 2, 3, 4], True)]


def test_e0_2_the_parent_copied_it(stream):
    for _ in range(3):
        stream.fork()
    stream.write(P)
    stream.move(sets=3, restores=3, target=P + 1)
    assert stream.walks() == [("try", [0, 1, 2, 3], True), ("remove", [0, 1, 2, 3], True)]


def test_e0_2b_mapped_by_the_parent_and_the_second_child(stream):
    children = [stream.fork() for _ in range(3)]
    stream.write(children[0])
    stream.write(children[2])
    stream.move(sets=2, restores=2)
    assert stream.visits() == [("try", 3, True), ("remove", 4, True)]


def test_e0_3_forked_before(stream):
    stream.fork()
    stream.move(sets=2, restores=2)
    assert stream.visits() == [("try", 2, True), ("remove", 2, True)]


def test_e0_4_forked_between_the_walks(stream):
    stream.start()
    stream.set(5)
    stream.fork()
    stream.restore(6, [0, 0])
    stream.end()
    assert stream.visits() == [("try", 1, True), ("remove", 2, True)]


def test_e0_5_forking_during_the_walks_is_not_certain(stream):
    stream.fork(until_newtask=False)
    stream.start()
    stream.set(5)
    stream.restore(6, [0, 0])
    stream.end()
    assert stream.visits() == [("try", 1, True), ("remove", 2, False)]


def test_e0_6_zapped_and_still_linked(stream):
    stream.fork()
    last = stream.fork()
    stream.start()
    stream.set(5, [0, 0, 0])
    stream.add(Code.EXIT_BEGINS, last)
    stream.restore(6, [0, 0])
    stream.end()
    assert stream.visits() == [("try", 3, True), ("remove", 3, False)], "when it leaves the tree is not seen"


def test_e0_7_nothing_left_to_restore(stream):
    stream.fork()
    stream.fork()
    stream.start()
    stream.set(5, [0, 0, 0])
    stream.end()
    assert stream.visits() == [("try", 3, True), ("remove", 3, False)]


def test_e0_8_undone_and_tried_again(stream):
    for child in (stream.fork(), stream.fork()):
        stream.write(child)
    stream.start()
    stream.set(5)
    stream.restore(5)
    stream.set(5)
    stream.restore(6)
    stream.end()
    assert stream.visits() == [("try", 1, True), ("remove", 3, True)] * 2


def test_e0_11_a_file_is_walked_youngest_child_first():
    stream = Stream()
    stream.mmap(flags=SHARED, fd=3)
    stream.write(P)
    first = stream.fork()
    stream.fork()
    stream.fork()
    stream.write(first)
    stream.move(sets=2, restores=2)
    (_, tried, _), (_, removed, _) = stream.walks()
    assert tried == removed == [0, 1, 2, 3]
    assert [made.sure for made in stream.taken.made] == [True] * len(stream.taken.made)
    # P, third, second, first: the first made its visit last
    last = max(made.mm for made in stream.taken.made if made.mm)
    assert [made.mm for made in stream.taken.made if made.kind == Kind.TRY_VISIT][1] == last


def test_e0_13_a_large_folio(stream):
    for child in (stream.fork(), stream.fork()):
        for page in range(PAGES):
            stream.write(child, page)
    stream.start()
    for i in range(PAGES):
        stream.set(0x1000 + i, [i], order=4)
    for i in range(PAGES):
        stream.restore(0x2000 + i, [i], order=4 if i == 0 else 0)
    stream.end()
    assert stream.visits() == [("try", 1, True), ("remove", 3, True)]


def test_what_is_mapped_over_is_gone(stream):
    """MAP_FIXED: the page that was written there before is not the one that is written now."""
    stream.write(P, 1)
    stream.fork()
    stream.write(P)  # its own, in a tree that the child's VMA is in as well
    stream.mmap(flags=ANON | FIXED)
    stream.write(P)
    stream.move(sets=1, restores=1)
    assert stream.visits() == [("try", 1, True), ("remove", 1, True)]
    here = MM + (stream.taken.life.space_of[P].number << 12)
    assert {made.mm for made in stream.taken.made if made.mm} == {here}


def test_what_is_mapped_over_a_file_was_not_read_yet():
    stream = Stream()
    stream.mmap(flags=SHARED, fd=3)
    stream.write(P)
    child = stream.fork()
    stream.mmap(flags=SHARED | FIXED, fd=4)
    stream.mmap(child, flags=SHARED | FIXED, fd=4)
    stream.write(child)
    stream.move(sets=1, restores=1, target=child)
    assert [len(spaces) for _, spaces, _ in stream.walks()] == [2, 2], "past P's, which holds nothing, to the child's"


def test_a_range_with_holes_is_advised_where_it_is_mapped(stream):
    """madvise() says ENOMEM and has done the rest; mprotect() stops at the hole."""
    stream.fork()
    stream.add(Code.MUNMAP, P, BASE + 4096, 4096)
    stream.add(Code.MADVISE, P, BASE, 8 * 4096, 4, ret=-12)
    stream.move(sets=1, restores=1, target=P + 1)
    stream.add(Code.MPROTECT, P, BASE, 8 * 4096, 1, ret=-12)
    # P's page is zapped; its VMA, since it was cut, stands behind the child's
    assert stream.visits() == [("try", 1, True), ("remove", 2, True)]
    space = stream.taken.life.space_of[P]
    flags = {vma.start - (BASE >> 12): vma.flags & spaces.PROTECTION for vma in space.vmas}
    assert flags == {0: 1, 2: 3}


def test_a_write_that_is_forbidden_makes_no_folio(stream):
    child, other = stream.fork(), stream.fork()
    stream.write(other)
    stream.add(Code.MPROTECT, child, BASE, PAGES * 4096, 1)
    stream.write(child)
    stream.move(sets=2, restores=2)
    stream.add(Code.MPROTECT, child, BASE, PAGES * 4096, 3)
    stream.write(child)
    stream.move(sets=1, restores=1)
    assert stream.visits() == [("try", 2, True), ("remove", 3, True), ("try", 1, True), ("remove", 3, True)]


FAR = BASE + (1 << 30)


def test_what_mremap_moved_is_copied_by_the_next_write(stream):
    child = stream.fork()
    stream.add(Code.MREMAP, child, BASE, 4096, 4096, 3, FAR, ret=FAR)
    at = (FAR - BASE) >> 12
    stream.start()
    stream.set(5, [0, at])
    stream.restore(6, [0, at])
    stream.end()
    stream.add(Code.FAULT, child, FAR, 7)
    stream.start(child)
    stream.set(7, [at])
    stream.restore(8, [at])
    stream.end()
    assert stream.visits() == [("try", 2, True), ("remove", 2, True), ("try", 1, True), ("remove", 1, True)]


def test_mremap_of_several_vmas_spares_what_is_opposite_a_hole(stream):
    for page in (1, 2):
        stream.write(P, page)
        stream.start()
        stream.set(5 + page, [page], kind=EXCLUSIVE)
        stream.end()
    stream.mmap(at=FAR, pages=3)
    stream.add(Code.MUNMAP, P, FAR + 4096, 4096)
    stream.add(Code.MREMAP, P, FAR, 3 * 4096, 3 * 4096, 3, BASE, ret=BASE)
    stream.walks()
    space = stream.taken.life.space_of[P]
    known = [isinstance(spaces.folio_at(space, (BASE >> 12) + page), Folio) for page in (1, 2)]
    assert known == [True, False]


@pytest.mark.parametrize(("version", "stays"), [((6, 16), False), ((6, 17), True), (None, True)])
def test_an_mremap_that_fails_may_have_unmapped(version, stays):
    stream = Stream()
    stream.mmap(at=FAR, pages=1)
    stream.mmap(pages=1)
    stream.mmap(at=BASE + 2 * 4096, pages=1)
    stream.add(Code.MREMAP, P, BASE, 3 * 4096, 3 * 4096, 3, FAR, ret=-14)
    stream.walks(version=version)
    starts = [vma.start for vma in stream.taken.life.space_of[P].vmas]
    assert (FAR >> 12 in starts) == stays
    assert len(starts) == 2 + stays


@pytest.mark.parametrize(
    ("start", "page", "mapped"),
    [
        (0, 3, range(16)),
        (0, 20, range(16, 32)),
        (5, 6, range(5, 21)),
        (5, 17, range(16, 32)),
        (500, 505, range(500, 512)),
    ],
)
def test_fault_around_begins_where_the_vma_or_its_sixteen_pages_do(start, page, mapped):
    """do_fault_around(), with a VMA of 40 pages."""
    vma = Vma(Space(), start, start + 40, 0)
    assert spaces.around(vma, page) == mapped


@pytest.mark.parametrize(
    ("version", "taken"), [((6, 1), 0), ((6, 12), 0), ((6, 13), None), ((7, 1), None), ((7, 2), 1), (None, None)]
)
def test_which_anon_vma_of_two_that_are_free_a_fork_takes(version, taken):
    """P, a, b, c, d, each forked by the one before; a and b are gone when d forks."""
    stream = Stream()
    stream.mmap()
    stream.write(P)
    family = [P]
    for _ in range(4):
        family.append(stream.fork(family[-1]))
    stream.exit(family[1])
    stream.exit(family[2])
    child = stream.fork(family[4])
    stream.write(child)
    stream.move(sets=1, restores=1, target=child, kind=EXCLUSIVE)
    walks = stream.walks(version=version)
    by_depth = [[], [], [], [], []]
    for anon in stream.taken.life.space_of[child].at(BASE >> 12).chain:
        up, depth = anon, -1
        while up is not None:
            up, depth = up.parent, depth + 1
        by_depth[depth].append(anon)
    free = [*by_depth[1], *by_depth[2]]
    assert [anon.active for anon in free].count(1) == 1
    if taken is None:
        assert stream.taken.why == {"order of anon_vma_clone() not known": 2}
    else:
        assert stream.taken.life.space_of[child].at(BASE >> 12).anon is free[taken]
        assert all(sure for _, _, sure in walks)


def test_who_came_and_went_may_have_had_the_anon_vma_that_another_wanted():
    """A dead grandparent's is taken by the first child that is forked then, so not by the second: the first matters."""
    stream = Stream()
    stream.mmap()
    stream.write(P)
    child = stream.fork()
    grandchild = stream.fork(child)
    stream.exit(child)
    first = stream.fork(grandchild)
    second = stream.fork(grandchild)
    stream.exit(first)
    alone = stream.fork(grandchild)
    stream.exit(alone)
    stream.write(second)
    stream.move(sets=1, restores=1, target=second)
    cycle, marks = (pl.DataFrame(rows, schema=SCHEMA, orient="row") for rows in (stream.cycle, stream.marks))
    assert prune.gone(cycle, marks)["tid"].to_list() == [alone]
    assert stream.visits() == [("try", 1, True), ("remove", 1, True)]


def test_a_split_leaves_a_walk_for_each_page(stream):
    stream.start()
    for i in range(4):
        stream.set(0x1000 + i, [i], order=2)
    for i in range(4):
        stream.restore(0x1000 + i, [i])
    for i in range(4):
        stream.set(0x1000 + i, [i])
    for i in range(4):
        stream.restore(0x2000 + i, [i])
    stream.end()
    assert stream.visits() == [
        ("try", 1, True),
        *[("remove", 1, True)] * 4,
        *[("try", 1, True)] * 4,
        *[("remove", 1, True)] * 4,
    ]


def test_a_child_walks_its_own_pages_alone(stream):
    child = stream.fork()
    stream.write(child)
    stream.move(sets=1, restores=1, target=child, kind=EXCLUSIVE)
    assert stream.visits() == [("try", 1, True), ("remove", 1, True)]


def test_threads_share_and_exec_replaces(stream):
    stream.add(Code.NEWTASK, P, P + 50, THREAD)
    child = stream.fork()
    stream.add(Code.EXEC, child, child)
    stream.move(sets=1, restores=1)
    assert stream.visits() == [("try", 1, True), ("remove", 1, True)], "the thread is no VMA, the child has left"


def test_walks_through_what_a_fork_has_yet_to_copy_do_not_copy_it(monkeypatch):
    monkeypatch.setattr(blocks, "FEW", 0)
    stream = Stream()
    stream.mmap()
    stream.write(P)
    child = stream.fork()
    stream.write(P)
    stream.move(sets=1, restores=1, kind=EXCLUSIVE)
    stream.exit(child)
    with mock.patch.object(Vma, "copy", autospec=True, side_effect=Vma.copy) as copy:
        assert stream.walks() == [("try", [0], True), ("remove", [0, 1], True)]
    assert copy.call_count == 1  # of the image


def test_who_writes_again_where_something_else_is_mapped_now_writes_to_that(stream):
    stream.move(sets=1, restores=1, kind=EXCLUSIVE)
    stream.fork()
    stream.mmap()
    stream.write(P)
    stream.move(sets=1, restores=1, kind=EXCLUSIVE)
    assert stream.walks() == [("try", [0], True), ("remove", [0], True)] * 2


def test_exit_unlinks(stream):
    children = [stream.fork() for _ in range(3)]
    for child in children:
        stream.write(child)
    stream.exit(children[1])
    stream.move(sets=1, restores=1)
    assert stream.walks() == [("try", [0], True), ("remove", [0, 1, 2], True)]


def test_what_was_split_goes_last(stream):
    child = stream.fork()
    stream.write(child)
    stream.add(Code.MPROTECT, P, BASE, 4 * 4096, 1)
    stream.move(sets=1, restores=1)
    assert stream.visits() == [("try", 2, True), ("remove", 2, True)], "the child is asked first now"


class Family(Stream):
    """P has eight pages at BASE and forks as it is told; ``order`` says whom the walk of a page of P visits."""

    def __init__(self):
        super().__init__()
        self.mmap(pages=8)
        self.children = []
        for page in range(8):
            self.write(P, page)

    def fork(self, parent=P, *, until_newtask=True):
        self.children.append(super().fork(parent, until_newtask=until_newtask))
        return self.children[-1]

    def protect(self, first, pages, protection):
        self.add(Code.MPROTECT, P, BASE + first * 4096, pages * 4096, protection)

    def order(self, page, sharers):
        """Which processes a walk of P's ``page``, which ``sharers`` map, visits: 0 is P, others are its children."""
        self.start()
        self.set(5, [page] * sharers)
        self.restore(6, [page] * sharers)
        self.end()
        (_, _, _), (_, _, sure) = self.walks()
        spaces = [made.mm for made in self.taken.made if made.kind == Kind.REMOVE_VISIT]
        mine = {self.taken.life.space_of[tid].number: i for i, tid in enumerate([P, *self.children])}
        return [mine[(mm - MM) >> 12] for mm in spaces], bool(sure)


def grow_up(family):
    family.fork()
    family.fork()
    family.mmap(at=BASE + 8 * 4096, pages=8)


def grow_down(family):
    family.fork()
    family.fork()
    family.mmap(at=BASE - 8 * 4096, pages=8)


def protect_and_back(family):
    family.fork()
    family.protect(2, 4, 1)
    family.fork()
    family.protect(2, 2, 3)
    family.fork()


def fill_hole(family):
    family.fork()
    family.add(Code.MUNMAP, P, BASE + 3 * 4096, 2 * 4096)
    family.mmap(at=BASE + 3 * 4096, pages=2)
    family.write(P, 3)
    family.fork()


def dont_fork(family):
    family.add(Code.MADVISE, P, BASE, 4 * 4096, 10)
    family.fork()
    family.add(Code.MADVISE, P, BASE, 4 * 4096, 11)
    family.fork()


# recorded with probes under 7.2.13, by a program that does just this
@pytest.mark.parametrize(
    ("history", "page", "sharers", "order"),
    [
        (grow_up, 0, 3, [1, 2, 0]),
        (grow_down, 0, 3, [0, 1, 2]),
        (protect_and_back, 0, 4, [1, 2, 0, 3]),
        (protect_and_back, 3, 4, [1, 0, 3, 2]),
        (protect_and_back, 7, 4, [1, 0, 2, 3]),
        (fill_hole, 3, 2, [1, 0, 2]),
        (dont_fork, 0, 2, [0, 2]),
    ],
)
def test_vmas_split_and_become_one_as_the_kernel_does(history, page, sharers, order):
    family = Family()
    history(family)
    assert family.order(page, sharers) == (order, True)


def test_pages_of_the_image_are_in_doubt_once_forked():
    """brk() is not among the events: a heap that grew goes last in its tree."""
    stream = Stream()
    stream.write(P)
    stream.move(sets=1, restores=1)
    stream.fork()
    stream.move(sets=2, restores=2)
    assert stream.visits() == [("try", 1, True), ("remove", 1, True), ("try", 2, False), ("remove", 2, False)]


def test_an_anon_vma_without_users_is_taken_over(stream):
    """B.3: the dead middle one's anon_vma becomes the grandchild's own, so its parent is asked for its pages, too."""
    middle = stream.fork()
    parent = stream.fork(middle)
    stream.exit(middle)
    child = stream.fork(parent)
    stream.write(child)
    stream.move(sets=1, restores=1, target=child, kind=EXCLUSIVE)
    assert stream.visits() == [("try", 2, True), ("remove", 2, True)]


def test_the_kernel_wrote_it(stream):
    """No fault of user mode shows a page that the kernel wrote for a child; the entry does: no one else maps it."""
    child = stream.fork()
    stream.fork()
    stream.move(sets=1, restores=1, target=child, kind=EXCLUSIVE)
    assert stream.visits() == [("try", 1, True), ("remove", 1, True)]


def test_what_was_lost_leaves_doubt_until_a_new_image():
    stream = Stream()
    stream.mmap()
    stream.write(P)
    stream.add(Code.LOST, 0)
    stream.move(sets=1, restores=1)
    stream.add(Code.EXEC, P, P)
    stream.mmap()
    stream.write(P)
    stream.move(sets=1, restores=1)
    assert [sure for _, _, sure in stream.walks()] == [False, False, True, True]


def test_an_address_that_no_one_is_known_to_map_is_not_certain():
    stream = Stream()
    stream.start(target=999)
    stream.set(5)
    stream.restore(6)
    stream.end()
    assert [(kind, sure) for kind, _, sure in stream.walks()] == [("try", False), ("remove", False)]


def unseen_writes(by=P):
    """Three processes and no page faults: anyone but the one that moves its own memory may have written to it."""
    stream = Stream()
    stream.mmap()
    for _ in range(2):
        stream.fork()
    stream.add(Code.CALL, by, P if by != P else 0)
    stream.add(Code.EDGE, by, next(stream.row), 0, 0, 0, 1, 3, to=stream.marks)
    stream.set(5, by=by)
    stream.restore(6, by=by)
    stream.end(by)
    return stream


def test_who_moves_its_own_memory_maps_it():
    assert unseen_writes().visits() == [("try", 1, True), ("remove", 3, True)]


def test_who_else_is_moved_may_have_written_meanwhile():
    assert unseen_writes(by=P + 50).visits() == [("try", 1, False), ("remove", 3, False)]


def test_a_fault_that_has_just_begun_may_not_have_written_yet(stream):
    """Two of three entries at one address: the one in flight and one of the others, or both others."""
    children = [stream.fork() for _ in range(3)]
    stream.write(children[0])
    stream.write(children[1])
    stream.move(sets=3, restores=3)
    assert [sure for _, _, sure in stream.visits()] == [False, False]


def test_whose_write_is_in_flight_still_maps_what_it_shared(stream):
    """The entry is not exclusive, as it would be after the child's write: the folio is still the parent's."""
    child = stream.fork()
    stream.write(P)
    stream.write(P, page=9)
    stream.write(child)
    stream.move(sets=1, restores=1, target=child)
    stream.move(sets=1, restores=1, kind=EXCLUSIVE)  # which shows what the types mean
    assert stream.visits()[:2] == [("try", 2, True), ("remove", 2, True)]


def test_a_thread_that_faults_anew_is_past_its_fault(stream):
    children = [stream.fork() for _ in range(3)]
    for child in children[:2]:
        stream.write(child)
        stream.write(child, page=9)
    stream.move(sets=2, restores=2)
    assert stream.visits() == [("try", 4, True), ("remove", 4, True)]


def test_a_write_to_where_was_written_before_shows_that_the_one_between_is_over(stream):
    """It changes nothing itself. Left out before the replay, it would be open whose write is in flight in the walk."""
    stream.write(P, page=1)
    past, in_flight, _ = (stream.fork() for _ in range(3))
    for page in (9, 0, 1, 0):  # the first in a mapping stays anyway
        stream.write(past, page=page)
    stream.write(in_flight, page=1)
    for page in (1, 0):
        stream.start()
        stream.set(5 + page, [page] * 3)
        stream.restore(7 + page, [page] * 3)
        stream.end()
    cycle = pl.DataFrame(stream.cycle, schema=SCHEMA, orient="row")
    is_fault = pl.col("code") == Code.FAULT
    marks = pl.DataFrame(stream.marks, schema=SCHEMA, orient="row")
    stream.cycle = pruned(cycle.filter(~is_fault), [cycle.filter(is_fault)], marks).rows()
    assert stream.visits() == [("try", 4, True), ("remove", 4, True)] * 2


def test_a_fork_that_ends_after_the_walk_was_under_way_in_it(stream):
    """The child's VMA may have been linked before the walk or after it."""
    stream.start()
    stream.set(5)
    child = stream.fork(until_newtask=False)
    stream.restore(6)
    stream.add(Code.NEWTASK, P, child, FORK)
    stream.end()
    assert [(kind, sure) for kind, _, sure in stream.visits()] == [("try", True), ("remove", False)]


def test_clone3_forks_too(stream):
    stream.start()
    stream.set(5)
    stream.add(Code.CLONE3, P)
    stream.restore(6)
    stream.add(Code.NEWTASK, P, P + 50, FORK)
    stream.set(6)
    stream.restore(7)
    stream.end()
    assert [sure for _, _, sure in stream.visits()] == [True, False, False, False]


def test_a_part_of_a_split_folio_is_put_back_only_where_it_was(stream):
    """The child's copy of the first page is none of the folio's."""
    child = stream.fork()
    stream.write(child)
    stream.start()
    for i in range(4):
        stream.set(0x1000 + i, [i], order=2)
    for i in range(1, 4):
        stream.set(0x1000 + i, [i], order=2)
    for i in range(4):
        stream.restore(0x1000 + i, [i] if i == 0 else [i, i])
    stream.end()
    assert stream.visits() == [("try", 2, True), *[("remove", 2, True)] * 4]


def test_what_is_left_out_before_the_replay_changes_nothing(capture, ingested, monkeypatch):
    """Of all captures, and with events lost."""
    trace = ingested(capture)
    rows = timeline(trace, probes=False)
    made = reconstruct(trace, rows)
    monkeypatch.setattr(prune_faults, "faults", lambda faults, *_: pl.concat([pl.DataFrame(), *faults], how="diagonal"))
    gone = prune.gone
    monkeypatch.setattr(prune, "gone", lambda cycle, marks: gone(cycle, marks).clear())
    monkeypatch.setattr(prune, "mappings", lambda cycle, _: cycle)
    whole = reconstruct(trace, rows)
    assert whole.why == made.why
    assert same_but_for_names(whole.rows, made.rows)


def test_what_only_those_left_out_did_is_shown_all_the_same(tmp_path, monkeypatch):
    """A child that came and went had the only heap that grew, and the only address space that was taken down."""
    child = P + 1
    happened = [
        ("task:task_newtask", P, {"field_pid": child, "clone_flags": FORK}),
        ("syscalls:sys_enter_brk", child, {"brk": BASE}),
        ("syscalls:sys_exit_brk", child, {"ret": BASE}),
        ("sched:sched_process_exit", child, {"field_pid": child}),
        ("mmap:exit_mmap", child, {"mm": 0, "mt": 0}),
    ]
    tables = {
        name: pl.DataFrame(
            {"time_ns": [at], "seq": [at], "tid": [tid], "comm": ["x"]} | {k: [v] for k, v in own.items()}
        )
        for at, (name, tid, own) in enumerate(happened, 1)
    }
    traces.write_tables(tmp_path, tables)
    shown = []
    monkeypatch.setattr(
        "tracekit.machine.reconstruct.take", lambda *args, **more: (shown.append(args[2]), take(*args, **more))[1]
    )
    trace = tracekit.open(tmp_path)
    reconstruct(trace, timeline(trace))
    assert [(how.exit_mmap, how.heap) for how in shown] == [(True, True)]


def same_but_for_names(*frames):
    """Names of VMAs and spaces are numbers by order of appearance."""
    plain = []
    for frame in frames:
        columns = [pl.col(name).rank("dense").alias(name) for name in ("vma", "mm")]
        plain.append(frame.drop("vma", "mm").hstack(frame.select(columns)))
    return plain[0].equals(plain[1])


@pytest.mark.parametrize(("sharers", "entries"), [(17, 16), (17, 1), (5, 2), (4, 3)])
def test_where_it_is_not_known_who_lacks_a_copy_the_visits_are_right_in_the_mean(sharers, entries):
    state, here = [Holds.MAYBE] * sharers, [7] * sharers
    hits = lay(here, state, [7] * entries, copies=True)
    visits = [1 + max(which) for which in itertools.combinations(range(sharers), entries)]
    assert abs(1 + hits.member[-1] - statistics.mean(visits)) <= 0.5
    assert not hits.sure
    assert hits.member == sorted(set(hits.member))
    assert lay(here, state, [7] * entries).member == list(range(entries)), "of a file: the first"
    sure = lay(here, [Holds.YES, *state[1:]], [7] * entries, copies=True)
    assert sure.member[0] == 0


CAPTURES = {
    "forkcow-c4-all": 1.0,
    "forkcow-c4-half": 1.0,
    "forkcow-c4-none": 1.0,
    "forkcow-c4-keeplast": 1.0,
    "7.2-rec-kprobes": 1.0,
    "pinned": 1.0,
    "thp-split": 0.97,  # without munmap in the trace its VMAs are taken for one
}


@pytest.mark.parametrize("name", CAPTURES)
def test_captures_with_the_probes_hidden(name, ingested):
    table, _, real, made = reconstruct_table.compare(ingested(name))
    assert len(table)
    assert table["order_right"].mean() >= CAPTURES[name], table.filter(~pl.col("order_right"))
    assert real == made or name == "thp-split"
    assert table.filter(pl.col("certain") & ~pl.col("order_right")).is_empty(), "what is called certain is right"


def test_a_policy_judges_what_was_reconstructed_as_it_judges_what_was_observed(ingested):
    trace = ingested("forkcow-c4-all")
    results = [
        tracekit.replay(trace, ["counter_early_exit"], fidelity=level) for level in ("observed", "reconstructed")
    ]
    judged = [result.document["policies"][-1] for result in results]
    assert [result.document["fidelity"] for result in results] == ["observed", "reconstructed"]
    visits = [policy["operations"]["remove_migration_ptes.vma_visit"] for policy in judged]
    assert visits[0] == visits[1]
    low, high = (max(policy["ratio"]["low"] for policy in judged), min(policy["ratio"]["high"] for policy in judged))
    assert low <= high, "whole walks are priced, as no record says what a visit took: the two agree"


HEAP = 0x5555_0000_0000


def grown_heap(stream, *, by):
    """A heap of two pages in P and its two children; then that of ``by`` grows: the stream, all sharing page 0."""
    stream.add(Code.BRK, P, 0, ret=HEAP)
    stream.add(Code.BRK, P, HEAP + 8192, ret=HEAP + 8192)
    stream.add(Code.FAULT, P, HEAP, 6)
    stream.fork()
    stream.fork()
    stream.add(Code.BRK, by, HEAP + 16384, ret=HEAP + 16384)
    at = (HEAP - BASE) // 4096
    stream.start(P + 1)
    stream.set(5, [at] * 3)
    stream.restore(6, [at] * 3)
    stream.end()
    walks = stream.walks()
    assert [(len(spaces), sure) for _, spaces, sure in walks] == [(3, True)] * 2
    mine = {stream.taken.life.space_of[tid].number: tid - P for tid in (P, P + 1, P + 2)}
    return [mine[(made.mm - MM) >> 12] for made in stream.taken.made if made.kind == Kind.REMOVE_VISIT]


def test_a_heap_that_grows_goes_last(stream):
    """vma_expand() and, before v6.12, do_brk_flags() take it out of the tree and put it back."""
    assert grown_heap(stream, by=P) == [1, 2, 0]


def test_a_forked_heap_grows_by_another_mapping(stream):
    """is_mergeable_anon_vma(): what is linked to its parent's tree takes in nothing new."""
    assert grown_heap(stream, by=P + 1) == [0, 1, 2]


def test_a_heap_that_shrinks_goes_last_and_loses_its_pages(stream):
    stream.add(Code.BRK, P, 0, ret=HEAP)
    stream.add(Code.BRK, P, HEAP + 8192, ret=HEAP + 8192)
    stream.add(Code.FAULT, P, HEAP, 6)
    child = stream.fork()
    stream.add(Code.BRK, P, HEAP + 4096, ret=HEAP + 4096)
    space = stream.visits() or stream.taken.life.space_of[P]
    assert space.at((HEAP >> 12) + 1) is None
    tree = space.at(HEAP >> 12).anon.tree.over(HEAP >> 12, HEAP >> 12)
    assert [vma.space for vma in tree] == [stream.taken.life.space_of[child], space]


def test_a_heap_of_unknown_beginning_is_not_certain(stream):
    """Forked before brk() was first called: where it begins, the bss may be what it is part of."""
    child = stream.fork()
    for tid in (P, child):
        stream.add(Code.BRK, tid, 0, ret=HEAP)
        stream.add(Code.BRK, tid, HEAP + 8192, ret=HEAP + 8192)
        stream.add(Code.FAULT, tid, HEAP, 6)
    at = (HEAP - BASE) // 4096
    stream.start()
    stream.set(5, [at], kind=EXCLUSIVE)
    stream.restore(6, [at])
    stream.end()
    assert not any(sure for *_, sure in stream.walks())


def snapshot(*tasks, maps):
    """snapshot/tasks of (pid, tid, ppid, mm_of), looked at 50 ns into the trace; (pid, start) of an image's text."""
    rows = [(50, pid, tid, ppid, "sh", mm_of) for pid, tid, ppid, mm_of in tasks]
    text = [(50, pid, start, start + 8192, "r-xp", 0, 8 << 20, 77) for pid, start in maps]
    names = ("time_ns", "pid", "start", "end", "perms", "offset", "dev", "inode")
    kinds = {name: pl.Int32 if name in ("pid", "tid", "ppid", "mm_of") else kind for name, kind in TASKS.items()}
    return (
        pl.DataFrame(rows, schema=kinds, orient="row"),
        pl.DataFrame(text, schema=dict.fromkeys(names, pl.Int64) | {"pid": pl.Int32, "perms": pl.String}, orient="row"),
    )


TASKS = {"time_ns": pl.Int64, "pid": None, "tid": None, "ppid": None, "comm": pl.String, "mm_of": None}


def empty():
    return pl.DataFrame(schema=SCHEMA)


def test_what_the_snapshot_has_was_there_before():
    made = start.before(*snapshot((7, 7, 1, None), (7, 8, 1, None), (9, 9, 7, 7), maps=[(7, 0x5000)]), empty())
    told = made.select("code", "tid", "a", "b").rows()
    assert told == [(Code.TASK, 7, 7, 1), (Code.TASK, 8, 7, 1), (Code.TASK, 9, 7, 7), (Code.MAP, 7, 0x5000, 8192)]
    assert set(made["time_ns"]) == {0}
    life = take(made, empty()).life
    assert life.space_of[7] is life.space_of[8] is life.space_of[9]


def test_a_child_of_before_the_trace_shares_its_parent_s_trees():
    """Their images lie alike; another program's does not, whoever made it."""
    made = start.before(
        *snapshot((7, 7, 1, None), (8, 8, 7, None), (9, 9, 7, None), maps=[(7, 0x5000), (8, 0x5000), (9, 0x9000)]),
        empty(),
    )
    life = take(made, empty()).life
    assert life.space_of[8].parent is life.space_of[7]
    assert life.space_of[9].parent is None


def test_a_task_that_began_in_the_trace_is_left_to_its_events():
    cycle = [(20, 1, int(Code.NEWTASK), 7, 8, FORK, 0, 0, 0, 0, 0), (30, 2, int(Code.EXEC), 9, 9, 0, 0, 0, 0, 0, 0)]
    late = [(60, 3, int(Code.EXEC), 10, 10, 0, 0, 0, 0, 0, 0)]  # looked at before
    frame = pl.DataFrame(cycle + late, schema=SCHEMA, orient="row")
    tasks = [(pid, pid, 1, None) for pid in (7, 8, 9, 10)]
    made = start.before(*snapshot(*tasks, maps=[(pid, 0x5000) for pid in (7, 8, 9, 10)]), frame)
    assert made.filter(pl.col("code") == Code.TASK)["tid"].to_list() == [7, 10]
    assert made.filter(pl.col("code") == Code.MAP)["tid"].to_list() == [7, 10]


def test_what_perf_says_itself_is_not_taken_from_the_snapshot():
    own = pl.DataFrame([(0, 1, int(Code.TASK), 7, 7, 1, 0, 0, 0, 0, 0)], schema=SCHEMA, orient="row")
    made = start.before(*snapshot((7, 7, 1, None), (8, 8, 1, None), maps=[(7, 0x5000), (8, 0x7000)]), own)
    assert set(made["tid"]) == {8}


@pytest.mark.parametrize(
    ("clock", "end_ns", "anomaly"),
    [
        ("mono", 90, {}),
        ("monotonic", 100, {}),
        ("local", 90, {"snapshot_of_another_clock": 1}),
        (None, 90, {"snapshot_of_another_clock": 1}),
        ("mono", 101, {"snapshot_after_the_trace": 1}),
    ],
)
def test_a_snapshot_of_another_time_is_not_used(clock, end_ns, anomaly):
    taken = snapshot((7, 7, 1, None), maps=[(7, 0x5000)])
    trace = SimpleNamespace(
        manifest={"snapshot": {"clock": "monotonic", "begin_ns": 40, "end_ns": end_ns}, "clock": {"name": clock}},
        table=lambda name: taken[name == "snapshot/vmas"].lazy(),
    )
    found = start.start(trace, empty(), empty(), 100)
    assert found.anomalies == anomaly
    assert found.rows.is_empty() == bool(anomaly)


def test_a_program_that_a_new_name_shows_has_left_its_parent_s_trees(stream):
    """No event shows the exec: a thread's name means nothing, and the parent's walks are not certain any more."""
    child = stream.fork()
    stream.add(Code.NEWTASK, P, P + 50, THREAD)
    stream.add(Code.EXEC, P + 50, P + 50, LIKELY)
    stream.move(sets=2, restores=2)
    assert stream.visits() == [("try", 2, True), ("remove", 2, True)]
    stream.add(Code.EXEC, child, child, LIKELY)
    stream.mmap(child)
    stream.write(child)
    stream.move(sets=1, restores=1)
    stream.move(sets=1, restores=1, target=child, kind=EXCLUSIVE)
    assert stream.visits()[2:] == [("try", 1, False), ("remove", 1, False), ("try", 1, True), ("remove", 1, True)]


def test_who_spawns_loses_nothing_by_it(stream):
    stream.add(Code.NEWTASK, P, P + 50, 0x4100)
    stream.add(Code.EXEC, P + 50, P + 50, LIKELY)
    stream.mmap(P + 50)
    stream.move(sets=1, restores=1)
    assert stream.visits() == [("try", 1, True), ("remove", 1, True)]
    assert stream.taken.life.space_of[P] is not stream.taken.life.space_of[P + 50]


def test_a_name_is_another_at_the_next_event_that_says_it():
    rows = [(1, 7, "sh", True), (5, 7, "sh", False), (9, 7, "cc", False), (20, 7, "ld", True), (30, 8, "a", False)]
    names = pl.DataFrame(rows, schema=["time_ns", "tid", "comm", "born"], orient="row")
    found = renamed.of_names(names)
    assert found.select("time_ns", "code", "tid", "b").rows() == [(6, Code.EXEC, 7, LIKELY)], "20 is another task"


@pytest.mark.skipif(not DUAL.is_file(), reason="the shared captures are not here")
def test_without_exec_events_the_walks_are_the_same(tmp_path):
    """trace.dat and perf.data are of one run; perf's side-band alone has the exec of its child."""
    table, _, real, made = reconstruct_table.compare(tracekit.ingest(DUAL, tmp_path / "t"))
    assert real == made
    assert table["order_right"].all()
    assert len(table) == 106
