"""Fidelity ``reconstructed``: rmap walks as the probes would have shown them, from migrate:* and life cycle.

``life cycle → spaces, VMAs, trees → folio of each entry → visits``: rows of kinds TRY, TRY_VISIT, REMOVE and
REMOVE_VISIT are put into the timeline between the real ones, for the rest of the machine to work on as if a probe had
written them. Their addresses of folios, VMAs and address spaces are names, not pointers, and certainty says what they
rest on.
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from tracekit.machine import pte
from tracekit.machine.reconstruct.events import DIRTY, SCHEMA, Code, entries, life_cycle
from tracekit.machine.reconstruct.identify import Identify
from tracekit.machine.reconstruct.machine import Life
from tracekit.machine.reconstruct.rows import Made
from tracekit.machine.reconstruct.walker import Walker
from tracekit.machine.timeline import Source
from tracekit.trace import Trace

__all__ = ["Reconstruction", "reconstruct"]


class Reconstruction(NamedTuple):
    """Attributes.

    rows: the timeline with the walks in it, and ``certainty`` of each row.
    why: how many walks are not certain, by reason.
    """

    rows: pl.DataFrame
    why: dict[str, int]


def reconstruct(trace: Trace, rows: pl.DataFrame) -> Reconstruction:
    """Put the walks into the timeline ``rows``, which holds no probes."""
    marks = entries(rows, trace.manifest["machine"]["arch"] or "")
    cycle = life_cycle(trace)
    codes = cycle["code"].unique().to_list()
    side_band = bool(len(cycle.filter((pl.col("code") == Code.EXEC) & (pl.col("b") == 1))))
    life = Life(faults=Code.FAULT in codes, exit_mmap=Code.EXIT_MMAP in codes, exec_side_band=side_band)
    walker = Walker(life, _identify(life, marks))
    before = pl.col("time_ns") <= 0
    _run(life, walker, cycle.filter(before))
    life.settle()
    _run(life, walker, pl.concat([cycle.filter(~before), marks]).sort("time_ns", "seq", maintain_order=True))
    walker.finish()
    return Reconstruction(_merge(rows, walker.made), dict(walker.why))


def _run(life: Life, walker: Walker, events: pl.DataFrame) -> None:
    handlers = life.handlers() | {Code.SET: walker.set, Code.RESTORE: walker.restore, Code.EDGE: walker.edge}
    table = [handlers[code] for code in Code]
    columns = [events[name].fill_null(0).to_list() for name in SCHEMA if name not in ("time_ns", "seq")]
    for now, event in enumerate(zip(*columns, strict=True), life.now + 1):
        life.now = now
        table[event[0]](event)


def _identify(life: Life, marks: pl.DataFrame) -> Identify:
    """What the migration entries of this kernel tell: found out from all of them."""
    seen = marks.filter(pl.col("code") == Code.SET)["e"].unique().to_list()
    read_type = pte.read_entry_type(sorted({entry % DIRTY for entry in seen}))
    return Identify(life, read_type, dirty_bits=any(entry >= DIRTY for entry in seen))


def _merge(rows: pl.DataFrame, made: list[Made]) -> pl.DataFrame:
    """The timeline with the made rows in their places; time, task and CPU are those of the row they stand at."""
    new = pl.DataFrame(
        made,
        schema={
            "place": pl.Int64,
            "row": pl.Int64,
            "kind": pl.UInt8,
            "folio": pl.UInt64,
            "src": pl.UInt64,
            "vma": pl.UInt64,
            "mm": pl.UInt64,
            "addr": pl.UInt64,
            "sure": pl.Boolean,
        },
        orient="row",
    )
    beside = rows.select("task", "time_ns", "cpu", "comm")[new["row"].to_numpy()]
    new = new.hstack(beside).with_columns(
        source=pl.lit(int(Source.RECONSTRUCTED), pl.UInt8),
        certainty=pl.when("sure").then(pl.lit("reconstructed")).otherwise(pl.lit("inferred")),
    )
    old = rows.with_columns(place=pl.Series(2 * np.arange(len(rows))), certainty=pl.lit("observed"))
    both = pl.concat([old, new.drop("row", "sure")], how="diagonal_relaxed")
    return both.sort("place", maintain_order=True).select(*rows.columns, "certainty")
