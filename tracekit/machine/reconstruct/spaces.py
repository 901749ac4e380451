"""What the system calls and process events do to address spaces: exec, fork, exit, mmap, munmap, mprotect, mremap."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable

from tracekit.machine.reconstruct.state import EVERYWHERE, NOT_COPIED, Folio, Move, Space
from tracekit.machine.reconstruct.vma import File, Vma

PROT_WRITE, PROTECTION = 0x2, 0xF
HEAP = 0x3  # protection of what brk() maps
MAP_FLAGS = 0x2_6100  # STACK, NORESERVE, LOCKED, GROWSDOWN: those of mmap that become flags of the VMA
MAP_TYPE, MAP_SHARED = 0xF, (0x1, 0x3)
AROUND = 16  # pages that a read fault on a file maps (fault_around_bytes = 65536)
PMD_ORDER = 9
PTRS_PER_PTE = 1 << PMD_ORDER
# madvise behaviours (uapi/asm-generic/mman-common.h) that change a VMA's flags and so may split it
CHANGES_FLAGS = frozenset((0, 1, 2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19))
ZAPS = frozenset((4, 9, 24))  # MADV_DONTNEED, MADV_REMOVE, MADV_DONTNEED_LOCKED
_ADVICE = 20  # bits from here on are of madvise
# behaviour → bits that it clears, bits that it sets: NORMAL RANDOM SEQUENTIAL, (DONT|DO)FORK, (UN)MERGEABLE,
# (NO)HUGEPAGE, (DONT|DO)DUMP, (WIPE|KEEP)ONFORK
_BITS = {0: (3, 0), 1: (3, 1), 2: (3, 2), 10: (4, 4), 11: (4, 0), 12: (8, 8), 13: (8, 0), 14: (48, 16), 15: (48, 32)}
_BITS |= {16: (64, 64), 17: (64, 0), 18: (128, 128), 19: (128, 0)}
_FEW = 64  # pages that a zap notes one by one


def new_image(*, known: bool, large: frozenset[int] = frozenset()) -> Space:
    """What exec leaves: a stand-in for the image still to be mapped; not ``known`` where no exec was seen."""
    space = Space(large=large)
    space.rest = Vma(space, 0, EVERYWHERE, 0)
    space.rest.known = known
    space.rest.prepare()
    return space


def fork(parent: Space, now: int) -> Space:
    """dup_mmap(): each VMA in order of address; the child's of a file go in right behind the parent's (MODEL A.0).

    Those of the image at once, the others when someone looks; or at once, where an anon_vma may be reused, for that
    depends on who is there now. A root never is, nor the parent's own: so only below a grandchild.
    """
    child = Space(parent, now)
    parent.forked = now
    if parent.rest is not None:
        child.rest = parent.rest.copy(child)
    child.maps = [vma.copy(child) for vma in parent.maps]
    parent.take_all()
    for page in parent.private_pages:  # vma_needs_copy(): of a file's pages only where some were written
        vma = parent.at(page)
        if vma is not None and vma.chain and not vma.flags & NOT_COPIED:
            child.file_pages[page] = parent.file_pages[page]
            child.private_pages.add(page)
    child.inherit(parent)
    if parent.parent is not None and parent.parent.parent is not None:
        child.take_all()
    return child


def doubt(space: Space) -> None:
    """It may have left its trees, and may be in them still."""
    space.take_all()
    for vma in space.all_vmas():
        for mapping in (*vma.chain, vma.file):
            if mapping is not None:
                mapping.tree.doubt = "exec not recorded"


def unlink(space: Space) -> None:
    """free_pgtables(): every VMA leaves its trees."""
    for child in space.heirs:
        child.take_all()
    for vma in space.all_vmas():
        vma.unlink()
    space.vmas, space.starts, space.maps, space.rest, space.copies = [], [], [], None, None
    space.users = 0
    while not space.users and not space.heirs and space.parent is not None:
        space.parent.heirs.pop(space, None)
        space = space.parent


def mmap(space: Space, vma: Vma, file: File | None, now: int) -> Vma:
    """Map ``vma``, anew, over whatever was there; returns the VMA that it became part of, or itself.

    What takes up a place that was free, or that no one wrote to (a loader's next segment), needs no zap noted.
    """
    for start, end in _take_out(space, vma.start, vma.end):
        zap(space, start, end, now)
    if space.file_pages:
        _unmap_file(space, vma.start, vma.end)
    if file is None:
        vma.pgoff = vma.start
    else:
        vma.file = file
        file.tree.add(vma)
    space.add(vma)
    return merge(space, vma)


def prepare(space: Space, vma: Vma) -> None:
    """__anon_vma_prepare(): of a neighbour that may become one with it some day, else a new one."""
    if vma.anon is None:
        for one in reversed(space.neighbours(vma)):
            if one is not None and _alike(one, vma, protection=False) and len(one.chain) == 1:
                vma.clone_chain(one)
                return
        vma.prepare()


def merge(space: Space, vma: Vma) -> Vma:
    """vma_merge(): make it one with neighbours of the same kind; what remains goes last among equals in its trees."""
    before, behind = (one if _joins(one, vma) else None for one in space.neighbours(vma))
    if before is not None and behind is not None and before.anon and behind.anon and before.anon is not behind.anon:
        behind = None
    if before is None and behind is None:
        return vma
    gone = [vma] if before is None or behind is None else [vma, behind]
    stays = before or behind
    assert stays is not None
    start, end = min(stays.start, vma.start), max(stays.end, gone[-1].end)
    for one in (*gone, stays):
        one.give()
        space.remove(one)
    if stays.anon is None:
        stays.clone_chain(next((one for one in gone if one.anon is not None), stays))
    stays.pgoff -= stays.start - start
    stays.start, stays.end = start, end
    for one in gone:
        one.unlink()
    stays.reinsert()
    space.add(stays)
    return stays


def _joins(one: Vma | None, vma: Vma) -> bool:
    """is_mergeable_vma() and is_mergeable_anon_vma(): a fork's child shares no anon_vma with what has none."""
    if one is None or not _alike(one, vma):
        return False
    if one.anon is None or vma.anon is None:
        return len(one.chain) + len(vma.chain) <= 1
    return one.anon is vma.anon


def _alike(one: Vma, vma: Vma, *, protection: bool = True) -> bool:
    low, high = sorted((one, vma), key=lambda each: each.start)
    same = 0 if protection else PROTECTION
    return (
        low.end == high.start
        and low.pgoff + low.end - low.start == high.pgoff
        and (low.file, low.shared) == (high.file, high.shared)
        and low.flags | same == high.flags | same
    )


def munmap(space: Space, start: int, end: int, now: int) -> None:
    """Unmap start..end."""
    _take_out(space, start, end)
    zap(space, start, end, now)


def _take_out(space: Space, start: int, end: int) -> list[tuple[int, int]]:
    """Free start..end of VMAs; returns what of it may have been written to.

    A VMA that sticks out on the left is a new one, cloned (vms_gather_munmap_vmas).
    """
    written = []
    for vma in space.overlapping(start, end):
        if vma.chain:
            written.append((max(start, vma.start), min(end, vma.end)))
        space.remove(vma)
        for low, high in ((vma.start, min(start, vma.end)), (max(end, vma.start), vma.end)):
            if low < high:
                _piece(space, vma, low, high)
        vma.unlink()
    if space.rest is not None:
        _add_hole(space.rest.holes, start, end)
    return written


def _add_hole(holes: list[int], start: int, end: int) -> None:
    """Join start..end to ``holes``."""
    i, j = bisect_left(holes, start), bisect_right(holes, end)
    holes[i:j] = [start] * (not i & 1) + [end] * (not j & 1)


def change(space: Space, start: int, end: int, flags: Callable[[int], int]) -> None:
    """vma_modify_flags(): new ``flags`` for start..end, which splits VMAs and makes others one."""
    for old in space.overlapping(start, end):
        if flags(old.flags) == old.flags:
            continue
        low = max(start, old.start)
        split(space, low, min(end, old.end))
        for vma in space.overlapping(low, low + 1):
            vma.flags = flags(vma.flags)
            space.keeps |= bool(vma.flags & NOT_COPIED)
            merge(space, vma)


def advised(flags: int, behaviour: int) -> int:
    """Flags with those that a madvise behaviour sets or clears."""
    clear, bit = _BITS[behaviour]
    return flags & ~(clear << _ADVICE) | bit << _ADVICE


def split(space: Space, start: int, end: int) -> None:
    """Cut VMAs at start and at end where these lie inside: __split_vma(). All parts go last among equals."""
    for vma in space.overlapping(start, end):
        if start <= vma.start and vma.end <= end:
            continue
        old_end, low, high = vma.end, max(start, vma.start), min(end, vma.end)
        space.remove(vma)
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
    # several of them since v6.17, each moved alone: what is opposite a hole between them stays
    for part in [range(vma.start, vma.end) for vma in space.overlapping(start, start + old_pages)]:
        low, high = max(part.start, start), min(part.stop, start + old_pages)
        _move(space, range(low, high), low - start + to, new_pages - old_pages, now)


def _move(space: Space, old: range, to: int, grown: int, now: int) -> None:
    """Move pages of one VMA to ``to``, with ``grown`` more behind them."""
    munmap(space, to, to + len(old) + grown, now)
    (vma,) = space.overlapping(old.start, old.stop)
    moved = vma.like(space, old.start, old.stop)
    moved.start, moved.end = to, to + len(old)
    if vma.file is None and vma.anon is None:
        moved.pgoff = moved.start
    moved.clone_chain(vma)
    if moved.file is not None:
        moved.file.tree.add(moved)
    if _any_of(space.large, old):
        space.moves.append(Move(now, old.start, to, len(old)))
    for page in _noted(space, old.start, old.stop):
        folio = folio_at(space, page)
        if isinstance(folio, Folio):
            space.own.setdefault(page - old.start + to, []).append((now, folio))
    mapped = [(page, space.file_pages[page]) for page in old if page in space.file_pages] if space.file_pages else []
    munmap(space, old.start, old.stop, now)
    for page, itself in mapped:
        map_file(space, moved, page - old.start + to, itself=itself)
    moved.end += grown
    space.add(moved)
    merge(space, moved)


def _any_of(pages: frozenset[int], some: range) -> bool:
    if len(pages) < len(some):
        return any(page in some for page in pages)
    return not pages.isdisjoint(some)


def _noted(space: Space, start: int, end: int) -> list[int]:
    """The pages of start..end of which it, or one that it has them from, may know what they are."""
    pages: set[int] = set()
    one: Space | None = space
    while one is not None:
        few = one.own if len(one.own) < end - start else range(start, end)
        pages.update(page for page in few if start <= page < end and page in one.own)
        one = one.parent
    return sorted(pages)


def zap(space: Space, start: int, end: int, now: int) -> None:
    """Note that nothing is mapped at start..end any more."""
    if space.file_pages:
        _unmap_file(space, start, end)
    if end - start > _FEW:
        space.zaps.note(now, start, end, _asked_for(space))
        return
    for page in range(start, end):
        own = space.own.setdefault(page, [])
        if not own or own[-1][1] is not None or page in space.large:  # that a large folio was there shows later
            write(space, page, own, now, None)


def around(vma: Vma, page: int) -> range:
    """What a read fault at ``page`` of a file maps as far as it is in memory: do_fault_around()."""
    of_table = page % PTRS_PER_PTE
    first = max(of_table - of_table % AROUND, of_table - (page - vma.start))
    end = min(first + AROUND, PTRS_PER_PTE, of_table + vma.end - page)
    return range(page - of_table + first, page - of_table + end)


def map_file(space: Space, vma: Vma, page: int, *, itself: bool) -> None:
    """A page of the file of ``vma`` is mapped; of an image it is taken to be of the text, which no one writes."""
    space.file_pages[page] = itself or space.file_pages.get(page, False)
    if not vma.shared and vma is not space.rest:
        space.private_pages.add(page)


def _unmap_file(space: Space, start: int, end: int) -> None:
    """No page of a file is mapped there any more."""
    pages = space.file_pages
    few = list(pages) if len(pages) < end - start else range(start, end)
    for page in few:
        if start <= page < end and pages.pop(page, None) is not None:
            space.private_pages.discard(page)


def write(space: Space, page: int, own: list[tuple[int, Folio | None]], now: int, folio: Folio | None) -> None:
    """Note in ``own`` what ``space`` has at ``page`` from ``now`` on; forget what no one can ask for any more."""
    own.append((now, folio))
    if page in space.large:
        return
    asked = _asked_for(space)
    if asked is None:
        del own[:-2]
        return
    while own[0][0] <= asked[0] and own[1][0] <= asked[0]:
        del own[0]
    while len(own) > 2 and own[-3][0] > asked[1]:
        del own[-3]


def _asked_for(space: Space) -> tuple[int, int] | None:
    """From which event to which its heirs can ask for what it had; None: no one can, for what was before the last."""
    if not space.heirs:
        return None
    return next(iter(space.heirs)).begun, next(reversed(space.heirs)).born


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
        gone = space.zaps.last(page, before)
        if gone > when:
            when, folio = gone, None
        if folio is None and space.moves and (move := space.moved(page, before)) is not None and move.event >= when:
            page, before = page - move.to + move.start, move.event - 1
            continue
        if when >= 0:
            return folio
        before = min(before, space.born)
        space = space.parent
    return False
