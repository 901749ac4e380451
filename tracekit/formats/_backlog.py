"""Columns of few events are put by over several windows until there are many of a kind.

A batch costs half a millisecond, however few rows it has. Of 12 million samples of 75 events in windows of 24 MB, 2,700
batches; put by, 250: a fifth of all CPU. Of 175 kinds of events in windows of 16 MB, half of it.
"""

import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, Protocol, TypeVar

BATCH_BYTES = 12 << 20
BUDGET_BYTES = 48 << 20
"""Of all that is put by; beyond that the largest go out."""


class Columns(Protocol):
    """What is put by."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""


Key = TypeVar("Key", bound=Hashable)
Part = TypeVar("Part", bound=Columns)
Task = Callable[[], None]


class _Pile(Generic[Part]):
    """What was put by of one kind."""

    def __init__(self) -> None:
        self.writing = threading.Lock()
        self.parts: list[Part] = []
        self.nbytes = 0
        self.due = False  # whether it was said to be many


class Backlog(Generic[Key, Part]):
    """What was put by of all kinds; ``write`` gets what goes out, of a kind one call at a time.

    ``keeps_last``: all parts but the last go out while more may come: rows that come late are seldom more than one part
    late.
    """

    def __init__(self, write: Callable[[Key, list[Part]], None], *, keeps_last: bool = False) -> None:
        self.write = write
        self.keeps_last = keeps_last
        self._piles: dict[Key, _Pile[Part]] = {}
        self._lock = threading.Lock()

    def put(self, key: Key, part: Part) -> Task | None:
        """Put ``part`` by, from any thread; returns what is to be done once there are many."""
        with self._lock:
            pile = self._piles.setdefault(key, _Pile())
            pile.parts.append(part)
            pile.nbytes += part.nbytes
            if pile.due or pile.nbytes < BATCH_BYTES:
                return None
            pile.due = True
        return partial(self._take, key, more=True)

    def _take(self, key: Key, *, more: bool) -> None:
        pile = self._piles[key]
        with pile.writing:  # what comes first is written first
            with self._lock:
                kept = pile.parts[-1:] if more and self.keeps_last and len(pile.parts) > 1 else []
                parts = pile.parts[: len(pile.parts) - len(kept)]
                pile.parts, pile.nbytes, pile.due = kept, sum(part.nbytes for part in kept), False
            if parts:
                self.write(key, parts)

    def excess(self) -> list[Task]:
        """What is to be done, in any order, to stay within the memory."""
        with self._lock:
            sizes = {key: pile.nbytes for key, pile in self._piles.items()}
        total = sum(sizes.values())
        found: list[Task] = []
        if total <= BUDGET_BYTES:
            return found
        for key in sorted(sizes, key=lambda key: -sizes[key]):
            found.append(partial(self._take, key, more=True))
            total -= sizes[key]
            if total <= BUDGET_BYTES // 2:
                break
        return found

    def rest(self) -> list[Task]:
        """What is to be done at the end, in any order; the largest first."""
        keys = sorted(self._piles, key=lambda key: -self._piles[key].nbytes)
        return [partial(self._take, key, more=False) for key in keys]
