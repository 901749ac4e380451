"""The mmu_gather: when what zap hands over to be freed fills it, and the TLB has to be flushed before it goes on.

include/asm-generic/tlb.h, mm/mmu_gather.c: 8 slots of its own, then up to 19 pages of 510. Old rule: full at the last
slot. New rule, 6.9: at the last but one, for a range of pages takes two (MODEL.md A.0).
"""

import polars as pl

BUNDLES = (8, *(19 * [510]))
OLD_CAPACITY = sum(BUNDLES)  # pages


def fills(zaps: pl.DataFrame, *, by_range: bool) -> pl.DataFrame:
    """Where the mmu_gather is full.

    Args:
        zaps: row, seq (of one mmu_gather), slots (of ``by_range``: 2 for a range, else one per page), in order.
        by_range: the new rule.

    Returns:
        row (that fills it), offset (slots of that row up to then).
    """
    if by_range:
        return _by_range(zaps)
    total = pl.col("slots").cum_sum().over("seq")
    return (
        zaps.with_columns(total=total, before=total - pl.col("slots"))
        .filter(pl.col("total") // OLD_CAPACITY > pl.col("before") // OLD_CAPACITY)
        .select("row", offset=(pl.col("before") // OLD_CAPACITY + 1) * OLD_CAPACITY - pl.col("before"))
    )


def _by_range(zaps: pl.DataFrame) -> pl.DataFrame:
    """Slot by slot, for those few that come near to the end."""
    least = BUNDLES[0] - 1 + (len(BUNDLES) - 1) * (BUNDLES[1] - 1)
    long = zaps.filter(pl.col("slots").sum().over("seq") >= least)
    found, seq_before, bundle, used = [], None, 0, 0
    for row, seq, slots in long.select("row", "seq", "slots").iter_rows():
        if seq != seq_before:
            seq_before, bundle, used = seq, 0, 0
        used += slots
        if used >= BUNDLES[bundle] - 1:
            bundle, used = bundle + 1, 0
        if bundle == len(BUNDLES):
            found.append((row, slots))
            bundle = 0
    return pl.DataFrame(found, schema={"row": pl.Int64, "offset": pl.Int64}, orient="row")
