"""Rmap walks as one operation each, where their visits were not recorded."""

import polars as pl

from tracekit.machine.walks import Walks


def find_whole_walks(rows: pl.DataFrame, walks: Walks, call_of_row: pl.Series) -> pl.DataFrame:
    """One operation for each walk of which only the entry was probed.

    Args:
        rows: the timeline.
        walks: of ``walks.find_walks``.
        call_of_row: innermost call of each row, -1: none.

    Returns:
        columns of ``replay._seen``, op try_to_migrate.walk or remove_migration_ptes.walk.
    """
    alone = walks.table.filter(pl.col("visits") == 0, pl.col("entries") == 0)
    at = alone["first_row"]
    name = pl.when("is_remove").then(pl.lit("remove_migration_ptes.walk")).otherwise(pl.lit("try_to_migrate.walk"))
    return (
        rows[at]
        .select("time_ns", "task", "cpu", "seq", "folio")
        .with_columns(row=at, walk=alone["walk"], call=call_of_row.gather(at), certainty=pl.lit("observed"))
        .hstack(alone.select(op=name))
    )
