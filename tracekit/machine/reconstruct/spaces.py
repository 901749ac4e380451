"""What the system calls and process events do to address spaces: exec, fork, exit, mmap, munmap, mprotect, mremap."""

from bisect import bisect_left, bisect_right

from tracekit.machine.reconstruct.state import EVERYWHERE, File, Folio, Space, Vma

MAP_TYPE, MAP_SHARED, MAP_ANONYMOUS = 0xF, (0x1, 0x3), 0x20
# madvise behaviours (uapi/asm-generic/mman-common.h) that change a VMA's flags and so may split it
CHANGES_FLAGS = frozenset((0, 1, 2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19))
DONTFORK, DOFORK = 10, 11
ZAPS = frozenset((4, 9, 24))  # MADV_DONTNEED, MADV_REMOVE, MADV_DONTNEED_LOCKED
_FEW = 64  # pages that a zap notes one by one


def new_image(*, known: bool) -> Space:
    """What exec leaves: a stand-in for the image still to be mapped; not ``known`` where no exec was seen."""
    space = Space()
    space.rest = Vma(space, 0, EVERYWHERE, 0)
    space.rest.known = known
    space.rest.prepare()
    return space


def fork(parent: Space, now: int) -> Space:
    """dup_mmap(): each VMA in order of address; the child's of a file go in right behind the parent's (MODEL A.0)."""
    child = Space(parent, now)
    parent.forked = now
    for vma in parent.all_vmas():
        if not vma.copied:
            continue
        new = vma.like(child, vma.start, vma.end)
        new.fork_chain(vma)
        if vma.file is not None:
            vma.file.tree.add_after(new, vma)
        if vma is parent.rest:
            child.rest = new
        elif new.file is not None and vma in parent.maps:
            child.maps.append(new)
        else:
            child.vmas.append(new)
            child.starts.append(new.start)
    return child


def unlink(space: Space) -> None:
    """free_pgtables(): every VMA leaves its trees."""
    for vma in space.all_vmas():
        vma.unlink()
    space.vmas, space.starts, space.maps, space.rest = [], [], [], None


def mmap(space: Space, start: int, end: int, pgoff: int, file: File | None) -> Vma:
    """Map start..end anew, over whatever was there."""
    munmap(space, start, end, now=-1)
    vma = Vma(space, start, end, start if file is None else pgoff)
    vma.file = file
    if file is not None:
        file.tree.add(vma)
    space.add(vma)
    return vma


def munmap(space: Space, start: int, end: int, now: int) -> None:
    """Unmap start..end; a VMA that sticks out on the left is a new one, cloned (vms_gather_munmap_vmas)."""
    for vma in space.overlapping(start, end):
        i = bisect_right(space.starts, vma.start) - 1
        del space.vmas[i], space.starts[i]
        for low, high in ((vma.start, min(start, vma.end)), (max(end, vma.start), vma.end)):
            if low < high:
                _piece(space, vma, low, high)
        vma.unlink()
    if space.rest is not None:
        _add_hole(space.rest.holes, start, end)
    if now >= 0:
        zap(space, start, end, now)


def _add_hole(holes: list[int], start: int, end: int) -> None:
    """Join start..end to ``holes``."""
    i, j = bisect_left(holes, start), bisect_right(holes, end)
    holes[i:j] = [start] * (not i & 1) + [end] * (not j & 1)


def split(space: Space, start: int, end: int) -> None:
    """Cut VMAs at start and at end where these lie inside: vma_modify_flags(). All parts go last among equals."""
    for vma in space.overlapping(start, end):
        if start <= vma.start and vma.end <= end:
            continue
        old_end, low, high = vma.end, max(start, vma.start), min(end, vma.end)
        i = bisect_right(space.starts, vma.start) - 1
        del space.vmas[i], space.starts[i]
        if vma.start < low:
            _piece(space, vma, vma.start, low)
        if high < old_end:
            _piece(space, vma, high, old_end)
        vma.pgoff += low - vma.start
        vma.start, vma.end = low, high
        space.add(vma)
        vma.reinsert()


def _piece(space: Space, vma: Vma, start: int, end: int) -> None:
    new = vma.like(space, start, end)
    new.clone_chain(vma)
    if new.file is not None:
        new.file.tree.add(new)
    space.add(new)


def mremap(space: Space, old: range, new: range, now: int) -> None:
    """Shrink, grow or move; what is moved keeps its page offsets and with them its place in the trees (copy_vma)."""
    start, old_pages, to, new_pages = old.start, len(old), new.start, len(new)
    if new_pages < old_pages:
        munmap(space, start + new_pages, start + old_pages, now)
        old_pages = new_pages
    if to == start:
        for vma in space.overlapping(start, start + 1):
            vma.end = max(vma.end, start + new_pages)
            vma.reinsert()
        return
    split(space, start, start + old_pages)
    munmap(space, to, to + new_pages, now)
    for vma in space.overlapping(start, start + old_pages):
        moved = vma.like(space, vma.start, vma.end)
        moved.start, moved.end = vma.start - start + to, vma.end - start + to
        if vma.file is None and vma.anon is None:
            moved.pgoff = moved.start
        moved.clone_chain(vma)
        if moved.file is not None:
            moved.file.tree.add(moved)
        for page in range(vma.start, vma.end):
            folio = folio_at(space, page)
            if isinstance(folio, Folio):
                space.own.setdefault(page - start + to, []).append((now, folio))
        munmap(space, vma.start, vma.end, now)
        moved.end += new_pages - old_pages
        space.add(moved)


def zap(space: Space, start: int, end: int, now: int) -> None:
    """Note that nothing is mapped at start..end any more."""
    if end - start > _FEW:
        space.zaps.append((now, start, end))
        return
    for page in range(start, end):
        space.own.setdefault(page, []).append((now, None))


def folio_before(space: Space, page: int, event: int) -> Folio | None:
    """The folio that ``space`` mapped at ``page`` before ``event``, if it is known."""
    folio = folio_at(space, page, before=event - 1)
    return folio if isinstance(folio, Folio) else None


def folio_at(space: Space | None, page: int, *, before: int = EVERYWHERE) -> Folio | bool | None:
    """What ``space`` maps at ``page``: a folio, None for nothing, False where the trace does not say.

    What neither fault nor zap touched since the fork is the parent's as it was then.
    """
    while space is not None:
        when, folio = -1, None
        for event, one in reversed(space.own.get(page, ())):
            if event <= before:
                when, folio = event, one
                break
        for event, start, end in space.zaps:
            if start <= page < end and when < event <= before:
                return None
        if when >= 0:
            return folio
        before = min(before, space.born)
        space = space.parent
    return False
