"""A trace directory, opened: its manifest and its tables as lazy polars frames."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracekit.errors import MissingEventsError, TableError

if TYPE_CHECKING:
    import polars as pl

MANIFEST = "manifest.json"
SCHEMA = "tracekit/manifest/1"


class Trace:
    """One ingested trace (DESIGN.md §5).

    Attributes:
        path: the trace directory.
        manifest: ``manifest.json``, checked against ``schemas/manifest.schema.json`` when it was written.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    def __repr__(self) -> str:
        return f"<Trace {self.path} {len(self.event_names)} events>"

    @cached_property
    def event_names(self) -> list[str]:
        """``system:event`` of every event table, those without a row included, sorted."""
        tables: dict[str, Any] = self.manifest["tables"]
        return sorted(
            name.removeprefix("events/").replace("/", ":", 1) for name in tables if name.startswith("events/")
        )

    @property
    def page_size(self) -> int:
        """Bytes; that of x86-64 where the trace does not say it: text never does."""
        said: int | None = self.manifest["machine"]["page_size"]
        return said or 4096

    def rows(self, event: str) -> int:
        """How many ``system:event`` records the trace holds; 0 where it has no such table."""
        table: dict[str, int] = self.manifest["tables"].get(f"events/{event.replace(':', '/', 1)}", {})
        return table.get("rows", 0)

    @property
    def size(self) -> str:
        """``1,751 records of 35 events``; events that were switched on but never fired are none of them."""
        rows = [self.rows(event) for event in self.event_names]
        return f"{sum(rows):,} records of {sum(1 for one in rows if one)} events"

    def events(self, event: str) -> "pl.LazyFrame":
        """All records of ``system:event``, sorted by (time_ns, cpu, seq).

        Raises:
            MissingEventsError: the trace has no such table; names near ones.
        """
        if event not in self.event_names:
            near = [name for name in self.event_names if name.split(":")[-1] == event.rsplit(":", maxsplit=1)[-1]]
            hint = f"; there is {', '.join(near)}" if near else f"; it has {len(self.event_names)} events, see info"
            raise MissingEventsError(f"{self.path}: no event {event}{hint}")
        import polars as pl  # noqa: PLC0415 - 0.08 s of CPU, which ingest would pay and not use

        return pl.scan_parquet(self.path / "events" / f"{event.replace(':', '/', 1)}.parquet")

    def table(self, name: str) -> "pl.LazyFrame":
        """Table ``name`` (``tasks``, ``maps``, ``lost``, ``callchains``, ``samples/cycles``, …).

        Raises:
            MissingEventsError: the trace has no such table.
        """
        if name not in self.manifest["tables"]:
            raise MissingEventsError(f"{self.path}: no table {name}")
        import polars as pl  # noqa: PLC0415 - as in events()

        return pl.scan_parquet(self.path / f"{name}.parquet")

    def columns(self, event: str) -> list[str]:
        """Column names of ``system:event``."""
        return self.events(event).collect_schema().names()


def is_trace_dir(path: Path) -> bool:
    """Whether ``path`` looks like a trace directory (a perf.data directory has no manifest)."""
    return (path / MANIFEST).is_file()


def open_trace(path: Path) -> Trace:
    """Open the trace directory ``path``.

    Raises:
        TableError: it is none, or of another schema version.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise TableError(
            f"{path}: not a trace directory, it has no {MANIFEST}; make one with tracekit ingest"
        ) from error
    except (OSError, ValueError) as error:
        raise TableError(f"{file}: cannot be read: {error}; ingest the trace anew") from error
    found = manifest.get("schema") if isinstance(manifest, dict) else None
    if found != SCHEMA:
        raise TableError(f"{file}: schema is {found!r}, this tracekit reads {SCHEMA!r}; ingest the trace anew")
    return Trace(path, manifest)
