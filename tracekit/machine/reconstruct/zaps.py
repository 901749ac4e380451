"""Ranges of pages that one address space lost: munmap, MADV_DONTNEED, MAP_FIXED over what was there."""

from bisect import bisect_left, bisect_right


class Zaps:
    """When each page was zapped, kept by stretches of pages: a process may unmap and map anew without end."""

    __slots__ = ("_events", "_starts")

    def __init__(self) -> None:
        self._starts = [0]
        self._events: list[tuple[int, ...]] = [()]  # of the stretch that starts there, oldest first

    def __bool__(self) -> bool:
        return len(self._starts) > 1

    def note(self, now: int, start: int, end: int, asked: tuple[int, int] | None) -> None:
        """Pages start..end are zapped at event ``now``; of ``asked``, see ``spaces._asked_for``."""
        first, behind = self._cut(start), self._cut(end)
        if asked is None:
            self._starts[first:behind], self._events[first:behind] = [start], [(now,)]
            return
        for i in range(first, behind):
            older = self._events[i]
            last = len(older) - (bool(older) and older[-1] > asked[1])
            self._events[i] = (*older[max(bisect_right(older, asked[0]) - 1, 0) : last], now)

    def any_in(self, pages: range) -> bool:
        """Whether any of ``pages`` was ever zapped."""
        first, behind = bisect_right(self._starts, pages.start) - 1, bisect_left(self._starts, pages.stop)
        return any(self._events[first:behind])

    def last(self, page: int, before: int) -> int:
        """The last event, at or before ``before``, that zapped ``page``; -1: none."""
        events = self._events[bisect_right(self._starts, page) - 1]
        i = bisect_right(events, before)
        return events[i - 1] if i else -1

    def _cut(self, page: int) -> int:
        """Have a stretch start at ``page``; returns which."""
        i = bisect_left(self._starts, page)
        if i == len(self._starts) or self._starts[i] != page:
            self._starts.insert(i, page)
            self._events.insert(i, self._events[i - 1])
        return i
