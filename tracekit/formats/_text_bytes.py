"""Numbers, words and literals at many places of a text at once, eight bytes per step.

Lines of a trace differ in width, so nothing stands in a fixed column. Every function takes places int64[n] and works on
64-bit words loaded from there (SWAR: eight characters in one integer), which is some 10 ns per number where a regular
expression needs 300 (PEERS.md 3: polars extracts 93 MB/s, re.finditer alone runs at 233 MB/s).
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PAD_BYTES = 64
"""What a Text has before and behind its bytes, so that loads need no bounds."""

Places = np.ndarray[tuple[int], np.dtype[np.int64]]
Words = np.ndarray[tuple[int], np.dtype[np.uint64]]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
Flags = Callable[[Words], Words]
"""Gives the first byte that is looked for, and perhaps later ones, its high bit."""

_NOT_SPACE, _NOT_WORD = re.compile(rb"[^ ]"), re.compile(rb"[^A-Za-z0-9_.]")
_MAX_STEPS = 48


def _each(byte: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([byte]) * 8, "little"))


_HIGH, _LOW7, _ONES, _NIBBLE = _each(0x80), _each(0x7F), _each(0x01), _each(0x0F)
_EVEN, _PAIRS, _HALF = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0xFFFFFFFF)
_POWERS = np.array([10**n for n in range(20)], np.uint64)
# what of a word is left when its first n bytes count; 8 and more: all
_FIRST = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
_SPREAD = [np.uint64(0x9E3779B97F4A7C15 * (2 * n + 1) & ((1 << 64) - 1)) for n in range(PAD_BYTES // 8 + 1)]


def _u64(number: int) -> np.uint64:
    return np.uint64(number)


class Text:
    """Some lines of a file."""

    def __init__(self, data: bytes, offset: int) -> None:
        self.raw = bytes(PAD_BYTES) + data + bytes(PAD_BYTES)
        self.bytes = np.frombuffer(self.raw, np.uint8)
        self.begin, self.end = PAD_BYTES, PAD_BYTES + len(data)
        self.origin = offset - PAD_BYTES  # place + origin is the offset in the file
        self._eights = np.ndarray((len(self.raw) - 7,), "<u8", self.raw, 0, (1,))

    def lines(self) -> tuple[Places, Places]:
        """Starts and ends (without the line end) of all lines."""
        ends = np.flatnonzero(self.bytes[: self.end] == ord("\n"))
        starts = np.concatenate(([self.begin], ends + 1))
        if starts[-1] < self.end:
            ends = np.append(ends, self.end)
        else:
            starts = starts[:-1]
        return starts, ends - (self.bytes[ends - 1] == ord("\r"))

    def load(self, at: Places) -> Words:
        """The eight bytes from each place on."""
        words: Words = self._eights[at]
        return words

    def equals(self, at: Places, literal: bytes) -> Mask:
        """Whether ``literal`` stands at each place."""
        same: Mask | None = None
        for begin in range(0, len(literal), 8):
            part = literal[begin : begin + 8]
            place = at + begin if begin else at
            if begin > PAD_BYTES - 16:  # long literals are learnt from lines: others may be shorter
                place = np.minimum(place, len(self.raw) - 8)
            words = self.load(place)
            wanted = _u64(int.from_bytes(part, "little"))
            here = words == wanted if len(part) == 8 else (words & _FIRST[len(part)]) == wanted
            same = here if same is None else same & here
        return np.ones(len(at), bool) if same is None else same

    def skip_spaces(self, at: Places) -> Places:
        """The first place that holds no space."""
        return self._first(at, _not_space, _NOT_SPACE)

    def word_end(self, at: Places) -> Places:
        """The first place that holds none of ``A-Z a-z 0-9 _ .``."""
        return self._first(at, _not_word, _NOT_WORD)

    def find(self, at: Places, byte: int, end: Places) -> Places:
        """The first place from ``at`` on that holds ``byte``; ``end`` or beyond where there is none before."""
        wanted = _each(byte)

        def is_it(words: Words) -> Words:
            words = words ^ wanted
            return (words - _ONES) & ~words & _HIGH

        return self._first(at, is_it, re.compile(re.escape(bytes([byte]))), end)

    def strip(self, at: Places, end: Places) -> Places:
        """``end`` without the spaces before it, but not below ``at``."""
        rest = np.flatnonzero((self.bytes[end - 1] == ord(" ")) & (end > at))
        if len(rest) == 0:
            return end
        end = end.copy()
        for _ in range(_MAX_STEPS):
            end[rest] -= 1
            rest = rest[(self.bytes[end[rest] - 1] == ord(" ")) & (end[rest] > at[rest])]
            if len(rest) == 0:
                return end
        for row in rest.tolist():
            end[row] = at[row] + len(self.raw[at[row] : end[row]].rstrip(b" "))
        return end

    def _first(self, at: Places, flags: Flags, slow: re.Pattern[bytes], end: Places | None = None) -> Places:
        """The first place whose byte ``flags`` marks; ``slow`` finds the same, for what is far away."""
        marks = flags(self.load(at))
        result = at + _trailing_bytes(marks)
        rest = np.flatnonzero(marks == 0)
        limit = np.int64(len(self.raw) - 8)
        for _ in range(_MAX_STEPS):
            place = result[rest]
            inside = place < (limit if end is None else end[rest])
            rest, place = rest[inside], place[inside]
            if len(rest) == 0:
                return result
            marks = flags(self.load(place))
            result[rest] = place + _trailing_bytes(marks)
            rest = rest[marks == 0]
        for row in rest.tolist():
            stop = int(limit if end is None else end[row])
            found = slow.search(self.raw, int(result[row]), stop)
            result[row] = found.start() if found else max(stop, int(result[row]))
        return result

    def decimal(self, at: Places) -> tuple[Words, Places]:
        """Unsigned decimal numbers, and how many digits each has (0: none; more than 19: too large)."""
        return self._number(at, _decimal_word, _POWERS)

    def hexadecimal(self, at: Places) -> tuple[Words, Places]:
        """Hexadecimal numbers without prefix, and how many digits each has (0: none; more than 16: too large)."""
        return self._number(at, _hexadecimal_word, None)

    def _number(self, at: Places, parse, powers: Words | None) -> tuple[Words, Places]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        values, lengths = parse(self.load(at))
        rest = np.flatnonzero(lengths == 8)
        for begin in (8, 16):
            if len(rest) == 0:
                break
            more, digits = parse(self.load(at[rest] + begin))
            scale = powers[digits] if powers is not None else _u64(1) << (4 * digits).astype(np.uint64)
            values[rest] = values[rest] * scale + more
            lengths[rest] += digits
            rest = rest[digits == 8]
        return values, lengths

    def keys(self, starts: Places, ends: Places) -> tuple[Words, list[Words]]:
        """A hash of each string, and its words; strings longer than PAD_BYTES differ in their first bytes only."""
        length = ends - starts
        words: list[Words] = []
        hashes = length.astype(np.uint64) * _SPREAD[-1]
        for number in range(min(int(length.max(initial=0)) + 7, PAD_BYTES) // 8):
            part = self.load(np.minimum(starts + 8 * number, np.maximum(ends, starts)))
            part = part & _FIRST[np.clip(length - 8 * number, 0, 8)]
            words.append(part)
            hashes ^= (part ^ (part >> _u64(29))) * _SPREAD[number]
        return hashes ^ (hashes >> _u64(32)), words


def _trailing_bytes(marks: Words) -> Places:
    """How many bytes stand below the lowest mark; 8 if there is none."""
    below: Places = np.bitwise_count((marks & (~marks + _u64(1))) - _u64(1)).astype(np.int64) >> 3
    return below


def _not_space(words: Words) -> Words:
    words = words ^ _CASE
    return (((words & _LOW7) + _LOW7) | words) & _HIGH


_DIGIT, _DIGIT_TEST = _each(0x30), _each(0x76)
_CASE, _ALPHA, _HEX_TEST, _ALPHA_TEST = _each(0x20), _each(0x60), _each(0x79), _each(0x65)
_UNDERSCORE, _DOT, _NINE = _each(0x5F), _each(0x2E), np.uint64(9)


def _not_word(words: Words) -> Words:
    low = words & _LOW7
    letter = (low | _CASE) ^ _ALPHA
    no_letter = (letter + _ALPHA_TEST) | (_HIGH - letter)
    no_digit = (low ^ _DIGIT) + _DIGIT_TEST
    marks: Words = (no_digit & no_letter & ((low ^ _UNDERSCORE) + _LOW7) & ((low ^ _DOT) + _LOW7) | words) & _HIGH
    return marks


def _decimal_word(words: Words) -> tuple[Words, Places]:
    digits = words ^ _DIGIT
    length = _trailing_bytes((((digits & _LOW7) + _DIGIT_TEST) | digits) & _HIGH)
    # the digits move to the top, noughts in front of them
    value = np.where(length == 0, _u64(0), digits << ((8 - length) * 8 % 64).astype(np.uint64))
    value = (value * _u64(10) + (value >> _u64(8))) & _EVEN
    value = (value * _u64(100) + (value >> _u64(16))) & _PAIRS
    return (value * _u64(10000) + (value >> _u64(32))) & _HALF, length


def _hexadecimal_word(words: Words) -> tuple[Words, Places]:
    low = words & _LOW7
    letter = (low | _CASE) ^ _ALPHA
    no_letter = (letter + _HEX_TEST) | (_HIGH - letter)
    length = _trailing_bytes((((low ^ _DIGIT) + _DIGIT_TEST) & no_letter | words) & _HIGH)
    nibbles = (low & _NIBBLE) + ((low >> _u64(6)) & _ONES) * _NINE
    value = np.where(length == 0, _u64(0), nibbles << ((8 - length) * 8 % 64).astype(np.uint64))
    value = (value * _u64(16) + (value >> _u64(8))) & _EVEN
    value = (value * _u64(256) + (value >> _u64(16))) & _PAIRS
    return (value * _u64(65536) + (value >> _u64(32))) & _HALF, length


class Distinct(NamedTuple):
    """Strings as numbers of distinct ones."""

    codes: np.ndarray  # int32[n]
    values: list[bytes]


class Vocabulary:
    """Numbers distinct strings; what it has seen it finds again by binary search, compared in full."""

    MAX_VALUES = 1 << 15

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self._code_of: dict[bytes, int] = {}
        self._hashes: Words = np.empty(0, np.uint64)  # sorted
        self._codes = np.empty(0, np.int32)

    def codes(self, text: Text, starts: Places, ends: Places) -> Distinct:
        """Number all strings ``[starts[i], ends[i])``."""
        if len(self.values) > self.MAX_VALUES:  # the numbers hold for one call
            self._forget()
        hashes, words = text.keys(starts, ends)
        codes = np.full(len(starts), -1, np.int32)
        self._lookup(hashes, codes)
        fresh = np.flatnonzero(codes < 0)
        if len(fresh):
            keys, first = np.unique(hashes[fresh], return_index=True)
            self._learn([text.raw[starts[row] : ends[row]] for row in fresh[first].tolist()], keys)
            self._lookup(hashes, codes)
        wrong = self._differ(words, codes, starts, ends)
        for row in wrong.tolist():  # equal hashes, or long strings with equal beginnings
            codes[row] = self._code(text.raw[starts[row] : ends[row]])
        return Distinct(codes, self.values)

    def _forget(self) -> None:
        self.values, self._code_of = [], {}
        self._hashes, self._codes = np.empty(0, np.uint64), np.empty(0, np.int32)

    def _lookup(self, hashes: Words, codes: np.ndarray) -> None:
        if len(self._hashes):
            place = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            np.copyto(codes, self._codes[place], where=self._hashes[place] == hashes)

    def _code(self, value: bytes) -> int:
        code = self._code_of.setdefault(value, len(self.values))
        if code == len(self.values):
            self.values.append(value)
        return code

    def _learn(self, values: list[bytes], keys: Words) -> None:
        place = np.searchsorted(self._hashes, keys)
        self._hashes = np.insert(self._hashes, place, keys)
        self._codes = np.insert(self._codes, place, [self._code(value) for value in values])

    def _differ(self, words: list[Words], codes: np.ndarray, starts: Places, ends: Places) -> Places:
        """Rows whose string is not that of their code."""
        length = np.array([len(value) for value in self.values], np.int64)
        different = (length[codes] != ends - starts) | (length[codes] > PAD_BYTES)
        for number, part in enumerate(words):
            known = [int.from_bytes(value[8 * number : 8 * number + 8], "little") for value in self.values]
            different |= np.array(known, np.uint64)[codes] != part
        return np.flatnonzero(different)
