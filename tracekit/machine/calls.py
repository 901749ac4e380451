"""Calls: the system call, mark or kernel work in which a task did something, as its caller feels it.

A migrate_pages() run inside a system call belongs to that call. Outside one, or where the kernel gives a reason of
its own (compaction, NUMA balancing, …), it is kernel work with a name of its own. What lies on one task between the
trace_marker lines NAME_begin and NAME_end is the call mark:NAME.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.machine.timeline import Kind, Source

# trace reason (include/trace/events/migrate.h) → the name of the work; a reason missing here keeps its own name
WORK_OF_REASON = {"numa_misplaced": "numa_balancing", "demotion": "reclaim"}
# These reasons say only that some system call asked; its own row says which.
_REASONS_OF_SYSCALLS = ("syscall_or_cpuset", "mempolicy_mbind")

SCHEMA: dict[str, pl.DataType] = {
    "call": pl.Int64(),  # row number
    "name": pl.String(),
    "kind": pl.String(),  # syscall | migrate_pages | mark
    "is_named": pl.Boolean(),  # worth a line of its own: not a migrate_pages() on behalf of its system call
    "task": pl.Int32(),
    "parent": pl.Int64(),  # enclosing call of the task; null: outermost
    "start_row": pl.Int64(),
    "end_row": pl.Int64(),  # null: its end was not seen
    "start_ns": pl.Int64(),
    "end_ns": pl.Int64(),
    "duration_ns": pl.Int64(),
    # records of the task inside it, by how they were taken: what tracing added to duration_ns
    "tracepoints": pl.Int64(),
    "kprobes": pl.Int64(),
    "kretprobes": pl.Int64(),
}

_KIND_NAME = {Kind.SYSCALL_ENTER: "syscall", Kind.MIGRATE_START: "migrate_pages", Kind.MARK_BEGIN: "mark"}
_ENTERS = tuple(_KIND_NAME)
_END_OF = {
    Kind.SYSCALL_EXIT: Kind.SYSCALL_ENTER,
    Kind.MIGRATE_END: Kind.MIGRATE_START,
    Kind.MARK_END: Kind.MARK_BEGIN,
}
# A mark shows its task to be in user space, or in the write() that brings the mark.
_WRITES = ("write", "writev", "pwrite64")


class Calls(NamedTuple):
    """Attributes.

    table: columns as ``SCHEMA``.
    of_row: int64[n_rows], innermost call of a timeline row; -1: none seen.
    """

    table: pl.DataFrame
    of_row: npt.NDArray[np.int64]


class _Open(NamedTuple):
    number: int
    kind: int
    name: str


def find_calls(rows: pl.DataFrame) -> Calls:
    """Match entries and exits of calls in the timeline ``rows``, task by task.

    A call whose exit is missing ends, unknown, where its task does the next thing that can only come after it; an
    exit without its entry (the trace began inside the call) is left out.
    """
    edges = rows.with_row_index("row").filter(pl.col("kind").is_in([*_ENTERS, *_END_OF]))
    found: list[list[int | None]] = []  # start_row, end_row, parent
    names: list[tuple[str, str, bool]] = []
    stack: list[_Open] = []
    task_before, stretch_before = None, 0
    for row, task, kind, event, label, comm, stretch in edges.select(
        "row", "task", "kind", "event", "label", "comm", "stretch"
    ).iter_rows():
        if task != task_before:
            stack, task_before = [], task
        elif stretch > stretch_before + 1:  # it was in another system call meanwhile, one that the timeline leaves out
            stack = _marks(stack)
        stretch_before = stretch
        name = _name(kind, event, label, comm)
        stack = _still_open(stack, kind)
        if kind in _ENTERS:
            around = _marks(stack) if kind == Kind.MARK_BEGIN else stack  # the write() that it came through ends in it
            parent = around[-1] if around else None
            stack.append(_Open(len(found), kind, name))
            found.append([row, None, parent.number if parent else None])
            names.append((name, _KIND_NAME[Kind(kind)], _is_named(kind, label, parent)))
            continue
        for depth in range(len(stack) - 1, -1, -1):
            top = stack[depth]
            if top.kind == _END_OF[Kind(kind)] and (kind == Kind.MIGRATE_END or top.name == name):
                found[top.number][1] = row
                ends_mark = kind == Kind.MARK_END
                stack[depth:] = [c for c in stack[depth:] if (c.kind == Kind.MARK_BEGIN) != ends_mark]
                break
        else:
            if kind == Kind.SYSCALL_EXIT:  # of another system call: the exit of the one on the stack was lost
                stack = _marks(stack)
    return Calls(table := _table(rows, found, names), _innermost(table, len(rows)))


def _still_open(stack: list[_Open], kind: int) -> list[_Open]:
    """What of ``stack`` an edge of ``kind`` does not show to be over."""
    if kind == Kind.SYSCALL_ENTER:
        return _marks(stack)  # a task is in one system call at a time: the exits of any before were lost
    if kind in (Kind.MARK_BEGIN, Kind.MARK_END):
        return [call for call in stack if call.kind == Kind.MARK_BEGIN or call.name in _WRITES]
    nests = kind == Kind.MIGRATE_START and stack and stack[-1].kind == kind
    return stack[:-1] if nests else stack  # migrate_pages() does not nest


def _marks(stack: list[_Open]) -> list[_Open]:
    return [call for call in stack if call.kind == Kind.MARK_BEGIN]


def _name(kind: int, event: str, label: str | None, comm: str | None) -> str:
    if kind in (Kind.SYSCALL_ENTER, Kind.SYSCALL_EXIT):
        return event.split(":", 1)[1].removeprefix("sys_enter_").removeprefix("sys_exit_")
    if kind in (Kind.MARK_BEGIN, Kind.MARK_END):
        return f"mark:{label}"
    if label == "compaction" and comm is not None and comm.startswith("kcompactd"):
        return "kcompactd"
    return WORK_OF_REASON.get(label, label) if label is not None else "migrate_pages()"


def _is_named(kind: int, label: str | None, parent: _Open | None) -> bool:
    return kind != Kind.MIGRATE_START or parent is None or label not in (*_REASONS_OF_SYSCALLS, None)


def _table(rows: pl.DataFrame, found: list[list[int | None]], names: list[tuple[str, str, bool]]) -> pl.DataFrame:
    table = pl.DataFrame(found, schema={"start_row": pl.Int64, "end_row": pl.Int64, "parent": pl.Int64}, orient="row")
    named = pl.DataFrame(names, schema={"name": pl.String, "kind": pl.String, "is_named": pl.Boolean}, orient="row")
    taken = rows.select(
        *(
            (pl.col("source") == source).cum_sum().cast(pl.Int64).alias(name)
            for name, source in (
                ("tracepoints", Source.TRACEPOINT),
                ("kprobes", Source.KPROBE),
                ("kretprobes", Source.KRETPROBE),
            )
        )
    )
    start, end = table["start_row"], table["end_row"]
    # Tracing an event delays what follows its time stamp, less what precedes it: so a call pays for the record of
    # its entry and for all up to its exit, but one. Which one does not matter.
    counts = [(taken[name].gather(end) - taken[name].gather(start)).alias(name) for name in taken.columns]
    start_ns, end_ns = rows["time_ns"].gather(start), rows["time_ns"].gather(end)
    return (
        pl.concat([table, named], how="horizontal")
        .with_columns(
            rows["task"].gather(start),
            *counts,
            call=pl.int_range(len(table), dtype=pl.Int64),
            start_ns=start_ns,
            end_ns=end_ns,
            duration_ns=end_ns - start_ns,
        )
        .select(pl.col(column).cast(dtype) for column, dtype in SCHEMA.items())
    )


def _innermost(table: pl.DataFrame, n_rows: int) -> npt.NDArray[np.int64]:
    """Calls start in row order, parents before children: painting them in that order leaves the innermost."""
    of_row = np.full(n_rows, -1, dtype=np.int64)
    for call, start, end in table.select("call", "start_row", "end_row").iter_rows():
        if end is not None:
            of_row[start : end + 1] = call
    return of_row
