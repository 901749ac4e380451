"""A trace file becomes a trace directory: whole or absent, sorted, the same however it is cut into windows."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent / "formats"))
import synthetic as syn

from tracekit import __version__, _parquet, pipeline, resources
from tracekit._columns import labels, numbers
from tracekit._parquet import Tables
from tracekit.errors import OutputError, TraceFormatError
from tracekit.formats import _backlog, _perf_stream, _perf_walk
from tracekit.ingest import fidelity, ingest

DEMO = Path(__file__).parents[1] / "fixtures" / "demo.perf.data"
SCHEMA = json.loads((resources.schemas() / "manifest.schema.json").read_text())


def _manifest(trace: Path) -> dict:
    manifest = json.loads((trace / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA, cls=jsonschema.Draft202012Validator)
    return manifest


def _ingest(tmp_path: Path, data: bytes, **options) -> tuple[Path, dict]:
    source = tmp_path / "perf.data"
    source.write_bytes(data)
    trace = ingest(source, tmp_path / "trace", force=True, **options)
    return trace, _manifest(trace)


def _events(trace: Path, event: str = "test/event") -> pl.DataFrame:
    return pl.read_parquet(trace / "events" / f"{event}.parquet").with_columns(pl.col("comm").cast(pl.String))


def _digest(trace: Path) -> dict[str, list]:
    return {str(path.relative_to(trace)): pl.read_parquet(path).rows() for path in sorted(trace.rglob("*.parquet"))}


def test_demo_capture(tmp_path):
    trace = ingest(DEMO, tmp_path / "trace")
    manifest = _manifest(trace)
    assert manifest["source"] == {
        "name": "demo.perf.data",
        "size_bytes": DEMO.stat().st_size,
        "sha256": hashlib.sha256(DEMO.read_bytes()).hexdigest(),
        "format": "perf.data",
    }
    assert manifest["truncated"] is None
    for name, table in manifest["tables"].items():
        rows = pl.read_parquet(trace / f"{name}.parquet")
        assert len(rows) == table["rows"]
        assert (trace / f"{name}.parquet").stat().st_size == table["bytes"]
        keys = [key for key in ("time_ns", "cpu", "seq") if key in rows.columns]
        assert rows.select(keys).equals(rows.select(keys).sort(keys, maintain_order=True)), name
    assert {path.name for path in trace.iterdir()} >= {"manifest.json", "events", "tasks.parquet", "maps.parquet"}


def test_the_version_is_that_of_the_package():
    assert __version__ == sys.modules["tracekit.ingest"].VERSION


def test_default_target_stands_beside_the_source(tmp_path):
    source = tmp_path / "my.perf.data"
    source.write_bytes(DEMO.read_bytes())
    assert ingest(source) == tmp_path / "my.perf.data.tracekit"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.perf.data", "my.perf.data.tracekit"]


def test_existing_target_is_kept_without_force_and_replaced_with(tmp_path):
    target = tmp_path / "trace"
    target.mkdir()
    (target / "mine").write_text("precious")
    with pytest.raises(OutputError, match="--force"):
        ingest(DEMO, target)
    assert (target / "mine").read_text() == "precious"
    ingest(DEMO, target, force=True)
    assert not (target / "mine").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]


def test_force_keeps_the_old_one_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "trace"
    ingest(DEMO, target)
    before = (target / "manifest.json").read_text()
    (tmp_path / "bad.data").write_bytes(DEMO.read_bytes()[:90])
    with pytest.raises(TraceFormatError):
        ingest(tmp_path / "bad.data", target, force=True)
    assert (target / "manifest.json").read_text() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
def test_nothing_is_left_behind(tmp_path, monkeypatch, error):
    monkeypatch.setattr(_parquet._Table, "close", lambda _: (_ for _ in ()).throw(error))
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        ingest(DEMO, tmp_path / "trace")
    assert list(tmp_path.iterdir()) == []


def test_error_in_a_thread_comes_out_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Tables, "append", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="No space left"):
        ingest(DEMO, tmp_path / "trace", jobs=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("cpus", "threads"), [({5}, 1), ({0, 7}, 2), (set(range(64)), 4)])
def test_threads_by_default(tmp_path, monkeypatch, cpus, threads):
    """Those that the process may use, and few: more take memory, and no less time."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: cpus, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 128)
    asked, close = [], Tables.close
    monkeypatch.setattr(Tables, "close", lambda tables, jobs: (asked.append(jobs), close(tables, jobs))[1])
    ingest(DEMO, tmp_path / "trace")
    assert asked == [threads]


def test_missing_folder_of_the_target(tmp_path):
    with pytest.raises(OutputError):
        ingest(DEMO, tmp_path / "no" / "trace")


def test_progress_ends_at_the_whole(tmp_path):
    seen = []
    ingest(DEMO, tmp_path / "trace", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)


def test_events_filter(tmp_path):
    trace = ingest(DEMO, tmp_path / "trace", events=["migrate:*", "kmem:rss_st?t"])
    assert {path.name for path in (trace / "events").iterdir()} <= {"migrate", "kmem"}
    everything = ingest(DEMO, tmp_path / "all")
    one = "events/migrate/set_migration_pte.parquet"
    assert pl.read_parquet(trace / one).equals(pl.read_parquet(everything / one))


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("window", [1 << 12, 1 << 16])
def test_windows_and_threads_do_not_matter(tmp_path, monkeypatch, window, jobs):
    whole = _digest(ingest(DEMO, tmp_path / "whole", jobs=1))
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", window)
    monkeypatch.setattr(_parquet, "BUDGET_BYTES", 1 << 12)
    assert _digest(ingest(DEMO, tmp_path / "cut", jobs=jobs)) == whole


# --- order -------------------------------------------------------------------------------------------------------


def test_rounds_bring_cpus_into_order(tmp_path, monkeypatch):
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", 1 << 12)
    monkeypatch.setattr(_parquet, "ROW_GROUP_ROWS", 1)
    monkeypatch.setattr(_backlog, "BATCH_BYTES", 1)
    monkeypatch.setattr(Tables.__init__, "__defaults__", (0,))
    rng = random.Random(1)
    data = b""
    for number in range(60):
        for cpu in rng.sample(range(4), 4):
            # reaches into the next round, never into the one after it: what perf's rule promises
            begin = 1000 * number + rng.randrange(300)
            data += b"".join(syn.sample(begin + 80 * step, cpu) for step in range(rng.randrange(1, 20)))
        data += syn.ROUND
    trace, manifest = _ingest(tmp_path, syn.perf_data(data))
    rows = _events(trace)
    assert len(rows) == data.count(syn.sample(0)[:8])
    assert rows["value"].to_list() == rows["time_ns"].to_list()
    assert rows.rows() == rows.sort("time_ns", "cpu", "seq").rows()
    assert manifest["anomalies"] == {}


@pytest.mark.parametrize("budget", [1 << 10, 1 << 26])
@pytest.mark.parametrize("group", [50, 1 << 18])
@pytest.mark.parametrize("batch", [1, 1 << 13, 1 << 23])
def test_rows_that_break_their_round_are_merged(tmp_path, monkeypatch, budget, group, batch):
    """Late by one row, by a whole window, and by almost everything."""
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", 1 << 13)
    monkeypatch.setattr(_parquet, "ROW_GROUP_ROWS", group)
    monkeypatch.setattr(_backlog, "BATCH_BYTES", batch)
    monkeypatch.setattr(_parquet, "MERGE_ROWS", 64)
    monkeypatch.setattr(Tables.__init__, "__defaults__", (budget,))
    rng = random.Random(2)
    times = list(range(10_000, 14_000))
    for place in (300, 2000, 2001, 3500):
        times.insert(place, rng.randrange(10_000))
    late = list(range(11_000, 11_400))
    times[3000:3000] = late
    data = b"".join(syn.sample(time) + (syn.ROUND if place % 10 == 9 else b"") for place, time in enumerate(times))
    trace, manifest = _ingest(tmp_path, syn.perf_data(data))
    rows = _events(trace)
    assert rows["time_ns"].to_list() == sorted(times)
    assert rows.rows() == rows.sort("time_ns", "cpu", "seq").rows()
    assert not [path for path in trace.rglob("*") if "late" in path.name]
    if group == 50 and batch == 1:
        assert manifest["anomalies"]["out_of_order_records"] >= 4


def test_no_rounds_at_all_stays_bounded_and_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", 1 << 14)
    monkeypatch.setattr(_perf_walk, "CARRY_BYTES", 1 << 15)
    blocks = [[syn.sample(cpu + 10 * step, cpu) for step in range(4000)] for cpu in range(2)]
    data = b"".join(
        blocks[cpu][step] for start in range(0, 4000, 500) for cpu in range(2) for step in range(start, start + 500)
    )
    trace, manifest = _ingest(tmp_path, syn.perf_data(data))
    rows = _events(trace)
    assert len(rows) == 8000
    assert rows.rows() == rows.sort("time_ns", "cpu", "seq").rows()
    assert manifest["anomalies"]["flushed_before_end_of_round"] > 0


def test_ties_go_by_cpu_then_place(tmp_path):
    data = b"".join(syn.sample(5, cpu) for cpu in (3, 1, 2, 1))
    trace, _ = _ingest(tmp_path, syn.perf_data(data))
    rows = _events(trace)
    assert rows["cpu"].to_list() == [1, 1, 2, 3]
    assert rows["seq"].is_sorted() is False
    assert rows["seq"][0] < rows["seq"][1]


def _batch(times: list[int], seq: int) -> pa.RecordBatch:
    count = len(times)
    columns = {
        "time_ns": numbers(np.array(times, np.int64)),
        "cpu": numbers(np.zeros(count, np.int32)),
        "comm": labels(np.array([time % 3 - 1 for time in times], np.int64), ["a", "b"]),
        "seq": numbers(np.arange(seq, seq + count, dtype=np.uint64)),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


@pytest.mark.parametrize("seed", range(12))
def test_tables_sort_whatever_comes(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr(_parquet, "ROW_GROUP_ROWS", rng.choice([1, 7, 100]))
    monkeypatch.setattr(_parquet, "ROW_GROUP_BYTES", rng.choice([1, 500, 1 << 20]))
    monkeypatch.setattr(_parquet, "DIRECT_ROWS", rng.choice([5, 1 << 15]))
    monkeypatch.setattr(_parquet, "MERGE_ROWS", rng.choice([1, 5, 64]))
    tables = Tables(tmp_path, budget_bytes=rng.choice([0, 1000, 1 << 20]))
    seq, expected = 0, []
    for _ in range(40):
        times = sorted(rng.randrange(50) for _ in range(rng.randrange(0, 20)))
        tables.append("events/a/b", _batch(times, seq))
        expected += [(time, seq + place) for place, time in enumerate(times)]
        seq += len(times)
        if rng.random() < 0.5:
            tables.settle()
            assert sum(table.buffered_bytes for table in tables._tables.values()) <= tables.budget_bytes
    stats = tables.close()["events/a/b"]
    rows = pl.read_parquet(tmp_path / "events/a/b.parquet")
    assert rows.select("time_ns", "seq").rows() == sorted(expected)
    assert rows["comm"].cast(pl.String).to_list() == [[None, "a", "b"][time % 3] for time, _ in sorted(expected)]
    assert stats.rows == len(rows)
    assert (stats.first_ns, stats.last_ns) == (rows["time_ns"].min(), rows["time_ns"].max())
    assert [path.name for path in tmp_path.rglob("*.late*")] == []


# --- names of tasks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1 << 10, 1 << 20])
def test_names_follow_comm_fork_and_exit_in_time(tmp_path, monkeypatch, window):
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", window)
    data = (
        syn.comm(0, 5, "first")
        + b"".join(syn.sample(time, tid=0) for time in range(2, 20))
        + syn.sample(21, tid=5) + syn.sample(24, tid=6) + syn.sample(28, tid=6) + syn.sample(40, tid=5)
        + syn.sample(60, tid=6) + syn.sample(61, tid=9) + syn.sample(62, tid=0xFFFFFFFF) + syn.sample(63, tid=1 << 30)
        + syn.fork(22, 6, 5, cpu=1) + syn.comm(26, 6, "second", cpu=1) + syn.comm(30, 5, "third", cpu=1)
        + syn.gone(50, 6, cpu=1) + syn.ROUND
    )  # fmt: skip
    trace, manifest = _ingest(tmp_path, syn.perf_data(data))
    rows = _events(trace).filter(pl.col("time_ns") > 20)
    assert rows["comm"].to_list() == ["first", "first", "second", "third", None, None, None, None]
    assert rows["tid"].to_list() == [5, 6, 6, 5, 6, 9, None, 1 << 30]
    assert set(_events(trace).filter(pl.col("tid") == 0)["comm"]) == {"swapper"}
    tasks = pl.read_parquet(trace / "tasks.parquet").with_columns(pl.col(pl.Categorical).cast(pl.String))
    assert tasks.select("time_ns", "tid", "kind", "comm", "ptid").rows() == [
        (0, 5, "comm", "first", None), (22, 6, "fork", "first", 5), (26, 6, "comm", "second", None),
        (30, 5, "comm", "third", None), (50, 6, "exit", "second", 1),
    ]  # fmt: skip
    assert manifest["anomalies"] == {}


# --- the rest ----------------------------------------------------------------------------------------------------


def test_names_in_the_file_lead_nowhere_else(tmp_path):
    evil = syn.Event(77, "../../../evil", "..")
    source = tmp_path / "in" / "deep" / "perf.data"
    source.parent.mkdir(parents=True)
    source.write_bytes(syn.perf_data(syn.sample(1), [evil]))
    ingest(source, source.parent / "trace")
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and "trace" not in path.parts]
    assert outside == [source]


def test_two_events_of_one_file_name_get_two_tables(tmp_path):
    events = [syn.Event(77, "a b", "event"), syn.Event(78, "a_b", "event")]
    trace, _ = _ingest(tmp_path, syn.perf_data(syn.sample(1, number=1) + syn.sample(2, number=2), events))
    assert sorted(path.name for path in trace.rglob("*.parquet")) == ["event.parquet", "event_.parquet"]


def test_fidelity_follows_the_tables():
    migrate, tasks = {"events/migrate/set_migration_pte": 0}, {"tasks": 0, "maps": 0}
    probes = {"events/probe/try_to_migrate_one": 0, "events/kprobes/remove_migration_pte": 0}
    assert fidelity({}, "x86_64") is None
    assert fidelity(tasks, "x86_64") is None
    assert fidelity(migrate, "x86_64") == "counts"
    assert fidelity(migrate | tasks, "x86_64") == "reconstructed"
    assert fidelity(migrate | tasks, None) == "counts"  # text does not tell the machine, nor what its entries mean
    assert fidelity(migrate | tasks | probes, None) == "observed"
    assert fidelity(migrate | {"events/probe/try_to_migrate_one": 0}, "x86_64") == "counts"


def test_ingest_imports_no_pandas_and_no_polars(tmp_path):
    code = (
        "import sys, types, pathlib\n"
        "class Trap:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('pandas', 'polars', 'matplotlib'): raise SystemExit('imports ' + name)\n"
        "sys.meta_path.insert(0, Trap())\n"
        "from tracekit.ingest import ingest\n"
        f"ingest(pathlib.Path({str(DEMO)!r}), pathlib.Path({str(tmp_path / 'trace')!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_listing_formats_imports_neither_numpy_nor_pyarrow():
    code = (
        "import sys; from tracekit import formats; r = formats.readers()\n"
        "assert [x.NAME for x in r] and all(x.DESCRIPTION and x.EXTENSIONS for x in r)\n"
        "assert not {'numpy', 'pyarrow'} & set(sys.modules), 'heavy'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems have no such names")
def test_a_name_that_is_no_utf8(tmp_path):
    source = tmp_path / os.fsdecode(b"a\xff.data")
    source.write_bytes(DEMO.read_bytes())
    with pytest.raises(OutputError, match="UTF-8"):
        ingest(source)
    trace = ingest(source, tmp_path / "trace")
    assert json.loads((trace / "manifest.json").read_text())["source"]["name"] == "a\\xff.data"
    assert pipeline.load(source).manifest["source"]["name"] == "a\\xff.data"
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, "trace"]
