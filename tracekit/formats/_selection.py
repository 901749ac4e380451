"""What the command line says of times, CPUs and tasks."""

import re
from decimal import Decimal

from tracekit.errors import UsageError

_LIST = re.compile(r"\d{1,10}(-\d{1,10})?(,\d{1,10}(-\d{1,10})?)*", re.ASCII)
_SECONDS = re.compile(r"\d{1,10}(\.\d{0,9})?", re.ASCII)
_NANOSECONDS = re.compile(r"(\d{1,19})ns", re.ASCII)
_MAX_NUMBERS = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h


def nanoseconds(option: str, text: str | None) -> int | None:
    """``12.5`` (seconds, as perf script prints them) or ``12500000000ns``.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    if found := _NANOSECONDS.fullmatch(text):
        return int(found[1])
    if _SECONDS.fullmatch(text):
        return int(Decimal(text) * 10**9)
    raise UsageError(f"{option} {text}: give seconds (12.5) or nanoseconds (12500000000ns) of the trace's clock")


def numbers(option: str, text: str | None) -> frozenset[int] | None:
    """``0,2-3`` → {0, 2, 3}.

    Raises:
        UsageError: it is no list of numbers and ranges.
    """
    if text is None:
        return None
    if not _LIST.fullmatch(text):
        raise UsageError(f"{option} {text}: give a list of numbers and ranges, such as 0,2-3")
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low > high or high - low >= _MAX_NUMBERS or len(found) > _MAX_NUMBERS:
            raise UsageError(f"{option} {text}: {part} is no range of numbers")
        found.update(range(low, high + 1))
    return frozenset(found)
