"""Page faults that no migrated page depends on, left out before the replay takes event by event.

They are most of a trace: what is decided here costs a fraction of what it costs there.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.machine.reconstruct.events import WRITE, Code
from tracekit.machine.reconstruct.kin import Kin
from tracekit.machine.reconstruct.prune import Areas, Migrated, Numbers
from tracekit.machine.reconstruct.spaces import AROUND

_MAKES = (Code.MMAP, Code.MREMAP, Code.BRK)
Flags = npt.NDArray[np.bool_]


class Where(NamedTuple):
    """Attributes.

    moved: what migrates.
    near: the areas that hold it.
    kin: whose memory an entry can be of; None: anyone's.
    """

    moved: Migrated
    near: Areas
    kin: Kin | None


def faults(events: pl.DataFrame, cycle: pl.DataFrame, marks: pl.DataFrame, where: Where) -> pl.DataFrame:
    """The page faults that matter, and of each thread the one behind such a one, which shows that that is over.

    Args:
        events: those of code FAULT, in order of time.
        cycle: all else but the entries.
        marks: the entries.
        where: what they may touch.
    """
    moved, near, kin = where
    page, time = events["a"].to_numpy() >> 12, events["time_ns"].to_numpy()
    write = (events["b"].to_numpy() & WRITE) != 0
    at = np.searchsorted(moved.pages, page).clip(max=max(len(moved.pages) - 1, 0))
    there = moved.pages[at] == page if len(moved.pages) else np.zeros(len(page), dtype=bool)
    exact = there.copy()
    exact[there] = time[there] <= moved.until[at[there]]
    tid, area = events["tid"].to_numpy(), near.of(page)
    other = np.zeros(len(page), dtype=bool)
    if kin is not None:
        other = exact & (area >= 0) & ~kin.may_share(page)
        other[other] = ~kin.migrates(tid[other], page[other])
        exact &= ~other
    window = ~write & np.isin(page >> AROUND, moved.pages >> AROUND)
    matters = exact | window
    matters |= _behind(matters, tid)
    matters[_again(np.flatnonzero(matters), exact & write, events, cycle, marks)] = False
    first = np.flatnonzero(write & ~matters & (area >= 0))
    # an area may be of several VMAs; where another's pages at the same addresses are left out, each cell counts
    area = np.where(other, len(near.starts) + np.searchsorted(near.cells, page, side="right"), area)
    matters[first[_first(events[first].with_columns(area=area[first]), cycle, near)]] = True
    return events.filter(pl.Series(matters))


def _behind(matters: Flags, tid: npt.NDArray[np.int32]) -> Flags:
    by_thread = np.argsort(tid, kind="stable")
    behind = np.zeros(len(matters), dtype=bool)
    before, after = by_thread[:-1], by_thread[1:]
    behind[after] = matters[before] & (tid[before] == tid[after])
    return behind


def _first(writes: pl.DataFrame, cycle: pl.DataFrame, near: Areas) -> Numbers:
    """int64[n]: places of the first of each thread in each area, since it began and since a mapping was made there."""
    begun = cycle.filter(pl.col("code").is_in([Code.NEWTASK, Code.EXEC])).select(
        "time_ns", pl.when(pl.col("code") == Code.NEWTASK).then("a").otherwise("tid").cast(pl.Int32).alias("tid")
    )
    maps = cycle.filter(pl.col("code").is_in(_MAKES))
    inside = maps.select(pl.col("ret").fill_null(0) - (pl.col("code") == Code.BRK)).to_series()  # brk() says the end
    pages = inside.to_numpy() >> 12
    cell = len(near.starts) + np.searchsorted(near.cells, pages, side="right")
    made = pl.concat([maps.select("time_ns", area=pl.Series(where)) for where in (near.of(pages), cell)])
    writes = writes.select("time_ns", "tid", "area").with_row_index("place")
    for other, by in ((begun, "tid"), (made, "area")):
        since = other.sort("time_ns").with_columns(pl.col("time_ns").alias(f"since_{by}"))
        writes = writes.join_asof(since, on="time_ns", by=by, check_sortedness=False)
    kept = writes.unique(["tid", "area", "since_tid", "since_area"], keep="first", maintain_order=True)
    return kept["place"].to_numpy().astype(np.int64)


def _again(kept: Numbers, writes: Flags, events: pl.DataFrame, cycle: pl.DataFrame, marks: pl.DataFrame) -> Numbers:
    """Which of ``kept`` write where the same thread did before, and nothing but faults happened since.

    The last fault of a thread before anything else stays: it may not be over then.
    """
    time, tid = events["time_ns"].to_numpy()[kept], events["tid"].to_numpy()[kept]
    other = np.sort(np.concatenate([cycle["time_ns"].to_numpy(), marks["time_ns"].to_numpy()]))
    before, until = np.searchsorted(other, time, side="left"), np.searchsorted(other, time, side="right")
    ends = np.ones(len(kept), dtype=bool)
    one, after = _pairs(tid)
    ends[one] = until[after] != before[one]
    again = np.zeros(len(kept), dtype=bool)
    writing = np.flatnonzero(writes[kept])
    page = events["a"].to_numpy()[kept[writing]] >> 12
    one, after = _pairs(tid[writing], page)
    again[writing[after]] = until[writing[after]] == before[writing[one]]
    return kept[again & ~ends]


def _pairs(*keys: npt.NDArray[np.integer]) -> tuple[Numbers, Numbers]:
    """Places of each one and of the next that has the same keys."""
    order = np.lexsort(keys)
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    return order[:-1][same], order[1:][same]
