"""perf.data of the other byte order, and of perf's first version: the same tables as of what they were made from."""

import random
import struct
from pathlib import Path

import polars as pl
import pytest
import synthetic as syn
from byte_swap import Swapper
from oracle import CAPTURES
from test_perf_variants import manifest_of, tables_of

from tracekit.errors import TracekitError
from tracekit.formats import _perf_stream
from tracekit.ingest import ingest

DEMO = Path(__file__).parents[2] / "fixtures" / "demo.perf.data"
SOURCES = [DEMO, *(CAPTURES / name / "perf.data" for name in ("7.2/rec.perf-g", "7.2/rec.perf-lost"))]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("window", [1 << 14, 1 << 24])
def test_foreign_byte_order_gives_the_same_tables(tmp_path, monkeypatch, source, window):
    if not source.exists():
        pytest.skip(f"no captures at {CAPTURES}")
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", window)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(Swapper(source.read_bytes()).file())
    found, expected = ingest(foreign, tmp_path / "a"), ingest(source, tmp_path / "b")
    ours, theirs = tables_of(found), tables_of(expected)
    assert ours.keys() == theirs.keys()
    for name, rows in theirs.items():
        assert ours[name] == rows, name
    mine, other = manifest_of(found), manifest_of(expected)
    assert mine["features"].pop("byte_order") == "big"
    for part in ("machine", "recorder", "clock", "time_range_ns", "lost", "anomalies", "truncated", "features"):
        assert mine[part] == other[part], part


@pytest.mark.parametrize("seed", range(20))
def test_broken_foreign_files_are_salvaged_or_refused(tmp_path, seed):
    rng = random.Random(seed)
    data = bytearray(Swapper(DEMO.read_bytes()).file())
    for _ in range(rng.choice([1, 5])):
        data[rng.randrange(8, len(data))] ^= rng.randrange(1, 256)
    (tmp_path / "foreign").write_bytes(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]))
    try:
        ingest(tmp_path / "foreign", tmp_path / "trace")
    except TracekitError as error:
        said = str(error)
        assert "\n" not in said


def old_file(order: str, *, sample_id_all: bool) -> bytes:
    """As perf wrote before Linux 3.0: attributes of 72 bytes, no ids in samples, names in a section of their own."""
    sample_type = 1 | 2 | 4 | 1 << 7 | 1 << 8  # IP TID TIME CPU PERIOD
    flags = (1 << 18 if sample_id_all else 0).to_bytes(8, "little")
    if order == ">":
        flags = bytes(int(f"{byte:08b}"[::-1], 2) for byte in flags)
    attr = struct.pack(order + "IIQQQQ", 2, 0, 77, 1, sample_type, 0) + flags
    attr = attr.ljust(72, b"\0") + struct.pack(order + "QQ", 0, 0)
    name = struct.pack(order + "Q", 77) + b"sched:old_event".ljust(64, b"\0")
    data = b""
    for time in range(1, 11):
        data += struct.pack(order + "IHHQIIQIIQ", 9, 0, 48, 0xFFFF, 5, 6, time, 1, 0, 1)
    at = 104 + len(attr) + len(name)
    head = b"PERFFILE" + struct.pack(order + "QQQQQQQQ", 104, 88, 104, 88, at, len(data), 104 + 88, 72)
    return head + bytes(32) + attr + name + data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("sample_id_all", [False, True])
def test_first_version(tmp_path, order, sample_id_all):
    (tmp_path / "old").write_bytes(old_file(order, sample_id_all=sample_id_all))
    trace = ingest(tmp_path / "old", tmp_path / "trace")
    table = pl.read_parquet(trace / "events/unknown/tracepoint_77.parquet")
    assert table.select("time_ns", "cpu", "pid", "tid").rows() == [(time, 1, 5, 6) for time in range(1, 11)]
    assert (
        pl.read_parquet_metadata(trace / "events/unknown/tracepoint_77.parquet")["tracekit.event"] == "sched:old_event"
    )


def test_foreign_pipe(tmp_path):
    event = struct.pack(">IIQQQQ", 1, 128, 0, 1, 1 << 16 | 2 | 4, 0) + bytes(8)
    data = b"2ELIFREP" + struct.pack(">Q", 16)
    data += struct.pack(">IHH", 64, 0, 144) + event.ljust(128, b"\0") + struct.pack(">Q", 3)
    data += struct.pack(">IHHQI", 80, 0, 28, 4, 8) + b"6.6.6\0\0\0"
    data += b"".join(struct.pack(">IHHQIIQ", 9, 0, 32, 3, 5, 6, time) for time in range(1, 50))
    (tmp_path / "pipe").write_bytes(data)
    trace = ingest(tmp_path / "pipe", tmp_path / "trace")
    table = pl.read_parquet(trace / "samples/cpu-clock.parquet")
    assert table.select("time_ns", "pid", "tid").rows() == [(time, 5, 6) for time in range(1, 50)]
    assert manifest_of(trace)["machine"]["release"] == "6.6.6"


def test_files_without_names_use_perfs_own(tmp_path):
    assert syn.EVENT.name == "event"
    attr = struct.pack("<IIQQQQQ", 0, 64, 1, 1, 1 | 2 | 4, 0, 0).ljust(64, b"\0") + struct.pack("<QQ", 0, 0)
    data = struct.pack("<IHHQIIQ", 9, 0, 32, 0xABC, 5, 6, 9)
    head = b"PERFILE2" + struct.pack("<8Q", 104, 80, 104, 80, 184, len(data), 0, 0) + bytes(32)
    (tmp_path / "perf.data").write_bytes(head + attr + data)
    trace = ingest(tmp_path / "perf.data", tmp_path / "trace")
    assert pl.read_parquet(trace / "samples/instructions.parquet")["ip"].to_list() == [0xABC]
