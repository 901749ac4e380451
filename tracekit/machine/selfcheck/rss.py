"""RSS as the life cycle and the faults say it must change, against the values that kmem:rss_stat prints.

struct mm_struct counts the pages it maps by kind; the event prints the new value whenever one changes, and a hash of
the mm (MODEL.md C.1). What is predicted is one step at a time, from the value printed before: a wrong step does not
make the next ones wrong, and what no event explains (a read() into fresh memory, fault-around) is unknown and not
compared. Nor is a step across a loss.
"""

import polars as pl

from tracekit import schema
from tracekit.errors import MissingEventsError
from tracekit.machine.losses import lost_windows
from tracekit.machine.replay import Replay
from tracekit.machine.selfcheck.check import Check
from tracekit.machine.selfcheck.counters import counters, switches, with_space
from tracekit.machine.selfcheck.edges import canonical, clean
from tracekit.trace import Trace

ANON, SWAP = 1, 2  # include/linux/mm_types_task.h: MM_ANONPAGES, MM_SWAPENTS
NOT_COPIED = (10, 18)  # madvise: MADV_DONTFORK, MADV_WIPEONFORK

# The kernel knows no exception from these laws. What is left to chance: a hash that a later mm has again, a system call
# that was not recorded between a fault and the next event of its task, two threads that count at the same time.
THRESHOLD = 0.01

_WHAT = {
    "rss.address_space": "mm that a task counts in: that of the address space it was forked or exec'ed into",
    "rss.fork": "anonymous pages and swap entries of a forked child: as many as its parent's",
    "rss.fault": "anonymous pages that a write fault adds: those of one folio",
    "rss.migration": "counters that migrate_pages() changes: none",
    "rss.exit": "pages that an address space ends with: none",
}


def checks(trace: Trace, replay: Replay) -> list[Check]:
    """One check per law."""
    lacking = [event for event in ("rss_stat", "process_exec") if not schema.recorded(trace, event)]
    why = f"needs {', '.join(lacking)}" if lacking else "the trace shows none"
    right: dict[str, pl.Series] = {}
    try:
        right = {} if lacking else _right(trace, replay)
    except MissingEventsError as error:
        why = str(error)
    none = pl.Series(dtype=pl.Boolean)
    return [Check.of(name, what, right.get(name, none), THRESHOLD, why) for name, what in _WHAT.items()]


def _right(trace: Trace, replay: Replay) -> dict[str, pl.Series]:
    """For each law, of everything that it can be asked of, whether it holds."""
    windows, switched, rss = lost_windows(trace, replay.rows), switches(trace), counters(trace)
    owned = with_space(rss.filter(pl.col("curr") == 1), switched)
    mm_of = owned.group_by("space", maintain_order=True).agg(
        pl.col("mm_id").first(), first_ns=pl.col("time_ns").first()
    )
    exits = with_space(canonical(trace, "exit_mmap"), switched)
    return {
        "rss.address_space": _address_spaces(owned, mm_of, windows),
        "rss.fork": _forks(rss, switched, mm_of, canonical(trace, "madvise", "c"), windows),
        "rss.fault": _faults(rss, windows),
        "rss.migration": _migrations(rss, replay),
        "rss.exit": _exits(rss, exits, mm_of, windows),
    }


def _address_spaces(owned: pl.DataFrame, mm_of: pl.DataFrame, windows: pl.DataFrame) -> pl.Series:
    known = owned.join(mm_of.rename({"mm_id": "expected"}), on="space").filter(
        (pl.col("time_ns") > pl.col("first_ns")) & ~pl.col("in_exec")
    )
    known = known.filter(clean(windows, known["first_ns"], known["time_ns"]))
    return known["mm_id"] == known["expected"]


def _forks(
    rss: pl.DataFrame, switched: pl.DataFrame, mm_of: pl.DataFrame, advice: pl.DataFrame, windows: pl.DataFrame
) -> pl.Series:
    """The child's counters, as its parent has brought them up when the copy is made, against the parent's."""
    left_out = advice.filter(pl.col("c").is_in(NOT_COPIED))["task"]
    forks = switched.drop_nulls("parent").select("time_ns", task="parent", child="space", fork=pl.int_range(pl.len()))
    forks = with_space(forks.filter(~pl.col("task").is_in(left_out.implode())).sort("time_ns"), switched)
    kinds = forks.join(pl.DataFrame({"member": [ANON, SWAP]}), how="cross")
    of_parent = _last(rss, kinds.join(mm_of, on="space"), windows).drop_nulls("pages")
    of_child = _last(rss, kinds.join(mm_of, left_on="child", right_on="space"), windows)
    # what another task counted under this hash was that of an mm before
    copied = pl.when(pl.col("by") == pl.col("task")).then("pages").fill_null(0)
    both = of_parent.join(of_child.select("fork", "member", copied=copied), on=["fork", "member"])
    return both["copied"] == both["pages"]


def _last(rss: pl.DataFrame, asked: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """``asked`` (mm_id, member, time_ns) with the value last printed before (pages) and by whom; none across a loss."""
    last = rss.select("mm_id", "member", "pages", seen_ns="time_ns", by="task")
    seen = asked.sort("time_ns").join_asof(
        last, left_on="time_ns", right_on="seen_ns", by=["mm_id", "member"], check_sortedness=False, coalesce=False
    )
    return seen.filter(pl.col("seen_ns").is_null() | clean(windows, seen["seen_ns"], seen["time_ns"]))


def _faults(rss: pl.DataFrame, windows: pl.DataFrame) -> pl.Series:
    """Of large folios the trace does not tell the order: any power of two will do."""
    known = rss.filter(
        pl.col("write") & pl.col("first") & ~pl.col("in_exec") & (pl.col("curr") == 1) & (pl.col("member") == ANON)
    )
    known = known.filter(clean(windows, known["since"], known["time_ns"]))
    return (known["pages"] - known["before"]).is_in([1 << order for order in range(20)])


def _migrations(rss: pl.DataFrame, replay: Replay) -> pl.Series:
    """Of each call of migrate_pages(), whether its task counted nothing in it."""
    calls = replay.calls.filter((pl.col("kind") == "migrate_pages") & ~pl.col("lost") & pl.col("end_ns").is_not_null())
    starts = calls.select("task", "call", "end_ns", time_ns="start_ns").sort("time_ns")
    counted = rss.select("time_ns", "task").join_asof(starts, on="time_ns", by="task", check_sortedness=False)
    inside = counted.filter(pl.col("time_ns") < pl.col("end_ns"))
    return ~calls["call"].is_in(inside["call"].implode())


def _exits(rss: pl.DataFrame, exits: pl.DataFrame, mm_of: pl.DataFrame, windows: pl.DataFrame) -> pl.Series:
    """The last value of each counter of an mm before the end of its exit_mmap()."""
    ends = exits.join(mm_of, on="space").join(rss.select("mm_id", "member").unique(), on="mm_id")
    seen = _last(rss, ends, windows).filter(pl.col("seen_ns") >= pl.col("first_ns"))
    return seen["pages"] == 0
