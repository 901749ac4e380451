"""The trace's own events → canonical events: one TOML file per kernel variant, chosen by the fields present.

Never by a version number: distributions backport (drgn's rule). ``schemas/events/<system>/<event>.<variant>.toml``:

    event = "try_to_migrate_one"            # canonical name
    names = ["kprobes:try_to_migrate_one"]  # system:event that may carry it
    [when]                                  # has, lacks: fields by which the variant is told
    [columns]                               # canonical column = the trace's field
    [optional]                              # the same, null where the trace lacks the field
"""

import tomllib
from functools import cache
from typing import NamedTuple

import polars as pl

from tracekit import resources
from tracekit.errors import MissingEventsError
from tracekit.trace import Trace


class Variant(NamedTuple):
    """One way in which kernels, or the people who define probes, have written a canonical event."""

    event: str
    file: str
    names: list[str]
    has: frozenset[str]
    lacks: frozenset[str]
    columns: dict[str, str]
    optional: dict[str, str]

    def fits(self, fields: set[str]) -> bool:
        """Whether a table with these fields is of this variant."""
        return self.has <= fields and not self.lacks & fields


@cache
def variants() -> dict[str, list[Variant]]:
    """Every variant file, by canonical event."""
    found: dict[str, list[Variant]] = {}
    for file in sorted((resources.schemas() / "events").glob("*/*.toml")):
        text = tomllib.loads(file.read_text())
        when = text.get("when", {})
        variant = Variant(
            text["event"],
            file.name,
            text["names"],
            frozenset(when.get("has", ())),
            frozenset(when.get("lacks", ())),
            text.get("columns", {}),
            text.get("optional", {}),
        )
        found.setdefault(variant.event, []).append(variant)
    return found


def tables_of(trace: Trace, event: str) -> list[str]:
    """The ``system:event`` tables of ``trace`` that carry the canonical ``event``."""
    names = {name for variant in variants()[event] for name in variant.names}
    return [name for name in trace.event_names if name in names]


def tables_fit(trace: Trace, event: str) -> list[str]:
    """Those of ``tables_of`` whose fields a variant knows: what a probe without the arguments shows is not enough."""
    return [
        table
        for table in tables_of(trace, event)
        if any(table in variant.names and variant.fits(set(trace.columns(table))) for variant in variants()[event])
    ]


def recorded(trace: Trace, event: str) -> bool:
    """Whether the canonical ``event`` was switched on in ``trace``, even if it never fired."""
    return bool(tables_of(trace, event))


def shows_life_cycle(trace: Trace) -> bool:
    """Whether ``trace`` shows how address spaces came to be: what fidelity reconstructed rests on (DESIGN.md §2).

    The page table entries, which say which page is meant, are read for x86-64 only.
    """
    own = recorded(trace, "process_fork") or recorded(trace, "process_exit")  # none happened: no table
    side_band = bool(trace.manifest["tables"].get("tasks", {}).get("rows"))
    return (own or side_band) and trace.manifest["machine"]["arch"] == "x86_64"


def can_rebuild_walks(trace: Trace) -> bool:
    """Whether rmap walks can be made without probes: entries say of which folios, the life cycle through which VMAs.

    The entries are of either level; a trace of huge pages alone has no event of PTEs.
    """
    entries = recorded(trace, "set_migration_pte") or recorded(trace, "set_migration_pmd")
    return entries and shows_life_cycle(trace)


def task_of(trace: Trace, table: str) -> pl.Expr:
    """The thread that a record is of; perf writes tid -1 for one that is past its exit, the record itself knows it.

    Text has nothing but what it prints.
    """
    task = pl.coalesce("tid", "common_pid") if "common_pid" in trace.columns(table) else pl.col("tid")
    return task.alias("task")


def columns_of(trace: Trace, table: str, event: str) -> list[pl.Expr]:
    """Expressions that make the canonical columns of ``event`` out of ``table``.

    Raises:
        MissingEventsError: the table's fields fit no variant; names what was expected.
    """
    fields = set(trace.columns(table))
    for variant in variants()[event]:
        if table in variant.names and variant.fits(fields):
            own = [pl.col(field).alias(column) for column, field in variant.columns.items()]
            return own + [pl.col(f).alias(c) for c, f in variant.optional.items() if f in fields]
    wanted = " or ".join(
        f"{{{', '.join(sorted(variant.has))}}} ({variant.file})"
        for variant in variants()[event]
        if table in variant.names
    )
    raise MissingEventsError(
        f"{trace.path}: the fields of {table} fit no known variant: expected {wanted}, "
        f"found {{{', '.join(sorted(fields))}}}; record it with these arguments or add a variant file"
    )
