"""Events whose format is not known, probes above all: ``(address) key=value …`` → one column per key.

Two rounds over the text: the first learns the shapes of the lines and what the values of each key are, the second makes
columns of one type for the whole file. What is not of the form key=value stays in the column ``text``.
"""

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats._event_rows import COMMON, RECORD_COMMON
from tracekit.formats._text_bytes import Mask, Places, Text, Vocabulary
from tracekit.formats._text_columns import Named, labels, strings
from tracekit.formats._text_match import Template, Value
from tracekit.formats._text_print import Piece, literal

MAX_SHAPES = 64
_MAX_LEARNT_BYTES = 4096
_MAX_KEYS = 64

_PROBE = re.compile(r"\((?P<first>[^()<]+?)(?: <- (?P<second>[^()<]+?))?\)(?= |$)")
_KEY = re.compile(r"(?P<before>^|[\s,;({\[])(?P<key>[A-Za-z_][\w.]*)(?P<sign>=|: )")
_NUMBER = re.compile(r"(?P<prefix>0x)?(?P<digits>-?\d{1,20}|[0-9a-fA-F]{1,16})(?= \(-?\d+\)|[\s,;)}\]]|$)")
_FIELD_NUMBER = re.compile(r"0x(?P<digits>[0-9a-f]{1,16}) \(-?\d+\)(?=\s|$)")
_ADDRESS = re.compile(r"(?:0x)?[0-9a-f]{6,16}$")
_ALONE = re.compile(r"[\s,;]*")


class Shape(NamedTuple):
    """One way in which lines of an event are written."""

    template: Template
    keys: tuple[str, ...]  # of each value; "": the value repeats another
    whole: bool  # whether key=value says it all


class KeyKinds:
    """What the values of one key were, over all lines."""

    def __init__(self) -> None:
        self.hexadecimal = self.decimal = self.text = self.negative = self.beyond_int64 = self.labelled = False

    def see(self, piece: Piece, value: Value, rows: np.ndarray) -> None:
        """Take in values of a shape."""
        if piece.kind == "decimal":
            self.decimal = True
            number, negative = value.number[rows], value.negative[rows]
            self.negative |= bool(negative.any())
            self.beyond_int64 |= bool(((number >> np.uint64(63) != 0) & ~negative).any())
        elif piece.kind == "hex":
            self.hexadecimal = True
        elif piece.kind == "skip":
            self.labelled = True
        else:
            self.text = True

    @property
    def type(self) -> pa.DataType:
        """0x… is uint64, decimal int64; string where the lines allow neither."""
        if self.labelled:
            return _columns.LABEL
        if self.text or (self.negative and (self.hexadecimal or self.beyond_int64)):
            return pa.string()
        return pa.uint64() if self.hexadecimal or self.beyond_int64 else pa.int64()


class GenericEvent:
    """The lines of one event."""

    def __init__(self, *, return_address_first: bool) -> None:
        self.return_address_first = return_address_first
        self.shapes: list[Shape] = []
        self.kinds: dict[str, KeyKinds] = {}
        self.has_text = False
        self._words: dict[str, Vocabulary] = {}

    def survey(self, text: Text, at: Places, end: Places) -> None:
        """First round: learn from these lines."""
        rest = self._known(text, at, end, np.arange(len(at)))
        while len(rest) and len(self.shapes) < MAX_SHAPES:
            row = rest[0]
            line = text.raw[at[row] : min(end[row], at[row] + _MAX_LEARNT_BYTES + 1)]
            shape = learn(line, return_address_first=self.return_address_first)
            if shape is None or any(known.template.pieces == shape.template.pieces for known in self.shapes):
                self.has_text = True
                rest = rest[1:]
                continue
            self.shapes.append(shape)
            rest = self._see(shape, text, at, end, rest)
        self.has_text |= bool(len(rest))

    def _known(self, text: Text, at: Places, end: Places, rest: np.ndarray) -> np.ndarray:
        for shape in self.shapes:
            if len(rest):
                rest = self._see(shape, text, at, end, rest)
        return rest

    def _see(self, shape: Shape, text: Text, at: Places, end: Places, rest: np.ndarray) -> np.ndarray:
        fits, values = shape.template.match(text, at[rest], end[rest])
        rows = np.flatnonzero(fits)
        if len(rows) == 0:
            return rest
        self.has_text |= not shape.whole
        for key, piece, value in zip(shape.keys, shape.template.values, values, strict=True):
            if key:
                self.kinds.setdefault(key, KeyKinds()).see(piece, value, rows)
        return rest[~fits]

    def columns(self, text: Text, at: Places, end: Places) -> Named:
        """Second round: the columns of these lines."""
        parts: dict[str, _Part] = {}
        unsaid = np.ones(len(at), bool)
        rest = np.arange(len(at))
        for shape in self.shapes:
            if len(rest) == 0:
                break
            fits, values = shape.template.match(text, at[rest], end[rest])
            if not fits.any():
                continue
            rows = np.flatnonzero(fits)
            unsaid[rest[rows]] = not shape.whole
            for key, piece, value in zip(shape.keys, shape.template.values, values, strict=True):
                if key:
                    parts.setdefault(key, _Part(len(at))).put(piece, value, rows, rest)
            rest = rest[~fits]
        named = self._named(text, parts, len(at))
        if self.has_text:
            named.append(("text", _sparse(text, at, end, unsaid)))
        return named

    def _named(self, text: Text, parts: dict[str, "_Part"], count: int) -> Named:
        named: Named = []
        taken = {*COMMON, *RECORD_COMMON, "text"}
        for key, kinds in self.kinds.items():
            name = f"field_{key}" if key in taken else key
            while name in taken:
                name += "_"
            taken.add(name)
            part = parts.get(key) or _Part(count)
            kind = kinds.type
            if kind == _columns.LABEL:
                words = self._words.setdefault(key, Vocabulary())
                named.append((name, labels(text, words, part.starts, part.ends, ~part.there)))
            elif kind == pa.string():
                named.append((name, _sparse(text, part.starts, part.ends, part.there)))
            else:
                number = part.number if kind == pa.uint64() else part.number.view(np.int64)
                named.append((name, _columns.numbers(number, part.there)))
        return named


class _Part:
    """The values of one key in some lines."""

    def __init__(self, count: int) -> None:
        self.number = np.zeros(count, np.uint64)
        self.starts = np.zeros(count, np.int64)
        self.ends = np.zeros(count, np.int64)
        self.there: Mask = np.zeros(count, bool)

    def put(self, piece: Piece, value: Value, rows: np.ndarray, rest: np.ndarray) -> None:
        target = rest[rows]
        self.there[target] = True
        # a number in a column of strings is shown as it was printed
        self.starts[target] = value.starts[rows] - (2 if piece.kind == "hex" and piece.exact else 0)
        self.ends[target] = value.ends[rows]
        if len(value.number):
            self.number[target] = value.number[rows]


def _sparse(text: Text, starts: Places, ends: Places, there: Mask) -> pa.Array:
    """Strings where ``there``, null elsewhere."""
    rows = np.flatnonzero(there)
    found = strings(text, starts[rows], ends[rows])
    if len(rows) == len(there):
        return found
    place = np.zeros(len(there), np.int64)
    place[rows] = np.arange(len(rows))
    return found.take(_columns.numbers(place, there)) if len(rows) else pa.nulls(len(there), pa.string())


def learn(line: bytes, *, return_address_first: bool) -> Shape | None:
    """The shape of a line; None if it has none that a table can hold."""
    try:
        message = line.rstrip(b" ").decode("ascii")
    except UnicodeDecodeError:
        return None
    if len(message) > _MAX_LEARNT_BYTES:
        return None
    pieces: list[Piece] = []
    keys: list[str] = []
    position = 0
    probe = _PROBE.match(message)
    if probe is not None:
        position = _probe(probe, pieces, keys, return_address_first=return_address_first)
    whole = True
    found = _KEY.search(message, position)
    while found is not None and len(keys) < _MAX_KEYS:
        between = message[position : found.start("key")]
        whole &= _ALONE.fullmatch(between) is not None
        following = _KEY.search(message, found.end())
        key = _unused(found["key"], keys)
        _append(pieces, between + message[found.start("key") : found.end()])
        position = _value(message, found.end(), following, key, pieces, keys)
        found = _KEY.search(message, position)
    if not keys:
        return None
    whole &= _ALONE.fullmatch(message[position:]) is not None
    _append(pieces, message[position:])
    return Shape(Template(pieces), tuple(keys), whole)


def _unused(key: str, keys: list[str]) -> str:
    while key in keys:
        key += "_"
    return key


def _append(pieces: list[Piece], text: str) -> None:
    if text and pieces and pieces[-1].kind == "literal":
        text = pieces.pop().literal.decode() + text
    if text:
        pieces.append(literal(text))


def _probe(probe: re.Match[str], pieces: list[Piece], keys: list[str], *, return_address_first: bool) -> int:
    """``(address)`` or ``(function <- caller)``.

    perf and trace-cmd print the probed function first, as the print fmt says; the kernel's own print_kretprobe_event()
    (kernel/trace/trace_kprobe.c) prints the return address first.
    """
    names = ["__probe_ip"]
    if probe["second"] is not None:
        names = ["__probe_ret_ip", "__probe_func"] if return_address_first else ["__probe_func", "__probe_ret_ip"]
    for name, address in zip(names, (probe["first"], probe["second"]), strict=False):
        _append(pieces, "(" if len(keys) == 0 else " <- ")
        if _ADDRESS.match(address):
            if address.startswith("0x"):
                _append(pieces, "0x")
            pieces.append(Piece("hex", name, exact=address.startswith("0x")))
            keys.append(name)
        else:
            pieces.append(Piece("skip", name))
            keys.append(name + "_name")
    _append(pieces, ")")
    return probe.end()


def _value(  # noqa: PLR0913, PLR0917 - where it is, and what it adds to
    message: str, at: int, following: re.Match[str] | None, key: str, pieces: list[Piece], keys: list[str]
) -> int:
    """Append the value at ``at``; returns where it ends."""
    keys.append(key)
    both = _FIELD_NUMBER.match(message, at)
    if both is not None:  # options/fields: 0x38 (56)
        _append(pieces, "0x")
        pieces.append(Piece("hex", key))
        _append(pieces, " (")
        pieces.append(Piece("decimal"))
        keys.append("")
        _append(pieces, ")")
        return both.end()
    number = _NUMBER.match(message, at)
    if number is not None and number["prefix"] and not number["digits"].startswith("-"):
        _append(pieces, "0x")
        pieces.append(Piece("hex", key))
        return number.end()
    if number is not None and not number["prefix"] and re.fullmatch(r"-?\d{1,18}", number["digits"]):
        pieces.append(Piece("decimal", key))
        return number.end()
    if message[at : at + 1] == '"' and (close := message.find('"', at + 1)) > 0:
        _append(pieces, '"')
        pieces.append(Piece("string", key))
        _append(pieces, '"')
        return close + 1
    end = len(message) if following is None else following.start()
    end = at + len(message[at:end].rstrip(" ,;"))
    pieces.append(Piece("string", key))
    return end
