"""perf script of the perf that is here, printed in many ways, against the tables of its perf.data."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

from tracekit.ingest import ingest

EVENTS = (
    "sched:sched_switch,sched:sched_process_fork,sched:sched_process_exit,task:task_newtask,kmem:rss_stat,tlb:tlb_flush"
)
WORK = "for i in 1 2 3 4 5 6 7 8; do /bin/true; done; sh -c 'sleep 0.01'"
EVERYTHING = {"comm", "pid", "tid", "cpu"}


def perf(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["perf", *arguments], cwd=cwd, capture_output=True, text=True, check=False, errors="replace")
    if done.returncode:
        pytest.skip(f"perf {arguments[0]} does not work here: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("perf") is None or not Path("/sys/kernel/tracing/events").is_dir() or os.geteuid():
        pytest.skip("needs perf, tracefs and root")
    folder = tmp_path_factory.mktemp("live")
    perf("record", "-q", "-g", "-e", EVENTS, "-o", "perf.data", "--", "sh", "-c", WORK, cwd=folder)
    ingest(folder / "perf.data", folder / "binary")
    return folder


def from_text(recording: Path, tmp_path: Path, *arguments: str) -> tuple[Path, dict, str]:
    text = perf("script", "-i", "perf.data", *arguments, cwd=recording)
    (tmp_path / "text").write_text(text)
    trace = ingest(tmp_path / "text", tmp_path / "trace")
    return trace, json.loads((trace / "manifest.json").read_text()), text


@pytest.mark.parametrize("ns", [True, False], ids=["ns", "us"])
@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        (None, {"comm", "tid", "cpu"}),
        ("+pid", EVERYTHING),
        ("comm,tid,time,event,trace", {"comm", "tid"}),
        ("comm,pid,tid,cpu,time,event,trace", EVERYTHING),
        ("tid,cpu,time,event,trace", {"tid", "cpu"}),
        ("pid,tid,time,event,trace", {"pid", "tid"}),
        ("cpu,time,event,trace", {"cpu"}),
        ("time,event,trace", set()),
        ("comm,tid,cpu,time,period,event,trace", {"comm", "tid", "cpu"}),
    ],
)
def test_any_choice_of_fields(
    recording: Path, tmp_path: Path, fields: str | None, shown: set[str], *, ns: bool
) -> None:
    without_chains = "-G" if fields in {None, "+pid"} else "--no-inline"
    arguments = [*(["-F", fields] if fields else []), *(["--ns"] if ns else []), without_chains]
    trace, manifest, text = from_text(recording, tmp_path, *arguments)
    assert manifest["anomalies"] == {}
    assert manifest["clock"]["resolution_ns"] == (1 if ns else 1000)
    compare(recording / "binary", trace, shown, ns=ns)
    assert len(text) > 1000


def compare(binary: Path, trace: Path, shown: set[str], *, ns: bool) -> None:
    theirs = {path.relative_to(binary) for path in binary.glob("events/*/*.parquet")}
    assert {path.relative_to(trace) for path in trace.glob("events/*/*.parquet")} == theirs
    for path in theirs:
        one, other = pl.read_parquet(binary / path), pl.read_parquet(trace / path)
        assert one.height == other.height
        # the text is in perf's order, and microseconds hide that of the tables
        one, other = one.sort("time_ns", "cpu", "seq"), other.sort("seq" if not ns else "time_ns", "seq")
        time_ns = one["time_ns"] if ns else one["time_ns"] // 1000 * 1000
        assert other["time_ns"].sort().to_list() == time_ns.sort().to_list()
        for column in EVERYTHING:
            values = other[column].cast(pl.String).to_list() if column == "comm" else other[column].to_list()
            expected = one[column].cast(pl.String).to_list() if column == "comm" else one[column].to_list()
            assert sorted(map(str, values)) == sorted(map(str, expected if column in shown else [None] * len(values)))
        fields = [column for column in one.columns if column in other.columns][7:]
        assert fields or path.stem == "sched_switch"
        for column in fields:
            values = (frame[column].cast(pl.String).to_list() for frame in (one, other))
            a, b = (sorted(map(str, column_values)) for column_values in values)
            assert a == b or (path.stem, column) == ("tlb_flush", "reason_name"), (path, column)


def test_call_chains_are_those_of_the_file(recording: Path, tmp_path: Path) -> None:
    trace, manifest, text = from_text(recording, tmp_path, "--ns", "-F", "comm,tid,cpu,time,event,trace,ip,sym")
    assert manifest["anomalies"] == {}
    stacks = [
        [int(found[1], 16) for found in re.finditer(r"^\s+([0-9a-f]+) ", stack, re.MULTILINE)]
        for stack in re.split(r"^(?=\S|\s+\S+\s+\d+ +\[)", text, flags=re.MULTILINE)
    ]
    chains = pl.read_parquet(trace / "callchains.parquet")
    assert {tuple(ips) for ips in chains["ips"].to_list()} == {tuple(stack) for stack in stacks if stack}
    rows = pl.concat([pl.read_parquet(p, columns=["callchain_id"]) for p in trace.glob("events/*/*.parquet")])
    assert len(rows) - rows["callchain_id"].null_count() == sum(1 for stack in stacks if stack)
    assert chains["symbols"].explode().drop_nulls().str.len_chars().min() > 0
