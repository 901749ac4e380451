"""Reads what ``trace-cmd report -t`` (3.3.1) printed. Knows nothing of tracekit."""

import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SHARED = Path(__file__).parents[3] / "shared"
CAPTURES = SHARED / "captures"
TRUTH = SHARED / "truth"

_LINE = re.compile(
    r"^(?:(?P<instance>[^\s:]+): )?\s*(?P<comm>\S.*?|)-(?P<tid>\d+)\s+\[(?P<cpu>\d+)\]\s+(?P<flags>\S{5}\s+)?"
    r"(?P<sec>\d+)\.(?P<nsec>\d{9}):\s+(?P<event>\w+):(?P<text>.*)$"
)
_DROPPED = re.compile(r"^(?:[^\s:]+: +)?CPU:(?P<cpu>\d+) \[(?:(?P<count>\d+) )?EVENTS DROPPED\]$")
_FRAME = re.compile(r"^=> (?P<name>.*) \((?P<address>[0-9a-f]+)\)$")


class Line(NamedTuple):
    """One event as trace-cmd printed it."""

    instance: str
    comm: str | None  # None: "<...>", trace-cmd knows none
    tid: int
    cpu: int
    flags: str  # irqs off, need resched, hard or soft interrupt, preempt depth, migrate-disable depth
    time_ns: int
    event: str  # without its group
    text: str
    frames: list[tuple[str, int]]  # name and address of what a stack's lines show


class Report(NamedTuple):
    """All of one report."""

    lines: list[Line]
    dropped: list[tuple[int, int | None, int]]  # CPU, how many, and how many lines of that CPU came before


def read_report(folder: Path) -> Report:
    """The oracle text of ``folder``, in its order."""
    path = folder / "oracle.report.txt"
    text = path.read_bytes() if path.exists() else lzma.decompress((folder / "oracle.report.txt.xz").read_bytes())
    return parse_report(text.decode().split("\n"))


def parse_report(texts: Iterator[str] | list[str]) -> Report:
    """What the lines of a report say."""
    report = Report([], [])
    per_cpu: dict[int, int] = {}
    for text in texts:
        frame, found = _FRAME.match(text), _LINE.match(text)
        if frame is not None and report.lines:
            report.lines[-1].frames.append((frame["name"], int(frame["address"], 16)))
        elif found is not None:
            line = _line(found)
            report.lines.append(line)
            per_cpu[line.cpu] = per_cpu.get(line.cpu, 0) + 1
        elif (dropped := _DROPPED.match(text)) is not None:
            cpu = int(dropped["cpu"])
            report.dropped.append((cpu, int(dropped["count"]) if dropped["count"] else None, per_cpu.get(cpu, 0)))
        else:
            assert not text.strip() or text.startswith("cpus="), f"not understood: {text!r}"
    return report


def _line(found: re.Match[str]) -> Line:
    return Line(
        found["instance"] or "",
        None if found["comm"] == "<...>" else found["comm"],
        int(found["tid"]),
        int(found["cpu"]),
        (found["flags"] or "").strip(),
        int(found["sec"]) * 10**9 + int(found["nsec"]),
        found["event"],
        found["text"],
        [],
    )


def reported_captures() -> list[Path]:
    """Folders with a trace.dat file and what trace-cmd printed for it."""
    if not CAPTURES.is_dir():
        return []
    return [path.parent for path in sorted(CAPTURES.glob("*/*/trace.dat")) if any(path.parent.glob("oracle.report*"))]
