"""Trees in which nothing is open, so that all walks of a block through one of them are alike."""

from array import array
from collections.abc import Sequence

from tracekit.machine.reconstruct.machine import Life
from tracekit.machine.reconstruct.rows import mm_name, vma_name
from tracekit.machine.reconstruct.spaces import folio_at
from tracekit.machine.reconstruct.state import EVERYWHERE, Folio, Space, Vma
from tracekit.machine.reconstruct.tree import Tree


class Calm:
    """What all walks through a tree share until something other than a fault or an entry happens.

    Attributes:
        members: its VMAs in order.
        spaces: theirs.
        usual: whether each has every page of the tree at the same address, none is of an image, being forked, dying or
            of before a loss, and no zap is to be minded: then a walk leaves open only who holds the page.
        vmas, mms: as the timeline names them, behind a 0 for the walk itself.
    """

    __slots__ = ("members", "mms", "spaces", "stirred", "usual", "vmas")

    def __init__(self, members: list[Vma], life: Life, *, doubted: bool) -> None:
        self.members, self.stirred = members, life.stirred
        self.spaces = [vma.space for vma in members]
        self.usual = not doubted and _alike(members) and all(_quiet(vma, life) for vma in members)
        if self.usual:
            self.vmas = array("Q", [0, *(vma_name(vma) for vma in members)])
            self.mms = array("Q", [0, *(mm_name(space) for space in self.spaces)])


def calm(tree: Tree, life: Life) -> Calm | None:
    """What walks through ``tree`` share now; None where they may differ."""
    known, members = tree.calm, tree.every()
    if known is None or known.members is not members or known.stirred != life.stirred:
        known = tree.calm = Calm(members, life, doubted=bool(tree.doubt))
    return known if known.usual else None


def _alike(members: list[Vma]) -> bool:
    first = members[0]
    place = (first.start, first.end, first.pgoff)
    return all((vma.start, vma.end, vma.pgoff) == place for vma in members)


def _quiet(vma: Vma, life: Life) -> bool:
    space = vma.space
    return (
        space.born <= life.now
        and space.dying == EVERYWHERE
        and space.epoch == life.epoch
        and not space.zaps
        and not vma.holes
        and vma is not space.rest
    )


def holders(spaces: Sequence[Space], page: int, folio: Folio, target: Space) -> tuple[int, ...] | None:
    """Which of ``spaces`` map ``folio`` at ``page``, as ``folios.states`` has it; None where that is not certain.

    ``target`` is known to: it is its memory that is being moved.
    """
    found: list[int] = []
    for i, space in enumerate(spaces):
        own = space.own.get(page)
        if own is not None:
            if own[-1][1] is folio:
                found.append(i)
        elif (inherited := _inherits(space, page, folio)) is None:
            return None
        elif inherited:
            found.append(i)
        if space.faulting and space is not target and page in space.faulting.values():
            return None
    return tuple(found)


def _inherits(space: Space, page: int, folio: Folio) -> bool | None:
    """Whether what ``space`` has at ``page`` from its parent is ``folio``; None: it came there during the fork."""
    parent = space.parent
    if parent is None:
        return False
    had: Folio | None = None
    since_birth = True
    for when, one in parent.own.get(page, ()):
        if when <= space.born:
            if when > space.begun:
                return None
            had, since_birth = one, False
    if since_birth and parent.parent is None:
        return False
    return (since_birth or had is folio) and folio_at(space, page) is folio
