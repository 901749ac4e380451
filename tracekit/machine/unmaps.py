"""Reclaim: the VMA visits of try_to_unmap, and which folios MADV_FREE left to it to drop."""

import numpy as np
import polars as pl

from tracekit import schema
from tracekit.machine.removals import Removals
from tracekit.machine.timeline import Kind
from tracekit.machine.walks import unbroken
from tracekit.trace import Trace

_MADV_FREE = 8
_MOST_OVERLAP = 64  # a search through ranges that lie over each other takes their number squared
_ENDS = (Kind.UNMAP, Kind.UNMAP_RETURN, Kind.SYSCALL_ENTER, Kind.SYSCALL_EXIT, Kind.TRY, Kind.TRY_VISIT)


def find_unmaps(rows: pl.DataFrame, removals: Removals) -> pl.DataFrame:
    """One row per call of try_to_unmap_one.

    Returns:
        row, walk_start (row of the walk's first visit), position (in the walk), nr_pages (taken out in it), stopped
        (whether it ended the walk; null: its return was not probed).
    """
    kind, folio = rows["kind"].to_numpy(), rows["folio"].fill_null(0).to_numpy()
    run = unbroken(rows)
    at = np.flatnonzero(np.isin(kind, (Kind.UNMAP_VISIT, Kind.UNMAP_VISIT_RETURN, *_ENDS)))
    is_visit = kind[at] == Kind.UNMAP_VISIT
    visits = at[is_visit]
    # the return of a visit is the next of these rows, and so is the next visit of its walk, or the one after
    after = np.append(at, -1)[np.flatnonzero(is_visit) + 1]
    returns = (after >= 0) & (kind[after] == Kind.UNMAP_VISIT_RETURN) & (run[after] == run[visits])
    ends = np.cumsum(np.isin(kind, _ENDS))[visits]
    begins = np.ones(len(visits), dtype=bool)
    if len(visits):
        same = (folio[visits][1:] == folio[visits][:-1]) & (run[visits][1:] == run[visits][:-1])
        begins[1:] = ~same | (ends[1:] != ends[:-1])
    start = np.flatnonzero(begins)
    lengths = np.diff(np.append(start, len(visits)))
    taken = removals.table.filter((pl.col("phase") == "try_to_unmap") & ~pl.col("is_split"))
    counted = taken.group_by("visit").agg(pl.col("nr_pages").sum())
    returned = rows["number"][np.where(returns, after, 0)] if len(rows) else rows["number"]
    return (
        pl.DataFrame(
            {
                "row": visits.astype(np.int64),
                "walk_start": np.repeat(visits[start], lengths).astype(np.int64),
                "position": np.arange(len(visits)) - np.repeat(start, lengths),
            }
        )
        .with_columns(stopped=pl.when(pl.Series(returns, dtype=pl.Boolean)).then(returned == 0))
        .join(counted, left_on="row", right_on="visit", how="left", maintain_order="left")
        .with_columns(pl.col("nr_pages").fill_null(0))
    )


def addresses(rows: pl.DataFrame, removals: Removals, unmaps: pl.DataFrame, page_size: int) -> pl.Series:
    """UInt64[n]: user address of the first page of each removal in a visit; null elsewhere.

    A visit begins at the folio's first page, or where the VMA does: the second VMA that one address space maps of a
    folio begins at the first page found in it.
    """
    table = removals.table.with_columns(number=pl.int_range(pl.len()))
    taken = table.filter(pl.col("visit").is_not_null() & pl.col("index").is_not_null())
    visit = taken["visit"].to_numpy()
    base = rows["addr"][visit]
    second = unmaps.filter(pl.col("position") > 0)["row"]
    first = pl.when(pl.col("visit").is_in(second.implode())).then(pl.col("index").min().over("visit")).otherwise(0)
    # what a folio's pages before the visit's are mapped by, an earlier visit has found in another VMA of that space
    found = taken.with_columns(base=base, mm=rows["mm"][visit], vma=rows["vma"][visit]).with_columns(skipped=first)
    addr = found.select(
        "number", at=pl.col("base") + ((pl.col("index") - pl.col("skipped")) * page_size).cast(pl.UInt64)
    )
    return table.select("number").join(addr, on="number", how="left", maintain_order="left")["at"]


def lazyfree(trace: Trace, folios: pl.DataFrame) -> pl.Series:
    """Boolean[n]: whether MADV_FREE was called on each folio before; null: no event tells.

    Args:
        trace: where folio_mark_lazyfree was probed, it says so; else the call itself, by its address range.
        folios: number, folio, time_ns, addr (where it is mapped; null: not known), sorted by number.
    """
    tables = schema.tables_fit(trace, "lazyfree")
    if tables:
        marked = [
            trace.events(table).select(*schema.columns_of(trace, table, "lazyfree"), "time_ns") for table in tables
        ]
        found = folios.sort("time_ns").join_asof(
            pl.concat(marked).select("folio", "time_ns", marked=pl.lit(value=True)).collect().sort("time_ns"),
            on="time_ns",
            by="folio",
            check_sortedness=False,
        )
        return found.sort("number")["marked"].fill_null(value=False)
    calls = [
        trace.events(table).select("time_ns", *schema.columns_of(trace, table, "madvise"))
        for table in schema.tables_fit(trace, "madvise")
    ]
    if not calls:
        return pl.repeat(None, len(folios), dtype=pl.Boolean, eager=True)
    ranges = (
        pl.concat(calls).filter(pl.col("c") == _MADV_FREE).group_by("a", "b").agg(pl.col("time_ns").min()).collect()
    )
    if _overlap(ranges) > _MOST_OVERLAP:
        return pl.repeat(None, len(folios), dtype=pl.Boolean, eager=True)
    inside = (
        folios.select("number", "time_ns", "addr")
        .join_where(
            ranges.select(free_ns="time_ns", low="a", high=pl.col("a") + pl.col("b")),
            pl.col("addr") >= pl.col("low"),
            pl.col("addr") < pl.col("high"),
            pl.col("time_ns") > pl.col("free_ns"),
        )
        .select("number", inside=pl.lit(value=True))
        .unique()
    )
    return folios.join(inside, on="number", how="left", maintain_order="left")["inside"]


def _overlap(ranges: pl.DataFrame) -> float:
    """How many of the ``ranges`` (a, b: start and length) an address that lies in one lies in on average."""
    ends = ranges.sort("a").with_columns(end=pl.col("a") + pl.col("b"))
    before = ends["end"].cum_max().shift(1, fill_value=0)
    new = (
        ends["end"].cast(pl.Float64) - pl.select(pl.max_horizontal(ends["a"], before)).to_series().cast(pl.Float64)
    ).clip(0)
    union = float(new.sum())
    return float(ends["b"].cast(pl.Float64).sum()) / union if union else 0.0
