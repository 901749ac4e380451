"""Batches of migrate_pages(): which folios it moved together, and which it would under another rule.

It unmaps folio after folio, flushes the TLB once, then copies and moves them (6.3 and later), and so on until the list
is empty. Entries set after a copy belong to the next batch. Before 6.3 each folio was moved before the next was
unmapped: that list was cut, too, but a trace does not show where (MODEL.md A.0).
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from tracekit.policies import Ints

# mm/migrate.c: NR_MAX_BATCHED_MIGRATION
KERNEL_PAGES = 512


class Copies(NamedTuple):
    """The copies of an operations table, in the order in which they were made.

    Attributes:
        row: int64[n], where they stand in the table.
        call: int64[n], number of the run of one task in one call.
        batch: int64[n], of the batch as the kernel cut it.
        pages: int64[n], size.
        bytes: int64[n]; 0: not known.
        interleaved: no batch holds more than one, and some call copied several that make no batch each: before 6.3.
    """

    row: Ints
    call: Ints
    batch: Ints
    pages: Ints
    bytes: Ints
    interleaved: bool


def find_copies(ops: pl.DataFrame) -> Copies:
    """The copies in ``ops`` that a walk follows, and the batches that they were made in."""
    copy, entry = ((ops["op"] == name).to_numpy() for name in ("folio.copy", "migration_entry.set"))
    at = np.flatnonzero(copy | entry)
    run = _runs(ops, at)
    is_copy = copy[at]
    after_copy = np.zeros(len(at), dtype=bool)
    after_copy[1:] = is_copy[:-1]
    batch = np.cumsum((np.diff(run, prepend=-1) != 0) | (after_copy & ~is_copy))
    row = at[is_copy]
    size, order = ops["bytes"].gather(row).fill_null(0).to_numpy(), _orders(ops, row)
    batch, run = _dense(batch[is_copy]), _dense(run[is_copy])
    pages = np.left_shift(1, order)
    alone = len(row) > 0 and np.bincount(batch).max() == 1
    # one that fills a batch by itself tells nothing
    apart = (run[1:] == run[:-1]) & (pages[:-1] < KERNEL_PAGES)
    return Copies(row, run, batch, pages, size, bool(alone and apart.any()))


def cut(copies: Copies, pages: int, *, including: bool) -> Ints:
    """int64[n]: batches of the list of each call, as it would be cut at ``pages``.

    Args:
        copies: in the order of the list.
        pages: of a batch.
        including: a batch ends with the folio that brings it to ``pages`` (6.3 and later); else before the one that
            would bring it above.
    """
    n = len(copies.row)
    total = np.cumsum(copies.pages)
    before = total - copies.pages
    ends = np.append(np.flatnonzero(np.diff(copies.call)), n - 1)
    end = ends[np.searchsorted(ends, np.arange(n))] + 1
    if including:
        following = np.searchsorted(total, before + pages, side="left") + 1
    else:
        following = np.maximum(np.searchsorted(total, before + pages, side="right"), np.arange(n) + 1)
    following = np.minimum(following, end).tolist()
    starts = np.zeros(n, dtype=bool)
    at = 0
    while at < n:
        starts[at] = True
        at = following[at]
    return (np.cumsum(starts) - 1).astype(np.int64)


def _runs(ops: pl.DataFrame, at: Ints) -> Ints:
    """int64[n]: counts on with the task and with the call."""
    task, call = (ops[name].gather(at).fill_null(-1).to_numpy() for name in ("task", "call"))
    changes = (np.diff(task, prepend=task[:1]) != 0) | (np.diff(call, prepend=call[:1]) != 0)
    return np.cumsum(changes)


def _orders(ops: pl.DataFrame, row: Ints) -> Ints:
    """int64[n]: order of the folio copied in each ``row``: that of the next walk, which restores its entries."""
    walks = np.flatnonzero((ops["op"] == "remove_migration_ptes.vma_visit").to_numpy())
    if not len(walks):
        walks = np.flatnonzero((ops["op"] == "migration_entry.restore").to_numpy())
    if not len(walks):
        return np.zeros(len(row), dtype=np.int64)
    following = walks[np.minimum(np.searchsorted(walks, row), len(walks) - 1)]
    return ops["order"].gather(following).fill_null(0).cast(pl.Int64).to_numpy()


def _dense(numbers: Ints) -> Ints:
    """0, 1, … in their order."""
    return np.cumsum(np.diff(numbers, prepend=numbers[:1]) != 0)
