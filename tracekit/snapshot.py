"""``FILE.snapshot.json``, which ``tracekit record`` writes beside a recording → tables of the trace directory.

Columns:

    snapshot/tasks  time_ns, pid, tid, ppid, comm, mm_of (a process that pid shares its mm with; null: none known)
    snapshot/vmas   time_ns, pid, start, end, perms (rwxp, as in /proc/PID/maps), offset (bytes), dev, inode, path, and
                    pages: anon, file (and shared anonymous), swap (migration entries, too), large (of a compound page),
                    lazyfree, ksm; null: not seen

A row holds at its time_ns, on the trace's clock; events before it are in it already.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from tracekit._columns import LABEL
from tracekit._parquet import TableStats, open_writer
from tracekit.errors import TraceFormatError

SCHEMA = "tracekit/snapshot/1"
SUFFIX = ".snapshot.json"
TASKS = {"time_ns": pa.int64(), **dict.fromkeys(("pid", "tid", "ppid"), pa.int32()), "comm": LABEL, "mm_of": pa.int32()}
VMAS = {
    "time_ns": pa.int64(),
    "pid": pa.int32(),
    **dict.fromkeys(("start", "end"), pa.uint64()),
    "perms": LABEL,
    **dict.fromkeys(("offset", "dev", "inode"), pa.uint64()),
    "path": LABEL,
    **dict.fromkeys(("anon", "file", "swap", "large", "lazyfree", "ksm"), pa.int64()),
}


def beside(source: Path) -> Path:
    """Where the snapshot of the recording ``source`` lies, if there is one."""
    return source.with_name(source.name + SUFFIX)


def take_in(source: Path, root: Path) -> tuple[dict[str, Any] | None, dict[str, TableStats]]:
    """Write the snapshot beside ``source`` as tables below ``root``; returns what the manifest says of it and of them.

    Raises:
        TraceFormatError: it is no snapshot.
    """
    file = beside(source)
    if not file.is_file():
        return None, {}
    try:
        document = json.loads(file.read_text())
        if document["schema"] != SCHEMA:
            raise TraceFormatError(file, None, f"schema is {document['schema']!r}, this tracekit reads {SCHEMA!r}")
        head = {key: document[key] for key in ("clock", "begin_ns", "end_ns", "release")}
        tables = {
            f"snapshot/{name}": _table(document[name], kinds) for name, kinds in (("tasks", TASKS), ("vmas", VMAS))
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise TraceFormatError(file, None, f"no snapshot: {error!r}; remove it, or record anew") from error
    return {"name": file.name, **head}, {name: _write(root, name, table) for name, table in tables.items()}


def _table(columns: dict[str, list[Any]], kinds: dict[str, pa.DataType]) -> pa.Table:
    return pa.table({name: pa.array(columns[name], kind) for name, kind in kinds.items()})


def _write(root: Path, name: str, table: pa.Table) -> TableStats:
    path = root / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    with open_writer(path, table.schema) as writer:
        writer.write_table(table)
    return TableStats(table.num_rows, path.stat().st_size, None, None)
