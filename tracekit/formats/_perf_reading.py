"""Counters that samples read (PERF_SAMPLE_READ) → a row of each counter's event, as perf delivers them.

The kernel writes what the counters of a group have come to. perf makes of each a sample of that counter's event, whose
period is what it counted since the last reading; of one that counted nothing it makes none.

Source: tools/perf/util/session.c evlist__deliver_sample(), deliver_sample_group(), deliver_sample_value(); evsel.h
perf_evsel__attr_has_per_thread_sample_period(); kernel/events/core.c perf_output_read_one(), perf_output_read_group().
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats._perf_ids import UNKNOWN, EventIds
from tracekit.formats._perf_index import Starts, Words
from tracekit.formats._perf_rest import Kept, spread
from tracekit.formats._perf_sample import (
    READ_ENABLED,
    READ_GROUP,
    READ_ID,
    READ_LOST,
    READ_RUNNING,
    SampleLayout,
    count_at,
    read_words,
    word_of,
)
from tracekit.formats._perf_window import Ordered

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]

_TIMES = ((READ_ENABLED, "time_enabled_ns"), (READ_RUNNING, "time_running_ns"))


class Delivered(NamedTuple):
    """Rows of one event out of the readings of samples, in the order of these."""

    event: int  # whose rows they are
    sample: Starts  # which sample each is of
    columns: dict[str, Kept]


class _Entries(NamedTuple):
    """Counters that were read; one entry for each."""

    sample: Starts
    event: np.ndarray
    number: Words  # id of the counter
    value: Words
    lost: Words


class Readings:
    """What the counters had come to when they were last read; ``note`` is told of anomalies."""

    def __init__(self, note: Callable[..., None]) -> None:
        self._note = note
        self._last: dict[tuple[int, int], int] = {}  # by id and thread (0: of all threads)

    def deliver(self, some: Ordered, own: int, layout: SampleLayout, ids: EventIds) -> list[Delivered]:
        """Rows that samples of event ``own`` make.

        A sample whose reading is not whole, or does not say of which counters it is, is a row of its own event without.
        """
        words, starts = some.words, some.starts
        entries, at_times, whole = _entries(some, layout, ids)
        thread = np.zeros(len(starts), np.uint64)
        if layout.per_thread:
            thread = word_of(words, starts, layout.words["tid"]) >> np.uint64(32)
        period = self._since(entries.number, thread[entries.sample], entries.value)
        known = entries.event != UNKNOWN
        if not known.all():
            self._note("reading_of_unknown_counter", int(np.count_nonzero(~known)))
        kept = np.flatnonzero(known & (period > 0))
        cut = np.flatnonzero(~whole)
        if len(cut):
            known_counters = layout.read_format & READ_ID
            self._note("reading_outside_record" if known_counters else "reading_of_unknown_counter", len(cut))
        sample = np.concatenate((entries.sample[kept], cut))
        event = np.concatenate((entries.event[kept], np.full(len(cut), own)))
        there = np.arange(len(sample)) < len(kept)

        def column(values: Words) -> Words:
            return np.concatenate((values[kept], np.zeros(len(cut), np.uint64)))

        columns = {"period": column(period), "read_value": column(entries.value)}
        if layout.read_format & READ_LOST:
            columns["read_lost"] = column(entries.lost)
        for word, name in enumerate(_times(layout.read_format)):
            columns[name] = np.where(there, words[np.where(whole, at_times, 0) + word][sample], np.uint64(0))
        delivered = []
        for number in _columns.distinct(event).tolist():
            rows = np.flatnonzero(event == number)
            rows = rows[np.argsort(sample[rows], kind="stable")]
            mine = {name: Kept(values[rows], there[rows]) for name, values in columns.items()}
            delivered.append(Delivered(number, sample[rows], mine))
        return delivered

    def _since(self, number: Words, thread: Words, value: Words) -> Words:
        """What each counter counted since it was read before."""
        order = np.lexsort((thread, number))
        by_number, by_thread, ordered = number[order], thread[order], value[order]
        first = np.ones(len(order), bool)
        first[1:] = (by_number[1:] != by_number[:-1]) | (by_thread[1:] != by_thread[:-1])
        before = np.zeros(len(order), np.uint64)
        before[1:] = ordered[:-1]
        heads = np.flatnonzero(first)
        keys = list(zip(by_number[heads].tolist(), by_thread[heads].tolist(), strict=True))
        before[heads] = [self._last.get(key, 0) for key in keys]
        lasts = np.append(heads[1:], len(order))[: len(heads)] - 1
        self._last.update(zip(keys, ordered[lasts].tolist(), strict=True))
        since = np.empty(len(order), np.uint64)
        since[order] = ordered - before
        return since


def _entries(some: Ordered, layout: SampleLayout, ids: EventIds) -> tuple[_Entries, Starts, Mask]:
    """The counters read, where the times of each sample's reading are, and which readings are whole."""
    words, ends, place = some.words, some.ends, some.starts + layout.fixed_words
    times, entry = read_words(layout.read_format)
    if not layout.read_format & READ_ID:
        none = np.empty(0, np.int64)
        nothing = _Entries(none, none, none.view(np.uint64), none.view(np.uint64), none.view(np.uint64))
        return nothing, place, np.zeros(len(place), bool)
    if layout.read_format & READ_GROUP:
        count, whole = count_at(words, place, ends, place < ends, entry)
        at_times = place + 1
        whole = whole & (at_times + times + count * entry <= ends)
        _, sample, within = spread(np.where(whole, count, 0))
        value = (at_times + times)[sample] + entry * within
        after = value + 1
    else:
        whole = place + times + entry <= ends
        at_times = place + 1
        sample = np.flatnonzero(whole)
        value = place[sample]
        after = value + 1 + times
    number = words[after]
    lost = words[after + 1] if layout.read_format & READ_LOST else np.zeros(len(sample), np.uint64)
    return _Entries(sample, ids.event_of(number), number, words[value], lost), at_times, whole


def reading_types(read_format: int) -> list[tuple[str, pa.DataType]]:
    """The columns that readings make."""
    names = ["period", "read_value"]
    names += ["read_lost"] if read_format & READ_LOST else []
    return [(name, pa.uint64()) for name in names + _times(read_format)]


def _times(read_format: int) -> list[str]:
    return [name for bit, name in _TIMES if read_format & bit]
