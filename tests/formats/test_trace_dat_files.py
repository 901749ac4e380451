"""Small files of every kind that trace-cmd writes, made by a builder of the tests' own."""

import json
import struct
import threading
import time
from pathlib import Path

import jsonschema
import polars as pl
import pytest
import ring_buffer_naive as naive
from trace_dat_builder import Buffer, File, Writer, build

from tracekit._parquet import Tables
from tracekit.formats import detect
from tracekit.ingest import ingest

FIRST, SECOND = 0xFFFFFFFF81000010, 0xFFFFFFFF81001234


@pytest.fixture
def read(tmp_path):
    """Ingests a file and gives its manifest and what reads its tables."""

    def read(file, **options):
        path = tmp_path / "trace.dat"
        path.write_bytes(build(file))
        assert detect(path).NAME == "trace.dat"
        out = ingest(path, tmp_path / "trace", force=True, **options)
        return json.loads((out / "manifest.json").read_text()), lambda name: pl.read_parquet(out / f"{name}.parquet")

    return read


FILES = [
    (version, order, long_bytes, page_bytes, codec)
    for version, codecs in ((6, ["none"]), (7, ["none", "zlib", "zstd"]))
    for order in "<>"
    for long_bytes in (8, 4)
    for page_bytes in (4096, 65536)
    for codec in codecs
]


@pytest.mark.parametrize(("version", "order", "long_bytes", "page_bytes", "codec"), FILES)
def test_every_kind_of_file(read, version, order, long_bytes, page_bytes, codec):  # noqa: PLR0917
    writer = Writer(order, long_bytes, page_bytes)
    zero = [
        writer.page(100 + 1000 * n, (0, writer.value(7, 1, -5, text="héllo")), (10, writer.same_name(8, n)))
        for n in range(5)
    ]
    one = [writer.page(150 + 1000 * n, (0, writer.same_name(9, -n, 102))) for n in range(5)]
    instance = writer.page(42, (1, writer.mark(7, "only here")))
    buffers = [Buffer({0: b"".join(zero), 2: b"".join(one)}), Buffer({2: instance}, "inner", "local")]
    file = File(buffers, version, order, long_bytes, page_bytes, codec, [(8, struct.pack(order + "I", 4))])
    if version == 6:
        file = file._replace(options=[])
    manifest, table = read(file)
    assert manifest["anomalies"] == {}
    assert manifest["truncated"] is None
    values = table("events/test/value")
    assert values.select("time_ns", "cpu", "tid", "comm", "small", "small_name", "large", "text").row(0) == (
        100, 0, 7, "worker", 1, "ONE", -5, "héllo"
    )  # fmt: skip
    assert values["many"].to_list() == [[1, 2, 3]] * 5
    assert values["pid"].to_list() == [None] * 5
    assert table("events/test/same_name")["a"].to_list() == [0, 1, 2, 3, 4]
    assert table("events/test/same_name")["time_ns"].to_list() == [110 + 1000 * n for n in range(5)]
    other = table("events/other/same_name")
    assert other.select("cpu", "comm", "a").rows() == [(2, None, -n) for n in range(5)]
    assert table("instances/inner/events/ftrace/print")["buf"].to_list() == ["only here"]
    assert manifest["features"]["instances"]["inner"]["name"] == "local"


def _one(*items, writer=None, stamp=1000):
    return (writer or Writer()).page(stamp, *items)


def test_options_of_machine_recorder_and_clock(read):
    options = [(5, b"Linux host 7.2.13 x86_64\0"), (9, b"3.3.1 abc\0"), (7, b"-500\0"), (1, b"0x10\0"),
               (2, b"CPU: 0\nentries: 5\noverrun: 2\nnow ts:   1.5\n\0"), (11, bytes(range(8)))]  # fmt: skip
    manifest, table = read(File([Buffer({0: _one((5, Writer().same_name(7, 1)))}, clock="mono")], options=options))
    assert manifest["machine"]["release"] == "7.2.13"
    assert manifest["machine"]["arch"] == "x86_64"
    assert manifest["recorder"] == {"name": "trace-cmd", "version": "3.3.1 abc", "cmdline": None}
    assert manifest["clock"]["name"] == "mono"
    assert table("events/test/same_name")["time_ns"].to_list() == [1005 + 16 * 1000 - 500]
    assert manifest["features"]["cpu_stats"] == [{"cpu": 0, "entries": 5, "overrun": 2, "now_ts": "1.5"}]


def test_a_counter_is_not_taken_for_time(read):
    page = _one((5, Writer().same_name(7, 1)), stamp=3)
    manifest, table = read(File([Buffer({0: page}, clock="counter")]))
    assert (manifest["clock"]["name"], manifest["clock"]["unit"]) == ("counter", "counts")
    assert table("events/test/same_name")["time_ns"].to_list() == [8]


@pytest.mark.parametrize("raw", [5, (1 << 40) + 12345, (1 << 62) + 99])
def test_tsc_to_nanoseconds(read, raw):
    mult, shift = 4_123_456_789, 33
    file = File([Buffer({0: _one((0, Writer().same_name(7, 1)), stamp=raw)}, clock="x86-tsc")],
                options=[(14, struct.pack("<IIQ", mult, shift, 77))])  # fmt: skip
    manifest, table = read(file)
    exact = raw * mult >> shift
    # the kernel's and trace-cmd's way rounds the two halves apart
    assert abs(table("events/test/same_name")["time_ns"][0] - exact) <= 1
    assert manifest["clock"]["unit"] == "ns"
    assert manifest["clock"]["tsc2nsec"] == {"mult": mult, "shift": shift, "offset": 77}


def _shift(flags, *cpus):
    data = struct.pack("<QII", 1, flags, len(cpus))
    for samples in cpus:
        data += struct.pack("<I", len(samples))
        for column in zip(*samples, strict=True):
            data += struct.pack(f"<{len(samples)}q", *column)
    return data


@pytest.mark.parametrize(
    ("flags", "samples", "expected"),
    [
        (0, [(0, -100, 1)], [900, 4900]),
        (0, [(500, -100, 1), (3000, 50, 1)], [900, 4900]),
        (0, [(500, -100, 1), (3000, 50, 1), (4000, 70, 1)], [900, 5050]),
        (1, [(0, 0, 1), (2000, 200, 1)], [1100, 5500]),
    ],
)
def test_a_guests_clock_follows_its_hosts(read, flags, samples, expected):
    writer = Writer()
    page = writer.page(1000, (0, writer.same_name(7, 1)), (4000, writer.same_name(7, 2)))
    _, table = read(File([Buffer({0: page})], options=[(12, _shift(flags, samples))]))
    assert table("events/test/same_name")["time_ns"].to_list() == expected


def test_functions_have_names(read):
    writer = Writer()
    page = writer.page(0, (1, writer.function(7, FIRST, SECOND)), (1, writer.function(7, 5, SECOND)))
    _, table = read(File([Buffer({0: page})]))
    rows = table("events/ftrace/function").select("ip_name", "parent_ip_name").rows()
    assert rows == [("first_function", "second.isra.0"), (None, "second.isra.0")]


def test_marks_have_no_newline_and_unknown_tasks_no_name(read):
    writer = Writer()
    page = writer.page(0, (1, writer.mark(9, "call_begin")), (1, writer.mark(-1, "")), (1, writer.mark(8, "a\nb")))
    _, table = read(File([Buffer({0: page})]))
    marks = table("events/ftrace/print").select("tid", "comm", "buf").rows()
    assert marks == [(9, None, "call_begin"), (None, None, ""), (8, "a name-8 [x]", "a\nb")]


def test_trace_printk_is_put_together(read):
    writer = Writer()
    packed = struct.pack("<i", -3) + b"things\0"
    page = writer.page(
        0, (1, writer.bprint(7, 0xFFFFFFFF82000000, packed)), (1, writer.bprint(7, 1, packed)),
        (1, writer.bputs(7, 0xFFFFFFFF82000100)),
    )  # fmt: skip
    _, table = read(File([Buffer({0: page})]))
    assert table("events/ftrace/bprint")["buf"].to_list() == ["number -3 of things", "0x1"]
    assert table("events/ftrace/bputs")["buf"].to_list() == ["only text"]


def test_a_stack_belongs_to_the_event_before_it_on_its_task(read):
    writer = Writer()
    items = [
        writer.same_name(7, 0), writer.same_name(8, 1), writer.stack(8, 1, 2), writer.stack(7, 3),
        writer.same_name(7, 2), writer.same_name(7, 3), writer.stack(7, 1, 2),
    ]  # fmt: skip
    # all in pages of their own: the stack of an event may be on the next
    pages = b"".join(writer.page(10 * n, (0, item)) for n, item in enumerate(items))
    manifest, table = read(File([Buffer({0: pages})]))
    chains = dict(table("callchains").rows())
    found = table("events/test/same_name").select("a", "callchain_id").rows()
    assert [(a, chains.get(chain)) for a, chain in found] == [(0, [3]), (1, [1, 2]), (2, None), (3, [1, 2])]
    assert len(chains) == 2
    assert table("events/ftrace/kernel_stack")["caller"].to_list() == [[1, 2], [3], [1, 2]]
    assert manifest["anomalies"] == {}


def test_calls_are_paired_per_task_and_not_across_a_loss(read):
    w = Writer()
    zero = [
        w.page(1000, (0, w.entry(7, FIRST, 0)), (10, w.entry(7, SECOND, 1)), (10, w.entry(8, SECOND, 1)),
               (10, w.exit(7, SECOND, 1, 5, 25)), (10, w.exit(8, FIRST, 1, 0, 35))),
        w.page(2000, (0, w.exit(7, FIRST, 0, 0, 900, 2)), (10, w.entry(7, FIRST, 0)), (10, w.entry(0, FIRST, 3))),
        w.page(3000, (0, w.exit(7, FIRST, 0, 1, 11)), missed=5),
    ]  # fmt: skip
    one = w.page(2500, (0, w.exit(0, FIRST, 3, 1, 2)), (10, w.entry(9, FIRST, 0)))
    _, table = read(File([Buffer({0: b"".join(zero), 1: one})]))
    rows = table("function_graph").select("time_ns", "cpu", "tid", "depth", "func_name", "duration_ns", "overrun")
    assert rows.rows() == [
        (1000, 0, 7, 0, "first_function", 900, 2),
        (1005, 0, 8, 1, "first_function", 35, 0),  # the exit of another function: no entry
        (1010, 0, 7, 1, "second.isra.0", 20, 0),
        (1020, 0, 8, 1, "second.isra.0", None, None),
        (2010, 0, 7, 0, "first_function", None, None),  # what ended it is behind the loss
        (2020, 0, 0, 3, "first_function", None, None),  # task 0 of another CPU is another task
        (2499, 1, 0, 3, "first_function", 1, 0),
        (2510, 1, 9, 0, "first_function", None, None),
        (2990, 0, 7, 0, "first_function", 10, 0),
    ]
    calls = table("function_graph")
    assert calls.filter(pl.col("entry_seq").is_null())["duration_ns"].to_list() == [35, 1, 10]
    assert table("lost").select("time_ns", "cpu", "count").rows() == [(3000, 0, 5)]


def test_time_extends_and_absolute_stamps(read):
    w = Writer()
    event = w.same_name(7, 0)
    base = (3 << 59) + 1000
    page = w.page(
        base, (5, event), naive.Extend(1 << 30), (5, event), naive.Stamp((1 << 31) + 7), (1, event),
        naive.Padding(3, bytes(12)), (1, event),
    )  # fmt: skip
    _, table = read(File([Buffer({0: page})]))
    top = 3 << 59
    assert table("events/test/same_name")["time_ns"].to_list() == [
        base + 5, base + 10 + (1 << 30), top + (1 << 31) + 8, top + (1 << 31) + 12
    ]  # fmt: skip


def test_windows_keep_the_order_of_all_cpus(read, monkeypatch):
    monkeypatch.setattr("tracekit.formats._trace_dat_window.WINDOW_BYTES", 3 * 4096)
    w = Writer()
    pages = {
        cpu: b"".join(w.page(step * n, *[(3, w.same_name(7, n))] * 50) for n in range(count))
        for cpu, step, count in ((0, 1000, 60), (1, 170, 300), (3, 20_000, 3), (5, 7, 1))
    }
    for jobs in (1, 2):
        manifest, table = read(File([Buffer(pages)], codec="zstd"), jobs=jobs)
        rows = table("events/test/same_name")
        assert manifest["anomalies"] == {}
        assert len(rows) == 50 * 364
        keys = rows.select("time_ns", "cpu", "seq").rows()
        assert keys == sorted(keys)
        assert rows["seq"].n_unique() == len(rows)


def test_nothing_is_appended_while_the_sink_settles(read, monkeypatch):
    """Losses and call chains come from the thread that reads, whatever the others do."""
    monkeypatch.setattr("tracekit.formats._trace_dat_window.WINDOW_BYTES", 3 * 4096)
    settling = threading.Event()
    overlaps = []
    append = Tables.append

    def settle(_):
        settling.set()
        time.sleep(0.005)
        settling.clear()

    def watched(tables, table, batch):
        if settling.is_set():
            overlaps.append(table)
        append(tables, table, batch)

    monkeypatch.setattr(Tables, "settle", settle)
    monkeypatch.setattr(Tables, "append", watched)
    w = Writer()
    pages = b"".join(w.page(1000 * n, (1, w.same_name(7, n)), (1, w.stack(7, n, 2)), missed=n + 1) for n in range(30))
    _, table = read(File([Buffer({0: pages})]), jobs=2)
    assert len(table("lost")) == len(table("callchains")) == 30
    assert overlaps == []


def test_manifests_keep_to_their_schema_and_instances_to_what_is_asked_for(read):
    w = Writer()
    page = w.page(0, (10, w.same_name(7, 1)), (10, w.same_name(8, 2)), (5, w.entry(7, 1, 0)), (1, w.entry(8, 1, 0)),
                  missed=1)  # fmt: skip
    manifest, table = read(File([Buffer({0: page}), Buffer({1: page}, "inner")]), from_ns=15, pids=frozenset({8}))
    schema = json.loads((Path(__file__).parents[2] / "schemas/manifest.schema.json").read_text())
    jsonschema.validate(manifest, schema)
    for root in ("", "instances/inner/"):
        assert table(f"{root}events/test/same_name")["a"].to_list() == [2]
        assert table(f"{root}function_graph")["tid"].to_list() == [8]
    assert manifest["tables"]["instances/inner/lost"]["rows"] == 1


def test_calls_are_of_the_time_and_cpus_asked_for(read):
    """A call is when it began; an exit that is left out still ends it."""
    w = Writer()
    pages = {
        cpu: w.page(1000 + cpu, (0, w.entry(7 + cpu, FIRST, 0)), (10, w.entry(7 + cpu, SECOND, 1)),
                    (10, w.exit(7 + cpu, SECOND, 1, 10, 20)), (90, w.exit(7 + cpu, FIRST, 0, 0, 110)))
        for cpu in (0, 1)
    }  # fmt: skip
    _, table = read(File([Buffer(pages)]), from_ns=1001, to_ns=1015, cpus=frozenset({0}))
    assert table("function_graph").select("time_ns", "cpu", "duration_ns").rows() == [(1010, 0, 10)]
    assert table("events/ftrace/funcgraph_entry")["time_ns"].to_list() == [1010]


def test_only_the_events_asked_for(read):
    w = Writer()
    page = w.page(0, (1, w.same_name(7, 1)), (1, w.same_name(7, 2, 102)), (1, w.mark(7, "x")))
    manifest, _ = read(File([Buffer({0: page})]), events=["other:*"])
    assert list(manifest["tables"]) == ["events/other/same_name"]


def test_events_without_a_format_are_kept_as_bytes(read):
    w = Writer()
    page = w.page(0, (1, w.same_name(7, 5, 999)), (1, w.value(7, 1, 2)[:12]), (1, w.exit(7, 1, 0, 1, 2)[:12]))
    manifest, table = read(File([Buffer({0: page})]))
    assert manifest["anomalies"] == {"event_shorter_than_format": 2, "event_without_format": 1}
    assert table("events/unknown/type_999")["raw"].to_list() == [w.same_name(7, 5, 999)]
    assert table("events/unknown/type_100").select("tid", "raw").rows() == [(7, w.value(7, 1, 2)[:12])]
