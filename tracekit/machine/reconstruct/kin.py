"""Whose memory a migration entry can be of, where migrate_pages() says so: that of the mover's kin.

Kin are all threads that forks tie together, and those that move each other's memory. Trees of anonymous memory never
reach beyond; those of files do, so what may be of one counts for everyone.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.machine.reconstruct.events import MAP_ANONYMOUS, Code
from tracekit.machine.reconstruct.prune import Cover, Numbers, every_page, images, latest, migrated, spans
from tracekit.machine.reconstruct.sieve import Sieve
from tracekit.machine.reconstruct.spaces import MAP_SHARED, MAP_TYPE

_TIES = (Code.NEWTASK, Code.FORK, Code.TASK)


class Kin:
    """Answers for one trace.

    Attributes:
        moved: what migrates.
        shared: where a file, or what strangers share, was ever mapped.
    """

    def __init__(self, cycle: pl.DataFrame, marks: pl.DataFrame) -> None:
        tids, self._of_tid = _kin(cycle)
        self._tids = np.array(tids, dtype=np.int64)
        self.moved = migrated(marks, cycle)
        sets = marks.filter(pl.col("code") == Code.SET).group_by("tid", "b", "d").agg(pl.col("time_ns").max())
        pages, of = every_page(sets)
        key = self._key(self._kin(sets["tid"].to_numpy())[of], np.searchsorted(self.moved.pages, pages))
        keys, self._until = latest(key, sets["time_ns"].to_numpy()[of])
        self._keys = Sieve(keys)
        calls = cycle.filter(pl.col("code") == Code.MMAP)
        of_file = calls.filter((pl.col("d") & MAP_ANONYMOUS == 0) | (pl.col("d") & MAP_TYPE).is_in(MAP_SHARED))
        self.shared = Cover(np.concatenate([spans(of_file, "ret", "b"), images(cycle)], axis=1))

    def _kin(self, tid: npt.NDArray[np.integer]) -> Numbers:
        """A thread of no kin is its own, by a number that no kin has."""
        at = np.searchsorted(self._tids, tid).clip(max=max(len(self._tids) - 1, 0))
        own = len(self._tids) + tid.astype(np.int64)
        return np.where(self._tids[at] == tid, self._of_tid[at], own) if len(self._tids) else own

    def migrates(self, tid: npt.NDArray[np.integer], at: Numbers, time: Numbers) -> npt.NDArray[np.bool_]:
        """Whether the kin of ``tid`` move each page, the ``at``-th of those that migrate, at ``time`` or later."""
        found = np.zeros(len(at), dtype=bool)
        there, key = self._keys.places(self._key(self._kin(tid), at))
        found[there] = time[there] <= self._until[key]
        return found

    def _key(self, kin: Numbers, at: Numbers) -> Numbers:
        """One number for both."""
        return kin * np.int64(len(self.moved.pages)) + at


def kin_of(cycle: pl.DataFrame, marks: pl.DataFrame) -> Kin | None:
    """None where some migrate_pages() does not say whose memory it moves, or something moved from place to place."""
    told = marks.filter((pl.col("code") == Code.EDGE) & (pl.col("e") == 1))
    outside = marks.filter(pl.col("code") == Code.SET)["tid"].is_in(told["tid"].unique().implode())
    if told.is_empty() or (told["f"] < 2).any() or not outside.all() or (cycle["code"] == Code.MREMAP).any():
        return None
    return Kin(cycle, marks)


def _kin(cycle: pl.DataFrame) -> tuple[list[int], Numbers]:
    """The threads, in order, and a number for the kin of each."""
    first: dict[int, int] = {}

    def root(tid: int) -> int:
        while first.setdefault(tid, tid) != tid:
            first[tid] = first[first[tid]]
            tid = first[tid]
        return tid

    ties = cycle.filter(pl.col("code").is_in([*_TIES, Code.CALL])).with_columns(pl.col("a", "b", "c").fill_null(0))
    for code, tid, a, b, c in ties.select("code", "tid", "a", "b", "c").iter_rows():
        others = (a, b) if code == Code.TASK else (a,) if code != Code.CALL or not c else ()
        for other in others:
            if other > 0:
                first[root(other)] = root(tid)
    tids = sorted(first)
    places = {tid: i for i, tid in enumerate(tids)}
    return tids, np.array([places[root(tid)] for tid in tids], dtype=np.int64)
