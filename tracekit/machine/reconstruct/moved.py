"""Where folios were moved to."""

from array import array

from tracekit.machine.reconstruct.folios import Found
from tracekit.machine.reconstruct.state import Folio


class Moved:
    """PFN → the folio that was moved there.

    They are noted down only: few traces have walks that must be told by where their folio was moved before.
    """

    def __init__(self) -> None:
        self._found: dict[int, Found] = {}
        self._pfns, self._pgoffs = array("q"), array("q")
        self._folios: list[Folio] = []

    def get(self, pfn: int) -> Found | None:
        """The latest that came to ``pfn``."""
        for at, folio, pgoff in zip(self._pfns, self._folios, self._pgoffs, strict=True):
            self._found[at] = Found(folio, pgoff)
        del self._pfns[:], self._folios[:], self._pgoffs[:]
        return self._found.get(pfn)

    def put(self, pfns: list[int], folios: list[Folio], pgoffs: list[int]) -> None:
        """One came to each of ``pfns``."""
        self._pfns.extend(pfns)
        self._folios += folios
        self._pgoffs.extend(pgoffs)
