"""Which folio a walk was of: by whose memory the caller moves, by where it was moved before, by who wrote there."""

from collections import Counter
from typing import NamedTuple

from tracekit.machine.reconstruct.events import DIRTY
from tracekit.machine.reconstruct.folios import Entry, Found, find, known, maps
from tracekit.machine.reconstruct.large import cut, large_at, whole_at
from tracekit.machine.reconstruct.machine import Life
from tracekit.machine.reconstruct.moved import Moved
from tracekit.machine.reconstruct.state import Folio, Space
from tracekit.machine.reconstruct.walk import Run, Walk

_OWN, _CALL = 2, 3  # reasons of migrate_pages(), see events.entries


class Identity(NamedTuple):
    """A folio, and a space that maps it, or did when it was chosen to be moved.

    Attributes:
        found: None: not known.
        space: None: not known.
        still: whether nothing can have been written there since.
    """

    found: Found | None
    space: Space | None = None
    still: bool = False


def _told(space: Space, run: Run, walk: Walk) -> bool:
    """Whether the folio that ``space`` has where ``run`` stood, as far as is known, explains all that ``walk`` found.

    Where mremap() moved a part, a folio stands at several addresses, and some may be those of other folios there.
    """
    vma, folio = space.at(run.page), known(space, run.page, run.base, walk.order)
    mapping = folio.mapping if folio is not None else vma.file if vma is not None else None
    if vma is None or mapping is None:
        return False
    first = vma.pgoff + run.base - vma.start
    there = mapping.tree.over(first, first + (1 << walk.order) - 1)
    return not Counter(one.base for one in walk.runs()) - Counter(one.start - one.pgoff + first for one in there)


class Identify:
    """Answers for one trace.

    Attributes:
        dirty_bits: whether migration entries carry the dirty bit.
        read_type: swap type of a read-only migration entry that is not exclusive; None: types do not tell.
        asked: whether what anyone wrote had to tell.
        moved: PFN of a folio → what it is, since it was moved there.
    """

    def __init__(self, life: Life, read_type: int | None, *, dirty_bits: bool) -> None:
        self.life, self.read_type, self.dirty_bits = life, read_type, dirty_bits
        self.moved = Moved()
        self.asked = False

    def of(self, tid: int, walk: Walk, before: Walk | None = None) -> Identity:
        """The folio of ``walk``, a try walk of ``tid``, which takes what ``before`` took, or a part of that."""
        again = None if before is None or before.found is None else self._again(tid, walk, before.found, before)
        identity = again or self._of(tid, walk)
        found = identity.found
        if found is not None and not found.why and not self.life.complete:
            return identity._replace(found=Found(found.folio, found.pgoff, "mmap and munmap not recorded"))
        return identity

    def _again(self, tid: int, walk: Walk, found: Found, before: Walk) -> Identity:
        """What ``before`` was of, ``found``, or a part of that, which its memory may not map."""
        target = self.target(tid, walk.reason) if walk.order == before.order else None
        still = target is not None and self._still(tid, target)
        return Identity(Found(found.folio, found.pgoff + walk.head - before.head, found.why), target, still)

    def _of(self, tid: int, walk: Walk) -> Identity:
        runs = walk.runs()
        target = self.target(tid, walk.reason)
        if target is not None:
            found = self._of_target(target, walk, runs)
            if found is not None:
                return Identity(found, target, self._still(tid, target))
        before = self.moved.get(walk.head)
        if before is not None:
            return Identity(before)
        self.asked = True
        return self._of_anyone(walk, runs)

    def _of_target(self, target: Space, walk: Walk, runs: list[Run]) -> Found | None:
        found = self._explaining(target, walk) if walk.order and self.life.faults else None
        if found is not None:
            return found
        several = len({run.base for run in runs}) > 1
        for run in sorted(runs, key=lambda run: not _told(target, run, walk)) if several else runs:
            vma = target.at(run.page)
            if vma is None or (several and vma is target.rest):
                continue
            found = self._at(target, run, walk)
            if found is not None:
                return found
        return None

    def _explaining(self, target: Space, walk: Walk) -> Found | None:
        """The large folio of ``target`` of which each page that is known to be mapped had an entry, and no other."""
        tried = set()
        find_at = whole_at if all(pages > 1 for _, _, _, pages in walk.entries) else large_at
        for _, page, pfn, _ in walk.entries:
            vma, base = target.at(page), page - (pfn - walk.head)
            folio = None if vma is None or vma.shared else find_at(target, page, base, walk.order)
            if vma is None or folio is None or (folio, base) in tried:
                continue
            tried.add((folio, base))
            found = Found(folio, vma.pgoff + base - vma.start)
            there = folio.mapping.tree.over(found.pgoff, found.pgoff + (1 << walk.order) - 1)
            if cut(walk, folio, found.pgoff, there) is not None:
                return found
        return None

    def target(self, tid: int, reason: int) -> Space | None:
        """Whose memory ``tid`` moves, if the reason of migrate_pages() says so."""
        life = self.life
        if reason == _OWN:
            return life.space_of.get(tid)
        return life.space_of.get(life.target.get(tid, 0) or tid) if reason == _CALL else None

    def _still(self, tid: int, target: Space) -> bool:
        """Whether what was there to be moved is there when it is: no one can have written to it unseen."""
        return self.life.faults or (target.users == 1 and self.life.space_of.get(tid) is target)

    def _of_anyone(self, walk: Walk, runs: list[Run]) -> Identity:
        fits: dict[Folio, tuple[Found, Space]] = {}
        for space in self.life.whose.writers(runs[0].page, walk.order):
            found = self._at(space, runs[0], walk)
            if found is not None and found.folio not in fits and self._mapped(found, walk) == len(runs):
                fits[found.folio] = (found, space)
        if len(fits) == 1:
            return Identity(*next(iter(fits.values())))
        for found, _ in fits.values():
            return Identity(Found(found.folio, found.pgoff, "one of several folios at its address"))
        for space in self.life.whose.near(runs[0].page):
            found = self._at(space, runs[0], walk)
            if found is not None:
                return Identity(Found(found.folio, found.pgoff, "told by the addresses around it"))
        return Identity(None)

    def _at(self, space: Space, run: Run, walk: Walk) -> Found | None:
        # that of ``space`` may be any at this address: a shared mapping of a file has another than a private one
        kinds = [kind for (_, page, *_), kind in zip(walk.entries, walk.types, strict=True) if page == run.page]
        exclusive = None if self.read_type is None else min(kind & DIRTY - 1 for kind in kinds) > self.read_type
        dirty = min(kinds) >= DIRTY if self.dirty_bits else None
        entry = Entry(run.page, run.base, walk.order, exclusive, dirty)
        found = find(space, entry, faults=self.life.faults)
        if found is None or not walk.order:
            return found
        return Found(found.folio, found.pgoff - (run.page - run.base), found.why)

    @staticmethod
    def _mapped(found: Found, walk: Walk) -> int:
        members = found.folio.mapping.tree.over(found.pgoff, found.pgoff + (1 << walk.order) - 1)
        return sum(maps(found, vma, walk.order) for vma in members)
