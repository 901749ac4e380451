"""trace_printk() events: a pointer to a format string, and the arguments as the kernel packed them.

Source: lib/vsprintf.c vbin_printf(), bstr_printf(): numbers stand at multiples of their size, eight-byte ones at
multiples of four; strings stand in place, up to their NUL.
"""

import re
import struct

from tracekit.formats._trace_dat_symbols import Symbols

_CONVERSION = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>\d+|\*)?(?:\.(?P<precision>\d+|\*))?(?P<size>hh|h|ll|l|L|z|Z|t|q)?"
    r"(?P<kind>[a-zA-Z%])(?P<more>(?<=p)[A-Za-z0-9]*)?"
)
_CODES = {1: "bB", 2: "hH", 4: "iI", 8: "qQ"}
_POINTERS = "sSfFxKe"
"""Kinds of %p whose pointer is stored; of all others the finished text is."""


class _Arguments:
    """The packed arguments, one after another."""

    def __init__(self, data: bytes, long_bytes: int, order: str) -> None:
        self.data = data
        self.long_bytes = long_bytes
        self.order = order
        self.position = 0

    def number(self, size: int, *, signed: bool) -> int:
        align = min(size, 4)
        self.position = (self.position + align - 1) // align * align
        field = self.data[self.position : self.position + size]
        self.position += size
        code = _CODES[size][not signed]
        return int(struct.unpack(self.order + code, field)[0]) if len(field) == size else 0

    def string(self) -> str:
        end = self.data.find(b"\0", self.position)
        end = len(self.data) if end < 0 else end
        text = self.data[self.position : end].decode("utf-8", "replace")
        self.position = end + 1
        return text


def format_binary(symbols: Symbols, pattern_at: int, data: bytes, long_bytes: int, order: str) -> str:
    """The text of one event, without the newline at its end; where the format is unknown, its address."""
    pattern = symbols.printk_formats.get(pattern_at)
    if pattern is None:
        return f"{pattern_at:#x}"
    arguments = _Arguments(data, long_bytes, order)
    return _CONVERSION.sub(lambda found: _print(found, arguments, symbols), pattern).removesuffix("\n")


def _print(found: re.Match[str], arguments: _Arguments, symbols: Symbols) -> str:
    kind = found["kind"]
    if kind == "%":
        return "%"
    width = arguments.number(4, signed=True) if found["width"] == "*" else int(found["width"] or 0)
    left = "-" in found["flags"] or width < 0
    precision = arguments.number(4, signed=True) if found["precision"] == "*" else found["precision"]
    text = _value(kind, found, arguments, symbols)
    if kind == "s" and precision is not None:
        text = text[: max(int(precision), 0)]
    fill = "0" if "0" in found["flags"] and kind != "s" and not left else " "
    room = min(abs(width), 1 << 10)
    return (text.ljust(room) if left else text.rjust(room, fill)) + (found["more"] or "" if kind != "p" else "")


def _value(kind: str, found: re.Match[str], arguments: _Arguments, symbols: Symbols) -> str:
    if kind == "s":
        return arguments.string()
    if kind == "p":
        return _pointer(found["more"] or "", arguments, symbols)
    size = {"hh": 1, "h": 2, None: 4, "l": arguments.long_bytes, "z": arguments.long_bytes, "t": arguments.long_bytes}
    number = arguments.number(1 if kind == "c" else size.get(found["size"], 8), signed=kind in "di")
    if kind == "c":
        return chr(number)
    prefix = "#" if "#" in found["flags"] else ""
    return format(number, prefix + {"x": "x", "X": "X", "o": "o"}.get(kind, "d") if kind in "xXo" else "d")


def _pointer(kind: str, arguments: _Arguments, symbols: Symbols) -> str:
    if kind[:1] and kind[0] not in _POINTERS:
        return arguments.string()
    address = arguments.number(arguments.long_bytes, signed=False)
    if kind[:1] and kind[0] in "sSfF":
        return symbols.name(address) or f"{address:#x}"
    return f"{address:0{2 * arguments.long_bytes}x}"
