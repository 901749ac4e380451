"""Counters that samples read, and registers: against what ``perf script`` prints of a recording with ``{…}:S``."""

import lzma
import re
import struct
from pathlib import Path

import polars as pl
import pytest
from test_perf_samples import BITS, file_of
from test_perf_variants import manifest_of

from tracekit.formats import _perf_stream
from tracekit.ingest import ingest

FOLDER = Path(__file__).parents[2] / "fixtures" / "7.2-group-readings"
GROUP = ("cpu-clock", "page-faults", "context-switches")
LINE = re.compile(
    r"\s*(?P<comm>.+?)\s+(?P<pid>-?\d+)/(?P<tid>-?\d+)\s+\[(?P<cpu>\d+)\]\s+(?P<s>\d+)\.(?P<ns>\d{9}):\s+"
    r"(?P<period>\d+)\s+(?P<event>\S+):\s+(?P<ip>[0-9a-f]+) .*?(?P<regs>(ABI:\d.*)?)$"
)


def tables(trace: Path) -> dict[str, pl.DataFrame]:
    """Rows of the events of the group, by event; where in the file they stood, only the whole file tells."""
    return {event: pl.read_parquet(trace / f"samples/{event}.parquet").drop("callchain_id") for event in GROUP}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return ingest(FOLDER / "group.perf.data", tmp_path_factory.mktemp("group") / "trace")


@pytest.fixture(scope="module")
def printed():
    """What perf printed, line by line."""
    text = lzma.decompress((FOLDER / "group.script.txt.xz").read_bytes()).decode()
    return [match.groupdict() for line in text.splitlines() if (match := LINE.match(line))]


def test_each_counter_that_counted_is_a_row_of_its_event(everything, printed):
    for event, rows in tables(everything).items():
        expected = [
            (
                int(one["s"] + one["ns"]),
                int(one["cpu"]),
                int(one["tid"]),
                one["comm"].removeprefix(f":{one['tid']}") or None,
                int(one["period"]),
                int(one["ip"], 16),
            )
            for one in printed
            if one["event"] == event
        ]
        found = rows.select("time_ns", "cpu", "tid", "comm", "period", "ip").with_columns(
            pl.col("comm").cast(pl.String)
        )
        assert len(expected) > 20
        assert sorted(found.rows()) == sorted(expected)


def test_registers_are_those_that_perf_prints(everything, printed):
    events = {event: f"samples/{event}.parquet" for event in GROUP} | {
        "sched:sched_switch": "events/sched/sched_switch.parquet"
    }
    for event, path in events.items():
        expected = [
            (int(one["s"] + one["ns"]), int(one["cpu"]), *_registers(one["regs"]))
            for one in printed
            if one["event"] == event
        ]
        rows = pl.read_parquet(everything / path)
        found = [
            (time, cpu, *(tuple(values) for abi, values in (intr, user) if abi))
            for time, cpu, *rest in rows.select(
                "time_ns", "cpu", "intr_regs_abi", "intr_regs", "user_regs_abi", "user_regs"
            ).iter_rows()
            for intr, user in [(rest[:2], rest[2:])]
        ]
        assert sorted(found) == sorted(expected)


def _registers(text: str) -> list[tuple[int, ...]]:
    return [
        tuple(int(value, 16) for value in re.findall(r":(0x[0-9a-f]+)", part)) for part in re.split(r"ABI:\d", text)[1:]
    ]


@pytest.mark.parametrize("window", [1 << 12, 1 << 14])
def test_windows_change_nothing(tmp_path, monkeypatch, everything, window):
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", window)
    trace = ingest(FOLDER / "group.perf.data", tmp_path / "trace")
    for event, rows in tables(trace).items():
        assert rows.equals(tables(everything)[event])


@pytest.mark.parametrize("what", ["from_ns", "cpus"])
def test_what_was_counted_does_not_depend_on_which_rows_are_wanted(tmp_path, everything, what):
    whole = tables(everything)
    middle = int(whole["cpu-clock"]["time_ns"].median())
    trace = ingest(
        FOLDER / "group.perf.data", tmp_path / "trace", **{"from_ns": {"from_ns": middle}, "cpus": {"cpus": [1]}}[what]
    )
    keep = pl.col("time_ns") >= middle if what == "from_ns" else pl.col("cpu") == 1
    for event, rows in tables(trace).items():
        assert rows.equals(whole[event].filter(keep))


def test_a_counter_may_be_wanted_without_its_leader(tmp_path, everything):
    trace = ingest(FOLDER / "group.perf.data", tmp_path / "trace", events=["page-faults"])
    assert [name for name in manifest_of(trace)["tables"] if name.startswith("samples/")] == ["samples/page-faults"]
    assert (
        pl.read_parquet(trace / "samples/page-faults.parquet")
        .drop("callchain_id")
        .equals(tables(everything)["page-faults"])
    )


def test_threads_that_inherit_a_counter_count_by_themselves(tmp_path):
    def sample(time: int, tid: int, value: int) -> bytes:
        return struct.pack("<IHHIIQQQ", 9, 0, 40, tid, tid, time, value, 1)

    data = sample(1, 5, 10) + sample(2, 6, 7) + sample(3, 5, 15) + sample(4, 6, 7) + sample(5, 6, 9)
    expected = {
        0: [(1, 10), (2, (1 << 64) - 3), (3, 8), (4, (1 << 64) - 8), (5, 2)],
        2: [(1, 10), (2, 7), (3, 5), (5, 2)],
    }
    for inherit, rows in expected.items():
        sample_type = sum(1 << BITS[part] for part in ("tid", "time", "read"))
        attr = struct.pack("<IIQQQQQ", 1, 136, 0, 1, sample_type, 4, 1 << 18 | inherit).ljust(136, b"\0")
        (tmp_path / "perf.data").write_bytes(file_of(attr, data))
        trace = ingest(tmp_path / "perf.data", tmp_path / f"trace{inherit}")
        assert pl.read_parquet(trace / "samples/cpu-clock.parquet").select("time_ns", "period").rows() == rows


def test_a_reading_that_is_cut_is_a_row_without_it(tmp_path):
    sample_type = sum(1 << BITS[part] for part in ("time", "read"))
    attr = struct.pack("<IIQQQQQ", 1, 136, 0, 1, sample_type, 4 | 8, 1 << 18).ljust(136, b"\0")
    cut = struct.pack("<IHHQQQ", 9, 0, 32, 1, 3, 5)  # of three counters half a one is there
    (tmp_path / "perf.data").write_bytes(file_of(attr, cut + struct.pack("<IHHQQQQ", 9, 0, 40, 2, 1, 5, 1)))
    trace = ingest(tmp_path / "perf.data", tmp_path / "trace")
    assert pl.read_parquet(trace / "samples/cpu-clock.parquet").select("time_ns", "period", "read_value").rows() == [
        (1, None, None), (2, 5, 5)
    ]  # fmt: skip
    assert manifest_of(trace)["anomalies"] == {"reading_outside_record": 1}


def test_a_reading_without_a_time(tmp_path):
    attr = struct.pack("<IIQQQQQ", 1, 136, 0, 1, 1 << BITS["read"], 4, 1 << 18).ljust(136, b"\0")
    (tmp_path / "perf.data").write_bytes(file_of(attr, struct.pack("<IHHQQ", 9, 0, 24, 5, 1)))
    trace = ingest(tmp_path / "perf.data", tmp_path / "trace", to_ns=7)
    assert pl.read_parquet(trace / "samples/cpu-clock.parquet").select("time_ns", "period").rows() == [(0, 5)]
