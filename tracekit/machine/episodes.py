"""Episodes: one folio's migration, from the walk that sets its entries to the walk that restores them."""

import polars as pl

from tracekit.machine import pte
from tracekit.machine.timeline import Kind


def find_episodes(walks: pl.DataFrame, pairs: pl.DataFrame, calls: pl.DataFrame, stayed: pl.DataFrame) -> pl.DataFrame:
    """One row per remove walk with the try walk that set its entries, and per try walk that no remove walk followed.

    Args:
        walks: the walk table with ``lost`` and ``call`` (of the walk's first row).
        pairs: of ``entries.pair_walks``.
        calls: of ``calls.find_calls``.
        stayed: of ``entries_stayed``.

    Returns:
        episode (row number, in time order per task), task, call, try_walk, remove_walk, src, dst, order, visits,
        in_migrate_pages (null: no call seen, its end lost, or not recorded), moved (null: source not known),
        try_first_row, try_last_row, try_return_row (null: not probed), first_row, and known: both walks seen, no event
        lost in either.
    """
    tries = walks.filter(~pl.col("is_remove")).select(
        "order",
        try_walk="walk",
        src="folio",
        try_lost="lost",
        try_first_row="first_row",
        try_last_row="last_row",
        try_return_row="return_row",
    )
    removes = (
        walks.filter("is_remove")
        .select("task", "call", "first_row", "visits", "lost", remove_walk="walk", dst="folio")
        .join(pairs, left_on="remove_walk", right_on="walk", how="left")
        .join(tries, on="try_walk", how="left")
    )
    of_try = walks.select("task", "call", try_walk="walk")
    alone = tries.join(pairs, on="try_walk", how="anti").join(of_try, on="try_walk", how="left")
    is_migrate = pl.col("kind") == "migrate_pages"
    # what followed a migrate_pages() whose end was lost, in the same system call, was in it or not
    around = calls.filter(is_migrate & pl.col("end_row").is_null())["parent"].drop_nulls().unique()
    maybe = pl.col("call").is_in(around.implode()) & ~is_migrate
    kinds = calls.select("call", in_migrate_pages=pl.when(~maybe).then(is_migrate))
    lost = pl.any_horizontal(pl.col("lost", "try_lost").fill_null(value=False))
    return (
        pl.concat([removes, alone], how="diagonal")
        .sort("task", pl.coalesce("try_first_row", "first_row"), "first_row", maintain_order=True)
        .join(kinds, on="call", how="left", maintain_order="left")
        .join(stayed, on="remove_walk", how="left", maintain_order="left")
        .with_row_index("episode")
        .with_columns(
            pl.col("episode").cast(pl.Int64),
            # the folio's own address, or, where a split made folios of its tails, the page that an entry points at
            moved=(pl.col("src") != pl.col("dst")) & ~pl.col("stayed").fill_null(value=False),
            known=pl.col("try_walk").is_not_null() & pl.col("remove_walk").is_not_null() & ~lost,
        )
        .drop("stayed", "lost", "try_lost")
    )


def entries_stayed(entries: pl.DataFrame, machine: pte.Machine) -> pl.DataFrame:
    """(remove_walk, stayed): whether the first entry that the walk restored points at the page it pointed at before.

    Empty for an architecture whose entries are not decoded.
    """
    first = (
        entries.filter(pl.col("kind") == Kind.RESTORE)
        .drop_nulls("partner")
        .unique("walk", keep="first", maintain_order=True)
        .join(entries.select(partner="row", set_pte="pte"), on="partner")
    )
    before = pte.migration_entry_pfn(first["set_pte"].to_numpy(), *machine)
    after = pte.present_pfn(first["pte"].to_numpy(), *machine[:2])
    if before is None or after is None:
        return pl.DataFrame(schema={"remove_walk": pl.Int64, "stayed": pl.Boolean})
    return first.select(remove_walk="walk").with_columns(stayed=pl.Series(before == after, dtype=pl.Boolean))


def episode_of_walk(episodes: pl.DataFrame) -> pl.DataFrame:
    """(walk, episode); the try walk of a folio that was split belongs to the episode of its first part."""
    both = [episodes.select("episode", walk=column).drop_nulls() for column in ("try_walk", "remove_walk")]
    return pl.concat(both).unique("walk", keep="first", maintain_order=True)
