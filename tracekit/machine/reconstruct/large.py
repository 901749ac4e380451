"""Large anonymous folios: which fault put one there, and at which pages it stands since.

Only an entry of a large folio tells how large it is, long after the fault. A fault puts one where none of its pages is
mapped (alloc_anon_folio() and pte_range_none(), mm/memory.c), at a multiple of its size; a write to a page of it that
others share copies that page alone (wp_page_copy()), and one to a page that no one else has left stays in the tree of
who put it there (__wp_can_reuse_large_anon_folio()).
"""

from collections import Counter
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
            _spread(found, range(first, first + pages))
            found.order = order
            return found
    return None


def cut(walk: Walk, folio: Folio, pgoff: int, members: list[Vma]) -> list[int] | None:
    """Cut the entries of a try walk of a large folio, at ``pgoff`` of its tree, by what each of ``members`` maps of it.

    Returns:
        Of each run, the place of its VMA in ``members``; None where they map other pages than had entries.
    """
    if walk.entries[0][3] > 1:
        return None  # whole, by a PMD each: there is nothing to cut
    if walk.explained == (folio, members):
        return walk.member
    maps = [_held(folio, vma, pgoff, walk.order) for vma in members]
    seen = Counter(page for _, page, _, _ in walk.entries)
    surely = Counter(page for pages in maps for page, copy in pages.items() if copy is None)
    maybe = Counter(page for pages in maps for page, copy in pages.items() if copy is not None)
    if any(seen[page] not in (surely[page], surely[page] + number) for page, number in maybe.items()):
        return None
    kept = {page for page in maybe if seen[page] > surely[page]}
    member = walk.cut([[page for page, copy in pages.items() if copy is None or page in kept] for pages in maps])
    if member is not None:
        walk.explained, walk.member = (folio, members), member
        for pages in maps:
            for page in kept & pages.keys():
                _reused(folio, page, pages[page])
    return member


def _held(folio: Folio, vma: Vma, pgoff: int, order: int) -> dict[int, Folio | None]:
    """The pages at which ``vma`` maps ``folio``, in order; or may do, if what seems to be a copy of one is none."""
    first, space = vma.start + pgoff - vma.pgoff, vma.space
    found: dict[int, Folio | None] = {}
    for page in range(max(first, vma.start), min(first + (1 << order), vma.end)):
        there = folio_at(space, page)
        if there is folio:
            found[page] = None
        elif isinstance(there, Folio) and not there.room and _copied(there, page) is folio:
            found[page] = there
    return found


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
    space, _, since, until = stretch
    faults = [
        (when, page, folio)
        for page in pages
        for when, folio in space.own.get(page, ())
        if folio is not None and folio.origin is space and folio.since == when and folio.room and when <= until
    ]
    for when, _, folio in sorted(faults, key=lambda fault: fault[0]):
        if when <= since or not folio.room.start <= pages.start < pages.stop <= folio.room.stop:
            continue
        if any(isinstance(folio_at(space, page, before=when - 1), Folio) for page in pages):
            continue
        if not any(later > when >= space.gone(page, later) for later, page, _ in faults):
            return folio
    return None


def _spread(folio: Folio, pages: range) -> None:
    """Note that ``folio`` came to stand at all of ``pages`` at once."""
    assert folio.origin is not None
    own = folio.origin.own
    for page in pages:
        history = own.setdefault(page, [])
        at = len(history)
        while at and history[at - 1][0] > folio.since:
            at -= 1
        if not at or history[at - 1][0] != folio.since:
            history.insert(at, (folio.since, folio))
