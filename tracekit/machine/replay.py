"""A trace → operations, episodes and calls: the machine replayed once (DESIGN.md §1)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit import schema
from tracekit.machine import operations
from tracekit.machine.calls import Calls, find_calls
from tracekit.machine.collected import find_collected
from tracekit.machine.entries import find_entries, fork_windows, pair_walks
from tracekit.machine.episodes import entries_stayed, episode_of_walk, find_episodes
from tracekit.machine.evidence import Has, batched, find_evidence
from tracekit.machine.losses import lost_windows, touched
from tracekit.machine.pte import Machine
from tracekit.machine.reconstruct import reconstruct
from tracekit.machine.timeline import KIND_OF_EVENT, KIND_OF_UNMAP_EVENT, Kind, timeline
from tracekit.machine.unmapping import Replayed, find_unmapping
from tracekit.machine.walks import Walks, find_walks, reach
from tracekit.machine.whole_walks import find_whole_walks
from tracekit.trace import Trace

VISIT_EVENTS = ("try_to_migrate_one", "remove_migration_pte_visit")


class Replay(NamedTuple):
    """What the machine made of a trace.

    Attributes:
        fidelity: observed, reconstructed, counts or none (nothing migrated): what it rests on (DESIGN.md §2).
        operations: columns as ``operations.SCHEMA``.
        episodes: columns as ``episodes.find_episodes``.
        calls: columns as ``calls.SCHEMA``, and ``lost``: whether events were lost inside.
        rows: the timeline, aligned with ``walks``; the cost model measures gaps in it.
        walks: which rows are visits of which walk.
        anomalies: what did not fit, counted by kind; kinds that did not occur are left out.
        kernel_has: what the traced kernel already has of the policies that batch rmap removals, by policy, and why.
        hidden: canonical events that were recorded but do not count here: ``fidelity`` hides them, or they lack
            arguments.
    """

    fidelity: str
    operations: pl.DataFrame
    episodes: pl.DataFrame
    calls: pl.DataFrame
    rows: pl.DataFrame
    walks: Walks
    anomalies: dict[str, int]
    kernel_has: dict[str, Has]
    hidden: frozenset[str]


def replay(trace: Trace, *, fidelity: str | None = None, kernel_has: Mapping[str, str] | None = None) -> Replay:
    """Replay ``trace`` at the highest fidelity that it allows.

    Args:
        trace: what was recorded.
        fidelity: use no more than that: reconstructed and counts hide the probes, as if they had not been recorded.
        kernel_has: policy → variant that the kernel is known to have; the rest is found out.

    Raises:
        MissingEventsError: a probe lacks arguments that its canonical event needs.
    """
    level = _fidelity(trace, fidelity)
    unmaps = fidelity in (None, "observed")
    rows = timeline(trace, visits=level == "observed", probes=level != "reconstructed", unmaps=unmaps)
    why: dict[str, int] = {}
    ignored: dict[str, int] = {}
    if level == "reconstructed" and len(rows):
        rows, why, ignored = reconstruct(trace, rows)
    walks, calls = find_walks(rows), find_calls(rows)
    entries = find_entries(rows, walks)
    windows = lost_windows(trace, rows)
    call_table, walk_table = _with_losses(rows, walks, calls, windows)
    machine = trace.manifest["machine"]
    stayed = entries_stayed(entries, Machine.of(trace))
    episodes = find_episodes(walk_table, pair_walks(rows, walks, entries), call_table, stayed)
    if not schema.recorded(trace, "mm_migrate_pages_start"):
        episodes = episodes.with_columns(in_migrate_pages=pl.lit(None, pl.Boolean))
    seen = _seen(rows, walks, calls)
    entries = entries.join(episode_of_walk(episodes), on="walk", how="left", maintain_order="left")
    parts = [seen, _inferred(trace, rows, entries, episodes)]
    if level == "counts" and not any(schema.recorded(trace, event) for event in VISIT_EVENTS):
        parts.append(find_whole_walks(rows, walks, pl.Series(calls.of_row)))
    if level == "counts":
        parts.append(find_collected(rows, walks, calls))
    if unmaps:
        parts.append(find_unmapping(trace, Replayed(rows, walks.walk_of_row, calls.of_row, episodes, windows)))
    ops = _conform(pl.concat(parts, how="diagonal_relaxed"), episodes)
    ops = _copied_bytes(ops, episodes, rows, machine["page_size"])
    has = find_evidence(ops, machine["release"], kernel_has)
    ops = ops.with_columns(
        batched=pl.when(pl.col("op").is_in(["rmap.remove", "try_to_unmap.vma_visit"])).then(batched(has))
    )
    return Replay(
        level if len(rows) else "none",
        ops,
        episodes,
        call_table,
        rows,
        walks,
        _anomalies(walks if level != "counts" else None, episodes, entries, call_table) | _unsure(why) | ignored,
        has,
        frozenset(event for event in KIND_OF_UNMAP_EVENT if not unmaps or not schema.tables_fit(trace, event)),
    )


def _with_losses(
    rows: pl.DataFrame, walks: Walks, calls: Calls, windows: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables of calls and of walks with ``lost``: whether events were; a walk's also where it was inferred."""
    spans = calls.table.select(
        "start_ns",
        first_row="start_row",
        last_row=pl.coalesce("end_row", "start_row"),
        end_ns=pl.coalesce("end_ns", "start_ns"),
    )
    first = walks.table["first_row"].to_numpy()
    unsure = touched(reach(rows, walks), windows, rows) | _inferred_walks(rows, walks)
    return (
        calls.table.with_columns(lost=pl.Series(touched(spans, windows, rows), dtype=pl.Boolean)),
        walks.table.with_columns(
            lost=pl.Series(unsure, dtype=pl.Boolean), call=pl.Series(calls.of_row[first]).replace(-1, None)
        ),
    )


def _fidelity(trace: Trace, most: str | None) -> str:
    """The highest level that the trace allows, up to ``most``."""
    if most in (None, "observed"):
        migrates = any(trace.rows(table) for event in KIND_OF_EVENT for table in schema.tables_of(trace, event))
        unmaps = any(schema.tables_fit(trace, event) for event in KIND_OF_UNMAP_EVENT)
        if all(schema.recorded(trace, event) for event in VISIT_EVENTS) or (unmaps and not migrates):
            return "observed"
    return "reconstructed" if most != "counts" and schema.can_rebuild_walks(trace) else "counts"


def _unsure(why: dict[str, int]) -> dict[str, int]:
    return {f"walk_not_certain_{reason.replace(' ', '_')}": count for reason, count in why.items()}


def _copied_bytes(ops: pl.DataFrame, episodes: pl.DataFrame, rows: pl.DataFrame, page_size: int | None) -> pl.DataFrame:
    """``ops`` with the bytes of each folio.copy: the order is that of the migration whose new folio it names."""
    copies = (
        rows.select("kind", "task", "folio", "seq")
        .with_row_index("row")
        .filter(pl.col("kind") == Kind.COPY)
        .select("task", "folio", "seq", pl.col("row").cast(pl.Int64))
    )
    tried = episodes.filter(pl.col("order") >= 0).select("task", "order", folio="dst", row="try_first_row")
    size = (pl.lit(page_size, pl.Int64) * pl.lit(2, pl.Int64).pow(pl.col("order"))).cast(pl.Int64)
    known = copies.sort("row").join_asof(tried.sort("row"), on="row", by=["task", "folio"], check_sortedness=False)
    known = known.select("seq", copied=size, op=pl.lit("folio.copy", operations.SCHEMA["op"])).drop_nulls()
    return (
        ops.join(known, on=["seq", "op"], how="left", maintain_order="left").with_columns(bytes="copied").drop("copied")
    )


def _inferred_walks(rows: pl.DataFrame, walks: Walks) -> npt.NDArray[np.bool_]:
    """bool[n_walks]: a visit of it, or its entry, was chosen among alternatives; policies judge no such walk."""
    bad = np.zeros(len(walks.table), dtype=bool)
    if "certainty" in rows.columns:
        inferred = walks.walk_of_row[(rows["certainty"] == "inferred").to_numpy()]
        bad[np.isin(walks.table["walk"].to_numpy(), inferred)] = True
    return bad


_OP_OF_KIND = {
    Kind.TRY_VISIT: "try_to_migrate.vma_visit",
    Kind.REMOVE_VISIT: "remove_migration_ptes.vma_visit",
    Kind.SET: "migration_entry.set",
    Kind.RESTORE: "migration_entry.restore",
    Kind.COPY: "folio.copy",
}


def _seen(rows: pl.DataFrame, walks: Walks, calls: Calls) -> pl.DataFrame:
    """The operations that an event shows; an entry's folio, vma and mm are those of its visit."""
    at = np.flatnonzero(rows["kind"].is_in(list(_OP_OF_KIND)).to_numpy())
    visit, position = walks.visit_of_row[at], walks.position_of_row[at]
    of_visit = rows.select("folio", "vma", "mm")[np.where(visit >= 0, visit, at)]
    entries = np.bincount(walks.visit_of_row[walks.visit_of_row >= 0], minlength=len(rows))[at]
    is_visit = position >= 0
    names = {int(kind): name for kind, name in _OP_OF_KIND.items()}
    return (
        rows[at]
        .select("time_ns", "task", "cpu", "seq", "addr", "kind")
        .hstack(of_visit)
        .with_columns(
            row=pl.Series(at, dtype=pl.Int64),
            walk=pl.Series(walks.walk_of_row[at], dtype=pl.Int64),
            call=pl.Series(calls.of_row[at], dtype=pl.Int64),
            position=pl.Series(position, dtype=pl.Int32),
            is_visit=pl.Series(is_visit),
            hit=pl.Series(entries > 0),
            op=pl.col("kind").replace_strict(names, return_dtype=pl.String),
            certainty=rows["certainty"][at] if "certainty" in rows.columns else pl.lit("observed"),
            nr_pages=pl.Series(np.where(is_visit, entries, 1), dtype=pl.Int64),
        )
    )


def _inferred(trace: Trace, rows: pl.DataFrame, entries: pl.DataFrame, episodes: pl.DataFrame) -> pl.DataFrame:
    """Entries that fork copied, that migrate_vma collected or that were zapped: no event shows these as such."""
    known = entries.join(
        episodes.select("episode", "remove_walk", "in_migrate_pages", "try_last_row", "try_return_row"),
        on="episode",
        how="left",
    )
    alone = known.filter(pl.col("partner").is_null())
    copied = alone.filter(pl.col("kind") == Kind.RESTORE)
    # The walk that set the entries ended after its last event and before its return. A VMA linked since that event
    # came later: its link needs the lock that the walk holds.
    last_ns, return_ns = (rows["time_ns"].gather(copied[name]) for name in ("try_last_row", "try_return_row"))
    copied = (
        copied.with_columns(last_ns=last_ns, return_ns=return_ns)
        .join(fork_windows(trace, copied), on="row", how="left", maintain_order="left")
        .with_columns(
            # outside migrate_pages() an entry that nobody was seen to set comes from migrate_vma_collect_pmd
            op=pl.when(pl.col("in_migrate_pages").fill_null(value=True))
            .then(pl.lit("migration_entry.fork_copy"))
            .otherwise(pl.lit("migration_entry.collect")),
            window=pl.when(pl.col("from_ns") >= pl.col("last_ns"))
            .then(pl.lit("after_walk"))
            .when(pl.col("until_ns") <= pl.coalesce("return_ns", "last_ns"))
            .then(pl.lit("during_walk"))
            .otherwise(pl.lit("unknown")),
            time_ns=pl.col("from_ns"),
        )
    )
    zapped = alone.filter((pl.col("kind") == Kind.SET) & pl.col("remove_walk").is_not_null()).with_columns(
        op=pl.lit("migration_entry.zap"), window=pl.lit("unknown"), time_ns=pl.lit(None, pl.Int64)
    )
    columns = ["op", "time_ns", "row", "walk", "vma", "mm", "addr", "window"]
    return pl.concat([copied.select(columns), zapped.select(columns)]).with_columns(
        certainty=pl.lit("inferred"), nr_pages=pl.lit(1, pl.Int64)
    )


def _conform(ops: pl.DataFrame, episodes: pl.DataFrame) -> pl.DataFrame:
    """Columns as ``operations.SCHEMA``, each row with what its episode knows."""
    no_visit = ~pl.col("is_visit").fill_null(value=False)
    of_walk = episode_of_walk(episodes)
    facts = episodes.select("episode", "order", "moved", "known")
    ops = (
        ops.with_columns(pl.col("call", "walk").replace(-1, None))
        .join(of_walk, on="walk", how="left", maintain_order="left")
        .join(facts, on="episode", how="left", maintain_order="left")
        .with_columns(pl.when(no_visit).then(None).otherwise(pl.col(name)).alias(name) for name in ("position", "hit"))
        .sort("row", maintain_order=True)
    )
    return ops.select(
        (pl.col(column) if column in ops.columns else pl.lit(None)).cast(dtype).alias(column)
        for column, dtype in operations.SCHEMA.items()
    )


def _anomalies(
    walks: Walks | None, episodes: pl.DataFrame, entries: pl.DataFrame, calls: pl.DataFrame
) -> dict[str, int]:
    unresolved = entries.filter(pl.col("partner").is_null() & (pl.col("kind") == Kind.SET)).join(
        episodes.filter(pl.col("remove_walk").is_null()), on="episode", how="semi"
    )
    counted = {
        **(walks.orphans if walks else {}),
        "remove_walk_without_try_walk": episodes["try_walk"].null_count(),
        "try_walk_without_remove_walk": episodes["remove_walk"].null_count(),
        "entry_never_resolved": len(unresolved),
        # these do not return by nature
        "call_without_end": calls.filter(~pl.col("name").is_in(["exit", "exit_group", "execve"]))[
            "end_row"
        ].null_count(),
        "call_with_lost_events": int(calls["lost"].sum()),
    }
    return {name: count for name, count in counted.items() if count}
