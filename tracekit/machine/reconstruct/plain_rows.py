"""The rows of many plain walks, put into columns at once."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tracekit.machine.reconstruct.calm import Calm
from tracekit.machine.reconstruct.rows import Made, folio_name
from tracekit.machine.timeline import Kind


class PlainRows:
    """Collects walks of one kind, each of one folio at one address; ``close`` gives their rows to ``made``."""

    def __init__(self, made: Made, entry: Kind, visit: Kind) -> None:
        self.made, self.entry, self.visit = made, entry, visit
        self._vma, self._mm = made.columns["vma"], made.columns["mm"]
        self._counts: list[int] = []  # rows of each walk
        self._folios: list[tuple[int, int, int]] = []  # PFN of each one's folio, that of its source, page
        self._pieces: list[tuple[int, int, int]] = []  # how many rows, at which row of the timeline, behind it or not

    def try_walk(self, head: int, page: int, tree: Calm, hits: tuple[int, ...], rows: Sequence[int]) -> None:
        """One that ended with the last entry; ``rows`` are those of the ``hits``."""
        n = hits[-1] + 2
        self._counts.append(n)
        self._folios.append((head, 0, page))
        self._vma.extend(tree.vmas[:n])
        self._mm.extend(tree.mms[:n])
        self._before(hits, rows)

    def remove_walk(
        self, heads: tuple[int, int], page: int, tree: Calm, hits: tuple[int, ...], rows: Sequence[int]
    ) -> None:
        """One that went through the whole tree; ``heads``: of its folio and of its source."""
        n = len(tree.vmas)
        self._counts.append(n)
        self._folios.append((*heads, page))
        self._vma.extend(tree.vmas)
        self._mm.extend(tree.mms)
        self._before(hits, rows)
        if n > hits[-1] + 2:
            self._pieces.append((n - hits[-1] - 2, rows[-1], 1))

    def _before(self, hits: tuple[int, ...], rows: Sequence[int]) -> None:
        self._pieces.append((hits[0] + 2, rows[0], 0))
        for i in range(1, len(hits)):
            self._pieces.append((hits[i] - hits[i - 1], rows[i], 0))

    def close(self) -> None:
        """No more of them."""
        if not self._counts:
            return
        counts = np.array(self._counts)
        entries = np.cumsum(counts) - counts
        pieces, rows, after = np.array(self._pieces, dtype=np.uint32).T
        head, source, page = np.array(self._folios, dtype=np.uint64).T
        total = int(counts.sum())
        kind, addr, src = np.full(total, self.visit), np.repeat(page << 12, counts), np.zeros(total, np.uint64)
        kind[entries], addr[entries] = self.entry, 0
        if self.entry == Kind.REMOVE:
            src[entries] = folio_name(source)
        self._give("row", np.repeat(rows, pieces))
        self._give("after", np.repeat(after, pieces))
        self._give("kind", kind)
        self._give("sure", np.ones(total))
        self._give("folio", np.repeat(folio_name(head), counts))
        self._give("src", src)
        self._give("addr", addr)

    def _give(self, name: str, values: npt.NDArray[np.generic]) -> None:
        column = self.made.columns[name]
        column.frombytes(values.astype(column.typecode).tobytes())
