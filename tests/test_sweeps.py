"""Sweeps: one replay, one table of all, curves in the plot; and how long folios stay blocked, in every report."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tracekit as tk
from tracekit import reports
from tracekit.reports._section import interval
from tracekit.reports._sweep import sweeps

SHARED = Path(__file__).resolve().parents[2] / "shared"
TRACE = SHARED / "truth" / "2-batched-copy" / "copy-64k" / "trace.dat"
Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(not TRACE.is_file(), reason="the shared measurements are not here")
SIZES = (64, 128, 256, 512)
SWEEP = f"batched_copy:order=before_move,threads=1,8,batch={','.join(map(str, SIZES))}"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return tk.replay(TRACE, [SWEEP, "counter_early_exit"]).document


def test_a_sweep_is_found_with_its_lines(document: dict[str, Any]) -> None:
    (found,) = sweeps(document["policies"])
    assert (found.name, found.key) == ("batched_copy", "batch")
    assert {label: tuple(x for x, _ in line) for label, line in found.lines.items()} == {
        "threads=1": SIZES,
        "threads=8": SIZES,
    }


def test_what_is_no_number_and_what_is_one_value_is_no_sweep(document: dict[str, Any]) -> None:
    few = [policy for policy in document["policies"] if policy["params"].get("batch") in (None, 64, 128)]
    assert sweeps(few) == []


def test_larger_batches_wait_longer(document: dict[str, Any]) -> None:
    """As they must where setup is paid per batch: fewer batches, less time in all, longer waits."""
    for line in sweeps(document["policies"])[0].lines.values():
        first = [policy["blocking"]["first_ns"]["policy"]["median"] for _, policy in line]
        assert first == sorted(first)
        batches = [policy["blocking"]["batches"]["policy"] for _, policy in line]
        assert batches == [256 * 16 // pages for pages in SIZES]
    traced = {str(p["blocking"]["first_ns"]["traced"]) for p in document["policies"] if p.get("blocking")}
    assert len(traced) == 1, "as traced is as traced, whatever is asked"


def test_every_report_says_how_long(document: dict[str, Any]) -> None:
    policy = next(one for one in document["policies"] if one.get("blocking"))
    said = interval(policy["blocking"]["first_ns"]["policy"], 1e3, 1)
    for suffix in ("txt", "md", "html"):
        text = reports.render(document, suffix).decode()
        assert "Time blocked" in text or "TIME BLOCKED" in text
        assert said in text
        assert "least total time: batched_copy:" in text


def test_the_plot_has_curves_instead_of_bars(document: dict[str, Any]) -> None:
    svg = reports.render(document, "svg").decode()
    assert "batched_copy: batch" in svg
    assert "first folio of a batch threads=8" in svg
    assert "counter_early_exit" in svg
    assert not re.search(r">batch=64<|batch=64</text>", svg), "a sweep is no bar"
    assert reports.render(document, "png")[:4] == b"\x89PNG"


def test_a_sweep_without_batches_is_a_curve_of_ratios(document: dict[str, Any]) -> None:
    policies = [dict(policy, blocking=None) for policy in document["policies"]]
    svg = reports.render({**document, "policies": policies}, "svg").decode()
    assert "batched_copy: batch" in svg
    assert "first folio" not in svg


def test_one_command_and_one_plot(tracekit: Run, tmp_path: Path) -> None:
    ran = tracekit("replay", TRACE, "--policy", SWEEP, "--report", tmp_path / "batch.svg")
    assert ran.returncode == 0, ran.stderr
    assert "TIME BLOCKED" in ran.stdout
    assert "batched_copy: batch" in (tmp_path / "batch.svg").read_text()
    refused = tracekit("replay", tmp_path / "absent", "--report", tmp_path / "batch.doc")
    assert refused.returncode == 1
    assert "not among the reports" in refused.stderr, "before the work, not after it"
