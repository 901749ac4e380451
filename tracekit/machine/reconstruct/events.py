"""The life cycle of every task in one frame, in order of time, with what of the timeline the walks are made from."""

from collections.abc import Callable, Collection, Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import polars as pl

from tracekit import schema
from tracekit.machine import pte
from tracekit.machine.timeline import Kind
from tracekit.trace import Trace


class Code(IntEnum):
    """What a row is to the machine."""

    FAULT = 0
    SET = 1
    RESTORE = 2
    EDGE = 3  # start or end of migrate_pages()
    MMAP = 4
    MUNMAP = 5
    MPROTECT = 6
    MADVISE = 7
    MREMAP = 8
    CLONE = 9  # a fork begins
    NEWTASK = 10
    FORK = 11
    EXEC = 12
    EXIT_BEGINS = 13
    EXIT = 14
    EXIT_MMAP = 15
    CALL = 16  # a system call that migrates
    MAP = 17  # perf's side-band: an executable mapping
    TASK = 18  # perf's side-band: a task that was there before
    CLONE_ENDS = 19  # a fork failed
    CLONE3 = 20
    LOST = 21  # something may have happened that no event shows
    FORKED = 22  # a child came and went that no walk met
    BRK = 23


# canonical event → code; those of _ENDED take effect when the system call returns
_CODES = {
    "page_fault_user": Code.FAULT,
    "mmap": Code.MMAP,
    "munmap": Code.MUNMAP,
    "mprotect": Code.MPROTECT,
    "madvise": Code.MADVISE,
    "brk": Code.BRK,
    "mremap": Code.MREMAP,
    "clone": Code.CLONE,
    "fork": Code.CLONE,
    "clone3": Code.CLONE3,
    "task_newtask": Code.NEWTASK,
    "process_fork": Code.FORK,
    "process_exec": Code.EXEC,
    "exit": Code.EXIT_BEGINS,
    "process_exit": Code.EXIT,
    "exit_mmap": Code.EXIT_MMAP,
    "move_pages": Code.CALL,
    "migrate_pages": Code.CALL,
    "mbind": Code.CALL,
}
_SLICE_ROWS = 1 << 19
_PAGE_BYTES = 4096  # of x86-64; what shifts addresses by 12 here means them
_ENDED = (Code.MMAP, Code.MUNMAP, Code.MPROTECT, Code.MADVISE, Code.MREMAP, Code.BRK)
_CLONES = ("syscalls:sys_exit_clone", "syscalls:sys_exit_clone3", "syscalls:sys_exit_fork", "syscalls:sys_exit_vfork")
CLONE_VM, CLONE_VFORK = 0x100, 0x4000
SIDE_BAND, LIKELY = 1, 2  # b of an EXEC: perf's own record; a new name of the task, no event
MAP_ANONYMOUS = 0x20
PRESENT, WRITE = 1, 2  # page_fault_user's error_code
DIRTY = 1 << 8  # beside the type of a migration entry: it carries the dirty bit
PMD = 1  # in f of a SET or RESTORE
# Reasons of migrate_pages() that say in whose address space the folios are: the caller's, or that of a system call
OWN_REASONS, CALL_REASONS = ("numa_misplaced",), ("syscall_or_cpuset", "mempolicy_mbind")
NEWEST = (7, 3)  # of the kernels that this follows
_ARGUMENTS = ("a", "b", "c", "d", "e", "f")
SCHEMA: dict[str, pl.DataType] = {
    "time_ns": pl.Int64(),
    "seq": pl.UInt64(),
    "code": pl.UInt8(),
    "tid": pl.Int32(),
    **dict.fromkeys(_ARGUMENTS, pl.Int64()),
    "ret": pl.Int64(),
}


class Shown(NamedTuple):
    """What a trace shows at all.

    Attributes:
        faults: page faults.
        exit_mmap: when an address space is gone.
        exec_side_band: exec by perf's own record, which counts then.
        complete: the calls that map and unmap; without them no tree is certain.
        mapped_files: how many mappings there are of files that only the number of a descriptor tells.
        heap: brk(), so that the heap is a VMA like any other.
        version: of the kernel, which decides what the calls do; None: not known.
    """

    faults: bool
    exit_mmap: bool
    exec_side_band: bool
    complete: bool
    mapped_files: int
    heap: bool
    version: tuple[int, int] | None = NEWEST

    @classmethod
    def of(cls, cycle: pl.DataFrame, *, faults: bool, complete: bool) -> "Shown":
        """By what is there."""
        codes = set(cycle["code"].unique().to_list())
        side_band = bool(((cycle["code"] == Code.EXEC) & (cycle["b"] == SIDE_BAND)).any())
        of_file = (pl.col("code") == Code.MMAP) & (pl.col("d") & MAP_ANONYMOUS == 0) & (pl.col("ret") > 0)
        files = len(cycle.filter(of_file))
        return cls(faults, Code.EXIT_MMAP in codes, side_band, complete, files, Code.BRK in codes)


def births(trace: Trace, codes: Collection[Code]) -> pl.DataFrame:
    """The rows of ``life_cycle`` of ``codes``, of its columns only what tasks begin and end by."""
    return _life_cycle(trace, codes, ("time_ns", "seq", "code", "tid", "a", "b"), lambda rows: rows)


def life_cycle(trace: Trace, some: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """All but page faults: columns as ``SCHEMA``, in order of time; arguments a … f are those of schemas/events/.

    ``some`` picks rows of a table, which come in order of time: never all of all tables are in memory.
    """
    return _life_cycle(trace, tuple(Code), tuple(SCHEMA), some)


def _life_cycle(
    trace: Trace, codes: Collection[Code], names: Collection[str], some: Callable[[pl.DataFrame], pl.DataFrame]
) -> pl.DataFrame:
    frames = [
        _frame(trace, table, event, code)
        for event, code in _CODES.items()
        for table in schema.tables_of(trace, event)
        if code != Code.FAULT and code in codes
    ]
    frames += [
        trace.events(table)
        .select(*_common(trace, table, Code.CLONE_ENDS), pl.col("ret").cast(pl.Int64).alias("ret"))
        .filter(pl.col("ret") < 0)  # what one that made a task says was said by then
        for table in _CLONES
        if table in trace.event_names and Code.CLONE_ENDS in codes
    ]
    every = [pl.DataFrame(schema={name: SCHEMA[name] for name in names})]
    for frame in (*frames, *_side_band(trace)):
        own = [pl.col(name).cast(SCHEMA[name]) for name in names if name in frame.collect_schema().names()]
        every.append(some(frame.filter(pl.col("code").is_in(codes)).select(own).collect().sort("time_ns")))
    return pl.concat(every, how="diagonal").sort("time_ns", "seq")


def page_faults(trace: Trace) -> Iterator[pl.DataFrame]:
    """All page faults: time_ns, seq, code, tid, a and b of ``SCHEMA``, in order of time, a slice of it at a time."""
    frames = [
        _frame(trace, table, "page_fault_user", Code.FAULT).select(
            pl.col(name).cast(SCHEMA[name]) for name in ("time_ns", "seq", "code", "tid", "a", "b")
        )
        for table in schema.tables_of(trace, "page_fault_user")
    ]
    if len(frames) != 1:  # one is in order as it is
        whole = pl.concat(frames).sort("time_ns", "seq").collect() if frames else pl.DataFrame()
        yield from whole.iter_slices(_SLICE_ROWS)
        return
    rows = sum(trace.rows(table) for table in schema.tables_of(trace, "page_fault_user"))
    held: list[pl.DataFrame] = []
    for first in range(0, rows, _SLICE_ROWS):
        part = pl.concat([*held, frames[0].slice(first, _SLICE_ROWS).collect()])
        time = part["time_ns"].to_numpy()
        if not (time[1:] > time[:-1]).all():
            part = part.sort("time_ns", "seq")
        # those of the last time wait for what else may be of it: ties are by seq, in the table by CPU first
        ready = int(part["time_ns"].search_sorted(part["time_ns"][-1]))
        yield part[:ready]
        held = [part[ready:]]
    yield from held


def happened(trace: Trace, event: str) -> bool:
    """Whether the canonical ``event`` ever did."""
    return any(trace.rows(table) for table in schema.tables_of(trace, event))


def entries(rows: pl.DataFrame, machine: pte.Machine) -> pl.DataFrame:
    """The rows of the timeline that walks are made from: columns as ``SCHEMA``.

    a: row, b: page of the address, c: PFN, d: order (null: none printed), e: type of the migration entry for a set,
    with DIRTY, f: PMD for a whole one. Of an EDGE e says whether migrate_pages() starts, f what its reason tells.
    Empty where the values of the entries are not understood, and for pages of another size than ``_PAGE_BYTES``.
    """
    if machine.page_size not in (None, _PAGE_BYTES):
        return pl.DataFrame(schema=SCHEMA)
    kinds = {Kind.SET: Code.SET, Kind.RESTORE: Code.RESTORE, Kind.MIGRATE_START: Code.EDGE, Kind.MIGRATE_END: Code.EDGE}
    picked = rows.with_row_index("a").filter(pl.col("kind").is_in(list(kinds)))
    word = picked["pte"].fill_null(0).to_numpy()
    is_set = (picked["kind"] == Kind.SET).to_numpy()
    layout, after = pte.layout_of(word[is_set], *machine), pte.present_pfn(word, *machine[:2])
    if layout is None or after is None:
        return pl.DataFrame(schema=SCHEMA)
    pfn, entry = after.copy(), np.zeros(len(word), dtype=np.int64)
    pfn[is_set] = layout.source_frames(word[is_set])
    entry[is_set] = layout.types(word[is_set]) + DIRTY * layout.dirty(word[is_set])
    whole = picked["event"].cast(pl.String).str.starts_with("thp:")
    reason = picked["label"].cast(pl.String)
    return picked.select(
        "time_ns",
        pl.col("seq"),
        pl.col("kind").replace_strict({int(k): int(v) for k, v in kinds.items()}, return_dtype=pl.UInt8).alias("code"),
        tid="task",
        a="a",
        b=pl.col("addr") // _PAGE_BYTES,
        c=pl.Series(pfn),
        d="order",
        e=pl.when(pl.col("kind").is_in([Kind.MIGRATE_START, Kind.MIGRATE_END]))
        .then(pl.col("kind") == Kind.MIGRATE_START)
        .otherwise(pl.Series(entry)),
        f=pl.when(whole)
        .then(1)
        .when(reason.is_in(OWN_REASONS))
        .then(2)
        .when(reason.is_in(CALL_REASONS))
        .then(3)
        .otherwise(0),
        ret=pl.lit(None),
    ).select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())


def with_ends(marks: pl.DataFrame) -> pl.DataFrame:
    """``marks`` in order of time, ``ret`` 1 where the next of its task is no entry of the same folio.

    What a restore prints of the order is no help: those of one page are told.
    """
    order = pl.when(pl.col("code") == Code.SET).then(pl.col("d").fill_null(0)).otherwise(0).clip(0, 62)
    walk = pl.struct("code", pl.col("c").fill_null(-1) // pl.lit(2).pow(order).cast(pl.Int64), order.alias("order"))
    ordered = marks.sort("time_ns", "seq", maintain_order=True).with_columns(walk.alias("walk"))
    last = pl.col("walk").ne_missing(pl.col("walk").shift(-1).over("tid"))
    return ordered.with_columns(ret=last.cast(pl.Int64)).drop("walk")


def with_flags(cycle: pl.DataFrame) -> pl.DataFrame:
    """``cycle`` in order of time; a clone3(), whose flags are behind a pointer, has those of the task that it made."""
    ordered = cycle.sort("time_ns", "seq", maintain_order=True).with_row_index("at")
    clone3 = pl.col("code") == Code.CLONE3
    made = ordered.filter(pl.col("code") == Code.NEWTASK).select("at", "tid", flags="b")
    found = (
        ordered.filter(clone3)
        .select("at", "tid")
        .join_asof(made, on="at", by="tid", strategy="forward", check_sortedness=False)
    )
    flags = ordered.select("at").join(found.select("at", "flags"), on="at", how="left", maintain_order="left")["flags"]
    return ordered.with_columns(a=pl.when(clone3).then(flags.fill_null(CLONE_VM)).otherwise("a")).drop("at")


def file_of(major: pl.Expr, minor: pl.Expr, inode: pl.Expr) -> pl.Expr:
    """int64: names a file."""
    parts = (major.alias("major"), minor.alias("minor"), inode.alias("inode"))
    return pl.struct(part.cast(pl.UInt64) for part in parts).hash().reinterpret(signed=True)


def _frame(trace: Trace, table: str, event: str, code: Code) -> pl.LazyFrame:
    own = [_signed(column) for column in schema.columns_of(trace, table, event)]
    frame = trace.events(table)
    leave = table.replace("sys_enter_", "sys_exit_")
    if code not in _ENDED or leave not in trace.event_names:
        return frame.select(_common(trace, table, code) + own)
    # The effect stands when the call returns; a task is in one system call at a time
    enter = frame.select(_common(trace, table, code) + own).drop("seq", "code")
    returns = trace.events(leave).select([*_common(trace, leave, code), pl.col("ret").cast(pl.Int64).alias("ret")])
    return returns.sort("time_ns").join_asof(
        enter.sort("time_ns"), on="time_ns", by="tid", strategy="backward", check_sortedness=False
    )


def _common(trace: Trace, table: str, code: Code) -> list[pl.Expr]:
    task = pl.coalesce("tid", "common_pid") if "common_pid" in trace.columns(table) else pl.col("tid")
    return [
        pl.col("time_ns"),
        pl.col("seq").cast(pl.UInt64),
        pl.lit(int(code), pl.UInt8).alias("code"),
        task.cast(pl.Int32).alias("tid"),
    ]


def _signed(column: pl.Expr) -> pl.Expr:
    """A 64-bit word as the loop takes it."""
    return column.cast(pl.UInt64, wrap_numerical=True).reinterpret(signed=True)


def _side_band(trace: Trace) -> list[pl.LazyFrame]:
    """What perf itself recorded: what was there before the trace, and what exec maps."""
    frames = []
    tables = trace.manifest["tables"]
    if tables.get("tasks", {}).get("rows"):
        own = [schema.recorded(trace, event) for event in ("process_fork", "process_exit")]
        tasks = trace.table("tasks").select(
            "time_ns", "seq", "tid", pl.col("kind").cast(pl.String), a="pid", b="ppid", c="ptid"
        )
        before = pl.col("kind") == "fork"
        frames.append(
            tasks.filter(before & (pl.col("time_ns") == 0))
            .with_columns(code=pl.lit(int(Code.TASK), pl.UInt8))
            .drop("kind")
        )
        if not own[0]:
            forked = before & (pl.col("time_ns") > 0)
            thread = pl.when(pl.col("a") == pl.col("b")).then(CLONE_VM).otherwise(0)
            frames.append(
                tasks.filter(forked).select(
                    "time_ns", "seq", tid="c", a="tid", b=thread, code=pl.lit(int(Code.NEWTASK), pl.UInt8)
                )
            )
        if not own[1]:
            ended = pl.col("kind") == "exit"
            frames.append(tasks.filter(ended).select("time_ns", "seq", "tid", code=pl.lit(int(Code.EXIT), pl.UInt8)))
        frames.append(
            tasks.filter(pl.col("kind") == "exec")
            .with_columns(code=pl.lit(int(Code.EXEC), pl.UInt8), b=pl.lit(SIDE_BAND, pl.Int32))
            .drop("kind")
        )
    if tables.get("lost", {}).get("rows"):
        frames.append(
            trace.table("lost").select(
                "time_ns",
                pl.lit(None, pl.UInt64).alias("seq"),
                code=pl.lit(int(Code.LOST), pl.UInt8),
                tid=pl.lit(0, pl.Int32),
            )
        )
    if tables.get("maps", {}).get("rows"):
        maps = trace.table("maps").filter(
            (pl.col("pid") > 0) & (pl.col("addr") < 1 << 56)
        )  # the rest is the kernel's own
        frames.append(
            maps.select(
                "time_ns",
                "seq",
                pl.lit(int(Code.MAP), pl.UInt8).alias("code"),
                tid="pid",
                a=pl.col("addr").cast(pl.Int64),
                b=pl.col("len").cast(pl.Int64),
                c=pl.col("pgoff").cast(pl.Int64),
                d=pl.when(pl.col("ino") > 0).then(file_of(pl.col("maj"), pl.col("min"), pl.col("ino"))).otherwise(0),
            )
        )
    return [
        frame.with_columns(pl.col(name).cast(pl.Int64) for name in _ARGUMENTS if name in frame.collect_schema().names())
        for frame in frames
    ]
