"""The rows that a walk puts into the timeline: its entry, and each visit next to what it set or restored."""

from typing import NamedTuple

from tracekit.machine.reconstruct.state import Vma
from tracekit.machine.reconstruct.walk import Walk
from tracekit.machine.timeline import Kind

# Names that look like the pointers they stand for, so that readers of the table are not misled by small numbers
FOLIO, MM, VMA = 0xFFFF_EA00_0000_0000, 0xFFFF_8880_0000_0000, 0xFFFF_C900_0000_0000


class Made(NamedTuple):
    """A row that no record shows: it comes right before (``place`` odd) or after row ``place // 2`` of the timeline."""

    place: int
    row: int
    kind: int
    folio: int
    src: int | None
    vma: int | None
    mm: int | None
    addr: int | None
    sure: bool


def of_walk(walk: Walk, visited: list[Vma], member: list[int]) -> list[Made]:
    """Rows of ``walk``, which visited ``visited``; ``member`` says in which of them each run of entries was."""
    runs, source = walk.runs(), walk.source
    entry, visit = (Kind.TRY, Kind.TRY_VISIT) if source is None else (Kind.REMOVE, Kind.REMOVE_VISIT)
    folio = FOLIO + 64 * walk.head
    src = None if source is None else FOLIO + 64 * source.head
    row = runs[0].row
    made = [Made(2 * row - 1, row, entry, folio, src, None, None, None, walk.sure)]
    at = 0
    for run, i in zip(runs, member, strict=True):
        place = 2 * run.row - 1
        made += _visits(walk, visited[at : i + 1], visit, place, run.row)
        if i < 0:  # no VMA explains it: it was in one that is not known
            made.append(Made(place, run.row, visit, folio, None, VMA + run.row, None, run.page << 12, sure=False))
        at = max(at, i + 1)
    last = walk.entries[-1][0]
    return made + _visits(walk, visited[at:], visit, 2 * last + 1, last)


def of_nothing(source: Walk, row: int) -> list[Made]:
    """Rows of a remove walk that found no entry left; it came somewhere before ``row``."""
    folio, place = FOLIO + 64 * source.head, 2 * row - 1
    made = [Made(place, row, Kind.REMOVE, folio + 1, folio, None, None, None, sure=False)]
    visits = _visits(source, source.tree(), Kind.REMOVE_VISIT, place, row)
    return made + [visit._replace(folio=folio + 1, sure=False) for visit in visits]


def of_empty_part(part: Walk, row: int, *, after: bool) -> list[Made]:
    """Rows of the remove walk of a part of a split folio in which nothing was mapped, before or after ``row``."""
    place = 2 * row + (1 if after else -1)
    assert part.source is not None
    head, source = FOLIO + 64 * part.head, FOLIO + 64 * part.source.head
    entry = Made(place, row, Kind.REMOVE, head, source, None, None, None, part.sure)
    return [entry, *_visits(part, part.tree(), Kind.REMOVE_VISIT, place, row)]


def _visits(walk: Walk, visited: list[Vma], kind: Kind, place: int, row: int) -> list[Made]:
    if not visited:
        return []
    folio, pgoff, sure = FOLIO + 64 * walk.head, walk.pgoff(), walk.sure
    return [
        Made(
            place,
            row,
            kind,
            folio,
            None,
            VMA + (vma.number << 8),
            MM + (vma.space.number << 12),
            vma.page(pgoff) << 12,
            sure,
        )
        for vma in visited
    ]
