"""Events are put by over several windows, as columns, until there are many of a kind.

A batch costs half a millisecond, however few rows it has. Measured on 175 kinds of events in windows of 16 MB: decoded
window by window, half of all CPU went into overhead.
"""

import threading
from collections.abc import Callable
from functools import partial

from tracekit.formats._trace_dat_batch import Part

BATCH_BYTES = 12 << 20
BUDGET_BYTES = 64 << 20
"""Of all that is put by; beyond that the largest go out."""

Key = tuple[int, bool]
"""common_type, and whether the events have the fields that their format says; if not, they go to another table."""


class _Pile:
    """What was put by of one kind."""

    def __init__(self) -> None:
        self.writing = threading.Lock()
        self.parts: list[Part] = []
        self.nbytes = 0


class Backlog:
    """What was put by of all kinds of one buffer; ``write`` gets what goes out, of a kind one call at a time."""

    def __init__(self, write: Callable[[Key, list[Part]], None]) -> None:
        self.write = write
        self._piles: dict[Key, _Pile] = {}
        self._lock = threading.Lock()

    def put(self, key: Key, part: Part) -> Callable[[], None] | None:
        """Put ``part`` by; returns what is to be done once there are many."""
        with self._lock:
            pile = self._piles.setdefault(key, _Pile())
            before = pile.nbytes
            pile.parts.append(part)
            pile.nbytes += part.nbytes
            return partial(self._take, key) if before < BATCH_BYTES <= pile.nbytes else None

    def _take(self, key: Key) -> None:
        pile = self._piles[key]
        with pile.writing:  # what comes first is written first
            with self._lock:
                parts, pile.parts, pile.nbytes = pile.parts, [], 0
            if parts:
                self.write(key, parts)

    def excess(self) -> list[Callable[[], None]]:
        """What is to be done, in any order, to stay within the memory."""
        with self._lock:
            sizes = {key: pile.nbytes for key, pile in self._piles.items()}
        total = sum(sizes.values())
        found: list[Callable[[], None]] = []
        for key in sorted(sizes, key=lambda key: -sizes[key]):
            if total <= BUDGET_BYTES:
                break
            found.append(partial(self._take, key))
            total -= sizes[key]
        return found

    def rest(self) -> list[Callable[[], None]]:
        """What is to be done at the end, in any order; the largest first."""
        return [partial(self._take, key) for key in sorted(self._piles, key=lambda key: -self._piles[key].nbytes)]
