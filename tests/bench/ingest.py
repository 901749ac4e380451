"""Measures ingest against perf script on a capture that it records itself, interleaved; prints medians and ratios.

    python tests/bench/ingest.py [--megabytes 256] [--runs 3] [--capture FILE] [--keep DIR]

Needs root and perf to record. CPU is user + system time of the process and its children.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from record import record

ROOT = Path(__file__).parents[2]
CODE = "import sys, pathlib; from tracekit.ingest import ingest; ingest(*map(pathlib.Path, sys.argv[1:]), force=True)"


class Cost(NamedTuple):
    cpu_s: float
    wall_s: float
    peak_mb: float


def measure(command: list[str]) -> Cost:
    """Run ``command`` with its output thrown away."""
    begin = os.times().elapsed
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} ended with {status}")
    return Cost(usage.ru_utime + usage.ru_stime, os.times().elapsed - begin, usage.ru_maxrss / 1024)


def median(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


def samples(capture: Path) -> int | None:
    """How many samples perf itself counts; None if it cannot read the file."""
    text = subprocess.run(
        ["perf", "report", "--stats", "-i", capture], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"SAMPLE events:\s+(\d+)", text)
    return int(found[1]) if found else None


def rows(trace: Path) -> tuple[int, int]:
    """Rows of events and samples, and bytes of all tables."""
    tables = json.loads((trace / "manifest.json").read_text())["tables"]
    count = sum(table["rows"] for name, table in tables.items() if name.startswith(("events/", "samples/")))
    return count, sum(table["bytes"] for table in tables.values())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--megabytes", type=int, default=256)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--capture", type=Path)
    options.add_argument("--keep", type=Path, help="where to leave the capture")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.keep) as folder:
        capture = asked.capture or (asked.keep or Path(folder)) / f"{asked.megabytes}.perf.data"
        if not capture.exists():
            record(capture, asked.megabytes)
        capture = capture.absolute()
        trace = Path(folder) / "trace"
        ours, peers = [], []
        for _ in range(asked.runs):
            peers.append(measure(["perf", "script", "-i", str(capture)]))
            ours.append(measure([sys.executable, "-c", CODE, str(capture), str(trace)]))
        size = capture.stat().st_size
        count, bytes_on_disk = rows(trace)
        expected = samples(capture)
    us, peer = median(ours), median(peers)
    print(f"capture        {size / 1e6:10.1f} MB   {count} rows, perf counts {expected}")
    print(f"perf script    {peer.cpu_s:10.2f} s CPU {peer.wall_s:8.2f} s wall {peer.peak_mb:8.0f} MB")
    print(f"tracekit       {us.cpu_s:10.2f} s CPU {us.wall_s:8.2f} s wall {us.peak_mb:8.0f} MB")
    print(f"ratio          {peer.cpu_s / us.cpu_s:10.2f} x CPU {peer.wall_s / us.wall_s:8.2f} x wall")
    print(f"Parquet        {bytes_on_disk / 1e6:10.1f} MB   1/{size / bytes_on_disk:.1f} of the capture")
    if expected is not None and expected != count:
        raise SystemExit("the row counts differ")


if __name__ == "__main__":
    main()
