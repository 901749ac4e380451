"""A count of migration entries per folio, and remove_migration_ptes stops when it reaches zero.

Huan Yang, RFC 0/9, 2025-07-24 (MODEL.md A.1, D.2). Not merged in any kernel.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.policies import Ints, Judgement

Bools = npt.NDArray[np.bool_]

# include/linux/page-flags.h: the posted count shares its word with the page type, 24 bits
_LIMIT = 0xFFFFFF


@dataclass(frozen=True)
class CounterEarlyExit:
    """remove_migration_ptes stops after the last VMA, in tree order, that holds an entry of the folio.

    counter=exact counts at every establishment. counter=posted counts as the patch does: what fork copies while
    try_to_migrate still walks, and what migrate_vma collects, escapes it, and the walk may stop too early. An entry
    left behind points at a freed folio; it is reported as unsafe and nothing in its episode counts as a saving.

    Where only whole walks were recorded (``instead``), each is replaced by one that stops behind its last entry.
    """

    counter: Literal["exact", "posted"] = "exact"
    scope: Literal["small", "all"] = "small"
    device_path: Literal["include", "exclude"] = "include"

    needs: ClassVar[tuple[str, ...]] = (
        "set_migration_pte",
        "remove_migration_pte",
        "try_to_migrate_one",
        "remove_migration_pte_visit",
    )
    instead: ClassVar[tuple[str, ...]] = ("try_to_migrate", "remove_migration_ptes")
    touches: ClassVar[tuple[str, ...]] = ("remove_migration_ptes.vma_visit", "migration_entry.restore")
    undoes: ClassVar[bool] = False

    @property
    def variant(self) -> str:
        """How entries are counted."""
        return self.counter

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """Visits after the one that brings the count to zero are spared; the first is always made."""
        episode = ops["episode"].fill_null(-1).to_numpy()
        counts = _counts(ops, episode)
        eligible = counts.select(self._eligible().fill_null(value=False)).to_series()
        # the last one stands for the rows of no episode
        is_eligible = np.append(eligible.to_numpy(), values=False)
        count = None if self.counter == "exact" else counts["counted"].to_numpy()
        spared = _beyond_count(ops, episode, is_eligible, count)
        stale = _stale(ops, episode, spared)
        cut = self._whole_walks(ops)
        executed = np.ones(len(ops), dtype=np.int64)
        for rows in (spared, stale, cut):
            executed[rows] = 0
        updates, shorter = np.zeros((2, len(ops)), dtype=np.int64)
        updated = _rows(ops, *("migration_entry." + what for what in ("set", "restore", "fork_copy", "zap")))
        updates[updated[is_eligible[episode[updated]]]] = 1
        updates[cut] = 2  # one entry set and restored, at the least
        shorter[cut] = 1
        return Judgement(
            executed,
            {"counter.update": updates, "remove_migration_ptes.walk_to_last_entry": shorter},
            harmed=_marked(episode, stale)[episode] if len(stale) else np.zeros(len(ops), dtype=bool),
            unsafe={"stale_migration_entries": len(stale)},
            proof=_proof(ops, stale),
            open=self._open(counts.filter(eligible)) | ({"folios_of_unknown_order": len(cut)} if len(cut) else {}),
        )

    def _whole_walks(self, ops: pl.DataFrame) -> Ints:
        """Rows of walks without visits that the policy cuts; with counter=posted none, for it may do harm."""
        walks = _rows(ops, "remove_migration_ptes.walk")
        if self.counter == "posted":
            return walks[:0]
        known, moved = (ops[name].gather(walks).fill_null(value=False).to_numpy() for name in ("known", "moved"))
        cut: Ints = walks[known & moved]
        return cut

    def _eligible(self) -> pl.Expr:
        # undo clears the count first and walks in full; an uncounted folio has no type, and loses it above the limit
        most = pl.col("set") + pl.col("copied" if self.counter == "exact" else "copied_late")
        eligible = pl.col("known") & pl.col("moved") & (pl.col("set") > 0) & (most <= _LIMIT)
        if self.scope == "small":
            eligible &= pl.col("order") == 0
        if self.device_path == "exclude":
            eligible &= pl.col("collect") == 0
        return eligible

    def _open(self, episodes: pl.DataFrame) -> dict[str, int]:
        if self.counter == "exact":
            return {}
        return {
            # copied by fork, but the trace does not show whether before or after the count began
            "stale_migration_entries": int(episodes["copied_unknown"].sum()),
            # zapped before the count began they are counted for ever, and the walk goes on to its end
            "walks_that_may_be_full": int((episodes["zapped_unknown"] > 0).sum()),
        }


def _counts(ops: pl.DataFrame, episode: Ints) -> pl.DataFrame:
    """Row n: the entries of episode n by origin, and ``counted``: the posted counter when the remove walk begins."""
    n_episodes = int(episode.max(initial=-1)) + 1

    def of(rows: Ints) -> Ints:
        return np.bincount(episode[rows] + 1, minlength=n_episodes + 1)[1:]

    made, collected, copied, zapped = (
        _rows(ops, "migration_entry." + what) for what in ("set", "collect", "fork_copy", "zap")
    )
    # order, moved and known are the same in all of an episode
    one = np.zeros(n_episodes + 1, dtype=np.int64)
    one[episode[made]] = made
    counts = {
        "set": of(made),
        "collect": of(collected),
        "copied": of(copied),
        "copied_late": of(copied[_within(ops, copied, "after_walk", "unknown")]),
        "copied_unknown": of(copied[_within(ops, copied, "unknown")]),
        "zapped_late": of(zapped[_within(ops, zapped, "after_walk", "unknown")]),
        "zapped_unknown": of(zapped[_within(ops, zapped, "unknown")]),
    }
    return (
        ops.select("order", "moved", "known")[one[:n_episodes]]
        .with_columns(pl.Series(name, numbers) for name, numbers in counts.items())
        .with_columns(counted=pl.col("set") + pl.col("copied_late") - pl.col("zapped_late"))
    )


def _beyond_count(ops: pl.DataFrame, episode: Ints, is_eligible: Bools, count: Ints | None) -> Ints:
    """Rows of visits that follow on the one after which as many entries are restored as ``count`` says of its episode.

    Args:
        ops: the operations.
        episode: int64[n_ops], of each; -1: none.
        is_eligible: bool[n_episodes + 1].
        count: int64[n_episodes]; None: as many as its visits restore.
    """
    row = _rows(ops, "remove_migration_ptes.vma_visit")
    row = row[is_eligible[episode[row]]]
    position = ops["position"].gather(row).cast(pl.Int64).fill_null(-1).to_numpy()
    # several tasks may walk at a time; what is in order already is quick to sort
    order = np.argsort(episode[row] * (position.max(initial=0) + 2) + position, kind="stable")
    row, position = row[order], position[order]
    pages, of = ops["nr_pages"].gather(row).fill_null(0).to_numpy(), episode[row]
    first = np.flatnonzero(np.diff(of, prepend=-1))
    n_visits = np.diff(np.append(first, len(row)))
    total = np.cumsum(pages)
    last = first + n_visits - 1
    base = total[first] - pages[first]
    removed = total - pages - np.repeat(base, n_visits)
    total = np.repeat(total[last] - base, n_visits) if count is None else count[of]
    # done() is asked after a visit, never before the first
    beyond: Ints = row[(removed >= total) & (position > 0)]
    return beyond


def _stale(ops: pl.DataFrame, episode: Ints, spared: Ints) -> Ints:
    """Rows that restore an entry in a VMA whose visit is ``spared``."""
    restored = _rows(ops, "migration_entry.restore")
    restored = restored[_marked(episode, spared)[episode[restored]]]
    keys = ["episode", "vma"]
    may, visits = (ops.select(keys)[rows] for rows in (restored, spared))
    # the shorter one is the one to look up in
    visits = visits.join(may, on=keys, how="semi")
    left = may.with_row_index("at").join(visits, on=keys, how="semi")["at"]
    stale: Ints = restored[left.to_numpy()]
    return stale


def _proof(ops: pl.DataFrame, stale: Ints) -> pl.DataFrame | None:
    """What shows each entry left behind: that it was restored as traced, and how it came to be uncounted."""
    if not len(stale):
        return None
    made = ops.filter(pl.col("op").is_in(["migration_entry.fork_copy", "migration_entry.collect"])).select(
        "episode", "vma", "addr", made_by="op", made_ns="time_ns"
    )
    entries = ops.select("time_ns", "task", "addr", "vma", "mm", "folio", "episode", "seq")[stale]
    return entries.join(made, on=["episode", "vma", "addr"], how="left", maintain_order="left").select(
        pl.lit("stale_migration_entries").alias("outcome"), *entries.columns, "made_by", "made_ns"
    )


def _rows(ops: pl.DataFrame, *names: str) -> Ints:
    """Where an operation of ``names`` is."""
    return np.flatnonzero(ops["op"].is_in(names).to_numpy())


def _within(ops: pl.DataFrame, rows: Ints, *windows: str) -> Bools:
    """bool[n]: whether each of ``rows`` is in one of ``windows``."""
    return ops["window"].gather(rows).is_in(windows).fill_null(value=False).to_numpy()


def _marked(episode: Ints, rows: Ints) -> Bools:
    """bool[n_episodes + 1]: which have any of ``rows``; the last one stands for none."""
    marked = np.zeros(int(episode.max(initial=-1)) + 2, dtype=bool)
    marked[episode[rows]] = True
    marked[-1] = False
    return marked


POLICY = CounterEarlyExit
