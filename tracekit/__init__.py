"""tracekit: what-if replay of Linux memory-management traces.

import tracekit as tk

trace = tk.ingest("perf.data")                      # or tk.open("perf.data.tracekit")
trace.events("migrate:set_migration_pte")           # polars LazyFrame
result = tk.replay(trace, policies=["counter_early_exit"])
result.summary                                      # polars DataFrame
"""

import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracekit.result import Result
    from tracekit.trace import Trace

__version__ = "0.1.0"
__all__ = ["__version__", "ingest", "open", "replay"]

# Imports live inside the functions: polars and pyarrow take a third of a second, which --help must not pay.


def ingest(path: str | PathLike[str], out: str | PathLike[str] | None = None, *, force: bool = False) -> "Trace":
    """Ingest a trace file into a trace directory (default ``FILE.tracekit``) and open it.

    Raises:
        tracekit.errors.TracekitError: the file is no readable trace, or the directory cannot be written.
    """
    from tracekit.ingest import ingest as ingest_file  # noqa: PLC0415
    from tracekit.trace import open_trace  # noqa: PLC0415

    return open_trace(ingest_file(Path(path), None if out is None else Path(out), force=force))


def open(path: str | PathLike[str]) -> "Trace":  # noqa: A001 -- tk.open is the name that users expect
    """Open a trace directory.

    Raises:
        tracekit.errors.TableError: it is none.
    """
    from tracekit.trace import open_trace  # noqa: PLC0415

    return open_trace(Path(path))


def replay(
    trace: "Trace | str | PathLike[str]",
    policies: Sequence[str] = ("counter_early_exit",),
    *,
    fidelity: str | None = None,
    kernel_has: Mapping[str, str] | None = None,
) -> "Result":
    """Replay a trace (or a trace file) once and judge ``policies``, as ``--policy`` says them.

    ``kernel_has``: policy → variant that the traced kernel has, whatever trace and release say.

    Raises:
        tracekit.errors.TracekitError: the trace cannot be read, or a policy is not known.
    """
    from tracekit import pipeline  # noqa: PLC0415
    from tracekit.trace import Trace  # noqa: PLC0415

    opened = trace if isinstance(trace, Trace) else pipeline.load(Path(trace))
    return pipeline.run(opened, policies, fidelity=fidelity, kernel_has=kernel_has)


class _Face(ModuleType):
    """Keeps ``tk.ingest`` the function: importing the module tracekit.ingest would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "ingest" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
