"""Page faults that no migrated page depends on, left out before the replay takes event by event.

They are most of a trace: what is decided here costs a fraction of what it costs there. They come a slice of time at a
time, so that never all of them are in memory.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.machine.reconstruct.events import WRITE, Code
from tracekit.machine.reconstruct.kin import Kin
from tracekit.machine.reconstruct.prune import Areas, Cover, Migrated, Numbers, images, theirs
from tracekit.machine.reconstruct.sieve import Sieve
from tracekit.machine.reconstruct.spaces import AROUND

_MAKES = (Code.MMAP, Code.MREMAP, Code.BRK, Code.MPROTECT)
Flags = npt.NDArray[np.bool_]


class Where(NamedTuple):
    """Attributes.

    moved: what migrates.
    near: the areas that hold it.
    kin: whose memory an entry can be of; None: anyone's.
    gone: whose faults matter to no one, see ``prune.gone``.
    """

    moved: Migrated
    near: Areas
    kin: Kin | None
    gone: pl.DataFrame


def faults(slices: Iterable[pl.DataFrame], cycle: pl.DataFrame, marks: pl.DataFrame, where: Where) -> pl.DataFrame:
    """The page faults that matter, and of each thread the one behind such a one, which shows that that is over.

    They are in no order.

    Args:
        slices: those of code FAULT, in order of time.
        cycle: all else but the entries.
        marks: the entries.
        where: what they may touch.
    """
    choice, firsts = _Choice(cycle, where), _Firsts(cycle, where.near)
    kept, first = [], []
    count = 0
    for events in slices:
        numbered = events.with_columns(at=pl.int_range(count, count + len(events), dtype=pl.Int64))
        count += len(events)
        matters, *also = choice.take(_of_who_is_left(numbered, where.gone))
        kept.append(matters)
        first += [firsts.of(some) for some in also]
    if not kept:
        return pl.DataFrame()
    every = pl.concat(kept)
    idle = _idle(every, cycle, marks)
    late = every.filter(pl.Series(idle) & (pl.col("area") >= 0) & (pl.col("b") & WRITE != 0))
    first.append(firsts.of(pl.concat([*first, late]).sort("at")))
    return pl.concat([every.filter(~pl.Series(idle)), first[-1]]).drop("at", "area", "exact", "behind")


def _of_who_is_left(events: pl.DataFrame, gone: pl.DataFrame) -> pl.DataFrame:
    """``events`` without those of processes that are ``gone``, of which those of that time are looked through."""
    first, last = (events["time_ns"][0], events["time_ns"][-1]) if len(events) else (0, 0)
    near = gone.filter(pl.col("until_ns") >= first, pl.col("from_ns") <= last)
    return events if near.is_empty() else events.filter(~theirs(events, near, "tid"))


class _Choice:
    """Tells what matters, slice by slice."""

    def __init__(self, cycle: pl.DataFrame, where: Where) -> None:
        self.where = where
        self._images = Cover(images(cycle))
        self._pages = Sieve(where.moved.pages)
        windows = where.moved.pages // AROUND
        self._windows = Sieve(np.unique(np.concatenate([windows - 1, windows, windows + 1])))
        self._mattered: dict[int, bool] = {}  # by thread, whether its latest fault did

    def take(self, events: pl.DataFrame) -> list[pl.DataFrame]:
        """The faults that matter, and the other writes in areas; where reads count, too, those as well.

        All with ``exact``, whether it is a write that makes a page that migrates what it is then, ``area``, where it
        is one of those of which the first counts (no area is -1), and ``behind``, whether it only shows that the one
        before is over.
        """
        moved, near, kin, _ = self.where
        page, time, tid = events["a"].to_numpy() >> 12, events["time_ns"].to_numpy(), events["tid"].to_numpy()
        write = (events["b"].to_numpy() & WRITE) != 0
        exact, area = np.zeros(len(page), dtype=bool), near.of(page)
        there, at = self._pages.places(page)
        exact[there] = time[there] <= moved.until[at]
        if kin is not None:
            foreign = (area[there] >= 0) & exact[there]
            foreign[foreign] = ~kin.shared.holds(page[there[foreign]])
            other = there[foreign]
            other = other[~kin.migrates(tid[other], at[foreign], time[other])]
            exact[other] = False
            # an area may be of several VMAs; where another's pages at the same addresses are left out, each cell counts
            area[other] = len(near.starts) + np.searchsorted(near.cells, page[other], side="right")
        matters = exact.copy()
        reads = np.flatnonzero(~write)
        matters[reads[self._windows.places(page[reads] // AROUND)[0]]] = True
        behind = self._behind(matters, tid) & ~matters
        matters |= behind
        behind &= ~self._images.holds(page)  # where a first write to the data of one shows where these begin
        flags = {"exact": pl.Series(exact & write), "area": pl.Series(area), "behind": pl.Series(behind)}
        numbered = events.with_columns(**flags)
        rest = ~matters & (area >= 0)
        every = [matters, rest & write, *([rest & ~write] if self.where.moved.huge else [])]
        return [numbered.filter(pl.Series(some)) for some in every]

    def _behind(self, matters: Flags, tid: npt.NDArray[np.int32]) -> Flags:
        by_thread = np.argsort(tid, kind="stable")
        ordered, before = tid[by_thread], matters[by_thread]
        head = np.ones(len(ordered), dtype=bool)
        head[1:] = ordered[1:] != ordered[:-1]
        behind = np.append(False, before[:-1])[: len(ordered)]
        threads = ordered[head].tolist()
        behind[head] = [self._mattered.get(thread, False) for thread in threads]
        self._mattered.update(zip(threads, before[np.append(head[1:], True)[: len(head)]].tolist(), strict=True))
        result = np.empty(len(matters), dtype=bool)
        result[by_thread] = behind
        return result


class _Firsts:
    """The first of each thread in each area, since it began and since a mapping was made there."""

    def __init__(self, cycle: pl.DataFrame, near: Areas) -> None:
        begun = cycle.filter(pl.col("code").is_in([Code.NEWTASK, Code.EXEC])).select(
            "time_ns", pl.when(pl.col("code") == Code.NEWTASK).then("a").otherwise("tid").cast(pl.Int32).alias("tid")
        )
        maps = cycle.filter(pl.col("code").is_in(_MAKES))
        first, end = _made(maps)
        inside = near.of(np.where(maps["code"].to_numpy() == Code.BRK, end - 1, first))
        low = len(near.starts) + np.searchsorted(near.cells, first, side="right")
        cells = np.maximum(len(near.starts) + np.searchsorted(near.cells, end - 1, side="right") - low + 1, 0)
        of = np.repeat(np.arange(len(maps)), cells)
        cell = low[of] + np.arange(len(of)) - (np.cumsum(cells) - cells)[of]
        made = pl.concat(
            [maps.select("time_ns", area=pl.Series(inside)), maps[of].select("time_ns", area=pl.Series(cell))]
        )
        self._since = [
            (by, other.sort("time_ns").with_columns(pl.col("time_ns").alias(f"since_{by}")))
            for other, by in ((begun, "tid"), (made, "area"))
        ]
        self._times = pl.concat([begun["time_ns"], made["time_ns"]]).sort().to_numpy()

    def of(self, writes: pl.DataFrame) -> pl.DataFrame:
        """Those of ``writes``, in order of time."""
        writes = writes.filter(pl.Series(self._other_than_before(writes)))
        told = writes.select("time_ns", "tid", "area").with_row_index("place")
        for by, since in self._since:
            told = told.join_asof(since, on="time_ns", by=by, check_sortedness=False)
        kept = told.unique(["tid", "area", "since_tid", "since_area"], keep="first", maintain_order=True)
        return writes[kept["place"]]

    def _other_than_before(self, writes: pl.DataFrame) -> Flags:
        """Whether each is of another thread or area than the one before it, or something began between them."""
        since = np.searchsorted(self._times, writes["time_ns"].to_numpy(), side="right")
        other = np.ones(len(writes), dtype=bool)
        each = (since, writes["tid"].to_numpy(), writes["area"].to_numpy())
        other[1:] = np.any([one[1:] != one[:-1] for one in each], axis=0)
        return other


def _made(maps: pl.DataFrame) -> tuple[Numbers, Numbers]:
    """int64[n] each: first page and end of what each of ``_MAKES`` mapped or made writable."""
    code = pl.col("code")
    start = pl.when(code == Code.BRK).then("b").when(code == Code.MPROTECT).then("a").otherwise("ret")
    length = (
        pl.when(code == Code.BRK).then(pl.col("ret") - pl.col("b")).when(code == Code.MREMAP).then("c").otherwise("b")
    )
    told = maps.select(start.fill_null(0).clip(0, 1 << 62).alias("start"), length.fill_null(0).clip(0, 1 << 62))
    first = told["start"].to_numpy() >> 12
    return first, first + ((told.to_series(1).to_numpy() + 4095) >> 12)


def _idle(kept: pl.DataFrame, cycle: pl.DataFrame, marks: pl.DataFrame) -> Flags:
    """Which of ``kept`` show nothing that the thread's next does not, before anything but faults happens.

    They write where the same thread did before, and nothing but faults happened since; or they are ``behind`` alone.
    """
    time, tid = kept["time_ns"].to_numpy(), kept["tid"].to_numpy()
    other = np.sort(np.concatenate([cycle["time_ns"].to_numpy(), marks["time_ns"].to_numpy()]))
    before, until = np.searchsorted(other, time, side="left"), np.searchsorted(other, time, side="right")
    # the last fault of a thread before anything else stays: it may not be over then
    ends = np.ones(len(kept), dtype=bool)
    one, after = _pairs(tid)
    ends[one] = until[after] != before[one]
    idle = kept["behind"].to_numpy(writable=True)
    writing = np.flatnonzero(kept["exact"].to_numpy())
    page = kept["a"].to_numpy()[writing] >> 12
    one, after = _pairs(tid[writing], page)
    idle[writing[after]] = until[writing[after]] == before[writing[one]]
    return idle & ~ends


def _pairs(*keys: npt.NDArray[np.integer]) -> tuple[Numbers, Numbers]:
    """Places of each one and of the next that has the same keys."""
    order = np.lexsort(keys)
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    return order[:-1][same], order[1:][same]
