"""Canonical events of the tasks that migrate or unmap pages, in one frame, task after task, each in time order.

Every other record of these tasks is kept as OTHER: the cost model counts the tracing overhead inside a call.
"""

from collections.abc import Iterable
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
    MARK_BEGIN = 13  # a trace_marker line NAME_begin
    MARK_END = 14
    UNMAP = 15  # try_to_unmap entered
    UNMAP_RETURN = 16
    UNMAP_VISIT = 17  # try_to_unmap_one entered: one VMA
    UNMAP_VISIT_RETURN = 18
    RMAP_REMOVE = 19  # pages of a folio taken out of the rmap
    RMAP_REMOVE_PMD = 20
    DEFERRED_SPLIT = 21  # deferred_split_folio entered
    GATHER = 22  # pages handed to the mmu_gather
    ZAP = 23  # a zap entered
    FAULT = 24  # a write fault entered


class Source(IntEnum):
    """How a record was taken, which decides what taking it cost."""

    TRACEPOINT = 0
    KPROBE = 1
    KRETPROBE = 2
    RECONSTRUCTED = 3  # no record at all: a row that the machine made


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
KIND_OF_UNMAP_EVENT = {
    "try_to_unmap_one": Kind.UNMAP_VISIT,
    "try_to_unmap_one_return": Kind.UNMAP_VISIT_RETURN,
    "rmap_remove": Kind.RMAP_REMOVE,
    "rmap_remove_pmd": Kind.RMAP_REMOVE_PMD,
    "deferred_split": Kind.DEFERRED_SPLIT,
}
# What matters only beside one of the above
_KIND_OF_COMPANION = {
    "try_to_unmap": Kind.UNMAP,
    "try_to_unmap_return": Kind.UNMAP_RETURN,
    "gather": Kind.GATHER,
    "zap": Kind.ZAP,
    "fault": Kind.FAULT,
    "tlb_flush": Kind.OTHER,
}
_KINDS = {**KIND_OF_EVENT, **KIND_OF_UNMAP_EVENT, **_KIND_OF_COMPANION}
PROBE_SYSTEMS = ("kprobes:", "probe:", "fprobes:", "unknown:")  # unknown: a text's, which names no group

COLUMNS: dict[str, pl.DataType] = {
    "task": pl.Int32(),
    "time_ns": pl.Int64(),
    "cpu": pl.Int32(),
    "seq": pl.UInt64(),
    "kind": pl.UInt8(),
    "source": pl.UInt8(),
    "event": pl.Categorical(),  # system:event
    "label": pl.Categorical(),  # MIGRATE_START: its reason; marks: NAME
    "comm": pl.Categorical(),
    "folio": pl.UInt64(),
    "src": pl.UInt64(),
    "vma": pl.UInt64(),
    "mm": pl.UInt64(),
    "addr": pl.UInt64(),
    "pte": pl.UInt64(),
    "order": pl.Int32(),
    "page": pl.UInt64(),
    # RMAP_REMOVE and GATHER: pages; DEFERRED_SPLIT: partially_mapped; UNMAP_VISIT_RETURN: what it returned; of a
    # TLB flush the reason, of madvise() the advice
    "number": pl.Int32(),
    "stretch": pl.UInt32(),  # of ``_while_migrating``; null: OTHER. Where a number is left out, rows were
}


_ORDER = ("task", "time_ns", "seq")


def timeline(trace: Trace, *, visits: bool = True, probes: bool = True, unmaps: bool = True) -> pl.DataFrame:
    """The records of the tasks that migrate or unmap, while they do, sorted by (task, time_ns, seq).

    Of a task's other records only those are here that lie in a system call in which it did so, or between two of
    these outside any: a trace of anything is as large as what was migrated and unmapped in it. Without ``visits`` the
    probes of VMA visits of a migration are OTHER, too; without ``probes`` every probe of it is; without ``unmaps``
    every probe of what is unmapped.

    Returns:
        columns as ``COLUMNS``.
    """
    events = [
        event for event, kind in KIND_OF_EVENT.items() if visits or kind not in (Kind.TRY_VISIT, Kind.REMOVE_VISIT)
    ]
    own = {
        table: event
        for event in events
        for table in schema.tables_of(trace, event)
        if probes or not table.startswith(PROBE_SYSTEMS)
    }
    if unmaps:
        own |= _tables(trace, KIND_OF_UNMAP_EVENT)
    companions = _tables(trace, _KIND_OF_COMPANION) if unmaps else {}
    rest = [table for table in trace.event_names if table not in own and trace.rows(table)]
    marks = schema.tables_of(trace, "mark")
    edges = [table for table in rest if _kind(table, None) != Kind.OTHER or table in marks]
    if not own:
        return pl.DataFrame(schema=COLUMNS)
    every = pl.concat([_frame(trace, table, event) for table, event in own.items()])
    migrations = every.filter(pl.col("task").is_not_null()).collect()
    tasks = migrations["task"].unique()
    calls = [
        _collect(_frame(trace, table, "mark" if table in marks else None).filter(pl.col("task").is_in(tasks.implode())))
        for table in edges
    ]
    rows, spans = _while_migrating(pl.concat([migrations, *calls]))
    others = [
        _within(_frame(trace, table, companions.get(table)).filter(pl.col("task").is_in(tasks.implode())), spans)
        for table in rest
        if table not in edges
    ]
    return pl.concat([rows, *others]).sort(_ORDER, maintain_order=True)


def _tables(trace: Trace, events: Iterable[str]) -> dict[str, str]:
    return {table: event for event in events for table in schema.tables_fit(trace, event)}


def _while_migrating(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of those stretches that hold a migration, and the stretches: task, time_ns (start), end_ns.

    A stretch is what lies between two marks, else a system call, or what lies between two of them.
    """
    kind = pl.col("kind")
    enters, exits = kind.is_in([Kind.SYSCALL_ENTER, Kind.MARK_BEGIN]), kind.is_in([Kind.SYSCALL_EXIT, Kind.MARK_END])
    begins_mark = (kind == Kind.MARK_BEGIN).cast(pl.Int32)
    before = (begins_mark.shift(1, fill_value=0) - (kind == Kind.MARK_END).shift(1, fill_value=False)).cum_sum()
    # how many marks a row lies in, its own included; an end whose begin the trace missed takes nothing away
    depth = (before - pl.min_horizontal(before.cum_min(), 0) + begins_mark).over("task")
    # the exit of the write() that brought a mark's end is no stretch of its own
    after = exits.shift(1, fill_value=False) & (kind != Kind.SYSCALL_EXIT)
    edge = (enters | after) & (depth <= begins_mark)
    begins = edge | (pl.col("task") != pl.col("task").shift(1)).fill_null(value=True)
    rows = rows.sort(_ORDER, maintain_order=True).with_columns(stretch=begins.cum_sum().cast(COLUMNS["stretch"]))
    rows = rows.filter((~enters & ~exits).any().over("stretch"))
    spans = rows.group_by("stretch", maintain_order=True).agg(
        pl.col("task").first(), pl.col("time_ns").first(), end_ns=pl.col("time_ns").last()
    )
    return rows, spans.drop("stretch")


def _within(frame: pl.LazyFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """The rows of ``frame``, in order of time, that lie in one of their task's ``spans``."""
    inside = frame.filter(pl.col("time_ns").is_between(spans["time_ns"].min(), spans["end_ns"].max()))
    return _collect(
        inside.join_asof(
            spans.lazy().sort("time_ns"), on="time_ns", by="task", strategy="backward", check_sortedness=False
        )
        .filter(pl.col("time_ns") <= pl.col("end_ns"))
        .drop("end_ns")
    )


def _collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Collect in batches: most rows of a big table are of no interest."""
    return frame.collect(engine="streaming")


def _frame(trace: Trace, table: str, event: str | None) -> pl.LazyFrame:
    """One event table in the timeline's columns; null where it has none."""
    own = {} if event is None else {e.meta.output_name(): e for e in schema.columns_of(trace, table, event)}
    fields = trace.columns(table)
    ready: dict[str, pl.Expr] = {
        **own,
        "task": schema.task_of(trace, table),
        "time_ns": pl.col("time_ns"),
        "cpu": pl.col("cpu"),
        "seq": pl.col("seq"),
        "kind": pl.lit(_kind(table, event)),
        "source": pl.lit(_source(fields)),
        "event": pl.lit(table),
        "comm": pl.col("comm").cast(pl.String),
    }
    if event == "mark":
        ready |= _mark()
    if table == "syscalls:sys_enter_madvise" and "behavior" in fields:
        ready["number"] = pl.col("behavior")
    if event == "mm_migrate_pages_start":
        ready["label"] = pl.col("reason_name").cast(pl.String) if "reason_name" in own else pl.lit(None)
    if event in ("set_migration_pmd", "remove_migration_pmd"):
        # a PMD maps page_size / 8 pages: that many 8-byte entries fill a table
        page_size = trace.manifest["machine"]["page_size"]
        ready["order"] = pl.lit((page_size // 8).bit_length() - 1 if page_size else None)
    return trace.events(table).select(
        ready.get(column, pl.lit(None)).cast(dtype).alias(column) for column, dtype in COLUMNS.items()
    )


def _mark() -> dict[str, pl.Expr]:
    """Kind and label of a trace_marker line: NAME_begin, NAME_end, or any other."""
    line = pl.col("buf").str.strip_chars()
    begin, end = line.str.ends_with("_begin"), line.str.ends_with("_end")
    kind = pl.when(begin).then(pl.lit(int(Kind.MARK_BEGIN))).when(end).then(pl.lit(int(Kind.MARK_END)))
    label = pl.when(begin | end).then(line.str.replace("_(begin|end)$", ""))
    return {"kind": kind.otherwise(pl.lit(int(Kind.OTHER))), "label": label}


def _kind(table: str, event: str | None) -> int:
    if event is not None:
        return _KINDS.get(event, Kind.OTHER)
    if table.startswith("syscalls:sys_enter_"):
        return Kind.SYSCALL_ENTER
    return Kind.SYSCALL_EXIT if table.startswith("syscalls:sys_exit_") else Kind.OTHER


def _source(fields: list[str]) -> int:
    """By the place that every probe tells, whatever its group; text tells it by name."""
    if any(field in fields for field in ("__probe_ret_ip", "__probe_ret_ip_name")):
        return Source.KRETPROBE
    probe = any(field in fields for field in ("__probe_ip", "__probe_ip_name"))
    return Source.KPROBE if probe else Source.TRACEPOINT
