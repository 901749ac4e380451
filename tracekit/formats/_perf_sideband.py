"""Records of perf.data that are no samples: names, forks, exits, mappings, losses → tables.

Source: include/uapi/linux/perf_event.h enum perf_event_type.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats import Sink
from tracekit.formats._comm import CommHistory
from tracekit.formats._perf_index import Starts, Words

MMAP, LOST, COMM, EXIT, FORK, MMAP2, LOST_SAMPLES = 1, 2, 3, 4, 7, 10, 13
TASK_KINDS = ["comm", "exec", "fork", "exit"]
MMAP_KINDS = ["exec", "data"]

_MISC_COMM_EXEC = 1 << 13
_MISC_MMAP_DATA = 1 << 13
_MISC_MMAP_BUILD_ID = 1 << 14
_MISC_LOST_BPF = 1 << 15  # dropped by a BPF filter as asked for, not lost

_MAX_CPUS = 1 << 16
_TALLIED = {
    5: "throttle", 6: "unthrottle", 8: "read", 11: "aux", 12: "itrace_start", 14: "switch", 15: "switch_cpu_wide",
    16: "namespaces", 17: "ksymbol", 18: "bpf_event", 19: "cgroup", 20: "text_poke", 21: "aux_output_hw_id",
    22: "callchain_deferred", 71: "auxtrace",
}  # fmt: skip
_BODY_WORDS = {MMAP: 5, LOST: 3, COMM: 3, EXIT: 4, FORK: 4, MMAP2: 9, LOST_SAMPLES: 2}


class Records(NamedTuple):
    """Records of one window that are no samples, by (time, seq); all arrays int64[n]."""

    words: Words
    starts: Starts  # words
    ends: Starts  # words, without the trailer
    kind: np.ndarray
    misc: np.ndarray
    time_ns: np.ndarray
    cpu: np.ndarray
    event: np.ndarray  # number of the event that the trailer names; −1: none
    seq: np.ndarray
    whole_ends: np.ndarray  # words, with the trailer

    def of(self, *kinds: int) -> "Records":
        """Those of some kinds."""
        return self.pick(np.isin(self.kind, kinds))

    def pick(self, which: np.ndarray) -> "Records":
        """Some of them, by mask or by index."""
        return Records(self.words, *(column[which] for column in self[1:]))

    def pair(self, word: int) -> tuple[np.ndarray, np.ndarray]:
        """The two int32 in a word of each record."""
        value = self.words[self.starts + word]
        return value.astype(np.uint32).view(np.int32), (value >> np.uint64(32)).astype(np.uint32).view(np.int32)

    def text(self, word: int) -> pa.Array:
        """The string that starts at a word of each record."""
        begin, end = 8 * (self.starts + word), 8 * self.ends
        flat, offsets = _columns.pick(self.words.view(np.uint8), begin, end)
        return _columns.strings(flat, offsets[:-1], offsets[1:])


class Tally:
    """How many records of each kind there were that have no table of their own."""

    def __init__(self) -> None:
        self.auxtrace_bytes = 0
        self._counts = np.zeros(256, np.int64)

    def take(self, kind: np.ndarray) -> None:
        """Count these."""
        self._counts += np.bincount(np.minimum(kind, 255), minlength=256)

    def summary(self) -> dict[str, int]:
        """For the manifest: those that there were."""
        counts = {name: int(self._counts[kind]) for kind, name in _TALLIED.items()}
        return {name: count for name, count in (counts | {"auxtrace_bytes": self.auxtrace_bytes}).items() if count}


class Losses:
    """How many events were lost, as far as the records say, and since when."""

    def __init__(self) -> None:
        self._latest = np.full(1, -1, np.int64)  # time of the last record of each CPU
        self._since: dict[int, int] = {}  # by the LOST record's seq
        self.records = 0
        self.in_buffer = 0  # LOST: counted by the buffer, as seen when the next record found room
        self.of_events = 0  # LOST_SAMPLES: counted by the events and read at the end, the same events again

    def follow(self, cpu: np.ndarray, time_ns: np.ndarray, seq: np.ndarray, records: "Records") -> None:
        """Note which record of its CPU came last before each loss; samples are given as arrays, in file order."""
        own = (records.time_ns > 0) & (records.cpu >= 0) & (records.cpu < _MAX_CPUS) & (records.kind < 64)
        if len(cpu) and not 0 <= int(cpu.min()) <= int(cpu.max()) < _MAX_CPUS:
            inside = (cpu >= 0) & (cpu < _MAX_CPUS)
            cpu, time_ns, seq = cpu[inside], time_ns[inside], seq[inside]
        lost, other = records.pick(own & (records.kind == LOST)), records.pick(own & (records.kind != LOST))
        highest = max(int(cpu.max(initial=0)), int(other.cpu.max(initial=0)))
        if highest >= len(self._latest):
            grown = np.full(highest + 64, -1, np.int64)
            grown[: len(self._latest)] = self._latest
            self._latest = grown
        if len(lost.seq):
            both = (np.concatenate(pair) for pair in ((cpu, other.cpu), (time_ns, other.time_ns), (seq, other.seq)))
            self._place(lost, *both)
        # a CPU's samples come in order of time, and the last of equal places wins: ``maximum.at`` takes 40 ns for each
        latest = np.full(len(self._latest), -1, np.int64)
        latest[cpu] = time_ns
        np.maximum(self._latest, latest, out=self._latest)
        np.maximum.at(self._latest, other.cpu, other.time_ns)

    def _place(self, lost: "Records", cpu: np.ndarray, time_ns: np.ndarray, seq: np.ndarray) -> None:
        for one in np.unique(lost.cpu).tolist():
            mine = np.flatnonzero(cpu == one)
            mine = mine[np.argsort(seq[mine], kind="stable")]
            for number in lost.seq[lost.cpu == one].tolist():
                before = int(np.searchsorted(seq[mine], number))
                known = int(self._latest[one]) if one < len(self._latest) else -1
                self._since.setdefault(number, int(time_ns[mine[before - 1]]) if before else known)

    def since(self, seq: np.ndarray) -> np.ndarray:
        """When each LOST record's CPU was last heard of before; −1: never."""
        return np.array([self._since.pop(number, -1) for number in seq.tolist()], np.int64)

    def summary(self) -> dict[str, object]:
        """For the manifest."""
        return {"events": max(self.in_buffer, self.of_events), "records": self.records}


def whole(records: Records, count: Callable[[str, int], None]) -> Records:
    """Those that are long enough for what their kind holds."""
    needed = np.zeros(256, np.int64)
    for kind, words in _BODY_WORDS.items():
        needed[kind] = words
    fits = records.starts + needed[np.minimum(records.kind, 255)] <= records.ends
    if not fits.all():
        count("record_too_short", int(np.count_nonzero(~fits)))
        return records.pick(fits)
    return records


def write_tasks(records: Records, comms: CommHistory, sink: Sink) -> None:
    """COMM, FORK and EXIT → ``tasks``; tells ``comms`` of them."""
    records = records.of(COMM, FORK, EXIT)
    if len(records.starts) == 0:
        return
    is_comm = records.kind == COMM
    first, second = records.pair(1)
    third, fourth = records.pair(2)
    pid, tid = first, np.where(is_comm, second, third)
    parent_pid, parent_tid = second, fourth
    names = iter(records.pick(is_comm).text(2).to_pylist())
    codes = []
    columns = (records.kind, records.time_ns, tid, parent_tid)
    for kind, time_ns, task, parent in zip(*(column.tolist() for column in columns), strict=True):
        if kind == COMM:
            codes.append(comms.comm(time_ns, task, next(names)))
        elif kind == FORK:
            codes.append(comms.fork(time_ns, task, parent))
        else:
            codes.append(comms.exit(time_ns, task))
    executed = is_comm & (records.misc & _MISC_COMM_EXEC != 0)
    what = np.select([executed, is_comm, records.kind == FORK], [1, 0, 2], 3)
    _append(sink, "tasks", records, [
        ("pid", _columns.numbers(pid, pid >= 0)),
        ("tid", _columns.numbers(tid, tid >= 0)),
        ("kind", _columns.labels(what, TASK_KINDS)),
        ("comm", _columns.labels(np.array(codes, np.int32), comms.names)),
        ("ppid", _columns.numbers(parent_pid, ~is_comm & (parent_pid >= 0))),
        ("ptid", _columns.numbers(parent_tid, ~is_comm & (parent_tid >= 0))),
    ])  # fmt: skip


def write_maps(records: Records, sink: Sink) -> None:
    """MMAP and MMAP2 → ``maps``."""
    for kind in (MMAP, MMAP2):
        mine = records.of(kind)
        if len(mine.starts) == 0:
            continue
        pid, tid = mine.pair(1)
        addr, length, pgoff = (mine.words[mine.starts + word] for word in (2, 3, 4))
        # MMAP is too short for these; its own words stand in, and are marked as null
        last = (5, 6, 8) if kind == MMAP2 else (1, 1, 1)
        (major, minor), (prot, flags) = mine.pair(last[0]), mine.pair(last[2])
        full = np.full(len(pid), kind == MMAP2)
        device = full & (mine.misc & _MISC_MMAP_BUILD_ID == 0)
        data = (mine.misc & _MISC_MMAP_DATA != 0).astype(np.int32)
        _append(sink, "maps", mine, [
            ("pid", _columns.numbers(pid, pid >= 0)),
            ("tid", _columns.numbers(tid, tid >= 0)),
            ("addr", _columns.numbers(addr)),
            ("len", _columns.numbers(length)),
            ("pgoff", _columns.numbers(pgoff)),
            ("prot", _columns.numbers(prot.view(np.uint32), full)),
            ("flags", _columns.numbers(flags.view(np.uint32), full)),
            ("maj", _columns.numbers(major.view(np.uint32), device)),
            ("min", _columns.numbers(minor.view(np.uint32), device)),
            ("ino", _columns.numbers(mine.words[mine.starts + last[1]], device)),
            ("filename", _dictionary(mine.text(9 if kind == MMAP2 else 5))),
            ("kind", _columns.labels(data, MMAP_KINDS)),
        ])  # fmt: skip


def write_losses(
    records: Records, losses: Losses, events: list[str], event_of_id: Callable[[np.ndarray], np.ndarray], sink: Sink
) -> None:
    """LOST and LOST_SAMPLES → ``lost``.

    ``time_ns`` is when the loss was noticed, ``from_ns`` the time of the last record of that CPU that was kept before
    it: what was lost lies in between. Null: nothing was kept before, or, for LOST_SAMPLES, which perf reads at the
    end, nobody knows when in the whole trace it was.
    """
    for kind in (LOST, LOST_SAMPLES):
        mine = records.of(kind)
        if kind == LOST_SAMPLES:
            mine = mine.pick(mine.misc & _MISC_LOST_BPF == 0)
        if len(mine.starts) == 0:
            continue
        lost = mine.words[mine.starts + (2 if kind == LOST else 1)]
        event = event_of_id(mine.words[mine.starts + 1]) if kind == LOST else mine.event
        total = min(int(lost.astype(np.float64).sum()), (1 << 63) - 1)
        losses.records += len(lost)
        if kind == LOST:
            losses.in_buffer += total
        else:
            losses.of_events += total
        since = losses.since(mine.seq) if kind == LOST else np.full(len(lost), -1, np.int64)
        _append(sink, "lost", mine, [
            ("from_ns", _columns.numbers(since, since >= 0)),
            ("count", _columns.numbers(lost)),
            ("event", _columns.labels(event.astype(np.int32), events)),
            ("kind", _columns.labels(np.full(len(lost), int(kind != LOST)), ["lost", "lost_samples"])),
        ])  # fmt: skip


def _append(sink: Sink, table: str, records: Records, columns: list[tuple[str, pa.Array]]) -> None:
    cpu = records.cpu.astype(np.int32)
    named = [
        ("time_ns", _columns.numbers(records.time_ns)),
        ("cpu", _columns.numbers(cpu, cpu >= 0)),
        *columns,
        ("seq", _columns.numbers(records.seq.astype(np.uint64))),
    ]
    sink.append(table, pa.RecordBatch.from_arrays([array for _, array in named], [name for name, _ in named]))


def _dictionary(texts: pa.Array) -> pa.Array:
    places: dict[str, int] = {}  # dictionary_encode() imports pyarrow.compute: 0.03 s
    codes = [places.setdefault(text, len(places)) for text in texts.to_pylist()]
    return _columns.labels(np.array(codes, np.int32), list(places))
