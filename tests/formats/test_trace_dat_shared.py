"""trace.dat captures that are judged by something else than the text of their own report."""

import json
import shutil
import subprocess
from collections import Counter

import polars as pl
import pytest
from trace_cmd_oracle import CAPTURES, TRUTH, parse_report

from tracekit.ingest import ingest

TRUTHS = sorted(path for path in TRUTH.glob("*/*/*.dat")) if TRUTH.is_dir() else []
FILES = [pytest.param(path, id="/".join(path.parts[-2:])) for path in TRUTHS] or [
    pytest.param(None, marks=pytest.mark.skip(reason=f"no traces at {TRUTH}"))
]
TRACE_CMD = shutil.which("trace-cmd")


def _reported(path):
    """How many events of each name trace-cmd prints, all of a graph's entries with the exits that they hide."""
    report = [TRACE_CMD, "report", "-t", "-i", str(path)]
    text = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.split("\n") if not line.startswith(("CPU ", "version", "cpus"))]
    return Counter((line.instance, line.event) for line in parse_report(lines).lines)


@pytest.mark.parametrize("path", FILES)
def test_measured_traces_hold_what_trace_cmd_counts(path, tmp_path):
    trace = ingest(path, tmp_path / "trace")
    manifest = json.loads((trace / "manifest.json").read_text())
    assert manifest["anomalies"] == {}
    assert manifest["truncated"] is None
    if "events/ftrace/print" in manifest["tables"]:
        marks = pl.read_parquet(trace / "events/ftrace/print.parquet")["buf"].to_list()
        assert Counter(marks)["call_begin"] == Counter(marks)["call_end"] > 0
    if TRACE_CMD is None:
        pytest.skip("trace-cmd is not installed")
    rows = Counter()
    for name, table in manifest["tables"].items():
        if name.startswith("events/"):
            rows["", name.split("/")[-1]] += table["rows"]
    reported = _reported(path)
    for graph in (rows, reported):
        graph.pop(("", "funcgraph_exit"), None)  # test_trace_dat_corpus.py looks at these
    assert rows == reported


def test_one_run_of_both_recorders_lines_up_in_time(tmp_path):
    folder = CAPTURES / "7.2" / "rec.dual"
    if not folder.is_dir():
        pytest.skip(f"no captures at {CAPTURES}")
    perf = ingest(folder / "perf.data", tmp_path / "perf")
    ftrace = ingest(folder / "trace.dat", tmp_path / "ftrace")
    tables = {path: pl.read_parquet(path) for path in sorted((perf / "events").glob("*/*.parquet"))}
    tables = {path: table for path, table in tables.items() if len(table)}
    start = min(table["time_ns"].min() for table in tables.values()) - SLACK_NS
    apart = []
    for path, mine in tables.items():
        theirs = pl.read_parquet(ftrace / path.relative_to(perf))
        # perf followed one process and its children, from when it was attached to it
        theirs = theirs.filter(pl.col("time_ns") >= start, pl.col("tid").is_in(mine["tid"].unique().implode()))
        fields = [name for name in mine.columns if name in theirs.columns and name not in OWN]
        both = [
            table.sort("tid", "time_ns").select("tid", *(pl.col(name).cast(pl.String) for name in fields)).rows()
            for table in (mine, theirs)
        ]
        assert both[0] == both[1], path.stem
        apart += (mine.sort("tid", "time_ns")["time_ns"] - theirs.sort("tid", "time_ns")["time_ns"]).to_list()
    # of one event, ftrace takes the time first and perf some steps later: under emulation a few microseconds, more
    # where an interrupt comes between
    assert len(apart) == 1950
    assert min(apart) > 0
    assert sorted(apart)[len(apart) // 2] < 5_000
    assert max(apart) < 2_000_000


SLACK_NS = 1_000_000
OWN = {"time_ns", "cpu", "pid", "tid", "comm", "callchain_id", "seq", "common_flags", "common_preempt_count"}
