"""What perf samples say after their raw data, computed for all samples of a window at once.

Source: include/uapi/linux/perf_event.h (PERF_RECORD_SAMPLE), kernel/events/core.c perf_output_sample().
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats._perf_index import Starts, Words
from tracekit.formats._perf_sample import (
    BRANCH_COUNTERS,
    BRANCH_HW_INDEX,
    BRANCH_STACK,
    CGROUP,
    CODE_PAGE_SIZE,
    DATA_PAGE_SIZE,
    DATA_SRC,
    PHYS_ADDR,
    REGS_INTR,
    REGS_USER,
    STACK_USER,
    TRANSACTION,
    WEIGHT,
    WEIGHT_STRUCT,
    SampleLayout,
    Variable,
    count_at,
    locate,
)

_SINGLES = (
    ("data_src", DATA_SRC), ("transaction", TRANSACTION), ("intr_regs", REGS_INTR), ("phys_addr", PHYS_ADDR),
    ("cgroup", CGROUP), ("data_page_size", DATA_PAGE_SIZE), ("code_page_size", CODE_PAGE_SIZE),
)  # fmt: skip
REST = BRANCH_STACK | REGS_USER | STACK_USER | WEIGHT | WEIGHT_STRUCT
"""The bits of ``sample_type`` that these parts have."""
for _, _bit in _SINGLES:
    REST |= _bit

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


class Kept(NamedTuple):
    """One column."""

    values: Words  # uint64[n_samples]; of a column of lists all that are in them
    whole: Mask  # [n_samples]; False: it is not there, or not whole
    offsets: Starts | None = None  # int64[n_samples + 1] in ``values``, of a column of lists

    def pick(self, rows: slice | np.ndarray) -> "Kept":
        """Some of it; not of lists."""
        return Kept(self.values[rows], self.whole[rows])

    @property
    def array(self) -> pa.Array:
        """uint64 or list<uint64>; null where it is not whole."""
        if self.offsets is None:
            return _columns.numbers(self.values, self.whole)
        return _columns.lists(self.values, self.offsets, self.whole)


def rest(words: Words, ends: Starts, layout: SampleLayout, found: Variable) -> dict[str, Kept]:
    """Columns of the parts after the raw data.

    Of the copy of the user's stack only how many bytes were in use is kept. Registers are in the order of their bits
    in the mask; what branches say beyond from and to stays as the kernel packs it (struct perf_branch_entry).
    """
    if not layout.sample_type & REST:
        return {}
    parts = _Parts(words, ends, found)
    if layout.sample_type & BRANCH_STACK:
        parts.branches(layout.branch_type)
    if layout.sample_type & REGS_USER:
        parts.registers("user_regs", layout.user_registers)
    if layout.sample_type & STACK_USER:
        parts.user_stack()
    if layout.sample_type & (WEIGHT | WEIGHT_STRUCT):
        parts.weight(struct=bool(layout.sample_type & WEIGHT_STRUCT))
    for name, bit in _SINGLES:
        if not layout.sample_type & bit:
            continue
        if bit == REGS_INTR:
            parts.registers(name, layout.kernel_registers)
        else:
            parts.kept[name] = parts.next()
    return parts.kept


def rest_types(layout: SampleLayout) -> list[tuple[str, pa.DataType]]:
    """The columns that ``rest`` finds in samples of that layout."""
    words, none = np.empty(0, np.uint64), np.empty(0, np.int64)
    found = rest(words, none, layout, locate(words, none, none, layout))
    return [(name, kept.array.type) for name, kept in found.items()]


class _Parts:
    """Takes one part after the other."""

    def __init__(self, words: Words, ends: Starts, found: Variable) -> None:
        self.words = words
        self.ends = ends
        self.place = found.after
        self.whole = found.whole & (found.after <= ends)
        self.kept: dict[str, Kept] = {}

    def next(self) -> Kept:
        """The word that follows, 0 where that is beyond the record."""
        self.whole = self.whole & (self.place < self.ends)
        value = np.where(self.whole, self.words[np.where(self.whole, self.place, 0)], np.uint64(0))
        self.place = self.place + 1
        return Kept(value, self.whole)

    def branches(self, branch_type: int) -> None:
        """How many there are, a word more where the hardware says which is the newest, and three words for each."""
        counters = bool(branch_type & BRANCH_COUNTERS)
        count, whole = count_at(self.words, self.place, self.ends, self.whole, 3 + counters)
        first = self.place + 1 + bool(branch_type & BRANCH_HW_INDEX)
        self.whole = whole = whole & (first + count * (3 + counters) <= self.ends)
        count = np.where(whole, count, 0)
        self.place = first + count * (3 + counters)
        self.kept["branch_entries"] = Kept(count.view(np.uint64), whole)
        offsets, sample, within = spread(count)
        at = first[sample] + 3 * within
        for word, name in enumerate(("branch_from", "branch_to", "branch_flags")):
            self.kept[name] = Kept(self.words[at + word], whole, offsets)
        if counters:
            self.kept["branch_counters"] = Kept(self.words[(first + 3 * count)[sample] + within], whole, offsets)

    def registers(self, name: str, mask: int) -> None:
        """An ABI of 0 says that there are none; 1: of 32 bits, 2: of 64."""
        abi = self.next()
        first = self.place
        count = np.where(abi.values == 0, 0, mask.bit_count())
        self.place = first + count
        self.whole = self.whole & (self.place <= self.ends)
        there = self.whole & (count > 0)
        offsets, sample, within = spread(np.where(there, count, 0))
        self.kept[f"{name}_abi"] = Kept(abi.values, self.whole)
        self.kept[name] = Kept(self.words[first[sample] + within], there, offsets)

    def user_stack(self) -> None:
        """Its size, so many bytes, and how many of them were in use."""
        size = self.next()
        copied = (np.minimum(size.values, np.uint64(1 << 17)) >> np.uint64(3)).astype(np.int64)
        whole, self.place = self.whole, self.place + copied
        self.whole = whole & (copied > 0)
        used = self.next()
        self.whole = whole & (used.whole | (copied == 0))
        self.place = self.place - (copied == 0)
        self.kept["user_stack_bytes"] = Kept(used.values, self.whole)

    def weight(self, *, struct: bool) -> None:
        """One number, or three in one word."""
        value, whole, _ = self.next()
        if not struct:
            self.kept["weight"] = Kept(value, whole)
            return
        self.kept["weight"] = Kept(value & np.uint64(0xFFFFFFFF), whole)
        self.kept["weight2"] = Kept(value >> np.uint64(32) & np.uint64(0xFFFF), whole)
        self.kept["weight3"] = Kept(value >> np.uint64(48), whole)


def spread(count: Starts) -> tuple[Starts, Starts, Starts]:
    """Of lists of ``count`` entries: int64[n + 1] where each begins, and of each entry whose it is and which there."""
    offsets = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=offsets[1:])
    owner = np.repeat(np.arange(len(count)), count)
    return offsets, owner, np.arange(offsets[-1]) - offsets[owner]
