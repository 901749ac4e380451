"""Every trace.dat capture at hand against what trace-cmd report printed for it, row by row, field by field."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from render import NotRenderableError, comparable, renderer
from trace_cmd_oracle import CAPTURES, Line, read_report, reported_captures

from tracekit.ingest import ingest

EXACT = ("migrate:", "kprobes:", "sched:", "kmem:rss_stat", "syscalls:")
"""Events that must be compared text by text; of the others, all whose print fmt the tests can follow."""
FOLDERS = [pytest.param(folder, id=f"{folder.parent.name}/{folder.name}") for folder in reported_captures()] or [
    pytest.param(None, marks=pytest.mark.skip(reason=f"no captures at {CAPTURES}"))
]
_CAST = re.compile(r"\(\(unsigned long\)\(REC->(\w+)\)\)")  # round each argument of a system call
_GRAPH = re.compile(r"^\s*(?:[!+#@*$]? *(?P<us>[\d.]+) us)?\s*\|  (?P<indent> *)(?P<text>\S.*?)\s*$")


class Trace:
    """A trace directory, read with nothing of tracekit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = json.loads((path / "manifest.json").read_text())
        self.rows = {name: table["rows"] for name, table in self.manifest["tables"].items()}

    def event_tables(self) -> dict[tuple[str, str], list[str]]:
        """Tables by instance and name of the event without its group: all that a line of text tells."""
        found = defaultdict(list)
        for name in self.rows:
            match = re.fullmatch(r"(?:instances/(?P<instance>[^/]+)/)?events/[^/]+/(?P<event>[^/]+)", name)
            if match:
                found[match["instance"] or "", match["event"]].append(name)
        return found

    def table(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.path / f"{name}.parquet")

    def format_text(self, name: str) -> str:
        return pq.read_schema(self.path / f"{name}.parquet").metadata[b"tracekit.format"].decode()


@pytest.mark.parametrize("folder", FOLDERS)
def test_rows_and_values_equal_trace_cmd_report(folder, tmp_path):
    trace = Trace(ingest(folder / "trace.dat", tmp_path / "trace"))
    assert trace.manifest["anomalies"] == {}
    assert trace.manifest["truncated"] is None
    report = read_report(folder)
    expected = defaultdict(list)
    for line in report.lines:
        expected[line.instance, line.event].append(line)
    tables = trace.event_tables()
    leaves = _merged_leaves(trace)
    rows = {key: sum(trace.rows[name] for name in names) for key, names in tables.items()}
    rows["", "funcgraph_exit"] = rows.get(("", "funcgraph_exit"), 0) - len(leaves)
    assert {key: count for key, count in rows.items() if count} == Counter(
        (line.instance, line.event) for line in report.lines
    )
    for key, lines in expected.items():
        if "funcgraph" not in key[1]:
            _compare(trace, tables[key], lines)
    _compare_graph(trace, expected, leaves)
    _compare_lost(trace, report.dropped)


def _compare(trace: Trace, names: list[str], lines: list[Line]) -> None:
    frames = {name: trace.table(name) for name in names}
    common = pl.concat([
        table.select("time_ns", "cpu", "tid", pl.col("comm").cast(pl.String), "common_flags", "common_preempt_count",
                     "seq", table=pl.lit(name)).with_row_index()
        for name, table in frames.items()
    ]).sort("time_ns", "cpu", "seq")  # fmt: skip
    got = common.select("time_ns", "cpu", "tid", "comm").rows()
    assert got == [(line.time_ns, line.cpu, line.tid, line.comm) for line in lines], names
    flags = common.select("common_flags", "common_preempt_count").rows()
    said = {(*row, line.flags) for row, line in zip(flags, lines, strict=True)}
    assert {(*row[:2], _flags(*row[:2])) for row in said} == said, (names, sorted(said))
    assert common["seq"].n_unique() == len(common)
    by_table = defaultdict(list)
    for name, row, line in zip(common["table"], common["index"], lines, strict=True):
        by_table[name].append((row, line))
    for name, pairs in by_table.items():
        _compare_fields(trace, name, frames[name], pairs)


def _flags(flags: int, preempt: int) -> str:
    """As trace-cmd prints them: libtraceevent event-parse.c data_latency_format()."""
    interrupt = {0x18: "H", 0x08: "h", 0x10: "s", 0: "."}[flags & 0x18]
    said = ("d" if flags & 1 else "X" if flags & 2 else ".") + ("N" if flags & 4 else ".")
    return said + interrupt + "".join(f"{part:x}" if part else "." for part in (preempt & 15, preempt >> 4))


def _compare_fields(trace: Trace, name: str, table: pl.DataFrame, pairs: list[tuple[int, Line]]) -> None:
    event = ":".join(name.split("/")[-2:])
    rows = list(table.iter_rows(named=True))
    if event == "ftrace:kernel_stack":
        for row, line in pairs:
            assert [address for _, address in line.frames] == rows[row]["caller"]
        return
    if event == "ftrace:function":
        assert [rows[row]["ip_name"] for row, _ in pairs] == [line.text.strip() for _, line in pairs]
        return
    columns = {name: str(dtype).lower() for name, dtype in table.schema.items()}
    try:
        plain = _CAST.sub(r"REC->\1", trace.format_text(name))
        render = renderer(event, plain, columns)
    except NotRenderableError:
        assert not event.startswith(EXACT), f"{event} was not compared"
        return
    for row, line in pairs:
        text = line.text.strip()
        assert render(rows[row]).strip() == comparable(event, text), (event, text)


def _merged_leaves(trace: Trace) -> pl.DataFrame:
    """Entries that trace-cmd prints in one line with their exit, which is the next event of all CPUs."""
    if "events/ftrace/funcgraph_exit" not in trace.rows:
        return pl.DataFrame({"exit_seq": []}, schema={"exit_seq": pl.UInt64})
    columns = ["time_ns", "cpu", "seq", "tid", "func"]
    entries = trace.table("events/ftrace/funcgraph_entry").select(*columns, exit=pl.lit(False))
    exits = trace.table("events/ftrace/funcgraph_exit").select(*columns, "calltime", "rettime", exit=pl.lit(True))
    both = pl.concat([entries, exits], how="diagonal").sort("time_ns", "cpu", "seq")
    after = [pl.col(name).shift(-1) for name in (*columns, "exit", "calltime", "rettime")]
    pairs = both.with_columns(column.name.prefix("next_") for column in after)
    same = [pl.col(name) == pl.col(f"next_{name}") for name in ("cpu", "tid", "func")]
    leaves = pairs.filter(~pl.col("exit"), pl.col("next_exit"), *same)
    return leaves.select("cpu", "seq", exit_seq="next_seq", ns=pl.col("next_rettime") - pl.col("next_calltime"))


def _compare_graph(trace: Trace, expected: dict[tuple[str, str], list[Line]], leaves: pl.DataFrame) -> None:
    if ("", "funcgraph_entry") not in expected:
        return
    entries = trace.table("events/ftrace/funcgraph_entry").join(leaves, on=["cpu", "seq"], how="left")
    exits = trace.table("events/ftrace/funcgraph_exit").join(leaves, left_on="seq", right_on="exit_seq", how="anti")
    exits = exits.with_columns(ns=pl.col("rettime") - pl.col("calltime"))
    for kind, unsorted in (("entry", entries), ("exit", exits)):
        table = unsorted.sort("time_ns", "cpu", "seq")
        lines = expected["", f"funcgraph_{kind}"]
        common = table.select("time_ns", "cpu", "tid", pl.col("comm").cast(pl.String)).rows()
        assert common == [(line.time_ns, line.cpu, line.tid, line.comm) for line in lines]
        for line, row in zip(lines, table.iter_rows(named=True), strict=True):
            said = _GRAPH.match(line.text)
            assert said is not None, line
            assert (said["us"] and round(float(said["us"]) * 1000)) == row["ns"], line
            assert len(said["indent"]) == 2 * row["depth"], line
            if kind == "entry":
                assert said["text"] == f"{row['func_name']}()" + (" {" if row["ns"] is None else ";")
    _check_calls(trace, entries)


def _check_calls(trace: Trace, entries: pl.DataFrame) -> None:
    """The derived table against its own events, with a stack for each task."""
    calls = trace.table("function_graph")
    exits = trace.table("events/ftrace/funcgraph_exit")
    columns = ["time_ns", "cpu", "seq", "tid", "func", "depth"]
    both = pl.concat([
        entries.select(*columns, exit=pl.lit(False), ns=pl.lit(None, pl.Int64)).cast({"depth": pl.Int64}),
        exits.select(*columns, exit=pl.lit(True), ns=(pl.col("rettime") - pl.col("calltime")).cast(pl.Int64)).cast(
            {"depth": pl.Int64}
        ),
    ]).sort("time_ns", "cpu", "seq")  # fmt: skip
    stacks: dict[tuple[int, int], dict[int, tuple[int, int]]] = defaultdict(dict)
    pairs = {}
    for _, cpu, seq, tid, func, depth, is_exit, ns in both.rows():
        stack = stacks[tid, cpu if tid == 0 else -1]
        if not is_exit:
            stack[depth] = (func, seq)
        elif stack.get(depth, (None, 0))[0] == func:
            pairs[stack.pop(depth)[1]] = (seq, ns)
    got = calls.filter(pl.col("entry_seq").is_not_null(), pl.col("exit_seq").is_not_null())
    assert {row[0]: row[1:] for row in got.select("entry_seq", "exit_seq", "duration_ns").rows()} == pairs
    assert len(calls) == len(entries) + len(exits) - len(pairs)
    assert calls["time_ns"].is_sorted()


def _compare_lost(trace: Trace, dropped: list[tuple[int, int | None, int]]) -> None:
    """trace-cmd tells of a loss before the event that follows it."""
    if not dropped:
        assert "lost" not in trace.rows
        return
    lost = trace.table("lost")
    assert Counter(lost.select("cpu", "count").rows()) == Counter((cpu, count) for cpu, count, _ in dropped)
    events = pl.concat([
        trace.table(name).select("cpu", "seq", "time_ns") for name in trace.rows if name.startswith("events/")
    ]).sort("seq")  # fmt: skip
    for cpu, count, seen in dropped:
        mine = events.filter(pl.col("cpu") == cpu)
        next_event = mine.row(seen, named=True)
        row = lost.filter(pl.col("cpu") == cpu, pl.col("seq") <= next_event["seq"]).sort("seq").row(-1, named=True)
        assert row["count"] == count
        assert seen == 0 or mine.row(seen - 1, named=True)["seq"] < row["seq"]
        assert row["time_ns"] <= next_event["time_ns"]
