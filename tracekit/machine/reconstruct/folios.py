"""Which folio a migration entry belonged to, in which tree its walk went, and which VMAs should have mapped it."""

from typing import NamedTuple

from tracekit.machine.reconstruct.large import large_at
from tracekit.machine.reconstruct.match import Holds
from tracekit.machine.reconstruct.spaces import AROUND, folio_at
from tracekit.machine.reconstruct.state import EVERYWHERE, Folio, Space
from tracekit.machine.reconstruct.vma import AnonVma, File, Vma

IMAGE = 1 << 14  # pages beyond a mapped ELF segment in which its other segments lie


class Found:
    """A folio and where it stands: ``pgoff`` of its first page in its tree."""

    __slots__ = ("folio", "pgoff", "why")

    def __init__(self, folio: Folio, pgoff: int, why: str = "") -> None:
        self.folio, self.pgoff, self.why = folio, pgoff, why


class Entry(NamedTuple):
    """What a migration entry says.

    Attributes:
        page: at which it stood.
        base: of the folio's first page.
        order: of its folio.
        exclusive: that no one else mapped the page, or that it was writable; None: not understood.
        dirty: that it had been written; None: not carried here.
    """

    page: int
    base: int
    order: int
    exclusive: bool | None
    dirty: bool | None


def find(space: Space, entry: Entry, *, faults: bool) -> Found | None:
    """The folio that ``space`` mapped where ``entry`` stood.

    A page of a file, privately mapped, is clean and not exclusive: a write makes an anonymous folio of it.

    Args:
        space: whose page table held the entry.
        entry: of the folio.
        faults: whether the trace has page faults, so that an anonymous page without one was written by the kernel.
    """
    page = entry.page
    vma = space.at(page)
    if vma is None:
        return None
    at = page - vma.start + vma.pgoff
    folio = known(space, page, entry.base, entry.order)
    if folio is not None and entry.exclusive is False and folio.origin is space and folio.since > space.forked:
        # written since the last fork, it would be exclusive: so the fault had not had its effect when this was set
        folio = known(space, page, entry.base, entry.order, before=folio.since - 1) or folio
    if folio is not None and entry.exclusive and not entry.order and folio.origin not in {None, space}:
        written = space.own.get(page)
        if not written or written[-1][1] is not folio:  # of a large one that no one else had, it would be
            folio = None  # the kernel wrote to it since, which shows as no fault: a thread id, a signal frame, read()
    if folio is not None and folio.mapping.tree.over(at, at):
        return Found(folio, _pgoff(vma, page, folio))
    unwritten = not entry.exclusive and not entry.dirty
    if vma.file is not None and (vma.shared or unwritten):
        return Found(Folio(vma.file, sure=vma.shared or entry.dirty is False), at)
    if vma is space.rest and unwritten:
        segment = _segment(space, page, entry.dirty)
        if segment is not None and segment.file is not None:
            return Found(Folio(segment.file), page - segment.start + segment.pgoff)
    return _unseen(space, vma, entry, faults=faults)


def known(space: Space, page: int, base: int, order: int, *, before: int = EVERYWHERE) -> Folio | None:
    """The folio by its faults, as it was at event ``before``; see ``Entry`` for the others.

    A large one that no fault explains is what is known of its page, or of any other of its range.
    """
    if order and (found := large_at(space, page, base, order, before=before)) is not None:
        return found
    folio = folio_at(space, page, before=before)
    if isinstance(folio, Folio):
        return folio
    for other in range(base, base + (1 << order) if order else base):
        folio = folio_at(space, other, before=before)
        if isinstance(folio, Folio):
            return folio
    return None


def _pgoff(vma: Vma, page: int, folio: Folio) -> int:
    if isinstance(folio.mapping, File) and vma.file is not folio.mapping:
        return page
    return vma.pgoff + page - vma.start


def _segment(space: Space, page: int, dirty: bool | None) -> Vma | None:
    """The mapped segment of the ELF image that ``page`` is part of; without dirty bits its data count as written."""
    near = [vma for vma in space.maps if vma.start <= page < vma.end and (dirty is False or page < space.data)]
    return max(near, key=lambda vma: vma.start) if near else None


def _unseen(space: Space, vma: Vma, entry: Entry, *, faults: bool) -> Found:
    """An anonymous folio whose first write was not seen: the kernel's own, or one before the trace.

    An entry that says exclusive is of a page that this space wrote last. One that does not, of a space that never
    forked itself, is of a page that came to it by fork. Else it may be either.
    """
    page, exclusive, own = entry.page, entry.exclusive, vma.prepare()
    line = _line(space, vma, page)
    if exclusive or len(line) == 1:
        # without faults an exclusive page may have been the first of its VMA, and written after the fork
        origin, anon, sure = space, own, vma.known and (faults or not exclusive or space.forked < 0)
    else:
        origin, anon = line[-1]
        sure = vma.known and exclusive is not None and space.forked < 0 and (len(line) == 2 or faults)
    if vma is space.rest and not exclusive and not entry.dirty:
        sure = False  # it may be of a file: nothing says what the image consists of
    if exclusive:
        here = space.own.setdefault(page, [])
        born = [child.born for child in space.heirs if child.born < EVERYWHERE]
        folio = Folio(anon, origin, max([space.forked, *born[-1:], *(event for event, _ in here[-1:])]) + 1, sure=sure)
        here.append((folio.since, folio))
    else:
        folio = Folio(anon, origin, origin.born, sure=sure)
        origin.own.setdefault(page, []).insert(0, (origin.born, folio))
    return Found(folio, vma.pgoff + page - vma.start)


def _line(space: Space, vma: Vma, page: int) -> list[tuple[Space, AnonVma]]:
    """``space`` and those it has ``page`` from, as far as they are linked to a common tree."""
    line: list[tuple[Space, AnonVma]] = [(space, vma.prepare())]
    while space.parent is not None:
        space = space.parent
        above = space.at(page)
        if above is None or above.anon is None or above.anon not in vma.chain:
            break
        line.append((space, above.anon))
    return line


def maps(found: Found, vma: Vma, order: int) -> bool:
    """Whether ``vma`` should map a page of the folio."""
    page = vma.page(found.pgoff)
    if isinstance(found.folio.mapping, File):
        return page in vma.space.file_pages
    if not order:
        return folio_at(vma.space, page) is found.folio
    pages = range(page, min(page + (1 << order), vma.end))
    return any(folio_at(vma.space, one) is found.folio for one in pages)


def states(found: Found, members: list[Vma], order: int, *, faults: bool) -> list[Holds]:
    """Whether each of ``members`` maps a page of the folio; without faults they may have written, or read, unseen."""
    folio, first = found.folio, found.pgoff
    if order or not faults or isinstance(folio.mapping, File):
        return [_holds(found, vma, order, faults=faults) for vma in members]
    result = []
    for vma in members:
        space, page = vma.space, vma.start + first - vma.pgoff
        own = space.own.get(page)
        if own is None or space.zaps or space.faulting:
            result.append(_holds(found, vma, order, faults=faults))
        else:
            result.append(Holds.YES if own[-1][1] is folio else Holds.NO)
    return result


def _holds(found: Found, vma: Vma, order: int, *, faults: bool) -> Holds:
    mapped, file = maps(found, vma, order), isinstance(found.folio.mapping, File)
    if not faults:
        return Holds.MAYBE if mapped or file else Holds.NO
    page = vma.page(found.pgoff)
    if in_flight(vma.space, range(page, page + (1 << order)), file=file) and (mapped is file or not file):
        return Holds.MAYBE
    if file and mapped and not vma.space.file_pages[page]:
        return Holds.MAYBE  # it was in memory then, or not
    return Holds.YES if mapped else Holds.NO


def in_flight(space: Space, pages: range, *, file: bool) -> bool:
    """Whether a fault there may not have had its effect yet, or may have had it before a fork copied the page table.

    An event shows that a fault began; what its task does next, that it is over.
    """
    for one in space.faulting.values():
        if one in pages or (file and abs(one - pages.start) < AROUND):
            return True
    parent = space.parent
    if file or parent is None:
        return False
    return any(
        space.begun < when <= space.born
        for page in pages
        if page not in space.own
        for when, _ in parent.own.get(page, ())
    )


def image_of(space: Space, start: int, end: int, pgoff: int, file: File) -> Vma:
    """What a mapped ELF segment says of the image around it: it begins where the file does."""
    vma = Vma(space, start - pgoff, end + IMAGE, 0)
    vma.file = file
    file.tree.add(vma)
    space.maps.append(vma)
    return vma
