"""Blocks of walks taken at once, where each is as plain as most are: one folio of its own, in a tree that is calm."""

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from tracekit.machine.reconstruct.blocks import Block
from tracekit.machine.reconstruct.calm import Calm, calm, holders, in_doubt
from tracekit.machine.reconstruct.events import DIRTY
from tracekit.machine.reconstruct.folios import Found
from tracekit.machine.reconstruct.machine import Life
from tracekit.machine.reconstruct.state import Folio, Space
from tracekit.machine.reconstruct.vma import AnonVma, Vma
from tracekit.machine.reconstruct.walk import Walk


class Plain(NamedTuple):
    """A try walk whose entries are all at one address, of a folio that is known for certain, as who maps it is.

    Attributes:
        first, end: which of the block's entries.
        pgoff: of the folio.
        hits: which of the tree's VMAs held an entry.
    """

    first: int
    end: int
    folio: Folio
    pgoff: int
    tree: Calm
    hits: tuple[int, ...]


class Batch:
    """The plain walks at the beginning of a block of sets.

    Attributes:
        when: event of the block's first entry.
        done: how many of the walks were seen to end: those from the first on.
        heads: PFNs.
    """

    def __init__(self, block: Block, walks: list[Plain], when: int, reason: int) -> None:
        self.block, self.walks, self.when, self.reason = block, walks, when, reason
        self.done = 0
        self.heads = {block.pfns[walk.first] for walk in walks}

    def is_new(self, at_pfn: Container[int], others: Iterable["Batch"]) -> bool:
        """Whether each walk is of a folio of its own, and of none that a walk that may still be open took away."""
        taken = (one.heads for one in others)
        return (
            len(self.heads) == len(self.walks)
            and not any(pfn in at_pfn for pfn in self.heads)
            and all(self.heads.isdisjoint(heads) for heads in taken)
        )

    def ends(self, block: Block, first: int, end: int, life: Life) -> Plain | None:
        """The next walk of those not done, if entries first..end of a block of restores are all that it set."""
        if self.done >= len(self.walks):
            return None
        one = self.walks[self.done]
        page = self.block.pages[one.first]
        if block.pages[first] != page or end - first != one.end - one.first:
            return None
        if end - first > 1 and block.pages[first:end] != [page] * (end - first):
            return None
        if life.alone < self.when:  # nothing happened but entries
            return one
        tree = calm(one.folio.mapping.tree, life)
        return one if tree is not None and tree.members() is one.tree.members() else None

    def settle(self) -> None:
        """See whose VMAs those that are not done met, before anything but an entry happens."""
        for plain in self.walks[self.done :]:
            plain.tree.members()

    def rest(self) -> Iterator[Walk]:
        """Those that are not done, each by itself."""
        for plain in self.walks[self.done :]:
            yield self._walk(plain)

    def _walk(self, plain: Plain) -> Walk:
        block, first = self.block, plain.first
        walk = Walk(block.pfns[first], 0, self.when + first)
        walk.until, walk.reason = self.when + plain.end - 1, self.reason
        walk.types = list(block.types[first : plain.end])
        walk.entries = [(block.rows[i], block.pages[i], block.pfns[i], 1) for i in range(first, plain.end)]
        walk.found, walk.sure = Found(plain.folio, plain.pgoff), True
        walk.hit = {plain.tree.members()[i]: run for i, run in zip(plain.hits, walk.runs(), strict=True)}
        return walk


class Planner:
    """Finds the plain ones among the try walks of a block that moves memory of ``target``."""

    def __init__(self, life: Life, target: Space, read_type: int | None) -> None:
        self.life, self.target, self.read_type = life, target, read_type

    def plain(self, block: Block) -> list[Plain]:
        """The walks from the first on that are; behind them comes one that needs ``identify`` and ``resolve``."""
        walks: list[Plain] = []
        target, pages, own = self.target, block.pages, self.target.own
        start = end = shift = 0  # of ``vma``, and what makes page offsets of its pages
        vma: Vma | None = None
        mapping: object = None
        tree: Calm | None = None
        doubt: set[int] = set()
        for first, last in zip(block.starts, block.starts[1:], strict=False):
            page = pages[first]
            written = own.get(page)
            folio = written[-1][1] if written else None
            if folio is None or not self._fits(folio, block.types[first]):
                break
            if not start <= page < end:
                vma, mapping = target.at(page), None
                if vma is None:
                    break
                start, end, shift = vma.start, vma.end, vma.pgoff - vma.start
            if folio.mapping is not mapping:
                mapping, tree = folio.mapping, self._tree(folio, vma)
                doubt = in_doubt(tree, target) if tree is not None else set()
            if tree is None or page in doubt or (last - first > 1 and pages[first:last] != [page] * (last - first)):
                break
            hits = holders(tree, page, folio)
            if hits is None or len(hits) != last - first:
                break
            walks.append(Plain(first, last, folio, page + shift, tree, hits))
        return walks

    def _fits(self, folio: Folio, entry_type: int) -> bool:
        """Whether the entry says nothing against it (``folios.find``)."""
        if not folio.sure:
            return False
        if self.read_type is None:
            return True
        if entry_type % DIRTY > self.read_type:
            return folio.origin is self.target or folio.origin is None
        return folio.origin is not self.target or folio.since <= self.target.forked

    def _tree(self, folio: Folio, vma: Vma | None) -> Calm | None:
        """The tree of ``folio``, if it is calm and ``vma`` is in it."""
        mapping = folio.mapping
        if vma is None or not isinstance(mapping, AnonVma) or mapping not in vma.chain:
            return None
        return calm(mapping.tree, self.life)
