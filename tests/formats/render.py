"""Prints rows of an event's table as perf script does, from the print fmt that the table carries.

Written for the tests only, from printf's rules and the oracle texts; shares nothing with tracekit's own parser of
print fmt, whose companion columns it therefore checks.
"""

import re
from collections.abc import Callable

_CONVERSION = re.compile(
    r"%(?P<flags>[-#0 +]*)(?P<width>\d*)(?:\.\d+)?(?P<size>hh|h|ll|l|L|z|q)?(?P<kind>[diuxXsp%])s?"
)
_WIDTHS = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64, "int8": 8, "int16": 16, "int32": 32, "int64": 64}

Row = dict[str, object]


class NotRenderableError(Exception):
    """The print fmt is beyond this module."""


def split_arguments(text: str) -> list[str]:
    """Cut at commas outside of brackets and strings."""
    parts, depth, quoted, begin, previous = [], 0, False, 0, ""
    for place, char in enumerate(text):
        if char == '"' and previous != "\\":
            quoted = not quoted
        elif not quoted:
            depth += char in "({["
            depth -= char in ")}]"
            if char == "," and depth == 0:
                parts.append(text[begin:place].strip())
                begin = place + 1
        previous = char
    return [*parts, text[begin:].strip()]


def renderer(event: str, format_text: str, columns: dict[str, str]) -> Callable[[Row], str]:
    """What turns a row into perf's text; ``columns`` are names and dtypes of the table."""
    if event in _PLUGINS:
        return _PLUGINS[event]
    print_fmt = format_text.partition("print fmt:")[2].strip()
    pattern, *arguments = split_arguments(print_fmt)
    getters = [_getter(argument, columns) for argument in arguments]
    if "%pS" in pattern or "%pF" in pattern:
        raise NotRenderableError(pattern)  # perf prints a symbol
    pieces: list[Callable[[Row], str]] = []
    place = 0
    pattern = pattern[1:-1].replace('" "', "")
    remaining = iter(getters)
    for found in _CONVERSION.finditer(pattern):
        literal = pattern[place : found.start()]
        pieces.append(lambda _, literal=literal: literal)
        place = found.end()
        if found["kind"] == "%":
            pieces.append(lambda _: "%")
        else:
            get, width = next(remaining)
            pieces.append(lambda row, get=get, width=width, found=found: _print(get(row), found, width))
    tail = pattern[place:]
    return lambda row: "".join(piece(row) for piece in pieces) + tail


def _column(field: str, columns: dict[str, str]) -> str:
    prefixed = f"field_{field}"
    return prefixed if prefixed in columns else field


def _getter(argument: str, columns: dict[str, str]) -> tuple[Callable[[Row], object], int]:
    fields = set(re.findall(r"REC->(\w+)", argument)) | set(re.findall(r"__get_str\((\w+)\)", argument))
    if len(fields) != 1:
        raise NotRenderableError(argument)
    name = _column(fields.pop(), columns)
    if "__print_symbolic" in argument or "__print_flags" in argument:
        if name + "_name" not in columns:
            raise NotRenderableError(argument)
        return lambda row: row[name + "_name"], 0
    choice = re.fullmatch(r"\(*REC->\w+\)* \? \"(\w*)\" : \"(\w*)\"", argument)
    if choice:
        return lambda row: choice[1] if row[name] else choice[2], 0
    if re.fullmatch(
        r"(\((void \*|unsigned long|int|u64|unsigned long long)\))?\(?REC->\w+\)?|__get_str\(\w+\)", argument
    ):
        return lambda row: row[name], _WIDTHS.get(columns[name], 0)
    raise NotRenderableError(argument)


def _print(value: object, found: re.Match[str], width: int) -> str:
    kind = found["kind"]
    if kind == "s":
        width = int(found["width"] or 0)
        return str(value).ljust(width) if "-" in found["flags"] else str(value).rjust(width)
    assert isinstance(value, int), (value, found)
    bits = 64 if found["size"] in {"l", "ll", "L"} else 32
    if kind == "p":
        return hex(value)
    if kind in "xXu":
        value &= (1 << max(bits, 0 if width == 0 else min(width, bits))) - 1
    elif value >> (bits - 1) & 1 and value > 0:
        value -= 1 << bits
    text = format(value, "d" if kind != "x" else "#x" if "#" in found["flags"] else "x")
    fill = "0" if "0" in found["flags"] else " "
    return text.rjust(int(found["width"] or 0), fill)


def _sched_switch(row: Row) -> str:
    states = str(row["prev_state_name"])
    return (
        f"{row['prev_comm']}:{row['prev_pid']} [{row['prev_prio']}] {states}"
        f" ==> {row['next_comm']}:{row['next_pid']} [{row['next_prio']}]"
    )


def _tlb_flush(row: Row) -> str:
    pages = row["pages"] - (1 << 64) if row["pages"] >> 63 else row["pages"]
    return f"pages={pages} reason=… ({row['reason']})"


# events that libtraceevent's plugins print, whatever their print fmt says
_PLUGINS = {"sched:sched_switch": _sched_switch, "tlb:tlb_flush": _tlb_flush}

# the plugin's names for reasons are older than the kernel's: only the number counts
_TLB_REASON = re.compile(r"reason=.* \(")


def comparable(event: str, text: str) -> str:
    """What of perf's text does not depend on how old its plugins are."""
    return _TLB_REASON.sub("reason=… (", text) if event == "tlb:tlb_flush" else text.rstrip()
