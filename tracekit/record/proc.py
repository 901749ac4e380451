"""The snapshot: which address spaces and VMAs there are when a recording begins, from /proc.

A trace shows changes; this is what they change. tracekit/snapshot.py says which columns it has; its times are those of
CLOCK_MONOTONIC, as the recording's. Processes that end while they are looked at are left out.
"""

import ctypes
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tracekit.record.pageflags import PageFlags
from tracekit.snapshot import SCHEMA, TASKS, VMAS

PROC = Path("/proc")
MOST_PAGES = 1 << 22  # of a VMA: 16 GiB of 4-KiB pages take 32 MiB of pagemap; what is larger is not counted
_PRESENT, _SWAPPED, _FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))  # Documentation/admin-guide/mm/pagemap.rst
_PFN = np.uint64((1 << 55) - 1)
_SWAPBACKED, _LARGE, _KSM = np.uint64(1 << 14), np.uint64(3 << 15), np.uint64(1 << 21)
_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)")
_KCMP = {"x86_64": 312, "aarch64": 272}
_KCMP_VM = 1
_Columns = dict[str, list[Any]]


class _Counts(NamedTuple):
    """Pages of a VMA; None: not to be seen without root, or too many to count."""

    anon: int | None = None
    file: int | None = None
    swap: int | None = None
    large: int | None = None
    lazyfree: int | None = None
    ksm: int | None = None


def take() -> dict[str, Any]:
    """The snapshot as a JSON document."""
    begin_ns, of_frames = time.monotonic_ns(), PageFlags()
    tasks: _Columns = {name: [] for name in TASKS}
    vmas: _Columns = {name: [] for name in VMAS}
    for pid in sorted(int(path.name) for path in PROC.iterdir() if path.name.isdigit()):
        try:
            _add(PROC / str(pid), tasks, vmas, of_frames)
        except (OSError, ValueError):  # it ended meanwhile, or is not ours to look at
            continue
    of_frames.close()
    return {
        "schema": SCHEMA,
        "clock": "monotonic",
        "begin_ns": begin_ns,
        "end_ns": time.monotonic_ns(),
        "release": os.uname().release,
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "tasks": tasks,
        "vmas": vmas,
    }


def _add(folder: Path, tasks: _Columns, vmas: _Columns, of_frames: PageFlags) -> None:
    pid = int(folder.name)
    # pid (comm) state ppid …; a comm may hold anything, parentheses included
    head, _, rest = (folder / "stat").read_text(errors="replace").rpartition(")")
    ppid, comm = int(rest.split()[1]), head.partition("(")[2]
    threads = sorted(int(path.name) for path in (folder / "task").iterdir())
    now = time.monotonic_ns()
    rows = list(_maps(folder, now, of_frames))
    shares = ppid if rows and ppid and _same_mm(pid, ppid) else None  # kernel threads share that they have none
    for tid in threads:
        row = {"time_ns": now, "pid": pid, "tid": tid, "ppid": ppid, "comm": comm, "mm_of": shares}
        for name, column in tasks.items():
            column.append(row[name])
    for row in rows:
        for name, column in vmas.items():
            column.append(row[name])


def _maps(folder: Path, now: int, of_frames: PageFlags) -> Iterator[dict[str, Any]]:
    lines = (folder / "maps").read_text(errors="replace").splitlines()
    page_size = os.sysconf("SC_PAGE_SIZE")
    try:
        pagemap: int | None = os.open(folder / "pagemap", os.O_RDONLY)
    except OSError:
        pagemap = None
    try:
        for line in lines:
            found = _MAP.match(line)
            if found is None:
                continue
            start, end, pgoff, major, minor = (int(found[i], 16) for i in (1, 2, 4, 5, 6))
            counts = _Counts() if pagemap is None else _count(pagemap, start // page_size, end // page_size, of_frames)
            yield {
                "time_ns": now,
                "pid": int(folder.name),
                "start": start,
                "end": end,
                "perms": found[3],
                "offset": pgoff,
                "dev": major << 20 | minor,
                "inode": int(found[7]),
                "path": found[8],
                **counts._asdict(),
            }
    finally:
        if pagemap is not None:
            os.close(pagemap)


def _count(pagemap: int, first: int, end: int, of_frames: PageFlags) -> _Counts:
    if end - first > MOST_PAGES:
        return _Counts()
    try:
        raw = os.pread(pagemap, 8 * (end - first), 8 * first)
    except (OSError, OverflowError):  # the vsyscall page lies above what pagemap has
        return _Counts()
    entries = np.frombuffer(raw[: len(raw) // 8 * 8], np.uint64)
    present, file = (entries & _PRESENT) != 0, (entries & _FILE) != 0
    anon, frames = present & ~file, entries & _PFN
    kinds: tuple[int | None, ...] = (None, None, None)
    if not present.any():
        kinds = (0, 0, 0)
    elif (
        frames[present].all() and (flags := of_frames.of(frames[present])) is not None
    ):  # without root all frames read 0
        of_anon = anon[present]
        kinds = (
            int(((flags & _LARGE) != 0).sum()),
            int((of_anon & ((flags & _SWAPBACKED) == 0)).sum()),
            int(((flags & _KSM) != 0).sum()),
        )
    swap = int(((entries & _SWAPPED) != 0).sum())
    return _Counts(int(anon.sum()), int((present & file).sum()), swap, *kinds)


def _same_mm(pid: int, other: int) -> bool:
    """Whether two processes share one mm (clone with CLONE_VM, vfork): kcmp(KCMP_VM); False where it cannot tell."""
    number = _KCMP.get(os.uname().machine)
    libc = ctypes.CDLL(None)
    return number is not None and libc.syscall(number, pid, other, _KCMP_VM, 0, 0) == 0
