"""The ring buffer's pages in plain Python: an encoder, and a decoder written from the kernel's source.

Source: kernel/trace/ring_buffer.c rb_event_length(), rb_update_read_stamp(), rb_fix_abs_ts(). One thing is as
trace-cmd has it (libtraceevent kbuffer-parse.c): the time delta of discarded events counts.
"""

import struct
from typing import NamedTuple

MISSED, STORED = 1 << 31, 1 << 30
TOP = 0x1F << 59
MASK = (1 << 64) - 1


class Layout(NamedTuple):
    page_bytes: int
    long_bytes: int
    order: str  # < or >


class Data(NamedTuple):
    """An event with a payload."""

    delta: int
    payload: bytes  # a multiple of four bytes
    long_form: bool = False  # its size in the next word although it would fit into type_len


class Padding(NamedTuple):
    """A discarded event."""

    delta: int  # not 0
    payload: bytes


class Extend(NamedTuple):
    delta: int  # 59 bits


class Stamp(NamedTuple):
    value: int  # 59 bits


class Event(NamedTuple):
    at: int
    payload: bytes
    page: int
    stamp: int


def _word(layout, kind, delta):
    word = kind << 27 | delta if layout.order == ">" else delta << 5 | kind
    return struct.pack(layout.order + "I", word)


def encode(layout, item):
    """One record of a page."""
    number = struct.Struct(layout.order + "I").pack
    if isinstance(item, Data):
        if item.long_form or not 0 < len(item.payload) <= 112:
            return _word(layout, 0, item.delta) + number(len(item.payload) + 4) + item.payload
        return _word(layout, len(item.payload) // 4, item.delta) + item.payload
    if isinstance(item, Padding):
        # rb_event_discard(): the length is that of what it was, the word of the length itself included
        return _word(layout, 29, item.delta) + number(len(item.payload) + 4) + item.payload
    kind, value = (30, item.delta) if isinstance(item, Extend) else (31, item.value)
    return _word(layout, kind, value & ((1 << 27) - 1)) + number(value >> 27)


def page(layout, stamp, items, missed=None, filler=b""):
    """A page of those of ``items`` that fit in; ``missed``: None, −1 or a number of events lost before it."""
    room = layout.page_bytes - 8 - layout.long_bytes
    body = b""
    for item in items:
        record = encode(layout, item)
        if len(body) + len(record) > room:
            break
        body += record
    commit = len(body)
    if missed is not None:
        commit |= MISSED
        if missed >= 0 and len(body) + layout.long_bytes <= room:
            commit |= STORED
            body += struct.pack(layout.order + ("Q" if layout.long_bytes == 8 else "I"), missed)
    head = struct.pack(layout.order + ("QQ" if layout.long_bytes == 8 else "QI"), stamp, commit)
    return head + body + (filler * room)[: room - len(body)].ljust(room - len(body), b"\0")


def decode(layout, data):
    """Events and what was missed before each page."""
    events, missed = [], []
    for number in range(len(data) // layout.page_bytes):
        begin = number * layout.page_bytes
        _decode_page(layout, data, begin, number, events, missed)
    return events, missed


def _decode_page(layout, data, begin, number, events, missed):  # noqa: PLR0917 - what it adds to
    stamp, commit = struct.unpack_from(layout.order + ("QQ" if layout.long_bytes == 8 else "QI"), data, begin)
    base = stamp
    place = begin + 8 + layout.long_bytes
    end = place + (commit & ((1 << 27) - 1))
    lost = -1 if commit & MISSED else 0
    if lost and commit & STORED and end + layout.long_bytes <= begin + layout.page_bytes:
        lost = struct.unpack_from(layout.order + ("Q" if layout.long_bytes == 8 else "I"), data, end)[0]
    missed.append(lost)
    while place < end:
        word = struct.unpack_from(layout.order + "I", data, place)[0]
        kind, delta = (word >> 27, word & ((1 << 27) - 1)) if layout.order == ">" else (word & 31, word >> 5)
        following = struct.unpack_from(layout.order + "I", data, place + 4)[0] if place + 8 <= len(data) else 0
        if kind == 29:
            if delta == 0:
                return
            stamp, place = stamp + delta & MASK, place + 4 + following
        elif kind == 30:
            stamp, place = stamp + (following << 27 | delta) & MASK, place + 8
        elif kind == 31:
            value = (following << 27 | delta) & ~TOP & MASK
            if base & TOP:
                value |= base & TOP
                value += 1 << 59 if value < base else 0
            stamp, place = value & MASK, place + 8
        else:
            head, size = (8, following - 4) if kind == 0 else (4, 4 * kind)
            stamp = stamp + delta & MASK
            if size >= 8:
                events.append(Event(place + head, data[place + head : place + head + size], number, stamp))
            place += head + (size + 3) // 4 * 4
