"""One rmap removal per run of PTEs of a large folio, where zap takes it out page by page.

v1: Ryan Roberts, 2023-07-17, not merged. upstream: David Hildenbrand, 10ebac4f95e7, 6.9 (MODEL.md A.3, D.2).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import polars as pl

from tracekit.policies import Judgement
from tracekit.policies._gather import fills
from tracekit.policies._removals import AS_TRACED, ENQUEUE, MERGED, PAGES, at, judge, removals


@dataclass(frozen=True)
class BatchedZap:
    """munmap, exit, exec and MADV_DONTNEED take a run of PTEs of a large folio out of the rmap in one step.

    A run lies in one folio, VMA and page table. rule=none takes out page by page. rule=v1 does so for all but anonymous
    folios, whatever the flags of their PTEs, and cuts a run where the mmu_gather is full, which takes a slot per page:
    what is left of that folio then may queue it for nothing. rule=upstream takes out file folios, too, and a run ends
    where the flags of PTEs differ; where the traced kernel did not batch, the trace does not show them.
    """

    rule: Literal["none", "v1", "upstream"] = "upstream"

    needs: ClassVar[tuple[str, ...]] = ("rmap_remove",)
    touches: ClassVar[tuple[str, ...]] = ("rmap.remove", ENQUEUE, "tlb.flush")

    @property
    def variant(self) -> str:
        """As ``Replay.kernel_has`` names it."""
        return self.rule

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """Calls are spared where a run becomes one, added where one becomes many."""
        taken = removals(ops, "zap").with_columns(how=self._how())
        gathers = _gathers(ops, taken)
        by_range = self.rule == "upstream"
        slots = gathers["merged_slots" if by_range else "pages"].alias("slots")
        full = fills(gathers.with_columns(slots), by_range=by_range)
        if self.rule == "v1":
            taken = _cut(taken, full)
        judgement = judge(ops, taken, "zap")
        more = len(full) - _as_traced(gathers)
        if more > 0:
            judgement.added["tlb.flush"] = at(ops, full["row"].tail(more), 1)
        change = slots - gathers["traced_slots"]
        if (change != 0).any():
            judgement.amounts["gather.slot"] = at(ops, gathers["row"], change)
        unsure = taken.filter((pl.col("how") == MERGED) & pl.col("addr").is_null() & pl.col("run").is_duplicated())
        judgement.open["runs_that_may_cross_a_page_table"] = unsure["run"].n_unique()
        return judgement

    def _how(self) -> pl.Expr:
        has = pl.col("batched").fill_null(value=False)
        if self.rule == "none":
            return pl.lit(PAGES)
        if self.rule == "v1":
            return pl.when("anon").then(MERGED).when(~pl.col("anon")).then(PAGES).otherwise(AS_TRACED)
        return pl.when(has).then(AS_TRACED).otherwise(MERGED)


def _gathers(ops: pl.DataFrame, taken: pl.DataFrame) -> pl.DataFrame:
    """What zap hands to each mmu_gather: row, seq, batched, and slots: pages, traced_slots, merged_slots.

    A system call has one; outside of any, a task's zaps are taken for one.
    """
    zaps = (
        ops.lazy()
        .select("op", "phase", "task", "call", "nr_pages", "run", "batched")
        .with_row_index("row")
        .filter((pl.col("op") == "rmap.remove") & (pl.col("phase") == "zap"))
        .with_columns(
            pl.col("row").cast(pl.Int64),
            pages=pl.when(pl.col("run").is_null()).then(1).otherwise("nr_pages"),  # a PMD is handed over as one page
            seq=pl.struct("task", "call").rle_id(),
        )
        .collect()
    )
    merged = (
        taken.filter(pl.col("how") == MERGED).group_by("run").agg(pl.col("row").first(), n=pl.col("nr_pages").sum())
    )
    inside = taken.filter(pl.col("how") == MERGED)["row"]
    return zaps.join(merged.select("row", "n"), on="row", how="left", maintain_order="left").with_columns(
        traced_slots=pl.min_horizontal("pages", 2),
        merged_slots=pl.when(pl.col("row").is_in(inside.implode()))
        .then(pl.when(pl.col("n").is_null()).then(0).otherwise(pl.min_horizontal("n", 2)))
        .otherwise(pl.min_horizontal("pages", 2)),
    )


def _as_traced(gathers: pl.DataFrame) -> int:
    """How often the traced kernel's mmu_gather was full."""
    has = pl.col("batched").fill_null(value=False)
    new = fills(gathers.filter(has).with_columns(slots="traced_slots"), by_range=True)
    return len(new) + len(fills(gathers.filter(~has).with_columns(slots="pages"), by_range=False))


def _cut(taken: pl.DataFrame, full: pl.DataFrame) -> pl.DataFrame:
    """``taken`` with the runs cut where the mmu_gather is full; ``cuts``: how often within the row."""
    cuts = taken.select("row", "nr_pages").join(full, on="row", how="left", maintain_order="left")
    inside = ((cuts["offset"] > 0) & (cuts["offset"] < cuts["nr_pages"])).fill_null(value=False)
    at_end = (cuts["offset"] == cuts["nr_pages"]).fill_null(value=False)
    parts = at_end.cast(pl.Int64).cum_sum().shift(1, fill_value=0)
    return taken.with_columns(
        run=pl.struct(pl.col("run"), parts.alias("part")).rle_id().cast(pl.Int64), cuts=inside.cast(pl.Int64)
    )


POLICY = BatchedZap
