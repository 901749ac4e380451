"""A walk's entries, one after the other, laid onto the VMAs of a tree."""

from collections import Counter
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class Holds(IntEnum):
    """Whether a VMA has an entry of the folio, by what the trace shows of its faults, forks and zaps."""

    NO = 0
    MAYBE = 1
    YES = 2


class Hits(NamedTuple):
    """Which VMA of the tree each entry was in.

    Attributes:
        member: of each entry, rising; -1: in none.
        sure: False where other VMAs would have explained the entries as well.
    """

    member: list[int]
    sure: bool


def lay(
    pages: list[int], state: Sequence[Holds], entries: list[int], likely: int = -1, *, copies: bool = False
) -> Hits:
    """Lay ``entries`` onto the VMAs of a tree.

    Certain is what leaves no choice: at each address as many entries as VMAs that surely have one, or as those and all
    that may, or as there are VMAs at all.

    Args:
        pages: of each VMA, in tree order, where the folio stands in it.
        state: of each.
        entries: pages of the entries in the order of the events, one per VMA.
        likely: the VMA to choose first among those that may have one.
        copies: whether each that may have one got it by a fork, and lacks it only if it has written since. Then no
            one is more likely than another to lack it, and the last that has it is taken to stand where it stands on
            average: the number of visits comes out right in the mean. Of a file's pages nothing says who has read
            them; the first are taken, as few visits as there can be.
    """
    if pages == entries:
        return Hits(list(range(len(pages))), sure=True)
    chosen, sure = [], True
    for page, number in Counter(entries).items():
        there = [i for i, at in enumerate(pages) if at == page]
        surely = [i for i in there if state[i] == Holds.YES]
        maybe = [i for i in there if state[i] == Holds.MAYBE]
        sure &= number in (len(surely), len(surely) + len(maybe), len(there))
        if likely in maybe:
            maybe.remove(likely)
            surely.append(likely)
        wanted = number - len(surely)
        if copies and 0 < wanted < len(maybe):
            last = round(wanted * (len(maybe) + 1) / (wanted + 1)) - 1
            maybe = [*maybe[: wanted - 1], maybe[last]]
        ranked = surely + maybe
        if number > len(ranked):
            ranked += [i for i in there if state[i] == Holds.NO]
        chosen += ranked[:number]
    member = _in_order(pages, sorted(chosen), entries)
    return Hits(member, sure and -1 not in member)


def _in_order(pages: list[int], chosen: list[int], entries: list[int]) -> list[int]:
    """An entry that none of the ``chosen`` explains in its turn stays without a VMA."""
    result, at = [], 0
    for page in entries:
        if at < len(chosen) and pages[chosen[at]] == page:
            result.append(chosen[at])
            at += 1
        else:
            result.append(-1)
    return result
