"""Records a perf.data file of at least so many megabytes on this machine: page migration, forks, mappings.

    python tests/bench/record.py OUT MEGABYTES [MIX]

MIX is one of ``MIXES``. Needs root and perf. The file belongs into no repository.
"""

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MEMORY = "migrate:*,compaction:*,tlb:*,kmem:*,vmscan:*,huge_memory:*"
MIXES = {"memory": MEMORY, "calls": "migrate:*,compaction:*,tlb:*,kmem:*,sched:*,syscalls:*"}
"""What mm developers record; and with every system call, of which some 700 never happen and perf's own are half."""
COMPACT = Path("/proc/sys/vm/compact_memory")


def churn() -> None:
    """Map, touch, fork, exit, compact, for ever."""
    size = 8 << 20
    while True:
        areas = [mmap.mmap(-1, size) for _ in range(4)]
        for area in areas:
            for page in range(0, size, 8192):
                area[page] = 1
        for _ in range(4):
            child = os.fork()
            if child == 0:
                areas[0][:: 1 << 16] = bytes(size >> 16)
                os._exit(0)
            os.waitpid(child, 0)
        for area in areas[::2]:
            area.close()
        try:
            COMPACT.write_text("1")
        except OSError:
            time.sleep(0.01)


def record(out: Path, megabytes: int, mix: str) -> None:
    """Record until ``out`` is large enough."""
    workers = [subprocess.Popen([sys.executable, __file__, "--churn"]) for _ in range(2)]
    command = ["perf", "record", "-q", "-a", "-m", "2048", "-e", MIXES[mix], "-o", str(out)]
    perf = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not out.exists() or out.stat().st_size < megabytes << 20:
            if perf.poll() is not None:
                raise SystemExit(f"perf ended with {perf.returncode}")
            time.sleep(0.1)
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait()
        for worker in workers:
            worker.kill()
            worker.wait()


if __name__ == "__main__":
    if sys.argv[1] == "--churn":
        churn()
    else:
        record(Path(sys.argv[1]), int(sys.argv[2]), *(sys.argv[3:] or ["memory"]))
