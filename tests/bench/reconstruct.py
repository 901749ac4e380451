"""What reconstruction costs: traces of several shapes, made here, replayed at fidelity ``reconstructed``; the curve.

    python tests/bench/reconstruct.py [--events 1e6,3e6,1e7] [--shape mixed,tasks,vmas,family,large] [--keep DIR]

``mixed``: processes that map, write and fork, and whose memory moves; of a hundred events some 65 are page faults, 20
``rss_stat``, 10 migration entries. ``tasks``: next to nothing but forks and exits. ``vmas``: 10 000 VMAs per address
space, forked. ``family``: 4 096 processes in one tree, so that a page costs 8 192 visits. ``large``: folios of 64 KiB,
some pages of which a child copied. CPU is user + system time of one process on one thread of polars, ingest and
timeline left out; memory is its peak.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from tracekit import _process  # noqa: E402 -- after the path is set

_process.settle()  # as the command line does
import polars as pl  # noqa: E402
import traces  # noqa: E402

PAGE = 4096
BASE = 0x7000_0000_0000
FORK, WRITE = 0x01200011, 6
REASON = {"mode": 2, "mode_name": "MIGRATE_SYNC", "reason": 3, "reason_name": "syscall_or_cpuset"}
MMAP = dict.fromkeys(("addr", "len", "prot", "flags", "fd", "off"), pl.UInt64)
KINDS = {
    "exceptions:page_fault_user": {"address": pl.UInt64, "ip": pl.UInt64, "error_code": pl.UInt64},
    "kmem:rss_stat": {"mm_id": pl.UInt32, "curr": pl.UInt32, "member": pl.Int32, "size": pl.Int64},
    "task:task_newtask": {"field_pid": pl.Int32, "clone_flags": pl.UInt64},
    "sched:sched_process_fork": {"parent_pid": pl.Int32, "child_pid": pl.Int32},
    "sched:sched_process_exit": {"field_pid": pl.Int32},
    "sched:sched_process_exec": {"field_pid": pl.Int32, "old_pid": pl.Int32},
    "mmap:exit_mmap": {"mm": pl.UInt64, "mt": pl.UInt64},
    "syscalls:sys_enter_mmap": MMAP,
    "syscalls:sys_exit_mmap": {"ret": pl.Int64},
    "syscalls:sys_enter_munmap": {"addr": pl.UInt64, "len": pl.UInt64},
    "syscalls:sys_exit_munmap": {"ret": pl.Int64},
    "syscalls:sys_enter_clone": {"clone_flags": pl.UInt64, "child_tidptr": pl.UInt64},
    "syscalls:sys_exit_clone": {"ret": pl.Int64},
    "syscalls:sys_enter_exit_group": {"error_code": pl.Int64},
    "syscalls:sys_enter_migrate_pages": {"field_pid": pl.Int32, "maxnode": pl.UInt64},
    "syscalls:sys_exit_migrate_pages": {"ret": pl.Int64},
    **{name: kinds for name, kinds in traces.TABLES.items() if name.startswith("migrate:")},
}


class Story:
    """Events in order, collected by table as blocks of equal events."""

    def __init__(self) -> None:
        self.blocks: dict[str, list[dict]] = {name: [] for name in KINDS}
        self.now, self.events = 1, 0

    def add(self, name: str, tid, every: int = 1, at: int = 0, **fields) -> None:
        """As many events as the longest field has values; the i-th takes place ``at + i * every`` after now."""
        n = max((len(value) for value in (tid, *fields.values()) if isinstance(value, np.ndarray)), default=1)
        self.events += n
        self.blocks[name].append({"time_ns": self.now + at + every * np.arange(n), "tid": tid, "n": n, **fields})

    def past(self, n: int) -> None:
        self.now += n

    def one(self, name: str, tid: int, **fields) -> None:
        self.add(name, tid, **fields)
        self.now += 1

    def call(self, name: str, tid: int, ret: int, **fields) -> None:
        self.one(f"syscalls:sys_enter_{name}", tid, **fields)
        self.one(f"syscalls:sys_exit_{name}", tid, ret=ret)

    def mmap(self, tid: int, start: int, pages: int) -> None:
        fields = {"addr": 0, "len": pages * PAGE, "prot": 3, "flags": 0x22, "fd": 2**64 - 1, "off": 0}
        self.call("mmap", tid, start * PAGE, **fields)

    def fork(self, tid: int, child: int) -> None:
        self.one("syscalls:sys_enter_clone", tid, clone_flags=FORK, child_tidptr=0)
        self.one("task:task_newtask", tid, field_pid=child, clone_flags=FORK)
        self.one("sched:sched_process_fork", tid, parent_pid=tid, child_pid=child)
        self.one("syscalls:sys_exit_clone", tid, ret=child)

    def exit(self, tid: int) -> None:
        self.one("syscalls:sys_enter_exit_group", tid, error_code=0)
        self.one("sched:sched_process_exit", tid, field_pid=tid)
        self.one("mmap:exit_mmap", tid, mm=0, mt=0)

    def write(self, tid: int, pages: np.ndarray, error: int = WRITE) -> None:
        """A fault on each page, and an rss_stat behind every third."""
        address = pages.astype(np.uint64) * np.uint64(PAGE)
        self.add("exceptions:page_fault_user", tid, every=3, address=address, ip=0, error_code=error)
        self.add(
            "kmem:rss_stat", tid, every=9, at=1, mm_id=tid, curr=1, member=1, size=np.arange(len(pages) // 3) * PAGE
        )
        self.past(3 * len(pages))

    def migrate(self, tid: int, pages: np.ndarray, src: int) -> None:
        """The task's own pages, one mapping each, go from frames ``src`` on to those 2**24 above."""
        self.migrate_folios(tid, pages, np.arange(src, src + len(pages), dtype=np.uint64), len(pages))

    def migrate_folios(self, tid: int, pages: np.ndarray, pfn: np.ndarray, folios: int, order: int = 0) -> None:
        """The entries at ``pages``, of frames ``pfn``, one folio's behind the other's, are set and replaced."""
        self.one("syscalls:sys_enter_migrate_pages", tid, field_pid=0, maxnode=64)
        self.one("migrate:mm_migrate_pages_start", tid, **REASON)
        addr = pages.astype(np.uint64) * np.uint64(PAGE)
        young_dirty = np.uint64(0b11 << 34)
        entry = ~((pfn | young_dirty) << np.uint64(9)) & np.uint64((1 << 59) - 1 & ~0x1FF)
        kind = np.uint64((28 if order else 30) << 59)
        self.add("migrate:set_migration_pte", tid, addr=addr, pte=entry | kind, order=order)
        self.past(len(addr))
        new = (pfn + np.uint64(1 << 24)) << np.uint64(12)
        self.add("migrate:remove_migration_pte", tid, addr=addr, pte=new | np.uint64(0x867), order=order)
        self.past(len(addr))
        self.one("migrate:mm_migrate_pages", tid, succeeded=folios, failed=0, **REASON)
        self.one("syscalls:sys_exit_migrate_pages", tid, ret=0)

    def save(self, directory: Path) -> int:
        """Write the trace directory; returns how many events it has."""
        tables = {name: _table(name, blocks) for name, blocks in self.blocks.items() if blocks}
        starts = np.cumsum([0, *(len(table) for table in tables.values())])
        for (name, table), start in zip(tables.items(), starts, strict=False):
            tables[name] = table.with_columns(seq=pl.int_range(start, start + len(table), dtype=pl.UInt64))
        traces.write_tables(directory, tables)
        return int(starts[-1])


def _table(name: str, blocks: list[dict]) -> pl.DataFrame:
    kinds = {"time_ns": pl.Int64, "tid": pl.Int32, **KINDS[name]}
    columns = {
        key: np.concatenate([np.broadcast_to(np.asarray(block[key]), block["n"]) for block in blocks])
        for key in ("time_ns", "tid", *(key for key in KINDS[name] if key in blocks[0]))
    }
    frame = pl.DataFrame(columns).with_columns(pl.col(key).cast(kinds[key]) for key in columns)
    constant = {"pid": pl.col("tid"), "common_pid": pl.col("tid"), "cpu": pl.lit(0), "comm": pl.lit("load")}
    every = traces.COMMON | KINDS[name]
    missing = {key: constant.get(key, pl.lit(None)) for key in every if key not in columns}
    return frame.with_columns(**missing).select(pl.col(k).cast(v) for k, v in every.items()).sort("time_ns")


def mixed(events: int) -> Story:
    """64 servers, each with 8 areas; a round: map and unmap, fork, let the child write, write 520 pages, move 40."""
    story, random = Story(), np.random.default_rng(1)
    servers = range(100, 164)
    area = 1 << 14
    for tid in servers:
        story.one("sched:sched_process_exec", tid, field_pid=tid, old_pid=tid)
        for i in range(8):
            story.mmap(tid, (BASE >> 12) + (i << 16), area)
    child, frame = 1_000, 1 << 20
    while story.events < events:
        for tid in servers:
            base = (BASE >> 12) + (int(random.integers(8)) << 16)
            story.mmap(tid, BASE // PAGE - 4096, 64)
            story.call("munmap", tid, 0, addr=BASE - 4096 * PAGE, len=64 * PAGE)
            child += 1
            story.fork(tid, child)
            story.write(child, base + random.integers(0, area, 30))
            written = base + random.choice(area, 520, replace=False)
            story.write(tid, written)
            story.migrate(tid, written[:40], frame % (1 << 23) + (1 << 20))
            frame += 40
            story.exit(child)
    return story


def tasks(events: int) -> Story:
    """A shell's work: a task is forked, execs or not, maps, writes 3 pages, exits; each thousandth sees one moved."""
    story, shell, child = Story(), 100, 1_000
    story.one("sched:sched_process_exec", shell, field_pid=shell, old_pid=shell)
    story.mmap(shell, BASE // PAGE, 256)
    story.write(shell, BASE // PAGE + np.arange(256))
    while story.events < events:
        child += 1
        story.fork(shell, child)
        if child % 2:
            story.one("sched:sched_process_exec", child, field_pid=child, old_pid=child)
            story.mmap(child, BASE // PAGE + 4096, 16)
        story.write(child, BASE // PAGE + 4096 * (child % 2) + np.arange(3))
        if child % 1000 == 0:
            page = BASE // PAGE + np.array([child // 1000 % 256])
            story.write(shell, page)
            story.migrate(shell, page, child)
        story.exit(child)
    return story


def vmas(events: int) -> Story:
    """One address space of 10 000 VMAs, which forks, writes everywhere and has pages of everywhere moved."""
    story, server, child, random = Story(), 100, 1_000, np.random.default_rng(1)
    story.one("sched:sched_process_exec", server, field_pid=server, old_pid=server)
    starts = BASE // PAGE + 32 * np.arange(10_000)
    for start in starts.tolist():
        story.mmap(server, start, 16)
    story.write(server, starts)
    frame = 1 << 20
    while story.events < events:
        child += 1
        story.fork(server, child)
        written = random.choice(starts, 5_000, replace=False) + 3
        story.write(server, written)
        story.migrate(server, written[:500], frame % (1 << 23) + (1 << 20))
        frame += 500
        story.exit(child)
    return story


def family(events: int) -> Story:
    """4 096 children of one process that all wrote what they had from it; its pages are moved, a few, many times."""
    story, parent = Story(), 100
    pages = BASE // PAGE + np.arange(16)
    story.one("sched:sched_process_exec", parent, field_pid=parent, old_pid=parent)
    story.mmap(parent, BASE // PAGE, 16)
    story.write(parent, pages)
    for child in range(1_000, 5_096):
        story.fork(parent, child)
        story.write(child, pages)
    frame = 1 << 20
    while story.events < events:
        for child in range(1_000, 5_096, 64):
            story.write(child, pages.repeat(20))
        story.migrate(parent, pages[:8], frame)
        frame += 8
    return story


def large(events: int) -> Story:
    """A server whose folios have 16 pages each, mapped anew time after time; a child copies some pages of some."""
    story, server, child, random = Story(), 100, 1_000, np.random.default_rng(1)
    story.one("sched:sched_process_exec", server, field_pid=server, old_pid=server)
    starts, within, frame = BASE // PAGE + 16 * np.arange(256), np.arange(16), 1 << 20
    while story.events < events:
        if child % 8 == 0:
            story.call("munmap", server, 0, addr=BASE, len=4096 * PAGE)
            story.mmap(server, BASE // PAGE, 4096)
            story.write(server, starts + random.integers(0, 16, len(starts)))
        child += 1
        story.fork(server, child)
        copied = random.choice(starts, 128, replace=False) + random.integers(0, 16, 128)
        story.write(child, copied, WRITE | 1)
        moved = random.choice(starts, 64, replace=False)
        theirs = [start + within for start in moved.tolist()]
        shared = [pages[~np.isin(pages, copied)] for pages in theirs]
        first = frame + 16 * np.arange(len(moved))
        pages = [each for pair in zip(theirs, shared, strict=True) for each in pair]
        pfns = [pages[2 * i + j] - start + first[i] for i, start in enumerate(moved.tolist()) for j in (0, 1)]
        story.migrate_folios(server, np.concatenate(pages), np.concatenate(pfns).astype(np.uint64), len(moved), 4)
        frame = (frame + 16 * len(moved)) % (1 << 23) + (1 << 20)
        story.exit(child)
    return story


SHAPES = {"mixed": mixed, "tasks": tasks, "vmas": vmas, "family": family, "large": large}


def measure(directory: str) -> None:
    """In a process of its own: print what reconstruction took."""
    import tracekit  # noqa: PLC0415 -- this process alone needs it
    from tracekit.machine.reconstruct import reconstruct  # noqa: PLC0415
    from tracekit.machine.timeline import timeline  # noqa: PLC0415

    trace = tracekit.open(directory)
    rows = timeline(trace, probes=False)
    before = time.process_time()
    done = reconstruct(trace, rows)
    spent = time.process_time() - before
    # ru_maxrss would count what the process was before exec
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"cpu_s": spent, "peak_mb": peak, "rows": len(done.rows) - len(rows), "why": done.why}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", default="1e6,3e6,1e7")
    parser.add_argument("--shape", default=",".join(SHAPES))
    parser.add_argument("--keep", type=Path, help="make the traces here and take them from here")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    print(f"{'shape':<8} {'events':>10} {'cpu s':>7} {'events/s':>10} {'peak MB':>8} {'rows made':>10}  not certain")
    with tempfile.TemporaryDirectory() as scratch:
        for shape in options.shape.split(","):
            for wanted in options.events.split(","):
                directory = (options.keep or Path(scratch)) / f"{shape}-{wanted}"
                if not (directory / "manifest.json").exists():
                    SHAPES[shape](int(float(wanted))).save(directory)
                tables = json.loads((directory / "manifest.json").read_text())["tables"]
                events = sum(table["rows"] for table in tables.values())
                command = [sys.executable, __file__, "--measure", str(directory)]
                env = {"POLARS_MAX_THREADS": "1", "PATH": ""}
                done = json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
                cpu, peak, rows = done["cpu_s"], done["peak_mb"], done["rows"]
                print(
                    f"{shape:<8} {events:>10} {cpu:>7.2f} {events / cpu:>10.0f} {peak:>8.0f} {rows:>10}  {done['why']}"
                )


if __name__ == "__main__":
    main()
