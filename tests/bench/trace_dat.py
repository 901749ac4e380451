"""Ingest of a trace.dat against trace-cmd report: CPU seconds, wall seconds, peak memory; runs interleaved, medians.

    python tests/bench/trace_dat.py FOLDER [MEGABYTES [ROUNDS]]

Records on this machine (root, tracefs, trace-cmd) into FOLDER what is not there yet: sched, syscalls and kmem events of
an instance of its own, without compression; the zstd file holds the same events. The files belong into no repository.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
INSTANCE = Path("/sys/kernel/tracing/instances/tracekit_bench")
SYSTEMS = ("sched", "syscalls", "kmem")
PAGE = 4096
INGEST = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tracekit.cli import main; main()"


class Cost(NamedTuple):
    """What a command took."""

    cpu_s: float
    wall_s: float
    peak_mb: float


@contextlib.contextmanager
def instance() -> Iterator[None]:
    """A buffer of its own, so that nobody else's tracing is disturbed."""
    INSTANCE.mkdir()
    try:
        (INSTANCE / "buffer_size_kb").write_text("65536")
        yield
    finally:
        (INSTANCE / "events/enable").write_text("0")
        INSTANCE.rmdir()


def copy_pages(cpu: int, out: Path, stop: threading.Event) -> None:
    """What trace-cmd's recorders do: pages of a CPU as they are."""
    with (INSTANCE / f"per_cpu/cpu{cpu}/trace_pipe_raw").open("rb", buffering=0) as source, out.open("wb") as target:
        os.set_blocking(source.fileno(), False)
        while True:
            page = source.read(PAGE)
            if page:
                target.write(page.ljust(PAGE, b"\0"))
            elif stop.is_set():
                return
            if not page or int.from_bytes(page[8:10], sys.byteorder) < PAGE // 2:  # how much of it is used
                time.sleep(0.3)  # that was the page written to right now: let it become full, and others


def record(out: Path, megabytes: int) -> None:
    """Record so many megabytes, then have trace-cmd make a file of them."""
    parts = [out.with_name(f"{out.name}.cpu{cpu}") for cpu in range(os.cpu_count() or 1)]
    churn = [sys.executable, str(Path(__file__).with_name("record.py")), "--churn"]
    stop = threading.Event()
    with instance():
        copiers = [threading.Thread(target=copy_pages, args=(cpu, part, stop)) for cpu, part in enumerate(parts)]
        workers = [subprocess.Popen(churn) for _ in range(2)]
        try:
            for copier in copiers:
                copier.start()
            for system in SYSTEMS:
                (INSTANCE / "events" / system / "enable").write_text("1")
            while sum(part.stat().st_size for part in parts if part.exists()) < megabytes << 20:
                time.sleep(0.05)
            (INSTANCE / "events/enable").write_text("0")
        finally:
            stop.set()
            for worker in workers:
                worker.kill()
                worker.wait()
            for copier in copiers:
                copier.join()
    head = out.with_name("head.dat")
    subprocess.run(["trace-cmd", "restore", "-c", "-o", str(head)], check=True)
    subprocess.run(["trace-cmd", "restore", "-i", str(head), "-o", str(out), *map(str, parts)], check=True)
    for part in (head, *parts):
        part.unlink()


def cost(command: list[str]) -> Cost:
    """Run it."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    if status:
        raise SystemExit(f"{command} ended with {status}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


def main() -> None:
    folder = Path(sys.argv[1])
    megabytes, rounds = (int(text) for text in (*sys.argv[2:], "260", "3")[:2])
    folder.mkdir(parents=True, exist_ok=True)
    plain, packed = folder / "plain.dat", folder / "zstd.dat"
    if not plain.exists():
        record(plain, megabytes)
    if not packed.exists():
        subprocess.run(
            ["trace-cmd", "convert", "-i", str(plain), "-o", str(packed), "--compression", "zstd"], check=True
        )
    out = ["-o", str(folder / "out.tracekit"), "--force"]
    commands = {
        "trace-cmd report": ["trace-cmd", "report", "-i", str(plain)],
        "tracekit": [sys.executable, "-c", INGEST, "ingest", str(plain), *out],
        "tracekit, zstd": [sys.executable, "-c", INGEST, "ingest", str(packed), *out],
    }
    print(f"{plain.stat().st_size >> 20} MB, zstd {packed.stat().st_size >> 20} MB")
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            costs[name].append(cost(command))
    medians = {name: Cost(*map(statistics.median, zip(*runs, strict=True))) for name, runs in costs.items()}
    peer = medians["trace-cmd report"]
    for name, runs in costs.items():
        middle, peak = medians[name], max(run.peak_mb for run in runs)
        print(
            f"{name:<18} CPU {middle.cpu_s:6.2f} s ({peer.cpu_s / middle.cpu_s:4.1f}x)"
            f"  wall {middle.wall_s:6.2f} s ({peer.wall_s / middle.wall_s:4.1f}x)  peak {peak:4.0f} MB"
        )
    print(f"zstd / plain       CPU {medians['tracekit, zstd'].cpu_s / medians['tracekit'].cpu_s:.2f}")


if __name__ == "__main__":
    main()
