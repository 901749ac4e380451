"""The raw bytes of many events of one format → typed columns."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit._columns import Bytes
from tracekit.formats._event_format import EventFormat, Field
from tracekit.formats._print_fmt import namers

_U32 = np.dtype(np.uint32)
COMMON = ("time_ns", "cpu", "pid", "tid", "comm", "callchain_id", "seq")
RECORD_COMMON = ("common_flags", "common_preempt_count", "common_pid")

Places = np.ndarray[tuple[int], np.dtype[np.int64]]
Named = list[tuple[str, pa.Array]]
Count = Callable[[str, int], None]

_SIZES = {
    "char": 1, "u8": 1, "__u8": 1, "s8": 1, "__s8": 1, "bool": 1, "uint8_t": 1, "int8_t": 1,
    "short": 2, "u16": 2, "__u16": 2, "s16": 2, "__s16": 2, "uint16_t": 2, "int16_t": 2, "__be16": 2, "__le16": 2,
    "int": 4, "u32": 4, "__u32": 4, "s32": 4, "__s32": 4, "uint32_t": 4, "int32_t": 4, "__be32": 4, "unsigned": 4,
    "u64": 8, "__u64": 8, "s64": 8, "__s64": 8, "uint64_t": 8, "int64_t": 8, "size_t": 8, "long": 8,
}  # fmt: skip


class Rows(NamedTuple):
    """Copies of the first bytes of many events."""

    matrix: np.ndarray[tuple[int, int], np.dtype[np.uint8]]  # [n, width], contiguous
    origin: int  # where in a row the event's data starts

    def column(self, offset: int, dtype: np.dtype) -> np.ndarray:
        """The number at ``offset`` of each event's data: 2 ns each, byte slices cost twice that."""
        count, width = self.matrix.shape
        if count == 0:  # no bytes to point at
            return np.empty(0, dtype)
        strided: np.ndarray = np.ndarray((count,), dtype, self.matrix.data, self.origin + offset, (width,))
        return np.ascontiguousarray(strided)

    def block(self, offset: int, size: int) -> np.ndarray:
        """``size`` bytes of each event's data, contiguous."""
        place = self.origin + offset
        return np.ascontiguousarray(self.matrix[:, place : place + size])


class Raws(NamedTuple):
    """The whole of the same events: ``data[at[i]:at[i] + size[i]]``."""

    data: Bytes
    at: Places
    size: Places


NO_RAWS = Raws(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64))
"""For events without variable data."""


class _Companion:
    """Names of the values of one field; what it has seen it does not work out again."""

    def __init__(self, name: Callable[[int], str]) -> None:
        self.name = name
        self.values = np.empty(0, np.int64)  # sorted
        self.codes = np.empty(0, np.int32)
        self.names: list[str] = []
        self.code_of: dict[str, int] = {}

    def column(self, values: np.ndarray) -> pa.Array:
        wide = values.astype(np.int64)
        place = np.searchsorted(self.values, wide)
        known = np.zeros(len(wide), bool)
        if len(self.values):
            place = np.minimum(place, len(self.values) - 1)
            known = self.values[place] == wide
        if not known.all():
            self._learn(_columns.distinct(wide[~known]))
            place = np.searchsorted(self.values, wide)
        return _columns.labels(self.codes[place], self.names)

    def _learn(self, fresh: np.ndarray) -> None:
        codes = []
        for value in fresh.tolist():
            text = self.name(value)
            codes.append(self.code_of.setdefault(text, len(self.code_of)))
            if len(self.code_of) > len(self.names):
                self.names.append(text)
        values = np.concatenate((self.values, fresh))
        order = np.argsort(values)
        self.values = values[order]
        self.codes = np.concatenate((self.codes, np.array(codes, np.int32)))[order]


class _Column(NamedTuple):
    """One column of a table of events."""

    name: str
    field: Field
    number: np.dtype | None  # None: it is no integer
    dynamic: bool
    companion: _Companion | None  # of the column ``<name>_name``
    kind: np.dtype | None  # as it lies there; None: bytes

    @property
    def type(self) -> pa.DataType:
        """Of its Arrow arrays."""
        field = self.field
        if self.number is not None:
            return _columns.arrow_type(self.number)
        if field.text:
            return pa.string()
        if self.dynamic:
            return pa.list_(_columns.arrow_type(_dynamic_element(field)))
        element = _element(field)
        if element is not None:
            return pa.list_(_columns.arrow_type(element), field.size // element.itemsize)
        return pa.binary(field.size or -1)  # Parquet has none of no bytes


class EventRows:
    """Decodes the events of one format. One thread at a time."""

    def __init__(self, event: EventFormat) -> None:
        self.event = event
        self.row_bytes = max(event.fixed_size, 8)
        self.dynamic = any(field.dynamic for field in event.fields)
        """Whether ``arrays`` needs more than what ``extract`` finds."""
        by_name = {namer.field: namer for namer in namers(event.print_fmt)}
        names = _column_names(event)
        taken = set(names.values())
        self._plan: list[_Column] = []
        for field in (*event.common, *event.fields):
            if field.name == "common_type":
                continue
            name, number, dynamic = names[field.name], _number(field), bool(field.dynamic)
            companion = None
            if field.name in by_name and field in event.fields and number is not None and name + "_name" not in taken:
                companion = _Companion(by_name[field.name].name)
            kind = _U32 if dynamic else None if number is None else _integer(field.size, signed=number.kind == "i")
            self._plan.append(_Column(name, field, number, dynamic, companion, kind))

    @property
    def types(self) -> list[tuple[str, pa.DataType]]:
        """The columns that ``arrays`` makes."""
        types = []
        for column in self._plan:
            types.append((column.name, column.type))
            if column.companion is not None:
                types.append((column.name + "_name", _columns.LABEL))
        return types

    def place(self, field: Field) -> int:
        """Which of the columns of ``extract`` is that of ``field``."""
        return next(place for place, column in enumerate(self._plan) if column.field is field)

    def extract(self, rows: Rows) -> list[np.ndarray]:
        """What has a fixed place in ``rows``: int[n] or uint8[n, size] for each field, in the order of the plan.

        Best done while the rows are in the cache: column after column of many rows reads all their memory each time.
        """
        return [
            rows.block(field.offset, field.size)
            if kind is None
            else rows.column(field.offset, kind).astype(number or kind, copy=False)
            for _, field, number, _, _, kind in self._plan
        ]

    def arrays(self, columns: Sequence[np.ndarray], raws: Raws, count: Count) -> Named:
        """Arrow columns of what ``extract`` found; what is variable is taken from ``raws``.

        ``raws.size`` must be at least ``row_bytes``. ``count`` is told of anomalies.
        """
        named: Named = []
        for (name, field, number, dynamic, companion, _), values in zip(self._plan, columns, strict=True):
            if dynamic:
                named.append((name, _dynamic(values, raws, field, count)))
            elif number is None:
                named.append((name, _array(values, field)))
            else:
                named.append((name, _columns.numbers(values)))
                if companion is not None:
                    named.append((name + "_name", companion.column(values)))
        return named


def joined(pieces: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Columns of several pieces, each end to end."""
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]


def _column_names(event: EventFormat) -> dict[str, str]:
    """Field → column; a field never takes the name of a common column."""
    names = {field.name: field.name for field in event.common}
    taken = {*COMMON, *RECORD_COMMON, *names}
    for field in event.fields:
        name = f"field_{field.name}" if field.name in taken else field.name
        while name in taken:
            name += "_"
        taken.add(name)
        names[field.name] = name
    return names


def _number(field: Field) -> np.dtype | None:
    """What a field becomes that is one integer; addresses have 64 bits, whatever the machine."""
    if field.array or field.dynamic or field.size not in {1, 2, 4, 8}:
        return None
    return _integer(8, signed=False) if field.address else _integer(field.size, signed=field.signed)


@cache
def _integer(size: int, *, signed: bool) -> np.dtype:
    return np.dtype(f"{'i' if signed else 'u'}{size}")


def _array(values: np.ndarray, field: Field) -> pa.Array:
    """A field that is no integer, from its bytes."""
    if field.text:
        ends = np.arange(1, len(values) + 1, dtype=np.int64) * field.size
        return _columns.strings(values.reshape(-1), ends - field.size, ends)
    element = _element(field)
    if element is not None:
        return _columns.fixed_list(values.view(element))
    return _columns.fixed_bytes(values)


def _element(field: Field) -> np.dtype | None:
    """What an array of integers is made of."""
    size = _element_bytes(field.type) if field.array and field.size else 0
    return _integer(size, signed=field.signed) if size and field.size % size == 0 else None


def _element_bytes(kind: str) -> int:
    """Bytes of one element of a C type; 0 if it is no integer."""
    if "*" in kind:
        return 8
    words = [word for word in re.findall(r"\w+", kind) if word not in {"const", "unsigned", "signed", "volatile"}]
    if not words:
        return 4
    return _SIZES.get("long" if words[0] == "long" else words[-1], 0)


_UNSIGNED = frozenset({"unsigned", "u8", "u16", "u32", "u64", "__u8", "__u16", "__u32", "__u64", "size_t"})
# the format's "signed:" is that of the word that says where the array is


def _dynamic_element(field: Field) -> np.dtype:
    """What a variable array that is no text is made of: bytes, if nobody knows."""
    kind = field.type.split(None, 1)[-1].replace("[]", "")
    size = _element_bytes(kind)
    return _integer(max(size, 1), signed=size > 1 and kind.split()[0] not in _UNSIGNED)


def _dynamic(words: np.ndarray, raws: Raws, field: Field, count: Count) -> pa.Array:
    """Variable data: ``words`` hold length << 16 | offset. Null where that points outside of the event."""
    place = words.astype(np.int64)
    begin = place & 0xFFFF
    if field.dynamic == "relative":
        begin = begin + field.offset + 4
    length = place >> 16
    element = np.dtype(np.uint8) if field.text else _dynamic_element(field)
    valid = (begin + length <= raws.size) & (length % element.itemsize == 0)
    if not valid.all():
        count("dynamic_field_outside_record", int(np.count_nonzero(~valid)))
    begin = np.where(valid, raws.at + begin, 0)
    length = np.where(valid, length, 0)
    if field.text:
        length = _without_nul(raws.data, begin, length)
    flat, offsets = _columns.pick(raws.data, begin, begin + length)
    if field.text:
        return _columns.strings(flat, offsets[:-1], offsets[1:], valid)
    return _columns.lists(flat.view(element), offsets // element.itemsize, valid)


def _without_nul(data: Bytes, begin: Places, length: Places) -> Places:
    """``length`` without the NUL that the kernel ends strings with: to look for it later costs a copy of them all."""
    if not len(data):
        return length
    last = data.take(begin + length - 1, mode="clip")
    shorter: Places = length - ((last == 0) & (length > 0))
    return shorter
