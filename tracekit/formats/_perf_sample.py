"""Where the parts of perf samples lie, computed for all samples of a window at once.

Source: include/uapi/linux/perf_event.h (PERF_RECORD_SAMPLE), kernel/events/core.c perf_output_sample(); MODEL.md F.2.
The order of the parts is not that of the bits. All places are in 8-byte words.
"""

from typing import NamedTuple

import numpy as np

from tracekit.formats._perf_attr import Attr
from tracekit.formats._perf_index import Starts, Words

IP, TID, TIME, ADDR, READ, CALLCHAIN, ID, CPU, PERIOD, STREAM_ID, RAW = (1 << bit for bit in range(11))
BRANCH_STACK, REGS_USER, STACK_USER, WEIGHT, DATA_SRC = (1 << bit for bit in range(11, 16))
IDENTIFIER, TRANSACTION, REGS_INTR, PHYS_ADDR, AUX, CGROUP, DATA_PAGE_SIZE, CODE_PAGE_SIZE, WEIGHT_STRUCT = (
    1 << bit for bit in range(16, 25)
)
BRANCH_HW_INDEX, BRANCH_COUNTERS = 1 << 17, 1 << 19  # of branch_sample_type

READ_ENABLED, READ_RUNNING, READ_ID, READ_GROUP, READ_LOST = (1 << bit for bit in range(5))

_FIXED = ("identifier", "ip", "tid", "time", "addr", "id", "stream_id", "cpu", "period")
_FIXED_BITS = (IDENTIFIER, IP, TID, TIME, ADDR, ID, STREAM_ID, CPU, PERIOD)
_TRAILER = ("tid", "time", "id", "stream_id", "cpu", "identifier")
_TRAILER_BITS = (TID, TIME, ID, STREAM_ID, CPU, IDENTIFIER)


class SampleLayout(NamedTuple):
    """Where things are in the samples, and at the end of the other records, of one kind of attribute."""

    sample_type: int
    read_format: int
    words: dict[str, int]  # part → words from the record's start
    fixed_words: int  # header and the parts in ``words``
    trailer: dict[str, int]  # part → words back from the record's end
    trailer_words: int
    branch_type: int = 0
    user_registers: int = 0  # mask
    kernel_registers: int = 0
    per_thread: bool = False  # counters are inherited: each thread has its own


class Variable(NamedTuple):
    """The parts of samples whose place differs from sample to sample; int64[n_samples] each, in words."""

    chain: Starts | None  # of the first address
    chain_count: Starts | None
    raw: Starts | None  # of the word that starts with the u32 size
    raw_bytes: Starts | None
    whole: np.ndarray[tuple[int], np.dtype[np.bool_]]  # False: a part would end beyond its record
    placed: np.ndarray[tuple[int], np.dtype[np.bool_]]  # whether what stands before the raw data is whole
    after: Starts  # what follows the raw data


def layout_of(attr: Attr) -> SampleLayout:
    """The layout of the samples and records of ``attr``."""
    words = {}
    place = 1
    for part, bit in zip(_FIXED, _FIXED_BITS, strict=True):
        if attr.sample_type & bit:
            words[part] = place
            place += 1
    trailer = {}
    back = 0
    if attr.sample_id_all:
        for part, bit in zip(reversed(_TRAILER), reversed(_TRAILER_BITS), strict=True):
            if attr.sample_type & bit:
                back += 1
                trailer[part] = back
    return SampleLayout(
        attr.sample_type, attr.read_format, words, place, trailer, back,
        attr.branch_type, attr.user_registers, attr.kernel_registers,
        bool(attr.inherit and attr.sample_type & READ and attr.sample_type & TID),
    )  # fmt: skip


def word_of(words: Words, starts: Starts, place: int) -> Words:
    """Word ``place`` of each record.

    ``take`` on a shifted view costs 3 ns a record; ``words[starts + place]`` costs 12.
    """
    return words[place:].take(starts, mode="clip")


def locate(words: Words, starts: Starts, ends: Starts, layout: SampleLayout) -> Variable:
    """Find call chain and raw data of the samples at ``starts``, which all have ``layout``.

    Source: kernel/events/core.c perf_output_read() for what stands before them.
    """
    place = starts + layout.fixed_words
    whole = place <= ends
    chain = chain_count = raw = raw_bytes = None
    if layout.sample_type & READ:
        place, whole = _after_read(words, place, ends, whole, layout.read_format)
    if layout.sample_type & CALLCHAIN:
        chain_count, whole = count_at(words, place, ends, whole, 1)
        chain = place + 1
        place = chain + chain_count
    placed, after = whole, place
    if layout.sample_type & RAW:
        placed = whole = whole & (place < ends)
        raw = np.where(whole, place, starts)
        raw_bytes = (words[raw] & np.uint64(0xFFFFFFFF)).astype(np.int64)
        whole = whole & (raw * 8 + 4 + raw_bytes <= ends * 8)
        raw_bytes = np.where(whole, raw_bytes, 0)
        after = raw + (raw_bytes + 11) // 8
    return Variable(chain, chain_count, raw, raw_bytes, whole, placed, after)


def count_at(
    words: Words, place: Starts, ends: Starts, whole: np.ndarray, entry_words: int
) -> tuple[Starts, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """The number at ``place`` of entries that follow it; 0 where they would end beyond the record."""
    whole = whole & (place < ends)
    count = words[np.where(whole, place, 0)]
    whole = whole & (count <= np.uint64(1 << 16))
    number = np.where(whole, count, np.uint64(0)).astype(np.int64)
    whole = whole & (place + 1 + number * entry_words <= ends)
    return np.where(whole, number, 0), whole


def _after_read(
    words: Words, place: Starts, ends: Starts, whole: np.ndarray, read_format: int
) -> tuple[Starts, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    times, entry = read_words(read_format)
    if not read_format & READ_GROUP:
        return place + times + entry, whole & (place + times + entry <= ends)
    count, whole = count_at(words, place, ends, whole, entry)
    place = place + 1 + times + count * entry
    return place, whole & (place <= ends)


def read_words(read_format: int) -> tuple[int, int]:
    """Words of the times of a reading, and of each counter in it."""
    times = bool(read_format & READ_ENABLED) + bool(read_format & READ_RUNNING)
    return times, 1 + bool(read_format & READ_ID) + bool(read_format & READ_LOST)
