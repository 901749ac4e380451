"""The mmu_gather: when what zap hands over to be freed fills it, and the TLB has to be flushed before it goes on.

include/asm-generic/tlb.h, mm/mmu_gather.c: 8 slots of its own, then up to 19 pages of 510. Old rule: full at the last
slot. New rule, 6.9: at the last but one, for a range of pages takes two (MODEL.md A.0).
"""

from typing import NamedTuple

import numpy as np

from tracekit.policies import Ints

BUNDLES = (8, *(19 * [510]))
OLD_CAPACITY = sum(BUNDLES)  # pages


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
    total = np.cumsum(slots)
    first = np.flatnonzero(np.diff(seq, prepend=-1))
    base = np.repeat(np.append(0, total[first[1:] - 1])[: len(first)], np.diff(np.append(first, len(seq))))
    if by_range:
        return _by_range(seq, slots, total - base)
    after, before = (total - base) // OLD_CAPACITY, (total - base - slots) // OLD_CAPACITY
    place = np.flatnonzero(after > before)
    return Full(place, (before[place] + 1) * OLD_CAPACITY - (total - base - slots)[place])


def _by_range(seq: Ints, slots: Ints, total: Ints) -> Full:
    """Slot by slot, for those few that come near to the end."""
    least = BUNDLES[0] - 1 + (len(BUNDLES) - 1) * (BUNDLES[1] - 1)
    long = np.flatnonzero(np.isin(seq, np.unique(seq[total >= least])))
    found, seq_before, bundle, used = [], -1, 0, 0
    for place, of, taken in zip(long.tolist(), seq[long].tolist(), slots[long].tolist(), strict=True):
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
