"""Where each heap ended before a brk(): the call says only where it ends then (mm/mmap.c)."""

from collections.abc import Iterator

import polars as pl

from tracekit.machine.reconstruct.events import CLONE_VM, Code

_BIRTHS = (Code.CLONE, Code.CLONE3, Code.NEWTASK, Code.FORK)


def with_ends_before(cycle: pl.DataFrame) -> pl.DataFrame:
    """``cycle``, in order of time, with the heap's end before each BRK in ``b``; 0: not known."""
    brk = pl.col("code") == Code.BRK
    if not cycle.select(brk.any()).item():
        return cycle
    rows = cycle.with_row_index("at").filter(brk | pl.col("code").is_in([*_BIRTHS, Code.EXEC]))
    before = pl.DataFrame(_ends(rows), schema={"at": pl.UInt32, "before": pl.Int64}, orient="row")
    ends = cycle.with_row_index("at").join(before, on="at", how="left", maintain_order="left")
    return ends.with_columns(b=pl.when(brk).then("before").otherwise("b")).drop("at", "before")


def _ends(rows: pl.DataFrame) -> Iterator[tuple[int, int]]:
    """(row of a BRK, end before it)."""
    end: dict[int, list[int]] = {}  # threads share one
    flags: dict[int, int] = {}
    for at, code, tid, a, b, ret in rows.select("at", "code", "tid", "a", "b", "ret").iter_rows():
        if code == Code.BRK:
            own = end.setdefault(tid, [0])
            yield at, own[0]
            own[0] = ret or 0
        elif code == Code.EXEC:
            end[tid] = [0]
        elif code in (Code.CLONE, Code.CLONE3):
            flags[tid] = a or 0
        else:
            shared = (b if code == Code.NEWTASK else flags.get(tid, 0)) or 0
            mine = end.setdefault(tid, [0])
            if code == Code.NEWTASK or a not in end:
                end[a] = mine if shared & CLONE_VM else list(mine)
