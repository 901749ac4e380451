"""The interval tree of VMAs that an rmap walk iterates (mm/interval_tree.c)."""

from bisect import bisect_right
from itertools import accumulate, count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracekit.machine.reconstruct.calm import Calm
    from tracekit.machine.reconstruct.vma import Vma

_turns = count(1)
_WITHIN = 32  # bits of a turn for those that take it together


def turn() -> int:
    """When something is put into a tree: above all turns before, and as many more as a fork has VMAs."""
    return next(_turns) << _WITHIN


class Tree:
    """VMAs in the order of their first page offset; equal ones in the order in which they were put in (MODEL.md A.0).

    A walk asks for the few that cover a page, a fork adds one: so the order is made when it is asked for, and so are
    the VMAs that forks have not copied yet.

    Attributes:
        forks: how many there were of any space.
        doubt: why what is in it may be something else; empty: it may not.
        calm: what ``calm`` found out of it last.
    """

    __slots__ = ("_ends", "_forks", "_highest", "_ordered", "_stale", "_starts", "_vmas", "calm", "doubt")
    forks = 0

    def __init__(self) -> None:
        self._vmas: dict[Vma, int] = {}  # and their turns
        self._forks = -1
        self._ordered: list[Vma] | None = None
        self._stale = True
        self.doubt = ""
        self.calm: Calm | None = None

    def __len__(self) -> int:
        return len(self._vmas)

    def first(self) -> "Vma":
        """One that is in."""
        return next(iter(self._vmas))

    def add(self, vma: "Vma", when: int = 0) -> None:
        """Put it in, last among those that start where it does and were put in before its turn; 0: it is now."""
        self._vmas[vma] = when or turn()
        self._ordered = None

    def drop(self, vma: "Vma") -> None:
        """Take it out, if it is in."""
        self._vmas.pop(vma, None)
        self._ordered = None

    def add_after(self, vma: "Vma", other: "Vma") -> None:
        """Put it in right behind ``other``, which starts where it does: vma_interval_tree_insert_after()."""
        before = list(self._vmas)
        before.insert(before.index(other) + 1, vma)
        self._vmas = {one: i for i, one in enumerate(before)}
        self._ordered = None

    def every(self) -> list["Vma"]:
        """All in tree order; the same list as long as none comes, goes or moves."""
        if self._forks != Tree.forks:
            self._forks = Tree.forks
            for vma in list(self._vmas):
                vma.give()
        if self._ordered is None:
            self._ordered = sorted(sorted(self._vmas, key=self._vmas.__getitem__), key=_start)
            self._stale = True
        return self._ordered

    def over(self, first: int, last: int) -> list["Vma"]:
        """The VMAs that overlap the page offsets first..last, in tree order."""
        ordered = self.every()
        if self._stale:
            self._stale = False
            self._starts = [vma.pgoff for vma in ordered]
            self._ends = [vma.pgoff + vma.end - vma.start for vma in ordered]
            # the highest end so far tells where to begin
            self._highest = list(accumulate(self._ends, max))
        low, high = bisect_right(self._highest, first), bisect_right(self._starts, last)
        return [
            vma
            for vma, end in zip(ordered[low:high], self._ends[low:high], strict=True)
            if end > first and (not vma.holes or vma.covers(first, last))
        ]


def _start(vma: "Vma") -> int:
    return vma.pgoff
