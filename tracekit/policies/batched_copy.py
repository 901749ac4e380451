"""The contents of a whole batch of folios copied at once, by several CPUs or a DMA engine.

Zi Yan and Shivank Garg, 2025-01-03 (order=after_metadata); v4 of 2026-03-09 and later (order=before_move). Not merged
in any kernel. MODEL.md A.2, D.2.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.errors import UsageError
from tracekit.policies import Batches, Ints, Judgement, _speedup
from tracekit.policies._batches import KERNEL_PAGES, Copies, cut, find_copies
from tracekit.policies._parameters import Range


@dataclass(frozen=True)
class BatchedCopy:
    """The contents of a batch of folios are copied together, before (before_move) or after their metadata is moved.

    Batches are those of the traced kernel, unless ``batch`` or ``cut`` says how to cut each list anew: before 6.3 the
    kernel cut, at 512 pages, excluding the folio that would have been too many, since then including it. With
    mode=async those that are moved one at a time after their batch, as a synchronous migration moves what it could
    not at once, are copied as they were.
    """

    engine: Literal["cpu", "dma"] = "cpu"
    threads: Annotated[int, Range(1, 1024)] | None = None
    channels: Annotated[int, Range(1, 1024)] | None = None
    setup_ns: Annotated[float, Range(0)] | None = None
    mode: Literal["async", "any"] = "async"
    order: Literal["after_metadata", "before_move"] = "after_metadata"
    batch: Annotated[int, Range(1)] | None = None
    cut: Literal["traced", "including", "excluding"] = "traced"
    speedup: str | None = None

    needs: ClassVar[tuple[str, ...]] = ("folio_copy", "set_migration_pte")
    touches: ClassVar[tuple[str, ...]] = ("folio.copy", "tlb.shootdown")
    undoes: ClassVar[bool] = False

    @property
    def variant(self) -> str:
        """When the contents are copied."""
        return self.order

    def __post_init__(self) -> None:
        """Threads are the CPU's, channels the DMA engine's; the table is read while the request can still be mended.

        Raises:
            UsageError: one is given for the other, or the table of speed-ups is none.
        """
        if self.threads is not None and self.engine == "dma":
            raise UsageError("batched_copy: threads=… copies with CPUs; with engine=dma say channels=…")
        if self.channels is not None and self.engine == "cpu":
            raise UsageError("batched_copy: channels=… are those of a DMA engine; say engine=dma, or threads=…")
        _speedup.load(self.speedup)

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """Each copy in a batch is spared; one call for the batch, and for each folio a place in it, are added."""
        copies = find_copies(ops)
        eligible = copies.bytes > 0
        if self.mode == "async":
            eligible &= ~_leftovers(copies)
        batch = np.where(eligible, self._cut(copies), -1)
        executed = np.ones(len(ops), dtype=np.int64)
        executed[copies.row[eligible]] = 0
        first = _firsts(copies.row[eligible], batch[eligible])
        calls, places = np.zeros((2, len(ops)), dtype=np.int64)
        calls[first] = 1
        places[copies.row[eligible]] = 1
        added = {"folio.copy_batch": calls, "folio.copy_batched": places}
        if copies.interleaved:
            merged, left = _merge_shootdowns(ops, calls)
            executed[merged] = 0
            added |= {"tlb.shootdown": left} if merged.any() else {}
        unsafe, added["folio.move_attempt"] = self._as_posted(ops, int(eligible.sum()))
        return Judgement(
            executed,
            added,
            unsafe=unsafe,
            open={"copies_of_unknown_size": int((copies.bytes == 0).sum())},
            batches=self._batches(copies, batch),
        )

    def _cut(self, copies: Copies) -> Ints:
        as_traced = self.cut == "traced"
        if as_traced and self.batch is None and not copies.interleaved:
            return copies.batch
        including = not copies.interleaved if as_traced else self.cut == "including"
        return cut(copies, self.batch or KERNEL_PAGES, including=including)

    def _as_posted(self, ops: pl.DataFrame, copied: int) -> tuple[dict[str, int], Ints]:
        """What the patches of 2025-01 get wrong: each success counted twice, one attempt too many for what fails."""
        attempts = np.zeros(len(ops), dtype=np.int64)
        if self.order != "after_metadata":
            return {}, attempts
        first = (ops["op"] == "remove_migration_ptes.vma_visit") & (ops["position"] == 0)
        attempts[(first & ~ops["moved"]).fill_null(value=False).to_numpy()] = 1
        return {"folios_counted_twice_as_migrated": copied}, attempts

    def _batches(self, copies: Copies, batch: Ints) -> Batches:
        table = _speedup.load(self.speedup)
        lanes = (self.threads if self.engine == "cpu" else self.channels) or 4
        inside = batch >= 0
        folios = np.bincount(batch[inside]) if inside.any() else np.zeros(1, dtype=np.int64)
        speedup = np.ones((3, len(batch)))
        # one folio is copied by one of them
        lanes_used = np.minimum(lanes, folios[batch[inside]])
        speedup[:, inside] = table.of(self.engine, copies.bytes[inside], lanes_used)
        # one CPU that copies, the caller's, needs nobody to hand over to
        alone = self.engine == "cpu" and lanes == 1
        setup = (0.0, 0.0, 0.0) if alone else table.setup_copies[self.engine]
        return Batches(batch, copies.batch, speedup, self.setup_ns, setup, self.order == "before_move")


def _leftovers(copies: Copies) -> npt.NDArray[np.bool_]:
    """bool[n]: moved one at a time, after what of their list was moved in batches."""
    n = len(copies.row)
    if copies.interleaved or not n:
        return np.zeros(n, dtype=bool)
    alone = (np.bincount(copies.batch) == 1)[copies.batch]
    others = np.bincount(copies.call, weights=~alone)[copies.call] > 0
    # one alone at the end of a list may be its last batch
    several = np.bincount(copies.call, weights=alone)[copies.call] > 1
    return np.asarray(alone & others & several)


def _firsts(rows: Ints, batch: Ints) -> Ints:
    """Rows at which a batch begins."""
    firsts: Ints = rows[np.diff(batch, prepend=-1) != 0]
    return firsts


def _merge_shootdowns(ops: pl.DataFrame, calls: Ints) -> tuple[npt.NDArray[np.bool_], Ints]:
    """IPIs that are one with that of their batch, and at ``calls``, where batches begin, those that are left.

    Where each folio was moved before the next was unmapped, that flushed the other processors' TLBs for each, too; one
    that unmaps them first flushes once (A.0: 6.3). What is not in another processor's TLB is flushed one by one in all.
    """
    of_call = ops.select("call", ipi=pl.col("op") == "tlb.shootdown", batch=pl.Series(calls)).filter(
        pl.col("call").is_not_null()
    )
    merged = of_call.group_by("call").agg(pl.col("ipi", "batch").sum()).filter(pl.col("ipi") > pl.col("batch"))
    inside = ops["call"].is_in(merged.filter(pl.col("batch") > 0)["call"].implode()).fill_null(value=False).to_numpy()
    return inside & (ops["op"] == "tlb.shootdown").to_numpy(), np.where(inside, calls, 0)


POLICY = BatchedCopy
