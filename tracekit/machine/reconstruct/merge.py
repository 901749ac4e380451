"""The timeline with the made rows in their places.

Column by column, each gathered once: frames of old and of new rows one behind the other, and then sorted, would hold
what is most of a trace's memory three times.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.machine.reconstruct.rows import Made
from tracekit.machine.timeline import Source

_OF_THE_ROW_BESIDE = ("task", "time_ns", "cpu", "comm", "stretch")
_OWN = ("folio", "src", "vma", "mm", "addr")


class _Places(NamedTuple):
    """Where what goes.

    Attributes:
        beside: uint32[n], the row of the timeline that each row of the result is, or stands at.
        made: uint32[made], where the made rows go.
        order: which made row goes to each of these.
    """

    beside: npt.NDArray[np.uint32]
    made: npt.NDArray[np.uint32]
    order: npt.NDArray[np.int64]


def merge(rows: pl.DataFrame, made: Made) -> pl.DataFrame:
    """``rows`` with ``made``, which is empty then, and ``certainty``: that of a made row says what it rests on.

    Time, task, CPU and stretch of a made row are those of the row that it stands at.
    """
    at = _places(len(rows), made)
    is_made = np.zeros(len(at.beside), dtype=bool)
    is_made[at.made] = True
    beside = pl.Series(at.beside)
    old = pl.select(pl.when(pl.Series(~is_made)).then(beside)).to_series()
    own = {"kind": _of_kind(rows["kind"], beside, at, made), "certainty": _certainty(at, made)}
    own["source"] = pl.Series(
        np.where(is_made, Source.RECONSTRUCTED, rows["source"].to_numpy()[at.beside]), dtype=pl.UInt8
    )
    columns = []
    for name in (*rows.columns, "certainty"):
        if name in own:
            column = own[name]
        elif name in _OWN:
            column = _own(rows[name], old, at, made.take(name))
        else:
            column = rows[name].gather(beside if name in _OF_THE_ROW_BESIDE else old)
        columns.append(column.alias(name))
    return pl.DataFrame(columns)


def _places(n: int, made: Made) -> _Places:
    """Those at the same row in the order in which they were made, those before it first."""
    row, after = made.take("row"), made.take("after")
    gap = row + after  # the number of old rows before it
    order = np.argsort(gap, kind="stable")
    gap = gap[order]
    place = np.arange(len(gap), dtype=np.uint32) + gap
    beside = np.empty(n + len(gap), dtype=np.uint32)
    is_old = np.ones(len(beside), dtype=bool)
    is_old[place] = False
    beside[is_old] = np.arange(n, dtype=np.uint32)
    beside[place] = row[order]
    return _Places(beside, place, order)


def _of_kind(kind: pl.Series, beside: pl.Series, at: _Places, made: Made) -> pl.Series:
    every = kind.gather(beside).to_numpy().copy()
    every[at.made] = made.take("kind")[at.order]
    return pl.Series(every, dtype=pl.UInt8)


def _certainty(at: _Places, made: Made) -> pl.Series:
    which = np.zeros(len(at.beside), dtype=np.uint32)
    which[at.made] = 2 - made.take("sure")[at.order]
    return pl.Series(["observed", "reconstructed", "inferred"], dtype=pl.String).gather(pl.Series(which))


def _own(column: pl.Series, old: pl.Series, at: _Places, made: npt.NDArray[np.unsignedinteger]) -> pl.Series:
    """A column of which made rows have values of their own; 0: none."""
    if column.null_count() == len(column):  # as what only a probe tells
        known, value = np.zeros(len(old), dtype=bool), np.zeros(len(old), dtype=made.dtype)
    else:
        found = column.gather(old)
        known, value = found.is_not_null().to_numpy().copy(), found.fill_null(0).to_numpy().copy()
    value[at.made] = made[at.order]
    known[at.made] = value[at.made] != 0
    return pl.select(pl.when(pl.Series(known)).then(pl.Series(value))).to_series()
