"""Rmap walks: which visits of a task belong to one walk, and which entries each visit set or restored.

rmap_walk() calls rmap_one for each VMA in tree order (mm/rmap.c). The probes show those calls; a walk is a run of
them on one folio that nothing else of the rmap machinery interrupts.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.machine.timeline import Kind

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ENDS_A_WALK = (
    Kind.TRY,
    Kind.TRY_RETURN,
    Kind.TRY_VISIT,
    Kind.REMOVE,
    Kind.REMOVE_VISIT,
    Kind.COPY,
    Kind.MIGRATE_START,
    Kind.MIGRATE_END,
    Kind.SYSCALL_ENTER,
    Kind.SYSCALL_EXIT,
    Kind.MARK_BEGIN,
    Kind.MARK_END,
)
_PHASES = ((Kind.TRY, Kind.TRY_VISIT, Kind.SET), (Kind.REMOVE, Kind.REMOVE_VISIT, Kind.RESTORE))


class Walks(NamedTuple):
    """What the probes show of all walks, aligned with the timeline; -1 stands for none.

    Attributes:
        walk_of_row: int64[n_rows], walk of a walk's entry, its visits and their entries.
        visit_of_row: int64[n_rows], for a set or restored entry the row of the visit that did it.
        position_of_row: int64[n_rows], 0, 1, … for visits, in tree order.
        table: one row per walk: walk, is_remove, task, folio, first_row, last_row, visits, hits, entries, order,
            return_row (where try_to_migrate returned; null: not probed).
        orphans: entries that no visit explains, by name.
    """

    walk_of_row: Ints
    visit_of_row: Ints
    position_of_row: Ints
    table: pl.DataFrame
    orphans: dict[str, int]


def find_walks(rows: pl.DataFrame) -> Walks:
    """Group the visits of the timeline ``rows`` into walks, the entries into visits."""
    kind = rows["kind"].to_numpy()
    folio = rows["folio"].fill_null(0).to_numpy()
    run = unbroken(rows)
    walk = _number_walks(kind, run, folio)
    walk = _split_repeats(kind, walk, rows.select("vma", "addr"))
    visit, orphans = _visit_of_entries(kind, run)
    walk = np.where(visit >= 0, walk[visit], walk)
    position = _positions(kind, walk)
    return Walks(walk, visit, position, _walk_table(rows, walk, visit), orphans)


def unbroken(rows: pl.DataFrame) -> Ints:
    """int64[n_rows]: counts on where the task changes, or where rows of it were left out: no walk goes on across."""
    left_out = pl.col("stretch").forward_fill().fill_null(0).cast(pl.Int64).diff().fill_null(0) > 1
    changes = pl.col("task").diff().fill_null(0) != 0
    return rows.select((left_out | changes).cum_sum().cast(pl.Int64)).to_series().to_numpy()


def _number_walks(kind: npt.NDArray[np.uint8], run: Ints, folio: npt.NDArray[np.uint64]) -> Ints:
    """int64[n_rows]: walk of each walk entry and visit, -1 elsewhere."""
    at = np.flatnonzero(np.isin(kind, _ENDS_A_WALK))
    k, same = kind[at], np.zeros(len(at), dtype=bool)
    same[1:] = (run[at][1:] == run[at][:-1]) & (folio[at][1:] == folio[at][:-1])
    before = np.concatenate(([Kind.OTHER], k[:-1])) if len(k) else k
    starts, inside = np.zeros(len(at), dtype=bool), np.zeros(len(at), dtype=bool)
    for entry, visit, _ in _PHASES:
        goes_on = (k == visit) & same & np.isin(before, (entry, visit))
        starts |= (k == entry) | ((k == visit) & ~goes_on)
        inside |= np.isin(k, (entry, visit))
    walk = np.full(len(kind), -1, dtype=np.int64)
    walk[at[inside]] = (np.cumsum(starts) - 1)[inside]
    return walk


def _split_repeats(kind: npt.NDArray[np.uint8], walk: Ints, places: pl.DataFrame) -> Ints:
    """A walk comes to a VMA once: where one comes back, with no event between, a new walk has begun.

    Only the walk of a KSM page, which one VMA may map at several addresses, comes to it at each of them (mm/ksm.c,
    rmap_walk_ksm: first to the address spaces that were merged, then to those forked from them).
    """
    at = np.flatnonzero((walk >= 0) & np.isin(kind, (Kind.TRY_VISIT, Kind.REMOVE_VISIT)))
    seen = places[at].with_columns(pl.all().fill_null(0), walk=walk[at])
    if not seen.is_duplicated().any():
        return walk
    starts = np.zeros(len(walk), dtype=bool)
    inside = np.flatnonzero(walk >= 0)
    starts[inside] = np.diff(walk[inside], prepend=-1) != 0
    repeats = seen.with_columns(at=at).filter(pl.struct("walk", "vma", "addr").is_duplicated().any().over("walk"))
    walk_before, visited = -1, set[tuple[int, int]]()
    for this_walk, vma, addr, row in repeats.select("walk", "vma", "addr", "at").iter_rows():  # few: other events tell
        if this_walk != walk_before or (vma, addr) in visited:
            starts[row] |= this_walk == walk_before
            walk_before, visited = this_walk, set()
        visited.add((vma, addr))
    return np.where(walk >= 0, np.cumsum(starts) - 1, -1)


def _visit_of_entries(kind: npt.NDArray[np.uint8], run: Ints) -> tuple[Ints, dict[str, int]]:
    """int64[n_rows]: the visit in which an entry was set or restored: the task's last rmap event before it."""
    index = np.arange(len(kind))
    last = np.maximum.accumulate(np.where(np.isin(kind, _ENDS_A_WALK), index, -1)) if len(kind) else index
    visit = np.full(len(kind), -1, dtype=np.int64)
    orphans = {}
    for (_, of_kind, entry), name in zip(_PHASES, ("set_without_visit", "restore_without_visit"), strict=True):
        at = np.flatnonzero(kind == entry)
        source = last[at]
        explained = (source >= 0) & (kind[source] == of_kind) & (run[source] == run[at])
        visit[at[explained]] = source[explained]
        orphans[name] = int(len(at) - explained.sum())
    return visit, orphans


def _positions(kind: npt.NDArray[np.uint8], walk: Ints) -> Ints:
    position = np.full(len(kind), -1, dtype=np.int64)
    at = np.flatnonzero((walk >= 0) & np.isin(kind, (Kind.TRY_VISIT, Kind.REMOVE_VISIT)))
    first = np.flatnonzero(np.diff(walk[at], prepend=-1) != 0)
    lengths = np.diff(np.append(first, len(at)))
    position[at] = np.arange(len(at)) - np.repeat(first, lengths)
    return position


def _walk_table(rows: pl.DataFrame, walk: Ints, visit: Ints) -> pl.DataFrame:
    is_visit = pl.col("kind").is_in([Kind.TRY_VISIT, Kind.REMOVE_VISIT])
    is_entry = pl.col("visit") >= 0
    table = (
        rows.select("kind", "task", "folio", "src", "order")
        .with_columns(walk=pl.Series(walk), visit=pl.Series(visit), row=pl.int_range(len(rows), dtype=pl.Int64))
        .filter(pl.col("walk") >= 0)
        .group_by("walk", maintain_order=True)
        .agg(
            is_remove=pl.col("kind").first().is_in([Kind.REMOVE, Kind.REMOVE_VISIT]),
            task=pl.col("task").first(),
            folio=pl.col("folio").first(),
            src=pl.col("src").first(),
            first_row=pl.col("row").first(),
            last_row=pl.col("row").last(),
            visits=is_visit.sum().cast(pl.Int64),
            hits=pl.col("visit").filter(is_entry).n_unique().cast(pl.Int64),
            entries=is_entry.sum().cast(pl.Int64),
            order=pl.col("order").filter(is_entry).max(),
        )
    )
    return table.with_columns(return_row=_return_rows(rows, table))


def reach(rows: pl.DataFrame, walks: Walks) -> pl.DataFrame:
    """How far each walk can have gone beyond what is seen of it: to the rmap events of its task before and after it.

    Returns:
        first_row, last_row, start_ns, end_ns; a walk whose entry was probed begins there, one that none of its task's
        events precedes or follows may have gone on for ever.
    """
    kind, task, time = (rows[name].to_numpy() for name in ("kind", "task", "time_ns"))
    own, first, last = (walks.table[name].to_numpy() for name in ("task", "first_row", "last_row"))
    at = np.flatnonzero(np.isin(kind, _ENDS_A_WALK))
    around = np.concatenate(([-1], at, [len(rows)]))
    before = around[np.searchsorted(at, first, side="left")]
    after = around[np.searchsorted(at, last, side="right") + 1]
    before = np.where(np.isin(kind[first], (Kind.TRY, Kind.REMOVE)), first, before)
    begun = (before >= 0) & (task[before] == own)
    over = after < len(rows)
    over[over] = task[after[over]] == own[over]
    first, last = np.where(begun, before, first), np.where(over, after, last)
    ever = np.iinfo(np.int64)
    return pl.DataFrame(
        {
            "first_row": first,
            "last_row": last,
            "start_ns": np.where(begun, time[first], ever.min),
            "end_ns": np.where(over, time[last], ever.max),
        }
    )


def _return_rows(rows: pl.DataFrame, table: pl.DataFrame) -> pl.Series:
    """Row of the return from try_to_migrate that ends each walk; null where none does."""
    kind, task = rows["kind"].to_numpy(), rows["task"].to_numpy()
    at = np.append(np.flatnonzero(np.isin(kind, _ENDS_A_WALK)), len(rows) - 1)
    after = at[np.searchsorted(at[:-1], table["last_row"].to_numpy(), side="right")]
    returns = (kind[after] == Kind.TRY_RETURN) & (task[after] == table["task"].to_numpy())
    return pl.select(
        pl.when(pl.Series(returns) & ~table["is_remove"]).then(pl.Series(after, dtype=pl.Int64))
    ).to_series()
