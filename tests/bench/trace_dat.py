"""Ingest of a trace.dat against trace-cmd report: CPU seconds, wall seconds, peak memory; runs interleaved.

    python tests/bench/trace_dat.py FOLDER [MEGABYTES [ROUNDS]]

Records on this machine (root, tracefs, trace-cmd) into FOLDER what is not there yet: sched, syscalls and kmem events,
without compression; the zstd file holds the same events. The files belong into no repository.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
INGEST = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tracekit.cli import main; main()"
RECORD = ["trace-cmd", "record", "-q", "-b", "65536", "--compression", "none", "-e", "sched", "-e", "syscalls", "-e", "kmem"]


class Cost(NamedTuple):
    """What a command took."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def record(out: Path, megabytes: int) -> None:
    """Record until the files of the CPUs are large enough."""
    churn = [sys.executable, str(Path(__file__).with_name("record.py")), "--churn"]
    workers = [subprocess.Popen(churn) for _ in range(2)]
    recorder = subprocess.Popen([*RECORD, "-o", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while sum(path.stat().st_size for path in out.parent.glob(out.name + "*")) < megabytes << 20:
            if recorder.poll() is not None:
                raise SystemExit(f"trace-cmd ended with {recorder.returncode}")
            time.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        recorder.send_signal(signal.SIGINT)
        recorder.wait()


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
        subprocess.run(["trace-cmd", "convert", "-i", str(plain), "-o", str(packed), "--compression", "zstd"], check=True)
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
    best = {name: Cost(*(min(column) for column in zip(*runs, strict=True))) for name, runs in costs.items()}
    peer = best["trace-cmd report"]
    for name, runs in costs.items():
        least = best[name]
        print(f"{name:<18} CPU {least.cpu_s:6.2f} s ({peer.cpu_s / least.cpu_s:4.1f}x)  wall {least.wall_s:6.2f} s "
              f"({peer.wall_s / least.wall_s:4.1f}x)  peak {max(run.peak_mb for run in runs):4.0f} MB")
    print(f"zstd / plain       CPU {best['tracekit, zstd'].cpu_s / best['tracekit'].cpu_s:.2f}")


if __name__ == "__main__":
    main()
