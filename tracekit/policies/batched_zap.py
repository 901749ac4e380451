"""One rmap removal per run of PTEs of a large folio, where zap takes it out page by page.

v1: Ryan Roberts, 2023-07-17, not merged. upstream: David Hildenbrand, 10ebac4f95e7, 6.9 (MODEL.md A.3, D.2).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.policies import Ints, Judgement
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
        gathers = _gathers(ops)
        merged = self.rule == "upstream"
        slots = _merged_slots(gathers, taken) if merged else gathers.pages
        full = fills(gathers.seq, slots, by_range=merged)
        if self.rule == "v1":
            taken = _cut(taken, gathers.row[full.place], full.offset)
        judgement = judge(ops, taken, "zap")
        more = len(full.place) - _as_traced(gathers)
        if more > 0:
            judgement.added["tlb.flush"] = at(ops, gathers.row[full.place][-more:], 1)
        change = slots - np.minimum(gathers.pages, 2)
        if change.any():
            judgement.amounts["gather.slot"] = at(ops, gathers.row, change)
        unsure = taken.filter((pl.col("how") == MERGED) & pl.col("addr").is_null())["run"].to_numpy()
        judgement.open["runs_that_may_cross_a_page_table"] = _several(unsure)
        return judgement

    def _how(self) -> pl.Expr:
        has = pl.col("batched").fill_null(value=False)
        if self.rule == "none":
            return pl.lit(PAGES)
        if self.rule == "v1":
            return pl.when("anon").then(MERGED).when(~pl.col("anon")).then(PAGES).otherwise(AS_TRACED)
        return pl.when(has).then(AS_TRACED).otherwise(MERGED)


class Gathers(NamedTuple):
    """What zap hands to each mmu_gather, removal by removal; a PMD is handed over as one page.

    Attributes:
        row: int64[n].
        seq: int64[n], of which mmu_gather: a system call has one; outside of any, a task's zaps are taken for one.
        pages: int64[n].
        batched: bool[n], whether the traced kernel batches.
    """

    row: Ints
    seq: Ints
    pages: Ints
    batched: npt.NDArray[np.bool_]


def _gathers(ops: pl.DataFrame) -> Gathers:
    zaps = (
        ops.lazy()
        .select("op", "phase", "task", "call", "nr_pages", "run", "batched")
        .with_row_index("row")
        .filter((pl.col("op") == "rmap.remove") & (pl.col("phase") == "zap"))
        .select(
            pl.col("row").cast(pl.Int64),
            pages=pl.when(pl.col("run").is_null()).then(1).otherwise("nr_pages"),
            batched=pl.col("batched").fill_null(value=False),
            task=pl.col("task").fill_null(-1),
            call=pl.col("call").fill_null(-1),
        )
        .collect()
    )
    task, call = zaps["task"].to_numpy(), zaps["call"].to_numpy()
    begins = np.ones(len(zaps), dtype=bool)
    begins[1:] = (task[1:] != task[:-1]) | (call[1:] != call[:-1])
    return Gathers(zaps["row"].to_numpy(), np.cumsum(begins), zaps["pages"].to_numpy(), zaps["batched"].to_numpy())


def _merged_slots(gathers: Gathers, taken: pl.DataFrame) -> Ints:
    """int64[n]: two slots for a range, one for a page; the first removal of a run takes them for all of it."""
    slots = np.minimum(gathers.pages, 2)
    merged = taken.filter(pl.col("how") == MERGED)
    place = np.searchsorted(gathers.row, merged["row"].to_numpy())
    run = merged["run"].to_numpy()
    first = np.diff(run, prepend=-1) != 0
    slots[place[~first]] = 0
    slots[place[first][np.bincount(np.cumsum(first) - 1) > 1]] = 2
    return slots


def _as_traced(gathers: Gathers) -> int:
    """How often the traced kernel's mmu_gather was full."""
    has = gathers.batched
    if has.all() or not has.any():
        by_range = bool(has.any())
        slots = np.minimum(gathers.pages, 2) if by_range else gathers.pages
        return len(fills(gathers.seq, slots, by_range=by_range).place)
    new = fills(gathers.seq[has], np.minimum(gathers.pages, 2)[has], by_range=True)
    return len(new.place) + len(fills(gathers.seq[~has], gathers.pages[~has], by_range=False).place)


def _cut(taken: pl.DataFrame, row: Ints, offset: Ints) -> pl.DataFrame:
    """``taken`` with the runs cut where the mmu_gather is full: in a removal of several pages (``cuts``), or after."""
    place = np.searchsorted(taken["row"].to_numpy(), row)
    ours = (place < len(taken)) & (taken["row"].to_numpy()[np.minimum(place, len(taken) - 1)] == row)
    place, offset = place[ours], offset[ours]
    inside = offset < taken["nr_pages"].to_numpy()[place]
    cuts, parts = np.zeros(len(taken), np.int64), np.zeros(len(taken) + 1, np.int64)
    cuts[place[inside]] = 1
    parts[place[~inside] + 1] = 1
    run = taken["run"].to_numpy()
    begins = (np.diff(run, prepend=-1) != 0) | (parts[:-1] > 0)
    return taken.with_columns(run=pl.Series(np.cumsum(begins)), cuts=pl.Series(cuts))


def _several(run: Ints) -> int:
    """How many of the runs have more than one removal; ``run`` holds those of one run together."""
    if not len(run):
        return 0
    return int((np.diff(np.append(np.flatnonzero(np.diff(run, prepend=-1)), len(run))) > 1).sum())


POLICY = BatchedZap
