"""What has one price: an operation, and of what sort it was where that decides what it costs."""

import polars as pl

_VISITS = ("try_to_migrate.vma_visit", "remove_migration_ptes.vma_visit", "try_to_unmap.vma_visit")


def miss(op: str) -> str:
    """Key of a VMA visit that finds nothing."""
    return f"{op} that finds nothing"


def keys() -> pl.Expr:
    """String: the price key of each row of an operations table."""
    op = pl.col("op").cast(pl.String)
    return (
        pl.when(pl.col("op").is_in(_VISITS) & ~pl.col("hit").fill_null(value=True))
        .then(pl.format("{} that finds nothing", op))
        .otherwise(op)
    )
