"""What a replay sees in a text is what it sees in the file that the text was printed from."""

import re
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import text_oracle

import tracekit as tk
from tracekit.machine.replay import replay

if not text_oracle.CAPTURES.is_dir():
    pytest.skip("needs the captures beside the checkout", allow_module_level=True)

VISITS = {"try_to_migrate.vma_visit": "try_to_migrate_one", "remove_migration_ptes.vma_visit": "remove_migration_pte"}
PROBES = [
    text_oracle.CAPTURES / name / "trace.txt"
    for name in ("7.2/rec.txt-trace-kprobes", "7.2/rec.txt-tgid", "6.12/rec.txt-trace-kprobes")
]


def operations(source: Path, out: Path) -> pl.DataFrame:
    result = tk.replay(tk.ingest(source, out), policies=["as_traced"])
    assert result.operations is not None
    return result.operations


def visits(frame: pl.DataFrame) -> Counter[tuple[str, int]]:
    """Visits by operation and folio."""
    return Counter(
        (op, folio) for op, folio in frame.select(pl.col("op").cast(pl.String), "folio").rows() if op in VISITS
    )


@pytest.mark.parametrize("name", ["7.2/rec.perf-kprobes", "7.2/rec.perf-allk"])
def test_perf_script_replays_as_its_perf_data(name: str, tmp_path: Path) -> None:
    folder = text_oracle.CAPTURES / name
    (tmp_path / "script.txt").write_bytes(text_oracle.text_of(folder, "oracle.script.txt"))
    ours = operations(tmp_path / "script.txt", tmp_path / "text")
    theirs = operations(folder / "perf.data", tmp_path / "binary")
    assert visits(ours) == visits(theirs)
    assert sum(visits(ours).values()) > 100
    # places in another file; the text tells neither the size of a page nor which kernel it was
    columns = [column for column in theirs.columns if column not in {"seq", "bytes", "batched"}]
    assert ours.select(columns).equals(theirs.select(columns))


@pytest.mark.parametrize("name", ["7.2/rec.dual", "6.12/forkcow-c4-all.tc"])
def test_trace_cmd_report_replays_as_its_trace_dat(name: str, tmp_path: Path) -> None:
    """Probes are told by their place in the kernel, for the text names no group: what they cost is taken off."""
    folder = text_oracle.CAPTURES / name
    (tmp_path / "report.txt").write_bytes(text_oracle.text_of(folder, "oracle.report.txt"))
    text, binary = (tk.ingest(path, tmp_path / path.stem) for path in (tmp_path / "report.txt", folder / "trace.dat"))
    ours, theirs = replay(text), replay(binary)
    assert text.manifest["fidelity"] == binary.manifest["fidelity"] == ours.fidelity == theirs.fidelity == "observed"
    counted = ["kind", "name", "task", "tracepoints", "kprobes", "kretprobes"]
    assert ours.calls.select(counted).rows() == theirs.calls.select(counted).rows()
    assert (ours.calls["kprobes"] > 0).any()
    assert visits(ours.operations) == visits(theirs.operations)
    hidden = replay(text, fidelity="counts")
    assert hidden.calls.select(counted).rows() == replay(binary, fidelity="counts").calls.select(counted).rows()
    assert not any(visits(hidden.operations).values())


@pytest.mark.parametrize("path", PROBES, ids=lambda path: path.parent.name)
def test_tracefs_text_replays_with_the_visits_it_shows(path: Path, tmp_path: Path) -> None:
    ours = operations(path, tmp_path / "trace")
    text = path.read_text()
    for op, probe in VISITS.items():
        shown = Counter(int(folio, 16) for folio in re.findall(rf": {probe}: \(\S+ *\) folio=0x([0-9a-f]+)", text))
        assert {folio: count for (name, folio), count in visits(ours).items() if name == op} == dict(shown)
        assert sum(shown.values()) > 100
