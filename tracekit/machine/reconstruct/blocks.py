"""Runs of migration entries, and of page faults, that stand one behind the other: nothing happens between them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.machine.reconstruct.events import PMD, SCHEMA, Code

FEW = 4  # walks, or faults, that are not worth it
_AT_ONCE = 1 << 16  # events made Python objects at a time
_NAMES = [name for name in SCHEMA if name not in ("time_ns", "seq")]


Column = npt.NDArray[np.int64]


class Block(NamedTuple):
    """Whole walks of one task over single pages, all sets or all restores.

    Attributes:
        code: SET or RESTORE.
        rows, pages, pfns, types: of each entry.
        starts: number of the first entry of each walk, and of the entry behind the last.
        columns: of all that the entries are, see ``events``.
    """

    code: int
    tid: int
    rows: list[int]
    pages: list[int]
    pfns: list[int]
    types: list[int]
    starts: list[int]
    columns: list[Column]

    def events(self, first: int) -> list[tuple[int, ...]]:
        """The entries from ``first`` on, as single events."""
        return _single([column[first:] for column in self.columns])


class Faults(NamedTuple):
    """Page faults of one thread."""

    tid: int
    addresses: list[int]
    errors: list[int]


Part = Block | Faults | list[tuple[int, ...]]


def together(one: pl.DataFrame, other: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The events of both, each in order of (time_ns, seq), in that order, a slice of time at a time."""
    starts = [0, 0]
    while any(start < len(frame) for start, frame in zip(starts, (one, other), strict=True)):
        ends = [min(start + _AT_ONCE, len(frame)) for start, frame in zip(starts, (one, other), strict=True)]
        left = [frame["time_ns"][end] for end, frame in zip(ends, (one, other), strict=True) if end < len(frame)]
        if left:  # those of one time stay together
            ends = [int(frame["time_ns"].search_sorted(min(left))) for frame in (one, other)]
            if ends == starts:
                ends = [int(frame["time_ns"].search_sorted(min(left), side="right")) for frame in (one, other)]
        slices = [frame[start:end] for start, end, frame in zip(starts, ends, (one, other), strict=True)]
        yield pl.concat(slices).sort("time_ns", "seq", maintain_order=True)
        starts = ends


def parts(events: Iterable[pl.DataFrame]) -> Iterator[Part]:
    """``events``, columns as ``SCHEMA``, as blocks where there are some, and as single events between them."""
    for whole in (part for frame in events for part in frame.iter_slices(_AT_ONCE)):
        part = whole.select(pl.col(_NAMES).fill_null(0))
        columns = [part[name].to_numpy() for name in _NAMES]
        at = 0
        for low, high, starts in sorted([*_blocks(part), *_faults(part)]):
            if at < low:
                yield _single([column[at:low] for column in columns])
            at, inside = high, [column[low:high] for column in columns]
            code, tid, a, b, c, _, e, _, _ = inside
            if starts:
                rows, pages, pfns, types = (column.tolist() for column in (a, b, c, e))
                yield Block(int(code[0]), int(tid[0]), rows, pages, pfns, types, starts, inside)
            else:
                yield Faults(int(tid[0]), a.tolist(), b.tolist())
        if at < len(part):
            yield _single([column[at:] for column in columns])


def _single(columns: list[Column]) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _faults(part: pl.DataFrame) -> Iterator[tuple[int, int, list[int]]]:
    """(first event, end, nothing) of runs of page faults."""
    tid, is_fault = part["tid"].to_numpy(), (part["code"] == Code.FAULT).to_numpy()
    same = is_fault[1:] & is_fault[:-1] & (tid[1:] == tid[:-1])
    begin = np.flatnonzero(is_fault & ~np.append(False, same))
    end = np.flatnonzero(is_fault & ~np.append(same, False)) + 1
    many = end - begin > FEW
    yield from ((low, high, []) for low, high in zip(begin[many].tolist(), end[many].tolist(), strict=True))


def _blocks(part: pl.DataFrame) -> Iterator[tuple[int, int, list[int]]]:
    """(first event, end, numbers of the walks' first entries in it and of its end)."""
    code, tid, pfn, order, whole = (part[name].to_numpy() for name in ("code", "tid", "c", "d", "f"))
    single = ((code == Code.SET) & (order == 0)) | (code == Code.RESTORE)
    single &= whole != PMD
    same = single[1:] & single[:-1] & (code[1:] == code[:-1]) & (tid[1:] == tid[:-1])
    walk = np.flatnonzero(~(same & (pfn[1:] == pfn[:-1]))) + 1
    begin = np.flatnonzero(single & ~np.append(False, same))
    end = np.flatnonzero(single & ~np.append(same, False)) + 1
    ends = part["ret"].to_numpy() == 1
    for low, high in zip(begin.tolist(), end.tolist(), strict=True):
        starts = [low, *walk[np.searchsorted(walk, low, "right") : np.searchsorted(walk, high)].tolist(), high]
        if not ends[high - 1]:  # the last walk goes on later
            starts.pop()
        if len(starts) > FEW:
            yield low, starts[-1], [start - low for start in starts]
