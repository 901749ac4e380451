"""migrate_vma(): one attempt to lock a page, or two.

Alistair Popple, 2021-10-25, ab09243aa95a, 5.16: without MIGRATE_PFN_LOCKED a page whose lock is taken when it is
collected is left where it is (rule=noretry); before, it was tried once more (rule=retry2). MODEL.md A.4, D.2.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import polars as pl

from tracekit.policies import Ints, Judgement
from tracekit.policies._parameters import Range


class Pages(NamedTuple):
    """What migrate_vma() was asked to move, by what became of it.

    Attributes:
        at_once: locked at the first attempt; ``second``: only at the second; ``never``.
        kept: of those locked, not isolated from their LRU list.
        pinned: of those isolated, with references too many.
        holes: nothing mapped there: collected without a lock, and not counted as migrated.
    """

    at_once: int = 0
    second: int = 0
    never: int = 0
    kept: int = 0
    pinned: int = 0
    holes: int = 0


class Outcome(NamedTuple):
    """Attempts to lock, checks of references, pages left in the end, pages migrated; of them by an rmap walk more."""

    trylocks: int
    checks: int
    cpages: int
    migrated: int
    walks: int


def outcome(pages: Pages, rule: str) -> Outcome:
    """D.2, seed 3: what ``rule`` (noretry or retry2) makes of ``pages``."""
    first = pages.at_once + pages.second + pages.never
    if rule == "noretry":
        isolated = pages.at_once - pages.kept
        migrated = isolated - pages.pinned
        return Outcome(first, isolated, migrated + pages.holes, migrated, 0)
    migrated = pages.at_once + pages.second - pages.kept - pages.pinned
    again = pages.second + pages.never
    return Outcome(first + again, 2 * migrated + pages.pinned, migrated + pages.holes, migrated, pages.second)


@dataclass(frozen=True)
class SingleTrylock:
    """migrate_vma() tries to lock a page once (noretry), twice (retry2), or its driver asks again (driver_retry).

    A trace shows the pages that were locked: their entries are restored. It does not show whether the lock of another
    was taken, nor whether it would have been free a moment later. So what one rule more would migrate is an interval,
    from nothing to every page between those of one call that was left alone (open), holes among them. Where the traced
    kernel tries twice, those whose entries try_to_migrate set are the ones that the second attempt won, and that a
    single one would lose.
    """

    rule: Literal["noretry", "retry2", "driver_retry"] = "noretry"
    attempts: Annotated[int, Range(1, 64)] = 1

    needs: ClassVar[tuple[str, ...]] = ("remove_migration_pte",)
    touches: ClassVar[tuple[str, ...]] = (
        "migration_entry.set",
        "migration_entry.restore",
        "try_to_migrate.vma_visit",
        "remove_migration_ptes.vma_visit",
        "folio.copy",
    )

    @property
    def variant(self) -> str:
        """The rule; a driver that asks again does so on a kernel that does not."""
        return self.rule

    def judge(self, ops: pl.DataFrame) -> Judgement:
        """What a second attempt adds, or what a single one loses."""
        # one that is inferred stands after the restoring that it is inferred from
        placed = ops.with_row_index("row").with_columns(pl.col(name).forward_fill() for name in ("task", "call"))
        collected = placed.filter(pl.col("op") == "migration_entry.collect")
        if self.rule == "noretry":
            return _lose_second_chances(placed, collected)
        between = _left_between(collected)
        checks = np.zeros(len(ops), dtype=np.int64)
        # It looks at the references twice: after isolating, and after unmapping. What is known to have stayed, once
        if self.rule == "retry2":
            moved = collected.filter(pl.col("moved").fill_null(value=True))
            checks[moved["row"].to_numpy()] = 1
        again = self.attempts if self.rule == "driver_retry" else 1
        return Judgement(
            np.ones(len(ops), dtype=np.int64),
            {"page.check": checks} if checks.any() else {},
            open={
                "pages_between_that_may_have_been_locked": between,
                "trylocks_more": between * again,
                "pages_more_migrated": between,
            },
        )


def _lose_second_chances(placed: pl.DataFrame, collected: pl.DataFrame) -> Judgement:
    """Folios of a driver's calls whose entries try_to_migrate set all: not locked at once, so left alone now."""
    calls = collected.select("call").drop_nulls().unique()
    of_driver = placed.filter(pl.col("episode").is_not_null()).join(calls, on="call", how="semi")
    second = (
        of_driver.group_by("episode")
        .agg(
            pl.col("moved").first(),
            collects=(pl.col("op") == "migration_entry.collect").sum(),
            sets=(pl.col("op") == "migration_entry.set").sum(),
            pages=pl.col("addr").filter(pl.col("op") == "migration_entry.set").n_unique(),
        )
        .filter((pl.col("collects") == 0) & (pl.col("sets") > 0))
    )
    executed = np.ones(len(placed), dtype=np.int64)
    gone = of_driver.join(second, on="episode", how="semi").filter(pl.col("op").is_in(SingleTrylock.touches))
    executed[gone["row"].to_numpy()] = 0
    harmed = np.zeros(len(placed), dtype=bool)
    harmed[gone["row"].to_numpy()] = True  # not to migrate a page is no saving
    lost = int(second.filter(pl.col("moved").fill_null(value=True))["pages"].sum())
    return Judgement(executed, harmed=harmed if lost else None, losses={"pages_not_migrated": lost})


def _left_between(collected: pl.DataFrame) -> int:
    """Pages between the first and the last address of each call's that were not collected."""
    if collected.is_empty():
        return 0
    by_call = collected.drop_nulls("addr").group_by("task", "call").agg(pl.col("addr").unique().sort())
    steps = by_call.select(step=pl.col("addr").list.diff(null_behavior="drop").list.min()).to_series()
    page = steps.min()
    if not isinstance(page, int):
        return 0
    spans = by_call.select(
        n=pl.col("addr").list.len().cast(pl.Int64),
        pages=(pl.col("addr").list.last() - pl.col("addr").list.first()).cast(pl.Int64) // page + 1,
    )
    left: Ints = (spans["pages"] - spans["n"]).to_numpy()
    return int(left.sum())


POLICY = SingleTrylock
