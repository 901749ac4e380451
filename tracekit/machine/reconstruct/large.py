"""Large anonymous folios: which fault put one there, and at which pages it stands since.

Only an entry of a large folio tells how large it is, long after the fault. A fault puts one where none of its pages is
mapped (alloc_anon_folio() and pte_range_none(), mm/memory.c), at a multiple of its size; a write to a page of it that
others share copies that page alone (wp_page_copy()), and one to a page that no one else has left stays in the tree of
who put it there (__wp_can_reuse_large_anon_folio()); but what a PMD maps goes over to the tree of who writes, if no one
else has it, and is mapped page by page from then on if anyone has (do_huge_pmd_wp_page(), mm/huge_memory.c).
"""

from collections.abc import Iterator
from typing import NamedTuple

from tracekit.machine.reconstruct.spaces import folio_at
from tracekit.machine.reconstruct.state import EVERYWHERE, Folio, Space
from tracekit.machine.reconstruct.vma import Vma
from tracekit.machine.reconstruct.walk import Walk


class _Stretch(NamedTuple):
    """A time in which what stood at a page came from nowhere else.

    Attributes:
        space, page: where it stood then.
        since: event at which nothing did; -1: from the beginning of ``space`` on.
        until: event.
    """

    space: Space
    page: int
    since: int
    until: int


def large_at(space: Space, page: int, base: int, order: int, *, before: int = EVERYWHERE) -> Folio | None:
    """The folio of ``order``, beginning at ``base``, that ``space`` maps at ``page``; None where no fault explains it.

    From then on every page of its range is known to have been it.

    Args:
        space: who maps it.
        page: a page of it.
        base: of its first page, mapped or not.
        order: of it.
        before: event up to which it was put there.
    """
    pages, there = 1 << order, folio_at(space, page, before=before)
    if isinstance(there, Folio) and there.order == order:
        return there
    for one in reversed([*_line(space, page, before)]):
        first = one.page + base - page
        if first % pages:
            continue
        found = _first_fault(one, range(first, first + pages))
        if found is not None:
            return _spread(found, range(first, first + pages))
    return None


def whole_at(space: Space, page: int, base: int, order: int) -> Folio | None:
    """The same for a folio that a PMD of ``space`` maps: that of who wrote to any of its pages last."""
    for one in _line(space, page, EVERYWHERE):
        first = one.page + base - page
        pages = range(first, first + (1 << order))
        writes = _writes(one, pages)
        if writes:
            return _spread(max(writes, key=lambda write: write[0])[2], pages)
    return None


def cut(walk: Walk, folio: Folio, pgoff: int, members: list[Vma]) -> list[int] | None:
    """Cut the entries of a try walk of a large folio, at ``pgoff`` of its tree, by what each of ``members`` maps of it.

    Returns:
        Of each run, the place of its VMA in ``members``; None where they map other pages than had entries.
    """
    if walk.explained is not None and walk.explained[:2] == (folio, members):
        return walk.explained[2]
    maps = [_held(folio, vma, pgoff, walk.order) for vma in members]
    kept = []
    for page in {page for pages in maps for page, copy in pages.items() if copy is not None}:
        holders = [pages for pages in maps if page in pages]
        copies = [pages for pages in holders if pages[page] is not None]
        seen = sum(first <= page < first + pages for _, first, _, pages in walk.entries)
        if seen == len(holders):
            kept += [(page, pages[page]) for pages in copies]
        elif seen == len(holders) - len(copies):
            for pages in copies:
                del pages[page]
        else:
            return None
    member = walk.cut([[*pages] for pages in maps])
    if member is not None:
        walk.explained = (folio, members, member)
        for page, copy in kept:
            _reused(folio, page, copy)
    return member


def _held(folio: Folio, vma: Vma, pgoff: int, order: int) -> dict[int, Folio | None]:
    """The pages at which ``vma`` maps ``folio``, in order; or may do, if what seems to be a copy of one is none."""
    first = vma.start + pgoff - vma.pgoff
    pages = range(max(first, vma.start), min(first + (1 << order), vma.end))
    found: dict[int, Folio | None] = dict.fromkeys(pages)
    for page in _touched(vma.space, folio, pages):
        there = folio_at(vma.space, page)
        if isinstance(there, Folio) and not there.room and _copied(there, page) is folio:
            found[page] = there
        elif there is not folio:
            del found[page]
    return found


def _touched(space: Space | None, folio: Folio, pages: range) -> list[int] | range:
    """Those of ``pages`` at which something may have happened to ``folio`` on its way to ``space``."""
    found: set[int] = set()
    before = EVERYWHERE
    while space is not None and before >= folio.since and not space.moves and not space.zaps.any_in(pages):
        if space is folio.origin:
            found.update(page for page in pages if page not in space.own or space.own[page][-1][1] is not folio)
            return sorted(found)
        found.update(page for page in pages if page in space.own)
        before, space = space.born, space.parent
    return pages


def _copied(copy: Folio, page: int) -> Folio | bool | None:
    """What was at ``page`` before ``copy`` was."""
    return folio_at(copy.origin, page, before=copy.since - 1)


def _reused(folio: Folio, page: int, copy: Folio | None) -> None:
    """What was taken for a ``copy`` is the page of ``folio`` itself: no one else had any of it then."""
    if copy is not None and copy.origin is not None:
        own = copy.origin.own
        own[page] = [(when, folio if one is copy else one) for when, one in own.get(page, ())]


def _line(space: Space | None, page: int, before: int) -> Iterator[_Stretch]:
    """Where what stands at ``page`` may have come from, the latest first: by fork and by mremap()."""
    while space is not None:
        gone = space.gone(page, before)
        move = space.moved(page, before)
        if move is not None and move.event >= gone:
            yield _Stretch(space, page, move.event, before)
            page, before = page - move.to + move.start, move.event - 1
            continue
        yield _Stretch(space, page, gone, before)
        if gone >= 0:
            return
        before = min(before, space.born)
        space = space.parent


def _first_fault(stretch: _Stretch, pages: range) -> Folio | None:
    """The folio of the first fault in ``stretch`` at which none of ``pages`` was mapped, nor was missing later."""
    space = stretch.space
    faults = [write for write in _writes(stretch, pages) if write[2].room]
    for when, _, folio in sorted(faults, key=lambda fault: fault[0]):
        if not folio.room.start <= pages.start < pages.stop <= folio.room.stop:
            continue
        if any(isinstance(folio_at(space, page, before=when - 1), Folio) for page in pages):
            continue
        if not any(later > when >= space.gone(page, later) for later, page, _ in faults):
            return folio
    return None


def _writes(stretch: _Stretch, pages: range) -> list[tuple[int, int, Folio]]:
    """When the space of ``stretch`` wrote at which of ``pages`` in it, and what that left."""
    space, _, since, until = stretch
    return [
        (when, page, folio)
        for page in pages
        for when, folio in space.own.get(page, ())
        if folio is not None and folio.origin is space and folio.since == when and since < when <= until
    ]


def _spread(folio: Folio, pages: range) -> Folio:
    """Note that ``folio`` came to stand at all of ``pages``, a power of two of them, at once."""
    assert folio.origin is not None
    folio.order = len(pages).bit_length() - 1
    own, note = folio.origin.own, (folio.since, folio)  # one note for all: a folio may have 512 pages
    for page in pages:
        history = own.setdefault(page, [])
        at = len(history)
        while at and history[at - 1][0] > folio.since:
            at -= 1
        if not at or history[at - 1][0] != folio.since:
            history.insert(at, note)
    return folio
