"""Names of tasks over time. perf samples carry none: they follow from COMM, FORK and EXIT records.

Source: tools/perf/util/machine.c machine__process_fork_event(), machine__process_exit_event(); thread.c
thread__fork(): a child starts with its parent's name, an exited task has none, task 0 is "swapper".
"""

from typing import NamedTuple

import numpy as np

from tracekit import _columns

PID_MAX = 1 << 22  # PID_MAX_LIMIT on 64 bit, include/linux/threads.h

Codes = np.ndarray[tuple[int], np.dtype[np.int32]]


class CommWindow(NamedTuple):
    """Names that hold in one window: those at its start, and the changes inside of it."""

    base: Codes  # by tid; −1: unknown
    change_times: np.ndarray  # int64, sorted
    change_keys: np.ndarray  # tid << 32 | number of changes (of any task) up to and with this one; sorted
    change_codes: Codes  # parallel to change_keys
    changed: np.ndarray  # tids, sorted
    names: list[str]

    def codes(self, tid: np.ndarray, time_ns: np.ndarray) -> Codes:
        """Name of each task at each time."""
        if tid.min(initial=0) >= 0 and tid.max(initial=0) < len(self.base):
            codes = self.base.take(tid)
        else:
            known = (tid >= 0) & (tid < len(self.base))
            codes = np.where(known, self.base.take(tid, mode="clip"), np.int32(-1))
        if len(self.changed) == 0:
            return codes
        slow = np.flatnonzero(self._is_changed(tid))
        if len(slow):
            self._resolve(codes, slow, tid[slow].astype(np.int64), time_ns[slow])
        return codes

    def _is_changed(self, tid: np.ndarray) -> np.ndarray:
        # a table, at 1 ns a row; a search among them costs 7. What it takes for another is told apart later
        table = np.zeros(int(self.changed[-1]) + 2, bool)
        table[self.changed] = True
        return table.take(tid, mode="clip")

    def _resolve(self, codes: Codes, slow: np.ndarray, tid: np.ndarray, time_ns: np.ndarray) -> None:
        changes_before = np.searchsorted(self.change_times, time_ns, "right")
        place = np.searchsorted(self.change_keys, tid << 32 | changes_before, "right") - 1
        hit = place >= 0
        hit[hit] = self.change_keys[place[hit]] >> 32 == tid[hit]
        codes[slow[hit]] = self.change_codes[place[hit]]


class CommHistory:
    """Takes changes in order of time, window by window."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._code_of: dict[str, int] = {}
        self._base: Codes = np.full(1 << 16, -1, np.int32)
        self._changes: list[tuple[int, int, int]] = []  # time, tid, code
        self._current: dict[int, int] = {}  # changes of this window
        self.comm(0, 0, "swapper")
        self.window()

    def code(self, tid: int) -> int:
        """Name of ``tid`` now; −1: unknown."""
        code = self._current.get(tid)
        if code is not None:
            return code
        return int(self._base[tid]) if 0 <= tid < len(self._base) else -1

    def comm(self, time_ns: int, tid: int, name: str) -> int:
        """``tid`` is called ``name`` from now on."""
        code = self._code_of.setdefault(name, len(self._code_of))
        if code == len(self.names):
            self.names.append(name)
        self._set(time_ns, tid, code)
        return code

    def fork(self, time_ns: int, tid: int, parent_tid: int) -> int:
        """``tid`` starts as a copy of ``parent_tid``."""
        code = self.code(parent_tid)
        self._set(time_ns, tid, code)
        return code

    def exit(self, time_ns: int, tid: int) -> int:
        """``tid`` is no more; returns what it was called."""
        code = self.code(tid)
        self._set(time_ns, tid, -1)
        return code

    def _set(self, time_ns: int, tid: int, code: int) -> None:
        if 0 <= tid < PID_MAX:
            self._changes.append((time_ns, tid, code))
            self._current[tid] = code

    def window(self) -> CommWindow:
        """The names for the window whose changes were given since the last call."""
        base = self._base
        changes = np.array(self._changes, np.int64).reshape(-1, 3)
        times, tids, codes = changes[:, 0], changes[:, 1], changes[:, 2].astype(np.int32)
        keys = tids << 32 | np.arange(1, len(changes) + 1)
        order = np.argsort(keys)
        latest, changed = np.maximum.accumulate(times), _columns.distinct(tids)
        result = CommWindow(base, latest, keys[order], codes[order], changed, self.names)
        if self._current:
            highest = max(self._current)
            room = len(base) if highest < len(base) else 1 << highest.bit_length()
            following = np.full(room, -1, np.int32)
            following[: len(base)] = base
            following[list(self._current)] = list(self._current.values())
            self._base = following
        self._changes = []
        self._current = {}
        return result
