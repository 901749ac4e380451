"""The operations that take pages out of the rmap, with what a policy must know of each."""

from typing import NamedTuple

import polars as pl

from tracekit import schema
from tracekit.machine import lives, unmaps
from tracekit.machine.anonymous import zapped_anonymous
from tracekit.machine.removals import find_removals, number_runs, pmd_pages
from tracekit.machine.timeline import Kind
from tracekit.machine.walks import Ints
from tracekit.trace import Trace

_LOCAL, _SHOOTDOWN = (2, 3), 4  # reasons of tlb:tlb_flush (include/linux/mm_types.h, enum tlb_flush_reason)
_RECORD = ("time_ns", "task", "cpu", "seq")


class Replayed(NamedTuple):
    """What the replay knows already.

    Attributes:
        rows: the timeline.
        walk_of_row, call_of_row: int64[n_rows]; -1: none.
        episodes: of ``episodes.find_episodes``.
        windows: of ``losses.lost_windows``: of a folio whose life goes across one nothing is known.
    """

    rows: pl.DataFrame
    walk_of_row: Ints
    call_of_row: Ints
    episodes: pl.DataFrame
    windows: pl.DataFrame


def find_unmapping(trace: Trace, known: Replayed) -> pl.DataFrame:
    """Removals, visits of reclaim, calls of deferred_split_folio and TLB flushes; ``trace`` shows what was mapped.

    Returns:
        columns of the operations table, and row, walk, is_visit, certainty.
    """
    rows = known.rows
    page_size = trace.page_size
    removals = find_removals(rows, page_size)
    visits = unmaps.find_unmaps(rows, removals)
    if removals.table.is_empty() and visits.is_empty():
        return _flushes(trace, known)
    table = removals.table.with_columns(
        rows.select(*_RECORD, "folio", "page", "mm", "vma", "kind", kind_number="number")[
            removals.table["row"].to_numpy()
        ],
        number=pl.int_range(pl.len(), dtype=pl.Int64),
        visit_mm=rows["mm"].gather(removals.table["visit"]),
        call=pl.Series(known.call_of_row[removals.table["row"].to_numpy()]),
    )
    table = table.with_columns(owner=pl.coalesce("visit_mm", pl.col("task").cast(pl.UInt64)))
    mappings = lives.find_mappings(trace)
    copies = rows.filter(pl.col("kind") == Kind.COPY).select("folio", "time_ns", "seq")
    facts = lives.find_lives(
        table.select("number", "folio", "time_ns", "seq", "owner", "index", "nr_pages", "is_split"),
        copies,
        mappings,
        page_size,
    )
    facts = _without_losses(facts, table, known.windows)
    table = table.join(facts, on="number", how="left", maintain_order="left")
    in_visit = unmaps.addresses(rows, removals, visits, page_size)
    addr = pl.select(pl.coalesce(in_visit, table["addr"])).to_series()
    table_pages = pmd_pages(page_size)
    table = table.with_columns(
        addr=addr,
        anon=pl.coalesce("anon", zapped_anonymous(trace, table)),
        run=number_runs(rows, removals, addr, page_size * table_pages),
    )
    behind = (pl.col("addr") // page_size).cast(pl.Int64) + pl.col("nr_pages")
    table = table.with_columns(lazyfree=_lazyfree(trace, table), ends_table=behind % table_pages == 0)
    table = table.with_columns(anon=pl.when("lazyfree").then(pl.lit(value=True)).otherwise("anon"))
    return pl.concat(
        [
            _removes(table, known),
            _splits(table, known),
            _visits(trace, visits, known),
            _flushes(trace, known),
        ],
        how="diagonal_relaxed",
    )


def _removes(table: pl.DataFrame, known: Replayed) -> pl.DataFrame:
    removes = table.filter(~pl.col("is_split"))
    walk = known.walk_of_row[removes["visit"].fill_null(-1).to_numpy()] if len(removes) else []
    return removes.with_columns(
        op=pl.lit("rmap.remove"),
        walk=pl.when(pl.col("phase") == "try_to_migrate").then(pl.Series(walk, dtype=pl.Int64)),
        mm="visit_mm",
        certainty=pl.lit("observed"),
    ).drop("index", "is_split", "number", "visit", "owner", "kind", "kind_number", "visit_mm", "base", strict=False)


def _splits(table: pl.DataFrame, known: Replayed) -> pl.DataFrame:
    """Calls of deferred_split_folio. One that names a migration's new folio belongs to that migration."""
    calls = table.filter("is_split")
    own = known.walk_of_row[calls["visit"].fill_null(-1).to_numpy()] if len(calls) else []
    to = (
        known.episodes.filter(pl.col("moved") & pl.col("try_first_row").is_not_null())
        .select("task", folio="dst", row="try_first_row", new_walk="remove_walk")
        .sort("row")
    )
    # 6.1 calls it again and again; later kernels, once the folio is marked, never
    asked = pl.col("kind_number").is_null()
    first = pl.int_range(pl.len()).over("life") == 0
    return (
        calls.sort("row")
        .join_asof(to, on="row", by=["task", "folio"], check_sortedness=False)
        .with_columns(
            op=pl.when((pl.col("kind_number") > 0) | (asked & first))
            .then(pl.lit("deferred_split.enqueue"))
            .otherwise(pl.lit("deferred_split.call")),
            walk=pl.when(pl.col("phase") == "try_to_migrate")
            .then(pl.Series(own, dtype=pl.Int64))
            .when(pl.col("phase") == "other")
            .then("new_walk"),
            certainty=pl.lit("observed"),
            nr_pages=pl.lit(1, pl.Int64),
        )
        .select(*_RECORD, "op", "row", "call", "walk", "folio", "phase", "life", "anon", "certainty", "nr_pages")
    )


def _visits(trace: Trace, visits: pl.DataFrame, known: Replayed) -> pl.DataFrame:
    at = visits["row"].to_numpy()
    visits = visits.with_columns(
        known.rows.select(*_RECORD, "folio", "vma", "mm", "addr")[at], number=pl.int_range(pl.len(), dtype=pl.Int64)
    )
    return visits.with_columns(
        lazyfree=unmaps.lazyfree(trace, visits.select("number", "folio", "time_ns", "addr")),
        op=pl.lit("try_to_unmap.vma_visit"),
        call=pl.Series(known.call_of_row[at], dtype=pl.Int64),
        is_visit=pl.lit(value=True),
        hit=pl.col("nr_pages") > 0,
        phase=pl.lit("try_to_unmap"),
        certainty=pl.lit("observed"),
    ).drop("walk_start", "number")


def _flushes(trace: Trace, known: Replayed) -> pl.DataFrame:
    """TLB flushes that the task itself performs; those that others ask of its processor are none of its own."""
    tables = schema.tables_fit(trace, "tlb_flush")
    reason = pl.col("number")
    flushes = (
        known.rows.select(*_RECORD, "number", "event")
        .with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64), call=pl.Series(known.call_of_row, dtype=pl.Int64))
        .filter(pl.col("event").cast(pl.String).is_in(tables) & reason.is_in([*_LOCAL, _SHOOTDOWN]))
    )
    return flushes.with_columns(
        op=pl.when(reason == _SHOOTDOWN).then(pl.lit("tlb.shootdown")).otherwise(pl.lit("tlb.flush")),
        certainty=pl.lit("observed"),
        nr_pages=pl.lit(0, pl.Int64),
    ).drop("number", "event")


def _lazyfree(trace: Trace, table: pl.DataFrame) -> pl.Series:
    """Boolean[n]: for what reclaim takes out of large folios; null for all else."""
    reclaimed = pl.col("phase") == "try_to_unmap"
    asked = table.filter(reclaimed & pl.col("life").is_not_null())
    found = asked.select("number", lazyfree=unmaps.lazyfree(trace, asked.select("number", "folio", "time_ns", "addr")))
    return table.select("number").join(found, on="number", how="left", maintain_order="left")["lazyfree"]


def _without_losses(known: pl.DataFrame, table: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """What is still mapped is not known where events went missing in the folio's life."""
    if windows.is_empty() or known.is_empty():
        return known
    spans = (
        known.join(table.select("number", "time_ns"), on="number")
        .group_by("life")
        .agg(start=pl.col("time_ns").min(), end=pl.col("time_ns").max())
    )
    begins, ends = windows["from_ns"].sort(), windows["until_ns"].sort()
    hit = spans.filter(
        pl.Series(begins.search_sorted(spans["end"], side="left") > ends.search_sorted(spans["start"], side="right"))
    )
    keep = ~pl.col("life").is_in(hit["life"].implode())
    return known.with_columns(pl.when(keep).then(pl.col(name)).alias(name) for name in ("unmapped", "left"))
