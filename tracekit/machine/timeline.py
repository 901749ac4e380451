"""Canonical events of the tasks that migrate pages, in one frame, task after task, each in time order.

Every other record of these tasks is kept as OTHER: the cost model counts the tracing overhead inside a call.
"""

from enum import IntEnum

import polars as pl

from tracekit import schema
from tracekit.trace import Trace


class Kind(IntEnum):
    """What a row of the timeline is to the machine."""

    OTHER = 0
    TRY = 1  # try_to_migrate entered
    TRY_RETURN = 2
    TRY_VISIT = 3  # try_to_migrate_one entered: one VMA
    SET = 4  # migration entry written
    REMOVE = 5  # remove_migration_ptes entered
    REMOVE_VISIT = 6  # remove_migration_pte entered: one VMA
    RESTORE = 7  # migration entry replaced
    COPY = 8  # folio contents copied
    MIGRATE_START = 9  # migrate_pages()
    MIGRATE_END = 10
    SYSCALL_ENTER = 11
    SYSCALL_EXIT = 12


class Source(IntEnum):
    """How a record was taken, which decides what taking it cost."""

    TRACEPOINT = 0
    KPROBE = 1
    KRETPROBE = 2


KIND_OF_EVENT = {
    "try_to_migrate": Kind.TRY,
    "try_to_migrate_return": Kind.TRY_RETURN,
    "try_to_migrate_one": Kind.TRY_VISIT,
    "set_migration_pte": Kind.SET,
    "set_migration_pmd": Kind.SET,
    "remove_migration_ptes": Kind.REMOVE,
    "remove_migration_pte_visit": Kind.REMOVE_VISIT,
    "remove_migration_pte": Kind.RESTORE,
    "remove_migration_pmd": Kind.RESTORE,
    "folio_copy": Kind.COPY,
    "mm_migrate_pages_start": Kind.MIGRATE_START,
    "mm_migrate_pages": Kind.MIGRATE_END,
}
PROBE_SYSTEMS = ("kprobes:", "probe:", "fprobes:")

COLUMNS: dict[str, pl.DataType] = {
    "task": pl.Int32(),
    "time_ns": pl.Int64(),
    "cpu": pl.Int32(),
    "seq": pl.UInt64(),
    "kind": pl.UInt8(),
    "source": pl.UInt8(),
    "event": pl.Categorical(),  # system:event
    "label": pl.Categorical(),  # MIGRATE_START: its reason
    "comm": pl.Categorical(),
    "folio": pl.UInt64(),
    "src": pl.UInt64(),
    "vma": pl.UInt64(),
    "mm": pl.UInt64(),
    "addr": pl.UInt64(),
    "pte": pl.UInt64(),
    "order": pl.Int32(),
}


def needed_events(trace: Trace) -> list[str]:
    """``system:event`` tables that carry the machine's own events."""
    return sorted({table for event in KIND_OF_EVENT for table in schema.tables_of(trace, event)})


def timeline(trace: Trace, *, visits: bool = True) -> pl.DataFrame:
    """All records of the tasks that migrate, sorted by (task, time_ns, seq); columns as ``COLUMNS``.

    Without ``visits`` the probes of VMA visits are OTHER, too.
    """
    events = [
        event for event, kind in KIND_OF_EVENT.items() if visits or kind not in (Kind.TRY_VISIT, Kind.REMOVE_VISIT)
    ]
    own = {table: event for event in events for table in schema.tables_of(trace, event)}
    migrating = [_frame(trace, table, event) for table, event in own.items()]
    if not migrating:
        return pl.DataFrame(schema=COLUMNS)
    tasks = pl.concat([frame.select("task") for frame in migrating]).unique().collect()["task"].drop_nulls()
    others = [
        _frame(trace, table, None).filter(pl.col("task").is_in(tasks.implode()))
        for table in trace.event_names
        if table not in own and trace.rows(table)
    ]
    rows = pl.concat([*migrating, *others], how="vertical")
    return rows.filter(pl.col("task").is_not_null()).sort("task", "time_ns", "seq", maintain_order=True).collect()


def _frame(trace: Trace, table: str, event: str | None) -> pl.LazyFrame:
    """One event table in the timeline's columns; null where it has none."""
    own = {} if event is None else {e.meta.output_name(): e for e in schema.columns_of(trace, table, event)}
    fields = trace.columns(table)
    # perf writes tid -1 for a task that is past its exit; the record itself still knows it
    task = pl.coalesce("tid", "common_pid") if "common_pid" in fields else pl.col("tid")
    ready: dict[str, pl.Expr] = {
        **own,
        "task": task,
        "time_ns": pl.col("time_ns"),
        "cpu": pl.col("cpu"),
        "seq": pl.col("seq"),
        "kind": pl.lit(_kind(table, event)),
        "source": pl.lit(_source(table, fields)),
        "event": pl.lit(table),
        "comm": pl.col("comm").cast(pl.String),
    }
    if event == "mm_migrate_pages_start":
        ready["label"] = pl.col("reason_name").cast(pl.String) if "reason_name" in own else pl.lit(None)
    if event in ("set_migration_pmd", "remove_migration_pmd"):
        # a PMD maps page_size / 8 pages: that many 8-byte entries fill a table
        page_size = trace.manifest["machine"]["page_size"]
        ready["order"] = pl.lit((page_size // 8).bit_length() - 1 if page_size else None)
    return trace.events(table).select(
        ready.get(column, pl.lit(None)).cast(dtype).alias(column) for column, dtype in COLUMNS.items()
    )


def _kind(table: str, event: str | None) -> int:
    if event is not None:
        return KIND_OF_EVENT[event]
    if table.startswith("syscalls:sys_enter_"):
        return Kind.SYSCALL_ENTER
    return Kind.SYSCALL_EXIT if table.startswith("syscalls:sys_exit_") else Kind.OTHER


def _source(table: str, fields: list[str]) -> int:
    if not table.startswith(PROBE_SYSTEMS):
        return Source.TRACEPOINT
    return Source.KRETPROBE if "__probe_ret_ip" in fields else Source.KPROBE
