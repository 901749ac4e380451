"""Rmap removals: in which phase each call took pages out, and which calls a kernel that batches could make one of.

The probes say what was taken out, not why. Why is what the task was at: in a visit of an rmap walk, in a zap, in a
fault. What no event tells stays unknown.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.machine.timeline import Kind
from tracekit.machine.walks import unbroken

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

STRUCT_PAGE = 64  # bytes, on 64-bit kernels (include/linux/mm_types.h, aligned for its flags)

# System calls in which what is taken out is zapped; of madvise() it depends on the advice
_ZAPS = (
    *("munmap", "exit", "exit_group", "execve", "execveat", "mmap", "mremap", "brk", "shmdt", "process_mrelease"),
    *("truncate", "ftruncate", "fallocate"),
)
_ADVICE = (4, 9, 24, 102)  # MADV_DONTNEED, _REMOVE, _DONTNEED_LOCKED, _GUARD_INSTALL (uapi/asm-generic/mman-common.h)
_USER = (Kind.SYSCALL_EXIT, Kind.MARK_BEGIN, Kind.MARK_END)
_DOINGS = (Kind.ZAP, Kind.FAULT, Kind.SYSCALL_ENTER, *_USER)
_VISITS = {Kind.TRY_VISIT: "try_to_migrate", Kind.UNMAP_VISIT: "try_to_unmap"}
_WALKS = (
    *(Kind.TRY, Kind.TRY_RETURN, Kind.REMOVE, Kind.REMOVE_VISIT, Kind.MIGRATE_START, Kind.MIGRATE_END),
    *(Kind.UNMAP, Kind.UNMAP_RETURN, Kind.UNMAP_VISIT_RETURN),
)
REMOVALS = (Kind.RMAP_REMOVE, Kind.RMAP_REMOVE_PMD)


class Removals(NamedTuple):
    """Every rmap removal and every call of deferred_split_folio, in the order of the timeline.

    Attributes:
        table: row, phase (null: not known), visit (row of the rmap_one that did it; null: none), index (of the first
            page in its folio; null: folio not known), nr_pages, is_split (no removal but a call of
            deferred_split_folio).
        context: int64[n], the row that last changed what the task was at; -1: none.
    """

    table: pl.DataFrame
    context: Ints


def pmd_pages(page_size: int) -> int:
    """Pages that a PMD maps: as many 8-byte entries as fill the page table that it replaces."""
    return page_size // 8


def find_removals(rows: pl.DataFrame, page_size: int) -> Removals:
    """What the timeline ``rows`` shows to be taken out of the rmap; ``page_size`` in bytes."""
    kind, folio = rows["kind"].to_numpy(), rows["folio"].fill_null(0).to_numpy()
    run = unbroken(rows)
    at = np.flatnonzero(np.isin(kind, (*REMOVALS, Kind.DEFERRED_SPLIT)))
    is_split = kind[at] == Kind.DEFERRED_SPLIT
    context = _last(kind, run, (*_WALKS, *_VISITS, *_DOINGS))[at]
    in_visit = (context >= 0) & np.isin(kind[context], list(_VISITS)) & (folio[context] == folio[at])
    phase = np.full(len(at), "", dtype="U14")
    doing = _doing(rows, _last(kind, run, _DOINGS)[at])
    gathered = _followed_by_gather(rows, run, at)
    number = rows["number"].fill_null(1).to_numpy()[at]
    phase[doing == "fault"] = "fault"
    phase[(doing == "zap") | gathered | ((doing == "") & (number > 1) & ~is_split)] = "zap"
    phase[doing == "other"] = "other"
    for visit, name in _VISITS.items():
        phase[in_visit & (kind[context] == visit)] = name
    # deferred_split_folio is called by the removal before it, or by something else
    before = np.concatenate(([-1], np.maximum.accumulate(np.where(~is_split, np.arange(len(at)), -1))[:-1]))[: len(at)]
    same = is_split & (before >= 0) & (folio[at[before]] == folio[at]) & (context[before] == context)
    phase[is_split] = "other"
    phase[same] = phase[before[same]]
    page = rows["page"].fill_null(0).to_numpy()[at]
    pages = np.where(kind[at] == Kind.RMAP_REMOVE_PMD, pmd_pages(page_size), np.where(is_split, 0, number))
    index = (page - folio[at]).astype(np.int64) // STRUCT_PAGE
    known = (folio[at] > 0) & (page >= folio[at]) & ~is_split
    table = pl.DataFrame(
        {
            "row": at,
            "phase": pl.Series(phase.tolist(), dtype=pl.String).replace("", None),
            "visit": pl.Series(np.where(in_visit, context, -1)).replace(-1, None),
            "index": pl.Series(np.where(known, index, -1)).replace(-1, None),
            "nr_pages": pages.astype(np.int64),
            "is_split": is_split,
        },
        schema_overrides={"row": pl.Int64, "visit": pl.Int64, "index": pl.Int64},
    )
    return Removals(table, context)


def number_runs(rows: pl.DataFrame, removals: Removals, addr: pl.Series, table_bytes: int | None) -> pl.Series:
    """Int64[n]: the run of each removal of PTEs in a known phase; null for others.

    Args:
        rows: the timeline.
        removals: of ``find_removals``.
        addr: UInt64[n], user address of the first page of each, as far as known.
        table_bytes: what one page table maps: no run crosses its end; None: not known.
    """
    table = removals.table.with_columns(
        rows["folio", "vma", "task", "kind"][removals.table["row"].to_numpy()],
        addr=addr,
        context=pl.Series(removals.context),
        number=pl.int_range(pl.len()),
    )
    runs = (
        table.filter((pl.col("kind") == Kind.RMAP_REMOVE) & pl.col("phase").is_not_null())
        .with_columns(
            goes_on=pl.all_horizontal(
                *(pl.col(name) == pl.col(name).shift() for name in ("task", "context", "phase", "folio", "vma")),
                pl.col("index") == (pl.col("index") + pl.col("nr_pages")).shift(),
            ).fill_null(value=False)
            & ~(pl.col("addr") % (table_bytes or 1 << 62) == 0).fill_null(value=False)
        )
        .select("number", run=(~pl.col("goes_on")).cum_sum().cast(pl.Int64) - 1)
    )
    return table.select("number").join(runs, on="number", how="left", maintain_order="left")["run"]


def _last(kind: npt.NDArray[np.uint8], run: Ints, kinds: tuple[Kind, ...]) -> Ints:
    """int64[n_rows]: the task's last row of one of ``kinds``, itself included; -1: none since rows were left out."""
    if not len(kind):
        return np.zeros(0, dtype=np.int64)
    last = np.maximum.accumulate(np.where(np.isin(kind, kinds), np.arange(len(kind)), -1))
    return np.where((last >= 0) & (run[last] == run), last, -1)


def _doing(rows: pl.DataFrame, at: Ints) -> npt.NDArray[np.str_]:
    """str[n]: what the rows ``at`` (of _DOINGS; -1: none) say of what comes after: zap, fault, other; "": nothing."""
    if not len(at):
        return np.zeros(0, dtype="U5")
    names = pl.col("event").cast(pl.String).str.strip_prefix("syscalls:sys_enter_")
    advised = (names == "madvise") | (names == "process_madvise")
    zaps = names.is_in(_ZAPS) | (advised & pl.col("number").is_in(_ADVICE)).fill_null(value=False)
    kind = pl.col("kind")
    said = rows[at].select(
        pl.when(kind == Kind.ZAP)
        .then(pl.lit("zap"))
        .when(kind == Kind.FAULT)
        .then(pl.lit("fault"))
        .when((kind == Kind.SYSCALL_ENTER) & zaps)
        .then(pl.lit("zap"))
        .when((kind == Kind.SYSCALL_ENTER) & advised & pl.col("number").is_not_null())
        .then(pl.lit("other"))
        .otherwise(pl.lit(""))
    )
    found: npt.NDArray[np.str_] = said.to_series().to_numpy().astype("U5")
    found[at < 0] = ""
    return found


def _followed_by_gather(rows: pl.DataFrame, run: Ints, at: Ints) -> Bools:
    """bool[n]: whether the next record of the task but deferred_split_folio's hands the same page to the mmu_gather."""
    kind, page = rows["kind"].to_numpy(), rows["page"].fill_null(0).to_numpy()
    after = np.minimum(at + 1, max(len(rows) - 1, 0))
    after = np.where(kind[after] == Kind.DEFERRED_SPLIT, np.minimum(after + 1, len(rows) - 1), after)
    same: Bools = (kind[after] == Kind.GATHER) & (run[after] == run[at]) & (page[after] == page[at]) & (page[at] > 0)
    return same
