"""Address spaces, VMAs and the two rmap trees, as fork, exec, exit and the mmap family leave them (MODEL.md B.3).

Addresses are in pages throughout. An address space that exec made holds, besides the VMAs whose mmap was seen, one
stand-in for all the rest of the image (``Space.rest``): its segments, heap and stack are written before anything is
forked, so that fork links each of them, and any page of them lies in one VMA of each relative.
"""

from bisect import bisect_right
from collections.abc import Iterator

from tracekit.machine.reconstruct.tree import Tree

EVERYWHERE = 1 << 60  # pages: above any address


class AnonVma:
    """struct anon_vma (include/linux/rmap.h): the tree of the VMAs that may map an anonymous folio.

    Attributes:
        tree: the VMAs that are linked to it.
        children: anon_vmas whose parent this is, itself included for a root.
        active: VMAs whose own anon_vma this is.
    """

    __slots__ = ("active", "children", "parent", "tree")

    def __init__(self, parent: "AnonVma | None" = None) -> None:
        self.parent = parent
        self.children = 0 if parent else 1  # a root is its own child, too
        if parent is not None:
            parent.children += 1
        self.active = 1
        self.tree = Tree()


class File:
    """struct address_space of a file, memfd or shared anonymous mapping, with its i_mmap tree.

    Attributes:
        sure: False where which file it is was concluded from the number of its descriptor.
    """

    __slots__ = ("sure", "tree")

    def __init__(self, *, sure: bool) -> None:
        self.sure = sure
        self.tree = Tree()


class Vma:
    """struct vm_area_struct.

    Attributes:
        number: names it in the timeline.
        chain: the anon_vmas in whose trees it is, its own included (anon_vma_chain).
        holes: where something else is mapped over it or nothing any more: start, end, start, …, in order.
        known: whether the trace shows how it came to be.
        flags: protection and advice, as far as neighbours must have the same to become one with it.
    """

    __slots__ = (
        "anon",
        "chain",
        "end",
        "file",
        "flags",
        "holes",
        "known",
        "number",
        "pgoff",
        "shared",
        "space",
        "start",
    )
    count = 0

    def __init__(self, space: "Space", start: int, end: int, pgoff: int) -> None:
        Vma.count += 1
        self.number = Vma.count
        self.space, self.start, self.end, self.pgoff = space, start, end, pgoff
        self.file: File | None = None
        self.shared = False
        self.flags = 0
        self.anon: AnonVma | None = None
        self.chain: list[AnonVma] = []
        self.holes: list[int] = []
        self.known = True

    def covers(self, first: int, last: int) -> bool:
        """Whether page offsets first..last overlap it."""
        if first >= self.pgoff + self.end - self.start or last < self.pgoff:
            return False
        at = first - self.pgoff + self.start
        return not bisect_right(self.holes, at) & 1

    def page(self, pgoff: int) -> int:
        """The page of its address space at which ``pgoff`` is mapped: vma_address()."""
        return max(self.start, self.start + pgoff - self.pgoff)

    def like(self, space: "Space", start: int, end: int) -> "Vma":
        """Make another with this one's properties, in no tree yet."""
        new = Vma(space, start, end, self.pgoff + start - self.start)
        new.file, new.shared, new.known, new.holes = self.file, self.shared, self.known, list(self.holes)
        new.flags = self.flags
        return new

    def prepare(self) -> AnonVma:
        """Its own anon_vma, as a first write makes it (__anon_vma_prepare)."""
        if self.anon is None:
            self.anon = AnonVma()
            self.chain.append(self.anon)
            self.anon.tree.add(self)
        return self.anon

    def clone_chain(self, source: "Vma") -> None:
        """anon_vma_clone(self, source) in a split or a move: the same trees, the same own anon_vma."""
        for anon in source.chain:
            anon.tree.add(self)
            self.chain.append(anon)
        self.anon = source.anon
        if self.anon is not None:
            self.anon.active += 1

    def fork_chain(self, source: "Vma") -> None:
        """anon_vma_fork(self, source): link to the parent's trees, then reuse a dead ancestor's or add an own one."""
        if source.anon is None:
            return
        for anon in source.chain:
            anon.tree.add(self)
            self.chain.append(anon)
            if self.anon is None and anon.active == 0 and anon.children < 2:
                self.anon = anon
        if self.anon is not None:
            self.anon.active += 1
            return
        self.anon = AnonVma(source.anon)
        self.anon.tree.add(self)
        self.chain.append(self.anon)

    def unlink(self) -> None:
        """unlink_anon_vmas() and unlink_file_vma()."""
        for anon in self.chain:
            anon.tree.drop(self)
            if not anon.tree and anon.parent is not None:
                anon.parent.children -= 1
        if self.anon is not None:
            self.anon.active -= 1
        if self.file is not None:
            self.file.tree.drop(self)
        self.chain, self.anon = [], None

    def reinsert(self) -> None:
        """Take it out of its trees and put it back, last among equal starts: vma_prepare() and vma_complete()."""
        for anon in self.chain:
            anon.tree.drop(self)
            anon.tree.add(self)
        if self.file is not None:
            self.file.tree.drop(self)
            self.file.tree.add(self)


class Folio:
    """What is mapped at a page of one address space and, by fork, of its relatives.

    Attributes:
        mapping: the anon_vma or the file in whose tree its rmap walk goes.
        origin, since: the space that wrote it first, and at which event; None for a file's.
        sure: False where its origin was not seen and alternatives remain.
    """

    __slots__ = ("mapping", "origin", "since", "sure")

    def __init__(
        self, mapping: AnonVma | File, origin: "Space | None" = None, since: int = 0, *, sure: bool = True
    ) -> None:
        self.mapping, self.origin, self.since, self.sure = mapping, origin, since, sure


class Space:
    """struct mm_struct.

    Attributes:
        number: names it in the timeline.
        vmas: those whose mmap was seen, by address; ``starts`` aligned with it.
        rest: stands for all others; None where the image is not known to be written before forks.
        own: page → [(event, folio or None)], what faults and zaps of this space put there, oldest first.
        parent, begun, born: what it was forked from, between which events; ``EVERYWHERE`` while that goes on.
        linked: end of the part of it that is certainly in the trees, while the fork goes on.
        faulting: thread → page of its latest fault, which may not be over.
        epoch: how many losses of events there had been when its family began.
        heirs: children of it, or dead with some of their own, that may have from it what it had before.
        windows, cut: what faults mapped of files: ~page where written, page >> AROUND where read; those cut by a zap.
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
        *("users", "vmas", "cut", "heirs", "windows", "zaps"),
    )
    count = 0

    def __init__(self, parent: "Space | None" = None, born: int = 0) -> None:
        Space.count += 1
        self.number = Space.count
        self.parent, self.begun, self.born = parent, born, born
        self.faulting: dict[int, int] = {}
        self.linked = 0
        self.vmas: list[Vma] = []
        self.starts: list[int] = []
        self.own: dict[int, list[tuple[int, Folio | None]]] = {}
        self.zaps: list[tuple[int, int, int]] = []
        self.windows: set[int] = set()
        self.cut: set[int] = set()
        self.maps: list[Vma] = []
        self.fd_family: int = parent.fd_family if parent else self.number
        self.users = 1
        self.epoch: int = parent.epoch if parent else 0
        self.data: int = parent.data if parent else EVERYWHERE
        self.heap: bool = parent.heap if parent else False
        self.dying = EVERYWHERE
        self.forked = -1
        self.heirs = 0
        self.rest: Vma | None = None

    def at(self, page: int) -> Vma | None:
        """The VMA that ``page`` lies in, as far as that was seen; ``rest`` where it was not."""
        i = bisect_right(self.starts, page) - 1
        if i >= 0 and page < self.vmas[i].end:
            return self.vmas[i]
        return self.rest if self.rest is not None and self.rest.covers(page, page) else None

    def add(self, vma: Vma) -> None:
        """Enter a VMA whose place is free."""
        i = bisect_right(self.starts, vma.start)
        self.starts.insert(i, vma.start)
        self.vmas.insert(i, vma)

    def overlapping(self, start: int, end: int) -> list[Vma]:
        """Its VMAs that overlap start..end."""
        i = max(bisect_right(self.starts, start) - 1, 0)
        j = bisect_right(self.starts, end - 1)
        return [vma for vma in self.vmas[i:j] if vma.end > start]

    def all_vmas(self) -> Iterator[Vma]:
        """Every VMA, the stand-in included."""
        if self.rest is not None:
            yield self.rest
        yield from self.maps
        yield from self.vmas
