"""Addresses → names: the copies of /proc/kallsyms, printk_formats and saved_cmdlines that a trace.dat file holds.

Source: trace-cmd.dat.v7.5.txt; libtraceevent event-parse.c find_func(): an address has the name of the nearest symbol
at or below it.
"""

import re
from functools import cached_property

import numpy as np
import pyarrow as pa

from tracekit import _columns

PID_MAX = 1 << 22  # PID_MAX_LIMIT on 64 bit, include/linux/threads.h
_SYMBOL = re.compile(rb"^([0-9a-fA-F]{1,16}) (\S) ([^\s$]\S*)(?:[ \t]+(\[[^\]\n]*\]))?\s*$", re.MULTILINE)
_PRINTK = re.compile(rb'^0x([0-9a-fA-F]{1,16}) : "(.*)"\s*$', re.MULTILINE)
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


class Symbols:
    """Names of kernel addresses; nothing is parsed before the first is asked for."""

    def __init__(self, kallsyms: bytes, printk: bytes) -> None:
        self._kallsyms = kallsyms
        self._printk = printk
        self._seen: dict[int, int] = {}
        self._texts: list[str] = []
        self._code_of: dict[str, int] = {}

    @cached_property
    def _table(self) -> tuple[np.ndarray, list[bytes]]:
        """uint64[n] addresses, sorted, and the names at them."""
        found: dict[int, bytes] = {}
        for line in _SYMBOL.finditer(self._kallsyms):
            found.setdefault(int(line[1], 16), line[3])
        self._kallsyms = b""
        found.pop(0, None)  # what /proc/kallsyms shows to those without the right to see addresses
        order = sorted(found)
        return np.array(order, np.uint64), [found[address] for address in order]

    @cached_property
    def printk_formats(self) -> dict[int, str]:
        """Format strings that trace_printk() keeps out of the buffer, by address."""
        return {
            int(line[1], 16): _ESCAPE.sub(_unescaped, line[2].decode("utf-8", "replace"))
            for line in _PRINTK.finditer(self._printk)
        }

    def name(self, address: int) -> str | None:
        """Name of the symbol at or below ``address``."""
        addresses, names = self._table
        place = int(np.searchsorted(addresses, np.uint64(address), "right")) - 1
        return names[place].decode("utf-8", "replace") if place >= 0 else None

    def column(self, addresses: np.ndarray) -> pa.Array:
        """Names of uint64[n] ``addresses``, null where there is none."""
        distinct, inverse = np.unique(addresses, return_inverse=True)
        table, names = self._table
        places = np.searchsorted(table, distinct, "right") - 1
        codes = np.empty(len(distinct), np.int32)
        for row, place in enumerate(places.tolist()):
            codes[row] = -1 if place < 0 else self._code(place, names)
        return _columns.labels(codes[inverse.reshape(-1)], self._texts)

    def _code(self, place: int, names: list[bytes]) -> int:
        code = self._seen.get(place)
        if code is None:
            text = names[place].decode("utf-8", "replace")
            code = self._seen[place] = self._code_of.setdefault(text, len(self._texts))
            if code == len(self._texts):
                self._texts.append(text)
        return code


def _unescaped(found: re.Match[str]) -> str:
    return _ESCAPED.get(found[1], found[0])


class Comms:
    """Names of tasks: one for the whole file, as the kernel remembered it at the end."""

    def __init__(self, saved: bytes) -> None:
        self.names: list[str] = ["<idle>"]  # what trace-cmd prints for task 0
        known: dict[int, int] = {0: 0}
        code_of = {"<idle>": 0}
        for line in saved.split(b"\n"):
            number, _, comm = line.partition(b" ")
            if not number.isdigit() or int(number) > PID_MAX or not comm or comm == b"<...>":
                continue
            name = comm.decode("utf-8", "replace")
            code = code_of.setdefault(name, len(self.names))
            if code == len(self.names):
                self.names.append(name)
            known[int(number)] = code
        self._codes = np.full(max(known) + 3, -1, np.int32)  # of task −1 first, and of one too many last: unknown
        self._codes[1:][list(known)] = list(known.values())

    def column(self, tid: np.ndarray) -> pa.Array:
        """Names of int32[n] ``tid``, null where unknown."""
        return _columns.labels(self._codes.take(tid + np.int32(1), mode="clip"), self.names)
