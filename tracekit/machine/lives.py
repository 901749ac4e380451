"""Lives of large folios: what is still mapped after each rmap removal, which decides on the deferred split queue.

A folio's life goes from its first mapping to its last removal; its address comes back in others. A page is mapped
after a removal if the next thing known of it is another removal: fork maps pages without an event, but only those
that are mapped, and every other mapping has its probe. Where these probes were not recorded, a new life is told by a
page that the same task takes out a second time; one that several tasks take out is shared, or lived twice: unknown.
"""

from typing import NamedTuple

import polars as pl

from tracekit import schema
from tracekit.machine.removals import STRUCT_PAGE, pmd_pages
from tracekit.trace import Trace

_NEW, _ADD, _REMOVE, _SPLIT = range(4)
_ADDS = {"rmap_add_new_anon": _NEW, "rmap_add_anon": _ADD, "rmap_add_file": _ADD}
_EVENT = {
    "folio": pl.UInt64,
    "time_ns": pl.Int64,
    "seq": pl.UInt64,
    "what": pl.Int8,
    "index": pl.Int64,
    "nr_pages": pl.Int64,
    "anon": pl.Boolean,
    "addr": pl.UInt64,
}


class Mappings(NamedTuple):
    """What the probes of rmap_add show: one row per call, columns as ``_EVENT``; and whether they were recorded."""

    table: pl.DataFrame
    recorded: bool


def find_mappings(trace: Trace) -> Mappings:
    """Every mapping that a probe shows, of the whole trace."""
    found = [pl.DataFrame(schema=_EVENT)]
    for event, what in _ADDS.items():
        for table in schema.tables_fit(trace, event):
            own = {e.meta.output_name(): e for e in schema.columns_of(trace, table, event)}
            index = (own["page"] - own["folio"]).cast(pl.Int64) // STRUCT_PAGE if "page" in own else pl.lit(0)
            pages = own["number"] if "number" in own else pl.lit(pmd_pages(trace.page_size) if "page" in own else None)
            frame = trace.events(table).select(
                own["folio"].cast(pl.UInt64).alias("folio"),
                "time_ns",
                "seq",
                what=pl.lit(what, pl.Int8),
                index=index.cast(pl.Int64),
                nr_pages=pages.cast(pl.Int64),
                anon=pl.lit(event != "rmap_add_file"),
                addr=own.get("addr", pl.lit(None)).cast(pl.UInt64),
            )
            found.append(frame.collect())
    return Mappings(pl.concat(found), schema.recorded(trace, "rmap_add_new_anon"))


def find_lives(removals: pl.DataFrame, copies: pl.DataFrame, mappings: Mappings, page_size: int) -> pl.DataFrame:
    """What is known of the folio of each removal and each call of deferred_split_folio.

    Args:
        removals: columns number (0, 1, …), folio, time_ns, seq, index, nr_pages, is_split, and owner: whose page table.
        copies: folio, time_ns, seq of each folio copied to: its life begins.
        mappings: of ``find_mappings``.
        page_size: bytes.

    Returns:
        number, life, unmapped, left, anon: as in the operations table; addr: user address of the first page, as it was
        mapped last; sorted by number.
    """
    known = removals.filter(pl.col("folio").is_not_null())
    large = pl.concat(
        [
            known.filter((pl.col("nr_pages") > 1) | (pl.col("index") > 0) | pl.col("is_split"))["folio"],
            mappings.table.filter((pl.col("nr_pages") > 1) | (pl.col("index") > 0))["folio"],
        ]
    ).unique()
    of_large = pl.col("folio").is_in(large.implode())
    begins = copies.filter(of_large).select("folio", "time_ns", "seq", what=pl.lit(_NEW, pl.Int8))
    taken = known.filter(of_large).select(
        *("number", "folio", "time_ns", "seq", "owner", "index", "nr_pages"),
        what=pl.when("is_split").then(_SPLIT).otherwise(_REMOVE).cast(pl.Int8),
    )
    events = pl.concat([mappings.table.filter(of_large), begins, taken], how="diagonal").sort("folio", "time_ns", "seq")
    begin = (pl.col("what") == _NEW) | (pl.col("folio") != pl.col("folio").shift())
    events = events.with_columns(
        life=begin.fill_null(value=True).cum_sum().cast(pl.Int64), order=pl.int_range(pl.len())
    )
    if not mappings.recorded:
        events = _part(events)
    facts = _still_mapped(events, sure=mappings.recorded)
    # queued by a removal, a folio is partially mapped: whatever else is known of it
    anon = pl.col("anon").forward_fill().over("life")
    return (
        events.with_columns(
            anon=pl.when((pl.col("what") == _SPLIT).any().over("life")).then(pl.lit(value=True)).otherwise(anon),
            base=(pl.col("addr") - pl.col("index").cast(pl.UInt64) * page_size).forward_fill().over("life"),
        )
        .filter(pl.col("number").is_not_null())
        .join(facts, on="order", how="left")
        .select(
            "number",
            "life",
            "unmapped",
            "left",
            "anon",
            addr=pl.col("base") + pl.col("index").cast(pl.UInt64) * page_size,
        )
        .sort("number")
    )


def _part(events: pl.DataFrame) -> pl.DataFrame:
    """Where no probe shows a life begin: it does where the same owner takes the same page out again."""
    removes = events.filter(pl.col("what") == _REMOVE)
    again = removes.select("order", "life", "owner", "index", "nr_pages").with_columns(
        before=pl.col("order").shift().over("life", "owner", "index"),
        last=pl.col("order").shift().over("life", "owner"),
        low=pl.col("index").shift().over("life", "owner"),
        high=(pl.col("index") + pl.col("nr_pages")).shift().over("life", "owner"),
    )
    overlaps = (pl.col("low") < pl.col("index") + pl.col("nr_pages")) & (pl.col("index") < pl.col("high"))
    seen = (
        again.with_columns(before=pl.max_horizontal("before", pl.when(overlaps).then("last")))
        .drop_nulls("before")
        .select("life", "order", "before")
    )
    starts, life_before, start = [], None, -1
    for life, order, before in seen.sort("life", "order").iter_rows():
        if life != life_before:
            life_before, start = life, -1
        if before >= start:
            starts.append(order)
            start = order
    begins = pl.col("order").is_in(starts) | (pl.col("life") != pl.col("life").shift()).fill_null(value=True)
    return events.with_columns(life=begins.cum_sum().cast(pl.Int64))


def _still_mapped(events: pl.DataFrame, *, sure: bool) -> pl.DataFrame:
    """(order, unmapped, left) of each removal; null where not ``sure`` and a page is taken out twice in one life."""
    pages = events.filter(pl.col("what").is_in([_ADD, _REMOVE]) & (pl.col("index") >= 0)).select(
        "order", "life", "what", "index", "nr_pages"
    )
    is_remove = pl.col("what") == _REMOVE
    twice = (
        pages.filter(is_remove)
        .sort("life", "index")
        .with_columns(end=(pl.col("index") + pl.col("nr_pages")).cum_max().over("life"))
        .filter((pl.col("index") < pl.col("end").shift().over("life")).fill_null(value=False))
    )
    mapped_late = pages.with_columns(removed=is_remove.cum_max().over("life")).filter(~is_remove & pl.col("removed"))
    odd = pl.concat([twice["life"], mapped_late["life"]]).unique()
    in_odd = pl.col("life").is_in(odd.implode())
    simple = pages.filter(is_remove & ~in_odd).select(
        "order",
        unmapped="nr_pages",
        left=(pl.col("order") < pl.col("order").max().over("life")) | (pl.col("life").is_in(_kept(pages).implode())),
    )
    found = [simple]
    if not odd.is_empty():
        # without probes of mappings there are none that are mapped late, only pages taken out twice
        complex_ = _page_by_page(pages.filter(in_odd))
        nothing = (pl.lit(None, pl.Int64).alias("unmapped"), pl.lit(None, pl.Boolean).alias("left"))
        found.append(complex_ if sure else complex_.with_columns(*nothing))
    return _queued(events, pl.concat(found))


def _kept(pages: pl.DataFrame) -> pl.Series:
    """Lives of which more pages were mapped, by probes, than were taken out: the rest is mapped to the end."""
    remove = pl.col("what") == _REMOVE
    sums = pages.group_by("life").agg(
        added=pl.col("nr_pages").filter(~remove).sum(), removed=pl.col("nr_pages").filter(remove).sum()
    )
    return sums.filter(pl.col("added") > pl.col("removed"))["life"]


def _queued(events: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """A folio queued right after a removal had pages that were mapped, whether or not the trace shows them go."""
    after = (pl.col("what").shift(-1) == _SPLIT) & (pl.col("life").shift(-1) == pl.col("life"))
    queued = events.filter(after & (pl.col("what") == _REMOVE))["order"]
    return facts.with_columns(left=pl.col("left") | pl.col("order").is_in(queued.implode()))


def _page_by_page(pages: pl.DataFrame) -> pl.DataFrame:
    """(order, unmapped, left) of the removals in ``pages`` (order, life, what, index, nr_pages), page by page."""
    each = (
        pages.with_columns(page=pl.int_ranges("index", pl.col("index") + pl.col("nr_pages").fill_null(1)))
        .explode("page")
        .sort("life", "page", "order")
    )
    remove = pl.col("what") == _REMOVE
    of_page = ("life", "page")
    after = (~remove) | (remove.shift(-1).over(of_page)).fill_null(value=False)
    each = each.with_columns(after=after).with_columns(
        before=pl.col("after").shift().over(of_page).fill_null(remove), first=pl.int_range(pl.len()).over(of_page) == 0
    )
    initial = each.filter("first").group_by("life").agg(initial=remove.sum().cast(pl.Int64))
    return (
        each.group_by("order", maintain_order=True)
        .agg(
            pl.col("life", "what").first(),
            unmapped=(~pl.col("after")).sum().cast(pl.Int64),
            change=pl.col("after").cast(pl.Int64).sum() - pl.col("before").cast(pl.Int64).sum(),
        )
        .sort("order")
        .join(initial, on="life", how="left", maintain_order="left")
        .with_columns(left=pl.col("initial").fill_null(0) + pl.col("change").cum_sum().over("life") > 0)
        .filter(remove)
        .select("order", "unmapped", "left")
    )
