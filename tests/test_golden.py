"""Golden tables of real captures: what changes in them changes for every user.

tests/golden/CAPTURE/: operations.csv, calls.csv, summary.json. After a change that is meant:

    python -m pytest tests/test_golden.py --regenerate-golden

and a commit of its own that says why. It also writes what the README shows of the commands' output.

Kernel addresses are numbered in the order in which they come, times count from the first record.
Prices are left out and ratios rounded to two digits: they may differ in the last bits between processors.
"""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tracekit.machine.replay import replay

GOLDEN = Path(__file__).parent / "golden"
CAPTURES = ("forkcow-c4-keeplast", "forkmig-copied", "thp-split", "7.2-rec-lost")
OPERATIONS = (
    "op", "time_ns", "task", "cpu", "call", "episode", "position", "folio", "order", "vma", "mm", "addr", "nr_pages",
    "hit", "known", "moved", "window", "certainty",
)  # fmt: skip
CALLS = (
    "call", "name", "kind", "is_named", "task", "parent", "start_ns", "duration_ns", "tracepoints",
    "kprobes", "kretprobes", "lost",
)  # fmt: skip
ADDRESSES = {"folio": "f", "vma": "v", "mm": "m"}


def table(frame: pl.DataFrame, columns: tuple[str, ...], first_ns: int) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    labels: dict[tuple[str, int], str] = {}

    def cell(column: str, value: Any) -> Any:
        if value is None:
            return ""
        if column in ADDRESSES:
            number = 1 + sum(1 for kind, _ in labels if kind == column)
            return labels.setdefault((column, value), f"{ADDRESSES[column]}{number}")
        if column in ("time_ns", "start_ns"):
            return value - first_ns
        return int(value) if isinstance(value, bool) else f"{value:x}" if column == "addr" else value

    for row in frame.select(columns).iter_rows():
        writer.writerow([cell(column, value) for column, value in zip(columns, row, strict=True)])
    return out.getvalue()


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key not in ("how", "time_ns", "record", "note")}
        return {key: rounded(inner) for key, inner in kept.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 2) if isinstance(value, float) else value


def compact(value: Any, indent: int = 0) -> str:
    """JSON with one line for what fits on it."""
    line = json.dumps(value)
    if len(line) + indent < 120 or not isinstance(value, dict | list):
        return line
    named = value.items() if isinstance(value, dict) else [(None, inner) for inner in value]
    inner = [("" if key is None else f"{json.dumps(key)}: ") + compact(one, indent + 1) for key, one in named]
    left, right = "{}" if isinstance(value, dict) else "[]"
    pad = "\n" + " " * (indent + 1)
    return f"{left}{pad}{f',{pad}'.join(inner)}\n{' ' * indent}{right}"


@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize("stage", ["operations.csv", "calls.csv", "summary.json"])
def test_golden(
    name: str, stage: str, ingested: Callable[..., Any], replayed: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    trace = ingested(name)
    first_ns = trace.manifest["time_range_ns"]["first"]
    if stage == "operations.csv":
        text = table(replayed(name).operations, OPERATIONS, first_ns)
    elif stage == "calls.csv":
        text = table(replay(trace).calls, CALLS, first_ns)
    else:
        document = replayed(name).document
        text = compact(rounded({key: document[key] for key in document if key not in ("schema", "trace")})) + "\n"
    file = GOLDEN / name / stage
    if request.config.getoption("--regenerate-golden"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert text.splitlines() == file.read_text().splitlines()


def test_no_golden_file_is_left_over() -> None:
    assert sorted(folder.name for folder in GOLDEN.iterdir()) == sorted(CAPTURES)


README = Path(__file__).parents[1] / "README.md"
TRUTH = README.parents[1] / "shared" / "truth"


@pytest.mark.parametrize("shown", ["tracekit demo", "tracekit info", "tracekit validate ../shared/truth"])
def test_the_readme_shows_what_the_command_prints(
    shown: str, tracekit: Callable[..., Any], captures: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    if shown == "tracekit demo":
        printed = tracekit("demo").stdout.rstrip()
    elif shown == "tracekit info":
        lines = tracekit("info", captures["6.12-forkcow-c4-all"]).stdout.splitlines()
        printed = next(line for line in lines if "perf record" in line)
    elif TRUTH.is_dir():
        printed = tracekit("validate", TRUTH).stdout.rstrip()
    else:
        pytest.skip("the measured pairs are not beside this checkout")
    marker = f"<!-- printed by: {shown} -->\n```\n"
    before, rest = README.read_text().split(marker)
    block, after = ("\n" + rest).split("\n```\n", maxsplit=1)
    if request.config.getoption("--regenerate-golden"):
        README.write_text(f"{before}{marker}{printed}\n```\n{after}")
        block = f"\n{printed}"
    assert block.splitlines()[1:] == printed.splitlines()
