"""The text of a tracefs ``format`` file → fields with offset, size and meaning.

Source: kernel Documentation/trace/events.rst, section "Event formats"; kernel/trace/trace_events.c f_show().
"""

import re
from typing import NamedTuple

MAX_FIELDS = 256  # the largest kernel event has some 60
MAX_EVENT_BYTES = 1 << 16  # a perf record's size is 16 bits
PLACE_BYTES = 4  # u16 length and u16 offset of variable data

_FIELD = re.compile(
    r"^\s*field:\s*(?P<decl>[^;]*);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);(?:\s*signed:(?P<signed>[01]);)?"
)
_NAME_AND_ID = re.compile(r"^name:\s*(\S+)\s*^ID:\s*(\d{1,9})\s*$", re.MULTILINE)
_ARRAY = re.compile(r"^(?P<type>.*?)\s*(?P<name>[A-Za-z_]\w*)\s*(?P<array>(\[[^\]]*\])*)$")


class Field(NamedTuple):
    """One field of an event."""

    name: str
    type: str  # C type without the name and array part
    offset: int  # from the start of the event's data, common fields included
    size: int  # bytes
    signed: bool
    array: str  # what stands in brackets, brackets included; "" if no array

    @property
    def dynamic(self) -> str:
        """``absolute`` or ``relative`` if the field holds the place of variable data; ``""`` else."""
        if self.type.startswith("__data_loc"):
            return "absolute"
        return "relative" if self.type.startswith("__rel_loc") or self.type.startswith("__rel_data_loc") else ""

    @property
    def text(self) -> bool:
        """Whether it is a string: an array of plain ``char``."""
        element = self.type.removeprefix("__data_loc").removeprefix("__rel_data_loc").removeprefix("__rel_loc")
        element = element.replace("const", " ").strip()
        return element in {"char", "char[]", "char []"} and bool(self.array or self.dynamic)

    @property
    def address(self) -> bool:
        """Whether it is a pointer."""
        return "*" in self.type and not self.array


class EventFormat(NamedTuple):
    """One event's layout as the trace itself describes it."""

    system: str
    name: str
    id: int
    common: tuple[Field, ...]
    fields: tuple[Field, ...]  # without the common ones
    print_fmt: str
    source: str  # the whole text

    @property
    def fixed_size(self) -> int:
        """Bytes an event of this format has at least."""
        return max((field.offset + field.size for field in (*self.common, *self.fields)), default=0)


class FormatTextError(ValueError):
    """The text is no event format."""


def parse_format(system: str, text: str) -> EventFormat:
    """Parse one ``format`` file.

    Raises:
        FormatTextError: no name, no ID, or a field that lies nowhere or cannot hold what its type says.
    """
    name, number = name_and_id(text)
    head, _, print_fmt = text.partition("print fmt:")
    fields = [field for line in head.splitlines() if (field := _parse_field(line)) is not None]
    if len(fields) > MAX_FIELDS:
        raise FormatTextError(f"has {len(fields)} fields")
    common = tuple(field for field in fields if field.name.startswith("common_"))
    own = tuple(field for field in fields if not field.name.startswith("common_"))
    return EventFormat(system, name, number, common, own, print_fmt.strip(), text)


def name_and_id(text: str) -> tuple[str, int]:
    """Name and tracepoint id that a ``format`` file starts with.

    Raises:
        FormatTextError: it does not.
    """
    found = _NAME_AND_ID.search(text)
    if found is None:
        raise FormatTextError("has no name or no ID")
    return found[1], int(found[2])


def _parse_field(line: str) -> Field | None:
    found = _FIELD.match(line)
    if found is None:
        return None
    declared = _ARRAY.match(found["decl"].strip())
    if declared is None:
        raise FormatTextError(f"field {found['decl']!r} has no name")
    offset, size = int(found["offset"]), int(found["size"])
    if offset + size > MAX_EVENT_BYTES:
        raise FormatTextError(f"field {declared['name']!r} ends at {offset + size}")
    # kernels before 2.6.36 print no "signed:"
    signed = found["signed"] == "1"
    field = Field(declared["name"], declared["type"].strip(), offset, size, signed, declared["array"] or "")
    if field.dynamic and size < PLACE_BYTES:
        raise FormatTextError(f"field {field.name!r} has {size} bytes, too few for a place")
    return field
