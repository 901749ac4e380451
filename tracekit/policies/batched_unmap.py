"""One rmap removal per run of PTEs of a large folio, where reclaim takes it out page by page.

whole: Barry Song, 354dffd29575, 6.15. partial: Lance Yang, 6.16, for lazyfree folios; with respect_write as since 7.x,
Baolin Wang's, which takes in file folios (MODEL.md A.5, D.2).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import polars as pl

from tracekit.policies import Judgement
from tracekit.policies._removals import AS_TRACED, ENQUEUE, MERGED, NOT, PAGES, at, judge, removals


@dataclass(frozen=True)
class BatchedUnmap:
    """try_to_unmap takes a run of PTEs of a large folio that it may drop out of the rmap in one step.

    rule=page takes out page by page, and stops at the first that it must keep: those before are gone. rule=whole takes
    out a folio that is mapped in one run, else page by page. rule=partial takes out any run of one VMA and page table.
    A run in which one page must be kept is kept as a whole. Swap-backed folios go page by page under every rule.
    respect_write: a run ends where PTEs differ in being writable, which the trace shows only if its kernel did so; and
    file folios are batched, too.
    """

    rule: Literal["page", "whole", "partial"] = "partial"
    respect_write: bool = True

    needs: ClassVar[tuple[str, ...]] = ("rmap_remove", "try_to_unmap_one")
    touches: ClassVar[tuple[str, ...]] = ("rmap.remove", ENQUEUE)

    @property
    def variant(self) -> str:
        """As ``Replay.kernel_has`` names it: without ``respect_write`` no kernel's own."""
        return self.rule if self.respect_write or self.rule != "partial" else "partial,respect_write=false"

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """Calls are spared where a run becomes one, added where one becomes many; what is kept is a loss."""
        visits = _visits(ops)
        taken = removals(ops, "try_to_unmap")
        of_visit = visits.select("row", "stopped", "is_last", visit="row")
        taken = taken.join_asof(of_visit, on="row", check_sortedness=False).with_columns(
            last_run=pl.col("run") == pl.col("run").last().over("visit"),
            # where no return tells: a walk that leaves the folio mapped has ended before its time
            stopped=pl.coalesce("stopped", pl.col("is_last") & pl.col("left").last().over("visit")),
        )
        taken = taken.with_columns(how=self._how(_whole()))
        kept = pl.col("stopped").fill_null(value=False) & pl.col("last_run") & (pl.col("how") == MERGED) & _goes_on()
        taken = taken.with_columns(how=pl.when(kept).then(NOT).otherwise("how"))
        judgement = judge(ops, taken, "try_to_unmap")
        left = taken.filter(pl.col("how") == NOT)
        if len(left):
            fewer = at(ops, left["row"].to_numpy(), -left["nr_pages"].to_numpy())
            judgement.amounts["rmap.remove_pages"] = judgement.amounts["pte.clear"] = fewer
        own = at(ops, taken["row"].to_numpy(), 1)
        pends = own * judgement.executed - own
        pends += judgement.added.get("rmap.remove", 0)
        if pends.any():
            judgement.amounts["tlb.pend"] = pends
        self._consequences(judgement, visits, taken, int(left["nr_pages"].sum()))
        return judgement

    def _how(self, whole: pl.Expr) -> pl.Expr:
        if self.rule == "page":
            return pl.lit(PAGES)
        may = pl.col("lazyfree")
        if self.rule == "whole":
            return (
                pl.when(~may).then(AS_TRACED).when(may & whole).then(MERGED).when(may).then(PAGES).otherwise(AS_TRACED)
            )
        if self.respect_write:
            return (
                pl.when(pl.col("batched")).then(AS_TRACED).when(may | ~pl.col("anon")).then(MERGED).otherwise(AS_TRACED)
            )
        return pl.when(may).then(MERGED).otherwise(AS_TRACED)

    def _consequences(self, judgement: Judgement, visits: pl.DataFrame, taken: pl.DataFrame, kept: int) -> None:
        stopped = visits.filter(pl.col("stopped") & pl.col("lazyfree").fill_null(value=True))
        judgement.losses["pages_left_mapped"] = kept
        if self.rule == "page":  # whatever the reason was
            judgement.losses["folios_set_swapbacked"] = len(stopped)
            # a batching kernel keeps the run: how many pages stand before the bad one, it does not show
            judgement.open["visits_that_may_take_pages_out_first"] = len(stopped.filter("batched"))
        else:
            judgement.open["folios_set_swapbacked"] = len(stopped)
        unknown = taken.filter(
            pl.col("lazyfree").is_null() & pl.col("life").is_not_null() & pl.col("run").is_duplicated()
        )
        judgement.open["runs_of_folios_of_unknown_kind"] = unknown["run"].n_unique() if self.rule != "page" else 0
        if self.rule == "whole":
            judgement.unsafe["reads_beyond_the_page_table"] = _beyond(taken)


def _visits(ops: pl.DataFrame) -> pl.DataFrame:
    """row, stopped, lazyfree, batched and is_last (of its walk) of each visit of reclaim."""
    visits = (
        ops.lazy()
        .select("op", "stopped", "lazyfree", "batched", "position")
        .with_row_index("row")
        .filter(pl.col("op") == "try_to_unmap.vma_visit")
        .with_columns(pl.col("row").cast(pl.Int64), is_last=pl.col("position").shift(-1, fill_value=0) == 0)
    )
    return visits.collect()


def _extent() -> pl.Expr:
    """Pages of the folio, as far as any removal of it shows."""
    return (pl.col("index") + pl.col("nr_pages")).max().over("life")


def _whole() -> pl.Expr:
    """Whether the run is all of a folio, head to tail."""
    pages = pl.col("nr_pages").sum().over("run")
    return (pl.col("index").min().over("run") == 0) & (pages == _extent()) & (pages > 1)


def _goes_on() -> pl.Expr:
    """Whether the page after the run is in its page table, so that a bad one there is one of the run."""
    return ~pl.col("ends_table").last().over("run").fill_null(value=False)


def _beyond(taken: pl.DataFrame) -> int:
    """Runs from a folio's head to the end of a page table, beyond which the folio goes on: the scan does, too."""
    runs = (
        taken.filter("lazyfree")
        .with_columns(goes_on=_goes_on(), extent=_extent())
        .group_by("run")
        .agg(pl.col("index").min(), pl.col("nr_pages").sum(), pl.col("goes_on", "extent").last())
    )
    cut = ~pl.col("goes_on") & (pl.col("index") == 0) & (pl.col("nr_pages") < pl.col("extent"))
    return len(runs.filter(cut))


POLICY = BatchedUnmap
