"""A walk's entries, one after the other, laid onto the VMAs of a tree."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Hits(NamedTuple):
    """Which VMA of the tree each entry was in.

    Attributes:
        member: of each entry, rising; -1: in none.
        sure: False where other VMAs would have explained the entries as well.
    """

    member: list[int]
    sure: bool


def lay(pages: Sequence[int], expected: Sequence[bool], entries: Sequence[int], must: int) -> Hits:
    """Lay ``entries`` onto the VMAs of a tree.

    Args:
        pages: of each VMA, in tree order, where the folio stands in it.
        expected: of each, whether the state says that it has an entry.
        entries: pages of the entries in the order of the events, one per VMA.
        must: the member that certainly has one; -1: not known.
    """
    likely = [i for i, yes in enumerate(expected) if yes]
    if [pages[i] for i in likely] == list(entries) and (must < 0 or must in likely):
        return Hits(likely, sure=True)
    if list(pages) == list(entries):
        return Hits(list(range(len(pages))), sure=True)
    if len(entries) == 1 and must >= 0 and pages[must] == entries[0]:
        return Hits([must], sure=True)
    wanted = Counter(entries)
    there = Counter(page for page in pages if page in wanted)
    return Hits(_guess(pages, expected, entries, must), sure=there == wanted)


def _guess(pages: Sequence[int], expected: Sequence[bool], entries: Sequence[int], must: int) -> list[int]:
    """As many as there are entries: the certain one, then expected ones, then the first."""
    by_page: dict[int, list[int]] = {}
    for i, page in enumerate(pages):
        by_page.setdefault(page, []).append(i)
    wanted: dict[int, int] = {}
    for page in entries:
        wanted[page] = wanted.get(page, 0) + 1
    chosen: list[int] = []
    for page, number in wanted.items():
        some = sorted(by_page.get(page, []), key=lambda i: (i != must, not expected[i], i))
        chosen += some[:number]
    chosen.sort()
    # an entry that no VMA explains stays without a visit
    result, at = [], 0
    for page in entries:
        if at < len(chosen) and pages[chosen[at]] == page:
            result.append(chosen[at])
            at += 1
        else:
            result.append(-1)
    return result
