"""Two traces or two results side by side: numbers of the captures, and p-values from the books."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest

from tracekit import compare, errors, pipeline, resources

SCHEMA = json.loads((resources.schemas() / "compare.schema.json").read_text())


def check(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


@pytest.mark.parametrize(
    ("a", "b", "p", "least"),
    [
        # Mann and Whitney 1947, table of U, one-sided: n = m = 4, U = 0 .014; n = m = 3 .05; n = 3, m = 4 .028
        ([1, 2, 3, 4], [5, 6, 7, 8], 2 / 70, 2 / 70),
        ([1, 2, 3], [4, 5, 6], 2 / 20, 2 / 20),
        ([1, 2, 3], [4, 5, 6, 7], 2 / 35, 2 / 35),
        # U = 1 of n = m = 4: .029 one-sided
        ([1, 2, 3, 5], [4, 6, 7, 8], 4 / 70, 2 / 70),
        ([1, 2], [3, 4], 2 / 6, 2 / 6),
        ([5, 5, 5], [5, 5, 5], 1.0, 2 / 20),
    ],
)
def test_the_p_value_is_that_of_the_tables(a: list[float], b: list[float], p: float, least: float) -> None:
    found = compare._significance(np.array(a, dtype=float), np.array(b, dtype=float))
    assert (found["p"], found["least_p"], found["exact"]) == (pytest.approx(p), pytest.approx(least), True)


def test_of_many_calls_deals_are_drawn() -> None:
    random = np.random.default_rng(1)
    same = compare._significance(random.normal(size=40), random.normal(size=40))
    apart = compare._significance(random.normal(size=40), random.normal(1.5, size=40))
    assert not same["exact"]
    assert same["p"] > 0.01
    assert apart["p"] < 0.001


def test_two_kernels(captures: dict[str, Path]) -> None:
    """6.12 against 7.2, one workload: what both show is counted, and n of one call each proves nothing."""
    paths = [captures[name] for name in ("6.12-forkcow-c4-all", "forkcow-c4-all")]
    document = compare.compare(*paths, specs=["counter_early_exit"])
    check(document)
    for side, path in zip("ab", paths, strict=True):
        own = pipeline.replay(pipeline.load(path)).operations
        for op, count in document["operations"].items():
            assert count[side] == len(own.filter(pl.col("op") == op)), op
    assert document["a"]["release"].startswith("6.12")
    for call in document["calls"]:
        if call["a"] and call["b"]:
            assert call["significance"]["p"] == 1.0
            assert call["a"]["n"] == call["b"]["n"] == 1
            assert "too few calls to tell" in compare.text(document)
    predicted = {one["call"]: one for one in document["predictions"]}
    assert predicted
    assert all(one["ratio"]["median"] < 1 for one in predicted.values() if one["ratio"])


def test_a_trace_with_itself_shows_no_change(captures: dict[str, Path]) -> None:
    document = compare.compare(captures["demo"], captures["demo"])
    assert all(count["a"] == count["b"] for count in document["operations"].values())
    assert {call["ratio"] for call in document["calls"]} == {1.0}
    assert document["predictions"] == []


def test_two_results(replayed: Callable[..., Any], tmp_path: Path, captures: dict[str, Path]) -> None:
    for name in ("demo", "forkcow-c4-all"):
        replayed(name).write(tmp_path / name)
    document = compare.compare(tmp_path / "demo", tmp_path / "forkcow-c4-all")
    check(document)
    traced = replayed("demo").document["policies"][0]
    assert document["operations"]["folio.copy"]["a"] == traced["operations"]["folio.copy"]["traced"]
    assert all(call["significance"] is None for call in document["calls"])
    with pytest.raises(errors.UsageError, match="compare like with like"):
        compare.compare(tmp_path / "demo", captures["demo"])
