"""Ingest of perf.data against perf script: CPU seconds, wall seconds, peak memory; runs interleaved, medians.

    python tests/bench/ingest.py FOLDER [--megabytes 46 250 1000] [--mix memory calls] [--runs 3]

Records on this machine (root, perf) into FOLDER what is not there yet; the files belong into no repository. For each
size of each mix of events (``record.MIXES``), in each round, one after the other:

    perf script      the peer: all events as text, thrown away
    ingest           all events, all their fields, as zstd Parquet
    migrate:*        the same, only these events
    ingest -z        the same records as the first, compressed as perf record -z does

CPU is user and system time. ``times`` is how often the peer's cost goes into the case's (for -z: its cost in that of
``ingest``). Peak memory is VmHWM. Rows are held against perf's own count of samples. Every run writes to a place of
its own, and all of them go at the end: ext4 without a journal takes 0.4 ms, not 0.04, to make a file soon after others
were deleted. A busy machine makes all figures worse, wall time most: the load is printed, too.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import zstandard

sys.path.insert(0, str(Path(__file__).parent))
from record import MIXES, record

ROOT = Path(__file__).parents[2]
TRACEKIT = [
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tracekit.cli import main; main()",
]
PIECE = 1 << 16
COMPRESSED, COMPRESSED_FEATURE = 81, 27
HEADER_BYTES, DATA_AT, FLAGS_AT = 104, 40, 72  # of struct perf_file_header


class Cost(NamedTuple):
    """What a command took."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def measure(command: list[str]) -> Cost:
    """Run ``command`` with its output thrown away."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in {0, 3}:  # 3: the recorder lost events
        raise SystemExit(f"{' '.join(command)} ended with {status}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - begin, usage.ru_maxrss / 1024)


def pack(plain: Path, out: Path) -> None:
    """Copy a perf.data file with its records compressed, as perf record -z writes them."""
    with plain.open("rb") as source, out.open("wb") as target:
        head = bytearray(source.read(HEADER_BYTES))
        begin, size = struct.unpack_from("<QQ", head, DATA_AT)
        flags = int.from_bytes(head[FLAGS_AT:], "little")
        target.write(head + source.read(begin - len(head)))
        stream, left = zstandard.ZstdCompressor(level=1).compressobj(), size
        while left:
            piece = source.read(min(PIECE - 4096, left))
            left -= len(piece)
            body = stream.compress(piece) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            target.write(struct.pack("<IHH", COMPRESSED, 0, 8 + len(body)) + body)
        end = target.tell()
        bits = [bit for bit in range(256) if flags >> bit & 1]
        sections = {bit: struct.unpack("<QQ", source.read(16)) for bit in bits}
        contents = {bit: (source.seek(at), source.read(length))[1] for bit, (at, length) in sections.items()}
        contents[COMPRESSED_FEATURE] = struct.pack("<5I", 1, 1, 1, 8, 1 << 20)  # version, zstd, level, ratio, mmap
        at = end + 16 * len(contents)
        for bit in sorted(contents):
            target.write(struct.pack("<QQ", at, len(contents[bit])))
            at += len(contents[bit])
        target.writelines(contents[bit] for bit in sorted(contents))
        struct.pack_into("<QQ", head, DATA_AT, begin, end - begin)
        head[FLAGS_AT:] = (flags | 1 << COMPRESSED_FEATURE).to_bytes(32, "little")
        target.seek(0)
        target.write(head)


def samples(capture: Path) -> int:
    """How many samples perf itself counts."""
    text = subprocess.run(
        ["perf", "report", "--stats", "-i", capture], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"SAMPLE events:\s+(\d+)", text)
    return int(found[1]) if found else -1


def rows(trace: Path) -> tuple[int, int]:
    """Rows of events and samples, and bytes of all tables."""
    tables = json.loads((trace / "manifest.json").read_text())["tables"]
    count = sum(table["rows"] for name, table in tables.items() if name.startswith(("events/", "samples/")))
    return count, sum(table["bytes"] for table in tables.values())


def compare(plain: Path, runs: int, scratch: Path) -> bool:
    """Print what each case took; whether the rows are those that perf counts."""
    packed = plain.with_suffix(".z.data")
    if not packed.exists():
        pack(plain, packed)
    cases = {
        "perf script": ["perf", "script", "-i", str(plain)],
        "ingest": [*TRACEKIT, "ingest", str(plain), "-o"],
        "migrate:*": [*TRACEKIT, "ingest", str(plain), "--event", "migrate:*", "-o"],
        "ingest -z": [*TRACEKIT, "ingest", str(packed), "-o"],
    }
    costs: dict[str, list[Cost]] = {case: [] for case in cases}
    for turn in range(runs):
        for case, command in cases.items():
            place = [str(scratch / f"{plain.stem}-{turn}-{case}")] if command[-1] == "-o" else []
            costs[case].append(measure([*command, *place]))
    medians = {case: Cost(*map(statistics.median, zip(*taken, strict=True))) for case, taken in costs.items()}
    size = plain.stat().st_size
    count, on_disk = rows(scratch / f"{plain.stem}-0-ingest")
    count_z, _ = rows(scratch / f"{plain.stem}-0-ingest -z")
    expected = samples(plain)
    print(f"{plain.name}: {size / 1e6:.0f} MB, {expected} samples; -z {packed.stat().st_size / 1e6:.0f} MB", end="; ")
    print(f"Parquet {on_disk / 1e6:.1f} MB, 1/{size / on_disk:.0f}; load {os.getloadavg()[0]:.1f}")
    print(f"{'':12} {'CPU s':>7} {'times':>6} {'wall s':>7} {'times':>6} {'MB/CPU s':>9} {'peak MB':>8}")
    for case, cost in medians.items():
        peer = medians["ingest" if case == "ingest -z" else "perf script"]
        times = f"{cost.cpu_s:7.2f} {peer.cpu_s / cost.cpu_s:6.2f} {cost.wall_s:7.2f} {peer.wall_s / cost.wall_s:6.2f}"
        print(f"{case:12} {times} {size / 1e6 / cost.cpu_s:9.0f} {cost.peak_mb:8.0f}", flush=True)
    return count == count_z == expected


def main() -> None:
    """Record what is missing, and compare."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--megabytes", type=int, nargs="+", default=[46, 250, 1000])
    options.add_argument("--mix", nargs="+", default=list(MIXES), choices=MIXES)
    options.add_argument("--runs", type=int, default=3)
    asked = options.parse_args()
    good = True
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        for mix, megabytes in itertools.product(asked.mix, asked.megabytes):
            plain = asked.folder / f"{mix}-{megabytes}.perf.data"
            if not plain.exists():
                record(plain, megabytes, mix)
            good &= compare(plain, asked.runs, Path(scratch))
    if not good:
        raise SystemExit("the rows are not those that perf counts")


if __name__ == "__main__":
    main()
