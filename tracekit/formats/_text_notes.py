"""What stands between the events of a text trace: comments, losses, and lines that nobody understands."""

import re

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats import Sink
from tracekit.formats._text_bytes import Places, Text
from tracekit.formats._text_lines import Heads

SHOWN_OFFSETS = 8
MAX_WAITING = 1 << 16
"""Losses in a row without an event behind them."""
_LOST = re.compile(rb"CPU:\s?(\d{1,8}) \[(?:LOST )?(?:(\d{1,18}) )?EVENTS(?: DROPPED)?\]\s*$")
_STARTED = re.compile(rb"#{2,} CPU (\d{1,8}) buffer started #{2,}\s*$")
_ENTRIES = re.compile(rb"# entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18})\b(?:\s+#P:(\d{1,8})\b)?")
_LATENCY = re.compile(rb"# .*latency trace v\S+ on (\S+)")
_PROCESSORS = re.compile(rb"#.*#P:(\d{1,8})\b")
_TRACER = re.compile(rb"# tracer: (\S+)")
_CPUS = re.compile(rb"cpus=(\d{1,8})\s*$")
_VERSION = re.compile(rb"\s*version = (\S+)\s*$")
_RELEASE = re.compile(rb"# os ?release : (\S+)")
_QUIET = re.compile(rb"\s*$|.*\[main\]|trace-cmd: |file: |---")


class Notes:
    """Collects them; writes ``lost``."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.machine: dict[str, object] = {
            "release": None,
            "arch": None,
            "page_size": None,
            "cpus": None,
            "nodes": None,
        }
        self.features: dict[str, object] = {}
        self.anomalies: dict[str, int] = {}
        self._events = self._records = 0
        self._uncounted = False
        self._overwritten: int | None = None
        self._waiting: list[tuple[int, int | None, int]] = []  # cpu, count, offset: losses before the next event

    def unparsed(self, offset: int, kind: str) -> None:
        """Count a line that is understood in no way, or not entirely."""
        self.anomalies[kind] = self.anomalies.get(kind, 0) + 1
        offsets = self.features.setdefault(f"{kind}_offsets", [])
        assert isinstance(offsets, list)
        if len(offsets) < SHOWN_OFFSETS:
            offsets.append(offset)

    def take(  # noqa: PLR0913, PLR0917 - the lines of a chunk
        self, text: Text, starts: Places, ends: Places, comments: Places, others: Places, heads: Heads
    ) -> None:
        """Read the comments and the lines that are no event."""
        for line in comments.tolist():
            self._comment(text.raw[starts[line] : min(ends[line], starts[line] + 512)], text.origin + int(starts[line]))
        rows: list[tuple[int, int, int | None, int, str]] = []
        if self._overwritten is not None and len(heads.line):
            rows.append((int(heads.time_ns.min()), -1, self._overwritten, 0, "overwritten"))
            self._overwritten = None
        if self._waiting and len(heads.line):
            rows += [(int(heads.time_ns[0]), cpu, count, offset, "lost") for cpu, count, offset in self._waiting]
            self._waiting = []
        for line in others.tolist():
            self._other(text.raw[starts[line] : min(ends[line], starts[line] + 512)], line, text, starts, heads, rows)
        self._write(rows)
        if len(self._waiting) > MAX_WAITING:
            self.close()

    def close(self) -> None:
        """Losses that no event follows have no time; they stand at the end of what was seen."""
        self._write([(-1, cpu, count, offset, "lost") for cpu, count, offset in self._waiting])
        self._waiting = []

    def _comment(self, line: bytes, offset: int) -> None:
        if found := _ENTRIES.match(line):
            kept, written = int(found[1]), int(found[2])
            if found[3]:
                self.machine["cpus"] = int(found[3])
            if written > kept:
                self._overwritten = written - kept
                self.features["buffer"] = {"entries_in_buffer": kept, "entries_written": written}
        elif found := _LATENCY.match(line) or _RELEASE.match(line):
            self.machine["release"] = found[1].decode("utf-8", "replace")
        elif found := _TRACER.match(line):
            self.features["tracer"] = found[1].decode("utf-8", "replace")
        elif found := _STARTED.match(line):
            started = self.features.setdefault("cpu_buffers_started", [])
            assert isinstance(started, list)
            if len(started) < 4096:
                started.append({"cpu": int(found[1]), "offset": offset})
        if found := _PROCESSORS.match(line):
            self.machine["cpus"] = int(found[1])

    def _other(  # noqa: PLR0913, PLR0917
        self,
        line: bytes,
        number: int,
        text: Text,
        starts: Places,
        heads: Heads,
        rows: list[tuple[int, int, int | None, int, str]],
    ) -> None:
        offset = text.origin + int(starts[number])
        if found := _LOST.match(line):
            # printed before the first event that the CPU's buffer holds after the loss
            following = int(np.searchsorted(heads.line, number))
            count = int(found[2]) if found[2] else None
            cpu = int(found[1])
            if following < len(heads.line):
                rows.append((int(heads.time_ns[following]), cpu, count, offset, "lost"))
            else:
                self._waiting.append((cpu, count, offset))
        elif found := _CPUS.match(line):
            self.machine["cpus"] = int(found[1])
        elif found := _VERSION.match(line):
            self.features["trace_dat_version"] = found[1].decode("utf-8", "replace")
        elif not _QUIET.match(line):
            self.unparsed(offset, "unparsed_line")

    def _write(self, rows: list[tuple[int, int, int | None, int, str]]) -> None:
        if not rows:
            return
        rows.sort(key=lambda row: row[:2] + row[3:4])
        kinds = ["lost", "overwritten"]
        time, cpu = np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.int32)
        known = np.array([row[2] is not None for row in rows], bool)
        counts = np.array([row[2] or 0 for row in rows], np.uint64)
        self._records += len(rows)
        self._events += sum(counts.tolist())
        self._uncounted |= not known.all()
        arrays = {
            "time_ns": _columns.numbers(time, time >= 0),
            "cpu": _columns.numbers(cpu, cpu >= 0),
            "count": _columns.numbers(counts, known),
            "kind": _columns.labels(np.array([kinds.index(row[4]) for row in rows], np.int32), kinds),
            "seq": _columns.numbers(np.array([row[3] for row in rows], np.uint64)),
        }
        self.sink.append("lost", pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays)))

    def lost(self) -> dict[str, object]:
        """For the manifest: how many events were lost, None if some losses do not say how many."""
        return {"events": None if self._uncounted else self._events, "records": self._records}
