"""A walk's entries and the state → the VMAs it visited, and whether it can have been no others."""

from collections.abc import Iterable
from typing import NamedTuple

from tracekit.machine.reconstruct.folios import states
from tracekit.machine.reconstruct.identify import Identity
from tracekit.machine.reconstruct.large import cut
from tracekit.machine.reconstruct.machine import Life
from tracekit.machine.reconstruct.match import Hits, Holds, lay
from tracekit.machine.reconstruct.state import EVERYWHERE, Space
from tracekit.machine.reconstruct.vma import File, Vma
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


def resolve_try(walk: Walk, identity: Identity, life: Life) -> Resolved:
    """The visits of a try_to_migrate() walk: it ends where the folio is not mapped any more (folio_not_mapped)."""
    found = walk.found
    if found is None:
        return Resolved([], [-1] * len(walk.runs()), "folio not known")
    tree = [vma for vma in walk.tree() if vma.space.begun < walk.when]  # the walk held the lock since
    firm = [vma for vma in tree if not _forking(vma, walk)]
    members, hits = firm, _lay_try(walk, identity, firm, life)
    if not hits.sure and len(firm) < len(tree):
        other = _lay_try(walk, identity, tree, life)
        members, hits = (tree, other) if other.sure else (firm, hits)
    visited = members[: max(hits.member, default=-1) + 1]
    walk.hit = {members[i]: run for run, i in zip(walk.runs(), hits.member, strict=True) if i >= 0}
    _prove(walk.hit, sure=hits.sure)
    if found.why:
        why = found.why
    elif not found.folio.sure:
        why = "origin of the folio not seen"
    elif isinstance(found.folio.mapping, File) and not found.folio.mapping.sure and life.mapped_files > 1:
        why = "which mappings are of the file not seen"
    else:
        unsettled = _unsettled(walk, tree, visited, life)
        if not unsettled and life.changed >= walk.when:
            unsettled = "fork or exit under way"
        why = unsettled or ("" if hits.sure else "which VMAs map it not seen") or _in_image(tree, life)
    return Resolved(visited, hits.member, why)


def _lay_try(walk: Walk, identity: Identity, members: list[Vma], life: Life) -> Hits:
    found, likely = identity.found, -1
    assert found is not None
    if walk.order and life.faults and found.folio.origin is not None:
        member = cut(walk, found.folio, found.pgoff, members)
        if member is not None:
            return Hits(member, sure=True)
    runs = walk.runs()
    if len(members) == len(runs) == 1:
        return lay(walk.bases(members), [Holds.YES], [runs[0].base])
    state = states(found, members, walk.order, faults=life.faults)
    bases, wanted = walk.bases(members), [run.base for run in runs]
    copies = not isinstance(found.folio.mapping, File)
    for i, vma in enumerate(members):
        unseen = state[i] == Holds.NO and not copies and bases[i] in wanted  # it read the file before the trace
        if vma.space is identity.space and (state[i] == Holds.MAYBE or unseen):
            likely = i  # it is its memory that is being moved
            state[i] = Holds.YES if identity.still else Holds.MAYBE
        elif vma.space.dying <= walk.until and state[i] == Holds.YES:
            state[i] = Holds.MAYBE
    return lay(bases, state, wanted, likely, copies=copies)


def resolve_remove(walk: Walk, life: Life) -> Resolved:
    """The visits of a remove_migration_ptes() walk: every VMA of the tree, whatever it holds."""
    source = walk.source
    assert source is not None
    if source.found is None:
        return Resolved([], [-1] * len(walk.runs()), "folio not known")
    firm = [vma for vma in walk.members if not _forking(vma, walk)]
    for members in (firm, walk.members) if len(firm) < len(walk.members) else (firm,):
        hits = _lay_remove(walk, source, members)
        if hits.sure:
            break
    _prove({members[i] for i in hits.member if i >= 0}, sure=hits.sure)
    why = _unsettled(walk, walk.members, walk.members, life)
    if not why and not hits.sure:
        why = "which VMAs hold entries not seen"
    if not why and not source.sure:
        why = "its try walk is not certain"
    why = why or _in_image(walk.members, life)
    return Resolved(members, hits.member, why)


def _lay_remove(walk: Walk, source: Walk, members: list[Vma]) -> Hits:
    spaces = {vma.space for vma in source.hit}
    state = [_left(vma, walk, source, spaces) for vma in members]
    if walk.order and Holds.MAYBE not in state:
        member = walk.cut(
            [_pages(source, vma, walk) if holds else [] for vma, holds in zip(members, state, strict=True)]
        )
        if member is not None:
            return Hits(member, sure=True)
    return lay(walk.bases(members), state, [run.base for run in walk.runs()])


def _pages(source: Walk, vma: Vma, walk: Walk) -> list[int]:
    """Where ``source`` set entries in ``vma`` that ``walk``, of its folio or a part of it, is to replace."""
    run = source.hit[vma]
    part = range(walk.head, walk.head + (1 << walk.order)) if walk.order < source.order else None
    return [page for _, page, pfn, _ in source.entries[run.first : run.end] if part is None or pfn in part]


def _left(vma: Vma, walk: Walk, source: Walk, spaces: set[Space]) -> Holds:
    """Whether an entry of ``walk``'s pages, set by ``source`` in ``spaces``, or a fork's copy of it, is still there."""
    space, run = vma.space, source.hit.get(vma)
    if run is not None:
        return Holds.NO if not source.set_any(run, walk) else Holds.MAYBE if space.dying <= walk.until else Holds.YES
    if space.born <= source.when or space.parent not in spaces:
        return Holds.NO
    return Holds.MAYBE if space.born > walk.until or space.begun <= source.until else Holds.YES


def _forking(vma: Vma, walk: Walk) -> bool:
    """Whether the fork that makes it had not ended when the walk began, nor is its VMA known to be linked."""
    return vma.space.born > walk.when and vma.start >= vma.space.linked


def _prove(hit: Iterable[Vma], *, sure: bool) -> None:
    """An entry in a VMA of a process that is being forked shows that it is linked, and those before it (dup_mmap)."""
    for vma in hit if sure else ():
        if vma.space.born == EVERYWHERE:
            vma.space.linked = max(vma.space.linked, vma.end)


def _in_image(tree: list[Vma], life: Life) -> str:
    """Whether their order is open: a heap or stack that grows goes to another place, and no event shows that."""
    if len(tree) < 2 or all(vma is not vma.space.rest for vma in tree):
        return ""
    return "which VMA of the image not seen" if life.heap else "brk not recorded"


def _unsettled(walk: Walk, tree: list[Vma], visited: list[Vma], life: Life) -> str:
    """Whether the tree may have been another: events were lost, a fork or an exit is under way."""
    if any(vma.space.epoch != life.epoch for vma in visited):
        return "events were lost"
    source = walk.source or walk
    if source.found is not None and source.found.folio.mapping.tree.doubt:
        return source.found.folio.mapping.tree.doubt
    last = visited[-1] if visited else None
    end = next((i for i, vma in enumerate(tree) if vma is last), -1)
    if any(vma.space.born > walk.when or vma.space.dying <= walk.until for vma in tree[: end + 1]):
        return "fork or exit under way"
    return ""
