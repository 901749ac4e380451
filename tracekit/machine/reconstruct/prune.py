"""What of a life cycle no migrated page can depend on, left out before the replay takes event by event.

A write matters at pages that migrate, until they last do; elsewhere in the mapping of one only as its first, which
gives the VMA an anon_vma. A mapping matters where one lies in it or in one that touches it. A process that came and
went while nothing migrated, and left no child, matters to what its parent may write, and to which anon_vma of a dead
ancestor another fork may reuse.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.machine.reconstruct.events import CLONE_VM, Code
from tracekit.machine.reconstruct.folios import IMAGE
from tracekit.machine.reconstruct.spaces import PMD_ORDER

Numbers = npt.NDArray[np.int64]

_MAPS = (Code.MMAP, Code.MUNMAP, Code.MPROTECT, Code.MADVISE, Code.MREMAP)
_CLONES = (Code.CLONE, Code.CLONE3)
LIVES = (Code.NEWTASK, *_CLONES, Code.EXEC, Code.EXIT, Code.EXIT_MMAP, Code.LOST)
"""What ``gone`` goes by."""


class Migrated(NamedTuple):
    """Every page of the folios that migrate: where in a large one its entry stands is not known before its walk.

    Attributes:
        pages: int64[n], in order; also those from which mremap() moved what migrates.
        until: int64[n], ns, when the last entry at or near it was set.
        large: bool[n], whether a large folio may stand there.
        huge: whether there are folios of a PMD.
    """

    pages: Numbers
    until: Numbers
    large: npt.NDArray[np.bool_]
    huge: bool


def migrated(marks: pl.DataFrame, cycle: pl.DataFrame) -> Migrated:
    """Of all marks of a trace; of ``cycle``, in order of time, only what was moved counts."""
    sets = marks.filter(pl.col("code") == Code.SET).group_by("b", pl.col("d").fill_null(0)).agg(pl.col("time_ns").max())
    pages, of = every_page(sets)
    large, _ = latest(*(each[sets["d"].to_numpy()[of] > 0] for each in (pages, of)))
    pages, until = latest(pages, sets["time_ns"].to_numpy()[of])
    found = Migrated(pages, until, np.isin(pages, large), bool((sets["d"] >= PMD_ORDER).any()))
    moves = cycle.filter((pl.col("code") == Code.MREMAP) & pl.col("ret").is_between(1, (1 << 62) - 1))
    for start, length, to in moves.select("a", "b", "ret").reverse().iter_rows():
        found = _from(found, start >> 12, (length + 4095) >> 12, to >> 12)
    return found


def _from(moved: Migrated, start: int, length: int, to: int) -> Migrated:
    """``moved`` and the pages from ``start`` on, which a call moved to ``to``, as far as these are among them."""
    some = slice(*np.searchsorted(moved.pages, [to, to + length]).tolist())
    source = moved.pages[some] - to + start
    at = np.searchsorted(moved.pages, source).clip(max=len(moved.pages) - 1)
    until, large = moved.until[some], moved.large[some]
    if ((moved.pages[at] == source) & (moved.until[at] >= until) & (moved.large[at] >= large)).all():
        return moved
    frames = [
        pl.DataFrame({"page": pages, "until": until, "large": large})
        for pages, until, large in (moved[:3], (source, until, large))
    ]
    every = pl.concat(frames).group_by("page").agg(pl.col("until", "large").max()).sort("page")
    pages, until, large = (every[name].to_numpy() for name in ("page", "until", "large"))
    return Migrated(pages, until, large, moved.huge)


def latest(keys: Numbers, times: Numbers) -> tuple[Numbers, Numbers]:
    """Each of ``keys`` once, in order, and the latest of its times."""
    last = pl.DataFrame({"key": keys, "time": times}).group_by("key").agg(pl.col("time").max()).sort("key")
    return last["key"].to_numpy(), last["time"].to_numpy()


def every_page(sets: pl.DataFrame) -> tuple[Numbers, Numbers]:
    """Every page of the folios that entries at pages ``b``, of order ``d``, may be of; and of which entry it is."""
    reach = (1 << sets["d"].fill_null(0).clip(0, 30).to_numpy()) - 1
    counts = 2 * reach + 1
    of = np.repeat(np.arange(len(sets)), counts)
    within = np.arange(len(of)) - (np.cumsum(counts) - counts)[of]
    return (sets["b"].to_numpy() - reach)[of] + within, of


class Areas(NamedTuple):
    """Mappings that hold or touch what migrates, joined where they touch: starts and ends in pages, in order.

    Attributes:
        cells: where any mapping may begin or end.
    """

    starts: Numbers
    ends: Numbers
    cells: Numbers

    def of(self, pages: Numbers) -> Numbers:
        """int64[n]: number of the area that each page lies in; -1: in none."""
        at = np.searchsorted(self.starts, pages, side="right") - 1
        return np.where((at >= 0) & (pages < np.append(self.ends, 0)[at]), at, -1)


def areas(cycle: pl.DataFrame, pages: Numbers) -> Areas:
    """Out of the calls that map, unmap and change mappings."""
    calls = cycle.filter(pl.col("code").is_in(_MAPS))
    moved = calls.filter(pl.col("code") == Code.MREMAP)
    every = [spans(calls, "a", "b"), spans(calls.filter(pl.col("code") == Code.MMAP), "ret", "b")]
    every += [to := spans(moved, "ret", "c")]
    heaps = cycle.filter((pl.col("code") == Code.BRK) & (pl.col("b") > 0))
    every += [spans(heaps.select("b", grown=pl.col("ret") - pl.col("b")), "b", "grown")]
    every += [images(cycle)]
    low, high = np.concatenate(every, axis=1)
    cells = np.unique(np.concatenate([low, high]))
    order = np.argsort(low, kind="stable")
    low, high = low[order], np.maximum.accumulate(high[order], axis=0)
    cuts = np.flatnonzero(low[1:] > high[:-1]) + 1
    starts, ends = low[np.append(0, cuts)] if len(low) else low, high[np.append(cuts - 1, -1)] if len(low) else high
    held = np.searchsorted(pages, ends) > np.searchsorted(pages, starts)
    for ends_of_move in (spans(moved, "a", "b"), to):  # what moves takes its pages with it
        at = np.searchsorted(starts, ends_of_move[0], side="right") - 1
        held[at[at >= 0]] = True
    return Areas(starts[held], ends[held], cells)


def spans(calls: pl.DataFrame, start: str, length: str) -> Numbers:
    """int64[2, n]: first page and end of what calls that succeeded were about."""
    done = calls.select(pl.col(start).fill_null(0), pl.col(length).fill_null(0)).filter(
        pl.col(start).is_between(0, (1 << 62) - 1) & pl.col(length).is_between(1, 1 << 62)
    )
    first = done[start].to_numpy() >> 12
    return np.stack([first, first + ((done[length].to_numpy() + 4095) >> 12)])


def images(cycle: pl.DataFrame) -> Numbers:
    """int64[2, n]: first page and end of what each mapped ELF segment says is of its image."""
    low, high = spans(cycle.filter(pl.col("code") == Code.MAP), "a", "b")
    return np.stack([low, high + IMAGE])


class Cover:
    """Whether pages lie in any of ``spans``, int64[2, n]."""

    def __init__(self, spans: Numbers) -> None:
        order = np.argsort(spans[0], kind="stable")
        self._low = spans[0][order]
        self._high = np.append(np.maximum.accumulate(spans[1][order]), np.iinfo(np.int64).min)

    def holds(self, page: Numbers) -> npt.NDArray[np.bool_]:
        """Of each page."""
        return page < self._high[np.searchsorted(self._low, page, side="right") - 1]


def mappings(cycle: pl.DataFrame, near: Areas) -> pl.DataFrame:
    """``cycle`` without the calls about other areas: one that is kept holds all of a call's range, or nothing of it."""
    start = cycle.select(pl.when(pl.col("code") == Code.MMAP).then("ret").otherwise("a").fill_null(0)).to_series()
    other = pl.Series(near.of(start.to_numpy() >> 12) < 0)
    return cycle.filter(~(other & pl.col("code").is_in([code for code in _MAPS if code != Code.MREMAP])))


def gone(births: pl.DataFrame, marks: pl.DataFrame) -> pl.DataFrame:
    """Processes that came and went while nothing migrated and had no child: what they did then matters to no one.

    Unless one of their family was forked meanwhile, to which it may matter which anon_vmas they had. Threads are none
    of them: what they map and write is their process's, and so is what a child of vfork() does before exec.

    Args:
        births: rows of ``cycle`` of at least the codes ``LIVES``, in order of time.
        marks: the entries.

    Returns:
        tid, from_ns and until_ns, birth and call: ``seq`` of the NEWTASK and of the system call; in order of time.
    """
    cycle = births.with_row_index("at")
    is_process = pl.col("b") & CLONE_VM == 0
    born = cycle.filter((pl.col("code") == Code.NEWTASK) & is_process).select(
        "at", "tid", from_ns="time_ns", birth="seq", child=pl.col("a").cast(pl.Int32)
    )

    def next_of(codes: tuple[Code, ...], name: str) -> pl.Series:
        found = cycle.filter(pl.col("code").is_in(codes)).select("at", "tid", pl.col("at").alias(name))
        return born.select("at", "child").join_asof(
            found, on="at", by_left="child", by_right="tid", strategy="forward", check_sortedness=False
        )[name]

    last = (Code.EXIT_MMAP,) if (cycle["code"] == Code.EXIT_MMAP).any() else (Code.EXIT,)
    calls = cycle.filter(pl.col("code").is_in(_CLONES)).select("at", "tid", call="seq", call_ns="time_ns", call_at="at")
    born = born.join_asof(calls, on="at", by="tid", check_sortedness=False).with_columns(
        end=next_of(last, "end"), heir=next_of((Code.NEWTASK,), "heir")
    )
    born = _with_deep_forks(born, cycle).drop_nulls("end")
    born = born.with_columns(until_ns=cycle["time_ns"].gather(born["end"]))
    told = pl.concat([marks["time_ns"], cycle.filter(pl.col("code") == Code.LOST)["time_ns"]]).sort().to_numpy()
    begun = born.select(pl.coalesce("call_ns", "from_ns")).to_series().to_numpy()
    quiet = np.searchsorted(told, begun) == np.searchsorted(told, born["until_ns"].to_numpy(), side="right")
    quiet &= ~born["deep"].to_numpy()
    left = born.filter(pl.Series(quiet) & (pl.col("heir").is_null() | (pl.col("heir") > pl.col("end"))))
    return left.select("from_ns", "until_ns", "birth", "call", tid="child")


def _with_deep_forks(born: pl.DataFrame, cycle: pl.DataFrame) -> pl.DataFrame:
    """``born`` with ``deep``: whether one of its family was forked meanwhile that may have got a dead one's anon_vma.

    A root's is never reused, nor the parent's own: so only where the parent is a grandchild of what exec made.
    """
    parent = _parents(born, cycle)
    is_deep = (parent >= 0) & (parent[parent] >= 0)
    if not is_deep.any():
        return born.with_columns(deep=pl.lit(value=False))
    oldest = np.where(parent >= 0, parent, np.arange(len(parent)))
    while not np.array_equal(further := oldest[oldest], oldest):
        oldest = further
    # one number for the family, which is named by the task that made its oldest, and for a row
    family = born["tid"].to_numpy()[oldest].astype(np.int64) * (len(cycle) + 1)
    forks = np.sort((family + born["at"].to_numpy())[is_deep])
    begins = family + born.select(pl.coalesce("call_at", "at")).to_series().to_numpy()
    ends = family + born["end"].fill_null(len(cycle)).to_numpy()
    meanwhile = np.searchsorted(forks, ends, side="right") - np.searchsorted(forks, begins)
    return born.with_columns(deep=pl.Series(meanwhile > is_deep))  # its own fork is among them


def _parents(born: pl.DataFrame, cycle: pl.DataFrame) -> Numbers:
    """int64[n]: which row of ``born`` made the parent of each; -1: none, or it has run another program since."""
    execs = cycle.filter(pl.col("code") == Code.EXEC).select("at", "tid", exec_at="at")
    made = born.select("at", "child", parent=pl.int_range(len(born)), born_at="at")
    found = born.join_asof(
        made, on="at", by_left="tid", by_right="child", allow_exact_matches=False, check_sortedness=False
    ).join_asof(execs, on="at", by="tid", check_sortedness=False)
    same = pl.col("exec_at").is_null() | (pl.col("exec_at") < pl.col("born_at"))
    return found.select(pl.when(same).then("parent").fill_null(-1)).to_series().to_numpy()


def without(cycle: pl.DataFrame, gone: pl.DataFrame) -> pl.DataFrame:
    """Rows in order of time, less the own events of processes ``gone``, their making, what it returned to the parent.

    A NEWTASK of such a process becomes FORKED: its parent's pages are shared until they are written again.
    """
    if gone.is_empty() or cycle.is_empty():
        return cycle
    drop = theirs(cycle, gone, "tid")
    codes = cycle["code"]
    if (codes == Code.FORK).any():
        drop |= theirs(cycle, gone, pl.col("a").cast(pl.Int32, strict=False)) & (codes == Code.FORK)
    if codes.is_in(_CLONES).any():
        drop |= cycle["seq"].is_in(gone["call"].drop_nulls().implode()) & codes.is_in(_CLONES)
    births = (pl.col("code") == Code.NEWTASK) & pl.col("seq").is_in(gone["birth"].implode())
    code = pl.when(births).then(pl.lit(int(Code.FORKED), pl.UInt8)).otherwise("code")
    return cycle.with_columns(code=code).filter(~drop)


def once_forked(cycle: pl.DataFrame, marks: pl.DataFrame) -> pl.DataFrame:
    """``cycle``, in order of time, with but the last of FORKED rows of one task between which nothing happened."""
    forked, tid, time = (cycle["code"] == Code.FORKED).to_numpy(), cycle["tid"].to_numpy(), cycle["time_ns"].to_numpy()
    first = np.flatnonzero(forked[:-1] & forked[1:] & (tid[:-1] == tid[1:]))
    told = marks["time_ns"].sort().to_numpy()
    quiet = np.searchsorted(told, time[first]) == np.searchsorted(told, time[first + 1], side="right")
    kept = np.ones(len(cycle), dtype=bool)
    kept[first[quiet]] = False
    return cycle.filter(pl.Series(kept))


def theirs(events: pl.DataFrame, gone: pl.DataFrame, tid: str | pl.Expr) -> pl.Series:
    """Boolean[n]: whether ``tid`` of each event was one of ``gone`` then."""
    told = events.select("time_ns", who=tid).join_asof(
        gone.select("tid", "from_ns", "until_ns"),
        left_on="time_ns",
        right_on="from_ns",
        by_left="who",
        by_right="tid",
        check_sortedness=False,
    )
    return (told["time_ns"] <= told["until_ns"]).fill_null(value=False)
