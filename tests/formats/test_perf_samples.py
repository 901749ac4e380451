"""Samples of any make: what is kept of them is found wherever the other parts put it; and what may be left out."""

import struct
import tempfile
from pathlib import Path

import polars as pl
import pytest
import synthetic as syn
from hypothesis import given, settings
from hypothesis import strategies as st
from test_perf_variants import from_stdin, manifest_of, rows_of

from tracekit.errors import UsageError
from tracekit.formats import _perf_stream, _selection
from tracekit.ingest import ingest

DEMO = Path(__file__).parents[2] / "fixtures" / "demo.perf.data"
BITS = {
    "ip": 0, "tid": 1, "time": 2, "addr": 3, "read": 4, "callchain": 5, "id": 6, "cpu": 7, "period": 8, "stream": 9,
    "raw": 10, "branch": 11, "user": 12, "stack": 13, "weight": 14, "data_src": 15, "identifier": 16,
    "transaction": 17, "kernel": 18, "phys_addr": 19, "aux": 20, "cgroup": 21, "data_page_size": 22,
    "code_page_size": 23, "weight_struct": 24,
}  # fmt: skip
number = st.integers(0, (1 << 64) - 1)
short = st.integers(0, 5)


class Made:
    """An attribute and its samples, drawn at random, and the columns they must give."""

    def __init__(self, draw) -> None:
        self.parts = draw(st.sets(st.sampled_from(sorted(BITS)))) | {"time"}
        if "weight_struct" in self.parts:
            self.parts -= {"weight"}
        self.read_format = draw(st.integers(0, 31))
        self.branch_type = draw(st.sampled_from([0, 1 << 17, 1 << 19, 1 << 17 | 1 << 19]))
        self.user, self.kernel = draw(st.integers(0, 255)), draw(st.integers(0, 255))
        self.draw = draw
        self.columns: list[dict[str, object]] = []
        self.chains: list[list[int] | None] = []
        self.counted = self.unknown = 0

    @property
    def attr(self) -> bytes:
        sample_type = sum(1 << BITS[part] for part in self.parts)
        head = struct.pack("<IIQQQQQ", 1, 136, 0, 1, sample_type, self.read_format, syn.SAMPLE_ID_ALL)
        tail = struct.pack("<QQIiQIHHIIQ", self.branch_type, self.user, 4096, 0, self.kernel, 0, 0, 0, 0, 0, 0)
        return (head + bytes(24) + tail).ljust(136, b"\0")

    def words(self, most: int, size: int = 1) -> list[int]:
        return [self.draw(number) for _ in range(size * self.draw(st.integers(0, most)))]

    def sample(self, time: int) -> bytes:
        draw, has = self.draw, self.parts.__contains__
        row: dict[str, object] = {}
        out: list[int] = []

        def keep(name: str, part: str, value: int) -> None:
            if has(part):
                out.append(value)
                row[name] = value

        keep("", "identifier", 1)
        keep("ip", "ip", draw(number))
        keep("", "tid", 6 << 32 | 5)
        out.append(time)
        keep("addr", "addr", draw(number))
        keep("", "id", 1)
        keep("", "stream", draw(number))
        keep("", "cpu", 1)
        keep("sample_period" if has("read") else "period", "period", draw(number))
        if has("read"):
            out += self.read(row)
        if has("callchain"):
            chain = self.words(4)
            out += [len(chain), *chain]
            self.chains.append(chain or None)
        else:
            self.chains.append(None)
        if has("raw"):
            raw = draw(st.binary(min_size=4, max_size=30))
            raw += bytes(-(len(raw) + 4) % 8)
            out += struct.unpack(f"<{(4 + len(raw)) // 8}Q", struct.pack("<I", len(raw)) + raw)
        if has("branch"):
            entries = self.words(3, 3)
            row["branch_entries"] = count = len(entries) // 3
            row |= {"branch_from": entries[::3], "branch_to": entries[1::3], "branch_flags": entries[2::3]}
            out += [count] + [7] * bool(self.branch_type & 1 << 17) + entries
            if self.branch_type & 1 << 19:
                row["branch_counters"] = counters = [self.draw(number) for _ in range(count)]
                out += counters
        if has("user"):
            out += self.registers("user_regs", self.user, row)
        if has("stack"):
            size = 8 * draw(short)
            used = draw(st.integers(0, size))
            out += [size, *([11] * (size // 8)), *([used] if size else [])]
            row["user_stack_bytes"] = used if size else 0
        keep("weight", "weight", draw(number))
        if has("weight_struct"):
            one, two, three = draw(st.integers(0, (1 << 32) - 1)), draw(st.integers(0, 65535)), draw(short)
            out.append(one | two << 32 | three << 48)
            row |= {"weight": one, "weight2": two, "weight3": three}
        keep("data_src", "data_src", draw(number))
        keep("transaction", "transaction", draw(number))
        if has("kernel"):
            out += self.registers("intr_regs", self.kernel, row)
        for part in ("phys_addr", "cgroup", "data_page_size", "code_page_size"):
            keep(part, part, draw(number))
        if has("aux"):
            out += [8 * (size := draw(short)), *([13] * size)]
        row.pop("", None)
        self.columns.append(row)
        return struct.pack("<IHH", 9, 0, 8 + 8 * len(out)) + struct.pack(f"<{len(out)}Q", *out)

    def registers(self, name: str, mask: int, row: dict[str, object]) -> list[int]:
        abi = self.draw(st.integers(0, 2))
        values = [self.draw(number) for _ in range(mask.bit_count())] if abi else []
        row |= {f"{name}_abi": abi, name: values or None}
        return [abi, *values]

    def read(self, row: dict[str, object]) -> list[int]:
        """A reading of the sample's own counter, which has counted one more each time, and of some unknown ones."""
        formats = {bit: bool(self.read_format & 1 << bit) for bit in range(5)}
        self.counted += 1
        lost, enabled, running = self.draw(number), self.draw(number), self.draw(number)
        row["period"], row["read_value"] = 1, self.counted
        entry = [self.counted, *[1] * formats[2], *[lost] * formats[4]]
        if formats[4]:
            row["read_lost"] = lost
        times = [enabled] * formats[0] + [running] * formats[1]
        row |= {name: value for name, value, bit in (
            ("time_enabled_ns", enabled, 0), ("time_running_ns", running, 1)
        ) if formats[bit]}  # fmt: skip
        if not formats[2]:  # nobody knows of which counters it is
            row |= dict.fromkeys(
                ("period", "read_value", "read_lost", "time_enabled_ns", "time_running_ns") & row.keys()
            )
        if formats[3]:
            strangers = self.draw(short)
            self.unknown += strangers if formats[2] else 0
            stranger = [7, *[1000] * formats[2], *[8] * formats[4]]
            return [1 + strangers, *times, *entry, *(stranger * strangers)]
        return [entry[0], *times, *entry[1:]]


def file_of(attr: bytes, data: bytes) -> bytes:
    entry = attr + struct.pack("<QQ", 104, 8)
    at = 112 + len(entry)
    head = b"PERFILE2" + struct.pack("<8Q", 104, len(entry), 112, len(entry), at, len(data), 0, 0) + bytes(32)
    return head + struct.pack("<Q", 1) + entry + data


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_all_parts_are_found_whatever_the_others_are(data):
    made = Made(data.draw)
    count = data.draw(st.integers(1, 4))
    bytes_ = file_of(made.attr, b"".join(made.sample(time) for time in range(1, count + 1)))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "perf.data"
        source.write_bytes(bytes_)
        trace = ingest(source, jobs=1)
        manifest = manifest_of(trace)
        unknown = made.unknown if made.read_format & 4 else count
        read = {"reading_of_unknown_counter": unknown} if "read" in made.parts and unknown else {}
        assert manifest["anomalies"] == read
        assert manifest["truncated"] is None
        rows = pl.read_parquet(trace / "samples/cpu-clock.parquet")
        assert rows["time_ns"].to_list() == list(range(1, count + 1))
        expected = {name: [row[name] for row in made.columns] for name in made.columns[0]}
        common = {"time_ns", "cpu", "pid", "tid", "comm", "callchain_id", "seq"}
        assert {name: rows[name].to_list() for name in rows.columns if name not in common} == expected
        assert rows["pid"].to_list() == [5 if "tid" in made.parts else None] * count
        assert rows["cpu"].to_list() == [1 if "cpu" in made.parts else None] * count
        if any(made.chains):
            chains = dict(pl.read_parquet(trace / "callchains.parquet").rows())
            assert [chains.get(one) for one in rows["callchain_id"].to_list()] == made.chains


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_tracepoints_without_raw_data_have_what_follows_it(data):
    """Found by fuzzing: such columns were announced and not delivered."""
    made = Made(data.draw)
    made.parts -= {"raw", "ip", "addr", "period"}  # of which tracepoints have no columns
    attr = struct.pack("<I", 2) + made.attr[4:]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "perf.data"
        source.write_bytes(file_of(attr, made.sample(1) + made.sample(2)))
        trace = ingest(source, jobs=1)
        if "read" in made.parts:  # whose row a reading is depends on who it says it is of
            return
        rows = pl.read_parquet(trace / "events/unknown/tracepoint_0.parquet")
    expected = {name: [row[name] for row in made.columns] for name in made.columns[0]}
    common = {"time_ns", "cpu", "pid", "tid", "comm", "callchain_id", "seq"}
    found = {name: rows[name].to_list() for name in rows.columns if name not in common}
    assert found == expected


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_cut_samples_lose_parts_and_nothing_else(data):
    made = Made(data.draw)
    whole = made.sample(1)
    size = 8 * data.draw(st.integers(1, len(whole) // 8))
    cut = struct.pack("<IHH", 9, 0, size) + whole[8:size]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "perf.data"
        source.write_bytes(file_of(made.attr, cut + made.sample(2)))
        manifest = manifest_of(ingest(source, jobs=1))
    rows = manifest["tables"]["samples/cpu-clock"]["rows"]
    assert rows == 2 or (rows == 1 and manifest["anomalies"])


@pytest.mark.parametrize("size", [64, 72, 80, 96, 104, 112, 120, 128, 136, 144, 512])
def test_attributes_of_any_age(tmp_path, size):
    attr = struct.pack("<IIQQQQQ", 1, size, 0, 1, 1 << 16 | 4, 0, 0).ljust(size, b"\0")
    (tmp_path / "perf.data").write_bytes(file_of(attr, struct.pack("<IHHQQ", 9, 0, 24, 1, 77)))
    rows = pl.read_parquet(ingest(tmp_path / "perf.data") / "samples/cpu-clock.parquet")
    assert rows["time_ns"].to_list() == [77]


def test_records_without_a_table_are_counted(tmp_path):
    body = bytes(16) + syn.trailer(5, 3, 0)
    kinds = [5, 6, 11, 12, 14, 15, 16, 17, 18, 19, 19]
    aux = struct.pack("<IHHQ", 71, 0, 48, 40).ljust(48, b"\0") + bytes(40)
    data = syn.sample(1) + b"".join(syn.record(kind, body) for kind in kinds) + aux + syn.sample(9)
    (tmp_path / "perf.data").write_bytes(syn.perf_data(data))
    manifest = manifest_of(ingest(tmp_path / "perf.data", tmp_path / "trace"))
    assert manifest["anomalies"] == {}
    assert manifest["features"]["records"] == {
        "throttle": 1, "unthrottle": 1, "aux": 1, "itrace_start": 1, "switch": 1, "switch_cpu_wide": 1,
        "namespaces": 1, "ksymbol": 1, "bpf_event": 1, "cgroup": 2, "auxtrace": 1, "auxtrace_bytes": 40,
    }  # fmt: skip


# --- losses, and what never fired --------------------------------------------------------------------------------


def lost(time: int, cpu: int, count: int = 4) -> bytes:
    return syn.record(2, struct.pack("<QQ", 1, count) + syn.trailer(5, time, cpu))


@pytest.mark.parametrize("window", [1 << 8, 1 << 20])
def test_losses_say_since_when(tmp_path, monkeypatch, window):
    monkeypatch.setattr(_perf_stream, "WINDOW_BYTES", window)
    data = (
        lost(5, 3) + syn.sample(10, cpu=0) + syn.sample(20, cpu=0) + lost(50, 0) + syn.sample(51, cpu=0)
        + syn.sample(11, cpu=1) + syn.comm(13, 9, "x", cpu=1) + lost(40, 1) + lost(41, 1) + syn.ROUND
        + b"".join(syn.sample(60 + time, cpu=0) for time in range(20)) + syn.ROUND + lost(90, 0) + lost(91, 1)
        + syn.record(13, struct.pack("<Q", 3) + syn.trailer(5, 99, 0))
    )  # fmt: skip
    (tmp_path / "perf.data").write_bytes(syn.perf_data(data))
    table = pl.read_parquet(ingest(tmp_path / "perf.data", tmp_path / "trace") / "lost.parquet")
    assert table.select("time_ns", "cpu", "from_ns").rows() == [
        (5, 3, None), (40, 1, 13), (41, 1, 13), (50, 0, 20), (90, 0, 79), (91, 1, 13), (99, 0, None)
    ]  # fmt: skip


def test_an_event_that_never_fired_has_an_empty_table_of_its_fields(tmp_path):
    silent = syn.Event(78, "test", "silent", (("char name[8]", 8, 8, 0), ("__data_loc char[] text", 16, 4, 0)))
    data = syn.sample(1)
    (tmp_path / "perf.data").write_bytes(syn.perf_data(data, [syn.EVENT, silent]))
    trace = ingest(tmp_path / "perf.data", tmp_path / "trace")
    assert rows_of(trace) == {"test:event": 1, "test:silent": 0}
    columns = pl.read_parquet_schema(trace / "events/test/silent.parquet")
    assert list(columns)[-2:] == ["name", "text"]
    assert list(columns)[:7] == list(pl.read_parquet_schema(trace / "events/test/event.parquet"))[:7]
    assert len(pl.read_parquet(trace / "events/test/silent.parquet")) == 0
    assert manifest_of(trace)["anomalies"] == {}


# --- what was asked for ------------------------------------------------------------------------------------------


def _filtered(rows: pl.DataFrame, options: dict) -> pl.DataFrame:
    if "from_ns" in options:
        rows = rows.filter(pl.col("time_ns") >= options["from_ns"])
    if "to_ns" in options:
        rows = rows.filter(pl.col("time_ns") <= options["to_ns"])
    if "cpus" in options:
        rows = rows.filter(pl.col("cpu").is_in(options["cpus"]))
    if "pids" in options:
        rows = rows.filter(pl.col("pid").is_in(options["pids"]) | pl.col("tid").is_in(options["pids"]))
    return rows


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return ingest(DEMO, tmp_path_factory.mktemp("demo") / "trace")


@pytest.mark.parametrize("case", range(6))
def test_filters_give_the_rows_that_a_query_would(tmp_path, everything, case):
    span = manifest_of(everything)["time_range_ns"]
    third = (span["last"] - span["first"]) // 3
    event = max(rows_of(everything).items(), key=lambda one: one[1])[0]
    pid = pl.read_parquet(everything / f"events/{event.replace(':', '/')}.parquet")["pid"].mode()[0]
    options = [
        {"from_ns": span["first"] + third},
        {"to_ns": span["last"] - third},
        {"from_ns": span["first"] + third, "to_ns": span["last"] - third, "cpus": [1]},
        {"pids": [pid]},
        {"cpus": [0, 5], "pids": [pid, 99999]},
        {"from_ns": span["last"] + 1},
    ][case]
    trace = ingest(DEMO, tmp_path / "trace", **options)
    manifest = manifest_of(trace)
    filters = {"events": [], "from_ns": None, "to_ns": None, "cpus": None, "pids": None} | options
    assert manifest["filters"] == filters
    for name in rows_of(everything):
        path = f"events/{name.replace(':', '/')}.parquet"
        expected = _filtered(pl.read_parquet(everything / path), options)
        assert pl.read_parquet(trace / path).drop("callchain_id").rows() == expected.drop("callchain_id").rows(), name
    for name in ("tasks", "maps"):
        assert pl.read_parquet(trace / f"{name}.parquet").equals(pl.read_parquet(everything / f"{name}.parquet"))


def test_filters_work_for_every_reader(tmp_path, monkeypatch):
    text = "".join(
        f"           task-{pid}       [00{pid % 2}] .....  1.00000{pid}: my_event: value={pid}\n" for pid in range(1, 9)
    )
    header = "# tracer: nop\n#\n# entries-in-buffer/entries-written: 8/8   #P:2\n#\n"
    trace = from_stdin(monkeypatch, (header + text).encode(), tmp_path / "trace", cpus=[1], to_ns=1_000_005_000)
    table = next((trace / "events").rglob("*.parquet"))
    assert pl.read_parquet(table)["tid"].to_list() == [1, 3, 5]


@pytest.mark.parametrize(
    ("text", "value"), [("12.5", 12_500_000_000), ("12500ns", 12_500), ("0", 0), ("1.000000001", 1_000_000_001)]
)
def test_times_on_the_command_line(text, value):
    assert _selection.nanoseconds("--from", text) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1e9", "1.5ns", "1.0000000001", "ns", "٣"])
def test_bad_times(text):
    with pytest.raises(UsageError, match="--from"):
        _selection.nanoseconds("--from", text)


def test_lists_on_the_command_line():
    assert _selection.numbers("--cpu", "0,2-3") == {0, 2, 3}
    assert _selection.numbers("--cpu", None) is None
    for text in ("", "a", "3-2", "1,,2", "0-99999999999", "0-9999999"):
        with pytest.raises(UsageError, match="--cpu"):
            _selection.numbers("--cpu", text)
