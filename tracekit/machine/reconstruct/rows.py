"""The rows that a walk puts into the timeline: its entry, and each visit next to what it set or restored."""

from array import array
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tracekit.machine.reconstruct.vma import Vma
from tracekit.machine.reconstruct.walk import Walk
from tracekit.machine.timeline import Kind

# Names that look like the pointers they stand for, so that readers of the table are not misled by small numbers
FOLIO, MM, VMA = 0xFFFF_EA00_0000_0000, 0xFFFF_8880_0000_0000, 0xFFFF_C900_0000_0000
_Number = TypeVar("_Number", int, npt.NDArray[np.uint64])


def folio_name(head: _Number) -> _Number:
    """Of the folio whose first page is PFN ``head``, or of each of uint64[n]: 64 is the size of a struct page."""
    return head * 64 + FOLIO


def mm_name(number: _Number) -> _Number:
    """Of the address space of that number, or of those of uint64[n]."""
    return number * 4096 + MM


def vma_name(number: _Number) -> _Number:
    """Of the VMA of that number, or of those of uint64[n]."""
    return number * 256 + VMA


class Row(NamedTuple):
    """A row that no record shows: it comes right before or ``after`` row ``row`` of the timeline.

    ``src``, ``vma``, ``mm`` and ``addr``: 0 where there is none.
    """

    row: int
    after: int
    kind: int
    sure: int
    folio: int
    src: int
    vma: int
    mm: int
    addr: int


_BYTE, _WORD, _ROW = "B", "Q", "I"  # polars counts rows in 32 bits, too
_CODES = {"row": _ROW} | dict.fromkeys(("after", "kind", "sure"), _BYTE)


class Made:
    """All such rows, column by column: a family of thousands makes thousands of them for every page."""

    def __init__(self) -> None:
        self.columns = {name: array(_CODES.get(name, _WORD)) for name in Row._fields}
        self._append = [column.append for column in self.columns.values()]

    def __iter__(self) -> Iterator[Row]:
        return map(Row._make, zip(*self.columns.values(), strict=True))

    def __len__(self) -> int:
        return len(self.columns["row"])

    def take(self, name: str) -> npt.NDArray[np.unsignedinteger]:
        """A column, which is gone from here then: there are more of them than fit beside the timeline twice."""
        column = self.columns.pop(name)
        return np.frombuffer(column, column.typecode)

    def add(self, *row: int) -> None:
        """One, given as the fields of ``Row``."""
        for append, value in zip(self._append, row, strict=True):
            append(value)

    def walk(self, walk: Walk, visited: list[Vma], member: list[int]) -> None:
        """Those of ``walk``, which visited ``visited``; ``member`` says in which of them each run of entries was."""
        runs, source = walk.runs(), walk.source
        entry, visit = (Kind.TRY, Kind.TRY_VISIT) if source is None else (Kind.REMOVE, Kind.REMOVE_VISIT)
        folio = folio_name(walk.head)
        src = 0 if source is None else folio_name(source.head)
        self.add(runs[0].row, 0, entry, walk.sure, folio, src, 0, 0, 0)
        at = 0
        for run, i in zip(runs, member, strict=True):
            self._visits(walk, visited[at : i + 1], visit, run.row)
            if i < 0:  # no VMA explains it: it was in one that is not known
                self.add(run.row, 0, visit, 0, folio, 0, VMA + run.row, 0, run.page << 12)
            at = max(at, i + 1)
        self._visits(walk, visited[at:], visit, walk.entries[-1][0], after=True)

    def nothing(self, source: Walk, row: int) -> None:
        """Those of a remove walk that found no entry left; it came somewhere before ``row``."""
        folio = folio_name(source.head)
        self.add(row, 0, Kind.REMOVE, 0, folio + 1, folio, 0, 0, 0)
        first = len(self)
        self._visits(source, source.tree(), Kind.REMOVE_VISIT, row)
        for at in range(first, len(self)):  # a folio of its own, at a guess
            self.columns["folio"][at], self.columns["sure"][at] = folio + 1, 0

    def empty_part(self, part: Walk, row: int, *, after: bool) -> None:
        """Those of the remove walk of a part of a split folio in which nothing was mapped, before or after ``row``."""
        assert part.source is not None
        head, source = folio_name(part.head), folio_name(part.source.head)
        self.add(row, after, Kind.REMOVE, part.sure, head, source, 0, 0, 0)
        self._visits(part, part.tree(), Kind.REMOVE_VISIT, row, after=after)

    def _visits(self, walk: Walk, visited: list[Vma], kind: Kind, row: int, *, after: bool = False) -> None:
        if not visited:
            return
        n, pgoff, folio = len(visited), walk.pgoff(), folio_name(walk.head)
        if n == 1:
            vma = visited[0]
            mm, addr = mm_name(vma.space.number), vma.page(pgoff) << 12
            self.add(row, after, kind, walk.sure, folio, 0, vma_name(vma.number), mm, addr)
            return
        same = {"row": row, "after": after, "kind": kind, "sure": walk.sure, "folio": folio, "src": 0}
        for name, value in same.items():
            column = self.columns[name]
            column.extend(array(column.typecode, [value]) * n)
        self.columns["vma"].extend([vma_name(vma.number) for vma in visited])
        self.columns["mm"].extend([mm_name(vma.space.number) for vma in visited])
        self.columns["addr"].extend([vma.page(pgoff) << 12 for vma in visited])
