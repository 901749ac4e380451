"""Damaged files: only a TracekitError or a salvage, in bounded time and memory, and nothing left behind."""

import json
import random
import re
import resource
import struct
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from trace_dat_builder import Buffer, File, Writer, build

from tracekit.errors import TraceFormatError, TracekitError
from tracekit.ingest import ingest

KINDS = {
    "v6": {"version": 6},
    "v7": {},
    "v7-zlib": {"codec": "zlib"},
    "v7-zstd": {"codec": "zstd"},
    "big-endian": {"order": ">", "codec": "zstd"},
}


def _file(**kind):
    w = Writer(kind.get("order", "<"))
    pages = {
        cpu: b"".join(
            w.page(1000 * n + cpu, (1, w.value(7, n, n)), (1, w.stack(7, 1, 2)), (1, w.mark(8, "mark")),
                   (1, w.entry(7, 5, 0)), (1, w.exit(7, 5, 0, 1, 2)), missed=3 if n == 2 else None)
            for n in range(4)
        )
        for cpu in (0, 1)
    }  # fmt: skip
    return build(File([Buffer(pages), Buffer({0: pages[0]}, "inner")], **kind))


def _ingest(data: bytes, folder: Path) -> dict | None:
    """The manifest, or None where the file is refused."""
    source = folder / "trace.dat"
    source.write_bytes(data)
    try:
        out = ingest(source, folder / "trace", force=True, jobs=1)
    except TracekitError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert str(source) in refused
        assert sorted(path.name for path in folder.iterdir() if path.name != "trace") == ["trace.dat"]
        return None
    manifest = json.loads((out / "manifest.json").read_text())
    for name, table in manifest["tables"].items():
        assert pq.read_metadata(out / f"{name}.parquet").num_rows == table["rows"]
    assert sorted(path.name for path in folder.iterdir()) == ["trace", "trace.dat"]
    return manifest


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere(kind, tmp_path):
    data = _file(**KINDS[kind])
    random.seed(7)
    rows = []
    for size in sorted(random.sample(range(len(data)), 45)):
        manifest = _ingest(data[:size], tmp_path)
        if manifest is None:
            continue
        assert manifest["truncated"] is not None
        assert 0 <= manifest["truncated"]["offset"] <= size
        assert manifest["truncated"]["reason"]
        rows.append(sum(table["rows"] for name, table in manifest["tables"].items() if "events/" in name))
    assert rows
    assert rows == sorted(rows)
    assert rows[-1] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes(kind, tmp_path):
    data = _file(**KINDS[kind])
    random.seed(11)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(random.choice([1, 1, 4, 30])):
            broken[random.randrange(16, len(data))] ^= 1 << random.randrange(8)
        _ingest(bytes(broken), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_made_large(kind, tmp_path):
    """Any four bytes of the header may say anything."""
    data = _file(**KINDS[kind])
    random.seed(13)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(60):
        place = random.randrange(12, 6000 if number % 2 else len(data) - 8)
        value = random.choice([b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x08", b"\xff" * 8])
        _ingest(data[:place] + value + data[place + len(value) :], tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def _chunk(stored: bytes, size: int) -> bytes:
    """A compressed file with one chunk that says it holds ``size`` bytes."""
    w = Writer()
    noise = random.Random(3).randbytes(2000)  # so that the chunk is large enough to be replaced
    data = build(File([Buffer({0: w.page(0, (1, w.same_name(7, 1) + noise))})], codec="zlib"))
    start = max(at for at in range(0, len(data), 4096) if data[at : at + 4] == struct.pack("<I", 1))
    assert len(stored) <= struct.unpack_from("<I", data, start + 4)[0]
    return data[: start + 4] + struct.pack("<II", len(stored), size) + stored + data[start + 12 + len(stored) :]


@pytest.mark.parametrize(
    ("size", "plain"), [(4096, 1 << 20), (1 << 30, 1 << 20), (4095, 4095), (0, 0), (8192, 4096), (4096, 8192)]
)
def test_chunks_that_hold_what_they_do_not_say(size, plain, tmp_path):
    manifest = _ingest(_chunk(zlib.compress(bytes(plain), 9), size), tmp_path)
    assert manifest is not None
    assert manifest["anomalies"] == {"cpu_data_cut": 1}
    assert "CPU 0" in manifest["truncated"]["reason"]
    assert manifest["tables"] == {}


def test_options_that_come_back_to_themselves(tmp_path):
    data = _file()
    first = struct.unpack_from("<Q", data, data.index(b"none\0\0") + 6)[0]
    # the chain's first link leads to its start
    size = struct.unpack_from("<Q", data, first + 8)[0]
    place = first + 16 + size - 8
    broken = data[:place] + struct.pack("<Q", first) + data[place + 8 :]
    manifest = _ingest(broken, tmp_path)
    assert manifest is None or manifest["truncated"] is not None


def test_a_file_without_trace_data_says_so(tmp_path):
    data = _file()
    (tmp_path / "trace.dat").write_bytes(data[:2000])
    with pytest.raises(TraceFormatError, match="no trace data can be found"):
        ingest(tmp_path / "trace.dat", tmp_path / "trace")


def test_other_versions_and_codecs_are_named(tmp_path):
    data = _file()
    for old, new, word in ((b"tracing7", b"tracing8", "version '8'"), (b"none", b"lzma", "lzma")):
        broken = data.replace(old, new, 1)
        (tmp_path / "trace.dat").write_bytes(broken)
        with pytest.raises(TraceFormatError, match=word):
            ingest(tmp_path / "trace.dat", tmp_path / "trace")


def test_call_ends_too_short_for_their_format(tmp_path):
    """Found by tests/fuzz."""
    w = Writer()
    pages = w.page(0, (1, w.entry(7, 5, 0)), (1, w.exit(7, 5, 0, 1, 2)[:24]))
    manifest = _ingest(build(File([Buffer({0: pages})])), tmp_path)
    assert manifest is not None
    assert manifest["tables"]["events/ftrace/funcgraph_entry"]["rows"] == 1
    assert manifest["anomalies"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_no_bytes(kind, tmp_path):
    """Found by changing formats at random: the trace could not be written."""
    w = Writer(KINDS[kind].get("order", "<"))
    data = build(File([Buffer({0: w.page(0, (1, w.value(7, 1, 2)))})], **{**KINDS[kind], "codec": "none"}))
    manifest = _ingest(data.replace(b"u16 many[3];\toffset:24;\tsize:6", b"u16 many[3];\toffset:24;\tsize:0"), tmp_path)
    assert manifest is not None
    assert manifest["tables"]["events/test/value"]["rows"] == 1
    assert manifest["anomalies"] == {}


@pytest.mark.parametrize("offset", [1 << 40, (1 << 63) - 8, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_data_of_a_cpu_that_stands_nowhere(kind, offset, tmp_path):
    """Found by tests/fuzz."""
    order = KINDS[kind].get("order", "<")
    w = Writer(order)
    data = build(File([Buffer({0: w.page(0, (1, w.same_name(7, 1)))})], **KINDS[kind]))
    place = data.index(b"flyrecord\0") + 10 if kind == "v6" else data.index(b"\0local\0") + 7 + 8 + 4
    manifest = _ingest(data[:place] + struct.pack(order + "Q", offset) + data[place + 8 :], tmp_path)
    assert manifest is not None
    assert manifest["anomalies"] == {"cpu_data_cut": 1}
    assert manifest["tables"] == {}


@pytest.mark.parametrize("number", [1 << 16, (1 << 32) - 1])
def test_data_of_a_cpu_that_no_machine_has(number, tmp_path):
    """Found by tests/fuzz."""
    w = Writer("<")
    data = build(File([Buffer({0: w.page(0, (1, w.same_name(7, 1)))})], **KINDS["v7"]))
    place = data.index(b"\0local\0") + 7 + 8
    manifest = _ingest(data[:place] + struct.pack("<I", number) + data[place + 4 :], tmp_path)
    assert manifest is not None
    assert f"CPU {number}; the file is damaged" in manifest["truncated"]["reason"]


@pytest.mark.parametrize("order", "<>")
def test_damaged_formats(order, tmp_path):
    """Any digit of a field's offset or size may be another."""
    w = Writer(order)
    items = [
        w.value(7, 1, 2), w.stack(7, 1, 2), w.mark(8, "mark"), w.entry(7, 5, 0), w.exit(7, 5, 0, 1, 2),
        w.bprint(7, 0xFFFFFFFF82000000, bytes(8)), w.bputs(7, 1), w.function(7, 1, 2),
    ]  # fmt: skip
    data = build(File([Buffer({0: w.page(0, *((1, item) for item in items))})], order=order))
    places = [found.end() - 1 for found in re.finditer(rb"(?:size|offset):\d", data)]
    random.seed(17)
    for _ in range(60):
        broken = bytearray(data)
        for place in random.sample(places, random.choice([1, 4, 15])):
            broken[place] = random.choice(b"0123456789")
        _ingest(bytes(broken), tmp_path)
