"""Whose a page may be, where nothing says whose memory is moved: of who wrote there, or has something near."""

from bisect import bisect_right, insort
from collections.abc import Iterator

from tracekit.machine.reconstruct.state import Space

_NEAR = 16  # mappings on either side that are looked at


class Whose:
    """Attributes.

    indexed: whether it is noted who writes where.
    """

    def __init__(self, *, indexed: bool) -> None:
        self.indexed = indexed
        self._writers: dict[int, dict[Space, None]] = {}  # by page
        self._places: list[tuple[int, int, Space]] = []  # page, number of the space: of images and libraries, in order

    def wrote(self, space: Space, page: int) -> None:
        """``space`` wrote at ``page``."""
        if self.indexed:
            self._writers.setdefault(page, {})[space] = None

    def left(self, space: Space) -> None:
        """``space`` is no more."""
        for page in space.own if self.indexed else ():
            self._writers.get(page, {}).pop(space, None)

    def mapped(self, space: Space, page: int) -> None:
        """An image or a library begins at ``page``."""
        insort(self._places, (page, space.number, space))

    def became(self, space: Space, other: Space) -> None:
        """What was taken for ``space`` is ``other``."""
        self._places = [(page, number, other if one is space else one) for page, number, one in self._places]

    def near(self, page: int) -> list[Space]:
        """The spaces whose image, or a library of it, lies closest to ``page``."""
        i = bisect_right(self._places, page, key=lambda place: place[0])
        around = [place for place in self._places[max(i - _NEAR, 0) : i + _NEAR] if place[2].users > 0]
        if not around:
            return []
        closest = min(abs(place[0] - page) for place in around)
        return list({space.number: space for at, _, space in around if abs(at - page) == closest}.values())

    def writers(self, page: int, order: int) -> Iterator[Space]:
        """The spaces that wrote at ``page``, or at another page of its large folio."""
        first = page >> order << order
        seen: set[int] = set()
        for one in range(first, first + (1 << order)):
            for space in self._writers.get(one, ()):
                if space.users > 0 and space.number not in seen:
                    seen.add(space.number)
                    yield space

    def forget(self) -> None:
        """Let go of who wrote where."""
        self._writers.clear()
