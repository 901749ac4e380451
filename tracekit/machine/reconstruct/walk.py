"""One rmap walk in the making: its entries, the folio they were of, the VMAs it went through."""

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from tracekit.machine.reconstruct.vma import Vma

if TYPE_CHECKING:
    from tracekit.machine.reconstruct.folios import Found
    from tracekit.machine.reconstruct.state import Folio


class Run(NamedTuple):
    """Entries of one VMA.

    Attributes:
        first, end: which of the walk's entries.
        row: of the timeline, where the first of them stands.
        page: of the first.
        base: where the folio's first page stands in this VMA, or would stand.
    """

    row: int
    page: int
    base: int
    first: int
    end: int


class Walk:
    """A walk.

    Attributes:
        entries: (row, page, pfn, pages) of each set or restore; a PMD entry is of all the folio's pages.
        head, order: of the folio; of the new one for a remove walk.
        when, until: events of its first and of its last entry.
        reason: of migrate_pages(): 2 moves the caller's own memory, 3 that of a system call, 0 any.
        types: of a try walk, the swap type of each entry, and ``events.DIRTY`` where it carries the dirty bit.
        source: of a remove walk, the walk that set its entries.
        found: of a try walk, its folio; None: not known.
        members: of a remove walk, the VMAs of the tree when it began.
        explained: of a try walk of a large folio, that and the VMAs that explain its entries, and of each run, the
            place of its VMA among them.
        hit: of a try walk, the VMAs whose entries it set, each with the run of them.
        done: of a try walk, whether its entries were restored.
        back: of a try walk, whether that was where they had been.
        split: of a try walk, whether they are being restored as those of small folios.
        next_part: of a split folio, the page that its next remove walk is of.
        sure: whether no alternative is left.
    """

    __slots__ = (
        *("_runs", "back", "done", "entries", "explained", "found", "head", "hit", "members", "next_part"),
        *("order", "reason", "source", "split", "sure", "types", "until", "when"),
    )

    def __init__(self, head: int, order: int, when: int) -> None:
        self.head, self.order, self.when, self.until = head, order, when, when
        self.reason = 0
        self.entries: list[tuple[int, int, int, int]] = []
        self.types: list[int] = []
        self._runs: list[Run] | None = None
        self.source: Walk | None = None
        self.found: Found | None = None
        self.members: list[Vma] = []
        self.explained: tuple[Folio, list[Vma], list[int]] | None = None
        self.hit: dict[Vma, Run] = {}
        self.next_part = head
        self.back = self.done = self.split = self.sure = False

    def runs(self) -> list[Run]:
        """A visit goes through a VMA's part of the folio in order, so where the PFN falls back another VMA begins."""
        if self._runs is None or self._runs[-1].end != len(self.entries):
            self._runs = self._find_runs()
        return self._runs

    def _find_runs(self) -> list[Run]:
        starts: list[int] = []
        before, base = -1, -1
        for i, (_, page, pfn, pages) in enumerate(self.entries):
            if pfn <= before or page - (pfn - self.head) != base:
                base = page - (pfn - self.head)
                starts.append(i)
            before = pfn + pages - 1
        runs = []
        for first, end in pairwise([*starts, len(self.entries)]):
            row, page, pfn, _ = self.entries[first]
            runs.append(Run(row, page, page - (pfn - self.head), first, end))
        return runs

    def cut(self, held: list[list[int]]) -> list[int] | None:
        """Cut the entries into runs at which VMAs hold the pages ``held``; None where the entries are others.

        A part of a folio ends in one VMA and goes on in the next, or in another process, without the PFN falling back.

        Returns:
            Of each run, which of ``held`` it is.
        """
        runs, member, at = [], [], 0
        for i, pages in enumerate(held):
            if not pages:
                continue
            first, done = at, 0
            while done < len(pages) and at < len(self.entries) and self.entries[at][1] == pages[done]:
                done += self.entries[at][3]
                at += 1
            if done != len(pages):
                return None
            row, page, pfn, _ = self.entries[first]
            runs.append(Run(row, page, page - (pfn - self.head), first, at))
            member.append(i)
        if at < len(self.entries):
            return None
        self._runs = runs
        return member

    def set_any(self, run: Run, part: "Walk") -> bool:
        """Whether ``run``, of a try walk, took away any page that the remove walk ``part`` can have put back."""
        if part.order == self.order:
            return True
        end = part.head + (1 << part.order)
        return any(pfn < end and part.head < pfn + pages for _, _, pfn, pages in self.entries[run.first : run.end])

    def pgoff(self) -> int:
        """The page offset of the folio, or of the part that a split made of it, in its tree."""
        source = self.source or self
        assert source.found is not None
        return source.found.pgoff + (self.head - source.head if self.order < source.order else 0)

    def tree(self) -> list[Vma]:
        """The VMAs that its tree holds now; none where the folio is not known."""
        source = self.source or self
        if source.found is None:
            return []
        first = self.pgoff()
        return source.found.folio.mapping.tree.over(first, first + (1 << self.order) - 1)

    def bases(self, members: list[Vma]) -> list[int]:
        """Where the folio's first page stands in each of ``members``."""
        first = self.pgoff()
        return [vma.start - vma.pgoff + first for vma in members]
