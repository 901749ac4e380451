"""Every regular perf.data capture at hand against what perf script printed for it, row by row, field by field."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from oracle import CAPTURES, UNPRINTED, Line, read_script, regular_captures
from render import NotRenderableError, comparable, renderer

from tracekit.ingest import ingest

FOLDERS = regular_captures()
FIXTURES = Path(__file__).parents[2] / "fixtures"
EXACT = ("migrate:", "kprobes:", "sched:", "kmem:rss_stat")
"""Events that must be compared text by text; of the others, all whose print fmt the tests can follow."""

BOTH = [pytest.param(folder, id=f"{folder.parent.name}/{folder.name}") for folder in FOLDERS] or [
    pytest.param(None, marks=pytest.mark.skip(reason=f"no captures at {CAPTURES}"))
]


def _table(trace: Path, event: str) -> pl.DataFrame:
    return pl.read_parquet(trace / "events" / (event.replace(":", "/") + ".parquet"))


def _by_event(lines: list[Line]) -> dict[str, list[Line]]:
    events = defaultdict(list)
    for line in lines:
        events[line.event].append(line)
    return events


@pytest.mark.parametrize("folder", BOTH)
def test_rows_and_values_equal_perf_script(folder, tmp_path):
    trace = ingest(folder / "perf.data", tmp_path / "trace")
    manifest = json.loads((trace / "manifest.json").read_text())
    lines = list(read_script(folder))
    tables = {name: table["rows"] for name, table in manifest["tables"].items()}
    rows = {name[7:].replace("/", ":"): count for name, count in tables.items() if name.startswith("events/")}
    # an event that was switched on but never fired has a table too
    assert {event: count for event, count in rows.items() if count} == Counter(line.event for line in lines)
    assert manifest["truncated"] is None
    assert manifest["anomalies"] == {}
    for event, expected in _by_event(lines).items():
        _compare(trace, event, expected)


def _compare(trace: Path, event: str, expected: list[Line]) -> None:
    table = _table(trace, event)
    # perf prints what came late where it came, tracekit where it belongs
    expected = sorted(expected, key=lambda line: (line.time_ns, line.cpu))
    common = table.select("time_ns", "cpu", "pid", "tid", pl.col("comm").cast(pl.String)).rows()
    if expected[0].pid == UNPRINTED:
        common = [(time_ns, cpu, UNPRINTED, *others) for time_ns, cpu, _, *others in common]
    assert common == [(line.time_ns, line.cpu, line.pid, line.tid, line.comm) for line in expected], event
    assert table["seq"].n_unique() == len(table)
    path = trace / "events" / (event.replace(":", "/") + ".parquet")
    format_text = pq.read_schema(path).metadata[b"tracekit.format"].decode()
    columns = {name: str(dtype).lower() for name, dtype in table.schema.items()}
    try:
        render = renderer(event, format_text, columns)
    except NotRenderableError:
        assert not event.startswith(EXACT), f"{event} was not compared"
        return
    for row, line in zip(table.iter_rows(named=True), expected, strict=True):
        if not line.text.startswith("[FAILED TO PARSE]"):
            assert render(row) == comparable(event, line.text), event


def test_lost_events_equal_what_perf_header_says(tmp_path):
    folder = CAPTURES / "7.2" / "rec.perf-lost"
    if not folder.is_dir():
        pytest.skip(f"no captures at {CAPTURES}")
    trace = ingest(folder / "perf.data", tmp_path / "trace")
    lost = pl.read_parquet(trace / "lost.parquet")
    assert json.loads((trace / "manifest.json").read_text())["lost"] == {"events": 11542 - 1315, "records": 62}
    assert dict(lost["kind"].value_counts().rows()) == {"lost": 19, "lost_samples": 43}


def test_call_chains_are_distinct_and_referred_to(tmp_path):
    folder = CAPTURES / "7.2" / "rec.perf-g"
    if not folder.is_dir():
        pytest.skip(f"no captures at {CAPTURES}")
    trace = ingest(folder / "perf.data", tmp_path / "trace")
    chains = pl.read_parquet(trace / "callchains.parquet")
    assert chains["ips"].n_unique() == len(chains)
    assert chains["callchain_id"].to_list() == list(range(len(chains)))
    used = {
        number
        for path in (trace / "events").rglob("*.parquet")
        for number in pl.read_parquet(path)["callchain_id"].to_list()
    }
    assert used - {None} == set(range(len(chains)))
    # PERF_CONTEXT_KERNEL or, for what a page fault's own tracepoint leaves of it, PERF_CONTEXT_USER opens each chain
    assert {ips[0] for ips in chains["ips"].to_list()} <= {(1 << 64) - 128, (1 << 64) - 512}
