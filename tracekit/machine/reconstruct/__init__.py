"""Fidelity ``reconstructed``: rmap walks as the probes would have shown them, from migrate:* and life cycle.

``life cycle → spaces, VMAs, trees → folio of each entry → visits``: rows of kinds TRY, TRY_VISIT, REMOVE and
REMOVE_VISIT are put into the timeline between the real ones, for the rest of the machine to work on as if a probe had
written them. Their addresses of folios, VMAs and address spaces are names, not pointers, and certainty says what they
rest on.
"""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import polars as pl

from tracekit import schema
from tracekit.machine import pte
from tracekit.machine.reconstruct import faults, heap, prune, prune_faults, renamed, start
from tracekit.machine.reconstruct.blocks import Block, Faults, parts, together
from tracekit.machine.reconstruct.events import (
    DIRTY,
    Code,
    Shown,
    births,
    entries,
    happened,
    life_cycle,
    page_faults,
    with_ends,
    with_flags,
)
from tracekit.machine.reconstruct.identify import Identify
from tracekit.machine.reconstruct.kin import Kin, kin_of
from tracekit.machine.reconstruct.machine import Life
from tracekit.machine.reconstruct.merge import merge
from tracekit.machine.reconstruct.rows import Made
from tracekit.machine.reconstruct.state import Space
from tracekit.machine.reconstruct.vma import Vma
from tracekit.machine.reconstruct.walker import Walker
from tracekit.machine.timeline import Kind
from tracekit.trace import Trace

# anon_vma_clone() allocates all links before it takes a lock: not yet in 6.12, in 7.2 and 7.3; between nothing was seen
_KEEPS_CHAINS_UNTIL, _TURNS_CHAINS_SINCE = (6, 12), (7, 2)

__all__ = ["Reconstruction", "pruned", "reconstruct", "take"]


class Reconstruction(NamedTuple):
    """Attributes.

    rows: the timeline with the walks in it, and ``certainty`` of each row.
    why: how many walks are not certain, by reason.
    anomalies: what else did not fit, counted by kind.
    """

    rows: pl.DataFrame
    why: dict[str, int]
    anomalies: dict[str, int]


def reconstruct(trace: Trace, rows: pl.DataFrame) -> Reconstruction:
    """Put the walks into the timeline ``rows``, which holds no probes."""
    with _no_garbage():
        made, why, anomalies = _walks(trace, rows)
        gc.collect()  # spaces and their VMAs name each other: they are a quarter of what merging would come on top of
    return Reconstruction(merge(rows, made), why, anomalies)


def _walks(trace: Trace, rows: pl.DataFrame) -> tuple[Made, dict[str, int], dict[str, int]]:
    """The rows of the walks; why which are not certain, and anomalies."""
    marks = entries(rows, pte.Machine.of(trace))
    sets = len(rows.filter(pl.col("kind") == Kind.SET))
    if marks.is_empty() and sets:
        return Made(), {"values of the migration entries not understood": sets}, {}
    # a call that never happened leaves no table, so one of them speaks for all
    complete = any(schema.recorded(trace, event) for event in ("mmap", "munmap", "mremap", "mprotect", "madvise"))
    lives, renames = births(trace, (*prune.LIVES, *start.BEGINS)), renamed.execs(trace)
    gone = prune.gone(lives, marks)
    cycle = life_cycle(trace, lambda some: prune.without(some, gone))
    ends = rows["time_ns"][-1] if len(rows) else None
    begin = start.start(trace, cycle, pl.concat([lives, renames], how="diagonal"), ends)
    del lives
    every = [begin.rows, cycle, prune.without(renames, gone)]
    cycle = pl.concat(every).sort("time_ns", "seq", maintain_order=True)
    how = Shown.of(cycle, faults=happened(trace, "page_fault_user"), complete=complete)
    # those who are gone may be all that it happened to
    version = pte.Machine.of(trace).version
    how = how._replace(exit_mmap=happened(trace, "exit_mmap"), heap=happened(trace, "brk"), version=version)
    kin = kin_of(cycle, marks)
    walker = take(pruned(cycle, page_faults(trace), marks, kin, gone), marks, how, narrow=kin is not None)
    if kin is not None and walker.identify.asked:
        walker = take(pruned(cycle, page_faults(trace), marks, None, gone), marks, how)
    walker.forget()
    return walker.made, dict(walker.why), begin.anomalies


def pruned(
    cycle: pl.DataFrame,
    faults: Iterable[pl.DataFrame],
    marks: pl.DataFrame,
    kin: Kin | None = None,
    gone: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The life cycle with the faults, slices of which come one after the other, without what no migrated page needs.

    Args:
        cycle: columns as ``events.SCHEMA``.
        faults: see ``events.page_faults``.
        marks: the entries, columns as ``events.SCHEMA``.
        kin: so that memory of others is left out, too. That holds as long as no walk's folio has to be told by what
            anyone wrote at its address (``Identify.asked``).
        gone: whom ``cycle`` is already without.
    """
    if gone is None:
        cycle = cycle.sort("time_ns", "seq", maintain_order=True)
        gone = prune.gone(cycle, marks)
        cycle = prune.without(cycle, gone)
    cycle = heap.with_ends_before(with_flags(cycle))
    moved = kin.moved if kin is not None else prune.migrated(marks, cycle)
    near = prune.areas(cycle, moved.pages)
    writes = prune_faults.faults(faults, cycle, marks, prune_faults.Where(moved, near, kin, gone))
    every = pl.concat([prune.mappings(cycle, near), writes], how="diagonal").sort("time_ns", "seq")
    return prune.once_forked(every, marks)


def take(cycle: pl.DataFrame, marks: pl.DataFrame, how: Shown | None = None, *, narrow: bool = False) -> Walker:
    """Replay the life cycle and the migration entries, in order of time.

    Args:
        cycle: columns as ``events.SCHEMA``.
        marks: as well.
        how: what the whole trace shows; None: what ``cycle`` does, with all calls that map.
        narrow: whether to stop where the folio of a walk has to be told by what anyone wrote at its address.
    """
    Space.count = Vma.count = 0
    how = how or Shown.of(cycle, faults=bool((cycle["code"] == Code.FAULT).any()), complete=True)
    Vma.turns_chains = _turns_chains(how.version)
    moved = prune.migrated(marks, cycle)
    life = Life(moved, how, indexed=not narrow)
    walker = Walker(life, _identify(life, marks))
    cycle, marks = heap.with_ends_before(with_flags(cycle)), with_ends(marks)
    before = pl.col("time_ns") <= 0  # perf says first what was there when it began
    _run(life, walker, [cycle.filter(before)])
    life.settle()
    _run(life, walker, together(cycle.filter(~before), marks))
    walker.finish()
    return walker


def _turns_chains(version: tuple[int, int] | None) -> bool | None:
    if version is None or _KEEPS_CHAINS_UNTIL < version < _TURNS_CHAINS_SINCE:
        return None
    return version >= _TURNS_CHAINS_SINCE


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Address spaces let go of their VMAs when they end, so there are no cycles to look for in ever more objects."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _run(life: Life, walker: Walker, events: Iterable[pl.DataFrame]) -> None:
    handlers = life.handlers() | {Code.SET: walker.set, Code.RESTORE: walker.restore, Code.EDGE: walker.edge}
    table = [handlers[code] for code in Code]
    for part in parts(events):
        if walker.identify.asked and not life.whose.indexed:
            return
        if isinstance(part, Block):
            walker.block(part)
            continue
        walker.settle()
        now = life.now
        if isinstance(part, Faults):
            life.now = now + 1
            faults.take(life, *part)
            life.now = life.alone = now + len(part.errors)
            continue
        for event in part:
            now += 1
            life.now = now
            if event[0] > Code.EDGE:
                life.stirred = now
            table[event[0]](event)
        life.alone = now


def _identify(life: Life, marks: pl.DataFrame) -> Identify:
    """What the migration entries of this kernel tell: found out from all of them."""
    seen = marks.filter(pl.col("code") == Code.SET)["e"].unique().to_list()
    read_type = pte.read_entry_type(sorted({entry % DIRTY for entry in seen}))
    return Identify(life, read_type, dirty_bits=any(entry >= DIRTY for entry in seen))
