"""Text that is cut, overwritten or no trace at all: what can be read is read, the rest is counted, nothing crashes."""

import json
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import text_oracle

from tracekit.errors import TracekitError
from tracekit.formats import _text_chunks, _text_notes, _text_read
from tracekit.ingest import ingest

ROOT = Path(__file__).parents[2]
FRONT = "         forkcow-3605    [000] d..1.   425.{:06d}: "
PIPE = "".join(
    FRONT.format(number) + message
    for number, message in enumerate(
        [
            "set_migration_pte: addr=4ca000, pte=dfffe7fffee8f002 order=0\n",
            "sys_mmap(addr: 0, len: 0x20000, prot: 3, flags: 0x22, fd: 0xffffffff, off: 0)\n",
            "sys_mmap -> 0x7f4b2f4ab000\n",
            "remove_migration_pte: (remove_migration_pte+0x4/0x250) folio=0xffffea0004065540 vma=0xffff8880\n",
            "try_to_migrate_one_ret: (rmap_walk_anon+0x114/0x2a0 <- try_to_migrate_one) ret=1\n",
            "tlb_flush: pages:-1 reason:flush on task switch (0)\n",
            'foo: a=1 b=-2 name="x y" c=0xff left over\n',
            "tracing_mark_write: move_pages_begin\n",
            "<stack trace>\n => a\n => b\n",
            "do_exit <-do_group_exit\n",
        ]
    )
).encode()
REPORT = b"cpus=2\n" + PIPE.replace(b"    [", b"  [").replace(
    b"flush: pages:-1 reason:", b"flush:       pages=-1 reason="
)
SCRIPT = b"".join(
    f"         forkcow 3605/3605  [000]   425.00000{number}:      {event}\n".encode()
    for number, event in enumerate(
        [
            "migrate:set_migration_pte: addr=4ca000, pte=dfffe7fffee8f002 order=0",
            "kprobes:remove_migration_pte: (ffffffff817a3654) folio=0xffffea0004065540 vma=0xffff8880 addr=0x4c6000",
            "syscalls:sys_exit_mmap: 0x7f4b2f4ab000\n\tffffffff8172ab95 a+0x5 ([kernel])\n\t    7f00deadbeef b (/b)\n",
            "1000 cycles:  ffffffff81000000 native_write_msr+0x6 ([kernel.kallsyms])",
        ]
    )
)
SAMPLES = {"ftrace_text": PIPE, "trace_cmd_report": REPORT, "perf_script": SCRIPT}


def read(tmp_path: Path, text: bytes) -> tuple[Path, dict] | None:
    """None if the file was refused as it should be."""
    source = tmp_path / "text"
    source.write_bytes(text)
    try:
        trace = ingest(source, tmp_path / "trace", force=True)
    except TracekitError:
        return None
    return trace, json.loads((trace / "manifest.json").read_text())


def rows(manifest: dict) -> int:
    tables = manifest["tables"]
    return sum(stats["rows"] for table, stats in tables.items() if table.startswith(("events/", "samples/")))


@pytest.mark.parametrize("kind", SAMPLES)
def test_whole(tmp_path: Path, kind: str) -> None:
    found = read(tmp_path, SAMPLES[kind])
    assert found is not None
    assert found[1]["anomalies"] == {}
    assert rows(found[1]) == {"ftrace_text": 10, "trace_cmd_report": 10, "perf_script": 4}[kind]


@pytest.mark.parametrize("kind", SAMPLES)
def test_cut_anywhere(tmp_path: Path, kind: str) -> None:
    text = SAMPLES[kind]
    whole = read(tmp_path, text)
    assert whole is not None
    for cut in range(200, len(text), 17):
        found = read(tmp_path, text[:cut])
        assert found is not None
        assert found[1]["source"]["format"] == kind
        assert rows(found[1]) <= rows(whole[1])
        complete = text[:cut].count(b"\n", 0, text.find(b"stack trace"))
        assert rows(found[1]) + sum(found[1]["anomalies"].values()) >= complete - 3


@pytest.mark.parametrize("seed", range(60))
def test_garbage_in_the_middle(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    text = bytearray(SAMPLES[sorted(SAMPLES)[seed % 3]] * 4)
    for _ in range(chance.randrange(1, 12)):
        at = chance.randrange(130, len(text))
        size = chance.choice([1, 1, 8, 60])
        junk = [bytes(size), b"\xff" * size, chance.randbytes(size), b"\n" * size, b" " * size]
        text[at : at + size] = chance.choice(junk)
    found = read(tmp_path, bytes(text))
    assert found is not None
    for table in (found[0] / "events").glob("*/*.parquet"):
        pl.read_parquet(table)


def test_names_of_tasks_may_be_anything(tmp_path: Path) -> None:
    odd = ["[000] 1.2: a", "a-12 [0", "é", "(x)", "=> a", "#", "<...>", "", "a  b"]
    names = ["a-b", "x y", "k:1/2", "1234", "-1", *odd]
    text = b"".join(
        name.encode().rjust(16)
        + f"-{100 + n:<7d} [001] .....   1.{n:06d}: exit_mmap: mt_mod 00000000e399546d, DESTROY\n".encode()
        for n, name in enumerate(names)
    )
    found = read(tmp_path, PIPE + text)
    assert found is not None
    frame = pl.read_parquet(found[0] / "events/mmap/exit_mmap.parquet").sort("tid")
    assert found[1]["anomalies"] == {}
    assert frame["tid"].to_list() == [100 + n for n in range(len(names))]
    assert frame["comm"].cast(pl.String).to_list() == [None if name in {"<...>", ""} else name for name in names]


def test_what_is_not_understood_is_counted_and_located(tmp_path: Path) -> None:
    found = read(tmp_path, PIPE + b"gibberish\n" + b"\x00\xff\n" + PIPE)
    assert found is not None
    assert found[1]["anomalies"] == {"unparsed_line": 2}
    assert found[1]["features"]["unparsed_line_offsets"] == [len(PIPE), len(PIPE) + 10]
    assert rows(found[1]) == 20


def test_a_million_names_make_no_million_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text_read, "MAX_EVENTS", 20)
    text = "".join(FRONT.format(n) + f"name_{n}: x={n}\n" for n in range(50)).encode()
    found = read(tmp_path, text)
    assert found is not None
    assert found[1]["anomalies"] == {"too_many_events": 30}
    assert rows(found[1]) == 20


def test_losses_stand_where_they_happened(tmp_path: Path) -> None:
    header = b"# tracer: nop\n#\n# entries-in-buffer/entries-written: 10/25   #P:4\n#\n"
    lost = b"CPU:3 [LOST 57 EVENTS]\nCPU:1 [LOST EVENTS]\n"
    started = b"##### CPU 2 buffer started ####\n"
    found = read(tmp_path, header + PIPE + started + lost + PIPE + b"CPU:0 [LOST 1 EVENTS]\n")
    assert found is not None
    frame = pl.read_parquet(found[0] / "lost.parquet").sort("seq")
    assert frame["count"].to_list() == [15, 57, None, 1]
    assert frame["cpu"].to_list() == [None, 3, 1, 0]
    assert frame["time_ns"].to_list() == [425 * 10**9, 425 * 10**9, 425 * 10**9, None]
    assert frame["kind"].cast(pl.String).to_list() == ["overwritten", "lost", "lost", "lost"]
    assert found[1]["lost"] == {"events": None, "records": 4}
    assert found[1]["machine"]["cpus"] == 4
    assert found[1]["features"]["cpu_buffers_started"][0]["cpu"] == 2


def test_one_type_per_column_whatever_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text_chunks, "CHUNK_BYTES", 4096)
    lines = [f"foo: n={n} m={n:#x} mixed={'x' if n == 990 else n} neg={-n} late=\n" for n in range(1000)]
    text = "".join(FRONT.format(n) + line for n, line in enumerate(lines)).encode()
    found = read(tmp_path, text)
    assert found is not None
    frame = pl.read_parquet(found[0] / "events/unknown/foo.parquet")
    types = {"n": pl.Int64(), "m": pl.UInt64(), "mixed": pl.String(), "neg": pl.Int64()}
    assert {column: frame.schema[column] for column in types} == types
    assert frame["n"].to_list() == frame["m"].to_list() == list(range(1000))
    assert frame["mixed"].to_list() == ["x" if n == 990 else str(n) for n in range(1000)]


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {}
    for size in (1 << 20, 300, 1000):
        monkeypatch.setattr(_text_chunks, "CHUNK_BYTES", size)
        for kind, text in SAMPLES.items():
            found = read(tmp_path, text * 5)
            assert found is not None
            assert found[1]["anomalies"].keys() <= {"out_of_order_records"}
            frames = {str(path.relative_to(found[0])): pl.read_parquet(path) for path in found[0].rglob("*.parquet")}
            for path, frame in tables.setdefault(kind, frames).items():
                assert frames[path].equals(frame), (kind, size, path)


def test_long_lines_and_much_text_take_little_memory(tmp_path: Path) -> None:
    source = tmp_path / "text"
    with source.open("wb") as file:
        file.write(PIPE + b"x" * (10 << 20) + b"\n" + PIPE + b"y" * (40 << 20) + b"\n" + PIPE)
        for _ in range(20):
            file.write(PIPE * 2000)
        file.write(b"no line end " * (1 << 20))
    code = f"""
import json, re
from pathlib import Path
from tracekit.ingest import ingest
trace = ingest(Path({str(source)!r}), Path({str(tmp_path / "trace")!r}))
print((trace / "manifest.json").read_text())
# not ru_maxrss: that begins with what the forking parent had
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    printed, peak_kb = done.stdout.rsplit("\n", 2)[:2]
    manifest = json.loads(printed)
    assert rows(manifest) == 10 * (3 + 40000)
    assert manifest["anomalies"]["line_too_long"] >= 1
    assert sum(manifest["anomalies"].get(kind, 0) for kind in ("line_too_long", "unparsed_line")) == 3
    assert int(peak_kb) < 512 << 10


@pytest.mark.skipif(not text_oracle.CAPTURES.is_dir(), reason="needs the captures beside the checkout")
@pytest.mark.parametrize("name", ["7.2/rec.txt-stack", "7.2/rec.txt-latency", "7.2/rec.txt-fields"])
def test_real_text_cut_and_flipped(tmp_path: Path, name: str) -> None:
    text = (text_oracle.CAPTURES / name / "trace.txt").read_bytes()
    chance = random.Random(name)
    for _ in range(12):
        part = bytearray(text[: chance.randrange(2000, len(text))])
        for _ in range(20):
            part[chance.randrange(200, len(part))] = chance.randrange(256)
        assert read(tmp_path, bytes(part)) is not None


def test_an_event_printed_in_two_ways_gets_two_tables(tmp_path: Path) -> None:
    """Found by tests/fuzz: options/fields was switched on while the trace was read."""
    text = (
        FRONT.format(1)
        + "sys_clone -> 0x0\n"
        + FRONT.format(2)
        + "sys_exit_clone: __syscall_nr=0x38 (56) ret=0xe15 (3605)\n"
    )
    source = tmp_path / "trace.txt"
    source.write_text(text)
    out = ingest(source)
    tables = json.loads((out / "manifest.json").read_text())["tables"]
    assert {name: table["rows"] for name, table in tables.items()} == {
        "events/syscalls/sys_exit_clone": 1,
        "events/syscalls/sys_exit_clone_": 1,
    }


@pytest.mark.parametrize("keys", [1, 6])
def test_a_line_much_longer_than_the_last_ones(tmp_path: Path, keys: int) -> None:
    """Found by tests/fuzz: what was learnt from a long line was looked for behind the end of the text."""
    long = " ".join(f"a_key_with_a_long_name_{n}={n}" + " words and words" * 20 for n in range(keys))
    text = FRONT.format(1) + f"foo: {long}\n" + FRONT.format(2) + "foo: a\n"
    found = read(tmp_path, text.encode())
    assert found is not None
    frame = pl.read_parquet(found[0] / "events/unknown/foo.parquet")
    assert frame["text"].to_list() == [long, "a"]
    assert frame["a_key_with_a_long_name_0"].to_list() == [0, None]


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_long_name_of_a_task_and_a_short_line_at_the_end(tmp_path: Path, kind: str) -> None:
    """Found by tests/fuzz: the name was looked for behind the end of the text."""
    first = SCRIPT.split(b"\n")[0] if kind == "perf_script" else PIPE.split(b"\n")[0]
    found = read(tmp_path, SAMPLES[kind] + b"y" * 180 + first + b"\nx\n")
    assert found is not None
    assert found[1]["source"]["format"] == kind
    assert found[1]["anomalies"] == {"unparsed_line": 1}


@pytest.mark.parametrize("kind", SAMPLES)
def test_numbers_that_are_no_process(tmp_path: Path, kind: str) -> None:
    for number, count in ((0x7FFFFFFF, 0), (0x80000000, 1), (9999999999, 1), (10**30, 1)):
        found = read(tmp_path, SAMPLES[kind] + SAMPLES[kind].replace(b"3605", b"%d" % number, 1))
        assert found is not None
        assert found[1]["anomalies"].get("unparsed_line", 0) == count, number


def test_losses_that_no_column_holds(tmp_path: Path) -> None:
    lost = b"CPU:4294967297 [LOST 1 EVENTS]\nCPU:1 [LOST 99999999999999999999 EVENTS]\n"
    found = read(
        tmp_path, b"# entries-in-buffer/entries-written: 1/99999999999999999999   #P:999999999\n" + PIPE + lost
    )
    assert found is not None
    assert found[1]["lost"] == {"events": 0, "records": 0}
    assert found[1]["machine"]["cpus"] is None
    assert found[1]["anomalies"] == {"unparsed_line": 2}


def test_losses_without_end_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text_notes, "MAX_WAITING", 10)
    monkeypatch.setattr(_text_chunks, "CHUNK_BYTES", 400)
    found = read(tmp_path, PIPE + b"CPU:1 [LOST 2 EVENTS]\n" * 100)
    assert found is not None
    assert found[1]["lost"] == {"events": 200, "records": 100}
