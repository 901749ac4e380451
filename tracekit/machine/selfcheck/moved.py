"""Pages whose entries the machine saw move, against what migrate_pages() itself counted (MODEL.md C.1)."""

import numpy as np
import polars as pl

from tracekit import schema
from tracekit.machine import pte
from tracekit.machine.entries import find_entries
from tracekit.machine.replay import Replay
from tracekit.machine.selfcheck.check import Check
from tracekit.machine.selfcheck.edges import UNMAPS, canonical, during, overlaps
from tracekit.machine.timeline import Kind
from tracekit.trace import Trace

# What may be off by then: a write fault of another process that takes a folio's last mapping before its turn.
THRESHOLD = 0.01
# No kernel moves pages without counting them.
BOUND_THRESHOLD = 0.0
_MOVED = ("migrate_pages.pages", "pages that migrate_pages() counts, moved or failed, of folios found in page tables")
_BOUND = ("migrate_pages.bound", "calls on folios found otherwise: they count no fewer pages than entries moved")
# Callers that take what page tables map. Others take page cache that nothing maps, too: it moves without an entry.
_IN_PAGE_TABLES = ("syscall_or_cpuset", "mempolicy_mbind", "numa_misplaced")


def checks(trace: Trace, replay: Replay) -> list[Check]:
    """Pages counted in calls of the first kind, and calls of the second."""
    why = "no call of migrate_pages() of this kind with both ends seen and no event lost inside"
    if replay.fidelity in ("counts", "none"):
        why = "needs VMA visits, observed or reconstructed"
    elif not schema.recorded(trace, "mm_migrate_pages"):
        why = "needs mm_migrate_pages"
    elif (calls := _calls(trace, replay)) is None:
        why = "the page table entries of this architecture are not decoded"
    else:
        exact = calls.filter("in_page_tables")
        bound = calls.filter(~pl.col("in_page_tables"))
        counted = int(exact.select((pl.col("succeeded") + pl.col("failed")).sum()).item())
        wrong = min(int(exact.select(_off().sum()).item()), counted)
        return [
            Check(*_MOVED, counted, counted - wrong, THRESHOLD, None if counted else why),
            Check.of(*_BOUND, bound["moved"] <= bound["succeeded"], BOUND_THRESHOLD, why),
        ]
    return [Check(*_MOVED, 0, 0, THRESHOLD, why), Check(*_BOUND, 0, 0, BOUND_THRESHOLD, why)]


def _off() -> pl.Expr:
    """Pages that the kernel's counts of a call and the machine's differ by.

    A folio whose last mapping goes between its isolation and its turn counts as moved and leaves no entry: while
    something is unmapped the kernel may count more.
    """
    counted, seen = pl.col("succeeded") + pl.col("failed"), pl.col("moved") + pl.col("left") + pl.col("unknown")
    too_many = (pl.col("moved") - pl.col("succeeded")).clip(0) + (pl.col("left") - pl.col("failed")).clip(0)
    return pl.when("unmapping").then(too_many).otherwise(pl.max_horizontal(too_many, counted - seen))


def _calls(trace: Trace, replay: Replay) -> pl.DataFrame | None:
    """Whole calls of migrate_pages(): succeeded, failed (pages, the kernel's), moved, left, unknown (the machine's)."""
    rows = replay.rows
    calls = replay.calls.filter((pl.col("kind") == "migrate_pages") & pl.col("end_row").is_not_null() & ~pl.col("lost"))
    reason = rows["label"].cast(pl.String).gather(calls["start_row"])
    named = reason.is_in(list(_IN_PAGE_TABLES))
    outer = replay.calls.select(parent="call", outer_ns="start_ns")
    calls = calls.join(outer, on="parent", how="left", maintain_order="left")
    from_ns = pl.coalesce("outer_ns", "start_ns")  # where its system call looked for them
    calls = calls.select(
        "call", "start_row", "end_row", "end_ns", "parent", from_ns=from_ns, seq=rows["seq"].gather(calls["end_row"])
    ).with_columns(
        # text may print no reason: then it is a system call's that asks
        in_page_tables=named.fill_null(value=False) | (reason.is_null() & pl.col("parent").is_not_null())
    )
    counted = canonical(trace, "mm_migrate_pages", "succeeded", "failed").drop("time_ns", "task")
    folios = _folios(replay, calls, pte.Machine.of(trace))
    if folios is None:
        return None
    found = folios.group_by("call").agg(pl.col("moved", "left", "unknown").sum())
    calls = calls.with_columns(unmapping=overlaps(during(trace, *UNMAPS), calls["from_ns"], calls["end_ns"]))
    return (
        calls.join(counted, on="seq")
        .join(found, on="call", how="left")
        .with_columns(pl.col("moved", "left", "unknown").fill_null(0))
    )


def _folios(replay: Replay, calls: pl.DataFrame, machine: pte.Machine) -> pl.DataFrame | None:
    """Per call and source folio: pages moved, pages left where they were at its last try, pages of which neither shows.

    All entries of the last were unmapped before they could be restored. A folio that is split counts page by page from
    then on; those of its pages that nothing maps are freed by the split, and counted as moved.
    None: the page table entries of the machine are not decoded.
    """
    rows = replay.rows
    entries = find_entries(rows, replay.walks)
    entries = entries.with_columns(order=rows["order"].gather(entries["row"]))
    sets = entries.filter(pl.col("kind") == Kind.SET)
    ends = entries.filter(pl.col("kind") == Kind.RESTORE).select(
        partner="row", end="row", new_pte="pte", new_order="order"
    )
    both = sets.join(ends, on="partner", how="left")
    src = pte.migration_entry_pfn(both["pte"].to_numpy(), *machine)
    dst = pte.present_pfn(both["new_pte"].fill_null(0).to_numpy(), *machine[:2])
    if src is None or dst is None:
        return None
    stays = pl.when(pl.col("end").is_not_null()).then(pl.Series(np.asarray(src == dst)))
    size = pl.lit(2, pl.Int64).pow(pl.col("order"))
    return (
        both.with_columns(call=_call_of(both["row"], calls), src=pl.Series(src).cast(pl.Int64), stays=stays)
        .drop_nulls("call")
        .sort("row")
        .group_by("call", "order", folio=pl.col("src") // size)
        .agg(
            stays=pl.col("stays").drop_nulls().last(),
            split=(pl.col("order").first() > 0) & (pl.col("new_order").max() < pl.col("order").first()),
            mapped=pl.col("src").n_unique(),
        )
        .with_columns(size=size)
        .select(
            "call",
            moved=pl.when(~pl.col("stays"))
            .then("size")
            .when("split")
            .then(pl.col("size") - pl.col("mapped"))
            .otherwise(0),
            left=pl.when(pl.col("stays") & ~pl.col("split")).then("size").otherwise(0),
            unknown=pl.when(pl.col("stays").is_null()).then("size").otherwise(0),
        )
    )


def _call_of(at: pl.Series, calls: pl.DataFrame) -> pl.Series:
    """int64[n]: the call in which each row lies; null: none. Calls of migrate_pages() do not nest."""
    calls = calls.sort("start_row")
    place = np.searchsorted(calls["start_row"].to_numpy(), at.to_numpy(), side="right") - 1
    known = calls[np.maximum(place, 0)] if len(calls) else calls
    if not len(calls):
        return pl.Series([None] * len(at), dtype=pl.Int64)
    inside = (place >= 0) & (known["end_row"].to_numpy() >= at.to_numpy())
    return pl.select(pl.when(pl.Series(inside)).then(known["call"])).to_series()
