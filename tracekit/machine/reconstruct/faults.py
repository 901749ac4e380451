"""Page faults of user mode, and what they leave in the page table of their address space (mm/memory.c)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tracekit.machine.reconstruct import spaces
from tracekit.machine.reconstruct.events import PRESENT, WRITE
from tracekit.machine.reconstruct.spaces import AROUND
from tracekit.machine.reconstruct.state import NOWHERE, Folio, Space
from tracekit.machine.reconstruct.vma import AnonVma, Vma

if TYPE_CHECKING:
    from tracekit.machine.reconstruct.machine import Life

PAGE_SHIFT = 12


def take(life: "Life", tid: int, addresses: Sequence[int], errors: Sequence[int]) -> None:
    """Page faults of ``tid`` one behind the other, the first of them at ``life.now``.

    Args:
        life: what is known so far, and which pages are followed.
        tid: the thread.
        addresses: in bytes, of each fault.
        errors: error code of each, as page_fault_user says it.
    """
    space, pages = life.space_of.get(tid) or life.space(tid), life.pages
    start = end = 0  # of ``vma``; what the stand-in for all others holds has to be looked up
    for when, (address, error) in enumerate(zip(addresses, errors, strict=True), life.now):
        page = address >> PAGE_SHIFT
        if not error & WRITE:
            _read(life, space, page)
            continue
        if not start <= page < end:
            found = space.at(page)
            if found is None or (found is not space.rest and not found.flags & spaces.PROT_WRITE):
                page = -1  # SIGSEGV, which collectors of garbage may want: over at once, with no effect
                continue
            vma = found
            start, end = (0, 0) if vma is space.rest else (vma.start, vma.end)
        if page in pages:
            _present(_written(life, space, vma, page, when), error)
        elif vma.anon is None and not vma.shared:
            spaces.prepare(space, vma)
        if not end and page < space.data:
            wrote_data(space, page)
    if page // AROUND in life.around:
        space.faulting[tid] = page
    elif space.faulting:
        space.faulting.pop(tid, None)


def _read(life: "Life", space: Space, page: int) -> None:
    """A fault on a file maps what is around it, too."""
    if life.huge:
        _read_huge(space, page)
    vma = space.at(page) if page // AROUND in life.around else None
    if vma is not None and (vma.file is not None or vma is space.rest):
        for one in spaces.around(vma, page):
            if one in life.pages and not isinstance(spaces.folio_at(space, one), Folio):
                spaces.map_file(space, vma, one, itself=one == page)


def _read_huge(space: Space, page: int) -> None:
    """Where a folio of a PMD would fit, the VMA gets its anon_vma by reading (do_huge_pmd_anonymous_page)."""
    vma, first = space.at(page), page >> spaces.PMD_ORDER << spaces.PMD_ORDER
    if vma is None or vma is space.rest or vma.anon is not None or vma.file is not None:
        return
    if vma.start <= first and first + spaces.PTRS_PER_PTE <= vma.end:
        spaces.prepare(space, vma)


def _written(life: "Life", space: Space, vma: Vma, page: int, when: int) -> Folio | None:
    """A write to private memory leaves a folio in the writer's own tree: copied, or taken over (do_wp_page)."""
    if vma.shared:
        spaces.map_file(space, vma, page, itself=True)
        return None
    if space.private_pages:
        space.file_pages.pop(page, None)
        space.private_pages.discard(page)
    own = space.own.get(page)
    last = own[-1][1] if own is not None and not space.zaps else None
    if last is not None and last.origin is space and last.since > space.forked:
        return None  # its own already, and not shared since: a NUMA hint, or a protection lifted
    folio = Folio(vma.anon or _anon(space, vma), space, when)
    if page in space.large:  # what is being moved is found missing, too
        folio.room = NOWHERE if isinstance(spaces.folio_at(space, page), Folio) else range(vma.start, vma.end)
    if own is None:
        space.own[page] = [(when, folio)]
        life.whose.wrote(space, page)
    else:
        spaces.write(space, page, own, when, folio)
    return folio


def _present(written: Folio | None, error: int) -> None:
    """What a fault on a mapped page leaves took the place of that page, and is no larger."""
    if written is not None and error & PRESENT:
        written.room = NOWHERE


def kernel_wrote(life: "Life", space: Space, page: int, when: int) -> None:
    """The kernel wrote to private memory of ``space``, which shows as no fault of user mode."""
    vma = space.at(page)
    if vma is not None and not vma.shared:
        space.own.setdefault(page, []).append((when, Folio(_anon(space, vma), space, when)))
        life.whose.wrote(space, page)


def _anon(space: Space, vma: Vma) -> AnonVma:
    if vma.anon is None:
        spaces.prepare(space, vma)
    return vma.prepare()


def wrote_data(space: Space, page: int) -> None:
    """A write shows where the data of an ELF image begin: above its mapped segment, which is never written."""
    if any(vma.start <= page < vma.end for vma in space.maps):
        space.data = page
