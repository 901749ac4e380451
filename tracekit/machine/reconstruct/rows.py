"""The rows that a walk puts into the timeline: its entry, and each visit next to what it set or restored."""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from tracekit.machine.reconstruct.state import Vma
from tracekit.machine.reconstruct.walk import Walk
from tracekit.machine.timeline import Kind

# Names that look like the pointers they stand for, so that readers of the table are not misled by small numbers
FOLIO, MM, VMA = 0xFFFF_EA00_0000_0000, 0xFFFF_8880_0000_0000, 0xFFFF_C900_0000_0000


class Row(NamedTuple):
    """A row that no record shows: it comes right before (``place`` odd) or after row ``place // 2`` of the timeline.

    ``src``, ``vma``, ``mm`` and ``addr``: 0 where there is none.
    """

    place: int
    row: int
    kind: int
    folio: int
    src: int
    vma: int
    mm: int
    addr: int
    sure: int


class Made:
    """All such rows, column by column: a family of thousands makes thousands of them for every page."""

    def __init__(self) -> None:
        self.columns = {name: array("q" if name in ("place", "row") else "Q") for name in Row._fields}
        self._append = [column.append for column in self.columns.values()]

    def __iter__(self) -> Iterator[Row]:
        return map(Row._make, zip(*self.columns.values(), strict=True))

    def __len__(self) -> int:
        return len(self.columns["place"])

    def frame(self) -> pl.DataFrame:
        """With null for 0 in what may be missing."""
        frame = pl.DataFrame({name: np.frombuffer(column, column.typecode) for name, column in self.columns.items()})
        missing = [pl.when(pl.col(name) != 0).then(name).alias(name) for name in ("src", "vma", "mm", "addr")]
        return frame.with_columns(*missing, pl.col("kind").cast(pl.UInt8), pl.col("sure").cast(pl.Boolean))

    def add(self, *row: int) -> None:
        """One, given as the fields of ``Row``."""
        for append, value in zip(self._append, row, strict=True):
            append(value)

    def walk(self, walk: Walk, visited: list[Vma], member: list[int]) -> None:
        """Those of ``walk``, which visited ``visited``; ``member`` says in which of them each run of entries was."""
        runs, source = walk.runs(), walk.source
        entry, visit = (Kind.TRY, Kind.TRY_VISIT) if source is None else (Kind.REMOVE, Kind.REMOVE_VISIT)
        folio = FOLIO + 64 * walk.head
        row = runs[0].row
        self.add(2 * row - 1, row, entry, folio, 0 if source is None else FOLIO + 64 * source.head, 0, 0, 0, walk.sure)
        at = 0
        for run, i in zip(runs, member, strict=True):
            place = 2 * run.row - 1
            self._visits(walk, visited[at : i + 1], visit, place, run.row)
            if i < 0:  # no VMA explains it: it was in one that is not known
                self.add(place, run.row, visit, folio, 0, VMA + run.row, 0, run.page << 12, 0)
            at = max(at, i + 1)
        last = walk.entries[-1][0]
        self._visits(walk, visited[at:], visit, 2 * last + 1, last)

    def nothing(self, source: Walk, row: int) -> None:
        """Those of a remove walk that found no entry left; it came somewhere before ``row``."""
        folio, place = FOLIO + 64 * source.head, 2 * row - 1
        self.add(place, row, Kind.REMOVE, folio + 1, folio, 0, 0, 0, 0)
        first = len(self)
        self._visits(source, source.tree(), Kind.REMOVE_VISIT, place, row)
        for at in range(first, len(self)):  # a folio of its own, at a guess
            self.columns["folio"][at], self.columns["sure"][at] = folio + 1, 0

    def empty_part(self, part: Walk, row: int, *, after: bool) -> None:
        """Those of the remove walk of a part of a split folio in which nothing was mapped, before or after ``row``."""
        place = 2 * row + (1 if after else -1)
        assert part.source is not None
        head, source = FOLIO + 64 * part.head, FOLIO + 64 * part.source.head
        self.add(place, row, Kind.REMOVE, head, source, 0, 0, 0, part.sure)
        self._visits(part, part.tree(), Kind.REMOVE_VISIT, place, row)

    def _visits(self, walk: Walk, visited: list[Vma], kind: Kind, place: int, row: int) -> None:
        if not visited:
            return
        n, pgoff = len(visited), walk.pgoff()
        if n == 1:
            vma, folio = visited[0], FOLIO + 64 * walk.head
            mm, addr = MM + (vma.space.number << 12), vma.page(pgoff) << 12
            self.add(place, row, kind, folio, 0, VMA + (vma.number << 8), mm, addr, walk.sure)
            return
        same = {
            "place": place,
            "row": row,
            "kind": kind,
            "folio": FOLIO + 64 * walk.head,
            "src": 0,
            "sure": walk.sure,
        }
        for name, value in same.items():
            column = self.columns[name]
            column.extend(array(column.typecode, [value]) * n)
        self.columns["vma"].extend([VMA + (vma.number << 8) for vma in visited])
        self.columns["mm"].extend([MM + (vma.space.number << 12) for vma in visited])
        self.columns["addr"].extend([vma.page(pgoff) << 12 for vma in visited])
