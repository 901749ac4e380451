"""What has one price: an operation, and of what sort it was where that decides what it costs."""

import polars as pl

from tracekit.costs.phases import CUT, WALK

_VISITS = ("try_to_migrate.vma_visit", "remove_migration_ptes.vma_visit", "try_to_unmap.vma_visit")


def miss(op: str) -> str:
    """Key of a VMA visit that finds nothing."""
    return f"{op} that finds nothing"


def sites(calls: pl.DataFrame) -> dict[int, str]:
    """Call → name of the outermost call around it."""
    found: dict[int, str] = {}
    for call, parent, name in calls.select("call", "parent", "name").iter_rows():  # parents come before children
        found[call] = found.get(parent, name)
    return found


def at_site(key: str, site: pl.Expr) -> pl.Expr:
    """``key`` with the call it was seen in, where calls of one name have a price of their own."""
    return pl.when(pl.lit(key in (WALK, CUT))).then(pl.format("{} in {}", pl.lit(key), site)).otherwise(pl.lit(key))


def keys() -> pl.Expr:
    """String: the price key of each row of an operations table; ``site``: see ``sites``."""
    op = pl.col("op").cast(pl.String)
    in_vain = pl.col("op").is_in(_VISITS) & ~pl.col("hit").fill_null(value=True)
    return (
        pl.when(in_vain)
        .then(pl.format("{} that finds nothing", op))
        .when(op == WALK)
        .then(pl.format("{} in {}", op, "site"))
        .otherwise(op)
    )
