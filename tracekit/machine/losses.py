"""Lost events: the stretches of time in which the trace may have missed something, processor by processor."""

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.trace import Trace

_EVER = np.iinfo(np.int64)


def lost_windows(trace: Trace, rows: pl.DataFrame) -> pl.DataFrame:
    """(cpu, from_ns, until_ns) of each loss.

    A LOST record says that events went missing before it, since the last record of its CPU that was kept. Where the
    reader does not tell when that was, only the records in the timeline are known: such a window may be too wide,
    never too narrow. What perf counts as lost beyond its LOST records (LOST_SAMPLES has no place in time) was lost
    after the last record of some CPU, for the next would have brought a LOST record with it.
    """
    empty = pl.DataFrame(schema={"cpu": pl.Int32, "from_ns": pl.Int64, "until_ns": pl.Int64})
    if not trace.manifest["tables"].get("lost", {}).get("rows"):
        return empty
    lost = trace.table("lost").collect()
    for column, kind in (("from_ns", pl.Int64), ("kind", pl.String), ("count", pl.UInt64)):
        if column not in lost.columns:
            lost = lost.with_columns(pl.lit(None, kind).alias(column))
    placeless = (pl.col("kind").cast(pl.String) == "lost_samples").fill_null(value=False)
    known = rows.select("cpu", seen_ns="time_ns", until_ns="time_ns").sort("until_ns")
    cpus = known.select("cpu").unique()
    placed = lost.filter(~placeless).select("cpu", "from_ns", until_ns="time_ns")
    anywhere = placed.filter(pl.col("cpu").is_null()).drop("cpu").join(cpus, how="cross")
    placed = pl.concat([placed.drop_nulls("cpu"), anywhere.select(placed.columns)]).sort("until_ns")
    windows = placed.join_asof(
        known, on="until_ns", by="cpu", strategy="backward", allow_exact_matches=False, check_sortedness=False
    ).select("cpu", pl.coalesce("from_ns", "seen_ns").fill_null(_EVER.min), "until_ns")
    beyond = lost.filter(placeless)["count"].sum() > lost.filter(~placeless)["count"].sum()
    if not beyond:
        return windows
    ends = known.group_by("cpu").agg(from_ns=pl.col("seen_ns").max(), until_ns=pl.lit(_EVER.max, pl.Int64))
    return pl.concat([windows, ends])


def touched(spans: pl.DataFrame, windows: pl.DataFrame, rows: pl.DataFrame) -> npt.NDArray[np.bool_]:
    """bool[n_spans]: whether a loss on a CPU that the span's task was seen on falls into it.

    Args:
        spans: first_row, last_row into ``rows``, both of one task; start_ns, end_ns.
        windows: of ``lost_windows``.
        rows: the timeline.
    """
    bad = np.zeros(len(spans), dtype=bool)
    if windows.is_empty() or spans.is_empty():
        return bad
    cpu = rows["cpu"].to_numpy()
    first, last = spans["first_row"].to_numpy(), spans["last_row"].to_numpy()
    start, end = spans["start_ns"].to_numpy(), spans["end_ns"].to_numpy()
    for (this_cpu,), group in windows.group_by("cpu"):
        here = np.concatenate(([0], np.cumsum(cpu == this_cpu)))
        begins, ends = np.sort(group["from_ns"].to_numpy()), np.sort(group["until_ns"].to_numpy())
        # one overlaps iff more begin before the span's end than end before its start
        overlap = np.searchsorted(begins, end, side="left") > np.searchsorted(ends, start, side="right")
        bad |= overlap & (here[last + 1] > here[first])
    return bad
