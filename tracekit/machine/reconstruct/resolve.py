"""A walk's entries and the state → the VMAs it visited, and whether it can have been no others."""

from typing import NamedTuple

from tracekit.machine.reconstruct.folios import maps
from tracekit.machine.reconstruct.match import Hits, lay
from tracekit.machine.reconstruct.state import Space, Vma
from tracekit.machine.reconstruct.walk import Walk


class Resolved(NamedTuple):
    """Attributes.

    visited: VMAs in tree order.
    member: of each run of entries, the place of its VMA in ``visited``; -1: in none.
    why: what leaves alternatives; empty: nothing.
    """

    visited: list[Vma]
    member: list[int]
    why: str


def resolve_try(walk: Walk, space: Space | None, epoch: int) -> Resolved:
    """The visits of a try_to_migrate() walk: it ends where the folio is not mapped any more (folio_not_mapped)."""
    found, runs = walk.found, walk.runs()
    if found is None:
        return Resolved([], [-1] * len(runs), "folio not known")
    tree = walk.tree()
    firm = [vma for vma in tree if not vma.space.tentative]
    members, hits = firm, _lay_try(walk, firm, space)
    if not hits.sure and len(firm) < len(tree):
        other = _lay_try(walk, tree, space)
        members, hits = (tree, other) if other.sure else (firm, hits)
    visited = members[: max(hits.member, default=-1) + 1]
    walk.hit = {members[i] for i in hits.member if i >= 0}
    if found.why:
        why = found.why
    elif not found.folio.sure:
        why = "origin of the folio not seen"
    else:
        why = _unsettled(walk, visited, epoch) or ("" if hits.sure else "which VMAs map it not seen")
    return Resolved(visited, hits.member, why)


def _lay_try(walk: Walk, members: list[Vma], space: Space | None) -> Hits:
    found = walk.found
    assert found is not None
    bases, wanted = walk.bases(members), [run.base for run in walk.runs()]
    expected = [maps(found, vma, walk.order) for vma in members]
    must = next((i for i, vma in enumerate(members) if vma.space is space), -1)
    hits = lay(bases, expected, wanted, must)
    if not hits.sure and any(vma.space.dying <= walk.until for vma in members):
        left = [yes and vma.space.dying > walk.until for yes, vma in zip(expected, members, strict=True)]
        other = lay(bases, left, wanted, must)
        return other if other.sure else hits
    return hits


def resolve_remove(walk: Walk, epoch: int) -> Resolved:
    """The visits of a remove_migration_ptes() walk: every VMA of the tree, whatever it holds."""
    source, wanted = walk.source, [run.base for run in walk.runs()]
    assert source is not None
    if source.found is None:
        return Resolved([], [-1] * len(wanted), "folio not known")
    chosen, hits = walk.members, Hits([-1] * len(wanted), sure=False)
    for members, expected in _ways(source, walk.members, walk.until):
        hits = lay(walk.bases(members), expected, wanted, -1)
        chosen = members
        if hits.sure:
            break
    why = _unsettled(walk, walk.members, epoch)
    if not why and not hits.sure:
        why = "which VMAs hold entries not seen"
    if not why and not source.sure:
        why = "its try walk is not certain"
    return Resolved(chosen, hits.member, why)


def _unsettled(walk: Walk, members: list[Vma], epoch: int) -> str:
    """Whether the tree may have been another: a fork or an exit is under way, or events were lost."""
    if any(vma.space.tentative or vma.space.dying <= walk.until for vma in members):
        return "fork or exit under way"
    return "events were lost" if any(vma.space.epoch != epoch for vma in members) else ""


def _ways(source: Walk, members: list[Vma], until: int) -> list[tuple[list[Vma], list[bool]]]:
    """Ways in which forks and exits may have gone since the entries were set, likelier first: VMAs; which hold one."""
    spaces = {vma.space for vma in source.hit}

    def holds(vma: Vma) -> bool:
        return vma in source.hit or (vma.space.parent in spaces and vma.space.born >= source.when)

    firm = [vma for vma in members if not vma.space.tentative]
    ways = [(firm, [holds(vma) for vma in firm])]
    if any(vma.space.dying <= until for vma in firm):
        ways.append((firm, [holds(vma) and vma.space.dying > until for vma in firm]))
    if len(firm) < len(members):
        ways.append((members, [holds(vma) or (vma.space.tentative and vma.space.parent in spaces) for vma in members]))
    return ways
