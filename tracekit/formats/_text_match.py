"""A template of pieces, and many lines: which lines fit it, and where their values are.

Places first, by the vectorised steps of _text_bytes; a line whose strings make that ambiguous goes through a regular
expression of the same pieces. Both give the same answer or none: a line fits from its first to its last character.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tracekit.formats._text_bytes import Mask, Places, Text, Words
from tracekit.formats._text_print import Piece

STRINGS = frozenset({"string", "name", "flags", "truth", "skip", "symbol"})
_SLOW_LINES = 1 << 14  # per call; more than that is a wrong template, not odd lines
_SLOW_BYTES = 1 << 12  # of a line: a regular expression of many strings may take the square of it
_MAX_STEPS = 12
_PATTERNS = {
    "decimal": rb"(-?[0-9]{1,20})",
    "hex": rb"((?:0x)?[0-9a-fA-F]{1,16})",
    "pointer": rb"((?:0x)?[0-9a-fA-F]{1,16})",
}


class Value(NamedTuple):
    """One piece of many lines."""

    starts: Places
    ends: Places
    number: Words  # two's complement; empty for strings
    negative: Mask


class Template:
    """What a line consists of."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        if self.pieces and self.pieces[-1].kind == "literal":  # who prints the line may strip it
            last = self.pieces[-1].literal.rstrip(b" ")
            self.pieces = (*self.pieces[:-1], *([Piece("literal", literal=last)] if last else ()))
        self.values = tuple(piece for piece in self.pieces if piece.kind != "literal")
        self.literals = b"\0".join(piece.literal for piece in self.pieces if piece.kind == "literal")
        parts = []
        for piece in self.pieces:
            if piece.kind == "literal":
                parts.append(re.escape(piece.literal))
            else:
                parts.append(_PATTERNS.get(piece.kind, rb"(.*?)"))
        self._regex = re.compile(b"".join(parts) + rb" *", re.DOTALL)
        inner = self.pieces[:-1]
        self._ambiguous = any(piece.kind in STRINGS for piece in inner)

    def match(self, text: Text, at: Places, end: Places) -> tuple[Mask, list[Value]]:
        """Which of the texts ``[at, end)`` fit, and the values of all pieces but the literals (of no use elsewhere)."""
        end = text.strip(at, end)
        fits = np.ones(len(at), bool)
        values: list[Value] = []
        cursor = at
        for number, piece in enumerate(self.pieces):
            if piece.kind == "literal":
                fits &= text.equals(cursor, piece.literal)
                cursor = np.minimum(cursor + len(piece.literal), end)
            elif piece.kind in STRINGS:
                following = self.pieces[number + 1].literal if number + 1 < len(self.pieces) else None
                stop = end if following is None else _before(text, cursor, end, following, fits)
                values.append(Value(cursor, stop, np.empty(0, np.uint64), np.empty(0, bool)))
                cursor = stop
            else:
                value, good = number_at(text, cursor, piece.kind)
                fits &= good
                cursor = np.minimum(value.ends, end)
                values.append(value)
        fits &= cursor == end
        if self._ambiguous and not fits.all():
            self._slowly(text, at, end, fits, values)
        return fits, values

    def _slowly(self, text: Text, at: Places, end: Places, fits: Mask, values: list[Value]) -> None:
        rows = np.flatnonzero(~fits & (end - at < _SLOW_BYTES))[:_SLOW_LINES]
        found = []
        spans = []
        for row in rows.tolist():
            match = self._regex.fullmatch(text.raw, int(at[row]), int(end[row]))
            if match is not None:
                found.append(row)
                spans.append([match.span(group) for group in range(1, len(self.values) + 1)])
        if not found:
            return
        places = np.array(spans, np.int64).reshape(len(found), len(self.values), 2)
        fits[found] = True
        for number, piece in enumerate(self.values):
            starts, ends = places[:, number, 0], places[:, number, 1]
            for column, fresh in zip(values[number], (starts, ends), strict=False):
                column[found] = fresh
            if piece.kind not in STRINGS:
                value, good = number_at(text, starts, piece.kind)
                values[number].number[found], values[number].negative[found] = value.number, value.negative
                fits[found] &= good & (value.ends == ends)


def _before(text: Text, at: Places, end: Places, literal: bytes, fits: Mask) -> Places:
    """The first place from ``at`` on where ``literal`` stands; clears ``fits`` where there is none."""
    place = text.find(at, literal[0], end)
    if len(literal) > 1:
        rest = np.flatnonzero(~text.equals(np.minimum(place, end), literal))
        for _ in range(_MAX_STEPS):
            rest = rest[place[rest] < end[rest]]
            if len(rest) == 0:
                break
            place[rest] = text.find(place[rest] + 1, literal[0], end[rest])
            rest = rest[~text.equals(np.minimum(place[rest], end[rest]), literal)]
        fits[rest] = False
    fits &= place < end
    return np.minimum(place, end)


def number_at(text: Text, at: Places, kind: str) -> tuple[Value, Mask]:
    """The numbers at the places, and where there is one that fits 64 bits."""
    if kind == "decimal":
        negative: Mask = text.bytes[at] == ord("-")
        signed = negative.any()
        begin = at + negative if signed else at
        number, length = text.decimal(begin)
        if signed:
            number = np.where(negative, np.uint64(0) - number, number)
        # 19 digits always fit; of 20, those up to 2^64 start with 1 and do not wrap below 10^19
        good = (length > 0) & ((length < 20) | ((length == 20) & (text.bytes[begin] == ord("1")) & (number >= 10**19)))
        return Value(at, begin + length, number, negative), good
    prefixed = text.equals(at, b"0x")
    begin = at + 2 * prefixed
    number, length = text.hexadecimal(begin)
    return Value(at, begin + length, number, np.zeros(len(at), bool)), (length > 0) & (length <= 16)


def pick(value: Value, rows: np.ndarray) -> Value:
    """The values of some lines."""
    if len(value.number) == 0:
        return Value(value.starts[rows], value.ends[rows], value.number, value.negative)
    return Value(*(column[rows] for column in value))
