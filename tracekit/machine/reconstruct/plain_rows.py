"""The rows of many plain walks, put into columns at once."""

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tracekit.machine.reconstruct.calm import Calm
from tracekit.machine.reconstruct.rows import Made, folio_name, mm_name, vma_name
from tracekit.machine.timeline import Kind

_TRIED = (1 << 64) - 1  # in place of a source's PFN
_FIELDS = 5  # of a walk
_AT_ONCE = 1 << 15  # rows: to put a few into columns takes as long as to put many


class PlainRows:
    """Collects walks of one folio at one address each; ``close`` gives their rows to ``made``, in that order."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self._open()

    def _open(self) -> None:
        # of each walk: rows, where its tree begins in the numbers, PFN of its folio and of its source (or _TRIED), page
        self._walks = array("Q")
        self._rows = 0
        self._pieces = array("I")  # how many rows, at which row of the timeline, behind it or not
        self._trees: dict[Calm, int] = {}
        self._vmas, self._mms = array("Q"), array("Q")  # numbers of each tree's, one tree behind the other

    def try_walk(self, head: int, page: int, tree: Calm, hits: tuple[int, ...], rows: Sequence[int]) -> None:
        """One that ended with the last entry; ``rows`` are those of the ``hits``."""
        n = hits[-1] + 2
        self._rows += n
        self._walks.extend((n, self._place(tree), head, _TRIED, page))
        self._before(hits, rows)

    def remove_walk(
        self, heads: tuple[int, int], page: int, tree: Calm, hits: tuple[int, ...], rows: Sequence[int]
    ) -> None:
        """One that went through the whole tree; ``heads``: of its folio and of its source."""
        n = len(tree.vmas)
        self._rows += n
        self._walks.extend((n, self._place(tree), *heads, page))
        self._before(hits, rows)
        if n > hits[-1] + 2:
            self._pieces.extend((n - hits[-1] - 2, rows[-1], 1))

    def _place(self, tree: Calm) -> int:
        place = self._trees.get(tree)
        if place is None:
            place = self._trees[tree] = len(self._vmas)
            self._vmas.extend(tree.vmas)
            self._mms.extend(tree.mms)
        return place

    def _before(self, hits: tuple[int, ...], rows: Sequence[int]) -> None:
        self._pieces.extend((hits[0] + 2, rows[0], 0))
        for i in range(1, len(hits)):
            self._pieces.extend((hits[i] - hits[i - 1], rows[i], 0))

    def settle(self) -> None:
        """Close if there are many."""
        if self._rows >= _AT_ONCE:
            self.close()

    def close(self) -> None:
        """Give the rows."""
        if not self._rows:
            return
        counts, places, head, source, page = np.frombuffer(self._walks, np.uint64).reshape(-1, _FIELDS).T
        counts = counts.astype(np.int64)
        entries = np.cumsum(counts) - counts
        pieces, rows, after = np.frombuffer(self._pieces, np.uint32).reshape(-1, 3).T
        tried = source == _TRIED
        kind = np.repeat(np.where(tried, np.uint8(Kind.TRY_VISIT), np.uint8(Kind.REMOVE_VISIT)), counts)
        kind[entries] = np.where(tried, Kind.TRY, Kind.REMOVE)
        addr, src = np.repeat(page << 12, counts), np.zeros(self._rows, np.uint64)
        addr[entries] = 0
        src[entries] = np.where(tried, 0, folio_name(source))
        named = np.arange(self._rows) + np.repeat(places.astype(np.int64) - entries, counts)
        self._give("row", np.repeat(rows, pieces))
        self._give("after", np.repeat(after, pieces))
        self._give("kind", kind)
        self._give("sure", np.ones(self._rows))
        self._give("folio", np.repeat(folio_name(head), counts))
        self._give("src", src)
        vma, mm = (np.frombuffer(numbers, np.uint64)[named] for numbers in (self._vmas, self._mms))
        self._give("vma", np.where(vma > 0, vma_name(vma), 0))
        self._give("mm", np.where(mm > 0, mm_name(mm), 0))
        self._give("addr", addr)
        self._open()

    def _give(self, name: str, values: npt.NDArray[np.generic]) -> None:
        column = self.made.columns[name]
        column.frombytes(values.astype(column.typecode).tobytes())
