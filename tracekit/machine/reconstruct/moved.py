"""Where folios were moved to."""

from array import array
from collections.abc import Iterable, Sequence

from tracekit.machine.reconstruct.folios import Found
from tracekit.machine.reconstruct.state import Folio


class Moved:
    """PFN → the folio that was moved there.

    Blocks are noted down only: few traces have walks that must be told by where their folio was moved before.
    """

    def __init__(self) -> None:
        self._found: dict[int, Found] = {}
        self._new: list[tuple[Sequence[int], list[Folio], Sequence[int]]] = []

    def get(self, pfn: int) -> Found | None:
        """The latest that came to ``pfn``."""
        self._look()
        return self._found.get(pfn)

    def put(self, pfn: int, found: Found) -> None:
        """It came to ``pfn``."""
        self._look()
        self._found[pfn] = found

    def put_all(self, pfns: list[int], folios: list[Folio], pgoffs: list[int]) -> None:
        """One came to each of ``pfns``."""
        self._new.append((array("q", pfns), folios, array("q", pgoffs)))

    def _look(self) -> None:
        for block in self._new:
            self._found.update(_each(*block))
        self._new = []


def _each(pfns: Sequence[int], folios: list[Folio], pgoffs: Sequence[int]) -> Iterable[tuple[int, Found]]:
    return ((pfn, Found(folio, pgoff)) for pfn, folio, pgoff in zip(pfns, folios, pgoffs, strict=True))
