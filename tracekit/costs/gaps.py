"""Times between the records of one task: which of them may be compared, and their centre as draws."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit import schema
from tracekit.costs.model import DRAWS, Floats, Ints, fixed, generator
from tracekit.machine.replay import Replay
from tracekit.machine.timeline import KIND_OF_EVENT, Kind, Source

Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]

MIN_SAMPLES = 8
_BLOCKS = 40
_MOST = 200_000  # gaps that a centre is made of: more do not make it better
_CLIP = 99  # percentile


class Records(NamedTuple):
    """The records of the tasks that migrate, real ones only, in order of task and time.

    Attributes:
        time_ns, cpu, task, kind, source: per record.
        event: int64, place in ``events``.
        events: ``system:event``.
        folio: uint64, 0 where the record names none.
        whole: whether nothing was lost in the call that the record lies in.
        step_ns: resolution of the clock: the greatest common divisor of its differences.
        row: of the replay's timeline.
        seq: place in the source.
    """

    time_ns: Ints
    cpu: Ints
    task: Ints
    kind: npt.NDArray[np.uint8]
    source: npt.NDArray[np.uint8]
    event: Ints
    events: list[str]
    folio: npt.NDArray[np.uint64]
    whole: Bools
    step_ns: int
    row: Rows
    seq: npt.NDArray[np.uint64]

    def has(self, *kinds: Kind) -> bool:
        """Whether there is a record of any of ``kinds``."""
        return bool(np.isin(self.kind, kinds).any())


def records(replay: Replay) -> Records:
    """The real records of the replay's timeline, each of the kind that its event is, whatever the fidelity hid."""
    rows = replay.rows.with_row_index("row")
    whole = np.ones(len(rows), dtype=bool)
    for start, end in replay.calls.filter("lost").select("start_row", pl.coalesce("end_row", "start_row")).iter_rows():
        whole[start : end + 1] = False
    kinds = {
        name: int(kind)
        for event, kind in KIND_OF_EVENT.items()
        for variant in schema.variants()[event]
        for name in variant.names
    }
    event = pl.col("event").cast(pl.String)
    rows = rows.with_columns(
        whole=pl.Series(whole),
        kind=pl.when(pl.col("kind") == Kind.OTHER)
        .then(event.replace_strict(kinds, default=int(Kind.OTHER), return_dtype=pl.UInt8))
        .otherwise("kind"),
        folio=pl.col("folio").fill_null(0),
    ).filter(pl.col("source") != Source.RECONSTRUCTED)
    time = rows["time_ns"].to_numpy()
    events = rows["event"].cast(pl.String).unique().sort().to_list()
    return Records(
        time,
        rows["cpu"].cast(pl.Int64).to_numpy(),
        rows["task"].cast(pl.Int64).to_numpy(),
        rows["kind"].to_numpy(),
        rows["source"].to_numpy(),
        rows["event"].cast(pl.Enum(events)).to_physical().cast(pl.Int64).to_numpy(),
        events,
        rows["folio"].to_numpy(),
        rows["whole"].to_numpy(),
        _step(time),
        rows["row"].cast(pl.Int64).to_numpy(),
        rows["seq"].to_numpy(),
    )


def named(these: Records, *names: str) -> Bools:
    """bool[n_records]: whether a record is of one of the events ``names``, which are without their system."""
    codes = [code for code, event in enumerate(these.events) if event.partition(":")[2] in names]
    return np.isin(these.event, codes)


def _step(time_ns: Ints) -> int:
    differences = np.abs(np.diff(time_ns[:10_000]))
    return max(int(np.gcd.reduce(differences)), 1) if len(differences) else 1


def beside(these: Records) -> Bools:
    """bool[n_records - 1]: whether a record and the next are of one task, on one CPU, with nothing lost."""
    task, cpu, whole = these.task, these.cpu, these.whole
    same: Bools = (task[1:] == task[:-1]) & (cpu[1:] == cpu[:-1]) & whole[1:] & whole[:-1]
    return same


def between(flags: Bools, i: Rows, j: Rows) -> Ints:
    """int64[n]: how many of the records i+1 … j have the flag."""
    total = np.cumsum(flags)
    return np.asarray(total[j] - total[i], dtype=np.int64)


def centre(gaps: Floats, step_ns: int) -> float:
    """The median; where the clock's step is not well below the gap, the mean, which alone is unbiased then."""
    median = float(np.median(gaps))
    return median if 4 * step_ns < median else mean(gaps)


def mean(gaps: Floats) -> float:
    """The mean, with the last percentile clipped: an interrupt is nobody's work."""
    return float(np.mean(np.minimum(gaps, np.percentile(gaps, _CLIP))))


def centre_draws(name: str, gaps: Floats, step_ns: int) -> Floats:
    """float64[DRAWS]: the centre, by a block bootstrap over stretches of time."""
    return _draws(name, gaps, lambda part: centre(part, step_ns))


def mean_draws(name: str, gaps: Floats) -> Floats:
    """float64[DRAWS]: the mean, likewise; for what is multiplied by a count: sums must add up."""
    return _draws(name, gaps, mean)


def _draws(name: str, gaps: Floats, estimate: Callable[[Floats], float]) -> Floats:
    if len(gaps) > _MOST:
        gaps = gaps[np.linspace(0, len(gaps) - 1, _MOST).astype(np.intp)]
    best = estimate(gaps)
    parts = np.array_split(gaps, min(_BLOCKS, max(len(gaps) // MIN_SAMPLES, 1)))
    if len(parts) == 1:
        return fixed(best)
    centres = np.array([estimate(part) for part in parts])
    chosen = generator(name).integers(0, len(parts), (DRAWS, len(parts)))
    draws: Floats = best + centres[chosen].mean(axis=1) - centres.mean()
    draws[0] = best
    return draws
