"""import tracekit as tk: what DESIGN.md 4 promises to Python."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import tracekit as tk
from tracekit import errors
from tracekit.machine.operations import AMOUNTS


def test_the_face_is_what_it_says() -> None:
    assert tk.__all__ == ["__version__", "ingest", "open", "replay"]
    assert all(hasattr(tk, name) for name in tk.__all__)


def test_ingest_stays_a_function_once_its_module_is_imported() -> None:
    from tracekit.ingest import ingest  # noqa: PLC0415

    assert callable(tk.ingest)
    assert tk.ingest is not ingest
    with pytest.raises(errors.TracekitError):
        tk.ingest("/nowhere")


def test_ingest_open_events(captures: dict[str, Path], tmp_path: Path) -> None:
    trace = tk.ingest(captures["demo"], tmp_path / "t")
    assert tk.open(str(tmp_path / "t")).manifest == trace.manifest
    events = trace.events("migrate:set_migration_pte")
    assert isinstance(events, pl.LazyFrame)
    assert events.select(pl.len()).collect().item() == 16 == trace.rows("migrate:set_migration_pte")
    assert {"time_ns", "cpu", "pid", "tid", "comm", "callchain_id", "seq"} <= set(events.collect_schema().names())
    with pytest.raises(errors.MissingEventsError, match="there is migrate:set_migration_pte"):
        trace.events("mm:set_migration_pte")
    with pytest.raises(errors.MissingEventsError):
        trace.table("nope")
    with pytest.raises(errors.TableError, match="make one with tracekit ingest"):
        tk.open(tmp_path)
    with pytest.raises(errors.OutputError, match="exists"):
        tk.ingest(captures["demo"], tmp_path / "t")
    assert tk.ingest(captures["demo"], tmp_path / "t", force=True).path == tmp_path / "t"


def test_ingest_by_default_beside_the_file(captures: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "a.data"
    file.write_bytes(captures["demo"].read_bytes())
    assert tk.ingest(str(file)).path == tmp_path / "a.data.tracekit"
    # replay of the file finds the directory and writes nothing
    assert tk.replay(file).document["coverage"] == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.data", "a.data.tracekit"]


def test_replay_of_a_trace_a_directory_and_a_file_agree(
    captures: dict[str, Path], ingested: Callable[..., Any]
) -> None:
    trace = ingested("demo")
    documents = [copy.deepcopy(tk.replay(one).document) for one in (trace, str(trace.path), captures["demo"])]
    for document in documents:
        document["trace"]["source"].pop("name")
    assert documents[0] == documents[1] == documents[2]


def test_summary_is_a_frame(replayed: Callable[..., Any]) -> None:
    summary = replayed("demo").summary
    assert summary.columns == [
        "policy", "params", "call", "n", "traced_ns", "ratio_low", "ratio_median", "ratio_high", "reason",
    ]  # fmt: skip
    row = summary.row(by_predicate=pl.col("params").str.starts_with("counter=exact"), named=True)
    assert (row["policy"], row["call"], row["n"]) == ("counter_early_exit", "move_pages", 1)
    assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"] < 1


def test_summary_of_what_cannot_be_judged_has_no_rows_for_it(replayed: Callable[..., Any]) -> None:
    assert set(replayed("6.12-forkcow-c4-all", fidelity="counts").summary["policy"]) == {"as_traced"}


def test_plot_is_a_figure(replayed: Callable[..., Any], tmp_path: Path) -> None:
    replayed("demo").plot().savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_is_written_and_read(replayed: Callable[..., Any], tmp_path: Path) -> None:
    from tracekit.result import open_result  # noqa: PLC0415

    result = replayed("demo")
    out = tmp_path / "result"
    result.write(out)
    assert sorted(path.name for path in out.iterdir()) == ["counts.parquet", "operations.parquet", "summary.json"]
    again = open_result(out)
    assert again.document == result.document
    assert again.operations.equals(result.operations)
    assert again.counts.equals(result.counts)
    assert open_result(out / "summary.json").document == result.document
    with pytest.raises(errors.OutputError, match="exists"):
        result.write(out)
    (out / "stale").touch()
    result.write(out, force=True)
    assert not (out / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_force_replaces_results_only(replayed: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "home" / "letters").mkdir(parents=True)
    (tmp_path / "file").touch()
    for target in ("home", "file"):
        with pytest.raises(errors.OutputError, match="is no result"):
            replayed("demo").write(tmp_path / target, force=True)
    assert (tmp_path / "home" / "letters").is_dir()


def test_a_damaged_result_is_named(replayed: Callable[..., Any], tmp_path: Path) -> None:
    from tracekit.result import open_result  # noqa: PLC0415

    out = tmp_path / "result"
    replayed("demo").write(out)
    (out / "counts.parquet").write_bytes(b"PAR1")
    with pytest.raises(errors.TableError, match=r"counts\.parquet"):
        open_result(out)
    for text in ("", "[]", "{}", '{"schema": "tracekit/summary/2"}', '{"schema": "tracekit/summary/1"}', "\udcff"):
        (out / "summary.json").write_text(text, errors="surrogateescape")
        with pytest.raises(errors.TableError, match="not a result"):
            open_result(out)


def test_counts_add_up_to_the_summary(capture: str, replayed: Callable[..., Any]) -> None:
    result = replayed(capture)
    for policy in (one for one in result.document["policies"] if one["judgeable"]):
        rows = (
            result.counts.filter(pl.col("policy") == policy["spec"])
            .group_by("op")
            .agg(pl.col("traced", "policy_count").sum())
        )
        counted = {op: {"traced": traced, "policy": after} for op, traced, after in rows.iter_rows()}
        of_rows = {op: count for op, count in policy["operations"].items() if op not in AMOUNTS}  # those are of fields
        assert counted == {op: count for op, count in of_rows.items() if count["traced"]}


def test_faults_of_the_request(ingested: Callable[..., Any]) -> None:
    trace = ingested("demo")
    with pytest.raises(errors.UsageError, match="not among the policies: as_traced"):
        tk.replay(trace, ["nope"])
    with pytest.raises(errors.UsageError, match="not a parameter"):
        tk.replay(trace, ["counter_early_exit:speed=1"])
    with pytest.raises(errors.UsageError, match="fidelity"):
        tk.replay(trace, fidelity="imagined")


def test_the_readme_example_runs(captures: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    Path("perf.data").write_bytes(captures["demo"].read_bytes())
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["result"].document["policies"][-1]["ratio"]["median"] < 1
    assert Path("plot.svg").exists()
