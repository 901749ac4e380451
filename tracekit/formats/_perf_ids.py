"""Which event a sample or a record of perf.data belongs to, and where its parts are.

Source: tools/perf/util/evlist.c evlist__event2evsel(), evsel.c __evsel__calc_id_pos().
"""

from collections.abc import Sequence

import numpy as np

from tracekit.formats._perf_attr import Attr
from tracekit.formats._perf_index import SAMPLE, Found, SamplePattern, Starts, Words
from tracekit.formats._perf_sample import SampleLayout, layout_of, word_of

UNKNOWN = -1
UNWANTED = -2

_ZERO = np.uint64(0)

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
Events = np.ndarray  # of int16, or more
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]

_DENSE_IDS = 1 << 20  # ids are counted up by the kernel: mostly small, but after months of uptime they are not


class EventIds:
    """Event numbers are places in the list of attributes."""

    def __init__(self, attrs: Sequence[Attr], wanted: Mask) -> None:
        self.layouts: list[SampleLayout] = [layout_of(attr) for attr in attrs]
        first = self.layouts[0]
        self._sample_id = first.words.get("identifier", first.words.get("id", 0))
        self._trailer_id = first.trailer.get("identifier", first.trailer.get("id", 0))
        self.fixed_words = np.array([layout.fixed_words for layout in self.layouts], np.int64)
        self.trailer_words = np.array([layout.trailer_words for layout in self.layouts], np.int64)
        pairs = sorted((number, event) for event, attr in enumerate(attrs) for number in attr.ids)
        self._numbers = np.array([number for number, _ in pairs], np.uint64)
        self._event_type = np.dtype(np.int16 if len(attrs) < 1 << 15 else np.int64)  # 16 bits are sorted by radix
        self._events = np.array([event for _, event in pairs], self._event_type)
        self._single = len(attrs) == 1 or not self._sample_id or not pairs
        self._wanted = wanted
        low, high = (pairs[0][0], pairs[-1][0]) if pairs else (0, 0)
        id_word = 0 if self._single else self._sample_id
        self.pattern = SamplePattern(int(self.fixed_words.min()), id_word, low, high)
        self._known_places: dict[tuple[str, bool], Numbers] = {}
        self._dense: Events | None = None
        self._kept: Mask | None = None  # by id: whether its samples are wanted, or of no event
        if pairs and high < _DENSE_IDS:
            self._dense = np.full(high + 2, UNKNOWN, self._event_type)
            self._dense[self._numbers.astype(np.int64)] = self._events
            self._dense[0] = 0  # perf: id 0 is the first event
            if not wanted.all():
                self._kept = (self._dense == UNKNOWN) | wanted[self._dense]

    def event_of(self, numbers: Words) -> Events:
        """Event of each id; UNKNOWN if there is none."""
        if len(self._numbers) == 0:
            return np.zeros(len(numbers), self._event_type)
        if self._dense is not None:
            last = np.uint64(len(self._dense) - 1)
            return self._dense.take(np.minimum(numbers, last).view(np.int64), mode="clip")
        place = np.minimum(np.searchsorted(self._numbers, numbers), len(self._numbers) - 1)
        event = self._events[place]
        event[self._numbers[place] != numbers] = UNKNOWN
        event[numbers == 0] = 0
        return event

    def event_of_samples(self, words: Words, starts: Starts) -> Events:
        """Event of each sample; UNKNOWN, or UNWANTED."""
        if self._single:
            event = np.zeros(len(starts), self._event_type)
        else:
            event = self.event_of(word_of(words, starts, self._sample_id))
        if not self._wanted.all():
            event[(event >= 0) & ~self._wanted[event]] = UNWANTED
        return event

    def event_of_trailers(self, words: Words, ends: Starts) -> Events:
        """Event that each record's trailer names; the first if it names none."""
        if self._single or not self._trailer_id:
            return np.zeros(len(ends), self._event_type)
        return self.event_of(words[ends - self._trailer_id]).clip(0)

    def sample_word(self, words: Words, starts: Starts, event: Events, part: str, default: np.uint64 = _ZERO) -> Words:
        """The word of each sample that holds ``part``; ``default`` where it has none."""
        each = self._places(part, trailer=False)
        first = int(each[0])
        if (each == first).all():
            return word_of(words, starts, first) if first else np.full(len(starts), default, np.uint64)
        place = each[event]
        return np.where(place == 0, default, words[starts + place])

    def trailer_word(self, words: Words, ends: Starts, event: Events, part: str, default: int) -> Words:
        """The word of each record's trailer that holds ``part``."""
        each = self._places(part, trailer=True)[event]
        return np.where(each == 0, np.uint64(default), words[ends - each])

    def _places(self, part: str, *, trailer: bool) -> Numbers:
        """Where ``part`` is in the samples, or in the trailers, of each event; 0: nowhere."""
        found = self._known_places.get((part, trailer))
        if found is None:
            parts = (layout.trailer if trailer else layout.words for layout in self.layouts)
            found = self._known_places[part, trailer] = np.array([one.get(part, 0) for one in parts], np.int64)
        return found

    def without_unwanted(self, words: Words, found: Found) -> Found:
        """``found`` without the samples that are not wanted, as cheaply as can be."""
        if self._single or self._kept is None:
            return found
        numbers = word_of(words, found.starts, self._sample_id)
        last = np.uint64(len(self._kept) - 1)
        keep = self._kept.take(np.minimum(numbers, last).view(np.int64), mode="clip")
        return found.pick(keep | (found.kind != SAMPLE))
