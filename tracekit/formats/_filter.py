"""Rows by time, CPU and task, for any reader: a sink in front of the sink."""

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tracekit import _columns
from tracekit.formats import ReadOptions, Sink

_FILTERED = re.compile(r"(instances/[^/]*/)?(events/|samples/|function_graph$)")


class FilteredSink(NamedTuple):
    """Hands on the rows of events, samples and calls that ``options`` ask for; the other tables whole.

    What has no CPU or no task belongs to none of those asked for.
    """

    sink: Sink
    options: ReadOptions

    def append(self, table: str, batch: pa.RecordBatch) -> None:
        """See tracekit.formats.Sink."""
        if _FILTERED.match(table):
            keep = self._wanted(batch)
            if not keep.all():
                index = _columns.numbers(np.flatnonzero(keep))
                batch = batch.take(index)
        self.sink.append(table, batch)

    def settle(self) -> None:
        """See tracekit.formats.Sink."""
        self.sink.settle()

    def _wanted(self, batch: pa.RecordBatch) -> np.ndarray:
        keep = np.ones(batch.num_rows, bool)
        from_ns, to_ns, cpus, pids = self.options.from_ns, self.options.to_ns, self.options.cpus, self.options.pids
        if from_ns is not None:
            keep &= _values(batch, "time_ns") >= from_ns
        if to_ns is not None:
            keep &= _values(batch, "time_ns") <= to_ns
        if cpus is not None:
            keep &= np.isin(_values(batch, "cpu"), list(cpus))
        if pids is not None:
            tasks = [name for name in ("pid", "tid") if name in batch.schema.names]
            keep &= np.any([np.isin(_values(batch, name), list(pids)) for name in tasks], axis=0)
        return keep


def _values(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column as NumPy, −1 where it is null."""
    column = batch.column(name)
    values: np.ndarray = column.fill_null(-1).to_numpy(zero_copy_only=False)
    return values


def filtered(sink: Sink, options: ReadOptions) -> Sink:
    """``sink``, or what stands in front of it if rows are to be left out."""
    wanted = (options.from_ns, options.to_ns, options.cpus, options.pids)
    return sink if all(one is None for one in wanted) else FilteredSink(sink, options)
