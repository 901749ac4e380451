"""The front of a trace line: task, CPU, flags, time and the event's name, for many lines at once.

Nothing in a task's name is forbidden (``memfd:a-b [000]-91-4478``), so where it ends is not searched for: a regular
expression finds it once, and lines of the same layout are then parsed from that column on, each checked to the end.

Source: kernel/trace/trace_output.c trace_print_context(), trace_print_lat_context(), trace_print_lat_fmt();
lib/traceevent event-parse.c tep_print_event(); tools/perf/builtin-script.c perf_sample__fprintf_start().
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tracekit.formats._text_bytes import Mask, Places, Text, Words

COMM_WIDTH = 16
MAX_LAYOUTS = 48
NONE = -1
_INT_MAX = np.uint64(0x7FFFFFFF)

# bytes
_SPACE, _COLON, _DOT, _MINUS, _OPEN, _SLASH = 32, 58, 46, 45, 91, 47


class Layout(NamedTuple):
    """What lines of one kind have in common."""

    dialect: str  # task: trace, trace_pipe, trace-cmd report; latency; raw; perf
    comm_end: int = 0  # bytes from the start of the line; perf: −1 without comm
    ids: bool = True  # perf: whether a pid, tid or both stand before the CPU


class Heads(NamedTuple):
    """Fronts of lines, one row each; NONE where the text does not say."""

    line: Places  # number of the line
    comm_start: Places
    comm_end: Places
    pid: Places
    tid: Places
    cpu: Places
    time_ns: Places
    flags: Places  # common_flags
    preempt: Places  # common_preempt_count
    period: Places
    name_start: Places
    name_end: Places
    text: Places  # where what the event says starts
    digits: Places  # of the time behind its dot: 6, 9; 0: no nanoseconds; −6: microseconds since the buffer's start

    def pick(self, which: np.ndarray) -> "Heads":
        """Some rows."""
        return Heads(*(column[which] for column in self))


_NUMBER = r"(?:-?\d+)"
_TIME = r"\d+(?:\.\d{6,9})?:"
LEARN = {
    "task": re.compile(rb"(?P<comm>.*)-\d+ +(?:\( *(?:\d+|-+)\) +)?\[\d+\] +(?:[^\s\d]\S{3,5} +)?\d+(?:\.\d{6,9})?: "),
    "latency": re.compile(rb"(?P<comm>.*)-\d+ +\d+[^\s\d]\S{3,4} +\d+us.: "),
    "perf": re.compile(
        rb"(?:(?P<comm> *\S.*?) +(?P<ids>-?\d+(?:/-?\d+)?)|(?P<bare> *-?\d+(?:/-?\d+)?))?"
        rb"(?(comm) +|(?(bare) +| *))(?:\[\d+\] +)?\d+\.(?:\d{6}|\d{9}): +\S"
    ),
}


def learn(kind: str, line: bytes) -> Layout | None:
    """The layout of a line; None if it is no trace line of this kind."""
    if kind == "raw":
        return Layout("raw") if re.match(rb"\d+ \d+ \d+ ", line) else None
    found = LEARN[kind].match(line)
    if found is None:
        return None
    if kind != "perf":
        return Layout(kind, found.end("comm"))
    if found["comm"] is not None:
        return Layout("perf", found.end("comm"))
    return Layout("perf", NONE, found["bare"] is not None)


class HeadFinder:
    """Finds the fronts of lines; remembers the layouts it has met."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.kinds = kinds
        self.layouts: list[Layout] = []

    def find(self, text: Text, starts: Places, ends: Places) -> tuple[Heads, Places]:
        """Fronts of the lines that have one, and the numbers of those that have none."""
        rest = np.arange(len(starts))
        found: list[Heads] = []
        for layout in list(self.layouts):
            rest = self._apply(layout, text, starts, ends, rest, found)
        bad: list[int] = []
        tried = set(self.layouts)
        while len(rest):
            layouts: list[Layout] = []
            for place, line in enumerate(rest.tolist()):
                head = text.raw[starts[line] : min(ends[line], starts[line] + 256)]
                layouts = [
                    known for kind in self.kinds if (known := learn(kind, head)) is not None and known not in tried
                ]
                if layouts:
                    rest = rest[place:]
                    break
                bad.append(line)
            if not layouts:
                break
            tried.update(layouts)
            for layout in layouts:
                before = len(rest)
                rest = self._apply(layout, text, starts, ends, rest, found)
                if len(rest) < before:
                    self.layouts = [layout, *self.layouts][:MAX_LAYOUTS]
        return _join(found), np.array(bad, np.int64)

    def _apply(  # noqa: PLR0913, PLR0917
        self, layout: Layout, text: Text, starts: Places, ends: Places, rest: Places, found: list[Heads]
    ) -> Places:
        if len(rest) == 0:
            return rest
        fits, heads = _PARSERS[layout.dialect](text, starts[rest], ends[rest], layout)
        if not fits.any():
            return rest
        if fits.all():
            found.append(heads._replace(line=rest))
            return rest[:0]
        found.append(heads.pick(fits)._replace(line=rest[fits]))
        return rest[~fits]


def _join(found: list[Heads]) -> Heads:
    if not found:
        return Heads(*(np.empty(0, np.int64) for _ in Heads._fields))
    if len(found) == 1:
        return found[0]
    joined = Heads(*(np.concatenate(column) for column in zip(*found, strict=True)))
    return joined.pick(np.argsort(joined.line, kind="stable"))


def _unknown(like: Places) -> Places:
    return np.full(len(like), NONE, np.int64)


def _task(text: Text, start: Places, end: Places, layout: Layout) -> tuple[Mask, Heads]:
    """``            bash-142     (    142) [000] d..1.   416.710033: name: …``."""
    dash = np.minimum(start + layout.comm_end, end)
    fits = text.bytes[dash] == _MINUS
    tid, length = text.decimal(dash + 1)
    place = text.skip_spaces(dash + 1 + length)
    fits &= _is_pid(tid, length) & (place > dash + 1 + length)
    place = np.minimum(place, end)
    tgid, place = _thread_group(text, place, end, fits)
    fits &= text.bytes[place] == _OPEN
    cpu, length = text.decimal(place + 1)
    place = np.minimum(place + 1 + length, end)
    fits &= (length > 0) & (length < 9) & text.equals(place, b"] ")
    place = np.minimum(text.skip_spaces(np.minimum(place + 1, end)), end)
    flags, preempt, place = _flags(text, place, end)
    return _finish(text, start, end, fits, place, layout.comm_end, tgid, tid, cpu, flags, preempt)


def _latency(text: Text, start: Places, end: Places, layout: Layout) -> tuple[Mask, Heads]:
    """``    bash-142       0d..1. 276969us*: name: …``."""
    dash = np.minimum(start + layout.comm_end, end)
    fits = text.bytes[dash] == _MINUS
    tid, length = text.decimal(dash + 1)
    place = np.minimum(text.skip_spaces(dash + 1 + length), end)
    fits &= _is_pid(tid, length)
    cpu, length = text.decimal(place)
    fits &= (length > 0) & (length < 9)
    flags, preempt, place = _flags(text, np.minimum(place + length, end), end)
    return _finish(text, start, end, fits & (flags >= 0), place, layout.comm_end, None, tid, cpu, flags, preempt)


def _raw(text: Text, start: Places, end: Places, layout: Layout) -> tuple[Mask, Heads]:
    """``3555 0 424082459452 type: 680``: options/raw prints nanoseconds, and no name."""
    del layout
    tid, length = text.decimal(start)
    fits = _is_pid(tid, length) & (text.bytes[start + length] == _SPACE)
    place = np.minimum(start + length + 1, end)
    cpu, length = text.decimal(place)
    fits &= (length > 0) & (length < 9) & (text.bytes[place + length] == _SPACE)
    place = np.minimum(place + length + 1, end)
    time, length = text.decimal(place)
    fits &= (length > 0) & (length < 19) & (text.bytes[place + length] == _SPACE)
    place = np.minimum(place + length + 1, end)
    none = _unknown(start)
    name = np.where(text.equals(place, b"type: "), place + 6, place)
    heads = Heads(
        none, start, start, none, tid.astype(np.int64), cpu.astype(np.int64), time.astype(np.int64), none, none, none,
        np.minimum(name, end), np.minimum(text.word_end(name), end), place, np.full(len(start), 9, np.int64),
    )  # fmt: skip
    return fits & (place < end), heads


def _perf(text: Text, start: Places, end: Places, layout: Layout) -> tuple[Mask, Heads]:
    """``            perf    1565/1565    [001]   308.433172102:   1 sys:event: …``; most of it may be left out."""
    fits = np.ones(len(start), bool)
    place = np.minimum(start + max(layout.comm_end, 0), end)
    pid = tid = _unknown(start)
    if layout.comm_end != NONE:
        fits &= text.bytes[place] == _SPACE
    place = np.minimum(text.skip_spaces(place), end)
    if layout.ids:
        first, place, good = _id(text, place, end)
        fits &= good
        both = text.bytes[place] == _SLASH
        tid = first
        if both.any():
            second, after, good = _id(text, np.minimum(place + 1, end), end)
            fits &= good | ~both
            pid, tid = np.where(both, first, NONE), np.where(both, second, first)
            place = np.where(both, after, place)
        fits &= text.bytes[place] == _SPACE
        place = np.minimum(text.skip_spaces(place), end)
    cpu, length = text.decimal(place + 1)
    shown = (text.bytes[place] == _OPEN) & (length > 0) & (length < 9)
    after = np.minimum(place + 1 + length, end)
    shown &= text.equals(after, b"] ")
    place = np.where(shown, np.minimum(text.skip_spaces(np.minimum(after + 1, end)), end), place)
    cpu = np.where(shown, cpu.astype(np.int64), NONE)
    fits, heads = _finish(text, start, end, fits, place, layout.comm_end, pid, tid, cpu, None, None)
    return _perf_name(text, end, fits, heads)


def _perf_name(text: Text, end: Places, fits: Mask, heads: Heads) -> tuple[Mask, Heads]:
    """``[period] name: ``: what stands before the next space, its last colon aside."""
    place = heads.name_start
    number, length = text.decimal(place)
    after = np.minimum(text.skip_spaces(np.minimum(place + length, end)), end)
    has_period = (length > 0) & (length < 19) & (after > place + length)
    name = np.where(has_period, after, place)
    stop = np.minimum(text.find(name, _SPACE, end), end)
    fits &= (stop > name) & (text.bytes[stop - 1] == _COLON)
    period = np.where(has_period, number.astype(np.int64), NONE)
    return fits, heads._replace(
        period=period,
        name_start=name,
        name_end=np.maximum(stop - 1, name),
        text=np.minimum(text.skip_spaces(stop), end),
    )


def _id(text: Text, place: Places, end: Places) -> tuple[Places, Places, Mask]:
    """A process number; perf prints −1 for a task that is no more."""
    negative = text.bytes[place] == _MINUS
    number, length = text.decimal(place + negative)
    value = np.where(negative, NONE, number.astype(np.int64))
    return value, np.minimum(place + negative + length, end), _is_pid(number, length)


def _is_pid(number: Words, length: Places) -> Mask:
    """Whether there is a number and pid_t, an int, can hold it."""
    return (length > 0) & (length < 11) & (number <= _INT_MAX)


def _thread_group(text: Text, place: Places, end: Places, fits: Mask) -> tuple[Places | None, Places]:
    """``(    142) `` or ``(-------) `` (options/record-tgid)."""
    has = text.bytes[place] == ord("(")
    if not has.any():
        return None, place
    inner = np.minimum(text.skip_spaces(np.minimum(place + 1, end)), end)
    tgid, length = text.decimal(inner)
    close = np.minimum(text.find(inner, ord(")"), end), end)
    missing = text.bytes[inner] == _MINUS
    fits &= ~has | ((close < end) & (missing | (_is_pid(tgid, length) & (inner + length == close))))
    after = np.minimum(text.skip_spaces(np.minimum(close + 1, end)), end)
    return np.where(has & ~missing, tgid.astype(np.int64), NONE), np.where(has, after, place)


def _finish(  # noqa: PLR0913, PLR0917 - the columns of Heads
    text: Text,
    start: Places,
    end: Places,
    fits: Mask,
    place: Places,
    comm_end: int,
    pid: Places | None,
    tid: np.ndarray,
    cpu: np.ndarray,
    flags: Places | None,
    preempt: Places | None,
) -> tuple[Mask, Heads]:
    """Time and name, which all dialects have at the end."""
    time_ns, digits, place, good = _time(text, place, end)
    name = np.minimum(text.skip_spaces(place), end)
    fits &= good & (name < end) & (name > place)
    none = _unknown(start)
    comm_stop = np.minimum(start + max(comm_end, 0), end)
    # a name has at most 15 bytes and is printed %16s; what stands before that is trace-cmd's name of an instance
    comm_start = np.minimum(text.skip_spaces(np.minimum(start + max(comm_end - COMM_WIDTH, 0), end)), comm_stop)
    heads = Heads(
        none, comm_start, comm_stop, none if pid is None else pid, tid.astype(np.int64), cpu.astype(np.int64),
        time_ns, none if flags is None else flags, none if preempt is None else preempt, none,
        name, np.minimum(text.word_end(name), end), name, digits,
    )  # fmt: skip
    return fits, heads


def _time(text: Text, place: Places, end: Places) -> tuple[Places, Places, Places, Mask]:
    """Time in ns, digits behind the dot, where the colon behind it ends, and whether it is a time."""
    whole, length = text.decimal(place)
    good = (length > 0) & (length < 19)
    place = np.minimum(place + length, end)
    dot = text.bytes[place] == _DOT
    if dot.all():
        part, digits = text.decimal(np.minimum(place + 1, end))
        place = np.minimum(place + 1 + digits, end)
        good &= (digits >= 6) & (digits <= 9) & (length < 10) & (text.bytes[place] == _COLON)
        scale = 10 ** np.clip(9 - digits, 0, 9)
        return whole.astype(np.int64) * 10**9 + part.astype(np.int64) * scale, digits, place + 1, good
    if dot.any():
        return _mixed(text, place - length, end, dot)
    relative = text.equals(place, b"us") & (text.bytes[np.minimum(place + 3, end)] == _COLON)
    place = np.minimum(np.where(relative, place + 3, place), end)
    good &= (text.bytes[place] == _COLON) & (~relative | (length < 16))
    time = np.where(relative, whole.astype(np.int64) * 1000, whole.astype(np.int64))
    return time, np.where(relative, -6, 0), place + 1, good


def _mixed(text: Text, place: Places, end: Places, dot: Mask) -> tuple[Places, Places, Places, Mask]:
    time, digits, after = (np.zeros(len(place), np.int64) for _ in range(3))
    good = np.zeros(len(place), bool)
    for which in (dot, ~dot):
        time[which], digits[which], after[which], good[which] = _time(text, place[which], end[which])
    return time, digits, after, good


def _table(codes: dict[str, int]) -> np.ndarray:
    table = np.full(256, NONE, np.int64)
    for char, code in codes.items():
        table[ord(char)] = code
    return table


# enum trace_flag_type, include/linux/trace_events.h. X is trace-cmd's sign for bit 1, which newer kernels use for
# NEED_RESCHED_LAZY; b in the second column is both reschedule bits of that kernel.
_IRQS = _table({".": 0, "d": 0x01, "X": 0x02, "D": 0x81, "b": 0x80})
_RESCHED = _table({".": 0, "n": 0x04, "p": 0x20, "N": 0x24, "l": 0x02, "b": 0x06, "L": 0x22, "B": 0x26})
_CONTEXT = _table({".": 0, "s": 0x10, "h": 0x08, "H": 0x18, "z": 0x40, "Z": 0x48})
_DEPTH = _table({".": 0, **{f"{n:x}": n for n in range(1, 16)}})


def _flags(text: Text, place: Places, end: Places) -> tuple[Places, Places, Places]:
    """common_flags, common_preempt_count (NONE where the columns are absent), and where the time starts."""
    first = text.bytes[place]
    absent = (first >= ord("0")) & (first <= ord("9"))
    if absent.all():
        return _unknown(place), _unknown(place), place
    stop = np.minimum(text.find(place, _SPACE, end), end)
    width = stop - place
    parts = [_IRQS[first], _RESCHED[text.bytes[place + 1]], _CONTEXT[text.bytes[place + 2]]]
    depth, disabled = _DEPTH[text.bytes[place + 3]], _DEPTH[text.bytes[place + 4]]
    disabled = np.where(width == 5, disabled, 0)
    known = ~absent & ((width == 4) | (width == 5)) & (depth >= 0) & (disabled >= 0)
    for part in parts:
        known &= part >= 0
    flags = np.where(known, parts[0] | parts[1] | parts[2], NONE)
    preempt = np.where(known, depth | disabled << 4, NONE)
    after = np.minimum(text.skip_spaces(stop), end)
    # flags that are not known are no reason to lose the line
    return flags, preempt, np.where(absent, place, after)


_PARSERS: dict[str, Callable[[Text, Places, Places, Layout], tuple[Mask, Heads]]] = {
    "task": _task,
    "latency": _latency,
    "raw": _raw,
    "perf": _perf,
}
