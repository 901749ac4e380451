"""Trace directories made by hand (DESIGN.md §5) out of events of tests/naive.py, as ``tracekit ingest`` writes them."""

import json

import naive
import polars as pl

import tracekit

LABEL = pl.Categorical
COMMON = {
    "time_ns": pl.Int64,
    "cpu": pl.Int32,
    "pid": pl.Int32,
    "tid": pl.Int32,
    "comm": LABEL,
    "callchain_id": pl.UInt32,
    "seq": pl.UInt64,
    "common_flags": pl.UInt8,
    "common_preempt_count": pl.UInt8,
    "common_pid": pl.Int32,
}
POINTER = pl.UInt64
VISIT = {"__probe_ip": POINTER, "folio": POINTER, "vma": POINTER, "addr": POINTER, "mm": POINTER}
PAGE = {"__probe_ip": POINTER, "folio": POINTER, "page": POINTER}
RETURN = {"__probe_func": POINTER, "__probe_ret_ip": POINTER}
REASON = {"mode": pl.UInt32, "mode_name": LABEL, "reason": pl.Int32, "reason_name": LABEL}
TABLES = {
    "kprobes:try_to_migrate": {"__probe_ip": POINTER, "folio": POINTER},
    "kprobes:try_to_migrate_ret": RETURN,
    "kprobes:try_to_migrate_one": VISIT,
    "kprobes:try_to_migrate_one_ret": RETURN,
    "kprobes:remove_migration_pte": VISIT,
    "kprobes:remove_migration_pte_ret": RETURN,
    "kprobes:remove_migration_ptes": {"__probe_ip": POINTER, "dst": POINTER, "src": POINTER},
    "kprobes:folio_mc_copy": {"__probe_ip": POINTER, "dst": POINTER, "src": POINTER},
    "kprobes:folio_remove_rmap_ptes": {**PAGE, "nr": pl.Int32, "vma": POINTER},
    "kprobes:folio_remove_rmap_pmd": {**PAGE, "vma": POINTER},
    "kprobes:folio_add_new_anon_rmap": {"__probe_ip": POINTER, "folio": POINTER, "vma": POINTER, "addr": POINTER},
    "kprobes:folio_add_anon_rmap_ptes": {**PAGE, "nr": pl.Int32, "vma": POINTER, "addr": POINTER},
    "kprobes:folio_add_file_rmap_ptes": {**PAGE, "nr": pl.Int32, "vma": POINTER},
    "kprobes:try_to_unmap_one": VISIT,
    "kprobes:try_to_unmap_one_ret": {**RETURN, "ret": pl.UInt8},
    "kprobes:deferred_split_folio": {"__probe_ip": POINTER, "folio": POINTER, "partially_mapped": pl.UInt8},
    "kprobes:folio_mark_lazyfree": {"__probe_ip": POINTER, "folio": POINTER},
    "kprobes:__tlb_remove_folio_pages": {"__probe_ip": POINTER, "page": POINTER, "nr": pl.Int32},
    "kprobes:do_wp_page": {"__probe_ip": POINTER},
    "tlb:tlb_flush": {"reason": pl.Int32, "pages": POINTER},
    "kprobes:anon_vma_fork": {"__probe_ip": POINTER, "vma": POINTER, "pvma": POINTER},
    "migrate:set_migration_pte": {"addr": POINTER, "pte": POINTER, "order": pl.Int32},
    "migrate:remove_migration_pte": {"addr": POINTER, "pte": POINTER, "order": pl.Int32},
    "thp:set_migration_pmd": {"addr": POINTER, "pmd": POINTER},
    "thp:remove_migration_pmd": {"addr": POINTER, "pmd": POINTER},
    "migrate:mm_migrate_pages_start": REASON,
    "migrate:mm_migrate_pages": {"succeeded": POINTER, "failed": POINTER, **REASON},
    "sched:sched_process_fork": {"parent_pid": pl.Int32, "child_pid": pl.Int32},
    "ftrace:print": {"buf": pl.String},
    "sched:sched_switch": {},
}
# Switched on in every trace made here, even where they never fire
ALWAYS = (
    "kprobes:try_to_migrate_one",
    "kprobes:remove_migration_pte",
    "migrate:set_migration_pte",
    "migrate:remove_migration_pte",
    "migrate:mm_migrate_pages_start",
)


# Of system calls, null where an event says nothing
ARGUMENTS = {"move_pages": {"field_pid": POINTER}, "munmap": {"addr": POINTER, "len": POINTER}}


def fields_of(name):
    """The own columns of a table."""
    if name.startswith("syscalls:"):
        own = {"ret": pl.Int64} if "sys_exit" in name else ARGUMENTS.get(name.split("sys_enter_")[1], {})
        return {"__syscall_nr": pl.Int32, **own}
    return TABLES[name]


def columns_of(name):
    return {**COMMON, **fields_of(name)}


def write(directory, events, *, lost=(), arch="x86_64", always=ALWAYS, without=()):
    """Write the trace directory of ``events`` (naive.Event; place in the list: seq) and open it.

    Args:
        directory: a folder that does not exist yet.
        events: in any order.
        lost: (time_ns, cpu) of LOST records; cpu may be None.
        arch: of the machine.
        always: tables that are there even without a row.
        without: columns that no table has (``mm``).
    """
    tables = {name: [] for name in always}
    for seq, event in enumerate(events):
        common = {"time_ns": event.time_ns, "cpu": event.cpu, "pid": event.task, "tid": event.task}
        common |= {"common_pid": event.task, "comm": event.comm, "seq": seq, "common_flags": 0}
        tables.setdefault(event.name, []).append((common | {"common_preempt_count": 1}, event.fields))
    sizes = {}
    for name, rows in tables.items():
        kinds = {key: kind for key, kind in columns_of(name).items() if key not in without}
        rows.sort(key=lambda row: (row[0]["time_ns"], row[0]["cpu"], row[0]["seq"]))
        # a field of an event is never lost on the way: its name is one of the table's
        assert all(fields.keys() <= kinds.keys() | set(without) for _, fields in rows), name
        columns = {key: [common.get(key, fields.get(key)) for common, fields in rows] for key in kinds}
        file = directory / "events" / f"{name.replace(':', '/', 1)}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(columns, schema=kinds).write_parquet(file)
        sizes[f"events/{name.replace(':', '/', 1)}"] = {"rows": len(rows), "bytes": file.stat().st_size}
    directory.mkdir(exist_ok=True)
    if lost:
        sizes["lost"] = {"rows": len(lost), "bytes": 0}
        times, cpus = zip(*sorted(lost, key=lambda row: row[0]), strict=True)
        columns = {"time_ns": times, "cpu": cpus, "count": [1] * len(lost)}
        kinds = {"time_ns": pl.Int64, "cpu": pl.Int32, "count": pl.UInt64}
        pl.DataFrame(columns, schema=kinds).write_parquet(directory / "lost.parquet")
    (directory / "manifest.json").write_text(json.dumps(manifest(events, sizes, lost, arch)))
    return tracekit.open(directory)


def write_tables(directory, tables):
    """Write a trace directory out of whole tables, each with all of its columns and in order of time."""
    sizes = {}
    for name, table in tables.items():
        file = directory / "events" / f"{name.replace(':', '/', 1)}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table.write_parquet(file)
        sizes[f"events/{name.replace(':', '/', 1)}"] = {"rows": len(table), "bytes": file.stat().st_size}
    times = [table["time_ns"][i] for table in tables.values() for i in (0, -1)]
    (directory / "manifest.json").write_text(json.dumps(_manifest(times, sizes, (), "x86_64")))


def manifest(events, sizes, lost, arch):
    return _manifest([event.time_ns for event in events], sizes, lost, arch)


def _manifest(times, sizes, lost, arch):
    return {
        "schema": "tracekit/manifest/1",
        "tool": {"name": "tracekit", "version": tracekit.__version__},
        "source": {"name": "by-hand", "size_bytes": 0, "sha256": "0" * 64, "format": "perf.data"},
        "machine": {"release": "7.2.0", "arch": arch, "page_size": 4096, "cpus": 2, "cpus_available": 2, "nodes": []},
        "recorder": {"name": "perf", "version": "6.12", "cmdline": []},
        "clock": {"name": "monotonic", "wall_offset_ns": None},
        "time_range_ns": {"first": min(times, default=None), "last": max(times, default=None)},
        "tables": sizes,
        "lost": {"events": len(lost), "records": len(lost)},
        "anomalies": {},
        "truncated": None,
        "fidelity": "observed",
        "kernel_has": {},
    }


class Script:
    """Writes down what a kernel does, one event after the other, ``step_ns`` apart."""

    def __init__(self, task=7, *, start_ns=1_000, step_ns=10, cpu=0, comm="forkcow"):
        self.task, self.now, self.step_ns, self.cpu, self.comm = task, start_ns, step_ns, cpu, comm
        self.events = []

    def add(self, name, *, task=None, **fields):
        self.now += self.step_ns
        self.events.append(naive.Event(task or self.task, self.now, name, fields, self.cpu, self.comm))

    def enter(self, name):
        self.add(f"syscalls:sys_enter_{name}")

    def exit(self, name):
        self.add(f"syscalls:sys_exit_{name}", ret=0)

    def start(self, reason_name="syscall_or_cpuset"):
        self.add("migrate:mm_migrate_pages_start", mode=2, mode_name="MIGRATE_SYNC", reason=3, reason_name=reason_name)

    def end(self):
        self.add("migrate:mm_migrate_pages", succeeded=1, failed=0)

    def visits(self, name, folio, vmas, *, order=0, addr=0x7000):
        """Visit ``vmas`` (1, 2, …) in that order; an entry is set or restored where the number is negative."""
        probe = "try_to_migrate_one" if name == "set" else "remove_migration_pte"
        for vma in vmas:
            self.add(f"kprobes:{probe}", folio=folio, vma=0x100 + abs(vma), addr=addr, mm=0x200 + abs(vma))
            if vma < 0:
                self.add(f"migrate:{name}_migration_pte", addr=addr, pte=pte(name, folio), order=order)

    def try_to_migrate(self, folio, vmas, order=0, addr=0x7000, *, returns=True):
        self.add("kprobes:try_to_migrate", folio=folio)
        self.visits("set", folio, vmas, order=order, addr=addr)
        if returns:
            self.add("kprobes:try_to_migrate_ret")

    def copy(self, src, dst):
        self.add("kprobes:folio_mc_copy", dst=dst, src=src)

    def remove(self, dst, vmas, order=0, addr=0x7000):
        self.visits("remove", dst, vmas, order=order, addr=addr)

    def migrate(self, src, dst, tried, removed, *, order=0, addr=0x7000):
        """One folio's migration: what both walks visit, see ``visits``."""
        self.try_to_migrate(src, tried, order, addr)
        self.copy(src, dst)
        self.remove(dst, removed, order, addr)


def pte(name, folio):
    """A PTE that holds the frame of ``folio``: a migration entry (type 30) or a present, writable one (C.3)."""
    pfn = folio >> 6
    if name == "set":
        return 30 << 59 | (~(pfn << 9) & (1 << 59) - 1 & ~0x1FF)
    return pfn << 12 | 0x867
