"""Address spaces, VMAs and the two rmap trees, as fork, exec, exit and the mmap family leave them (MODEL.md B.3).

Addresses are in pages throughout. An address space that exec made holds, besides the VMAs whose mmap was seen, one
stand-in for all the rest of the image (``Space.rest``): its segments, heap and stack are written before anything is
forked, so that fork links each of them, and any page of them lies in one VMA of each relative.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from tracekit.machine.reconstruct.tree import Tree, turn
from tracekit.machine.reconstruct.vma import AnonVma, File, Vma
from tracekit.machine.reconstruct.zaps import Zaps

EVERYWHERE = 1 << 60  # pages: above any address
ANYWHERE, NOWHERE = range(EVERYWHERE), range(0)
NOT_COPIED = 4 << 20  # in a VMA's flags: MADV_DONTFORK


class Folio:
    """What is mapped at a page of one address space and, by fork, of its relatives.

    Attributes:
        mapping: the anon_vma or the file in whose tree its rmap walk goes.
        origin, since: the space that wrote it first, and at which event; None for a file's.
        sure: False where its origin was not seen and alternatives remain.
        room: pages within which it lies if it is large: those of the VMA; none where one was mapped before. Kept where
            large ones may be.
        order: of one that was found to be large; 0: it is not, or not known to be.
    """

    __slots__ = ("mapping", "order", "origin", "room", "since", "sure")

    def __init__(
        self, mapping: AnonVma | File, origin: "Space | None" = None, since: int = 0, *, sure: bool = True
    ) -> None:
        self.mapping, self.origin, self.since, self.sure = mapping, origin, since, sure
        self.room, self.order = ANYWHERE, 0


class Copies(NamedTuple):
    """VMAs that a fork copies, each when it is asked for or the parent's changes.

    Attributes:
        starts: of all of them.
        number: of the first copy.
        when: turn of the first (``tree.turn``).
    """

    starts: list[int]
    number: int
    when: int


class Move(NamedTuple):
    """Pages from ``start`` on that mremap() moved to ``to`` at ``event``, in pages."""

    event: int
    start: int
    to: int
    pages: int


class Space:
    """struct mm_struct.

    Attributes:
        number: names it in the timeline.
        vmas: those whose mmap was seen, by address; ``starts`` aligned with it. A fork has its parent's until it is
            asked for its own.
        shared: whether others have these lists, too.
        copies: what of the parent's remains to be copied; None: nothing.
        keeps: whether it ever had VMAs that forks do not copy.
        forks: how many there were of it.
        rest: stands for all others; None where the image is not known to be written before forks.
        own: page → [(event, folio or None)], what faults and zaps of this space put there, oldest first.
        zaps: of many pages at once.
        large: pages at which a large folio may stand, of which all is kept (``large.py``).
        moves: what mremap() moved to or from such pages, oldest first.
        parent, begun, born: what it was forked from, between which events; ``EVERYWHERE`` while that goes on.
        linked: end of the part of it that is certainly in the trees, while the fork goes on.
        faulting: thread → page of its latest fault, which may not be over.
        epoch: how many losses of events there had been when its family began.
        heirs: children of it, or dead with some of their own, that may have from it what it had before; oldest first,
            each with its number among the forks.
        file_pages: where faults mapped a file's pages; True where the fault itself was, False only near it.
        private_pages: those of them in private mappings.
        data: the lowest page outside any VMA seen that was written: there the image's data begins.
        heap: whether its heap is among the VMAs, or would be if there was one.
        dying: event at which its exit began; from then on which of its VMAs are unlinked is not known.
    """

    __slots__ = (
        *(
            "begun",
            "born",
            "data",
            "dying",
            "faulting",
            "epoch",
            "fd_family",
            "forked",
            "heap",
            "linked",
            "maps",
            "number",
            "own",
            "parent",
            "rest",
            "starts",
        ),
        *("users", "vmas", "heirs", "file_pages", "private_pages", "zaps"),
        *("copies", "forks", "keeps", "large", "moves", "shared"),
    )
    count = 0

    def __init__(self, parent: "Space | None" = None, born: int = 0, large: frozenset[int] = frozenset()) -> None:
        Space.count += 1
        self.number = Space.count
        self.parent, self.begun, self.born = parent, born, born
        self.faulting: dict[int, int] = {}
        self.linked = 0
        self.vmas: list[Vma] = []
        self.starts: list[int] = []
        self.shared = self.keeps = False
        self.copies: Copies | None = None
        self.forks = 0
        self.own: dict[int, list[tuple[int, Folio | None]]] = {}
        self.zaps = Zaps()
        self.large: frozenset[int] = parent.large if parent else large
        self.moves: list[Move] = []
        self.file_pages: dict[int, bool] = {}
        self.private_pages: set[int] = set()
        self.maps: list[Vma] = []
        self.fd_family: int = parent.fd_family if parent else self.number
        self.users = 1
        self.epoch: int = parent.epoch if parent else 0
        self.data: int = parent.data if parent else EVERYWHERE
        self.heap: bool = parent.heap if parent else False
        self.dying = EVERYWHERE
        self.forked = -1
        self.heirs: dict[Space, int] = {}
        self.rest: Vma | None = None

    def at(self, page: int) -> Vma | None:
        """The VMA that ``page`` lies in, as far as that was seen; ``rest`` where it was not."""
        i = bisect_right(self.starts, page) - 1
        if i >= 0 and page < self.vmas[i].end:
            vma = self.vmas[i]
            return vma if vma.space is self else self._ith(i)
        return self.rest if self.rest is not None and self.rest.covers(page, page) else None

    def gone(self, page: int, before: int) -> int:
        """The last event, at or before ``before``, from which on nothing stood at ``page``; -1: none."""
        history = self.own.get(page, ())
        last = next((event for event, folio in reversed(history) if folio is None and event <= before), -1)
        return max(last, self.zaps.last(page, before))

    def moved(self, page: int, before: int) -> Move | None:
        """The last move to ``page``, at or before event ``before``."""
        for move in reversed(self.moves):
            if move.event <= before and move.to <= page < move.to + move.pages:
                return move
        return None

    def add(self, vma: Vma) -> None:
        """Enter a VMA whose place is free."""
        self._unshare()
        i = bisect_right(self.starts, vma.start)
        self.starts.insert(i, vma.start)
        self.vmas.insert(i, vma)

    def remove(self, vma: Vma) -> None:
        """Take one out."""
        self._unshare()
        i = bisect_right(self.starts, vma.start) - 1
        del self.vmas[i], self.starts[i]

    def neighbours(self, vma: Vma) -> tuple[Vma | None, Vma | None]:
        """Those before and behind ``vma``."""
        i = bisect_right(self.starts, vma.start) - 1
        return self._ith(i - 1) if i > 0 else None, self._ith(i + 1) if i + 1 < len(self.vmas) else None

    def overlapping(self, start: int, end: int) -> list[Vma]:
        """Its VMAs that overlap start..end, which may be changed."""
        i = max(bisect_right(self.starts, start) - 1, 0)
        j = bisect_right(self.starts, end - 1)
        found = [self._ith(k) for k in range(i, j) if self.vmas[k].end > start]
        for vma in found:
            vma.give()
        return found

    def mapped_until(self, page: int, end: int) -> int:
        """Where the VMAs from ``page`` on leave a first hole, at most ``end``."""
        for vma in self.overlapping(page, end):
            if vma.start > page:
                break
            page = vma.end
        return min(page, end)

    def all_vmas(self) -> Iterator[Vma]:
        """Every VMA of its own, the stand-in included."""
        if self.rest is not None:
            yield self.rest
        yield from self.maps
        if self.copies is None:
            yield from self.vmas
        elif self.starts is not self.copies.starts:
            yield from (vma for vma in self.vmas if vma.space is self)

    def inherit(self, parent: "Space") -> None:
        """A fork of ``parent``, which has all of its own, has its VMAs, to be copied."""
        self.vmas, self.starts = parent.vmas, parent.starts
        if parent.keeps:
            self.vmas = [vma for vma in parent.vmas if not vma.flags & NOT_COPIED]
            self.starts = [vma.start for vma in self.vmas]
        self.shared = parent.shared = True
        self.copies = Copies(self.starts, Vma.count + 1, turn())
        Vma.count += len(self.starts)
        parent.forks += 1
        parent.heirs[self] = parent.forks
        Tree.forks += 1

    def take(self, vma: Vma) -> None:
        """Copy the parent's ``vma``, unless it has."""
        i = bisect_right(self.starts, vma.start) - 1
        if i >= 0 and self.vmas[i] is vma:
            self._copy(i)

    def due(self, vma: Vma) -> int:
        """The number that its copy of the parent's ``vma`` will have; 0: it has copied it, or does not."""
        i = bisect_right(self.starts, vma.start) - 1
        if self.copies is None or i < 0 or self.vmas[i] is not vma:
            return 0
        return self.copies.number + bisect_left(self.copies.starts, vma.start)

    def take_all(self) -> None:
        """Copy all that remains to be copied."""
        if self.copies is not None:
            for i in range(len(self.vmas)):
                self._ith(i)
            self.copies = None

    def _ith(self, i: int) -> Vma:
        vma = self.vmas[i]
        if vma.space is self:
            return vma
        if vma.file is None:
            return self._copy(i)
        vma.give()  # its forks are in the file's tree in another order if they come in another
        return self.vmas[i]

    def _copy(self, i: int) -> Vma:
        source, copies = self.vmas[i], self.copies
        assert copies is not None
        rank = bisect_left(copies.starts, source.start)
        self._unshare()
        new = self.vmas[i] = source.copy(self, copies.number + rank, copies.when + rank)
        return new

    def _unshare(self) -> None:
        if self.shared:
            self.vmas, self.starts, self.shared = self.vmas.copy(), self.starts.copy(), False
