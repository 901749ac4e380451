"""Stack traces in text: the lines below an event → distinct call chains."""

import re

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats import Sink
from tracekit.formats._text_bytes import Mask, Places, Text

MAX_REMEMBERED_BYTES = 64 << 20
"""Of stacks; after that, one seen before may get a second number."""

# tracefs, with and without sym-addr; trace-cmd; then perf: address first, symbol and file behind it
_ARROW = re.compile(rb"\s*=> *(?P<symbol>.*?)(?: [(<](?:0x)?(?P<ip>[0-9a-f]+)[)>])?\s*$")
_FRAME = re.compile(rb"\s*(?P<ip>[0-9a-f]+)(?: (?P<symbol>.*?))?(?: \([^()]*\))?\s*$")
_USER = re.compile(rb"\s*=> *<(?:0x)?(?P<ip>[0-9a-f]+)>\s*$")

SCHEMA = pa.schema([("callchain_id", pa.uint32()), ("ips", pa.list_(pa.uint64())), ("symbols", pa.list_(pa.string()))])


def is_frame(text: Text, starts: Places, ends: Places, *, perf: bool) -> Mask:
    """Which lines are stack entries."""
    if not perf:
        return text.equals(starts, b" => ") | text.equals(starts, b"=> ")
    indented: Mask = (text.bytes[starts] == ord("\t")) & (ends > starts)
    rest = np.flatnonzero((text.bytes[starts] == ord(" ")) & ~indented)
    if len(rest):  # editors turn the tab into spaces; a task or a time has no hexadecimal number and a space behind it
        place = text.skip_spaces(starts[rest])
        _, length = text.hexadecimal(place)
        after = np.minimum(place + length, ends[rest])
        indented[rest] = (length >= 8) & (text.bytes[after] == ord(" ")) & (place - starts[rest] >= 8)
    return indented


class Chains:
    """Numbers distinct stacks in the order of the file and writes each to ``callchains`` once."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._ids: dict[bytes, int] = {}
        self._bytes = 0
        self._count = 0

    def number(self, text: Text, begins: Places, stops: Places) -> np.ndarray:
        """uint32[n]: the numbers of the stacks at ``[begins[i], stops[i])``."""
        ids = np.empty(len(begins), np.uint32)
        fresh: list[tuple[int, bytes]] = []
        for row, (begin, stop) in enumerate(zip(begins.tolist(), stops.tolist(), strict=True)):
            stack = text.raw[begin:stop]
            known = self._ids.get(stack)
            if known is None:
                known = self._count
                self._count += 1
                self._remember(stack, known)
                fresh.append((known, stack))
            ids[row] = known
        self._write(fresh)
        return ids

    def _remember(self, stack: bytes, number: int) -> None:
        self._bytes += len(stack)
        if self._bytes > MAX_REMEMBERED_BYTES:
            self._ids.clear()
            self._bytes = len(stack)
        self._ids[stack] = number

    def _write(self, fresh: list[tuple[int, bytes]]) -> None:
        if not fresh:
            return
        frames = [[frame(line) for line in stack.split(b"\n") if line.strip()] for _, stack in fresh]
        ends = np.cumsum([0, *map(len, frames)])
        known = np.array([any(ip is not None for ip, _ in stack) for stack in frames], bool)
        flat = [entry for stack in frames for entry in stack]
        ips = _columns.numbers(
            np.array([ip or 0 for ip, _ in flat], np.uint64), np.array([ip is not None for ip, _ in flat], bool)
        )
        symbols = _columns.texts([symbol or "" for _, symbol in flat])
        arrays = [
            _columns.numbers(np.array([number for number, _ in fresh], np.uint32)),
            _lists(ips, ends, known),
            _lists(symbols, ends, np.ones(len(fresh), bool)),
        ]
        self.sink.append("callchains", pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))


def _lists(inner: pa.Array, ends: np.ndarray, valid: Mask) -> pa.Array:
    bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.Array.from_buffers(pa.list_(inner.type), len(valid), [bitmap, offsets], -1, 0, [inner])


def frame(line: bytes) -> tuple[int | None, str | None]:
    """Address and symbol of one entry; None where not printed."""
    found = _USER.match(line) or (_ARROW.match(line) if b"=>" in line[:8] else _FRAME.match(line))
    if found is None:
        return None, line.strip().decode("utf-8", "replace")
    groups = found.groupdict()
    address = int(groups["ip"], 16) if groups["ip"] else None
    symbol = groups.get("symbol")
    if address is not None and address >> 64:
        return None, line.strip().decode("utf-8", "replace")
    return address, symbol.decode("utf-8", "replace") if symbol else None
