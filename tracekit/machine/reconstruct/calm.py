"""Trees in which nothing is open, so that all walks of a block through one of them are alike."""

from tracekit.machine.reconstruct.machine import Life
from tracekit.machine.reconstruct.spaces import folio_at
from tracekit.machine.reconstruct.state import EVERYWHERE, Folio, Space
from tracekit.machine.reconstruct.tree import Tree
from tracekit.machine.reconstruct.vma import Vma


class Calm:
    """What all walks through a tree share until something other than a fault or an entry happens.

    Of a VMA that is alone in its tree but for the copies that forks have still to make of it, these are not made for
    that: most are never asked for, and go with their process.

    Attributes:
        when, stirred: ``Life.now`` and ``Life.stirred`` as it was found out.
        spaces: those of its VMAs in order.
        own: what each of these put at its pages.
        usual: whether each has every page of the tree at the same address, none is of an image, being forked, dying or
            of before a loss, and no zap is to be minded: then a walk leaves open only who holds the page.
        vmas, mms: their numbers, behind a 0 for the walk itself.
    """

    __slots__ = ("_members", "_tree", "mms", "own", "spaces", "stirred", "usual", "vmas", "when")

    def __init__(self, tree: Tree, life: Life) -> None:
        self._tree, self.when, self.stirred = tree, life.now, life.stirred
        self._members: list[Vma] | None = None
        first, copies = tree.first(), None
        if len(tree) == 1:
            heirs = first.heirs()
            copies = [heir.due(first) for heir in heirs]
        if copies is not None and all(copies):
            self.spaces, self.vmas = [first.space, *heirs], [0, first.number, *copies]
            alike = not first.holes and first is not first.space.rest
        else:
            members = self.members()
            self.spaces, self.vmas = [vma.space for vma in members], [0, *(vma.number for vma in members)]
            alike = _alike(members)
        self.own = [space.own for space in self.spaces]
        self.mms = [0, *(space.number for space in self.spaces)]
        self.usual = alike and not tree.doubt and _quiet(self.spaces, life)

    def members(self) -> list[Vma]:
        """Its VMAs in order, as they were: to be asked before anything but an entry happens, or not at all."""
        if self._members is None:
            self._members = self._tree.every()
        return self._members

    def holds(self, life: Life) -> bool:
        """Whether it does still."""
        if self._members is None:
            return self.when >= life.alone
        return self.stirred == life.stirred and self._members is self._tree.every()


def calm(tree: Tree, life: Life) -> Calm | None:
    """What walks through ``tree`` share now; None where they may differ."""
    known = tree.calm
    if known is None or not known.holds(life):
        known = tree.calm = Calm(tree, life)
    return known if known.usual else None


def _alike(members: list[Vma]) -> bool:
    first = members[0]
    start, end, pgoff = first.start, first.end, first.pgoff
    return all(
        vma.start == start and vma.end == end and vma.pgoff == pgoff and not vma.holes and vma is not vma.space.rest
        for vma in members
    )


def _quiet(spaces: list[Space], life: Life) -> bool:
    now, epoch = life.now, life.epoch
    return all(
        space.born <= now and space.dying == EVERYWHERE and space.epoch == epoch and not space.zaps for space in spaces
    )


def in_doubt(tree: Calm, target: Space) -> set[int]:
    """Pages at which one of its spaces may have a fault under way, but for ``target``, whose memory is being moved."""
    return {page for space in tree.spaces if space.faulting and space is not target for page in space.faulting.values()}


def holders(tree: Calm, page: int, folio: Folio) -> tuple[int, ...] | None:
    """Which of its spaces map ``folio`` at ``page``, as ``folios.states`` has it; None where that is not certain."""
    found: list[int] = []
    for i, pages in enumerate(tree.own):
        own = pages.get(page)
        if own is not None:
            if own[-1][1] is folio:
                found.append(i)
        elif (inherited := _inherits(tree.spaces[i], page, folio)) is None:
            return None
        elif inherited:
            found.append(i)
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
