"""VMAs and the two sorts of rmap trees that they are in, as fork, split and exit link and unlink them (MODEL.md B.3).

Addresses are in pages throughout (mm/rmap.c, mm/vma.c).
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import takewhile
from typing import TYPE_CHECKING

from tracekit.machine.reconstruct.tree import Tree

if TYPE_CHECKING:
    from tracekit.machine.reconstruct.state import Space


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
        given: how many forks of its space have copied it, or began before it.
    """

    __slots__ = (
        "anon",
        "chain",
        "end",
        "file",
        "flags",
        "given",
        "holes",
        "known",
        "number",
        "pgoff",
        "shared",
        "space",
        "start",
    )
    count = 0
    turns_chains: bool | None = True  # by the kernel's release, see ``Shown``

    def __init__(self, space: "Space", start: int, end: int, pgoff: int, number: int = 0) -> None:
        if not number:
            number = Vma.count = Vma.count + 1
        self.number = number
        self.given = space.forks
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

    def like(self, space: "Space", start: int, end: int, number: int = 0) -> "Vma":
        """Make another with this one's properties, in no tree yet; ``number`` is kept for it, or 0."""
        new = Vma(space, start, end, self.pgoff + start - self.start, number)
        new.file, new.shared, new.known, new.holes = self.file, self.shared, self.known, list(self.holes)
        new.flags = self.flags
        return new

    def prepare(self) -> AnonVma:
        """Its own anon_vma, as a first write makes it (__anon_vma_prepare)."""
        if self.anon is None:
            self.give()
            self.anon = AnonVma()
            self.chain.append(self.anon)
            self.anon.tree.add(self)
        return self.anon

    def clone_chain(self, source: "Vma") -> None:
        """anon_vma_clone(self, source) in a split or a move: the same trees, the same own anon_vma."""
        self.give()
        for anon in source.cloned():
            anon.tree.add(self)
            self.chain.append(anon)
        self.anon = source.anon
        if self.anon is not None:
            self.anon.active += 1

    def cloned(self) -> Iterator[AnonVma]:
        """Its chain in the order in which anon_vma_clone() goes through it.

        Where the links are allocated first (v7.2), each is put before the others: it comes out turned around.
        """
        return iter(self.chain) if Vma.turns_chains is False else reversed(self.chain)

    def copy(self, child: "Space", number: int = 0, when: int = 0) -> "Vma":
        """What dup_mmap() makes of it; ``number`` and turn in the trees (``tree.turn``) are kept for it, or 0."""
        new = self.like(child, self.start, self.end, number)
        new.fork_chain(self, when)
        if new.file is not None:
            new.file.tree.add_after(new, self)
        return new

    def fork_chain(self, source: "Vma", when: int) -> None:
        """anon_vma_fork(self, source): link to the parent's trees, then reuse a dead ancestor's or add an own one."""
        if source.anon is None:
            return
        free = []
        for anon in source.cloned():
            anon.tree.add(self, when)
            self.chain.append(anon)
            if anon.active == 0 and anon.children < 2:
                free.append(anon)
        if len(free) > 1 and Vma.turns_chains is None:
            for anon in free:
                anon.tree.doubt = "order of anon_vma_clone() not known"
        if free:
            self.anon = free[0]
            self.anon.active += 1
            return
        self.anon = AnonVma(source.anon)
        self.anon.tree.add(self, when)
        self.chain.append(self.anon)

    def give(self) -> None:
        """Let the forks of its space that have not copied it do so, before it is another."""
        if self.given < self.space.forks:
            for child in self.heirs():
                child.take(self)
            self.given = self.space.forks

    def heirs(self) -> list["Space"]:
        """The forks of its space that may not have copied it, oldest first."""
        later = takewhile(lambda one: one[1] > self.given, reversed(self.space.heirs.items()))
        return [child for child, _ in later][::-1]

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
