"""perf's other ways to write the same: compressed, as a pipe, as a directory. Held against perf script's text."""

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import synthetic as syn
import zstandard
from oracle import CAPTURES, read_script
from test_perf_corpus import _by_event, _compare

from tracekit import pipeline
from tracekit.errors import TracekitError, UsageError
from tracekit.formats import _perf_feed, _perf_stream
from tracekit.ingest import ingest

FIXTURES = Path(__file__).parents[2] / "fixtures"
DEMO = FIXTURES / "demo.perf.data"

VARIANTS = [
    "6.12/rec.perf-z/perf.data",
    "7.2/rec.perf-z/perf.data",
    "7.2/rec.perf-pipe/perf.pipe",
    "7.3/rec.perf-pipe/perf.pipe",
    "7.2/rec.perf-threads/perf.data",
    "7.2/rec.perf-dwarf/perf.data",
    "7.2/rec.perf-switch-data/perf.data",
]
needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason=f"no captures at {CAPTURES}")


def manifest_of(trace: Path) -> dict:
    return json.loads((trace / "manifest.json").read_text())


def rows_of(trace: Path) -> dict[str, int]:
    tables = manifest_of(trace)["tables"]
    return {name[7:].replace("/", ":"): table["rows"] for name, table in tables.items() if name.startswith("events/")}


def tables_of(trace: Path, *, seq: bool = True) -> dict[str, list]:
    """All rows of all tables, names as strings."""
    tables = {}
    for path in sorted(trace.rglob("*.parquet")):
        rows = pl.read_parquet(path)
        rows = rows.drop("seq", strict=False) if not seq else rows
        tables[str(path.relative_to(trace))] = (rows.schema.names(), rows.rows())
    return tables


def from_stdin(monkeypatch, data: bytes, target: Path, **options) -> Path:
    """Ingest ``data`` from a pipe, which cannot seek."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
        try:
            return ingest(Path("-"), target, **options)
        finally:
            os.waitpid(child, 0)


@needs_captures
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("window", [1 << 16, 1 << 24])
def test_rows_and_values_equal_perf_script(tmp_path, monkeypatch, name, window):
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", window)
    trace = ingest(CAPTURES / name, tmp_path / "trace")
    lines = list(read_script((CAPTURES / name).parent))
    assert {event: count for event, count in rows_of(trace).items() if count} == Counter(line.event for line in lines)
    manifest = manifest_of(trace)
    assert manifest["truncated"] is None
    assert manifest["anomalies"] == {}
    assert manifest["machine"]["release"].startswith(name[:3])
    for event, expected in _by_event(lines).items():
        _compare(trace, event, expected)


@needs_captures
@pytest.mark.parametrize("name", VARIANTS[1:4])
def test_standard_input_gives_the_tables_of_the_file(tmp_path, monkeypatch, name):
    data = (CAPTURES / name).read_bytes()
    piped = from_stdin(monkeypatch, data, tmp_path / "piped")
    assert tables_of(piped) == tables_of(ingest(CAPTURES / name, tmp_path / "trace"))
    assert manifest_of(piped)["source"] == {
        "name": "-",
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "format": "perf.data",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"piped", "trace"}
    assert not [path for path in piped.iterdir() if path.name.startswith(".")]


def test_standard_input_wants_a_target(monkeypatch):
    with pytest.raises(UsageError, match="-o"):
        from_stdin(monkeypatch, b"", None)


# --- compressed --------------------------------------------------------------------------------------------------


def packed(data: bytes, sizes: list[int], *, kind: int = 81, plain: bytes = b"") -> bytes:
    """``data`` as compressed records of pieces of these sizes, one zstd stream; ``plain`` after each."""
    stream = zstandard.ZstdCompressor(level=1).compressobj()
    out, begin, step = b"", 0, 0
    while begin < len(data):
        size = sizes[step % len(sizes)]
        body = stream.compress(data[begin : begin + size]) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        begin, step = begin + size, step + 1
        for part in range(0, len(body), 60000):
            piece = body[part : part + 60000]
            if kind == 83:
                whole = struct.pack("<Q", len(piece)) + piece + bytes(-len(piece) % 8)
                out += struct.pack("<IHH", 83, 0, 8 + len(whole)) + whole
            else:
                out += struct.pack("<IHH", 81, 0, 8 + len(piece)) + piece
        out += plain
    return out


def compressed_file(data: bytes, events=None, **options) -> bytes:
    """A killed recorder's file: it may hold compressed records without saying so in its features."""
    return syn.perf_data(packed(data, **options), events, killed=True)


SAMPLES = b"".join(syn.sample(time, cpu=time % 3) + (syn.ROUND if time % 7 == 0 else b"") for time in range(1, 400))


@pytest.mark.parametrize("kind", [81, 83])
@pytest.mark.parametrize("sizes", [[1], [3, 5], [96], [1000, 7], [10**6]])
@pytest.mark.parametrize("window", [1 << 8, 1 << 20])
def test_records_straddle_compressed_ones(tmp_path, monkeypatch, kind, sizes, window):
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", window)
    source = tmp_path / "perf.data"
    source.write_bytes(compressed_file(SAMPLES, sizes=sizes, kind=kind, plain=syn.ROUND))
    trace = ingest(source, tmp_path / "trace")
    table = pl.read_parquet(trace / "events/unknown/tracepoint_77.parquet")
    assert table["time_ns"].to_list() == list(range(1, 400))
    assert "killed" in manifest_of(trace)["truncated"]["reason"]


def test_large_pieces_are_scanned_for_records(tmp_path, monkeypatch):
    monkeypatch.setattr(_perf_feed, "_SCAN_BYTES", 1 << 15)
    data = b"".join(syn.sample(time) for time in range(1, 5000))
    source = tmp_path / "perf.data"
    source.write_bytes(compressed_file(data, sizes=[70001]))
    trace = ingest(source, tmp_path / "trace")
    assert len(pl.read_parquet(trace / "events/unknown/tracepoint_77.parquet")) == 4999


def test_bomb_is_refused_and_what_came_before_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(_perf_feed, "MAX_EXPANSION_BYTES", 1 << 20)
    bomb = syn.sample(400) * (1 << 20)
    data = packed(SAMPLES + bomb, [len(SAMPLES), len(bomb)])
    assert len(data) < 1 << 16 < 1 << 26 < len(bomb)
    source = tmp_path / "perf.data"
    source.write_bytes(syn.perf_data(data, killed=True))
    trace = ingest(source, tmp_path / "trace")
    assert 399 <= len(pl.read_parquet(trace / "events/unknown/tracepoint_77.parquet")) < len(bomb) // 96
    assert "more than" in manifest_of(trace)["truncated"]["reason"]


@pytest.mark.parametrize("place", [12, 40, 300])
def test_damaged_compressed_data_is_named(tmp_path, place):
    data = bytearray(packed(SAMPLES, [5000]))
    data[place] ^= 0xFF
    source = tmp_path / "perf.data"
    source.write_bytes(syn.perf_data(bytes(data), killed=True))
    manifest = manifest_of(ingest(source, tmp_path / "trace"))
    assert manifest["truncated"]["bytes_unread"] >= 0


@pytest.mark.parametrize("tail", [struct.pack("<IHH", 81, 0, 400) + bytes(80), packed(SAMPLES, [5000])])
def test_what_is_compressed_twice_is_damage(tmp_path, tail):
    """It was unpacked anew in window after window. A find of fuzzing."""
    source = tmp_path / "perf.data"
    source.write_bytes(compressed_file(SAMPLES + tail, sizes=[1 << 20]))
    trace = ingest(source, tmp_path / "trace")
    assert len(pl.read_parquet(trace / "events/unknown/tracepoint_77.parquet")) == 399
    assert manifest_of(trace)["truncated"]["bytes_unread"] == len(tail)


@pytest.mark.parametrize("cut", [1, 60, 90])
def test_compressed_record_that_is_cut(tmp_path, cut):
    last = packed(b"".join(syn.sample(time) for time in range(1, 90)), [1 << 20])
    source = tmp_path / "perf.data"
    source.write_bytes(compressed_file(SAMPLES, sizes=[1 << 20]) + last[:-cut])
    trace = ingest(source, tmp_path / "trace")
    assert len(pl.read_parquet(trace / "events/unknown/tracepoint_77.parquet")) == 399
    assert manifest_of(trace)["truncated"]["bytes_unread"] == len(last) - cut


def test_compressed_record_that_lies_about_its_size(tmp_path):
    good = packed(SAMPLES, [len(SAMPLES)], kind=83)
    bad = struct.pack("<IHHQ", 83, 0, 24, 1 << 40) + bytes(8)
    source = tmp_path / "perf.data"
    source.write_bytes(syn.perf_data(good + bad + good, killed=True))
    trace = ingest(source, tmp_path / "trace")
    assert len(pl.read_parquet(trace / "events/unknown/tracepoint_77.parquet")) == 399
    assert f"holds {1 << 40} bytes" in manifest_of(trace)["truncated"]["reason"]


def test_compressed_data_without_the_feature_that_says_so_is_damage(tmp_path):
    source = tmp_path / "perf.data"
    source.write_bytes(syn.perf_data(syn.sample(1) + packed(SAMPLES, [5000])))
    trace = ingest(source, tmp_path / "trace")
    assert len(pl.read_parquet(trace / "events/test/event.parquet")) == 1
    assert "compressed" in manifest_of(trace)["truncated"]["reason"]


# --- pipe mode -----------------------------------------------------------------------------------------------------


def pipe_attr(number: int, event: syn.Event) -> bytes:
    attr = struct.pack("<IIQQQQQ", 2, 128, event.number, 1, syn.SAMPLE_TYPE, 4, syn.SAMPLE_ID_ALL).ljust(128, b"\0")
    return syn.record(64, attr + struct.pack("<Q", number))


def pipe_formats(events: list[syn.Event]) -> bytes:
    blob = syn.tracing_data(events)
    blob += bytes(-len(blob) % 8)
    return struct.pack("<IHHII", 66, 0, 16, len(blob), 0) + blob


def pipe_feature(bit: int, text: bytes) -> bytes:
    body = struct.pack("<QI", bit, len(text) + 1) + text + b"\0"
    return struct.pack("<IHH", 80, 0, 8 + len(body)) + body


PIPE = b"PERFILE2" + struct.pack("<Q", 16)
OTHER = syn.Event(78, "test", "other")


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("stdin", [False, True])
def test_header_may_come_late_and_between(tmp_path, monkeypatch, packing, stdin):
    first = b"".join(syn.sample(time) for time in range(1, 100))
    second = b"".join(syn.sample(time, number=2) for time in range(100, 200))
    if packing:
        halves = packed(first + second, [len(first)])
        first, second = (
            halves[: struct.unpack_from("<H", halves, 6)[0]],
            halves[struct.unpack_from("<H", halves, 6)[0] :],
        )
    data = (
        PIPE + pipe_feature(4, b"9.9.9") + pipe_attr(1, syn.EVENT) + pipe_formats([syn.EVENT, OTHER]) + first
        + pipe_attr(2, OTHER) + pipe_feature(6, b"x86_64") + second
    )  # fmt: skip
    (tmp_path / "in").write_bytes(data)
    target = tmp_path / "trace"
    trace = from_stdin(monkeypatch, data, target) if stdin else ingest(tmp_path / "in", target)
    assert rows_of(trace) == {"test:event": 99, "test:other": 100}
    machine = manifest_of(trace)["machine"]
    assert (machine["release"], machine["arch"]) == ("9.9.9", "x86_64")
    assert manifest_of(trace)["truncated"] is None


def test_event_update_names_events(tmp_path):
    attr = struct.pack("<IIQQQQQ", 4, 128, 0x1C2, 1, syn.SAMPLE_TYPE & ~(1 << 10), 4, syn.SAMPLE_ID_ALL)
    sample = struct.pack("<QQIIQIIQ", 5, 0xFFFF, 7, 8, 1000, 1, 0, 1)
    data = PIPE + syn.record(64, attr.ljust(128, b"\0") + struct.pack("<Q", 5))
    data += syn.record(78, struct.pack("<QQ", 2, 5) + b"mem/loads/\0") + syn.record(9, sample)
    (tmp_path / "in").write_bytes(data)
    trace = ingest(tmp_path / "in", tmp_path / "trace")
    assert list(manifest_of(trace)["tables"]) == ["samples/mem_loads_"]
    assert pl.read_parquet(trace / "samples/mem_loads_.parquet").select("pid", "tid", "cpu").rows() == [(7, 8, 1)]


@pytest.mark.parametrize("cut", [*range(17, 420, 13), 5000, 20000])
def test_cut_pipe_is_salvaged_or_refused(tmp_path, monkeypatch, cut):
    data = PIPE + pipe_attr(1, syn.EVENT) + pipe_formats([syn.EVENT])
    data += b"".join(syn.sample(time) for time in range(1, 300))
    whole = len(data)
    if cut < 160:
        with pytest.raises(TracekitError, match=r"^[^\n]*$"):
            from_stdin(monkeypatch, data[:cut], tmp_path / "trace")
        return
    trace = from_stdin(monkeypatch, data[:cut], tmp_path / "trace")
    manifest = manifest_of(trace)
    assert manifest["source"]["size_bytes"] == cut < whole
    assert manifest["truncated"] is not None or (cut - 16) % 8 == 0


def test_damage_in_a_pipe_counts_what_follows(tmp_path, monkeypatch):
    good = PIPE + pipe_attr(1, syn.EVENT) + pipe_formats([syn.EVENT]) + syn.sample(1)
    data = good + struct.pack("<IHH", 9, 0, 4) + bytes(100_000)
    trace = from_stdin(monkeypatch, data, tmp_path / "trace")
    manifest = manifest_of(trace)
    assert manifest["truncated"]["offset"] == len(good)
    assert manifest["truncated"]["bytes_unread"] == len(data) - len(good)
    assert manifest["source"]["size_bytes"] == len(data)


# --- directories ---------------------------------------------------------------------------------------------------


def directory(tmp_path: Path, streams: list[bytes], *, head: bytes = b"") -> Path:
    folder = tmp_path / "perf.data"
    folder.mkdir()
    (folder / "data").write_bytes(syn.perf_data(head or syn.ROUND))
    for number, stream in enumerate(streams):
        (folder / f"data.{number}").write_bytes(stream)
    return folder


@pytest.mark.parametrize("window", [1 << 9, 1 << 20])
def test_streams_are_merged_by_time(tmp_path, monkeypatch, window):
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", window)
    streams = [b"".join(syn.sample(time, cpu=cpu) for time in range(cpu + 1, 2000, step))
               for cpu, step in ((0, 3), (1, 3), (2, 300))]  # fmt: skip
    later = streams[1].index(syn.sample(1502, cpu=1))
    streams[1] = streams[1][:later] + syn.comm(1501, 5, "late", cpu=1) + streams[1][later:]
    streams[0] = syn.comm(0, 5, "early") + streams[0]
    trace = ingest(directory(tmp_path, streams), tmp_path / "trace")
    rows = pl.read_parquet(trace / "events/test/event.parquet")
    assert rows["time_ns"].to_list() == sorted(rows["time_ns"].to_list())
    assert len(rows) == sum(len(range(cpu + 1, 2000, step)) for cpu, step in ((0, 3), (1, 3), (2, 300)))
    assert rows["seq"].n_unique() == len(rows)
    names = rows.with_columns(pl.col("comm").cast(pl.String))
    assert set(names.filter(pl.col("time_ns") < 1501)["comm"]) == {"early"}
    assert set(names.filter(pl.col("time_ns") > 1501)["comm"]) == {"late"}
    manifest = manifest_of(trace)
    assert manifest["anomalies"] == {}
    assert manifest["source"]["name"] == "perf.data"
    whole = b"".join(path.read_bytes() for path in sorted((tmp_path / "perf.data").iterdir()))
    assert manifest["source"]["sha256"] == hashlib.sha256(whole).hexdigest()
    assert manifest["source"]["size_bytes"] == len(whole)


def test_a_stream_of_its_own_for_each_file_of_a_directory(tmp_path):
    compressed = tmp_path / "z"
    streams = [b"".join(syn.sample(time, cpu=cpu) for time in range(cpu + 1, 500, 2)) for cpu in (0, 1)]
    folder = directory(tmp_path, [packed(stream, [777]) for stream in streams])
    (folder / "data").write_bytes(syn.perf_data(packed(syn.comm(0, 5, "me"), [50]), killed=True))
    trace = ingest(folder, compressed)
    rows = pl.read_parquet(trace / "events/unknown/tracepoint_77.parquet")
    assert rows["time_ns"].to_list() == list(range(1, 500))
    assert set(rows["comm"].cast(pl.String)) == {"me"}


def test_cut_stream_names_its_file_and_a_missing_one_is_counted(tmp_path):
    stream = b"".join(syn.sample(time) for time in range(1, 100))
    folder = directory(tmp_path, [stream, stream[:-8], stream])
    manifest = manifest_of(ingest(folder, tmp_path / "trace"))
    assert manifest["truncated"]["reason"] == "data.1: the last record is cut"
    shutil.rmtree(tmp_path / "trace")
    (folder / "data.1").unlink()
    assert manifest_of(ingest(folder, tmp_path / "trace"))["anomalies"]["data_file_missing"] == 1


def test_a_trace_directory_beside_stands_for_the_whole_source_only(tmp_path):
    folder = directory(tmp_path, [b"".join(syn.sample(time) for time in range(1, 100))])
    beside = ingest(folder, events=["nothing:*"])
    assert pipeline.load(folder).path != beside
    assert pipeline.load(folder).rows("test:event") == 99
    ingest(folder, force=True)
    assert pipeline.load(folder).path == beside
    with (folder / "data.0").open("ab") as file:
        file.write(syn.sample(100))
    assert pipeline.load(folder).rows("test:event") == 100


# --- live --------------------------------------------------------------------------------------------------------


def _perf(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(["perf", *arguments], capture_output=True, check=False, **options)


def _records() -> bool:
    if shutil.which("perf") is None:
        return False
    return _perf("record", "-q", "-o", "/dev/null", "-e", "sched:sched_switch", "--", "true").returncode == 0


LIVE = pytest.mark.skipif(not _records(), reason="perf cannot record here")


def _script(path: Path) -> Counter:
    done = _perf("script", "-i", str(path), "-F", "event")
    return Counter(line.strip().rstrip(":") for line in done.stdout.decode().splitlines() if line.strip())


@LIVE
@pytest.mark.parametrize("options", ["", "-z", "-g", "--call-graph dwarf,512", "-d --phys-data", "--switch-events",
                                     "--namespaces --all-cgroups", "-W", "--threads"])  # fmt: skip
def test_live_recordings_hold_what_perf_script_prints(tmp_path, options):
    extra = options.split()
    path = tmp_path / "perf.data"
    events = ["-e", "sched:sched_switch,kmem:kmalloc,page-faults"]
    done = _perf("record", "-q", "-a", *extra, *events, "-o", str(path), "--", "sh", "-c", "ls / >/dev/null; true")
    if done.returncode:
        pytest.skip(done.stderr.decode()[:80])
    manifest = manifest_of(ingest(path, tmp_path / "trace"))
    assert manifest["truncated"] is None
    found = {
        name.removeprefix("events/").removeprefix("samples/").replace("/", ":"): table["rows"]
        for name, table in manifest["tables"].items()
        if name.startswith(("events/", "samples/")) and table["rows"]
    }
    assert found == _script(path)


@LIVE
@pytest.mark.parametrize("extra", [[], ["-z"]])
def test_live_pipe(tmp_path, monkeypatch, extra):
    done = _perf(
        "record", "-q", "-a", *extra, "-e", "sched:sched_switch", "-o", "-", "--", "ls", "/", stdin=subprocess.DEVNULL
    )
    if done.returncode:
        pytest.skip(done.stderr.decode()[:80])
    listing = done.stdout.index(b"PERFILE2")  # what ls printed comes before
    trace = from_stdin(monkeypatch, done.stdout[listing:], tmp_path / "trace")
    (tmp_path / "perf.pipe").write_bytes(done.stdout[listing:])
    assert rows_of(trace) == _script(tmp_path / "perf.pipe")
