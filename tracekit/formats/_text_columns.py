"""Values found in text → typed columns, named and typed as the event's own format says (DESIGN.md 5)."""

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats._event_format import Field
from tracekit.formats._text_bytes import Places, Text, Vocabulary, Words
from tracekit.formats._text_match import Value, number_at
from tracekit.formats._text_print import Piece

Named = list[tuple[str, pa.Array]]

_INTEGERS = {(size, signed): np.dtype(f"{'i' if signed else 'u'}{size}") for size in (1, 2, 4, 8) for signed in (0, 1)}


def integer_type(field: Field) -> np.dtype | None:
    """The type of a field that is a number; None if it is none."""
    if field.address:
        return np.dtype("u8")
    if field.array or field.dynamic:
        return None
    return _INTEGERS.get((field.size, int(field.signed)))


def fit(number: Words, kind: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """64-bit numbers as ``kind``, and where nothing is lost by that: they are its zero or sign extension."""
    narrow = number.astype(kind)
    bits = np.uint64((1 << 8 * kind.itemsize) - 1)
    low = number & bits
    high = number & ~bits
    sign = (low >> np.uint64(8 * kind.itemsize - 1)) != 0
    return narrow, (high == 0) | ((high == ~bits) & sign)


def strings(text: Text, starts: Places, ends: Places) -> pa.Array:
    """Strings that stand in the text; not dictionary-encoded."""
    order = np.argsort(starts, kind="stable")  # places must rise
    ends = np.maximum(ends, starts)
    if (order[1:] >= order[:-1]).all():
        return _columns.strings(text.bytes, starts, ends)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return _columns.strings(text.bytes, starts[order], ends[order]).take(_columns.numbers(place))


def labels(text: Text, words: Vocabulary, starts: Places, ends: Places, missing: np.ndarray | None = None) -> pa.Array:
    """Strings that repeat, dictionary-encoded; null where ``missing``."""
    codes, values = words.codes(text, starts, np.maximum(ends, starts))
    if missing is not None:
        codes = np.where(missing, np.int32(-1), codes)
    used = np.flatnonzero(np.bincount(codes + 1, minlength=len(values) + 1)[1:])
    compact = np.full(len(values) + 1, -1, np.int32)
    compact[used] = np.arange(len(used), dtype=np.int32)
    return _columns.labels(compact[codes], [values[code].decode("utf-8", "replace") for code in used.tolist()])


class NameTable:
    """Names that an event prints → numbers. A name that stands for two numbers stands for none."""

    def __init__(self, tables: list[tuple[tuple[str, int], ...]], *, flags: bool) -> None:
        self.flags = flags
        self.numbers: dict[str, int | None] = {}
        for table in tables:
            for name, number in table:
                known = self.numbers.setdefault(name, number)
                if known != number:
                    self.numbers[name] = None

    def number(self, printed: str) -> int | None:
        """The number that is printed like this; None: not known."""
        name = printed.strip()
        if name in self.numbers:
            return self.numbers[name]
        if self.flags:
            parts = [self._part(part) for part in name.split("|")]
            total = 0
            for part in parts:
                if part is None:
                    return None
                total |= part
            return total
        return self._part(name)

    def _part(self, name: str) -> int | None:
        if name in self.numbers:
            return self.numbers[name]
        try:
            number = int(name, 16) if name.startswith("0x") else int(name)
        except ValueError:
            return None
        return number if -(1 << 63) <= number < 1 << 64 else None


class Column:
    """The column, or the columns, that one field of an event becomes."""

    def __init__(  # noqa: PLR0913 - what the text shows of a field
        self, name: str, field: Field | None, piece: Piece, names: NameTable | None, *, hashed: bool, name_only: bool
    ) -> None:
        self.name, self.field, self.piece, self.names = name, field, piece, names
        self.hashed, self.name_only = hashed, name_only
        self.type = integer_type(field) if field is not None else None
        self._words = Vocabulary()

    def fits(self, value: Value) -> np.ndarray:
        """Where the number printed is one that the field can hold."""
        if self.type is None or len(value.number) == 0:
            return np.ones(len(value.starts), bool)
        return fit(value.number, self.type)[1]

    def arrow(self, text: Text, value: Value) -> Named:
        """The columns of these lines."""
        kind = self.piece.kind
        if kind in {"decimal", "hex"} and self.type is not None:
            unknown = None if self.piece.exact else value.number == 0
            return [(self.name, _numbers(value.number, self.type, unknown))]
        if kind == "pointer":
            return self._pointer(text, value)
        if kind == "symbol":
            return self._symbol(text, value)
        if kind == "skip":
            return [(self.name + "_text", labels(text, self._words, value.starts, value.ends))]
        if self.names is not None and self.type is not None:
            return self._names(text, value)
        return [(self.name, strings(text, value.starts, value.ends))]

    def _pointer(self, text: Text, value: Value) -> Named:
        """Of 16 digits without 0x, as tracefs prints them, those of 32 bits are hashes (hash-ptr), no addresses."""
        if not self.hashed:
            return [(self.name, _columns.numbers(value.number))]
        hashed = (value.ends - value.starts == 16) & (value.number >> np.uint64(32) == 0) & (value.number != 0)
        hashed &= ~text.equals(value.starts, b"0x")
        return [
            (self.name, _columns.numbers(value.number, ~hashed)),
            (self.name + "_hash", _columns.numbers(value.number.astype(np.uint32), hashed)),
        ]

    def _symbol(self, text: Text, value: Value) -> Named:
        number, good = number_at(text, value.starts, "hex")
        good &= (number.ends == value.ends) & text.equals(value.starts, b"0x")
        symbol = labels(text, self._words, value.starts, value.ends, good)
        return [(self.name, _columns.numbers(number.number, good)), (self.name + "_name", symbol)]

    def _names(self, text: Text, value: Value) -> Named:
        assert self.names is not None
        assert self.type is not None
        ends = text.strip(value.starts, value.ends)
        name = (self.name + "_name", labels(text, self._words, value.starts, ends, ends <= value.starts))
        if self.name_only:
            return [name]
        codes, values = self._words.codes(text, value.starts, ends)
        used = np.unique(codes)
        known = np.zeros(len(values), bool)
        numbers = np.zeros(len(values), np.uint64)
        for code in used.tolist():
            number = self.names.number(values[code].decode("utf-8", "replace"))
            if number is not None:
                known[code], numbers[code] = True, number & ((1 << 64) - 1)
        columns = [(self.name, _numbers(numbers[codes], self.type, ~known[codes]))]
        return columns if self.piece.kind == "truth" else [*columns, name]


def _numbers(number: Words, kind: np.dtype, unknown: np.ndarray | None) -> pa.Array:
    narrow, good = fit(number, kind)
    if unknown is not None:
        good = good & ~unknown
    return _columns.numbers(narrow, good)
