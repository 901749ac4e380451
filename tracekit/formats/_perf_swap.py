"""Records written on a machine of the other byte order → this machine's, in place.

All is swapped as 64-bit words at first; then what is not of 64 bits is put right: headers, pairs of 32 bits, text,
and raw data, whose layout only its event's format knows.

Source: tools/perf/util/session.c perf_event__swap_ops, evsel.c evsel__parse_sample().
"""

import struct

import numpy as np

from tracekit.formats._event_format import EventFormat, Field
from tracekit.formats._event_rows import _element_bytes as element_bytes
from tracekit.formats._perf_ids import EventIds
from tracekit.formats._perf_index import AUXTRACE, COMPRESSED, SAMPLE, TRACING_DATA, Chain, Found, Starts, Words
from tracekit.formats._perf_sample import RAW, locate

_HEAD = struct.Struct(">IHH")
_PAIRS = {1: (1,), 3: (1,), 4: (1, 2), 7: (1, 2), 8: (1,), 10: (1, 5, 8), 12: (1,), 15: (1,), 16: (1,)}
"""Record type → words that hold two numbers of 32 bits."""
_TEXT = {1: 5, 3: 2, 10: 9, 19: 2}
"""Record type → word where a string starts."""

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def hop_swapped(words: Words, first: int, end: int) -> Chain:
    """``_perf_index.hop`` for headers of the other byte order."""
    data = words.data.cast("B")
    starts, kinds, ends = [], [], []
    position, skip = first, 0
    problem: str | None = None
    while position < end and not skip:
        kind, _, size = _HEAD.unpack_from(data, 8 * position)
        if kind in COMPRESSED:
            problem = f"record type {kind} is compressed data"
        elif size < 8 or size % 8:
            problem = f"record of type {kind} says it has {size} bytes"
        if problem is not None or position + size // 8 > end:
            break
        if kind == AUXTRACE and size >= 16:
            skip = struct.unpack_from(">Q", data, 8 * position + 8)[0]
        elif kind == TRACING_DATA and size >= 16:
            skip = struct.unpack_from(">I", data, 8 * position + 8)[0]
        starts.append(position)
        kinds.append(kind)
        position += size // 8
        ends.append(position)
    found = Found(np.array(starts, np.int64), np.array(ends, np.int64), np.array(kinds, np.uint32))
    return Chain(found, position, skip, problem)


def to_native(words: Words, found: Found, ids: EventIds) -> None:
    """Swap the records of ``found``, which lie end to end."""
    starts, ends, kind = found
    if len(starts) == 0:
        return
    words[int(starts[0]) : int(ends[-1])].byteswap(inplace=True)
    heads = words[starts]
    size = heads & np.uint64(0xFFFF)
    misc = heads >> np.uint64(16) & np.uint64(0xFFFF)
    words[starts] = kind | misc << np.uint64(32) | size << np.uint64(48)
    for number in np.unique(kind).tolist():
        mine = kind == number
        if number == SAMPLE:
            _samples(words, starts[mine], ends[mine], ids)
        elif number < 64:
            _records(words, int(number), starts[mine], ends[mine], ids)


def _records(words: Words, kind: int, starts: Starts, ends: Starts, ids: EventIds) -> None:
    event = ids.event_of_trailers(words, ends)
    length = ids.trailer_words[event]
    fits = starts + 1 + length <= ends
    starts, ends, event, length = starts[fits], ends[fits], event[fits], length[fits]
    for part in ("tid", "cpu"):
        each = np.array([layout.trailer.get(part, 0) for layout in ids.layouts], np.int64)[event]
        _rotate(words, (ends - each)[each > 0])
    ends = ends - length
    for word in _PAIRS.get(kind, ()):
        _rotate(words, (starts + word)[starts + word < ends])
    if kind in _TEXT:
        _restore(words, np.minimum(starts + _TEXT[kind], ends), ends)


def _samples(words: Words, starts: Starts, ends: Starts, ids: EventIds) -> None:
    event = ids.event_of_samples(words, starts)
    for number, layout in enumerate(ids.layouts):
        mine = np.flatnonzero((event == number) & (starts + layout.fixed_words <= ends))
        if len(mine) == 0:
            continue
        for part in ("tid", "cpu"):
            if part in layout.words:
                _rotate(words, starts[mine] + layout.words[part])
        if not layout.sample_type & RAW:
            continue
        place = locate(words, starts[mine], ends[mine], layout)
        assert place.raw is not None
        inside = np.flatnonzero(place.placed)
        raw, stop = place.raw[inside], ends[mine][inside]
        _rotate(words, raw)
        size = (words[raw] & np.uint64(0xFFFFFFFF)).astype(np.int64)
        fits = raw * 8 + 4 + size <= stop * 8
        raw, size = raw[fits], size[fits]
        words.view(np.uint32)[2 * raw + 1] = words.view(np.uint32)[2 * raw + 1].byteswap()
        _restore(words, raw + 1, raw + (4 + size + 7) // 8)


def _rotate(words: Words, places: Starts) -> None:
    """Two numbers of 32 bits: the first one belongs into the low half."""
    halves = words[places]
    words[places] = halves << np.uint64(32) | halves >> np.uint64(32)


def _restore(words: Words, begin: Starts, end: Starts) -> None:
    """Bytes that have no order."""
    index = _indices(begin, end - begin)
    words[index] = words[index].byteswap()


def _indices(begin: Starts, count: Starts) -> Starts:
    """``begin[i] … begin[i] + count[i] − 1`` for all i, end to end."""
    count = np.maximum(count, 0)
    offsets = np.cumsum(count) - count
    index: Starts = np.arange(int(count.sum())) + np.repeat(begin - offsets, count)
    return index


def swap_raw(data: Bytes, at: Starts, size: Starts, event: EventFormat) -> None:
    """Raw data ``data[at[i]:at[i] + size[i]]`` of samples of ``event``: the numbers in it into this machine's order."""
    for field in (*event.common, *event.fields):
        width = 4 if field.dynamic else _width(field)
        for begin in range(field.offset, field.offset + field.size - width + 1, width) if width > 1 else ():
            _reverse(data, at + begin, width)
        if field.dynamic and not field.text:
            _dynamic(data, at, size, field)


def _width(field: Field) -> int:
    """Bytes of the numbers that a field is made of; 1: it is text, or unknown."""
    if field.text:
        return 1
    width = element_bytes(field.type) if field.array else field.size
    return width if width in {2, 4, 8} and field.size % width == 0 else 1


def _dynamic(data: Bytes, at: Starts, size: Starts, field: Field) -> None:
    width = element_bytes(field.type.split(None, 1)[-1].replace("[]", ""))
    if width <= 1:
        return
    place = _u32(data, at + field.offset)
    begin = (place & 0xFFFF) + (field.offset + 4 if field.dynamic == "relative" else 0)
    count = place >> 16
    fits = begin + count <= size
    _reverse(data, at[fits] + begin[fits], width, count[fits] // width)


def _u32(data: Bytes, at: Starts) -> Starts:
    four = data[at[:, None] + np.arange(4)]
    numbers: Starts = four.view(np.uint32)[:, 0].astype(np.int64)
    return numbers


def _reverse(data: Bytes, at: Starts, width: int, count: Starts | None = None) -> None:
    """Reverse ``count`` numbers of ``width`` bytes from each place on; by default one."""
    if count is not None:
        within = _indices(np.zeros(len(at), np.int64), count)
        at = np.repeat(at, count) + width * within
    place = at[:, None] + np.arange(width)
    data[place] = data[place[:, ::-1]]
