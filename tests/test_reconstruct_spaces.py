"""Address spaces whose forks copy VMAs late, against the same that copy them at once.

Hypothesis makes up what a family does. Whatever is looked at, in the end and between, must be the same.
"""

from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tracekit.machine.reconstruct import spaces
from tracekit.machine.reconstruct.state import Folio, Space
from tracekit.machine.reconstruct.vma import File, Vma
from tracekit.machine.reconstruct.zaps import Zaps

EXAMPLES = settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
SIZE = 6
DONTFORK, DOFORK, HUGEPAGE = 10, 11, 14
OPERATIONS = st.tuples(
    st.sampled_from(
        ["fork"] * 3 + ["write"] * 4 + ["mmap", "file", "munmap", "advise", "protect", "move", "exit", "doubt"]
    ),
    st.integers(0, 3),
    st.integers(0, SIZE - 1),
    st.integers(1, 2),
)


def play(operations, *, late):
    """What the address spaces and their trees look like then."""
    Space.count = Vma.count = 0
    file, family, asked = File(sure=True), [spaces.new_image(known=True)], []
    for page in range(0, SIZE, 2):
        spaces.mmap(family[0], Vma(family[0], page, page + 1, page), None, 0)
    for now, (what, which, page, pages) in enumerate(operations, 1):
        space = family[-1 - which % len(family)]
        vma = space.at(page) if what in ("write", "doubt") else None
        if what == "fork":
            family.append(spaces.fork(space, now))
            if not late:
                family[-1].take_all()
        elif what == "write" and vma is not None:
            spaces.prepare(space, vma)
            asked += [order(anon.tree) for anon in vma.chain] if pages == 1 else []
        elif what in ("mmap", "file"):
            spaces.mmap(space, Vma(space, page, page + pages, page), file if what == "file" else None, now)
        elif what == "munmap":
            spaces.munmap(space, page, page + pages, now)
        elif what == "advise":
            behaviour = (DONTFORK, DOFORK, HUGEPAGE)[which % 3]
            spaces.change(space, page, page + pages, lambda flags, to=behaviour: spaces.advised(flags, to))
        elif what == "protect":
            spaces.change(space, page, page + pages, lambda flags, to=which & 1: flags & ~spaces.PROTECTION | to)
        elif what == "move":
            spaces.mremap(space, range(page, page + pages), range(page + SIZE, page + SIZE + pages), now)
        elif what == "exit" and len(family) > 1:
            family.remove(space)
            spaces.unlink(space)
        elif what == "doubt" and vma is not None:
            spaces.doubt(space)
    for space in family:
        space.take_all()
    return asked, [shown(vma) for space in family for vma in space.all_vmas()], order(file.tree)


def shown(vma):
    trees = [(order(anon.tree), anon.tree.doubt, anon is vma.anon, anon.active) for anon in vma.chain]
    return vma.space.number, vma.number, vma.start, vma.end, vma.pgoff, vma.flags, vma.file is not None, trees


def order(tree):
    return [vma.number for vma in tree.every()]


@EXAMPLES
@given(st.lists(OPERATIONS, min_size=8, max_size=40))
def test_what_is_copied_late_is_what_is_copied_at_once(operations):
    assert play(operations, late=True) == play(operations, late=False)


def family(vmas):
    parent = spaces.new_image(known=True)
    for i in range(vmas):
        spaces.mmap(parent, Vma(parent, 10 * i, 10 * i + 5, 0), None, 0).prepare()
    return parent


def test_a_fork_that_comes_and_goes_copies_none_of_many_vmas():
    parent = family(1000)
    with mock.patch.object(Vma, "copy", autospec=True, side_effect=Vma.copy) as copy:
        child = spaces.fork(parent, 1)
        assert copy.call_count == 1  # of the image
        assert child.at(503).number == parent.at(503).number + 1001
        assert len(parent.at(503).anon.tree.every()) == len(parent.at(703).anon.tree.every()) == 2
        assert copy.call_count == 3
        spaces.unlink(child)
        assert copy.call_count == 3
    assert len(parent.at(503).anon.tree.every()) == 1


def test_what_a_page_was_is_forgotten_when_no_one_forked_can_ask():
    parent = family(1)
    folios = [Folio(parent.at(0).anon, parent, now) for now in range(10)]
    parent.own[0] = [(0, folios[0])]
    first = spaces.fork(parent, 2)
    first.born = 2
    for now in (3, 4):
        spaces.write(parent, 0, parent.own[0], now, folios[now])
    second = spaces.fork(parent, 5)
    second.born = 5
    spaces.unlink(first)
    for now in (6, 7):
        spaces.write(parent, 0, parent.own[0], now, folios[now])
    assert [now for now, _ in parent.own[0]] == [4, 6, 7]
    assert spaces.folio_at(second, 0) is folios[4]


def test_a_fork_has_nothing_of_what_it_is_not_to_have():
    parent = family(3)
    spaces.change(parent, 10, 15, lambda flags: spaces.advised(flags, DONTFORK))
    child = spaces.fork(parent, 1)
    assert [child.at(page) is None for page in (0, 10, 20)] == [False, True, False]
    assert [parent.at(page) is None for page in (0, 10, 20)] == [False, False, False]


def test_a_fork_does_not_have_the_anon_vma_that_came_from_a_neighbour_since():
    parent = family(1)
    spaces.mmap(parent, Vma(parent, 20, 22, 0), None, 0)
    spaces.change(parent, 21, 22, lambda flags: flags | 1)
    spaces.prepare(parent, parent.at(20))
    child = spaces.fork(parent, 1)
    spaces.prepare(parent, parent.at(21))
    assert parent.at(21).anon is parent.at(20).anon
    assert child.at(21).anon is None


ZAPS = st.lists(st.tuples(st.sampled_from(["zap", "fork", "exit"]), st.integers(0, 9), st.integers(1, 6)), max_size=30)


@EXAMPLES
@given(ZAPS)
def test_when_a_page_was_zapped_is_what_a_list_of_all_zaps_says(history):
    zaps, every, heirs = Zaps(), [], []
    for now, (what, start, pages) in enumerate(history):
        if what == "zap":
            zaps.note(now, start, start + pages, (heirs[0], heirs[-1]) if heirs else None)
            every.append((now, start, start + pages))
        elif what == "fork":
            heirs.append(now)
        elif heirs:
            heirs.pop(start % len(heirs))
        for page in range(17):
            for before in (*heirs, now):
                when = max((at for at, low, high in every if low <= page < high and at <= before), default=-1)
                assert zaps.last(page, before) == when
    assert bool(zaps) == bool(every)


@pytest.mark.parametrize("heirs", [True, False])
def test_mapping_and_unmapping_without_end_keeps_no_more_than_it_touches(heirs):
    zaps = Zaps()
    for now in range(1000):
        zaps.note(now, 100 * (now % 7), 100 * (now % 7) + 150, (3, 5) if heirs else None)
    assert len(zaps._starts) <= 15
    assert all(len(events) <= (3 + 1 if heirs else 1) for events in zaps._events)
