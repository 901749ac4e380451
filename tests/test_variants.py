"""Every schema variant against the event formats of four kernels: one fits exactly, or the table is refused by name."""

from pathlib import Path

import polars as pl
import pytest
import traces

import tracekit
from tracekit import schema
from tracekit.errors import MissingEventsError
from tracekit.formats._event_format import parse_format

FORMATS = Path(__file__).resolve().parents[2] / "shared" / "captures" / "formats"
KERNELS = sorted(path.name for path in FORMATS.glob("*/")) if FORMATS.exists() else []
PROBES = ("kprobes:", "fprobes:", "probe:", "unknown:", "ftrace:")
EVENTS = sorted({(event, name) for event, found in schema.variants().items() for v in found for name in v.names})
TRACEPOINTS = [(event, name) for event, name in EVENTS if not name.startswith(PROBES)]
COMMON = {"common_type", "common_flags", "common_preempt_count", "common_pid"}


def fields_of(kernel, name):
    """The fields of an event as ingest names its columns; None where the kernel, or what was kept of it, lacks it."""
    file = FORMATS / kernel / name.replace(":", "/") / "format"
    if not file.exists():
        return None
    parsed = parse_format(name.split(":")[0], file.read_text())
    own = [field.name for field in parsed.fields if field.name not in COMMON]
    return {f"field_{field}" if field in traces.COMMON else field for field in own}


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_event_of_a_kernel_fits_one_variant(kernel):
    fit, absent = {}, []
    for event, name in TRACEPOINTS:
        fields = fields_of(kernel, name)
        if fields is None:
            absent.append(name)
            continue
        fit[name] = [v.file for v in schema.variants()[event] if name in v.names and v.fits(fields)]
    assert {name: found for name, found in fit.items() if len(found) != 1} == {}
    assert len(fit) >= 10, absent


@pytest.mark.parametrize(("event", "name"), EVENTS)
def test_what_one_variant_needs_fits_no_other(event, name):
    mine = [variant for variant in schema.variants()[event] if name in variant.names]
    for one in mine:
        assert [other.file for other in mine if other.fits(set(one.has))] == [one.file]


@pytest.mark.parametrize(("event", "name"), TRACEPOINTS)
def test_unknown_fields_are_refused_by_name(event, name, tmp_path):
    variants = [variant for variant in schema.variants()[event] if name in variant.names]
    needed = [variant for variant in variants if variant.has]
    if len(needed) < len(variants):
        return  # its place in time is all that is needed of it
    columns = {**traces.COMMON, "of_no_kernel": pl.UInt64}
    table = pl.DataFrame({"time_ns": [1]}).with_columns(pl.lit(None).alias(key) for key in columns if key != "time_ns")
    traces.write_tables(tmp_path / "t", {name: table.select(pl.col(key).cast(kind) for key, kind in columns.items())})
    with pytest.raises(MissingEventsError) as refused:
        schema.columns_of(tracekit.open(tmp_path / "t"), name, event)
    for word in (name, "of_no_kernel", *sorted(needed[0].has)):
        assert word in str(refused.value)
