"""Real traces as text: as many rows as lines, and the tables of the binary file, but for what is not printed."""

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import oracle
import text_oracle

from tracekit.ingest import ingest

if not text_oracle.CAPTURES.is_dir():
    pytest.skip("needs the captures beside the checkout", allow_module_level=True)

TRACEFS = sorted(text_oracle.CAPTURES.glob("*/rec.txt-*/*.txt"))
SCRIPTS = [folder for folder in oracle.regular_captures() if list(folder.glob("oracle.script.txt*"))]
REPORTS = text_oracle.having("oracle.report.txt")
NOT_REGULAR = [folder for folder in text_oracle.having("oracle.script.txt") if folder not in SCRIPTS]

# fields that are printed by no tool, or as something from which the number does not follow
UNPRINTED = {
    "mmap/exit_mmap": {"mm"},
    "pagemap/mm_lru_insertion": {"flags"},  # six letters, for some of its bits
    "sched/sched_switch": {"prev_state", "prev_state_name"},
    "ftrace/function": {"ip", "parent_ip", "args"},  # by name only
    "ftrace/funcgraph_entry": {"func", "args", "parent_ip", "retaddr"},
    "ftrace/funcgraph_exit": {"func", "func_name", "calltime", "rettime", "overrun", "retval"},
    "ftrace/kernel_stack": {"caller", "size"},  # in callchains
}
# "[FAILED TO PARSE]": perf and trace-cmd print numbers in place of names
UNPARSED = {"gfp_flags_name"}
SHOWN_ELSEWHERE = re.compile(r".*(_name|_text|_hash|duration_ns)$")


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.is_dir() else f"{path.parts[-3]}/{path.parts[-2]}"


def read(source: Path, out: Path) -> tuple[Path, dict]:
    trace = ingest(source, out, force=True)
    return trace, json.loads((trace / "manifest.json").read_text())


def read_text(folder: Path, name: str, tmp_path: Path) -> tuple[Path, dict, bytes]:
    text = text_oracle.text_of(folder, name)
    source = tmp_path / "text.txt"
    source.write_bytes(text)
    return *read(source, tmp_path / "text"), text


def rows(manifest: dict) -> Counter[str]:
    """Rows by event, wherever they are; probes marked as the oracle does."""
    counts: Counter[str] = Counter()
    for table, stats in manifest["tables"].items():
        if "events/" in table:
            counts[table] += stats["rows"]
    return counts


def by_event(trace: Path, manifest: dict) -> Counter[str]:
    counts: Counter[str] = Counter()
    for table, number in rows(manifest).items():
        columns = pl.read_parquet_schema(trace / f"{table}.parquet")
        probe = any(column.startswith("__probe") for column in columns)
        counts[table.rsplit("/", 1)[1] + (" probe" if probe else "")] += number
    return counts


@pytest.mark.parametrize("path", TRACEFS, ids=name_of)
def test_tracefs_has_a_row_per_line(path: Path, tmp_path: Path) -> None:
    trace, manifest = read(path, tmp_path / "trace")
    text = path.read_bytes()
    assert manifest["source"]["format"] == "ftrace_text"
    assert by_event(trace, manifest) == text_oracle.count_tasks(text)
    assert manifest["anomalies"] == {}
    assert manifest["clock"]["resolution_ns"] == (1 if "raw" in path.parts[-2] else 1000)


@pytest.mark.parametrize("path", [path for path in TRACEFS if "raw" not in path.parts[-2]], ids=name_of)
def test_tracefs_migration_entries_are_those_printed(path: Path, tmp_path: Path) -> None:
    trace, _ = read(path, tmp_path / "trace")
    frame = pl.read_parquet(trace / "events/migrate/set_migration_pte.parquet").sort("seq")
    printed = text_oracle.lines(path.read_bytes())
    found = [line for line in printed if line["rest"].startswith("set_migration_pte: addr")]
    hexadecimal = re.compile(r"(\w+)=(?:0x)?([0-9a-f]+)")
    for line, row in zip(found, frame.iter_rows(named=True), strict=True):
        fields = dict(hexadecimal.findall(line["rest"]))
        assert {key: int(value, 16) for key, value in fields.items()} == {
            key: row[key] for key in ("addr", "pte", "order")
        }
        groups = line.groupdict()
        assert (row["comm"], row["tid"], row["cpu"]) == (groups["comm"].strip(), int(groups["tid"]), int(groups["cpu"]))
        assert row["pid"] == (int(groups["tgid"]) if groups.get("tgid") else None)
        assert row["common_preempt_count"] == int(groups["flags"][3].replace(".", "0"))
        us = groups.get("us")
        assert row["time_ns"] == (int(us) * 1000 if us else int(groups["sec"]) * 10**9 + int(groups["part"]) * 1000)


def test_stacks_are_kept_with_their_event(tmp_path: Path) -> None:
    path = text_oracle.CAPTURES / "7.2/rec.txt-stack/trace.txt"
    trace, _ = read(path, tmp_path / "trace")
    stacks = pl.read_parquet(trace / "events/ftrace/kernel_stack.parquet").sort("seq")
    chains = pl.read_parquet(trace / "callchains.parquet")
    frames = stacks.join(chains, on="callchain_id", how="left", maintain_order="left")
    expected = [
        [entry.removeprefix(" => ") for entry in stack.split("\n")[1:] if entry.startswith(" => ")]
        for stack in path.read_text().split("<stack trace>")[1:]
    ]
    assert frames["symbols"].to_list() == expected
    assert frames["ips"].null_count() == len(frames)


@pytest.mark.parametrize("folder", REPORTS, ids=name_of)
def test_trace_cmd_report_has_a_row_per_line(folder: Path, tmp_path: Path) -> None:
    trace, manifest, text = read_text(folder, "oracle.report.txt", tmp_path)
    assert manifest["source"]["format"] == "trace_cmd_report"
    assert by_event(trace, manifest) == text_oracle.count_tasks(text)
    assert manifest["anomalies"] == {}
    dropped = re.findall(rb"^CPU:\d+ \[(?:(\d+) )?EVENTS DROPPED\]", text, re.MULTILINE)
    assert manifest["lost"]["records"] == len(dropped)
    if importlib.util.find_spec("tracekit.formats.trace_dat") is None or not (folder / "trace.dat").exists():
        return
    binary, other = read(folder / "trace.dat", tmp_path / "binary")
    assert manifest["lost"] == other["lost"]
    for table in rows(manifest):
        theirs = table if table in other["tables"] else table.replace("/unknown/", "/kprobes/")
        if table.endswith("funcgraph_exit"):  # a call that calls nothing is one line, and its end has no row
            continue
        compare(binary / f"{theirs}.parquet", trace / f"{table}.parquet", flags_too=False)


@pytest.mark.parametrize("folder", SCRIPTS, ids=name_of)
def test_perf_script_makes_the_tables_of_perf_data(folder: Path, tmp_path: Path) -> None:
    trace, manifest, text = read_text(folder, "oracle.script.txt", tmp_path)
    assert manifest["source"]["format"] == "perf_script"
    assert manifest["anomalies"] == {}
    counted = {f"events/{event.replace(':', '/')}": number for event, number in text_oracle.count_perf(text).items()}
    assert rows(manifest) == counted
    binary, other = read(folder / "perf.data", tmp_path / "binary")
    assert {table: number for table, number in rows(other).items() if number} == counted
    for table in counted:
        compare(binary / f"{table}.parquet", trace / f"{table}.parquet", flags_too=True)


@pytest.mark.parametrize("folder", NOT_REGULAR, ids=name_of)
def test_perf_script_of_other_recordings_has_a_row_per_line(folder: Path, tmp_path: Path) -> None:
    _, manifest, text = read_text(folder, "oracle.script.txt", tmp_path)
    counted = {f"events/{event.replace(':', '/')}": number for event, number in text_oracle.count_perf(text).items()}
    assert rows(manifest) == counted
    assert manifest["anomalies"] == {}


def compare(binary: Path, text: Path, *, flags_too: bool) -> None:
    """The tables of one event: what both have is equal, and what one lacks it may lack.

    Lost: the group of a probe and the width of its arguments; names spelt as the tool spells them; sign and width of a
    field where kernels differ and print alike; bits of common_flags that trace-cmd has no sign for.
    """
    event = "/".join(binary.with_suffix("").parts[-2:])
    theirs, ours = pl.read_parquet(binary), pl.read_parquet(text)
    assert theirs.height == ours.height, event
    missing = set(theirs.columns) - set(ours.columns) - UNPRINTED.get(event, set()) - UNPARSED - {"__syscall_nr"}
    if flags_too:  # perf prints none of them
        missing -= {"common_flags", "common_preempt_count", "common_pid"}
        missing -= {"user_stack_bytes", "user_regs", "user_regs_abi", "data_src"}
    assert not missing, event
    assert all(SHOWN_ELSEWHERE.match(column) for column in set(ours.columns) - set(theirs.columns)), event
    for column in set(theirs.columns) & set(ours.columns) - {"seq", "callchain_id", "common_flags"}:
        one, other = theirs[column], ours[column]
        if one.dtype.is_integer() and event.split("/")[0] not in {"kprobes", "migrate", "ftrace"}:
            assert one.dtype == other.dtype, (event, column)
        if one.dtype.is_integer():
            other = other.cast(one.dtype, wrap_numerical=True)
        else:
            one, other = one.cast(pl.String), other.cast(pl.String)
        wrong = pl.DataFrame({"one": one, "other": other}).filter(one.ne_missing(other))
        if (event, column) in {("vmscan/mm_shrink_slab_start", "shrink"), ("vmscan/mm_shrink_slab_end", "shrink")}:
            wrong = wrong.filter(pl.col("other").is_not_null())  # printed as a symbol
        if (event, column) == ("tlb/tlb_flush", "reason_name"):  # by libtraceevent's own table, which ends early
            wrong = wrong.filter(pl.col("one").str.to_lowercase() != pl.col("other").str.to_lowercase())
        if (event, column) == ("huge_memory/mm_khugepaged_scan_pmd", "status"):  # one name, two numbers by kernel
            wrong = wrong.filter(pl.col("other").is_not_null())
        if (event, column) == ("ftrace/function", "parent_ip_name"):  # trace-cmd shows it if asked to
            wrong = wrong.filter(pl.col("other").is_not_null())
        assert wrong.is_empty(), (event, column, wrong.row(0))
