"""Large folios, of which processes hold different pages: which fault put one there is told only by its entries.

P maps sixteen pages and writes the first, which puts a folio of four there. Most rules were seen to be needed in
recordings of tests/guest/family.c with 16 and 64 KiB folios, those of folios of a PMD in such with SCALE 128 and in one
of tests/guest/hugezero.c.
"""

import pytest
from streams import ANON, BASE, EXCLUSIVE, READ, P, Stream

from tracekit.machine.reconstruct.events import PMD, Code
from tracekit.machine.reconstruct.rows import MM

ORDER, PAGES = 2, range(4)
MADV_DONTNEED, MREMAP_FIXED = 4, 3
FIXED, NORESERVE = 0x10, 0x4000  # of mmap(); the latter keeps VMAs apart
FAR = 32  # pages


@pytest.fixture
def stream():
    new = Stream()
    new.mmap()
    new.write(P)
    return new


def copy(stream, tid, page):
    """A write to a page that is mapped: a copy of it alone, if anyone else has any page of the folio."""
    stream.add(Code.FAULT, tid, BASE + page * 4096, 7)


def zap(stream, tid, first, pages):
    stream.add(Code.MADVISE, tid, BASE + first * 4096, pages * 4096, MADV_DONTNEED)


def carry(stream, tid, to=FAR):
    start = BASE + to * 4096
    stream.add(Code.MREMAP, tid, BASE, 16 * 4096, 16 * 4096, MREMAP_FIXED, start, ret=start)


def move(stream, target, *holders, base=0, kind=READ):
    """Move the folio; ``holders`` map each the pages that are given, in the order of their VMAs."""
    stream.start(target)
    for source, add in ((0x1000, stream.set), (0x2000, stream.restore)):
        for pages in holders:
            for page in pages:
                more = {"kind": kind} if add == stream.set else {}
                add(source + (page - base) % FAR, [page], order=ORDER, **more)
    stream.end()


def test_it_is_of_who_put_it_there_though_its_first_page_was_copied_since(stream):
    child = stream.fork()
    copy(stream, child, 0)
    move(stream, child, PAGES, [1, 2, 3])
    assert stream.walks() == [("try", [0, 1], True), ("remove", [0, 1], True)]


def test_mremap_carries_all_its_pages_along(stream):
    child = stream.fork()
    carry(stream, child)
    copy(stream, child, FAR + 1)
    zap(stream, child, FAR, 1)
    move(stream, child, PAGES, [FAR + 2, FAR + 3])
    assert stream.walks() == [("try", [0, 1], True), ("remove", [0, 1], True)]


def test_one_holds_its_beginning_and_the_next_its_end(stream):
    """The PFNs of the entries rise from one VMA to the other."""
    child = stream.fork()
    zap(stream, P, 2, 2)
    zap(stream, child, 0, 2)
    move(stream, P, [0, 1], [2, 3])
    assert stream.walks() == [("try", [0, 1], True), ("remove", [0, 1], True)]


def test_a_zap_counts_at_pages_that_were_not_known_to_be_mapped(stream):
    zap(stream, P, 0, 4)
    stream.write(P, 1)
    child = stream.fork()
    zap(stream, P, 0, 4)
    move(stream, child, PAGES)
    assert stream.walks() == [("try", [0, 1], True), ("remove", [0, 1], True)]


def test_a_write_to_what_is_mapped_puts_none_there(stream):
    child = stream.fork()
    zap(stream, child, 0, 4)
    stream.read(child, 1)
    copy(stream, child, 1)  # of the page of zeros
    stream.fork(child)
    zap(stream, child, 1, 1)
    stream.write(child, 3)
    move(stream, child, PAGES, kind=EXCLUSIVE)
    assert stream.walks() == [("try", [0], True), ("remove", [0, 1], True)]


def test_a_page_that_is_missing_was_no_part_of_one_that_came_before(stream):
    """The page that the stream begins with was a small one."""
    zap(stream, P, 0, 1)
    stream.fork()
    stream.write(P, 2)
    zap(stream, P, 0, 1)
    zap(stream, P, 2, 1)
    move(stream, P, [1, 3])
    assert stream.walks() == [("try", [0], True), ("remove", [0, 1], True)]


def test_none_comes_where_a_page_of_its_range_is_mapped(stream):
    """What the last write put there, not the one before the fork, when two pages were mapped."""
    zap(stream, P, 1, 1)
    zap(stream, P, 2, 1)
    stream.write(P, 2)
    stream.fork()
    for page in (0, 2, 3):
        zap(stream, P, page, 1)
    stream.write(P, 3)
    for page in (0, 2, 3):
        zap(stream, P, page, 1)
    move(stream, P, [1])
    assert stream.walks() == [("try", [0], True), ("remove", [0, 1], True)]


def test_what_put_it_there_is_not_forgotten(stream):
    """Its first page was zapped and written again, and so is a small one, time after time."""
    for _ in range(3):
        zap(stream, P, 0, 1)
        stream.write(P, 0)
    child = stream.fork()
    zap(stream, child, 1, 3)
    move(stream, P, [1, 2, 3])
    assert stream.walks() == [("try", [0], True), ("remove", [0, 1], True)]


def test_who_was_forked_before_has_none_of_it(stream):
    zap(stream, P, 0, 1)
    stream.fork()
    stream.write(P, 1)
    child = stream.fork()
    zap(stream, P, 2, 2)
    zap(stream, child, 0, 2)
    move(stream, P, [0, 1], [2, 3])
    assert stream.walks() == [("try", [0, 1, 2], True), ("remove", [0, 1, 2], True)]


def move_whole(stream, target, holders):
    """Move a folio that a PMD of each of so many maps."""
    stream.start(target)
    stream.set(0x1000, [0] * holders, order=9, whole=PMD)
    stream.restore(0x2000, [0] * holders, order=9, whole=PMD)
    stream.end()


def test_what_a_pmd_maps_goes_over_to_who_writes_and_has_it_alone():
    """The sibling is in the tree of who put it there, not in the writer's."""
    stream = Stream()
    stream.mmap(pages=512)
    stream.write(P, 5)
    sibling, child = stream.fork(), stream.fork()
    stream.exit(P)
    zap(stream, sibling, 0, 512)
    copy(stream, child, 7)
    stream.fork(child)
    move_whole(stream, child, 2)
    assert stream.walks() == [("try", [0, 1], True), ("remove", [0, 1], True)]


def test_a_read_that_may_map_the_huge_page_of_zeros_makes_the_anon_vma():
    """So the child is in the tree of what P writes after the fork."""
    stream = Stream()
    stream.mmap(pages=512)
    stream.read(P, 3)
    stream.fork()
    stream.write(P, 5)
    move_whole(stream, P, 1)
    assert stream.walks() == [("try", [0], True), ("remove", [0, 1], True)]


def test_it_lies_in_one_vma():
    """P's write is to a VMA that begins behind the first page of what the child has there later."""
    stream = Stream()
    stream.mmap(at=BASE + 4096, pages=15)
    stream.mmap(at=BASE, pages=1, flags=ANON | NORESERVE)
    stream.write(P, 1)
    child = stream.fork()
    stream.mmap(at=BASE, pages=1, flags=ANON | FIXED)
    stream.mmap(child, flags=ANON | FIXED)
    stream.write(child, 2)
    zap(stream, child, 1, 3)
    move(stream, child, [0], kind=EXCLUSIVE)
    assert stream.walks() == [("try", [0], True), ("remove", [0], True)]
    assert stream.taken.made.columns["mm"][1] == MM + (stream.taken.life.space_of[child].number << 12)


def test_a_page_that_no_one_else_has_stays_in_its_tree(stream):
    """The write takes it over, and the split leaves it to who put the folio there; so the other child is visited."""
    other, child = stream.fork(), stream.fork()
    stream.exit(P)
    zap(stream, other, 0, 4)
    copy(stream, child, 1)
    stream.start(child)
    for page in PAGES:
        stream.set(0x1000 + page, [page], order=ORDER, kind=EXCLUSIVE if page == 1 else READ)
    for page in PAGES:
        stream.restore(0x1000 + page, [page])
    stream.end()
    stream.start(child)
    stream.set(0x1001, [1], kind=EXCLUSIVE)
    stream.restore(0x3000, [1])
    stream.end()
    whole, *parts = stream.walks()
    assert whole == ("try", [0, 1], True)
    assert parts == [*[("remove", [0, 1], True)] * 4, ("try", [0, 1], True), ("remove", [0, 1], True)]


def test_what_came_back_is_the_same_folio_whatever_is_there_now(stream):
    """P has a copy of its own of the page that is tried again; the child's is the folio's."""
    stream.fork()
    copy(stream, P, 1)
    stream.start(P)
    for pages in ([0, 2, 3], PAGES):
        for page in pages:
            stream.set(0x1000 + page, [page], order=ORDER)
    for page in PAGES:
        stream.restore(0x1000 + page, [page] if page == 1 else [page, page])
    stream.set(0x1001, [1])
    stream.restore(0x3000, [1])
    stream.end()
    assert stream.walks()[-2:] == [("try", [0, 1], True), ("remove", [0, 1], True)]


def test_a_page_written_where_mremap_took_it_from_is_known():
    """No entry was ever set there: who wrote is gone, and a sibling that has the page no more is in the tree."""
    stream = Stream()
    stream.mmap()
    stream.write(P)
    sibling, child = stream.fork(), stream.fork()
    zap(stream, sibling, 0, 1)
    carry(stream, child)
    stream.exit(P)
    stream.start(child)
    stream.set(0x1000, [FAR])
    stream.restore(0x2000, [FAR])
    stream.end()
    assert stream.walks() == [("try", [0, 1], True), ("remove", [0, 1], True)]
