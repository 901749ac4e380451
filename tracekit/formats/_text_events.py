"""Which table a line's event goes to, and how its text is read."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tracekit import _columns
from tracekit.formats import _text_known as known_formats
from tracekit.formats._text_bytes import Places, Text, Vocabulary
from tracekit.formats._text_columns import Named, labels, strings
from tracekit.formats._text_generic import GenericEvent
from tracekit.formats._text_known import KnownEvent
from tracekit.formats._text_match import Template
from tracekit.formats._text_print import Piece, literal

FUNCTION, STACK, USER_STACK, PRINT, RAW, SAMPLE = "function", "stack", "user_stack", "print", "raw", "sample"
CALL, RETURN = "funcgraph_entry", "funcgraph_exit"
UNKNOWN = "unknown"
"""System of events whose text does not name one, and fits no format of exactly one."""

Write = Callable[[str, str, np.ndarray, Named], None]  # table, system:event, rows, columns


class Name(NamedTuple):
    """What the front of a line says of its event."""

    system: str  # "" if not printed
    event: str
    form: str
    instance: str = ""  # trace-cmd's name of another buffer than the main one


class Dialect(NamedTuple):
    """What differs between the programs that print traces."""

    hashed_pointers: bool  # %p is a hash
    return_address_first: bool  # of return probes


def safe(name: str) -> str:
    """A name from the file as a file name: nothing in it may lead elsewhere."""
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "_-+.") else "_" for char in name)[:120]
    return kept if kept.strip(".") else "_" + kept


class EventLines:
    """All lines that name one event in one way."""

    def __init__(self, name: Name, dialect: Dialect) -> None:
        self.name = name
        self.folder = f"instances/{safe(name.instance)}/" if name.instance else ""
        system, event = _owner(name)
        self.generic_system = name.system or (
            system if name.form in {known_formats.ENTER, known_formats.EXIT} else UNKNOWN
        )
        self.event = event
        self.known = None
        if system and known_formats.systems(event):
            self.known = KnownEvent(system, event, name.form, hashed_pointers=dialect.hashed_pointers)
        self.generic = GenericEvent(return_address_first=dialect.return_address_first)
        self.needs_second_round = False
        self.unfit = 0
        self._special = _SPECIAL.get(name.form)
        self._words = [Vocabulary(), Vocabulary()]

    def read(self, text: Text, at: Places, end: Places, write: Write | None, *, second: bool) -> None:
        """Take in lines whose messages are ``[at, end)``. First round: write what is known; second: the rest."""
        rows = np.arange(len(at))
        if self._special is not None:
            if write is not None and not second:
                table, name = self._special
                self.write_special(text, at, end, write, table, name)
            return
        if self.known is not None:
            rows = self._read_known(text, at, end, write, second=second)
        if len(rows) == 0:
            return
        self.needs_second_round = True
        if not second:
            self.generic.survey(text, at[rows], end[rows])
        elif write is not None:
            name = f"{self.generic_system}:{self.event}"
            write(self.folder + self._generic_table(), name, rows, self.generic.columns(text, at[rows], end[rows]))

    def _generic_table(self) -> str:
        table = f"events/{safe(self.generic_system)}/{safe(self.event)}"
        # lines that do not fit the format that the others do: their columns are their own
        return (
            table + "_"
            if self.known is not None and self.known.chosen and self.known.system == self.generic_system
            else table
        )

    def _read_known(self, text: Text, at: Places, end: Places, write: Write | None, *, second: bool) -> np.ndarray:
        """Write the lines that fit; returns the others."""
        assert self.known is not None
        # no format starts with a bracket: these are probes that happen to be called like a tracepoint
        probe = text.bytes[at] == ord("(")
        rows = np.flatnonzero(~probe)
        if len(rows) == 0:
            return np.arange(len(at))
        fits, values = self.known.match(text, at[rows], end[rows])
        fitting = np.flatnonzero(fits)
        if not second:
            self.unfit += len(rows) - len(fitting)
            if len(fitting) and write is not None:
                known = self.known
                columns = known.columns(text, values, fitting)
                table = f"events/{safe(known.system)}/{safe(known.name)}"
                write(self.folder + table, f"{known.system}:{known.name}", rows[fitting], columns)
        return np.sort(np.concatenate((np.flatnonzero(probe), rows[~fits])))

    def write_special(self, text: Text, at: Places, end: Places, write: Write, table: str, name: str) -> None:  # noqa: PLR0913, PLR0917
        """Lines that are no tracepoint: functions, stacks, marks, samples."""
        rows = np.arange(len(at))
        table = self.folder + table
        if self.name.form == FUNCTION:
            write(table, name, rows, self._function(text, at, end))
        elif self.name.form in {CALL, RETURN}:
            write(table, name, rows, self._call(text, at, end))
        elif self.name.form == PRINT:
            write(table, name, rows, [("buf", strings(text, at, end))])
        elif self.name.form == SAMPLE:
            sample = safe(self.name.event)
            write(f"samples/{sample}", self.name.event, rows, self._sample(text, at, end))
        elif self.name.form == RAW:
            write(f"events/{UNKNOWN}/{safe(self.name.event)}", f"{UNKNOWN}:{self.name.event}", rows, [])
        else:
            write(table, name, rows, [])

    def _function(self, text: Text, at: Places, end: Places) -> Named:
        """``function <-caller``, of which trace-cmd shows the function only."""
        arrow = text.find(at, ord("<"), end)
        has = (arrow < end) & text.equals(np.minimum(arrow, end), b"<-")
        stop = text.strip(at, np.where(has, arrow, end))
        begin = np.where(has, arrow + 2, end)
        begin = np.where(text.bytes[np.minimum(begin, end)] == ord("-"), begin + 1, begin)
        begin = np.minimum(text.skip_spaces(begin), end)
        return [
            ("ip_name", labels(text, self._words[0], at, stop)),
            ("parent_ip_name", labels(text, self._words[1], begin, end, ~has)),
        ]

    def _call(self, text: Text, at: Places, end: Places) -> Named:
        """``+ 85.728 us  |    function();``: trace-cmd prints a call that calls nothing and its end as one line."""
        bar = np.minimum(text.find(at, ord("|"), end), end)
        number = text.skip_spaces(np.where(_DIGITS[text.bytes[at]], at, np.minimum(at + 1, end)))
        whole, length = text.decimal(number)
        part, digits = text.decimal(np.minimum(number + length + 1, end))
        timed = (
            (length > 0) & (length < 10) & (digits == 3) & (text.bytes[np.minimum(number + length, end)] == ord("."))
        )
        duration = whole.astype(np.int64) * 1000 + part.astype(np.int64)
        function = np.minimum(text.skip_spaces(np.minimum(bar + 1, end)), end)
        depth = (function - bar - 3) // 2
        columns = [("depth", _columns.numbers(depth.astype(np.int32), (bar < end) & (depth >= 0)))]
        if self.name.form == CALL:
            stop = np.minimum(text.word_end(function), end)
            columns.append(("func_name", labels(text, self._words[0], function, stop, stop <= function)))
        columns.append(("duration_ns", _columns.numbers(duration, timed & (number < bar))))
        return columns

    def _sample(self, text: Text, at: Places, end: Places) -> Named:
        fits, values = _SAMPLE_TEXT.match(text, at, end)
        ip = np.where(fits, values[0].number, np.uint64(0))
        starts, ends = np.where(fits, values[1].starts, end), np.where(fits, values[1].ends, end)
        return [("ip", _columns.numbers(ip, fits)), ("symbol", labels(text, self._words[0], starts, ends, ~fits))]


_SPECIAL = {
    FUNCTION: ("events/ftrace/function", "ftrace:function"),
    STACK: ("events/ftrace/kernel_stack", "ftrace:kernel_stack"),
    USER_STACK: ("events/ftrace/user_stack", "ftrace:user_stack"),
    PRINT: ("events/ftrace/print", "ftrace:print"),
    RAW: ("", ""),
    SAMPLE: ("", ""),
    CALL: ("events/ftrace/funcgraph_entry", "ftrace:funcgraph_entry"),
    RETURN: ("events/ftrace/funcgraph_exit", "ftrace:funcgraph_exit"),
}
_DIGITS = np.isin(np.arange(256), np.frombuffer(b"0123456789 ", np.uint8))
_SAMPLE_TEXT = Template(
    [Piece("hex", "ip"), literal(" "), Piece("string", "symbol"), literal(" ("), Piece("skip"), literal(")")]
)

_SAMPLED = re.compile(
    r"(?:cpu-)?(?:cycles|instructions|clock|branches|branch-misses|cache-misses|cache-references|ref-cycles|bus-cycles)"
    r"|task-clock|page-faults|faults|context-switches|cs|cpu-migrations|migrations|minor-faults|major-faults|dummy"
    r"|alignment-faults|emulation-faults|bpf-output|LLC-.*|L1-.*|dTLB-.*|iTLB-.*|stalled-cycles-.*"
)


def perf_name(printed: str) -> Name:
    """What perf script prints before the last colon: ``system:event``, or the name of a hardware or software event."""
    system, colon, event = printed.partition(":")
    if not colon or "/" in printed or _SAMPLED.fullmatch(system) or not event:
        return Name("", printed, SAMPLE)
    return Name(system, event, known_formats.EVENT)


def _owner(name: Name) -> tuple[str, str]:
    """The one system whose event this may be ("" if there is none), and the event's name."""
    if name.form in {known_formats.ENTER, known_formats.EXIT}:
        return "syscalls", f"sys_{name.form}_{name.event.removeprefix('sys_')}"
    if name.system:
        return (name.system if name.system in known_formats.systems(name.event) else ""), name.event
    owners = known_formats.systems(name.event)
    return (owners[0] if len(owners) == 1 else ""), name.event
