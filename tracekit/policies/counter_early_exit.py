"""A count of migration entries per folio, and remove_migration_ptes stops when it reaches zero.

Huan Yang, RFC 0/9, 2025-07-24 (MODEL.md A.1, D.2). Not merged in any kernel.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.policies import Ints, Judgement

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
        visits = ops.with_row_index("row").filter(pl.col("op") == "remove_migration_ptes.vma_visit")
        episodes = _counts(ops).filter(self._eligible())
        visits = (
            visits.select("row", "episode", "position", "vma", "nr_pages")
            .join(episodes, on="episode")
            .sort("episode", "position")
            .with_columns(
                removed=pl.col("nr_pages").cum_sum().over("episode"), total=pl.col("nr_pages").sum().over("episode")
            )
        )
        count = pl.col("total") if self.counter == "exact" else pl.col("counted")
        # done() is asked after a visit, never before the first
        visits = visits.with_columns(made=(pl.col("removed") - pl.col("nr_pages") < count) | (pl.col("position") == 0))
        spared = visits.filter(~pl.col("made"))
        stale = ops.with_row_index("row").filter(pl.col("op") == "migration_entry.restore")
        stale = stale.join(spared.select("episode", "vma"), on=["episode", "vma"], how="semi")
        executed = np.ones(len(ops), dtype=np.int64)
        executed[spared["row"].to_numpy()] = 0
        executed[stale["row"].to_numpy()] = 0
        cut = self._whole_walks(ops)
        executed[cut] = 0
        return Judgement(
            executed,
            {
                "counter.update": _updates(ops, episodes) + 2 * cut,  # one entry set and restored, at the least
                "remove_migration_ptes.walk_to_last_entry": cut.astype(np.int64),
            },
            harmed=ops["episode"].is_in(stale["episode"].implode()).fill_null(value=False).to_numpy(),
            unsafe={"stale_migration_entries": len(stale)},
            proof=_proof(ops, stale),
            open=self._open(episodes) | ({"folios_of_unknown_order": int(cut.sum())} if cut.any() else {}),
        )

    def _whole_walks(self, ops: pl.DataFrame) -> npt.NDArray[np.bool_]:
        """bool[n_ops]: walks without visits that the policy cuts; with counter=posted none, for it may do harm."""
        if self.counter == "posted":
            return np.zeros(len(ops), dtype=bool)
        cut = (ops["op"] == "remove_migration_ptes.walk") & ops["known"] & ops["moved"]
        return cut.fill_null(value=False).to_numpy()

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


def _counts(ops: pl.DataFrame) -> pl.DataFrame:
    """Per episode: its entries by origin, and ``counted``: the posted counter when the remove walk begins."""
    op, window = pl.col("op"), pl.col("window")
    copied, zapped = op == "migration_entry.fork_copy", op == "migration_entry.zap"
    return (
        ops.lazy()
        .filter(pl.col("episode").is_not_null())
        .group_by("episode")
        .agg(
            pl.col("order", "moved", "known").first(),
            set=(op == "migration_entry.set").sum().cast(pl.Int64),
            collect=(op == "migration_entry.collect").sum().cast(pl.Int64),
            copied=copied.sum().cast(pl.Int64),
            copied_late=(copied & (window != "during_walk")).sum().cast(pl.Int64),
            copied_unknown=(copied & (window == "unknown")).sum().cast(pl.Int64),
            zapped_late=(zapped & (window != "during_walk")).sum().cast(pl.Int64),
            zapped_unknown=(zapped & (window == "unknown")).sum().cast(pl.Int64),
        )
        .with_columns(counted=pl.col("set") + pl.col("copied_late") - pl.col("zapped_late"))
        .collect()
    )


def _proof(ops: pl.DataFrame, stale: pl.DataFrame) -> pl.DataFrame | None:
    """What shows each entry left behind: that it was restored as traced, and how it came to be uncounted."""
    if stale.is_empty():
        return None
    made = ops.filter(pl.col("op").is_in(["migration_entry.fork_copy", "migration_entry.collect"])).select(
        "episode", "vma", "addr", made_by="op", made_ns="time_ns"
    )
    return stale.join(made, on=["episode", "vma", "addr"], how="left", maintain_order="left").select(
        pl.lit("stale_migration_entries").alias("outcome"),
        *("time_ns", "task", "addr", "vma", "mm", "folio", "episode", "seq", "made_by", "made_ns"),
    )


def _updates(ops: pl.DataFrame, episodes: pl.DataFrame) -> Ints:
    """int64[n_ops]: one update at each entry made, restored or cleared of a counted folio."""
    updates = ops["op"].is_in(["migration_entry." + what for what in ("set", "restore", "fork_copy", "zap")])
    return (
        (updates & ops["episode"].is_in(episodes["episode"].implode()))
        .fill_null(value=False)
        .to_numpy()
        .astype(np.int64)
    )


POLICY = CounterEarlyExit
