"""Whatever is wrong with a file: a TracekitError of one line, or all that can be saved; nothing else, and soon."""

import json
import os
import random
import resource
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent / "formats"))
import synthetic as syn

from tracekit.errors import TraceFormatError, TracekitError, UnknownFormatError
from tracekit.formats import _perf_stream
from tracekit.ingest import ingest

DEMO = Path(__file__).parents[1] / "fixtures" / "demo.perf.data"
DATA = DEMO.read_bytes()
DATA_AT, DATA_SIZE = struct.unpack_from("<QQ", DATA, 40)
SLOWEST_S = 5.0  # a good file of this size takes 0.1; the rest is for a busy machine
PEAK_MB = 400


def _ingest(tmp_path: Path, data: bytes) -> tuple[Path, dict]:
    source = tmp_path / "perf.data"
    source.write_bytes(data)
    trace = ingest(source, tmp_path / "trace", force=True, jobs=1)
    return trace, json.loads((trace / "manifest.json").read_text())


def _rows(manifest: dict) -> int:
    return sum(table["rows"] for name, table in manifest["tables"].items() if name.startswith("events/"))


def _survive(tmp_path: Path, data: bytes) -> dict | None:
    """Ingest; the manifest, or None if it was refused as it should be."""
    begin = time.monotonic()
    try:
        _, manifest = _ingest(tmp_path, data)
    except TracekitError as error:
        manifest, said = None, str(error)
    else:
        said = str(tmp_path)
    assert "\n" not in said
    assert str(tmp_path) in said
    assert time.monotonic() - begin < SLOWEST_S
    assert {path.name for path in tmp_path.iterdir()} <= {"perf.data", "trace"}
    return manifest


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < PEAK_MB * 1024, "took too much memory"


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"", UnknownFormatError, "empty"),
        (b"hello\n", UnknownFormatError, "hello"),
        (random.Random(0).randbytes(100_000), UnknownFormatError, "perf.data"),
        (b"PERFILE2", TraceFormatError, "header size"),
        (b"PERFILE2" + bytes(200), TraceFormatError, "attribute size"),
        (b"PERFILE2" + struct.pack("<Q", 16) + bytes(100), TraceFormatError, "no event attributes"),
        (b"2ELIFREP" + struct.pack(">Q", 16) + bytes(100), TraceFormatError, "no event attributes"),
        (b"2ELIFREP" + bytes(200), TraceFormatError, "attribute size"),
        (b"PERFFILE" + bytes(200), TraceFormatError, "attribute size"),
    ],
)
def test_what_is_no_perf_data(tmp_path, content, error, says):
    source = tmp_path / "file"
    source.write_bytes(content)
    with pytest.raises(error) as caught:
        ingest(source)
    assert says in str(caught.value)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_directory_and_missing_file(tmp_path):
    with pytest.raises(UnknownFormatError, match="directory"):
        ingest(tmp_path, tmp_path / "trace")
    with pytest.raises(TraceFormatError, match="No such file"):
        ingest(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_unreadable_file(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    (tmp_path / "file").chmod(0)
    with pytest.raises(TraceFormatError, match="Permission"):
        ingest(tmp_path / "file")


@pytest.mark.parametrize("part", range(24))
def test_cut_anywhere_keeps_all_whole_records(tmp_path, part):
    rng = random.Random(part)
    whole = _survive(tmp_path, DATA)
    rows_before = -1
    for place in sorted(rng.sample(range(1, len(DATA)), 4)):
        manifest = _survive(tmp_path, DATA[:place])
        if place <= DATA_AT:
            continue
        assert manifest is not None
        assert manifest["truncated"]["offset"] <= place
        if place < DATA_AT + DATA_SIZE:
            assert manifest["truncated"]["bytes_unread"] >= DATA_AT + DATA_SIZE - place
            assert rows_before <= _rows(manifest) <= _rows(whole)
            rows_before = _rows(manifest)
        else:
            assert _rows(manifest) == _rows(whole)


def test_cut_within_the_data_has_raw_events_and_says_why(tmp_path):
    trace, manifest = _ingest(tmp_path, DATA[: DATA_AT + DATA_SIZE // 2])
    assert manifest["anomalies"]["event_without_format"] > 0
    names = [name for name in manifest["tables"] if name.startswith("events/")]
    assert names
    assert all(name.startswith("events/unknown/tracepoint_") for name in names)
    table = pl.read_parquet(trace / f"{names[0]}.parquet")
    number = int(names[0].rsplit("_", 1)[1])
    assert {int.from_bytes(raw[:2], "little") for raw in table["raw"]} == {number}


def test_killed_recorder_is_read_to_the_end(tmp_path):
    data = b"".join(syn.sample(time) for time in range(1, 101))
    trace, manifest = _ingest(tmp_path, syn.perf_data(data, killed=True))
    assert len(pl.read_parquet(trace / "events/unknown/tracepoint_77.parquet")) == 100
    assert "killed" in manifest["truncated"]["reason"]


@pytest.mark.parametrize("size", [0, 4, 12, 7])
def test_damaged_record_stops_there(tmp_path, size):
    good = b"".join(syn.sample(time) for time in range(1, 51))
    bad = struct.pack("<IHH", 9, 0, size) + bytes(8)
    trace, manifest = _ingest(tmp_path, syn.perf_data(good + bad + good))
    assert len(pl.read_parquet(trace / "events/test/event.parquet")) == 50
    cut = manifest["truncated"]
    assert f"{size} bytes" in cut["reason"]
    assert cut["offset"] == 104 + 8 + 144 + len(good)
    assert cut["bytes_unread"] == len(good) + 16


def test_record_that_its_own_section_cuts(tmp_path):
    good = b"".join(syn.sample(time) for time in range(1, 51))
    trace, manifest = _ingest(tmp_path, syn.perf_data(good + syn.sample(51)[:-16]))
    assert len(pl.read_parquet(trace / "events/test/event.parquet")) == 50
    assert manifest["truncated"]["offset"] == 104 + 8 + 144 + len(good)
    assert manifest["truncated"]["reason"] == "the last record is cut"


def test_short_raw_data_goes_aside(tmp_path):
    data = syn.sample(1) + syn.sample(2, own=b"") + syn.sample(3)
    trace, manifest = _ingest(tmp_path, syn.perf_data(data))
    assert pl.read_parquet(trace / "events/test/event.parquet")["value"].to_list() == [1, 3]
    assert len(pl.read_parquet(trace / "events/unknown/tracepoint_77.parquet")) == 1
    assert manifest["anomalies"] == {"raw_too_short": 1}


def test_samples_of_no_event_and_unknown_records_are_counted(tmp_path):
    data = syn.sample(1) + syn.sample(2, number=9) + syn.record(200, bytes(16)) + syn.sample(3)
    events = [syn.EVENT, syn.Event(78, "test", "other")]
    trace, manifest = _ingest(tmp_path, syn.perf_data(data, events))
    assert len(pl.read_parquet(trace / "events/test/event.parquet")) == 2
    assert manifest["anomalies"] == {"sample_without_attr": 1, "unknown_record_type_200": 1}


@pytest.mark.parametrize("payload", [16, 4096, 1 << 40, (1 << 64) - 1])
def test_payload_beyond_a_record_is_skipped(tmp_path, payload):
    trace_bytes = syn.record(71, struct.pack("<Q", payload) + bytes(32))
    data = syn.sample(1) + trace_bytes + bytes(min(payload, 4096)) + syn.sample(2)
    trace, manifest = _ingest(tmp_path, syn.perf_data(data))
    rows = len(pl.read_parquet(trace / "events/test/event.parquet"))
    assert rows == (2 if payload <= 4096 else 1)
    if rows == 2:
        assert manifest["truncated"] is None


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("where", ["header", "data", "tail"])
def test_flipped_bytes(tmp_path, monkeypatch, seed, where):
    rng = random.Random(f"{seed} {where}")
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", 1 << rng.randrange(12, 20))
    low, high = {
        "header": (0, DATA_AT),
        "data": (DATA_AT, DATA_AT + DATA_SIZE),
        "tail": (DATA_AT + DATA_SIZE, len(DATA)),
    }[where]
    data = bytearray(DATA)
    for _ in range(rng.choice([1, 2, 10])):
        data[rng.randrange(low, high)] ^= rng.randrange(1, 256)
    _survive(tmp_path, bytes(data))


EXTREMES = [0, 1, 9, 10, 71, 81, 0xFFFF, 0x10000, 0xFFFFFFFF, 1 << 32, 1 << 63, (1 << 64) - 1, len(DATA)]


@pytest.mark.parametrize("seed", range(60))
def test_numbers_replaced_by_extremes(tmp_path, seed):
    rng = random.Random(seed)
    data = bytearray(DATA)
    for _ in range(rng.choice([1, 3])):
        place = rng.randrange(8, rng.choice([DATA_AT, len(DATA)]) - 8) & ~7
        size = rng.choice([4, 8])
        data[place : place + size] = rng.choice(EXTREMES).to_bytes(8, "little")[:size]
    _survive(tmp_path, bytes(data))


def test_file_that_grows_is_read_as_it_was(tmp_path):
    source = tmp_path / "perf.data"
    source.write_bytes(DATA)
    stop = threading.Event()

    def grow() -> None:
        with source.open("ab") as file:
            while not stop.is_set():
                file.write(b"x" * 4096)
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        while source.stat().st_size == len(DATA):
            time.sleep(0.001)
        size = source.stat().st_size
        manifest = json.loads((ingest(source, tmp_path / "trace") / "manifest.json").read_text())
    finally:
        stop.set()
        thread.join()
    assert manifest["source"]["size_bytes"] >= size
    assert _rows(manifest) > 0


def test_file_that_shrinks_is_an_error(tmp_path, monkeypatch):
    source = tmp_path / "perf.data"
    source.write_bytes(DATA)
    original = _perf_stream.RecordStream._read

    def cut_then_read(self, *into) -> int:
        os.truncate(source, DATA_AT + 100)
        return original(self, *into)

    monkeypatch.setattr(_perf_stream.RecordStream, "_read", cut_then_read)
    with pytest.raises(TraceFormatError, match="shorter"):
        ingest(source, tmp_path / "trace")
    assert list(tmp_path.iterdir()) == [source]


def test_file_that_is_written_to_is_an_error(tmp_path, monkeypatch):
    source = tmp_path / "perf.data"
    source.write_bytes(DATA)
    original = _perf_stream.RecordStream._read

    def write_then_read(self, *into) -> int:
        with source.open("r+b") as file:
            file.seek(DATA_AT + 1000)
            file.write(b"changed")
        os.utime(source, ns=(0, 0))
        return original(self, *into)

    monkeypatch.setattr(_perf_stream.RecordStream, "_read", write_then_read)
    with pytest.raises(TraceFormatError, match="written to"):
        ingest(source, tmp_path / "trace")
    assert list(tmp_path.iterdir()) == [source]
