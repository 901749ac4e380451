"""The mmu_gather: when what zap hands over to be freed fills it, and the TLB has to be flushed before it goes on.

include/asm-generic/tlb.h, mm/mmu_gather.c: 8 slots of its own, then up to 19 pages of 510. Old rule: full at the last
slot. New rule, 6.9: at the last but one, for a range of pages takes two (MODEL.md A.0).
"""

from typing import NamedTuple

import numpy as np

from tracekit.policies import Ints

BUNDLES = (8, *(19 * [510]))
OLD_CAPACITY = sum(BUNDLES)  # pages
# By the new rule, of single pages; of ranges, which may fill the last slot of a bundle, it takes more slots
LEAST_CAPACITY = BUNDLES[0] - 1 + (len(BUNDLES) - 1) * (BUNDLES[1] - 1)


class Full(NamedTuple):
    """Where the mmu_gather is full: place of the removal that fills it, and how many slots of it were taken by then."""

    place: Ints
    offset: Ints


def fills(seq: Ints, slots: Ints, *, by_range: bool) -> Full:
    """Where the mmu_gather is full.

    Args:
        seq: int64[n], which mmu_gather each removal hands its pages to; ascending.
        slots: int64[n], how many each takes; ``by_range``: 2 for a range, else one per page.
        by_range: the new rule.
    """
    first = np.flatnonzero(np.diff(seq, prepend=-1))
    per_seq = np.add.reduceat(slots, first) if len(first) else slots
    long = np.isin(seq, seq[first[per_seq >= LEAST_CAPACITY]]) if (per_seq >= LEAST_CAPACITY).any() else None
    if long is None:
        return Full(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    place = np.flatnonzero(long)
    found = (_by_range if by_range else _by_page)(seq[place], slots[place])
    return Full(place[found.place], found.offset)


def _by_page(seq: Ints, slots: Ints) -> Full:
    total = np.cumsum(slots)
    first = np.flatnonzero(np.diff(seq, prepend=-1))
    base = np.repeat(np.append(0, total[first[1:] - 1])[: len(first)], np.diff(np.append(first, len(seq))))
    before = (total - base - slots) // OLD_CAPACITY
    place = np.flatnonzero((total - base) // OLD_CAPACITY > before)
    return Full(place, (before[place] + 1) * OLD_CAPACITY - (total - base - slots)[place])


def _by_range(seq: Ints, slots: Ints) -> Full:
    """Slot by slot."""
    found, seq_before, bundle, used = [], -1, 0, 0
    for place, (of, taken) in enumerate(zip(seq.tolist(), slots.tolist(), strict=True)):
        if of != seq_before:
            seq_before, bundle, used = of, 0, 0
        used += taken
        if used >= BUNDLES[bundle] - 1:
            bundle, used = bundle + 1, 0
        if bundle == len(BUNDLES):
            found.append(place)
            bundle = 0
    at = np.array(found, dtype=np.int64)
    return Full(at, slots[at])
