"""Lost events: the stretches of time in which the trace may have missed something, processor by processor."""

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.trace import Trace


def lost_windows(trace: Trace, rows: pl.DataFrame) -> pl.DataFrame:
    """(cpu, from_ns, until_ns) of each loss.

    A LOST record says that events went missing before it, since the last record of its CPU that was kept. Of those
    only the ones in the timeline are known here, so a window may be too wide, never too narrow.
    """
    empty = pl.DataFrame(schema={"cpu": pl.Int32, "from_ns": pl.Int64, "until_ns": pl.Int64})
    if not trace.manifest["tables"].get("lost", {}).get("rows"):
        return empty
    lost = trace.table("lost").select("cpu", until_ns="time_ns").collect()
    known = rows.select("cpu", from_ns="time_ns", until_ns="time_ns").sort("until_ns")
    anywhere = lost.filter(pl.col("cpu").is_null()).select("until_ns").join(known.select("cpu").unique(), how="cross")
    lost = pl.concat([lost.drop_nulls("cpu"), anywhere.select("cpu", "until_ns")]).sort("until_ns")
    return lost.join_asof(
        known, on="until_ns", by="cpu", strategy="backward", allow_exact_matches=False, check_sortedness=False
    ).select("cpu", pl.col("from_ns").fill_null(np.iinfo(np.int64).min), "until_ns")


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
