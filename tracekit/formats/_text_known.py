"""Event formats that ship with tracekit, as parsers of the lines that the kernel and its tools print for them.

``schemas/formats/<system>/<event>.<variant>.format`` are the kernel's own ``format`` texts; text traces carry none. The
variant is chosen by the text itself: a line fits one from its first to its last character, or it does not.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tracekit import resources
from tracekit.formats._event_format import EventFormat, Field, parse_format
from tracekit.formats._event_rows import COMMON, RECORD_COMMON
from tracekit.formats._text_bytes import Mask, Places, Text
from tracekit.formats._text_columns import Column, Named, NameTable
from tracekit.formats._text_match import Template, Value, pick
from tracekit.formats._text_print import Piece, literal, pieces_of

EVENT, ENTER, EXIT = "event", "enter", "exit"
"""How a line names its event: ``name: …``, or as the syscall tracer does, ``sys_x(…)`` and ``sys_x -> …``."""

# what libtraceevent's plugins print in place of the kernel's print fmt (lib/traceevent/plugins/plugin_*.c)
_PLUGINS = {
    ("tlb", "tlb_flush"): ("pages:%ld reason:%s", "pages=%ld reason=%s"),
    ("sched", "sched_switch"): (
        "prev_comm=%s prev_pid=%d prev_prio=%d prev_state=%s%s ==> next_comm=%s next_pid=%d next_prio=%d",
        "%s:%d [%d] %s%s ==> %s:%d [%d]",
    ),
}  # fmt: skip


class Shape(NamedTuple):
    """One way in which one format may be printed."""

    event: EventFormat
    template: Template


def _folder() -> Path:
    return resources.schemas() / "formats"


@cache
def _index() -> dict[str, list[tuple[str, Path]]]:
    """Event name → (system, file) of all variants."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(_folder().glob("*/*.format")):
        found.setdefault(path.name.split(".", 1)[0], []).append((path.parent.name, path))
    return found


def systems(name: str) -> list[str]:
    """The systems that have an event of this name."""
    return sorted({system for system, _ in _index().get(name, ())})


@cache
def shapes(system: str, name: str, form: str) -> list[Shape]:
    """All ways in which event ``name`` of ``system`` may be printed, over all variants."""
    found: list[Shape] = []
    for owner, path in _index().get(name, ()):
        if owner != system:
            continue
        event = parse_format(system, path.read_text())
        found += [Shape(event, Template(pieces)) for pieces in _renderings(event, form) if pieces is not None]
    return found


def _renderings(event: EventFormat, form: str) -> list[list[Piece] | None]:
    if form == ENTER:
        return [_enter(event)]
    if form == EXIT:
        return [[literal("0x"), Piece("hex", "ret")]]
    renderings = [pieces_of(event)]
    plugin = _PLUGINS.get((event.system, event.name))
    if plugin is not None:
        renderings.append(pieces_of(event, event.print_fmt.replace(*plugin)))
    raw = _raw_fields(event.fields)
    failed = [literal("[FAILED TO PARSE] " + raw[0].literal.decode()), *raw[1:]] if raw else None
    return [*renderings, _all_fields(event.fields), _all_fields(event.fields[::-1]), raw, failed]


def _enter(event: EventFormat) -> list[Piece]:
    """``addr: 0x7f00, len: 3)``, what stands behind ``sys_mmap(`` (kernel/trace/trace_syscalls.c)."""
    pieces: list[Piece] = []
    for field in event.fields:
        if field.name != "__syscall_nr":
            pieces += [literal(f"{', ' if pieces else ''}{field.name}: "), Piece("hex", field.name)]
    return [*pieces[:-1], pieces[-1], literal(")")] if pieces else [literal(")")]


def _all_fields(fields: tuple[Field, ...]) -> list[Piece] | None:
    """options/fields: ``a=0x10 (16) b=text``; before 6.5 the last field came first.

    Source: kernel/trace/trace_output.c print_fields().
    """
    pieces: list[Piece] = []
    for field in fields:
        pieces.append(literal(f"{' ' if pieces else ''}{field.name}="))
        if field.text:
            pieces.append(Piece("string", field.name))
        elif field.array or field.dynamic:
            return None
        elif field.size == 1:  # 'a' (97), or only (1) if it is no character
            pieces += [Piece("skip"), literal("("), Piece("decimal", field.name), literal(")")]
        else:
            pieces += [literal("0x"), Piece("hex", field.name), literal(" ("), Piece("decimal"), literal(")")]
    return _merge_literals(pieces) or None


def _raw_fields(fields: tuple[Field, ...]) -> list[Piece] | None:
    """trace-cmd report -R, and what both tools print, behind a remark, where they do not understand the print fmt.

    Source: lib/traceevent event-parse.c tep_print_field().
    """
    pieces: list[Piece] = []
    for field in fields:
        pieces.append(literal(f"{' ' if pieces else ''}{field.name}="))
        if field.text:
            pieces.append(Piece("string", field.name))
        elif field.array or field.dynamic:
            return None
        elif field.address or ("long" in field.type.split() and not field.signed):
            pieces += [literal("0x"), Piece("hex", field.name)]
        else:
            pieces.append(Piece("decimal", field.name))
    return _merge_literals(pieces) or None


def _merge_literals(pieces: list[Piece]) -> list[Piece]:
    merged: list[Piece] = []
    for piece in pieces:
        if piece.kind == "literal" and merged and merged[-1].kind == "literal":
            merged[-1] = Piece("literal", literal=merged[-1].literal + piece.literal)
        else:
            merged.append(piece)
    return merged


class KnownEvent:
    """The lines of one event whose format is known → columns. The first lines decide how they are printed."""

    def __init__(self, system: str, name: str, form: str, *, hashed_pointers: bool) -> None:
        self.system, self.name, self.form = system, name, form
        self.hashed_pointers = hashed_pointers
        self.event: EventFormat | None = None
        self._template: Template | None = None
        self._columns: list[tuple[Column, list[int]]] = []

    @property
    def chosen(self) -> bool:
        """Whether a line was seen that fits."""
        return self._template is not None

    def match(self, text: Text, at: Places, end: Places) -> tuple[Mask, list[Value]]:
        """Which of these texts are of this event, and the values in them."""
        if self._template is None:
            self._choose(text, at, end)
        if self._template is None:
            return np.zeros(len(at), bool), []
        fits, values = self._template.match(text, at, end)
        for column, places in self._columns:
            for place in places:
                fits &= column.fits(values[place])
        return fits, values

    def _choose(self, text: Text, at: Places, end: Places) -> None:
        best: tuple[int, int, int] = (0, 0, 0)
        found: list[Shape] = []
        candidates = shapes(self.system, self.name, self.form)
        for number, shape in enumerate(candidates):
            count = int(np.count_nonzero(shape.template.match(text, at, end)[0]))
            named = len({piece.field for piece in shape.template.values if piece.field})
            score = (count, named, -number)
            if count and score > best:
                best, found = score, [shape]
        if not found:
            return
        # variants that print alike differ in what their names mean: all of them count
        alike = [shape for shape in candidates if _same(shape, found[0])]
        self._template, self.event = found[0].template, found[0].event
        self._columns = _columns_of(
            self.event, self._template, [shape.template for shape in alike], hashed_pointers=self.hashed_pointers
        )

    def columns(self, text: Text, values: list[Value], rows: np.ndarray) -> Named:
        """Columns of the texts ``rows`` among those matched last."""
        named: Named = []
        for column, places in self._columns:
            value = pick(values[places[0]], rows)
            for place in places[1:]:  # one of them is nought (vm_unmapped_area)
                other = pick(values[place], rows)
                value = value._replace(number=value.number | other.number)
            named += column.arrow(text, value)
        return named


def _same(one: Shape, other: Shape) -> bool:
    same_fields = [(f.name, f.size, f.signed, f.text) for f in one.event.fields] == [
        (f.name, f.size, f.signed, f.text) for f in other.event.fields
    ]
    pieces = [(piece.kind, piece.field, piece.literal) for piece in one.template.pieces]
    return same_fields and pieces == [(piece.kind, piece.field, piece.literal) for piece in other.template.pieces]


def _columns_of(
    event: EventFormat, template: Template, alike: list[Template], *, hashed_pointers: bool
) -> list[tuple[Column, list[int]]]:
    """The columns that a template's values make, and the numbers of the values of each."""
    names = column_names(event)
    found: list[tuple[Column, list[int]]] = []
    for field in event.fields:
        places = [number for number, piece in enumerate(template.values) if piece.field == field.name]
        numeric = [place for place in places if template.values[place].kind in {"decimal", "hex"}]
        named = [place for place in places if template.values[place].names]
        for chosen in (numeric, named) if numeric and named else (numeric or places,):
            if not chosen:
                continue
            piece = template.values[chosen[0]]
            table = None
            if piece.names:
                table = NameTable([other.values[chosen[0]].names for other in alike], flags=piece.kind == "flags")
            elif len(numeric) > 1:
                piece = piece._replace(exact=True)
            name_only = bool(numeric) and chosen is named
            column = Column(names[field.name], field, piece, table, hashed=hashed_pointers, name_only=name_only)
            found.append((column, chosen))
    return found


def column_names(event: EventFormat) -> dict[str, str]:
    """Field → column: a field never takes the name of a common column, as in the tables of binary traces."""
    taken = {*COMMON, *RECORD_COMMON, *(field.name for field in event.common)}
    names = {}
    for field in event.fields:
        name = f"field_{field.name}" if field.name in taken else field.name
        while name in taken:
            name += "_"
        taken.add(name)
        names[field.name] = name
    return names
